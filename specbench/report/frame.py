"""A stored run as a pandas frame: one row for each prompt and arm, repeats summed, disturbed attempts replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from specbench.records import Load, Trial
from specbench.store import StoredRun, TrialKey, trial_key

SUMMED = ("decode_s", "total_s", "draft_s", "verify_s", "other_s", "decode_tokens", "output_tokens")


def counted(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that count: no warm-ups, and of several attempts at one thing the last undisturbed one, or the
    last if all were disturbed."""
    best: dict[TrialKey, Trial] = {}
    for trial in trials:
        if trial.warmup:
            continue
        key = trial_key(trial)
        if key not in best or best[key].disturbed or not trial.disturbed:
            best[key] = trial
    return list(best.values())


def loads_of(stored: StoredRun) -> list[Load]:
    """The loads that trials were measured at, in the order in which they were asked for: the first is the one that the
    verdict is about. Every run in process has the one load."""
    config = stored.run.get("config", {})
    measured = list(dict.fromkeys(trial.arm.load for trial in stored.trials if not trial.warmup))
    asked = [(None, many) for many in config.get("concurrency") or []]
    asked += [(rate, None) for rate in config.get("rate") or []]

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


def prompt_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row per prompt (or batch) x arm of `counted` trials. Columns: prompt_id, prompt_sha256, category, kind, draft
    (str or None), gamma (int or None), prompt_tokens (the mean of a batch), members (prompt ids, of a batch several),
    times in seconds (missing where not told) and tokens summed over repeats, `identical` (None where not compared) and
    `trials`, the trials themselves."""
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for trial in trials:
        times = trial.times
        row = rows.setdefault(
            (trial.prompt_id, trial.arm),
            {
                "prompt_id": trial.prompt_id,
                "prompt_sha256": trial.prompt_sha256,
                "category": trial.category or "all",
                "kind": trial.arm.kind,
                "draft": trial.arm.draft,
                "gamma": trial.arm.gamma,
                "prompt_tokens": trial.prompt_tokens,
                "members": trial.members or (trial.prompt_id,),
                "identical": trial.identical,
                "trials": [],
                **dict.fromkeys(SUMMED, 0.0),
            },
        )
        spent = (times.decode_s, times.total_s, times.draft_s, times.verify_s, times.other_s)
        for name, value in zip(SUMMED, (*spent, trial.decode_tokens, trial.output_tokens), strict=True):
            row[name] = None if value is None or row[name] is None else row[name] + value
        row["trials"].append(trial)
    return pd.DataFrame(list(rows.values()))
