"""Arms that take turns within a prompt: nothing but the noise of the machine is another than in whole trials."""

from __future__ import annotations

import itertools
import random
import weakref
from collections import Counter
from itertools import groupby

import pytest
from conftest import full
from fake_device import FakeDevice, quick_probe
from test_memory import CPU_SAYS
from test_run import sweep
from tiny import save_with_byte_tokenizer
from tiny_heads import markov_llama, save_head

from specbench.backends.base import CanSlice
from specbench.backends.local import session
from specbench.backends.local.lanes import Lanes, Underway, take_turns
from specbench.backends.local.local import LocalEngine
from specbench.backends.local.session import LocalSession
from specbench.backends.server.session import ServerSession
from specbench.clock import Stopwatch
from specbench.records import Arm
from specbench.store import find_runs, read_run, trial_key


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_probe(monkeypatch)


@pytest.fixture
def advances(monkeypatch):
    """(arm, tokens that were due) of every slice."""
    seen, advance = [], Underway.advance

    def noted(self, tokens):
        seen.append((self.arm, tokens))
        return advance(self, tokens)

    monkeypatch.setattr(Underway, "advance", noted)
    return seen


def facts(stored):
    """What a trial is beside its times."""
    return {
        (*trial_key(t), t.warmup): (t.drafted, t.accepted, t.output_sha256, t.finish, t.identical, t.prompt_tokens)
        for t in stored.trials
    }


def pair_with_head(lab, tmp_path):
    target = markov_llama(context=0.06, vocab_size=257)
    head = save_head(tmp_path / "head", target, 0.05)
    return {"target": str(save_with_byte_tokenizer(target, tmp_path / "target")), "draft": [str(head)]}


KINDS = {
    "a draft model": {},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2},
    "a look-up": {"draft": ["ngram:n=2"]},
    "first layers": {"draft": ["skip:layers=1"]},
    "a batch": {"batch_size": 3},
    "a batch, sampled": {"batch_size": 3, "temperature": 0.8},
}


@pytest.mark.parametrize(
    "kind",
    [
        "a draft model",
        *full("sampled", "a look-up", "first layers", "a batch", "a batch, sampled"),
    ],
)
def test_texts_and_rounds_are_those_of_whole_trials(lab, tmp_path, kind):
    flags = {"limit": 6, "repeats": 2} | KINDS[kind]
    whole = sweep(lab, tmp_path / "whole", slice_tokens=0, **flags)
    sliced = sweep(lab, tmp_path / "sliced", slice_tokens=2, **flags)
    assert facts(sliced) == facts(whole)
    assert {t.slices for t in whole.trials} == {None}
    # the prompt, and 11 tokens by twos
    alone = [t for t in sliced.trials if t.arm.draft is None and not t.warmup]
    assert max(t.slices for t in alone) == 7


@pytest.mark.full
def test_a_head_takes_turns(lab, tmp_path):
    flags = {"limit": 3} | pair_with_head(lab, tmp_path)
    whole, sliced = (sweep(lab, tmp_path / str(n), slice_tokens=n, **flags) for n in (0, 3))
    assert facts(sliced) == facts(whole)


def test_every_arm_goes_on_in_every_slice_in_an_order_drawn_anew(lab, tmp_path, advances):
    sweep(lab, tmp_path, limit=4, slice_tokens=1)
    warm_up = [each for each in advances if each[1] <= 8]
    assert warm_up
    slices = [[arm for arm, _ in group] for _, group in groupby(advances, key=lambda each: each[1])]
    assert max(map(len, slices)) == 4
    assert all(len(set(arms)) == len(arms) for arms in slices)
    whole = [tuple(arms) for arms in slices if len(arms) == 4]
    assert len(set(whole)) > 10 and {order[0] for order in whole} == set(whole[0])


@pytest.mark.full
def test_caches_that_are_shared_are_seen(lab, tmp_path, monkeypatch):
    """Planted: every arm generates on the engine's own caches."""
    monkeypatch.setattr(LocalEngine, "new_lane", LocalEngine._own_lane)
    whole = facts(sweep(lab, tmp_path / "whole", limit=2, slice_tokens=0))
    assert facts(sweep(lab, tmp_path / "sliced", limit=2, slice_tokens=2)) != whole


# -- the clock --


def spans(lab, out, slice_tokens):
    stored = sweep(lab, out, limit=3, slice_tokens=slice_tokens)
    return {trial_key(t): t.times for t in stored.trials if not t.warmup}


def test_spans_are_those_of_the_arm_alone(lab, tmp_path, monkeypatch):
    FakeDevice().install(monkeypatch)
    whole, sliced = (spans(lab, tmp_path / str(n), n) for n in (0, 2))
    assert whole.keys() == sliced.keys()
    for key, times in whole.items():
        for name in ("prefill_s", "draft_prefill_s", "draft_s", "verify_s", "other_s", "total_s"):
            assert getattr(sliced[key], name) == pytest.approx(getattr(times, name), abs=1e-6)


@pytest.mark.full
def test_a_clock_that_runs_on_for_others_is_seen(lab, tmp_path, monkeypatch):
    FakeDevice().install(monkeypatch)
    whole = spans(lab, tmp_path / "whole", 0)
    resume = Stopwatch.resume
    monkeypatch.setattr(Stopwatch, "resume", lambda self: resume(self) if not self._last_ns else None)
    sliced = spans(lab, tmp_path / "sliced", 2)
    assert sum(t.total_s for t in sliced.values()) > 2 * sum(t.total_s for t in whole.values())


# -- what goes wrong on the way --


def again_ids(stored):
    return {t.prompt_id for t in stored.trials}


class FakeMeter:
    busy = ()

    def start(self):
        pass

    def stop(self):
        return next(self.busy, 0.0)


def test_disturbed_arms_are_repeated_together(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "OthersMeter", FakeMeter)
    monkeypatch.setattr(LocalSession, "warm", lambda *_: iter(()))
    monkeypatch.setattr(FakeMeter, "busy", iter([0.0, 3.0, 0.0]))
    stored = sweep(lab, tmp_path, limit=3, gammas=(2,), max_other_cores=0.5)
    tries = [(t.prompt_id, t.attempt, t.disturbed) for t in stored.trials]
    one, two, again, three = (tries[i : i + 3] for i in range(0, 12, 3))
    assert {each[1:] for each in one + three} == {(0, False)}
    assert {each[1:] for each in two} == {(0, True)} and {each[1:] for each in again} == {(1, False)}
    assert {each[0] for each in two} == {each[0] for each in again}


def test_an_interrupt_within_a_prompt_loses_that_prompt_alone(lab, tmp_path, monkeypatch):
    whole = sweep(lab, tmp_path / "whole", limit=3)
    advance, left = Underway.advance, itertools.count()

    def interrupted(self, tokens):
        if next(left) == 24:
            raise KeyboardInterrupt
        return advance(self, tokens)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Underway, "advance", interrupted)
        sweep(lab, tmp_path / "cut", limit=3, slice_tokens=8)
    (folder,) = find_runs(tmp_path / "cut")
    cut = read_run(folder)
    assert (cut.status, len({t.prompt_id for t in cut.trials if not t.warmup})) == ("interrupted", 1)
    again = sweep(lab, tmp_path / "cut", limit=3, slice_tokens=8)
    assert again.folder == folder
    assert Counter(t.prompt_id for t in again.trials if not t.warmup) == dict.fromkeys(again_ids(whole), 4)
    assert facts(again) == facts(whole)


def refusing(monkeypatch, most):
    """Memory for so many lanes at a time."""
    new_lane, made = LocalEngine.new_lane, []

    def few(self, draft):
        alive = sum(ref() is not None for ref in made)
        if alive >= most:
            raise RuntimeError(CPU_SAYS)
        lane = new_lane(self, draft)
        made.append(weakref.ref(lane))
        return lane

    monkeypatch.setattr(LocalEngine, "new_lane", few)


@pytest.mark.parametrize(("most", "how"), [(3, "2 took turns at a time"), *full((1, "each ran whole trials"))])
def test_where_memory_runs_out_fewer_take_turns_and_it_is_said(lab, tmp_path, monkeypatch, most, how):
    whole = facts(sweep(lab, tmp_path / "whole", limit=3))
    refusing(monkeypatch, most)
    stored = sweep(lab, tmp_path / "few", limit=3)
    assert facts(stored) == whole
    (said,) = [one.message for one in stored.run.warnings if one.code == "few-slices"]
    assert how in said
    assert {t.slices is None for t in stored.trials} == {most == 1}


def test_room_is_counted_before_anything_is_taken(lab, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(session, "available_bytes", lambda _: asked.append(1) or 0)
    stored = sweep(lab, tmp_path, limit=2)
    assert asked
    assert "few-slices" in [one.code for one in stored.run.warnings]


def test_lanes_are_no_more_than_there_is_room_for():
    made = []
    some = Lanes(lambda draft: made.append(draft) or object(), 2)
    a, b, c = (Arm("speculative", name, 1) for name in "aab")
    first = some.of([a, b])
    assert some.of([b, a]) == first and made == ["a", "a"]
    assert len(some.of([a, c])) == 2 and made == ["a", "a", "b"]
    assert len(some._made) == 2


def test_turns_end_with_their_arms():
    """Generations of 1, 4 and 9 tokens, by threes."""

    def steps(n):
        yield from range(1, n + 1)
        return [n]

    arms = [Underway(Arm("baseline"), steps(n), Stopwatch()) for n in (1, 4, 9)]
    take_turns(arms, 3, random.Random(0))
    assert [one.found for one in arms] == [[1], [4], [9]]
    assert [one.slices for one in arms] == [2, 3, 4]


def test_a_server_cannot_be_left():
    assert not isinstance(ServerSession, CanSlice) and not hasattr(ServerSession, "slices")
    assert hasattr(LocalSession, "slices")
