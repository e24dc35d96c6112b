"""The models alone at any batch size: planted costs come back, rows do not mix, what does not fit is said."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_heads import MARKOV, head_of
from tiny import GREEDY, model_drafter, near_copy, tiny_llama
from tiny_heads import save_head

from specbench.backends.local import probing
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.probing import Prober
from specbench.config import load_config
from specbench.cost import model
from specbench.cost import probe as timing
from specbench.cost.plan import ProbePlan, run_plan
from specbench.cost.probe import Probed, Task, levelled, probe, probe_prefill, texts
from specbench.errors import ConfigError
from specbench.models import memory
from specbench.models.memory import cache_bytes, step_bytes, weight_bytes
from specbench.records import CostPoint, Sampling

TARGET = tiny_llama(64, seed=1)
NEAR = near_copy(TARGET, noise=0.03)
IDS = list(range(3, 40))


class FakeClock:
    """Time passes only where a fake cost says so."""

    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns


class FakeReader:
    """A real model whose passes take a planted time: `step` for a token in a sequence, and a little for each token
    that it has read before. The first pass of a shape takes much longer, as on a real machine."""

    def __init__(self, source, clock, step_ns, batch=1):
        self.model, self.clock, self.step_ns, self.batch = CachedModel(source, 256, batch), clock, step_ns, batch
        self.seen = set()

    def cost_ns(self, context, tokens):
        return 10_000 + self.step_ns * tokens * self.batch + context

    def forward_rows(self, rows, keep):
        shape = (self.model.length, len(rows[0]), keep)
        self.clock.ns += self.cost_ns(*shape[:2]) + (0 if shape in self.seen else 10**6)
        self.seen.add(shape)
        return self.model.forward_rows(rows, keep)

    def forward(self, ids, keep):
        return self.forward_rows([ids], keep)[0]

    def rewind(self, length):
        self.model.rewind(length)


@torch.inference_mode()
def test_every_row_of_a_batch_reads_its_own_text():
    rows = texts(IDS, 20, 4)
    assert len({tuple(row) for row in rows}) == 4
    together = CachedModel(TARGET, 64, 4)
    together.forward_rows(rows, keep=1)
    together.forward_rows([row[:5] for row in rows], keep=5)  # drafts that are all refused
    together.rewind(20)
    batched = together.forward_rows([row[2:5] for row in rows], keep=3)
    for row, found in zip(rows, batched, strict=True):
        alone = TARGET(torch.tensor([row + row[2:5]])).logits[0, -3:]
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_planted_costs_come_back_at_every_batch_width_and_context(batch):
    clock = FakeClock()
    target, draft = FakeReader(TARGET, clock, 500, batch), FakeReader(NEAR, clock, 100, batch)
    at = {}
    for context in (4, 50):
        readers = FakeReader(TARGET, clock, 500, batch), FakeReader(NEAR, clock, 100, batch)
        at[context] = [
            (None, Probed(readers[0], (1, 2, 5), keep_all=True)),
            ("d", Probed(readers[1], (1, 2), keep_all=False)),
        ]
    points = probe(at, IDS, seed=0, batch=batch, now=clock, passes=5)
    assert len(points) == 2 * 5
    for point in points:
        planted = (target if point.model is None else draft).cost_ns(point.context, point.tokens)
        assert (round(point.median_s * 1e9), point.batch, point.phase) == (planted, batch, "read")
        assert point.low_s == pytest.approx(point.median_s, rel=1e-9) == point.high_s
    prefills = probe_prefill({None: target, "d": draft}, IDS, [7, 60], seed=0, batch=batch, now=clock, passes=3)
    assert {(p.model, p.tokens, p.context, p.batch, round(p.median_s * 1e9)) for p in prefills} == {
        (name, n, 0, batch, reader.cost_ns(0, n)) for name, reader in ((None, target), ("d", draft)) for n in (7, 60)
    }


def test_a_draft_phase_is_its_steps_and_disturbs_nothing():
    clock = FakeClock()
    reader = FakeReader(NEAR, clock, 100)
    drafter = model_drafter(NEAR, vocab_size=64, sampling=GREEDY, eos=set())
    drafter._model = reader
    probed = Probed(reader, (1, 2), keep_all=False, drafter=drafter, gammas=(1, 3))
    points = probe({30: [("d", probed)]}, IDS, seed=0, now=clock, passes=4)
    found = {(p.phase, p.tokens): round(p.median_s * 1e9) for p in points}
    assert found == {
        ("read", 1): reader.cost_ns(30, 1),
        ("read", 2): reader.cost_ns(30, 2),
        ("draft", 1): reader.cost_ns(30, 1),
        ("draft", 3): sum(reader.cost_ns(30 + i, 1) for i in range(3)),
    }
    # the cost model takes no phase for a read
    single = CostPoint(None, 30, 1, 1.0, 1.0, 1.0, 3)
    costs = model.round_costs([single, *points], "d", 30, 0.0)
    assert round(costs.draft_s * 1e9) == reader.cost_ns(30, 1)
    assert round(costs.drafting_s(3) * 1e9) == found["draft", 3]


def two_speeds(passes, costs, seed):
    """Seconds [passes, tasks] on a machine that is half as fast in some passes, with 3 % of noise in each task."""
    rng = np.random.default_rng(seed)
    speed = np.where(rng.random((passes, 1)) < 0.5, 2.0, 1.0)
    return speed * np.array(costs) * rng.lognormal(0, 0.03, (passes, len(costs)))


def test_a_machine_of_two_speeds_leaves_ratios_alone():
    """Planted: the same times with their medians taken column by column."""
    costs = [1.0, 1.1, 1.3, 1.6, 0.2, 0.3]
    off = {True: [], False: []}
    for seed in range(40):
        # each task is timed on its own at some moment of a pass, of which a third lie in the next one
        seconds = two_speeds(15, costs, seed)
        late = np.random.default_rng(seed).random(seconds.shape) < 0.3
        seconds = np.where(late, seconds * np.roll(seconds[:, :1], 1, 0) / seconds[:, :1], seconds)
        for level in off:
            middle = np.median(levelled(seconds) if level else seconds, 0)
            off[level].append(abs(middle[2] / middle[0] / 1.3 - 1))
    assert np.mean(off[True]) < 0.03 < np.mean(off[False])


def test_levels_keep_what_is_steady():
    steady = np.outer([1.0, 1.0, 2.0, 1.0], [3.0, 4.0, 5.0, 6.0])
    np.testing.assert_allclose(levelled(steady), np.outer(np.ones(4), [3.0, 4.0, 5.0, 6.0]))
    few = two_speeds(5, [1.0, 2.0], 0)
    assert levelled(few) is few


def test_a_draft_phase_comes_right_after_a_pass_of_the_target():
    def task(model, phase):
        return Task(9, model, 1, phase, lambda: None, lambda: None)

    tasks = [task(None, "read")] * 3 + [task("d", "read")] * 2 + [task("d", "draft")] * 2
    orders = set()
    for seed in range(20):
        turns = timing._turns(range(7), tasks, random.Random(seed))
        assert sorted(turns) == list(range(7))
        assert all(tasks[before].model is None for before, turn in pairwise(turns) if tasks[turn].phase == "draft")
        orders.add(tuple(turns))
    assert len(orders) > 15
    assert timing._turns([3, 5, 6], tasks, random.Random(0))[0] == 3  # without a target after the others


def plan(**changes):
    return replace(ProbePlan((20,), (20,), (9,), (9,), (1, 2), (1, 2, 4, 8), 2, 2, 2), **changes)


def costs_of(models, **changes):
    return Prober(models, plan(**changes), IDS, device="cpu", seed=0, sampling=GREEDY).run()


def test_a_batch_that_runs_out_of_memory_keeps_the_smaller_ones(monkeypatch):
    forward = CachedModel.forward_rows

    def small(self, rows, keep):
        if self.batch >= 4 and self.model is TARGET and self.length:
            monkeypatch.setattr(self, "model", lambda **_: full())
        return forward(self, rows, keep)

    def full():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(CachedModel, "forward_rows", small)
    costs = costs_of({None: TARGET, "d": NEAR})
    assert {p.batch for p in costs.points if p.model is None} == {1, 2}
    assert {p.batch for p in costs.points if p.model == "d"} == {1, 2, 4, 8}
    (caution,) = costs.cautions
    assert caution.code == "batch-too-large"
    why = r"the target was not timed at batch 4 and above: it ran out of memory at 2\d tokens, batch 4"
    assert re.fullmatch(why, caution.message)


def test_a_batch_whose_passes_do_not_fit_while_they_are_recorded_keeps_the_smaller_ones(monkeypatch):
    """On a device, where recording comes before timing."""

    def record_all(wanted):
        target = wanted[0][0]
        if target.batch >= 4 and target.model is TARGET:
            raise memory.ModelMemoryError(target, "3 tokens, batch 4")
        return False

    monkeypatch.setattr(probing, "record_all", record_all)
    monkeypatch.setattr(probing, "available_bytes", lambda _: 10**12)
    monkeypatch.setattr(probing, "device_sync", lambda _: lambda: None)
    monkeypatch.setattr(probing.torch, "Generator", lambda _, generator=torch.Generator: generator())
    models = {None: TARGET, "d": NEAR}
    costs = Prober(models, plan(), IDS, device="cuda", seed=0, sampling=GREEDY).run()
    assert {p.batch for p in costs.points if p.model is None} == {1, 2}
    assert {p.batch for p in costs.points if p.model == "d"} == {1, 2, 4, 8}
    assert [caution.code for caution in costs.cautions] == ["batch-too-large"]


@pytest.mark.parametrize("where", ["the target's states", "its memory", "its passes"])
def test_a_head_that_runs_out_of_memory_is_left_out_alone(tmp_path, monkeypatch, where):
    head = head_of(save_head(tmp_path, MARKOV), MARKOV)

    def short(honest, batch_of):
        def call(*given):
            if batch_of(*given) >= 4:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return honest(*given)

        return call

    if where == "its memory":
        init = short(probing.ManyHeadReader.__init__, lambda _, head, states, capacity: states.batch)
        monkeypatch.setattr(probing.ManyHeadReader, "__init__", init)
    elif where == "its passes":
        monkeypatch.setattr(head, "run", short(head.run, lambda ids, *_: len(ids)))
    else:
        read = short(CachedModel._read, lambda self, *_: 0 if self.states is None else self.batch)
        monkeypatch.setattr(CachedModel, "_read", read)
    found = Prober({None: MARKOV}, plan(), IDS, device="cpu", seed=0, sampling=GREEDY, heads={"h": head}).run()
    assert {p.batch for p in found.points if p.model is None} == {1, 2, 4, 8}
    assert {p.batch for p in found.points if p.model == "h"} == {1, 2}
    (caution,) = found.cautions
    assert caution.message.startswith("h was not timed at batch 4 and above: it ran out of memory at ")


def test_what_cannot_fit_is_not_tried(monkeypatch):
    one = cache_bytes(TARGET.config, plan().capacity, 1, 4) + memory.pass_bytes(TARGET.config, plan().capacity, 1, 4)
    monkeypatch.setattr(probing, "available_bytes", lambda _: 3 * one)
    costs = costs_of({None: TARGET})
    assert {p.batch for p in costs.points} == {1, 2}
    assert "B beside the weights, " in costs.cautions[0].message


def test_memory_is_counted_from_the_configuration():
    # 2 layers x 1 head x (8 + 8) values x 4 bytes x 10 tokens x 3 sequences
    assert cache_bytes(TARGET.config, 10, 3, 4) == 2 * 16 * 4 * 10 * 3
    cached = CachedModel(TARGET, 10, 3)
    cached.forward_rows([[1]] * 3, keep=1)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cached.cache.layers)
    assert held == cache_bytes(TARGET.config, 10, 3, 4)
    embedding = TARGET.get_input_embeddings().weight.nbytes
    assert step_bytes(TARGET) == weight_bytes(TARGET) - embedding


@pytest.mark.parametrize("value", ["0", "-1", "1,1", "2048", "x", "", "1.5", [True]])
def test_bad_batch_sizes(value):
    with pytest.raises(ConfigError, match="`probe_batch_sizes`"):
        load_config(None, {"probe_batch_sizes": value})


def test_batch_sizes_do_not_decide_what_trials_measure():
    one, other = load_config(None, {}), load_config(None, {"probe_batch_sizes": "4,2"})
    assert (one.probe_batch_sizes, other.probe_batch_sizes) == ((1, 2, 4, 8), (2, 4))
    assert one.fingerprint() == other.fingerprint()
    assert run_plan([10, 20], other).batch_sizes == (1, 2, 4)
    wide = run_plan([10], replace(one, gamma=(40,)))
    assert wide.widths(1) == tuple(range(1, 42))
    assert wide.widths(4) == (*range(1, 10), 13, 17, 33, 41)


def test_a_draft_with_fewer_token_ids_can_be_probed():
    """As a cross draft has: the target's ids would be unknown to it."""
    models = {None: tiny_llama(300, seed=1), "cross:small": tiny_llama(40, seed=2)}
    plan = ProbePlan((8,), (8,), (6,), (), (1,), (1,), passes=5)
    costs = Prober(models, plan, [299, 250, 41, 3], device="cpu", seed=0, sampling=Sampling()).run()
    assert {point.model for point in costs.points} == {None, "cross:small"}
