"""Recorded passes, with a fake recorder in the place of CUDA's: fixed shapes and places give what plain passes give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, near_copy, run, tiny_llama
from torch import Tensor

from specbench.acceptance.many import generate_many
from specbench.backends.local import graphs
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.graphs import record_all
from specbench.backends.local.lean import make_lean
from specbench.backends.local.ragged import RaggedModel
from specbench.clock import Stopwatch
from specbench.drafters.model import ManyModelDrafter, ModelDrafter
from specbench.drafters.skip import SkipDrafter, first_layers

MODEL = tiny_llama(64, seed=1, num_hidden_layers=3)
LEAN = tiny_llama(64, seed=1, num_hidden_layers=3)
make_lean(LEAN)
LEAN_DRAFT = near_copy(MODEL, noise=0.3)
make_lean(LEAN_DRAFT)
Recorded = tuple[Callable[[], None], Tensor]


class FakeRecorder:
    """Replays by running again, into the place where the first run left its logits: a graph whose inputs are not copied
    to where it reads, or whose logits are read elsewhere, gives the first answer for ever."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> Recorded:
        logits = run().clone()

        def replay() -> None:
            self.replays += 1
            logits.copy_(run())

        return replay, logits


def recorded(model: Any, *, widths: Any = range(1, 6), every: bool = True, capacity: int = 64) -> Any:
    reader, recorder = CachedModel(model, capacity), FakeRecorder()
    assert record_all([(reader, widths, every)], recorder)
    recorder.replays = 0
    return reader, recorder


@examples(40)
@given(data=st.data())
def test_any_reading_and_rewinding(data):
    with patch.object(graphs, "_SMALLEST_ROOM", 4):  # so that the text grows and shrinks through several
        reader, recorder = recorded(LEAN)
    assert reader._graphs.rooms == [4, 8, 16, 32, 64]
    text: list[int] = []
    short = 0
    for _ in range(data.draw(st.integers(1, 6))):
        keep_n = data.draw(st.integers(0, len(text)))
        reader.rewind(keep_n)
        new = data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=9))
        text = text[:keep_n] + new
        short += len(new) < 6
        with torch.inference_mode():
            got = reader.forward(new, keep=len(new))
            whole = MODEL(torch.tensor([text])).logits[0, -len(new) :]
        torch.testing.assert_close(got, whole, atol=2e-4, rtol=1e-3)
        assert reader.length == len(text)
    assert recorder.replays == short


@pytest.mark.full
def test_a_trial_over_recorded_passes():
    draft = near_copy(MODEL, noise=0.3)
    rule: dict[str, Any] = {"vocab_size": 64, "sampling": GREEDY, "eos": set()}
    plain = run(MODEL, ModelDrafter(CachedModel(draft, 512), **rule), [1, 2, 3], gamma=4, max_new_tokens=50)
    make_lean(draft)
    target, one = recorded(LEAN, capacity=512)
    steps, other = recorded(draft, widths=(1, 2), every=False, capacity=512)
    found = run(target, ModelDrafter(steps, chained=True, **rule), [1, 2, 3], gamma=4, max_new_tokens=50)
    assert found.tokens == plain.tokens and found.rounds == plain.rounds
    assert one.replays == len(found.rounds) and other.replays == sum(r.drafted for r in found.rounds)


@pytest.mark.full
def test_a_draft_of_the_first_layers_shares_the_recorded_cache():
    """Whoever rewinds one rewinds the other: each pass goes where the cache ends, not where its own model last was."""
    rule: dict[str, Any] = {"vocab_size": 64, "sampling": GREEDY, "eos": set()}
    reader = CachedModel(MODEL, 512)
    plain = run(reader, SkipDrafter(reader.sharing(first_layers(MODEL, 2)), **rule), [1, 2, 3], max_new_tokens=50)
    target = CachedModel(LEAN, 512)
    steps, recorder = target.sharing(first_layers(LEAN, 2)), FakeRecorder()
    assert record_all([(target, range(1, 6), True), (steps, (1,), False)], recorder)
    recorder.replays = 0
    found = run(target, SkipDrafter(steps, chained=True, **rule), [1, 2, 3], max_new_tokens=50)
    assert found.tokens == plain.tokens and found.rounds == plain.rounds
    assert recorder.replays == sum(1 + r.drafted for r in found.rounds)


def test_at_the_end_of_the_room_the_pass_runs_plainly():
    reader, recorder = recorded(LEAN, capacity=8)
    with torch.inference_mode():
        reader.forward([1, 2, 3, 4, 5, 6], keep=1)
        reader.forward([7], keep=1)
        assert recorder.replays == 1
        with pytest.raises(RuntimeError):  # no room for both, as without a recording
            reader.forward([8, 9], keep=2)


def test_a_room_that_does_not_hold_the_text_is_seen(monkeypatch):
    monkeypatch.setattr(graphs, "_SMALLEST_ROOM", 8)
    reader, _ = recorded(LEAN)
    text = list(range(1, 20))
    with torch.inference_mode():
        reader.forward(text[:-1], keep=1)
        want = MODEL(torch.tensor([text])).logits[0, -1:]
        torch.testing.assert_close(reader.forward(text[-1:], keep=1), want, atol=2e-4, rtol=1e-3)
        reader.rewind(len(text) - 1)
        reader._graphs.rooms = [8, 64]  # the planted fault: the smallest, whatever the text
        honest = reader._graphs.read
        monkeypatch.setattr(reader._graphs, "read", lambda ids, at, keep, end: honest(ids, at, keep, 1))
        assert (reader.forward(text[-1:], keep=1) - want).abs().max() > 1e-2


def test_logits_outlive_the_next_pass():
    reader, _ = recorded(LEAN)
    with torch.inference_mode():
        first = reader.forward([1], keep=1)
        before = first.clone()
        reader.forward([2], keep=1)
    assert first.equal(before)


def wrong(run: Callable[[], Tensor]) -> Recorded:
    return (lambda: None), run() * 1.2


def refuses(run: Callable[[], Tensor]) -> Recorded:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("recorder", [wrong, refuses])
def test_all_or_none(recorder):
    """What replays something else, or cannot be recorded, is not used; nor is then what could be."""
    one, other = CachedModel(LEAN, 64), CachedModel(LEAN, 64)
    assert record_all([(one, (1, 2), True)], FakeRecorder())
    broken = iter([FakeRecorder(), recorder])
    assert not record_all([(one, (1,), True), (other, (1,), True)], lambda run: next(broken)(run))
    assert one._graphs is None and other._graphs is None
    with torch.inference_mode():
        torch.testing.assert_close(one.forward([1, 2], keep=2), MODEL(torch.tensor([[1, 2]])).logits[0])


def test_a_model_that_is_not_lean_is_not_recorded():
    assert not record_all([(CachedModel(MODEL, 64), (1,), True)], FakeRecorder())


def test_memory_never_written_is_zero():
    """A recorded pass attends over all the room: what is masked there may be anything, but not NaN."""
    reader, _ = recorded(LEAN)
    for layer in reader.cache.layers:
        assert not layer.keys[:, :, 8:].any() and not layer.values[:, :, 8:].any()


@examples(15)
@given(
    prompts=st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=9), min_size=1, max_size=5),
    eos=st.sets(st.integers(0, 63), max_size=8),
)
def test_recorded_rows_are_the_plain_ones(prompts, eos):
    """Passes of a power of two of rows, of which some are not there, and rows that leave while others go on."""
    plain = [run(MODEL, None, prompt, eos=eos, max_new_tokens=20) for prompt in prompts]
    target, steps, recorder = RaggedModel(LEAN, 64, 5), RaggedModel(LEAN_DRAFT, 64, 5), FakeRecorder()
    with patch.object(graphs, "_SMALLEST_ROOM", 8):
        assert record_all([(target, range(1, 5), True), (steps, (1, 2), False)], recorder)
    recorder.replays = 0
    drafter = ManyModelDrafter(steps, vocab_size=64, sampling=GREEDY, eos=eos, chained=True)
    for who in (None, drafter):
        rows = generate_many(
            target,
            who,
            prompts,
            gamma=3,
            sampling=GREEDY,
            eos=eos,
            max_new_tokens=20,
            generators=[torch.Generator() for _ in prompts],
            clock=Stopwatch(),
        )
        assert [row.tokens for row in rows] == [one.tokens for one in plain]
    assert recorder.replays >= max(len(one.rounds) for one in plain)


@pytest.mark.parametrize("fault", ["rows change places", "a smaller pass than rows", "places not moved"])
def test_a_planted_fault_of_recorded_rows_is_seen(fault, monkeypatch):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    target = RaggedModel(LEAN, 64, 4)
    assert record_all([(target, (1,), True)], FakeRecorder())
    if fault == "rows change places":
        honest = target._graphs.read
        monkeypatch.setattr(target._graphs, "read", lambda *given: honest(*given).roll(1, 0))
    elif fault == "a smaller pass than rows":
        monkeypatch.setattr(target, "_recorded", lambda rows, width: 2)
    else:
        honest = target._graphs.read
        monkeypatch.setattr(target._graphs, "read", lambda ids, at, *more: honest(ids, at * 0 + 9, *more))
    options: dict[str, Any] = {"gamma": 1, "sampling": GREEDY, "eos": set(), "max_new_tokens": 20}
    generators = [torch.Generator() for _ in prompts]
    try:
        rows = generate_many(target, None, prompts, **options, generators=generators, clock=Stopwatch())
    except (RuntimeError, KeyError):
        return
    assert [row.tokens for row in rows] != [run(MODEL, None, prompt, max_new_tokens=20).tokens for prompt in prompts]
