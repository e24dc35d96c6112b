"""The adapters on what real servers answered (tests/captures) and, for SGLang, on what its source says it answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbench.backends.server.adapter import Ask, Chunk, Event
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.openai import (
    OpenAI,
    divergence,
    events_of,
    finish_of,
    stream_times,
    survivors,
    text_of,
    usage_of,
)
from specbench.backends.server.preflight import ADAPTERS, check_defaults, detect
from specbench.backends.server.scoring import Scorer, Top
from specbench.backends.server.sglang import SGLang
from specbench.backends.server.vllm import VLLM
from specbench.records import Counters, Message, Sampling, ServerStats

CAPTURES = Path(__file__).parent / "captures"
ASK = Ask((Message("system", "Be brief."), Message("user", "Hi")), 24, Sampling(), seed=7)
WARM = replace(ASK, sampling=Sampling(temperature=0.7, top_p=0.9, top_k=40))
PENALISED = Sampling(temperature=0.7, min_p=0.1, repetition_penalty=1.2)


def capture(name: str) -> str:
    return (CAPTURES / name).read_text()


def streamed(name: str) -> list[Chunk]:
    """A captured stream; event i arrives after i + 1 seconds."""
    lines = [line.removeprefix("data: ") for line in capture(name).splitlines() if line.startswith("data: ")]
    return [Chunk(i + 1.0, json.loads(line)) for i, line in enumerate(lines) if line != "[DONE]"]


def whole(name: str) -> list[Chunk]:
    """A captured answer that was not streamed, as the one chunk that it would be."""
    answer = json.loads(capture(name))
    answer["choices"] = [{**choice, "delta": choice.pop("message")} for choice in answer["choices"]]
    return [Chunk(2.5, answer)]


def said(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **more}


def stream(*events: dict[str, Any]) -> list[Chunk]:
    return [Chunk(i + 1.0, event) for i, event in enumerate(events)]


def read(*events: dict[str, Any]) -> list[tuple[float, Event]]:
    return events_of(stream(*events), Event)


def usage(tokens: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}


def pages(**found: str):
    """A server with these pages: `version` is /version, `v1__models` is /v1/models."""
    by_path = {"/" + name.replace("__", "/"): page for name, page in found.items()}

    async def get(path: str) -> str | None:
        return by_path.get(path)

    return get


def state(adapter, **found: str):
    return asyncio.run(adapter.state(pages(**found)))


# What all share.


def test_the_plain_body_has_only_fields_that_every_server_knows():
    assert OpenAI().body(replace(ASK, sampling=Sampling(0.7, 0.9)), "m") == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 24,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "model" not in OpenAI().body(ASK, None)
    with pytest.raises(ValueError, match="top_k"):
        OpenAI().body(WARM, "m")
    for name in ("min_p", "repetition_penalty"):
        with pytest.raises(ValueError, match=name):
            OpenAI().body(replace(ASK, sampling=Sampling(**{name: 0.5})), "m")


@pytest.mark.parametrize("adapter", [VLLM(), SGLang()])
def test_bodies_leave_nothing_to_the_models_own_sampling_defaults(adapter):
    cold, warm = adapter.body(ASK, "m"), adapter.body(WARM, "m")
    assert {key: cold[key] for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert (warm["temperature"], warm["top_p"], warm["top_k"]) == (0.7, 0.9, 40)
    said = adapter.body(replace(ASK, sampling=PENALISED), "m")
    assert (said["min_p"], said["repetition_penalty"]) == (0.1, 1.2)


def test_a_plain_stream_is_read_whole():
    chunks = streamed("llama_draft.chat.sse")
    got = OpenAI().read(chunks)
    assert got.text == "Repeat exactly one two three four five six seven eight nine ten."
    assert (got.finish, got.prompt_tokens, got.output_tokens) == ("eos", 44, 14)
    # The first event has the role alone; the last token is the end of sequence, and the event after it has the usage.
    assert (got.first_s, got.last_s) == (2.0, len(chunks) - 1.0)
    assert (got.drafted, got.accepted) == ((), ())
    assert got.told == ServerStats(cached_tokens=43)


@pytest.mark.parametrize("where", [0, 1, 3])
def test_usage_may_come_anywhere(where):
    events = [said(""), said("a"), said("b", "length")]
    events.insert(where, usage(3))
    got = OpenAI().read(stream(*events))
    assert (got.text, got.output_tokens, got.prompt_tokens, got.finish) == ("ab", 3, 5, "length")
    arrivals = [at for at, event in enumerate(events, 1) if event["choices"]]
    assert (got.first_s, got.last_s) == (arrivals[1], arrivals[2])


def test_running_usage_counts_by_its_last():
    events = [said("a", usage={"completion_tokens": 1}), said("b", "stop", usage={"completion_tokens": 3})]
    assert usage_of(read(*events)).completion_tokens == 3


def test_an_end_of_sequence_alone_is_a_token():
    assert stream_times(read(said(""), said(None, "stop"), usage(1))) == (2.0, 2.0)


def test_thoughts_are_text():
    thought = {"choices": [{"delta": {"reasoning_content": "Hm. "}}]}
    events = read(said(""), thought, said("Yes", "stop"))
    assert (text_of(events), stream_times(events)) == ("Hm. Yes", (2.0, 3.0))


@pytest.mark.parametrize("reason", ["abort", "content_filter"])
def test_another_end_than_ours_is_no_answer(reason):
    with pytest.raises(ValueError, match=reason):
        OpenAI().read(stream(said("a"), said(None, reason), usage(2)))


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([], "no finish_reason"),
        ([said("a"), usage(1)], "no finish_reason"),
        ([said("a", "stop")], "no usage.completion_tokens, which we ask for by stream_options.include_usage"),
        ([said("a", "stop"), usage(None)], "no usage.completion_tokens"),
        ([said("a", "stop"), usage(-1)], "usage.completion_tokens is below 0"),
        ([said("a", "stop"), usage(True)], "completion_tokens is true or false, not a whole number"),
        ([said("a", "stop"), usage("3")], "completion_tokens is text, not a whole number"),
        ([said("a", "stop"), usage(1.5)], "completion_tokens is a number, not a whole number"),
        ([said("a", "stop"), usage(10**401)], "completion_tokens is not a number up to 1e"),
        ([said("a", "stop"), usage(float("nan"))], "completion_tokens is a number, not a whole number"),
        ([said("secret \ud800", "stop"), usage(1)], "half a surrogate pair"),
        ([{"choices": "none"}], "not a list"),
        ([{"choices": [3]}], r"choices\[0\] is a number, not an object"),
        ([{"choices": [{"delta": "a", "finish_reason": "stop"}]}, usage(1)], "not an object"),
        ([said(["secret"], "stop"), usage(1)], "content is a list, not text"),  # type: ignore[arg-type]
    ],
)
def test_garbage_is_refused(events, why):
    with pytest.raises(ValueError, match=why) as refused:
        OpenAI().read(stream(*events))
    assert "secret" not in str(refused.value)


def test_no_token_has_no_time():
    with pytest.raises(ValueError, match="no token"):
        stream_times(read(said(""), usage(0)))


@pytest.mark.parametrize("adapter", [OpenAI(), VLLM(), SGLang()])
def test_a_server_that_dies_midway_gives_no_answer(adapter):
    with pytest.raises(ValueError, match="InternalServerError"):
        adapter.read(streamed("vllm_dead.chat.sse"))


def test_the_plain_adapter_names_the_only_model():
    listed = json.dumps({"data": [{"id": "m", "parent": None}, {"id": "lora", "parent": "m"}]})
    assert state(OpenAI(), v1__models=listed).model == "m"
    assert state(OpenAI(), v1__models=json.dumps({"data": [{"id": "a"}, {"id": "b"}]})).model is None
    assert state(OpenAI()).model is None
    assert OpenAI().counters("") == Counters()


def test_survivors_of_a_histogram():
    # 5 rounds accepted none, 3 one, 1 two, 3 three, 16 four.
    assert survivors([5, 3, 1, 3, 16]) == (23, 20, 19, 16)
    assert survivors([4]) == ()


# vLLM.


def test_vllm_lists_every_round():
    got = VLLM().read(whole("vllm_ngram.chat.detailed.json"))
    assert (got.prompt_tokens, got.output_tokens, got.finish) == (237, 128, "length")
    assert got.drafted == (4,) * 28
    accepted = (0, 3, 4, 4, 4, 4, 1, 0, 4, 4, 3, 4, 4, 4, 4, 4, 4, 4, 1, 2, 1, 4, 3, 0, 4, 4, 0, 0)
    assert got.accepted == accepted
    assert got.told == ServerStats(
        prefill_s=pytest.approx(0.25964949399985926),
        decode_s=pytest.approx(1.4653431540000383),
        queue_s=pytest.approx(0.00002493800002412172),
        rounds=28,
        drafted=112,
        accepted=78,
        survived=(23, 20, 19, 16),
    )
    assert got.told.survived == tuple(sum(a >= j for a in accepted) for j in (1, 2, 3, 4))


def test_vllm_streams_the_same_fields():
    got = VLLM().read(streamed("vllm_ngram.chat.sse"))
    assert (got.text, got.finish) == ("One two three four five six seven eight nine ten.", "eos")
    assert (got.prompt_tokens, got.output_tokens, got.first_s, got.last_s) == (49, 12, 2.0, 6.0)
    assert (got.drafted, got.accepted) == ((4, 4), (4, 3))
    assert got.told == ServerStats(
        prefill_s=pytest.approx(0.07229055600009815),
        decode_s=pytest.approx(0.1070713090002755),
        queue_s=pytest.approx(0.00002751099964370951),
        rounds=2,
        drafted=8,
        accepted=7,
        survived=(2, 2, 2, 1),
    )


def test_vllm_summary_tells_totals_and_no_order():
    got = VLLM().read(whole("vllm_draft.chat.summary.json"))
    assert (got.drafted, got.accepted) == ((), ())
    assert (got.told.rounds, got.told.drafted, got.told.accepted) == (99, 297, 29)
    assert got.told.survived == (26, 3, 0)
    streamed_too = VLLM().read(streamed("vllm_ngram_summary.chat.sse"))
    assert (streamed_too.drafted, streamed_too.told.rounds, streamed_too.told.survived) == ((), 3, (3, 2, 2, 2))


def test_vllm_counts_what_the_token_limit_cut_off():
    """5 tokens asked for: one of the prompt, then rounds of 1 + 1 and 1 + 4. Three of them never left the server."""
    got = VLLM().read(streamed("vllm_ngram_cut.chat.sse"))
    assert (got.output_tokens, got.finish) == (5, "length")
    assert (got.drafted, got.accepted) == ((4, 4), (1, 4))
    assert 1 + got.told.rounds + got.told.accepted == 8


def test_vllm_without_rounds_says_0_and_without_speculation_nothing():
    one = VLLM().read(streamed("vllm_ngram_one.chat.sse"))
    assert (one.output_tokens, one.drafted) == (1, ())
    assert (one.told.rounds, one.told.drafted, one.told.accepted, one.told.survived) == (0, 0, 0, (0, 0, 0, 0))
    assert one.told.decode_s == 0.0
    off = VLLM().read(whole("vllm_none.chat.json"))
    assert (off.told.rounds, off.told.drafted, off.told.accepted, off.told.survived) == (None,) * 4
    assert off.told.decode_s == pytest.approx(2.20789878100004)


def test_vllm_without_its_flags_tells_nothing_more_than_a_plain_server():
    got = VLLM().read(streamed("vllm_ngram_unflagged.chat.sse"))
    assert got.told == ServerStats()
    assert got == OpenAI().read(streamed("vllm_ngram_unflagged.chat.sse"))


def test_vllm_tells_what_its_prefix_cache_gave():
    assert VLLM().read(streamed("vllm_ngram_ids.chat.sse")).told.cached_tokens == 0


@pytest.mark.parametrize(
    "lists",
    [
        {"per_step_drafted": [4, 4], "per_step_accepted": [1]},
        {"per_step_drafted": [4], "per_step_accepted": [1]},
        {"per_step_drafted": None},
    ],
)
def test_vllm_lists_that_disagree_are_refused(lists):
    chunks = whole("vllm_ngram.chat.detailed.json")
    chunks[0].data["metrics"]["speculative_decoding"].update(lists)
    with pytest.raises(ValueError, match="rounds"):
        VLLM().read(chunks)


def test_vllm_counters():
    assert VLLM().counters(capture("vllm_ngram.metrics")) == Counters(392, 67, 268, 153, (49, 40, 34, 30))
    assert VLLM().counters(capture("vllm_none.metrics")) == Counters(tokens=12)
    with pytest.raises(ValueError):
        VLLM().counters("<html>")


def test_vllm_counters_of_a_stretch_are_the_sums_over_its_answers():
    start, end = (VLLM().counters(capture(f"vllm_ngram_{when}.metrics")) for when in ("start", "end"))
    assert start == Counters(0, 0, 0, 0, (0, 0, 0, 0))
    added = end.since(start)
    assert added is not None
    each = VLLM().read(streamed("vllm_ngram_ids.chat.sse")).told
    four = tuple(4 * n for n in (each.rounds, each.drafted, each.accepted))
    assert (added.rounds, added.drafted, added.accepted) == four == (12, 48, 36)
    assert added.survived == tuple(4 * n for n in each.survived)
    # Four answers of 14, one of 1, and the first token of the one that died.
    assert added.tokens == 4 * 14 + 1 + 1
    assert start.since(end) is None


def test_vllm_counters_add_up_over_engines():
    page = capture("vllm_ngram.metrics")
    samples = [line for line in page.splitlines() if line.startswith("vllm:")]
    second = "\n".join(line.replace('engine="0"', 'engine="1"') for line in samples)
    assert VLLM().counters(f"{page}{second}\n") == Counters(784, 134, 536, 306, (98, 80, 68, 60))


VLLM_PAGES = {"v1__models": capture("vllm.models.json"), "version": capture("vllm.version.json")}


def test_vllm_state():
    got = state(VLLM(), **VLLM_PAGES, metrics=capture("vllm_ngram_start.metrics"))
    assert (got.model, got.version, got.context) == ("m", "0.32.0", 2048)
    assert (got.speculating, got.gamma, got.busy, got.prefix_cache) == (True, 4, 0, False)
    off = state(VLLM(), **VLLM_PAGES, metrics=capture("vllm_none.metrics"))
    assert (off.speculating, off.gamma, off.prefix_cache) == (False, None, True)


def test_vllm_that_shows_no_counters_does_not_say_whether_it_speculates():
    for more in ({}, {"metrics": "python_info 1.0\n"}):
        got = state(VLLM(), **VLLM_PAGES, **more)
        assert (got.speculating, got.gamma, got.busy, got.prefix_cache) == (None,) * 4
        assert got.version == "0.32.0"


def test_vllm_is_busy_with_those_that_run_and_those_that_wait():
    page = capture("vllm_none.metrics")
    for what, n in (("running", 2), ("waiting", 3)):
        page = page.replace(
            f'num_requests_{what}{{engine="0",model_name="m"}} 0.0', f'num_requests_{what}{{e="0"}} {n}'
        )
    assert state(VLLM(), **VLLM_PAGES, metrics=page).busy == 5


def scored_ids() -> list[int]:
    """Prompt and answer of `vllm_ngram_ids`, as token ids."""
    events = [chunk.data for chunk in streamed("vllm_ngram_ids.chat.sse")]
    answered = [choice.get("token_ids") or [] for event in events for choice in event["choices"]]
    return [*events[0]["prompt_token_ids"], *(token for ids in answered for token in ids)]


def test_vllm_scores_a_text():
    ids = scored_ids()
    assert VLLM().score_request(ids, "m") == (
        "/v1/completions",
        {"model": "m", "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1},
    )
    assert "model" not in VLLM().score_request(ids)[1]
    tops = VLLM().read_scores(json.loads(capture("vllm_prompt_logprobs.json")), ids)
    assert [top.token for top in tops] == ids[1:]
    assert tops[0] == Top(9690, 29, -0.9800835251808167, own_logprob=-7.790428161621094)
    assert tops[1] == Top(198, 198, -1.0396019220352173, own_logprob=-1.0396019220352173)
    # The answer was greedy: from its first token on, what stands there is the likeliest.
    assert all(top.top == top.token for top in tops[43:])
    assert not all(top.top == top.token for top in tops[:43])


def test_vllm_scores_of_another_text_are_refused():
    payload, ids = json.loads(capture("vllm_prompt_logprobs.json")), scored_ids()
    with pytest.raises(ValueError, match="58 places of a text of 57"):
        VLLM().read_scores(payload, ids[:-1])
    with pytest.raises(ValueError, match="another text"):
        VLLM().read_scores(payload, [*ids[:-1], 5])
    with pytest.raises(ValueError, match="no prompt_logprobs"):
        VLLM().read_scores({"choices": [{}]}, ids)
    for entry in payload["choices"][0]["prompt_logprobs"][3].values():
        entry["rank"] = 2
    with pytest.raises(ValueError, match="likeliest"):
        VLLM().read_scores(payload, ids)


# SGLang: nothing here was seen on a running server.

SGLANG_DETAILS = {
    "spec_accept_rate": 0.75,
    "spec_accept_length": 4.0,
    "spec_cap_length": 0.0,
    "spec_block_accept_length": 0.0,
    "spec_num_correct_drafts": 9,
    "spec_num_proposed_drafts": 12,
    "spec_verify_ct": 3,
    "spec_correct_drafts_histogram": [0, 1, 0, 0, 2],
    "spec_cap_lens_histogram": [],
}
SGLANG_INFO = {
    "speculative_algorithm": "STANDALONE",
    "speculative_num_steps": 4,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 5,
    "disable_radix_cache": True,
    "version": "0.5.23",
    "internal_states": [{}],
}


def sglang_stream(details: dict[str, Any] | None) -> list[Chunk]:
    ext = [] if details is None else [{"choices": [], "sglext": {"spec_tokens_details": details}}]
    return stream(said(""), said("One"), said(" two"), said(None, "stop"), *ext, usage(14))


def test_sglang_tells_totals_where_it_is_asked_to():
    assert SGLang().body(ASK, "m")["return_spec_tokens_details"] is True
    got = SGLang().read(sglang_stream(SGLANG_DETAILS))
    assert (got.text, got.output_tokens, got.first_s, got.last_s) == ("One two", 14, 2.0, 4.0)
    assert (got.drafted, got.accepted) == ((), ())
    assert got.told == ServerStats(rounds=3, drafted=12, accepted=9, survived=(3, 2, 2, 2))


def test_sglang_histogram_ends_early():
    short = {**SGLANG_DETAILS, "spec_num_correct_drafts": 2, "spec_correct_drafts_histogram": [1, 2]}
    assert SGLang().read(sglang_stream(short)).told.survived == (2, 0, 0, 0)
    none = {**SGLANG_DETAILS, "spec_correct_drafts_histogram": []}
    assert SGLang().read(sglang_stream(none)).told == ServerStats(rounds=3, drafted=12, accepted=9)


@pytest.mark.parametrize("details", [None, dict.fromkeys(("spec_verify_ct", "spec_num_proposed_drafts"), 0)])
def test_sglang_without_rounds_tells_nothing(details):
    assert SGLang().read(sglang_stream(details)).told == ServerStats()


def test_sglang_counters():
    page = """# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="m",is_streaming="true"} 30.0
sglang:generation_tokens_total{model_name="m",is_streaming="false"} 12.0
# TYPE sglang:spec_verify_calls_total counter
sglang:spec_verify_calls_total{model_name="m"} 9.0
# TYPE sglang:spec_accept_length gauge
sglang:spec_accept_length{model_name="m"} 3.5
"""
    assert SGLang().counters(page) == Counters(tokens=42, rounds=9)
    # It has no counter before it has first counted.
    assert SGLang().counters(page).since(SGLang().counters("")) == Counters(tokens=42, rounds=9)


def test_sglang_state():
    loads = {"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 2}, {"num_running_reqs": 4, "num_waiting_reqs": 0}]}
    models = {"data": [{"id": "m", "max_model_len": 4096}, {"id": "lora", "parent": "m"}]}
    found = {"v1__models": json.dumps(models), "v1__loads": json.dumps(loads)}
    got = state(SGLang(), **found, server_info=json.dumps(SGLANG_INFO))
    assert (got.model, got.version, got.context, got.busy) == ("m", "0.5.23", 4096, 7)
    assert (got.speculating, got.method, got.gamma, got.prefix_cache) == (True, "STANDALONE", 4, False)
    off = {**SGLANG_INFO, "speculative_algorithm": None, "disable_radix_cache": False}
    got = state(SGLang(), get_server_info=json.dumps(off))
    assert (got.speculating, got.method, got.gamma, got.prefix_cache) == (False, None, None, True)
    assert (got.model, got.busy) == (None, None)
    assert state(SGLang()).speculating is None


def test_sglang_gamma_of_a_look_up():
    info = {**SGLANG_INFO, "speculative_algorithm": "NGRAM", "speculative_num_steps": None}
    assert state(SGLang(), server_info=json.dumps(info)).gamma == 4


SGLANG_SCORES = {
    "text": "!",
    "meta_info": {
        "input_token_logprobs": [[None, 5, None], [-0.5, 7, None], [-2.0, 9, None]],
        "input_top_logprobs": [None, [[-0.5, 7, None]], [[-0.25, 8, None]]],
    },
}


def test_sglang_scores_a_text():
    path, body = SGLang().score_request([5, 7, 9], "m")
    assert (path, body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]) == (
        "/generate",
        [5, 7, 9],
        0,
        1,
    )
    assert SGLang().read_scores(SGLANG_SCORES, [5, 7, 9]) == [
        Top(7, 7, -0.5, own_logprob=-0.5),
        Top(9, 8, -0.25, own_logprob=-2.0),
    ]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"input_token_logprobs": [[None, 5, None], [-0.5, 6, None], [-2.0, 9, None]]}, "another text"),
        ({"input_top_logprobs": [None, [[-0.5, 7, None]]]}, "2 places of a text of 3"),
        ({"input_top_logprobs": [None, None, [[-0.25, 8, None]]]}, "log-probability"),
        ({"input_top_logprobs": [None, [[None, 7]], [[-0.25, 8]]]}, "likeliest"),
        ({"input_top_logprobs": None}, "no input_top_logprobs"),
    ],
)
def test_sglang_scores_of_another_text_are_refused(changed, why):
    payload = {"meta_info": SGLANG_SCORES["meta_info"] | changed}
    with pytest.raises(ValueError, match=why):
        SGLang().read_scores(payload, [5, 7, 9])


def test_which_adapters_score():
    scoring = {name for name, adapter in ADAPTERS.items() if isinstance(adapter(), Scorer)}
    assert {"vllm", "sglang"} <= scoring
    assert "openai" not in scoring


# Which engine it is.

HOME = "<!doctype html><title>Home</title>"


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"props": capture("llama_draft.props.json"), "metrics": "llamacpp:n_decode_total 1\n"}, LlamaCpp),
        ({**VLLM_PAGES, "metrics": capture("vllm_none.metrics")}, VLLM),
        (VLLM_PAGES, VLLM),
        ({"version": VLLM_PAGES["version"], "metrics": capture("vllm_none.metrics")}, VLLM),
        ({"v1__models": VLLM_PAGES["v1__models"]}, OpenAI),
        ({"version": VLLM_PAGES["version"], "v1__models": '{"data": [3]}'}, OpenAI),
        ({"server_info": json.dumps(SGLANG_INFO)}, SGLang),
        ({"get_server_info": json.dumps(SGLANG_INFO)}, SGLang),
        ({"version": '{"version":"0.9"}', "metrics": "other:requests_total 1\n"}, OpenAI),
        ({"version": '{"version":"0.9"}'}, OpenAI),
        ({}, OpenAI),
        (dict.fromkeys(("props", "version", "metrics", "server_info", "get_server_info"), HOME), OpenAI),
        ({"props": "[]", "version": "null"}, OpenAI),
    ],
)
def test_detect(found, kind):
    assert type(asyncio.run(detect(pages(**found)))) is kind


@pytest.mark.parametrize(
    ("engine", "path", "prefix"), [("tensorrt", "prometheus__metrics", "trtllm_"), ("lmdeploy", "metrics", "lmdeploy:")]
)
def test_an_engine_that_only_counts_is_known_by_its_counters(engine, path, prefix):
    page = "".join(
        f'{prefix}spec_decode_num_{name}_total{{model_name="m"}} {count}\n'
        for name, count in (("draft_tokens", 24.0), ("accepted_tokens", 9.0))
    )
    found = asyncio.run(detect(pages(**{path: page})))
    assert found.name == ADAPTERS[engine]().name
    assert (found.counters(page).drafted, found.counters(page).accepted, found.counters(page).rounds) == (24, 9, None)
    body = found.body(replace(ASK, sampling=Sampling(temperature=0.5, top_k=7)), "m")
    assert body["top_k"] == 7 and "min_p" not in body and "repetition_penalty" not in body


def test_every_adapter_says_where_its_numbers_come_from():
    for adapter in (make() for make in ADAPTERS.values()):
        assert {"text", "finish", "output_tokens", "first_s", "last_s"} <= set(adapter.sources)
    assert finish_of(read(said("a", "length"))) == "length"


@pytest.mark.parametrize(
    ("own", "said"),
    [({}, None), ({"dry_multiplier": 0.8, "mirostat": 2}, {"dry_multiplier": 0.8, "mirostat": 2})],
)
def test_llamacpp_tells_what_it_does_to_texts_unasked(own, said):
    props = json.loads(capture("llamacpp_draft.props.json"))
    props["default_generation_settings"]["params"] |= own
    told = state(LlamaCpp(), props=json.dumps(props))
    assert told.defaults == said
    found = check_defaults(told)
    assert [each.code for each in found] == ([] if said is None else ["server-defaults"])
    assert said is None or "dry_multiplier 0.8, mirostat 2" in found[0].message


def test_where_texts_part_is_not_said_where_tokens_are_not_told():
    """llama.cpp leaves out of its log-probabilities a token that begins a character and does not end it."""

    def answer(*pieces):
        best = [{"logprob": -0.25}, {"logprob": -1.0}]
        content = [{"token": piece, "bytes": list(piece.encode()), "top_logprobs": best} for piece in pieces]
        return {"choices": [{"message": {"content": "ab é cd"}, "logprobs": {"content": content}}]}

    told = divergence(answer("ab", " ", "é", " c", "d"), "ab é cd", "ab é xx")
    assert (told.index, told.gap) == (3, 0.75)
    assert divergence(answer("ab", " ", " c", "d"), "ab é cd", "ab é xx") is None
