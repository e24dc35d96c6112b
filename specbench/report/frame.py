"""A stored run as a pandas frame: one row for each prompt and arm, repeats summed, disturbed attempts replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from specbench.records import Trial
from specbench.store import TrialKey, trial_key

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


def prompt_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row per prompt (or batch) x arm of `counted` trials. Columns: prompt_id, category, kind, draft (str or None),
    gamma (int or None), prompt_tokens (the mean of a batch), members (prompt ids, of a batch several), times in seconds
    and tokens summed over repeats, `identical` (None where not compared) and `rounds`, the list of all its rounds."""
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for trial in trials:
        times = trial.times
        row = rows.setdefault(
            (trial.prompt_id, trial.arm),
            {
                "prompt_id": trial.prompt_id,
                "category": trial.category or "all",
                "kind": trial.arm.kind,
                "draft": trial.arm.draft,
                "gamma": trial.arm.gamma,
                "prompt_tokens": trial.prompt_tokens,
                "members": trial.members or (trial.prompt_id,),
                "identical": trial.identical,
                "rounds": [],
                **dict.fromkeys(SUMMED, 0.0),
            },
        )
        spent = (times.decode_s, times.total_s, times.draft_s, times.verify_s, times.other_s)
        for name, value in zip(SUMMED, (*spent, trial.decode_tokens, trial.output_tokens), strict=True):
            row[name] += value
        row["rounds"] += trial.rounds
    return pd.DataFrame(list(rows.values()))
