"""What a run takes: for a prompt in all its arms, and once. A plan and a brief say how long the next one will be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

import numpy as np

from specbench.analysis.contract import Pace
from specbench.analysis.frame import counted, loads_of
from specbench.records import Trial
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
        pace = self.pace(gammas, drafts, repeats)
        return pace.minutes(prompts)

    def pace(self, gammas: Sequence[int], drafts: int, repeats: int) -> Pace:
        """The same apart: for each prompt, and once."""
        one = 2 * self.base_s + drafts * sum(self.draft_at(gamma) for gamma in gammas)
        arms = 2 + drafts * len(gammas)
        return Pace(repeats * one * self.retries + self.untimed_s, arms * self.warm_up_s + self.probe_s)

    def draft_at(self, gamma: int) -> float:
        """At a gamma that was not timed: on the line between its neighbours, beyond them as at the nearest."""
        if not self.draft_s:
            return self.base_s
        timed = sorted(self.draft_s)
        return float(np.interp(gamma, timed, [self.draft_s[g] for g in timed]))


def pace_of(stored: StoredRun) -> Pace | None:
    """Of the same run again, over other prompts; None where nothing was timed."""
    cost = cost_of(stored, {trial.prompt_id for trial in stored.trials})
    config = stored.run.config
    pace = cost.pace(config.gamma, len(config.draft), config.repeats)
    return pace if pace.prompt_s > 0 else None


def cost_of(stored: StoredRun, prompts: set[str]) -> Cost:
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
