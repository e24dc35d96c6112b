"""A stored run by arm: columns with a row for each prompt, repeats summed, disturbed attempts replaced.

Not pandas, which would take longer to import than all of this takes to compute; notebook.py makes frames for notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench.acceptance.lossless import lossy_reason
from specbench.acceptance.metrics import Counts, basis, pooled, trial_counts
from specbench.acceptance.replay import Expected, Text, replay
from specbench.decision.interval import Floats, Paired, excess_variance, speedup_interval
from specbench.drafters import parse_draft, reader_of
from specbench.records import Arm, ArmKind, Load, Policy, Trial
from specbench.run_record import ModelFacts, RunRecord
from specbench.store import StoredRun

Objects = NDArray[np.object_]

SUMMED = ("decode_s", "total_s", "draft_s", "verify_s", "other_s", "decode_tokens", "output_tokens")
_TIMES = attrgetter(*SUMMED[:5])


@dataclass(frozen=True, slots=True, eq=False)
class ArmRows:
    """One arm, a row for each prompt (or batch). `members` are a row's prompt ids, of a batch several; times are in
    seconds, NaN where they were not told, and summed over repeats, as tokens are; `identical` is None where nothing was
    compared; `trials` are lists of the trials themselves."""

    prompt_id: Objects
    prompt_sha256: Objects
    category: Objects
    prompt_tokens: Floats
    members: Objects
    identical: Objects
    trials: Objects
    decode_s: Floats
    total_s: Floats
    draft_s: Floats
    verify_s: Floats
    other_s: Floats
    decode_tokens: Floats
    output_tokens: Floats

    def __len__(self) -> int:
        return len(self.prompt_id)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> ArmRows:
        """The rows of a mask, or of row numbers in their order."""
        return ArmRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def of(self, prompts: Sequence[str]) -> ArmRows:
        """The rows of these prompts, in their order. Raises KeyError for one that is not here."""
        places = {prompt: row for row, prompt in enumerate(self.prompt_id)}
        return self.take(np.array([places[prompt] for prompt in prompts], dtype=np.int64))


def shared_prompts(arms: Iterable[ArmRows]) -> list[str]:
    return sorted(set.intersection(*(set(rows.prompt_id) for rows in arms)))


def by_arm(trials: Iterable[Trial]) -> dict[Arm, ArmRows]:
    """The arms of `counted` trials, and the prompts of each, in order of first appearance."""
    found: dict[Arm, dict[str, list[Trial]]] = {}
    for trial in trials:
        found.setdefault(trial.arm, {}).setdefault(trial.prompt_id, []).append(trial)
    return {arm: _rows(list(prompts.values())) for arm, prompts in found.items()}


def _rows(prompts: Sequence[list[Trial]]) -> ArmRows:
    first = [trials[0] for trials in prompts]
    sums = np.array([_sums(trials) for trials in prompts], dtype=float).reshape(-1, len(SUMMED))  # None is NaN
    return ArmRows(
        prompt_id=_objects([trial.prompt_id for trial in first]),
        prompt_sha256=_objects([trial.prompt_sha256 for trial in first]),
        category=_objects([trial.category or "all" for trial in first]),
        prompt_tokens=np.array([trial.prompt_tokens for trial in first], dtype=float),
        members=_objects([trial.members or (trial.prompt_id,) for trial in first]),
        identical=_objects([trial.identical for trial in first]),
        trials=_objects(prompts),
        **dict(zip(SUMMED, sums.T.copy(), strict=True)),
    )


def _sums(trials: Sequence[Trial]) -> Sequence[float | None]:
    """Times and tokens over the repeats of one prompt, in the order of SUMMED; None where one was not told."""
    values = [(*_TIMES(trial.times), trial.decode_tokens, trial.output_tokens) for trial in trials]
    if len(values) == 1:
        return values[0]
    return [None if None in each else sum(each) for each in zip(*values, strict=True)]


def _objects(values: Sequence[Any]) -> Objects:
    """One entry for each value, also where the values are sequences of one length."""
    return np.fromiter(values, dtype=object, count=len(values))


NO_ROWS = _rows([])


class DraftView:
    """The prompts that every gamma of one draft and the target alone have finished, in one order.

    Every speedup of the view weighs prompts by the policy's traffic mix where there is one; prompts of a category
    outside the mix are left out, and of those in it `missing` have no prompt here. A view is `complete` where none is
    missing and every arm decoded something: else there is no speedup to speak of.
    """

    def __init__(
        self,
        arms: Mapping[Arm, ArmRows],
        spec: str,
        trials: Sequence[Trial],
        texts: Sequence[Text],
        stored: StoredRun,
        policy: Policy,
    ) -> None:
        self.spec = spec
        self.draft = parse_draft(spec)
        config = stored.run.config
        asked = [arm for arm in arms if arm.draft == spec and arm.gamma in config.gamma]
        own = {arm.gamma: arms[arm] for arm in sorted(asked, key=lambda arm: arm.gamma or 0)}
        base = _of_categories(arm_of(arms, "baseline"), set(policy.mix) if policy.mix else None)
        self.prompts = shared_prompts([base, *own.values()])
        self.base = base.of(self.prompts)
        self.arms = {gamma: rows.of(self.prompts) for gamma, rows in own.items() if gamma is not None}
        self.weights = traffic_weights(list(self.base.category), policy.mix)
        self.missing = sorted(set(policy.mix or {}) - set(self.base.category))
        decoded = (self.paired(gamma, "decode").decoded for gamma in self.arms)
        self.complete = bool(self.prompts) and not self.missing and all(decoded)
        self.greedy = config.sampling.greedy
        # Greedy repeats are one and the same text, scored once.
        self.repeats = config.repeats
        # Replay speaks of the same prompts as the loop, or not at all.
        own_texts = {(text.prompt_id, text.repeat): text for text in texts if text.draft == spec}
        members = list(self.base.members)
        repeats = range(self.repeats)
        keys = [(prompt, 0 if self.greedy else r) for unit in members for r in repeats for prompt in unit]
        self.texts = [own_texts[key] for key in keys] if set(keys) <= set(own_texts) else []
        self._longest = min((text.longest for text in self.texts if text.longest is not None), default=math.inf)
        self._owner = np.repeat(np.arange(len(members)), [len(unit) * self.repeats for unit in members])
        self.batch = config.batch_size
        self._replayed: dict[int, Expected] = {}
        self._counts = {gamma: _by_trial(rows, gamma) for gamma, rows in self.arms.items()}
        self.points = stored.run.probe or ()
        # A server's rounds were probed with everything that the draft says, a model alone was not.
        layers = stored.run.drafts.get(spec, ModelFacts()).layers
        self.reader = spec if stored.run.on_server else reader_of(spec, layers)
        # Requests that overlap share their time, which then is nobody's cost.
        loads = {trial.arm.load for trial in trials}
        self.overlapping = any(load != Load() for load in loads)
        # Sequences side by side: of a batch, or clients; None where they come as they like.
        self.side_by_side = next((None if one.rate else one.concurrency for one in loads if one != Load()), self.batch)
        self.other_s = _other_s(stored.trials, spec)
        self.precision = stored.run.precision
        self.lossy = lossy_reason([t for t in trials if t.arm.draft == spec], self.precision)

    def replayed(self, gamma: int) -> Expected | None:
        """Expected counts at any gamma, for each prompt and repeat in order; None without stored positions, and beyond
        the gammas that they were scored for."""
        if not self.texts or gamma > self._longest:
            return None
        if gamma not in self._replayed:
            self._replayed[gamma] = replay(self.texts, gamma, self.draft.cutoff)
        return self._replayed[gamma]

    def windows(self, clients: int) -> list[list[int]]:
        """Places of the prompts as the target alone was asked for them, window by window; one window of all where that
        was under another load than `clients` at a time."""
        if self.side_by_side != clients or len(self.prompts) < clients:
            return [list(range(len(self.prompts)))]
        asked = [(t.stretch or 0, t.begun_s or 0.0, row) for row, each in enumerate(self.base.trials) for t in each]
        return [[row for _, _, row in group] for _, group in groupby(sorted(asked), key=lambda one: one[0])]

    def paired(self, gamma: int, metric: str) -> Paired:
        """Target alone and draft at `gamma`, prompt by prompt, weighed by the mix."""
        return paired(self.base, self.arms[gamma], metric, self.weights)

    def counts(self, gamma: int, chosen: np.ndarray | slice = slice(None)) -> Counts:
        """What the loop or the server counted at `gamma`, over the `chosen` prompts."""
        return pooled([one for prompt in np.arange(len(self.prompts))[chosen] for one in self._counts[gamma][prompt]])

    def rounds(self, gamma: int) -> Floats:
        """Rounds at `gamma` of each prompt, NaN where a server does not tell them."""
        told = [[one.rounds for one in prompt] for prompt in self._counts[gamma]]
        return np.array([math.nan if None in each else sum(filter(None, each)) for each in told], dtype=float)

    def by_prompt_counts(self, gamma: int) -> list[Counts]:
        return [pooled(each) for each in self._counts[gamma]]

    def counted_share(self, gamma: int) -> float:
        """Share of the texts at `gamma` that the counts are over: all of them unless a server tells too little."""
        each = [one for prompt in self._counts[gamma] for one in prompt]
        return len(basis(each)) / len(each)

    def by_prompt(self, values: Floats) -> Floats:
        sums = np.bincount(self._owner, weights=values, minlength=len(self.prompts))
        return np.asarray(sums, dtype=np.float64)

    @property
    def rate(self) -> float:
        """Tokens per second of the target alone, decoding."""
        return rate(self.base)


def _by_trial(rows: ArmRows, gamma: int) -> list[list[Counts]]:
    """Counts of every trial of each prompt. A server may draft more than `gamma` tokens, whatever it was told."""
    width = max([gamma, *(max(trial.drafted, default=0) for trials in rows.trials for trial in trials)])
    return [[trial_counts(trial, width) for trial in trials] for trials in rows.trials]


def traffic_weights(categories: Sequence[str], mix: Mapping[str, float] | None) -> Floats:
    """How much each prompt counts, so that each category has its share of requests; ones without a mix."""
    if not mix:
        return np.ones(len(categories))
    here = {name: categories.count(name) for name in set(categories)}
    total = sum(mix[name] for name in here)
    return np.array([mix[name] / total * len(categories) / here[name] for name in categories])


def arm_of(arms: Mapping[Arm, ArmRows], kind: ArmKind) -> ArmRows:
    return next((rows for arm, rows in arms.items() if arm.kind == kind), NO_ROWS)


def rate(rows: ArmRows) -> float:
    """Decoded tokens per second, totals over totals."""
    return float(rows.decode_tokens.sum() / rows.decode_s.sum())


def a_a(
    arms: Mapping[Arm, ArmRows], metric: str, mix: Mapping[str, float] | None = None, category: str | None = None
) -> Paired | None:
    """The target alone against itself, over the prompts that a speedup under `mix` is over and weighed as they are, or
    over one category's; None without a second arm, and where nothing was decoded."""
    kept = {category} if category is not None else set(mix) if mix else None
    base, again = (_of_categories(arm_of(arms, kind), kept) for kind in _BASELINES)
    shared = shared_prompts([base, again])
    if not shared:
        return None
    base = base.of(shared)
    weights = 1.0 if category is not None else traffic_weights(list(base.category), mix)
    found = paired(base, again.of(shared), metric, weights)
    return found if found.decoded else None


_BASELINES: tuple[ArmKind, ArmKind] = ("baseline", "baseline-again")


def _of_categories(rows: ArmRows, kept: Set[str] | None) -> ArmRows:
    return rows if kept is None else rows.take(np.array([name in kept for name in rows.category], dtype=bool))


def paired(base: ArmRows, other: ArmRows, metric: str, weights: Floats | float = 1.0) -> Paired:
    """Two arms over the same prompts in the same order, by the policy's metric."""
    if metric == "decode":
        columns = base.decode_s, base.decode_tokens, other.decode_s, other.decode_tokens
    else:
        columns = base.total_s, base.output_tokens, other.total_s, other.output_tokens
    return Paired(*(column * weights for column in columns))


def _other_s(trials: Sequence[Trial], spec: str) -> float:
    """Seconds of a round outside both models, from the warm-up trials, which no speedup counts. The rounds of a batch
    are shared by its sequences."""
    warm = [t for t in trials if t.warmup and t.arm.draft == spec and t.drafted]
    rounds = sum(len(t.drafted) / t.sequences for t in warm)
    return sum(t.times.other_s or 0.0 for t in warm) / rounds if rounds else 0.0


class Steady:
    """What the A/A arm shows under a policy's metric and mix."""

    def __init__(self, arms: Mapping[Arm, ArmRows], policy: Policy) -> None:
        self._arms, self._policy = arms, policy
        names = sorted(set(arm_of(arms, "baseline").category))
        whole = a_a(arms, policy.metric, policy.mix)
        self.excess = 0.0 if whole is None else excess_variance(whole)
        self._again = {name: a_a(arms, policy.metric, category=name) for name in names}

    def excess_of(self, category: str) -> float:
        """Variance of a category's log speedup beyond the scatter of its prompts. A machine may be slow for some
        minutes, which fall on few categories and hardly show over all; never less than over all."""
        again = self._again.get(category)
        return self.excess if again is None else max(self.excess, excess_variance(again))

    def baseline_ratio(self, category: str) -> float | None:
        """The target alone over itself, where the two differ by more than the scatter of prompts explains; else
        None."""
        again = self._again.get(category)
        if again is None:
            return None
        # Of many categories one differs by chance: all together are to be called steady as surely as one would be.
        found = speedup_interval(again, 1 - (1 - self._policy.confidence) / len(self._again))
        if found.low is None or found.high is None or found.low <= 1.0 <= found.high:
            return None
        return found.value


def kept_arms(arms: Mapping[Arm, ArmRows], run: RunRecord) -> dict[Arm, ArmRows]:
    """Without the gammas that were stopped: what remains has every prompt."""
    stopped = {(one.draft, one.gamma) for one in run.ruled_out}
    return {arm: rows for arm, rows in arms.items() if (arm.draft, arm.gamma) not in stopped}
