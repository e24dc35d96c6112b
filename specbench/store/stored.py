"""A whole run, as it is read from the disk."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from specbench.records import Arm, Divergence, Trial, Window
from specbench.run_record import RunRecord
from specbench.store.lines import divergence_of, read_lines, stretch_of, trial_of
from specbench.store.record import left_out, read_record

TRIALS_FILE = "trials.jsonl"
DIVERGENCES_FILE = "divergences.jsonl"
STRETCHES_FILE = "stretches.jsonl"

TrialKey = tuple[str, Arm, int]

_NAMES = [field.name for field in fields(Trial)]
_BEFORE = attrgetter(*_NAMES[: _NAMES.index("identical")])
_AFTER = attrgetter(*_NAMES[_NAMES.index("diverged") + 1 :])


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it lies on disk. `run` is run.json; `torn` says that the last line of trials.jsonl was unusable.
    `stretches` are those of a run on a server."""

    folder: Path
    run: RunRecord
    trials: tuple[Trial, ...]
    torn: bool
    stretches: tuple[Window, ...] = ()

    @property
    def status(self) -> str:
        return self.run.status


def read_run(folder: Path) -> StoredRun:
    """Read a run folder. Raises StoreError naming the file and line that cannot be read."""
    run = read_record(folder)
    rows, torn = read_lines(folder / TRIALS_FILE, partial(trial_of, max_new_tokens=run.config.max_new_tokens))
    # What was measured of a prompt before memory ran out on it stays on disk, and counts in no arm.
    out = left_out(run)
    rows = [row for row in rows if row.warmup or row.prompt_id not in out]
    divergences = dict(read_lines(folder / DIVERGENCES_FILE, divergence_of)[0])
    greedy = run.config.sampling.greedy
    stretches, _ = read_lines(folder / STRETCHES_FILE, stretch_of)
    return StoredRun(folder, run, tuple(_compared(rows, divergences) if greedy else rows), torn, tuple(stretches))


def trial_key(trial: Trial) -> TrialKey:
    """What a trial measured: two trials with one key are attempts at the same thing."""
    return trial.prompt_id, trial.arm, trial.repeat


def _compared(trials: list[Trial], divergences: dict[TrialKey, Divergence]) -> list[Trial]:
    """Fill in `identical` and `diverged` of every trial whose prompt the target also did alone, at the same load."""
    alone = {(t.prompt_id, t.arm.load): t.output_sha256 for t in trials if t.arm.kind == "baseline" and not t.warmup}
    compared = []
    for trial in trials:
        key = (trial.prompt_id, trial.arm.load)
        if not trial.warmup and trial.arm.kind != "baseline" and key in alone:
            identical = trial.output_sha256 == alone[key]
            diverged = None if identical else divergences.get(trial_key(trial))
            # dataclasses.replace takes twice as long, and this is done to nearly every trial.
            values: list[Any] = [*_BEFORE(trial), identical, diverged, *_AFTER(trial)]
            trial = Trial(*values)
        compared.append(trial)
    return compared
