"""llama.cpp's fields to our records: real captures, and rounds recovered from running totals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbench.backends.server.adapter import Ask, Chunk
from specbench.backends.server.llamacpp import WHOLE_TEXT, LlamaCpp, Timings, rounds_of
from specbench.records import Counters, Message, Round, Sampling

CAPTURES = Path(__file__).parent / "captures"


def capture(name: str) -> str:
    return (CAPTURES / name).read_text(encoding="utf-8")


def streamed(name: str) -> list[Chunk]:
    lines = [line[6:] for line in capture(name).splitlines() if line.startswith("data: {")]
    return [Chunk(0.1 * (i + 1), json.loads(line)) for i, line in enumerate(lines)]


def totals(rounds: list[Round], cut: int = 0) -> list[Timings]:
    """What the server says with every token of a text of these rounds, `cut` tokens short of its end."""
    said = [Timings(predicted_n=1)]
    drafted = accepted = 0
    for r in rounds:
        drafted, accepted = drafted + r.drafted, accepted + r.accepted
        for _ in range(r.accepted + 1):
            counts = {"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}
            said.append(Timings(predicted_n=len(said) + 1, **counts))
    return said[: len(said) - cut]


drafts = st.integers(0, 6).flatmap(lambda d: st.integers(0, d).map(lambda a: Round(d, a)))


@given(st.lists(drafts, min_size=1, max_size=30))
def test_rounds_are_recovered_from_running_totals(rounds):
    assert rounds_of(totals(rounds)) == rounds


@given(st.lists(drafts, min_size=1, max_size=10), st.data())
def test_an_end_of_sequence_may_cut_the_last_round_short(rounds, data):
    cut = data.draw(st.integers(0, rounds[-1].accepted))
    assert rounds_of(totals(rounds, cut)) == rounds


@given(st.lists(st.integers(1, 6).map(lambda a: Round(6, a)), min_size=2, max_size=10), st.data())
def test_text_that_is_held_back_never_merges_rounds_silently(rounds, data):
    said = totals(rounds)
    kept = sorted(data.draw(st.sets(st.integers(1, len(said) - 1), min_size=1)) | {len(said) - 1})
    found = rounds_of([said[0], *(said[i] for i in kept)])
    assert found is None or found == rounds


def test_a_streamed_answer_of_a_server_that_drafts():
    reading = LlamaCpp().read(streamed("llamacpp_draft.sse"))
    assert reading.told.drafted == sum(reading.drafted) == 20
    assert reading.told.accepted == sum(reading.accepted) == 8
    assert (reading.prompt_tokens, reading.output_tokens, reading.finish) == (44, 14, "eos")
    assert reading.told.prefill_s == pytest.approx(0.012853)
    assert reading.told.decode_s == pytest.approx(0.36341)
    assert reading.told.cached_tokens == 43
    assert reading.told.rounds is None  # an end of sequence may have cut accepted tokens off
    assert sum(a + 1 for a in reading.accepted) >= reading.output_tokens - 1
    assert reading.text == "Repeat exactly one two three four five six seven eight nine ten."


def test_an_answer_that_numbers_no_token_begins_with_its_text():
    chunks = streamed("llamacpp_draft.sse")
    for chunk in chunks:
        chunk.data.get("timings", {}).pop("predicted_n", None)
    first_s = next(chunk.at_s for chunk in chunks if chunk.data["choices"][0]["delta"].get("content"))
    assert LlamaCpp().read(chunks).first_s == first_s


def test_the_running_counters():
    found = LlamaCpp().counters(capture("llamacpp_draft.metrics"))
    assert found == Counters(tokens=44, rounds=15, drafted=57, accepted=26, survived=(8, 6, 6, 6))
    alone = LlamaCpp().counters(capture("llamacpp_none.metrics"))
    assert alone.tokens is not None
    assert not alone.drafted


@pytest.mark.parametrize(("name", "speculating", "method"), [("draft", True, "draft-simple"), ("none", False, None)])
def test_only_the_slots_tell_whether_it_speculates(name, speculating, method):
    pages = {"/slots": capture(f"llamacpp_{name}.slots.json"), "/props": capture("llamacpp_draft.props.json")}
    assert json.loads(pages["/props"])["default_generation_settings"]["params"]["speculative.types"] == "none"

    async def get(path: str) -> str | None:
        return pages.get(path)

    state = asyncio.run(LlamaCpp().state(get))
    assert (state.speculating, state.method, state.context, state.busy) == (speculating, method, 2048, 0)


def test_without_its_slots_page_nothing_is_claimed():
    async def get(path: str) -> str | None:
        return None

    state = asyncio.run(LlamaCpp().state(get))
    assert (state.speculating, state.busy, state.model, state.version) == (None, None, None, None)


def test_its_own_sampling_defaults_are_switched_off():
    body = LlamaCpp().body(Ask((Message("user", "hi"),), 8, Sampling(0.7), 3), "m")
    assert (body["top_k"], body["top_p"], body["min_p"], body["cache_prompt"]) == (0, 1.0, 0.0, False)
    assert (body["repeat_penalty"], body["repeat_last_n"]) == (1.0, 0)


def test_a_penalty_is_over_the_whole_text_also_where_tokens_are_asked_for():
    asked = []

    async def post(path, body):
        asked.append(body)
        return {"prompt": "p", "tokens": [1, 2], "stop_type": "eos"}

    ask = Ask((Message("user", "hi"),), 8, Sampling(0.7, min_p=0.1, repetition_penalty=1.2), 3)
    asyncio.run(LlamaCpp().write(post, ask, "m"))
    for body in (LlamaCpp().body(ask, "m"), asked[-1]):
        assert (body["repeat_penalty"], body["repeat_last_n"], body["min_p"]) == (1.2, WHOLE_TEXT, 0.1)


def test_an_answer_without_timings_is_no_llama_cpp():
    chunks = [
        Chunk(c.at_s, {k: v for k, v in c.data.items() if k != "timings"}) for c in streamed("llamacpp_draft.sse")
    ]
    with pytest.raises(ValueError, match="timings"):
        LlamaCpp().read(chunks)
