"""A run folder: run.json (what was run, written atomically), trials.jsonl (append-only, one line a trial),
divergences.jsonl (one line for each trial whose greedy text left the target's own) and, of a run on a server,
stretches.jsonl (one line for each sequence of requests, with what the server counted meanwhile).

Everything specbench shows is recomputed from these. A trial is on disk before the next one starts, so a
killed run loses at most the trial in flight; a torn last line is dropped and said.
"""

from __future__ import annotations

from specbench.store.folders import (
    busy,
    find_run,
    find_runs,
    in_use,
    new_folder,
    one_at_a_time,
    replace_file,
    require_disk,
    unwritable,
)
from specbench.store.record import OUT_OF_MEMORY, RUN_FILE, check_trial, left_out, read_record, record_json
from specbench.store.runs import DIVERGENCES_FILE, TRIALS_FILE, RunWriter, StoredRun, TrialKey, read_run, trial_key

__all__ = [
    "DIVERGENCES_FILE",
    "OUT_OF_MEMORY",
    "RUN_FILE",
    "TRIALS_FILE",
    "RunWriter",
    "StoredRun",
    "TrialKey",
    "busy",
    "check_trial",
    "find_run",
    "find_runs",
    "in_use",
    "left_out",
    "new_folder",
    "one_at_a_time",
    "read_record",
    "read_run",
    "record_json",
    "replace_file",
    "require_disk",
    "trial_key",
    "unwritable",
]
