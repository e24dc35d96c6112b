"""One draft's part of a stored run, lined up: the same prompts in every arm and in the replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from specbench.acceptance.lossless import lossy_reason
from specbench.acceptance.metrics import Counts, basis, pooled, trial_counts
from specbench.acceptance.replay import Expected, Text, replay
from specbench.decision.interval import Floats, Paired
from specbench.drafters import parse_draft, reader_of
from specbench.records import CostPoint, Load, Policy, Trial
from specbench.report.facts import precision_of
from specbench.store import StoredRun


class DraftView:
    """The prompts that every gamma of one draft and the target alone have finished, in one order.

    Every speedup of the view weighs prompts by the policy's traffic mix where there is one; prompts of a category
    outside the mix are left out.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        base: pd.DataFrame,
        spec: str,
        trials: Sequence[Trial],
        texts: Sequence[Text],
        stored: StoredRun,
        policy: Policy,
    ) -> None:
        self.spec = spec
        self.draft = parse_draft(spec)
        own = frame[(frame["draft"] == spec) & (frame["kind"] == "speculative")]
        arms = {gamma: own[own["gamma"] == gamma].set_index("prompt_id") for gamma in stored.run["config"]["gamma"]}
        arms = {gamma: rows for gamma, rows in arms.items() if len(rows)}
        if policy.mix:
            base = base[base["category"].isin(list(policy.mix))]
        shared = base.index
        for rows in arms.values():
            shared = shared.intersection(rows.index)
        self.prompts = shared.sort_values()
        self.complete = len(self.prompts) > 0
        self.base = base.loc[self.prompts]
        self.arms = {gamma: rows.loc[self.prompts] for gamma, rows in sorted(arms.items())}
        self.weights = traffic_weights(list(self.base["category"]), policy.mix)
        config = stored.run["config"]
        self.greedy = config["temperature"] == 0
        # Greedy repeats are one and the same text, scored once.
        self.repeats = int(config["repeats"])
        # Replay speaks of the same prompts as the loop, or not at all.
        own_texts = {(text.prompt_id, text.repeat): text for text in texts if text.draft == spec}
        members = list(self.base["members"])
        repeats = range(self.repeats)
        keys = [(prompt, 0 if self.greedy else r) for unit in members for r in repeats for prompt in unit]
        self.texts = [own_texts[key] for key in keys] if set(keys) <= set(own_texts) else []
        self._owner = np.repeat(np.arange(len(members)), [len(unit) * self.repeats for unit in members])
        self.batch = int(config["batch_size"])
        self._replayed: dict[int, Expected] = {}
        self._counts = {gamma: _by_trial(rows, gamma) for gamma, rows in self.arms.items()}
        self.points = [CostPoint(**point) for point in stored.run.get("probe") or []]
        layers = stored.run.get("drafts", {}).get(spec, {}).get("layers")
        self.reader = reader_of(spec, layers)
        # Requests that overlap share their time, which then is nobody's cost.
        self.overlapping = any(load != Load() for load in {trial.arm.load for trial in trials})
        self.other_s = _other_s(stored.trials, spec)
        self.lossy = lossy_reason([t for t in trials if t.arm.draft == spec], precision_of(stored.run))

    def replayed(self, gamma: int) -> Expected | None:
        """Expected counts at any gamma, for each prompt and repeat in order; None without stored positions."""
        if not self.texts:
            return None
        if gamma not in self._replayed:
            self._replayed[gamma] = replay(self.texts, gamma, self.draft.cutoff)
        return self._replayed[gamma]

    def paired(self, gamma: int, metric: str) -> Paired:
        """Target alone and draft at `gamma`, prompt by prompt, weighed by the mix."""
        return _pair(self.base, self.arms[gamma], metric, self.weights)

    def counts(self, gamma: int, chosen: np.ndarray | slice = slice(None)) -> Counts:
        """What the loop or the server counted at `gamma`, over the `chosen` prompts."""
        return pooled([one for prompt in np.arange(len(self.prompts))[chosen] for one in self._counts[gamma][prompt]])

    def by_prompt_counts(self, gamma: int) -> list[Counts]:
        """The same prompt by prompt, in order."""
        return [pooled(each) for each in self._counts[gamma]]

    def counted_share(self, gamma: int) -> float:
        """Share of the texts at `gamma` that the counts are over: all of them unless a server tells too little."""
        each = [one for prompt in self._counts[gamma] for one in prompt]
        return len(basis(each)) / len(each)

    def by_prompt(self, values: Floats) -> Floats:
        """Sums over the texts of each prompt, or of each batch."""
        sums = np.bincount(self._owner, weights=values, minlength=len(self.prompts))
        return np.asarray(sums, dtype=np.float64)

    @property
    def rate(self) -> float:
        """Tokens per second of the target alone, decoding."""
        return rate(self.base)


def _by_trial(rows: pd.DataFrame, gamma: int) -> list[list[Counts]]:
    """Counts of every trial of each prompt. A server may draft more than `gamma` tokens, whatever it was told."""
    width = max([gamma, *(drafted for trials in rows["trials"] for trial in trials for drafted in trial.drafted)])
    return [[trial_counts(trial, width) for trial in trials] for trials in rows["trials"]]


def traffic_weights(categories: Sequence[str], mix: Mapping[str, float] | None) -> Floats:
    """How much each prompt counts, so that each category has its share of requests; ones without a mix."""
    if not mix:
        return np.ones(len(categories))
    here = {name: categories.count(name) for name in set(categories)}
    total = sum(mix[name] for name in here)
    return np.array([mix[name] / total * len(categories) / here[name] for name in categories])


def arm(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    """One row for each prompt of an arm that is not a draft's."""
    return frame[frame["kind"] == kind].set_index("prompt_id")


def rate(rows: pd.DataFrame) -> float:
    """Decoded tokens per second, totals over totals."""
    return float(rows["decode_tokens"].sum() / rows["decode_s"].sum())


def a_a(frame: pd.DataFrame, base: pd.DataFrame, metric: str) -> Paired | None:
    """The target alone against itself; None without a second arm."""
    again = arm(frame, "baseline-again")
    shared = base.index.intersection(again.index).sort_values()
    if not len(shared):
        return None
    return _pair(base.loc[shared], again.loc[shared], metric)


def _pair(base: pd.DataFrame, other: pd.DataFrame, metric: str, weights: Floats | float = 1.0) -> Paired:
    """Two arms over the same prompts in the same order, by the policy's metric."""
    names = ("decode_s", "decode_tokens") if metric == "decode" else ("total_s", "output_tokens")
    return Paired(*(rows[name].to_numpy(dtype=float) * weights for rows in (base, other) for name in names))


def _other_s(trials: Sequence[Trial], spec: str) -> float:
    """Seconds of a round outside both models, from the warm-up trials, which no speedup counts. The rounds of a batch
    are shared by its sequences."""
    warm = [t for t in trials if t.warmup and t.arm.draft == spec and t.drafted]
    rounds = sum(len(t.drafted) / t.sequences for t in warm)
    return sum(t.times.other_s or 0.0 for t in warm) / rounds if rounds else 0.0
