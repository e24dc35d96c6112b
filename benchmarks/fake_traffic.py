"""A made-up workload, draft and machine whose true speedup is known exactly.

The population is a finite pool of prompts, drawn once; a workload is a draw from it with replacement. So the estimand,
seconds per token of the target alone over seconds per token with the draft, totals over the population, is a sum over
the pool without Monte Carlo error. Everything that a machine adds (drift, noise, disturbances) has the same expectation
in every arm, because arms run in an order drawn anew for each prompt, and so leaves that ratio alone.

What makes it hard, as real runs are: lengths with a heavy tail, cut by a token limit; prompts that differ in
acceptance; easy and hard stretches within a text, so that tokens of a prompt are not independent; a machine that drifts
over the trials; and now and then a trial that is far too slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specbench.decision.interval import Floats, Paired

POOL = 100_000
SLICES = 8
GAMMAS = (1, 2, 4)
MEDIAN_TOKENS, TOKENS_SPREAD, MAX_TOKENS = 80, 0.8, 512
# Acceptance of a prompt is Beta with this many pseudo-counts: at a mean of 0.5 its standard deviation is 0.15.
CONCENTRATION = 10.0
# A text stays in an easy or hard stretch for 1 / SWITCH tokens on average; they differ by twice STRETCH in the logit.
SWITCH, STRETCH = 0.08, 1.2
# In steps of the target alone: what a round costs besides that step, and what every drafted token adds to it.
ROUND_EXTRA, DRAFT_STEP, VERIFY_STEP = 0.04, 0.12, 0.08


@dataclass(frozen=True, slots=True)
class Machine:
    """Relative disturbances of a trial. `drift` is the step of a random walk from trial to trial, `noise` a lognormal's
    sigma, `disturbed` the share of trials that take longer by a factor 1 + 0.3 * Pareto(2.5), and `arm_bias` the sigma
    of a factor that an arm has in all its trials of a run, or in those of one of its `starts`, as a server's. `slow` is
    the factor of the slower of two speeds, between which it changes after `dwell` trials on average; `sliced` says that
    the arms of a prompt take turns."""

    drift: float = 0.003
    noise: float = 0.03
    disturbed: float = 0.02
    arm_bias: float = 0.0
    starts: int = 1
    slow: float = 1.0
    dwell: float = 1.0
    sliced: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """The population: tokens and seconds of the target alone [POOL], and seconds at each of GAMMAS [gammas, POOL],
    undisturbed."""

    tokens: Floats
    base_s: Floats
    spec_s: Floats

    def speedup(self, gamma: int) -> float:
        """The true speedup; both arms emit the same tokens, which therefore cancel."""
        return float(self.base_s.sum() / self.spec_s[GAMMAS.index(gamma)].sum())

    def scaled(self, factors: Mapping[int, float]) -> Pool:
        """The same with each gamma's speedup multiplied by its factor."""
        return Pool(self.tokens, self.base_s, self.spec_s / np.array([[factors[g]] for g in GAMMAS]))

    def plant(self, speedup: float, gamma: int | None = None) -> Pool:
        """The same with the speedup at `gamma`, or else at the best gamma, set to `speedup`; other gammas keep their
        distance from it."""
        at = self.speedup(gamma) if gamma else max(map(self.speedup, GAMMAS))
        return self.scaled(dict.fromkeys(GAMMAS, speedup / at))

    def plant_tie(self, speedup: float) -> Pool:
        """The same with every gamma at `speedup`, each still fast on other prompts."""
        return self.scaled({g: speedup / self.speedup(g) for g in GAMMAS})


@dataclass(frozen=True, slots=True)
class Traffic:
    """Measured workloads: tokens [workloads, n] and seconds [arms, workloads, n], the arms being the target alone, the
    target alone again, and GAMMAS."""

    tokens: Floats
    seconds: Floats

    def paired(self, workload: int, arm: int) -> Paired:
        """The target alone against another arm, on one workload."""
        tokens = self.tokens[workload]
        return Paired(self.seconds[0, workload], tokens, self.seconds[arm, workload], tokens)

    def again(self, workload: int) -> Paired:
        return self.paired(workload, 1)

    def at_gamma(self, workload: int, gamma: int) -> Paired:
        return self.paired(workload, 2 + GAMMAS.index(gamma))

    def by_gamma(self, workload: int) -> dict[int, Paired]:
        return {gamma: self.at_gamma(workload, gamma) for gamma in GAMMAS}


def make_pool(acceptance: float, seed: int = 0, size: int = POOL) -> Pool:
    """A population of `size` prompts whose drafts are accepted with mean probability about `acceptance`."""
    rng = np.random.default_rng(seed)
    tokens = np.ceil(MEDIAN_TOKENS * rng.lognormal(0, TOKENS_SPREAD, size)).clip(4, MAX_TOKENS)
    tokens = -np.sort(-tokens)  # longest first, so that the texts still running are always a prefix
    step_s = 0.02 * rng.lognormal(0, 0.05, size)  # of the target: prompts differ in context length
    own = rng.beta(acceptance * CONCENTRATION, (1 - acceptance) * CONCENTRATION, size).clip(1e-6, 1 - 1e-6)
    rounds = count_rounds(rng, tokens, own)
    cost = np.array([1 + ROUND_EXTRA + gamma * (DRAFT_STEP + VERIFY_STEP) for gamma in GAMMAS])
    return Pool(tokens, step_s * tokens, step_s * cost[:, None] * rounds)


def count_rounds(rng: np.random.Generator, tokens: Floats, own: Floats) -> Floats:
    """Rounds that each text takes at each of GAMMAS [gammas, texts], given its own mean acceptance. All gammas meet the
    same text, token by token, as replay does. `tokens` must not increase."""
    logit = np.log(own / (1 - own))
    chance = 1 / (1 + np.exp(-np.stack([logit - STRETCH, logit + STRETCH])))  # [hard or easy, texts]
    easy = rng.random(len(tokens)) < 0.5
    rounds, kept = np.zeros((2, len(GAMMAS), len(tokens)), dtype=np.int32)
    most = np.array(GAMMAS)[:, None]
    for position in range(int(tokens[0])):
        running = int(np.searchsorted(-tokens, -position))  # texts longer than this position
        easy[:running] ^= rng.random(running) < SWITCH
        accepted = rng.random(running) < np.where(easy[:running], chance[1, :running], chance[0, :running])
        inside = accepted & (kept[:, :running] < most)  # a draft is kept here; else the target's own token ends a round
        rounds[:, :running] += ~inside
        kept[:, :running] = (kept[:, :running] + 1) * inside
    return (rounds + (kept > 0)).astype(np.float64)  # a round that the end of the text cuts has cost its time


def draw(pool: Pool, workloads: int, n: int, rng: np.random.Generator, machine: Machine | None = None) -> Traffic:
    """Measure `workloads` workloads of `n` prompts of the pool, every arm on every prompt in an order drawn anew."""
    machine = machine or Machine()
    rows = rng.integers(len(pool.tokens), size=(workloads, n))
    clean = np.concatenate([np.stack([pool.base_s[rows]] * 2), pool.spec_s[:, rows]])  # [arms, workloads, n]
    return Traffic(pool.tokens[rows], clean * _slowness(clean.shape, rng, machine))


def _slowness(shape: tuple[int, ...], rng: np.random.Generator, machine: Machine) -> Floats:
    """The factor on each trial's seconds [arms, workloads, n]."""
    arms, workloads, n = shape
    walk = np.cumsum(rng.normal(0, machine.drift, (workloads, n * arms)), axis=1).reshape(workloads, n, arms)
    turns: NDArray[np.intp] = np.argsort(rng.random(walk.shape), axis=2)  # which turn each arm has at a prompt
    drift = np.moveaxis(np.take_along_axis(walk, turns, axis=2), 2, 0)
    noise = rng.normal(0, machine.noise, shape)
    bias = rng.normal(0, machine.arm_bias, (arms, workloads, machine.starts))[..., np.arange(n) * machine.starts // n]
    disturbed = np.where(rng.random(shape) < machine.disturbed, 1 + 0.3 * rng.pareto(2.5, shape), 1.0)
    speed = 1.0 if machine.slow == 1.0 else 1 + (machine.slow - 1) * _slow_share(shape, rng, machine)
    return np.asarray(np.exp(drift + noise + bias) * disturbed * speed, dtype=np.float64)


def _slow_share(shape: tuple[int, ...], rng: np.random.Generator, machine: Machine) -> Floats:
    """Of each trial the share that the machine was slow in [arms, workloads, n]: a chain of two states over SLICES
    moments of every trial, which an arm has in a row, or one after the others' in an order drawn anew."""
    arms, workloads, n = shape
    changes = rng.random((workloads, n * arms * SLICES)) < 1 / (machine.dwell * SLICES)
    slow = (np.cumsum(changes, axis=1) + rng.integers(2, size=(workloads, 1))) % 2
    if machine.sliced:
        moments = slow.reshape(workloads, n, SLICES, arms)
        turns = np.argsort(rng.random(moments.shape), axis=3)
        share = np.take_along_axis(moments, turns, axis=3).mean(2)
    else:
        whole = slow.reshape(workloads, n, arms, SLICES).mean(3)
        share = np.take_along_axis(whole, np.argsort(rng.random(whole.shape), axis=2), axis=2)
    return np.asarray(np.moveaxis(share, 2, 0), dtype=np.float64)
