"""A run folder: run.json (what was run, written atomically), trials.jsonl (append-only, one line a trial),
divergences.jsonl (one line for each trial whose greedy text left the target's own) and, of a run on a server,
stretches.jsonl (one line for each sequence of requests, with what the server counted meanwhile).

Everything specbench shows is recomputed from these. A trial is on disk before the next one starts, so a
killed run loses at most the trial in flight; a torn last line is dropped and said.
"""

from __future__ import annotations

from specbench.store.files import replace_file, unwritable
from specbench.store.folders import find_run, find_runs, new_folder, require_disk
from specbench.store.lines import check_trial
from specbench.store.locks import busy, in_use, one_at_a_time
from specbench.store.record import OUT_OF_MEMORY, RUN_FILE, left_out, read_record, record_json
from specbench.store.stored import DIVERGENCES_FILE, TRIALS_FILE, StoredRun, TrialKey, read_run, trial_key
from specbench.store.writer import RunWriter

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
