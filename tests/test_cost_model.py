"""The cost model: planted costs are predicted exactly, published cases come out as published."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, lean, near_copy, text_of, tiny_llama

from specbench.acceptance.loop import generate
from specbench.acceptance.replay import Expected, replay
from specbench.acceptance.score import score
from specbench.acceptance.scores import Scores
from specbench.analysis.predict import Predictor
from specbench.backends.local.cached import CachedModel
from specbench.clock import Stopwatch
from specbench.cost.model import (
    RoundCosts,
    at_end,
    break_even_alpha,
    break_even_draft,
    closed_form,
    predicted_rounds,
    predicted_speedup,
    round_costs,
    tokens_per_round,
)
from specbench.cost.probe import Probed, median_interval, probe
from specbench.drafters.model import ModelDrafter
from specbench.records import CostPoint

PLAIN = tiny_llama(64, seed=1)
TARGET, NEAR = lean(PLAIN), lean(near_copy(PLAIN, noise=0.03))


class FakeClock:
    """Time passes only where a fake cost says so."""

    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns


class FakeCost:
    """A real model that takes a planted time to read n tokens."""

    def __init__(self, model, clock, cost_ns):
        self.model, self.clock, self.cost_ns = CachedModel(model, 512), clock, cost_ns

    def forward(self, ids, keep):
        self.clock.ns += self.cost_ns[min(len(ids), len(self.cost_ns)) - 1]
        return self.model.forward(ids, keep)

    def forward_rows(self, rows, keep):
        return self.forward(rows[0], keep)[None]

    def rewind(self, length):
        self.model.rewind(length)


VERIFY = [1000, 1070, 1100, 1130, 1500, 1520, 1530, 1560, 1700]
DRAFT = [140, 190, 200]


def timed(drafter, target, clock, prompt, gamma, limit):
    return generate(
        target,
        drafter,
        prompt,
        gamma=gamma,
        sampling=GREEDY,
        eos=set(),
        max_new_tokens=limit,
        generator=torch.Generator(),
        clock=Stopwatch(now=clock),
    )


@examples(40)
@given(prompt=st.lists(st.integers(0, 63), min_size=1, max_size=8), gamma=st.integers(1, 8), limit=st.integers(3, 70))
def test_a_planted_cost_is_predicted_to_the_nanosecond(prompt, gamma, limit):
    clock = FakeClock()
    target, draft = FakeCost(TARGET, clock, VERIFY), FakeCost(NEAR, clock, DRAFT)
    alone = timed(None, target, clock, prompt, 0, limit)
    drafter = ModelDrafter(draft, vocab_size=64, sampling=GREEDY, eos=set())
    live = timed(drafter, target, clock, prompt, gamma, limit)
    measured = alone.times.decode_s / live.times.decode_s
    found = score(None, CachedModel(NEAR, 512), prompt, alone.tokens, vocab_size=64, sampling=GREEDY, eos=set())
    text = text_of(found, limit)
    costs = RoundCosts(tuple(ns / 1e9 for ns in VERIFY), DRAFT[0] / 1e9, DRAFT[1] / 1e9, 0.0)
    assert predicted_speedup(replay([text], gamma), text.tokens - 1, costs) == pytest.approx(measured, rel=1e-12)


def test_the_probe_recovers_planted_costs():
    clock = FakeClock()
    at = {
        context: [
            (None, Probed(FakeCost(TARGET, clock, VERIFY), (1, 2, 5), keep_all=True)),
            ("d", Probed(FakeCost(NEAR, clock, DRAFT), (1, 2), keep_all=False)),
        ]
        for context in (4, 50)
    }
    points = probe(at, [1, 2, 3], seed=0, now=clock, passes=5)
    assert {(p.model, p.context, p.tokens): round(p.median_s * 1e9) for p in points} == {
        **{(None, context, n): VERIFY[n - 1] for context in (4, 50) for n in (1, 2, 5)},
        **{("d", context, n): DRAFT[n - 1] for context in (4, 50) for n in (1, 2)},
    }


def test_costs_are_read_between_the_probed_contexts():
    points = [
        CostPoint(None, c, n, t, t, t, 5) for c, n, t in [(100, 1, 1.0), (200, 1, 2.0), (100, 2, 3.0), (200, 2, 3.0)]
    ]
    assert round_costs(points, "ngram", 150, 0.1) == RoundCosts((1.5, 3.0), 0.0, 0.0, 0.1)
    assert round_costs(points, "ngram", 500, 0.1).step_s == 2.1


def test_the_median_interval_holds_the_median_about_as_often_as_it_says():
    rng = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        low, middle, high = median_interval(torch.empty(15).exponential_(generator=rng).tolist())
        assert low <= middle <= high
        hits += low <= 0.6931 <= high
    assert 0.92 <= hits / 400 <= 0.995


# Leviathan et al. 2023, Table 2 (T = 0, En-De) and its lenience and bigram rows: (alpha, gamma, c) -> predicted
LEVIATHAN = [
    (0.75, 7, 0.02, 3.2),
    (0.80, 7, 0.04, 3.3),
    (0.82, 7, 0.11, 2.5),
    (0.75, 8, 0.015, 3.3),
    (0.80, 8, 0.015, 3.9),
    (0.87, 8, 0.015, 4.9),
    (0.20, 3, 0.0, 1.25),
]


@pytest.mark.parametrize(("alpha", "gamma", "c", "published"), LEVIATHAN)
def test_the_closed_form_gives_the_papers_predictions(alpha, gamma, c, published):
    # the paper's inputs are rounded to two digits
    assert closed_form(alpha, gamma, c) == pytest.approx(published, rel=0.035)


def test_the_closed_form_overrates_what_the_paper_measured():
    measured = {(0.80, 7, 0.04): 2.8, (0.82, 7, 0.11): 1.7}
    assert all(closed_form(*inputs) > 1.15 * found for inputs, found in measured.items())


# vLLM issue 20780: EAGLE-3 at batch 1, 7.07 ms per token alone; k -> tokens per round, ms per token
VLLM = {2: (2.36, 4.32), 3: (2.79, 4.09), 4: (3.08, 4.05), 5: (3.32, 4.13), 6: (3.46, 4.20), 7: (3.54, 4.29)}


def test_the_round_cost_of_vllm_is_linear_and_finds_the_best_k():
    step_ms = 7.07

    def round_cost(k):
        return 1.181 + 0.1437 * k

    for k, (tau, ms) in VLLM.items():
        assert tau * ms / step_ms == pytest.approx(round_cost(k), rel=0.025)
        assert tau / round_cost(k) == pytest.approx(step_ms / ms, rel=0.025)
    assert max(VLLM, key=lambda k: VLLM[k][0] / round_cost(k)) == 4


def test_llama_cpp_where_the_verify_cost_explains_most_of_it():
    # issue 3649: 260 drafted by fives, 208 accepted; a draft step costs 0.085 and verifying six tokens 2.16 steps
    r, gamma, c, v, measured = 208 / 260, 5, 0.085, 2.16, 1.68
    assert closed_form(r, gamma, c) == pytest.approx(2.59, abs=0.01)
    with_verify = (1 + gamma * r) / (gamma * c + v)
    assert with_verify == pytest.approx(1.94, abs=0.01)
    assert abs(with_verify - measured) < 0.3 * abs(closed_form(r, gamma, c) - measured)


def test_the_closed_form_says_yes_where_verifying_two_tokens_costs_nearly_two_steps():
    # the embedded draft at gamma 1, on an engine whose CPU kernels make v(2) = 1.9
    assert closed_form(0.42, 1, 0.085) > 1.3
    assert tokens_per_round(0.42, 1) / (0.085 + 1.9) < 0.75


@pytest.mark.parametrize(
    ("c", "v", "alpha"),
    [(0.05, 1.0, 0.17), (0.05, 1.5, 0.42), (0.05, 2.16, 0.61), (0.2, 1.0, 0.46), (0.2, 1.5, 0.60), (0.2, 2.16, 0.73)],
)
def test_break_even_alpha_at_gamma_4(c, v, alpha):
    assert break_even_alpha(4, c, v) == pytest.approx(alpha, abs=0.006)


def test_break_even_at_the_ends():
    assert break_even_alpha(1, 0.0, 1.0) == 0.0
    assert break_even_alpha(1, 1.5, 1.0) is None
    assert break_even_draft(2.0, 4, 1.2) == pytest.approx(0.2)
    assert break_even_draft(1.1, 4, 1.2) is None


def head_points(read=(0.4, 0.5, 0.6, 0.7), step=0.3, kept=0.25):
    verify = [1.0, 1.2, 1.4, 1.6]
    rows = [(None, "read", n, s) for n, s in enumerate(verify, 1)]
    rows += [("h", "states", n, s + kept) for n, s in enumerate(verify, 1)]
    rows += [("h", "read", n, s) for n, s in enumerate(read, 1)] + [("h", "step", 1, step)]
    return [CostPoint(model, 50, n, s, s, s, 5, phase=phase) for model, phase, n, s in rows]


def head_text(accept, limit=31):
    """A text whose head's drafts are right where `accept` [n, J] says."""
    n = len(accept)
    nothing, sure = np.zeros(n, dtype=np.float32), np.ones(accept.shape, dtype=np.float32)
    return text_of(Scores(accept, nothing, sure, nothing, nothing, sure < 0), limit)


@pytest.mark.parametrize("gamma", [1, 3])
def test_a_heads_round_is_its_first_draft_the_later_ones_and_a_pass_that_keeps_the_states(gamma):
    accept = (np.random.default_rng(0).random((30, 3)) < 0.6).astype(np.float32)
    found = replay([head_text(accept)], gamma)
    costs = round_costs(head_points(), "h", 50, 0.05)
    spent, unread, i = 0.0, 1, 1
    while i < 31:  # the rounds one by one
        k = min(gamma, 31 - i - 1)
        kept = 0
        while kept < k and i + kept < 31 and accept[i - 1, kept]:
            kept += 1
        if k:
            spent += 0.4 + 0.1 * (unread - 1) + 0.3 * (k - 1)
        spent += 1.0 + 0.2 * k + 0.25 + 0.05
        unread, i = kept + 1, i + kept + 1
    # What the last round emits is read by none; the model takes a mean round for it.
    assert predicted_rounds(found, costs).total_s[0] == pytest.approx(spent, abs=0.1 * gamma)


def test_a_draft_phase_costs_what_it_was_timed_at():
    """The first step of a round is dear after a pass of the target; single steps, timed warm, are not."""
    rows = [(None, "read", n, 1.0) for n in (1, 2, 3, 4)] + [("d", "read", n, 0.1) for n in (1, 2)]
    points = [CostPoint(m, 50, n, s, s, s, 5, phase=p) for m, p, n, s in rows]
    phases = [CostPoint("d", 50, n, s, s, s, 5, phase="draft") for n, s in ((1, 0.3), (3, 0.5))]
    plain, whole = round_costs(points, "d", 50, 0.0), round_costs([*points, *phases], "d", 50, 0.0)
    assert [plain.drafting_s(n) for n in (0, 1, 3)] == pytest.approx([0.0, 0.1, 0.3])
    assert [whole.drafting_s(n) for n in (0, 1, 2, 3, 5)] == pytest.approx([0.0, 0.3, 0.4, 0.5, 0.7])
    never = np.zeros(30, dtype=np.float32)
    text = text_of(Scores(never, never, never + 1, never, never, never > 0), 31)
    found = replay([text], 3)
    rounds, drafted = float(found.rounds.sum()), float(found.drafted.sum())
    started = float(found.started.sum())
    assert predicted_rounds(found, whole).draft_s[0] == pytest.approx(0.1 * drafted + 0.2 * started)
    assert rounds - 2 <= started <= rounds
    assert round_costs(at_end([*points, *phases], "high", lambda p: p.phase == "draft"), "d", 50, 0.0) == whole


def test_a_round_of_a_batch_waits_for_the_row_that_reads_most():
    """Two look-ups that draft two tokens in 8 and in 2 of 10 rounds; a draft model that catches up in half of them."""
    nothing, rounds = np.zeros(2), np.array([10.0, 10.0])
    found = Expected(
        2, rounds, nothing, nothing, np.array([[8.0, 8.0], [2.0, 2.0]]), np.zeros((2, 2)), nothing, nothing, nothing,
        nothing, nothing,
    )  # fmt: skip
    costs = RoundCosts((1.0, 2.0, 3.0), 0.0, 0.0, 0.5)
    assert predicted_rounds(found, costs).verify_s == pytest.approx([8 * 3 + 2 * 1, 2 * 3 + 8 * 1])
    # Beside another of the two at random, which drafts in half of its rounds.
    assert predicted_rounds(found, costs, 2).verify_s == pytest.approx([9 * 3 + 1, 6 * 3 + 4])
    assert predicted_rounds(found, costs, 2).other_s == pytest.approx([5.0, 5.0])
    drafts = replace(found, reached=np.full((2, 2), 10.0), started=rounds, catch_ups=rounds / 2)
    model = RoundCosts((1.0, 2.0, 3.0), 0.1, 0.4, 0.0)
    assert predicted_rounds(drafts, model).draft_s == pytest.approx([10 * 0.2 + 5 * 0.3] * 2)
    assert predicted_rounds(drafts, model, 2).draft_s == pytest.approx([10 * 0.2 + 7.5 * 0.3] * 2)
    head = replace(model, read_s=(0.1, 0.2), catch_up_s=0.1)
    half = replace(drafts, catch_ups=nothing, accepted=rounds, survived=np.full((2, 2), 5.0))
    alone, beside = (predicted_rounds(half, head, rows).draft_s[0] for rows in (1, 2))
    # Rounds keep 0 or 2 tokens, half of them each: 1 on average, and 1.5 where the longer of two counts.
    assert beside - alone == pytest.approx(10 * 0.5 * 0.1)


def test_the_tail_of_a_batch_is_counted():
    """Two texts of 10 and 30 tokens: a step costs 3 for both and 2 for one, a round 4 and 3."""
    predictor = object.__new__(Predictor)
    predictor._view = SimpleNamespace(batch=2, by_prompt=lambda spent: spent.reshape(-1, 2).sum(1))
    turns = np.array([30.0, 10.0, 5.0, 5.0])
    each = {1: np.full(4, 2.0), 2: np.full(4, 3.0)}
    assert predictor._batches_s(turns, each) == pytest.approx([10 * 3 + 20 * 2, 5 * 3])


def test_a_draft_model_has_no_states_to_keep():
    points = [CostPoint(None, 50, 1, 1.0, 1.0, 1.0, 5), CostPoint("d", 50, 1, 0.1, 0.1, 0.1, 5)]
    points.append(CostPoint("d", 50, 2, 0.2, 0.2, 0.2, 5))
    costs = round_costs(points, "d", 50, 0.0)
    assert (costs.read_s, costs.states_s, costs.judge_s) == ((), (), (1.0,))
