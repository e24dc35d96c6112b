"""How many tokens to draft at which load: planted curves come back, and chance shows no gain."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from conftest import full
from fake_served import SPEC, FakeServer, fake_served

from specbench.analysis.loads import Cell, best_schedule
from specbench.analysis.summarise import summarise
from specbench.decision.interval import Paired
from specbench.report.dialect import PLAIN, sentence_of
from specbench.report.schedule import sglang_schedule, tensorrt_schedule, vllm_schedule

# Speedups by concurrency and gamma: deep drafts where there is room, none where there is not.
PLANTED = {1: {1: 1.2, 4: 1.8}, 4: {1: 1.1, 4: 1.05}, 16: {1: 0.9, 4: 0.5}}


def cells(planted=PLANTED, *, prompts=60, noise=0.05, seed=0, variance=0.0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 60, prompts).astype(float)

    def cell(speedup):
        base_s = tokens * 0.01 * rng.lognormal(0, noise, prompts)
        return Cell(Paired(base_s, tokens, tokens * 0.01 / speedup, tokens), measured=not variance, variance=variance)

    return {count: {gamma: cell(s) for gamma, s in row.items()} for count, row in planted.items()}


def true_gain(planted=PLANTED):
    def cost(pick):
        return sum(1 / pick({0: 1.0, **row}) for row in planted.values())

    fixed = min(cost(lambda row, g=g: row[g]) for g in (0, 1, 4))
    return fixed / cost(lambda row: max(row.values())) - 1


def test_the_planted_schedule_and_its_gain_come_back():
    found = best_schedule(cells(), 0.95)
    assert [(s.concurrency, s.gamma) for s in found.steps] == [(1, 4), (4, 1), (16, 0)]
    assert [s.speedup for s in found.steps] == pytest.approx([1.8, 1.1, 1.0], rel=0.03)
    assert found.fixed_gamma == 1
    assert found.gain == pytest.approx(true_gain(), abs=0.02)
    assert found.gain_low < true_gain() < found.gain_high


@pytest.mark.parametrize("seed", [0, *full(1, 2, 3, 4)])
def test_where_all_are_alike_choosing_gains_nothing(seed):
    """Chosen and judged on the same prompts, the best of equals would look better than it is."""
    same = {count: dict.fromkeys((1, 2, 3, 4, 5, 6), 1.0) for count in (1, 2, 4, 8)}
    found = best_schedule(cells(same, noise=0.2, seed=seed), 0.95)
    assert found.gain_low <= 0


def test_what_is_uncertain_in_the_costs_widens_the_gain():
    sure, unsure = (best_schedule(cells(variance=variance), 0.95) for variance in (1e-9, 0.05**2))
    assert unsure.gain_high - unsure.gain_low > 1.5 * (sure.gain_high - sure.gain_low)


def test_one_load_or_few_prompts_make_no_schedule():
    assert best_schedule({1: cells()[1]}, 0.95) is None
    assert best_schedule(cells(prompts=19), 0.95) is None


def test_prompts_that_decode_nothing_make_no_number_of_nothing():
    """In some resamples, or in a half, not a token is decoded."""
    for some in (4, 1):
        few = (np.arange(60) < some).astype(float)[np.random.default_rng(2).permutation(60)]
        thin = {
            count: {
                g: Cell(Paired(*(getattr(c.paired, n) * few for n in Paired.__slots__)), True) for g, c in row.items()
            }
            for count, row in cells().items()
        }
        found = best_schedule(thin, 0.95)
        assert found is None or np.isfinite([found.gain, found.gain_low, found.gain_high]).all()
    assert found is None


def lookup(schedule: list[list[int]], batch: int) -> int:
    """What vLLM makes of it: ranges from 1 on, and a K goes on where no range begins."""
    assert schedule[0][0] == 1
    assert all(a[1] < b[0] for a, b in pairwise(schedule))
    return [k for low, _, k in schedule if low <= batch][-1]


def test_engines_get_it_in_their_own_words():
    found = best_schedule(cells(), 0.95)
    keys = json.loads("{" + vllm_schedule(found) + "}")
    vllm = keys["num_speculative_tokens_per_batch_size"]
    assert keys["num_speculative_tokens"] == 4  # no range may go above it
    assert vllm == [[1, 3, 4], [4, 15, 1], [16, 16, 0]]
    assert [lookup(vllm, n) for n in (1, 3, 4, 15, 16, 99)] == [4, 4, 1, 1, 0, 0]
    # TensorRT-LLM: the largest batch of each, and none beyond the last.
    assert tensorrt_schedule(found) == "{3: 4, 15: 1}"
    assert sglang_schedule(found) == '{"candidate_steps": [1, 4]}'
    # vLLM takes no schedule that does not begin at 1, whatever was measured first.
    later = best_schedule({2: cells()[1], 8: cells()[16]}, 0.95)
    assert vllm_schedule(later).endswith(":[[1,7,4],[8,8,0]]")
    words = sentence_of("schedule", PLAIN, found)
    assert "gamma 4 for 1 to 3; gamma 1 for 4 to 15; no draft from 16 at a time on" in words
    assert "Over gamma 1 throughout that gains +1" in words and "predicted" not in words


def test_a_server_that_fills_up_is_switched_off(tmp_path):
    server = FakeServer(alpha=0.8, spec_slower={1: 1.0, 4: 4.0})
    summary = summarise(fake_served(tmp_path / "run", server, gammas=(2, 4), concurrency=(1, 4)))
    (draft,) = summary.drafts
    assert draft.draft == SPEC
    assert [(s.concurrency, s.gamma, s.measured) for s in draft.schedule.steps] == [(1, 4, True), (4, 0, True)]
    assert draft.schedule.gain_low > 0.1
