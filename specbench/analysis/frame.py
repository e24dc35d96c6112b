"""A stored run by arm: columns with a row for each prompt, repeats summed, disturbed attempts replaced.

Not pandas, which would take longer to import than all of this takes to compute; notebook.py makes frames for notebooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench.decision.interval import Floats
from specbench.records import Arm, Load, Trial
from specbench.store import StoredRun, TrialKey, trial_key

Objects = NDArray[np.object_]

SUMMED = ("decode_s", "total_s", "draft_s", "verify_s", "other_s", "decode_tokens", "output_tokens")
_TIMES = attrgetter(*SUMMED[:5])


def counted(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that count: no warm-ups, and of several attempts at one thing the last undisturbed one, or the
    last if all were disturbed."""
    best: dict[TrialKey, Trial] = {}
    for trial in trials:
        if trial.warmup:
            continue
        key = trial_key(trial)
        before = best.setdefault(key, trial)
        if before is not trial and (before.disturbed or not trial.disturbed):
            best[key] = trial
    return list(best.values())


def loads_of(stored: StoredRun) -> list[Load]:
    """The loads that trials were measured at, in the order in which they were asked for: the first is the one that the
    verdict is about. Every run in process has the one load."""
    config = stored.run.config
    measured = list(dict.fromkeys(trial.arm.load for trial in stored.trials if not trial.warmup))
    asked: list[tuple[float | None, int | None]] = [(None, many) for many in config.concurrency]
    asked += [(rate, None) for rate in config.rate]

    def place(load: Load) -> int:
        key = (load.rate, None if load.rate is not None else load.concurrency)
        return asked.index(key) if key in asked else len(asked)

    return sorted(measured, key=place) or [Load()]


def at_load(trials: Iterable[Trial], load: Load) -> list[Trial]:
    """The counted trials of one load."""
    return [trial for trial in counted(trials) if trial.arm.load == load]


def main_trials(stored: StoredRun) -> list[Trial]:
    """The counted trials at the run's first load, which the verdict and every table but that of loads are about."""
    return at_load(stored.trials, loads_of(stored)[0])


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
    """Ids of the prompts that all of these arms have, sorted."""
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
