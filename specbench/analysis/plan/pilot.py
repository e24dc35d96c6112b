"""What a stored run of a few prompts tells the next one: how much prompts differ, and what a prompt takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

import numpy as np

from specbench.analysis.frame import ArmRows, by_arm, counted, loads_of, main_trials, shared_prompts
from specbench.analysis.stopped import kept_arms
from specbench.analysis.views import arm_of, paired
from specbench.decision.holdout import Choice, choose_gamma
from specbench.decision.plan import influence
from specbench.errors import StoreError
from specbench.records import Arm, Policy, Trial
from specbench.store import StoredRun

# A run repeats about a tenth of its trials at most.
MAX_RETRIES = 1.1


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes, seconds. `base_s` is one generation by the target alone and `draft_s` one with a draft, by
    gamma (empty: not known). Each generation happens `retries` times; `untimed_s` goes by for each prompt between
    trials; `warm_up_s` is one arm's warm-up; `probe_s` happens once."""

    base_s: float
    draft_s: Mapping[int, float]
    retries: float = 1.0
    untimed_s: float = 0.0
    warm_up_s: float = 0.0
    probe_s: float = 0.0

    def minutes(self, prompts: int, gammas: Sequence[int], drafts: int, repeats: int) -> float:
        """The whole run: the target alone twice, and every draft at every gamma."""
        one = 2 * self.base_s + drafts * sum(self.draft_at(gamma) for gamma in gammas)
        arms = 2 + drafts * len(gammas)
        per_prompt = repeats * one * self.retries + self.untimed_s
        return (prompts * per_prompt + arms * self.warm_up_s + self.probe_s) / 60

    def draft_at(self, gamma: int) -> float:
        """At a gamma that was not timed: on the line between its neighbours, beyond them as at the nearest."""
        if not self.draft_s:
            return self.base_s
        timed = sorted(self.draft_s)
        return float(np.interp(gamma, timed, [self.draft_s[g] for g in timed]))


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the pilot's prompts: how they decide the log speedup [n], and what they take. `noise` [n] is the same for
    the target alone against itself; None without that arm."""

    n: int
    speedup: float
    influence: np.ndarray
    noise: np.ndarray | None
    slower_share: float
    cost: Cost


@dataclass(frozen=True, slots=True)
class Pilot:
    """One draft of a pilot, as a whole and by category. `gammas` are those that the speedup was chosen among."""

    draft: str
    drafts: int
    gammas: tuple[int, ...]
    repeats: int
    aa_log_ratio: float | None
    whole: Part
    categories: dict[str, Part]


def read_pilot(stored: StoredRun, policy: Policy, gammas: Sequence[int] | None) -> Pilot:
    """The draft of a run whose prompts differ most, at those of `gammas` that it was timed at (all, where none was).

    Raises StoreError on a run without a wall clock, and where fewer than two prompts have met every arm.
    """
    if stored.run.command == "replay":
        raise StoreError(
            "This run measured acceptance only, no wall clock: it cannot say how long a prompt takes",
            where=str(stored.folder),
            hint="Measure a few prompts first: specbench sweep --limit 16.",
        )
    measured, specs = kept_arms(by_arm(main_trials(stored)), stored.run), stored.run.config.draft
    found = [pilot for spec in specs if (pilot := _pilot(stored, measured, spec, policy, gammas)) is not None]
    if not found:
        raise StoreError(
            "Fewer than 2 prompts were measured in every arm, and how much prompts differ takes 2",
            where=str(stored.folder),
            hint="Measure some more (16 make a fair pilot), or plan from assumptions with --spread.",
        )
    return max(found, key=lambda pilot: float(pilot.whole.influence.std()))


def _pilot(
    stored: StoredRun, measured: Mapping[Arm, ArmRows], spec: str, policy: Policy, gammas: Sequence[int] | None
) -> Pilot | None:
    arms = {arm.gamma: rows for arm, rows in measured.items() if arm.draft == spec and arm.gamma is not None}
    timed = sorted(arms)
    base, again = arm_of(measured, "baseline"), arm_of(measured, "baseline-again")
    # A prompt that decoded nothing in an arm has no seconds per token.
    shared = shared_prompts(rows.take(rows.decode_tokens > 0) for rows in (base, *arms.values())) if arms else []
    if len(shared) < 2:
        return None
    asked = [gamma for gamma in timed if gamma in (gammas or timed)] or timed
    repeats = stored.run.config.repeats

    def part(prompts: list[str]) -> Part:
        choice = _choice(base.of(prompts), {gamma: arms[gamma].of(prompts) for gamma in asked}, policy)
        noise = None
        if set(prompts) <= set(again.prompt_id):
            noise = influence(paired(base.of(prompts), again.of(prompts), policy.metric))
        return Part(
            n=len(prompts),
            speedup=choice.paired.speedup,
            influence=influence(choice.paired),
            noise=noise,
            slower_share=float((choice.paired.by_prompt < policy.slower_than).mean()),
            cost=_cost(stored, set(prompts), repeats),
        )

    aa = None
    if set(shared) <= set(again.prompt_id):
        aa = float(np.log(paired(base.of(shared), again.of(shared), policy.metric).speedup))
    category = dict(zip(base.prompt_id, base.category, strict=True))
    return Pilot(
        draft=spec,
        drafts=len(stored.run.config.draft),
        gammas=tuple(asked),
        repeats=repeats,
        aa_log_ratio=aa,
        whole=part(shared),
        categories={
            name: part([prompt for prompt in shared if category[prompt] == name])
            for name in sorted({category[prompt] for prompt in shared})
        },
    )


def _choice(base: ArmRows, arms: Mapping[int, ArmRows], policy: Policy) -> Choice:
    return choose_gamma({gamma: paired(base, rows, policy.metric) for gamma, rows in arms.items()})


def _cost(stored: StoredRun, prompts: set[str], repeats: int) -> Cost:
    """Means over the trials of `prompts`; what happens once is that of the whole run."""
    load = loads_of(stored)[0]
    trials = [trial for trial in stored.trials if not trial.warmup and trial.arm.load == load]
    mine = [trial for trial in trials if trial.prompt_id in prompts]
    drafted: dict[int, list[float]] = {}
    for trial in counted(mine):
        if trial.arm.gamma is not None:
            drafted.setdefault(trial.arm.gamma, []).append(trial.times.total_s)
    probe_s = sum(point.median_s * (point.passes + 1) for point in stored.run.probe or ())
    return Cost(
        base_s=_mean_s(trial for trial in counted(mine) if trial.arm.gamma is None),
        draft_s={gamma: fmean(spent) for gamma, spent in drafted.items()},
        retries=min(MAX_RETRIES, len(trials) / max(len(counted(trials)), 1)),
        untimed_s=_untimed_s(stored, probe_s),
        warm_up_s=_mean_s(trial for trial in stored.trials if trial.warmup),
        probe_s=probe_s,
    )


def _mean_s(trials: Iterable[Trial]) -> float:
    spent = [trial.times.total_s for trial in trials]
    return fmean(spent) if spent else 0.0


def _untimed_s(stored: StoredRun, probe_s: float) -> float:
    """Seconds for each prompt outside trials and probe: scoring, mostly. 0 where the run's own clock does not tell."""
    stamps = [stored.run.provenance.started, stored.run.provenance.finished]
    # A run that was continued stood still in between.
    if None in stamps or len(list(stored.folder.glob("positions-*.arrow"))) > 1:
        return 0.0
    started, finished = (datetime.fromisoformat(str(stamp)) for stamp in stamps)
    elapsed_s = (finished - started).total_seconds()
    timed_s = sum(trial.times.total_s for trial in stored.trials) + probe_s
    prompts = len({trial.prompt_id for trial in stored.trials if not trial.warmup})
    # As much again as the trials would be a suspended machine, not scoring.
    return (elapsed_s - timed_s) / prompts if 0 < elapsed_s - timed_s < timed_s else 0.0
