"""Servers that say anything: every number and every string of an answer and of a page is replaced, in turn, by what no
server means. Each is refused in one line or is stored so that it can be read again; none is a bug of ours."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from conftest import examples, full
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from test_adapters import capture, streamed, usage
from test_hostile_runs import MARK, leaves, put
from test_serving import ROUNDS, served, speculating

from specbench.backends.server.adapter import Chunk, RefusedError, State, by_position, samples
from specbench.backends.server.asking import Asking
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.openai import survivors
from specbench.backends.server.preflight import ADAPTERS, detect, model_name, require_plausible
from specbench.backends.server.provider import ServerHandle, client_of
from specbench.backends.server.sglang import SGLang
from specbench.backends.server.vllm import VLLM
from specbench.errors import ConfigError, SpecbenchError
from specbench.records import LARGEST, MOST_DRAFTED
from specbench.run_record import ServedBy

STREAMS = {
    "llamacpp_draft.sse": LlamaCpp,
    "llama_draft.chat.sse": LlamaCpp,
    "vllm_ngram.chat.sse": VLLM,
    "vllm_ngram_summary.chat.sse": VLLM,
}
SGLANG = {"spec_verify_ct": 3, "spec_num_proposed_drafts": 9, "spec_num_correct_drafts": 4}
SGLANG["spec_correct_drafts_histogram"] = [1, 0, 2]
HOSTILE = [
    *(-1, 0, 1, 2.5, 10**12, 10**12 + 1, 10**30, 10**401, 2**63, 1e308, float("nan"), float("inf"), float("-inf")),
    *(True, None, "", "12", MARK, "\ud800", "x" * 100_000, [], [[]], {}, {"a": 1}, [10**12] * 5000, [-1], ["x"]),
]


def events(name: str) -> list[Chunk]:
    if name == "sglang":
        told = {"sglext": {"spec_tokens_details": dict(SGLANG)}}
        said = [{"choices": [{"delta": {"content": "a"}, "finish_reason": None}]} for _ in range(4)]
        end = {"choices": [{"delta": {}, "finish_reason": "length"}]}
        return [Chunk(float(at), event) for at, event in enumerate([*said, end, usage(7) | told], 1)]
    return streamed(name)


def is_held(adapter: Any, chunks: list[Chunk], asked: int = 1 << 20) -> bool:
    """Whether the answer is taken; refused by ValueError or RefusedError otherwise, and soon."""
    began = time.process_time()
    try:
        require_plausible(adapter.read(chunks), asked)
    except (ValueError, RefusedError) as refused:
        assert len(str(refused)) < 300 and str(refused).isprintable()
        return False
    finally:
        assert time.process_time() - began < 5
    return True


@pytest.mark.parametrize(
    "name", ["sglang", "vllm_ngram_summary.chat.sse", *full("llamacpp_draft.sse", "vllm_ngram.chat.sse")]
)
def test_an_answer_as_it_should_be_is_taken(name):
    assert is_held({**STREAMS, "sglang": SGLang}[name](), events(name))


@examples(400)
@given(data=st.data(), value=st.sampled_from(HOSTILE), name=st.sampled_from([*STREAMS, "sglang"]))
def test_whatever_stands_in_an_answer_it_is_taken_or_refused(data, value, name):
    chunks = [replace(chunk, data=copy.deepcopy(dict(chunk.data))) for chunk in events(name)]
    # The last events hold the totals.
    chunk = data.draw(st.sampled_from([*chunks[:3], *chunks[-3:]]))
    places = [place for place, _ in leaves(chunk.data)]
    inner = [place[:depth] for place in places for depth in range(1, len(place) + 1)]
    put(chunk.data, data.draw(st.sampled_from(inner)), value)
    is_held({**STREAMS, "sglang": SGLang}[name](), chunks)


@pytest.mark.parametrize(
    ("tokens", "prompt", "why"),
    [(0, 5, "0, and there is a text"), (13, 5, "more than the 12"), (3, 0, "prompt_tokens is 0"), (10**30, 5, "1e")],
)
def test_counts_that_no_answer_has(tokens, prompt, why):
    said = [{"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}] * 3
    end = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    counts = {"usage": {"completion_tokens": tokens, "prompt_tokens": prompt}}
    chunks = [Chunk(float(at), event) for at, event in enumerate([*said, end, counts], 1)]
    with pytest.raises(ValueError, match=why):
        require_plausible(ADAPTERS["openai"]().read(chunks), 12)


def test_rounds_that_take_all_memory():
    timings = [{"predicted_n": 1}, {"predicted_n": LARGEST, "draft_n": 4, "draft_n_accepted": 9}]
    said = [{"choices": [{"delta": {"content": "a"}, "finish_reason": None}], "timings": told} for told in timings]
    end = {"choices": [{"delta": {}, "finish_reason": "length"}], "timings": timings[-1]}
    assert not is_held(LlamaCpp(), [*map(Chunk, (1.0, 2.0, 3.0, 3.0), [*said, end, usage(9)])])
    assert not is_held(LlamaCpp(), [Chunk(1.0, said[0]), Chunk(2.0, {**end, "timings": {"predicted_n": LARGEST}})])
    with pytest.raises(ValueError, match="longer than any draft"):
        survivors([1] * (MOST_DRAFTED + 2))
    assert survivors([5, 3, 2]) == (5, 2)
    chunks = events("sglang")
    chunks[-1].data["sglext"]["spec_tokens_details"]["spec_num_proposed_drafts"] = LARGEST
    assert not is_held(SGLang(), chunks)


def test_answers_that_break_the_limits_of_a_run_are_asked_again_and_left_out(lab, tmp_path):
    """What our own reader would refuse never gets into a run folder."""

    class Lying(FakeServer):
        def answer(self, body):
            for event in super().answer(body):
                if "usage" in event and len(self.seen) in (5, 6, 7):
                    event["timings"] |= {"draft_n": 2, "draft_n_accepted": 3}
                yield event

    with FakeServer() as alone, Lying(rounds=ROUNDS) as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    assert 9 <= len([trial for trial in stored.trials if not trial.warmup]) <= 12


# Pages.


PAGES = {
    "llamacpp": ("llamacpp_draft.props.json", "llamacpp_draft.slots.json", "llamacpp_draft.metrics"),
    "vllm": ("vllm.models.json", "vllm.version.json", "vllm_ngram.metrics"),
}


def pages_of(engine: str) -> dict[str, str]:
    models = json.dumps({"data": [{"id": "m", "root": "m", "owned_by": "vllm", "max_model_len": 4096}]})
    if engine == "llamacpp":
        names = ("/props", "/slots", "/metrics")
        return {"/v1/models": models} | dict(zip(names, map(capture, PAGES[engine]), strict=True))
    if engine == "vllm":
        return dict(zip(("/v1/models", "/version", "/metrics"), map(capture, PAGES[engine]), strict=True))
    info = {"version": "1", "speculative_algorithm": "EAGLE", "speculative_num_steps": 3}
    info |= {"speculative_num_draft_tokens": 4, "disable_radix_cache": True}
    loads = {"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 0}]}
    return {"/v1/models": models, "/server_info": json.dumps(info), "/v1/loads": json.dumps(loads)}


def looked(pages: dict[str, str], name: str) -> State | None:
    """What is known of a server with these pages; None where it is refused in one line."""

    async def get(path: str) -> str | None:
        return pages.get(path)

    async def meet() -> State:
        adapter = await detect(get) if name == "any" else ADAPTERS[name]()
        await model_name(get, "http://h", None, None)
        client: Any = type("Pages", (), {"get": staticmethod(get)})
        found = await Asking().look(client, ServerHandle("http://h", adapter))
        if adapter.metrics is not None and adapter.metrics in pages:
            with suppress(ValueError):
                adapter.counters(pages[adapter.metrics])
        return found

    try:
        return asyncio.run(meet())
    except SpecbenchError as error:
        assert error.line().isprintable() and len(error.line()) < 2000
        return None


@pytest.mark.parametrize("engine", ["llamacpp", "vllm", "sglang"])
def test_pages_as_they_should_be_are_read(engine):
    found = looked(pages_of(engine), "any")
    assert found is not None and found.model


@examples(300)
@given(data=st.data(), value=st.sampled_from([v for v in HOSTILE if v != "x" * 100_000]))
def test_whatever_stands_in_a_page_it_is_known_or_refused(data, value):
    engine = data.draw(st.sampled_from(["llamacpp", "vllm", "sglang"]))
    pages = pages_of(engine)
    path = data.draw(st.sampled_from([path for path, page in pages.items() if page[:1] in "{["]))
    page = json.loads(pages[path])
    inner = {place[:depth] for place, _ in leaves(page) for depth in range(1, len(place) + 1)}
    put(page, data.draw(st.sampled_from(sorted(inner, key=str))), value)
    pages[path] = json.dumps(page)
    looked(pages, data.draw(st.sampled_from(["any", engine])))


@pytest.mark.parametrize(
    "page", ["", "<!doctype html><title>x</title>", "[" * 200_000, "null", "\ud800", "1e999", "{" * 5000]
)
def test_a_page_that_is_something_else(page):
    for engine in ("llamacpp", "vllm", "sglang"):
        for path in pages_of(engine):
            looked(pages_of(engine) | {path: page}, engine)
        looked(dict.fromkeys(pages_of(engine), page), "any")


@pytest.mark.parametrize(
    "line",
    [
        "x +Inf",
        "x NaN",
        "x -1",
        "x 1e400",
        "x 1e13",
        'x{other="0"} 1',
        'x{position="-1"} 1',
        'x{position="4096"} 1',
        'x{position="1e3"} 1',
        'x{position="+Inf"} 1',
        'x{position="\u0661"} NaN',
        f'x{{position="{"9" * 401}"}} 1',
        'x{position="0"',
        "x{position=0} 1",
        'x{="0"} 1',
        "x{} ",
        "x",
        "{",
        'x{position="0"} 1 2 3 4',
        'x{position="0"} 0x10',
    ],
)
def test_a_counter_is_a_number_or_a_value_error(line):
    for read in (lambda page: by_position(page, "x"), VLLM().counters, LlamaCpp().counters):
        for name in ("x", "vllm:spec_decode_num_accepted_tokens_per_pos_total", "llamacpp:tokens_predicted_total"):
            try:
                found = samples(line.replace("x", name, 1) + "\n")
                if read.__qualname__.endswith("<lambda>"):
                    read(found)
                else:
                    read(line.replace("x", name, 1) + "\n")
            except ValueError:
                pass


@examples(300)
@given(page=st.text(st.sampled_from('ab:_{}="\\,# \n0123456789.+-eEINFaN\u0661'), max_size=60))
def test_any_text_is_a_page_of_counters_or_a_value_error(page):
    with suppress(ValueError):
        by_position(samples(page), "a")


# Names.


def test_a_servers_names_are_stored_as_one_clean_line(lab, tmp_path):
    odd = FakeServer(model=MARK + "x" * 5000, method="draft")
    with odd as alone, speculating(model=MARK + "x" * 5000, method=MARK) as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    settings = (stored.run.served or ServedBy()).settings
    for state in settings.values():
        for said in asdict(state).values():
            assert not isinstance(said, str) or (said.isprintable() and len(said) <= 300)
    assert len(settings) == 2


@pytest.mark.parametrize("key", ["ключ", "abc\n", "abc\r\nX: y", " abc", "a\x00b", "a\tb", "\x7f"])
def test_a_key_that_no_header_can_hold_names_its_variable(lab, key, monkeypatch):
    from types import SimpleNamespace

    try:
        monkeypatch.setenv("OWN_KEY", key)
    except ValueError:
        pytest.skip("no environment can hold it")
    config: Any = SimpleNamespace(api_key_env="OWN_KEY", request_timeout_s=1.0)
    with pytest.raises(ConfigError, match=r"\(OWN_KEY\)") as error:
        client_of(config, "http://127.0.0.1:1")
    assert key.strip() not in error.value.line()


def test_texts_are_kept_where_only_their_owner_reads_them(lab, tmp_path):
    with FakeServer() as alone, speculating() as drafting:
        kept = served(lab, tmp_path / "kept", alone, drafting, keep_text=True)
        plain = served(lab, tmp_path / "plain", alone, drafting)
    assert kept.folder.stat().st_mode & 0o777 == 0o700
    for name in ("run.json", "trials.jsonl", "stretches.jsonl"):
        assert (kept.folder / name).stat().st_mode & 0o777 == 0o600
        assert (plain.folder / name).stat().st_mode & 0o777 != 0o600
