"""Going on with what an earlier session left: which run, whether it may be continued, and what of it is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench.bench import MAX_ATTEMPTS, Observer
from specbench.config import RunConfig
from specbench.cost.load import free_cores
from specbench.errors import StoreError
from specbench.records import Trial
from specbench.store import StoredRun, TrialKey, find_runs, new_folder, read_run, trial_key


def unfinished(config: RunConfig, kind: str, mode: str) -> StoredRun | None:
    """The newest unfinished run of this very configuration; None to start anew."""
    if mode == "fresh":
        return None
    for folder in find_runs(Path(config.out)):
        try:
            stored = read_run(folder)
        except StoreError:
            continue
        same = stored.run.get("fingerprint") == config.fingerprint() and stored.run.get("command") == kind
        if stored.status != "finished" and same:
            return stored
    if mode == "resume":
        raise StoreError(
            "No unfinished run with this configuration", where=config.out, cure="Leave out --resume to start one."
        )
    return None


def threads_of(config: RunConfig, earlier: StoredRun | None) -> int:
    """CPU threads of a run: as the user says, as in the session that began it, or as many as are free."""
    if config.threads is not None:
        return config.threads
    return free_cores() if earlier is None else int(earlier.run["provenance"]["threads"] or 1)


def opened(
    config: RunConfig, now: dict[str, Any], earlier: StoredRun | None, observer: Observer
) -> tuple[Path, dict[str, Any]]:
    """Where the run goes and the run.json it goes on with, `now` if it is new; refuses to continue what was begun in
    another setting."""
    if earlier is None:
        return new_folder(Path(config.out), config.name or str(now["command"])), now
    observer.say(f"Continuing {earlier.folder}")
    same_setting(earlier.run, now, earlier.folder)
    # What is not measured, such as the policy, may change.
    return earlier.folder, earlier.run | {"config": now["config"]}


def same_setting(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Refuse to mix two measurements in one folder, and say what differs."""
    was, now = old["provenance"], new["provenance"]
    differs = {
        "the workload": old["workload"]["sha256"] != new["workload"]["sha256"],
        "the target": old["target"] != new["target"],
        "a draft": old["drafts"] != new["drafts"],
        "the machine": was["hardware"] != now["hardware"],
        "the number of threads": was["threads"] != now["threads"],
        "a library version": was["versions"] != now["versions"],
    }
    changed = [name for name, different in differs.items() if different]
    if changed:
        raise StoreError(
            f"{' and '.join(changed)} changed since this run began".capitalize(),
            where=str(folder),
            cure="Use --fresh to start a new run.",
        )


def progress_of(trials: Sequence[Trial]) -> tuple[dict[TrialKey, int], set[TrialKey]]:
    """How often each thing was tried, and which need no further try."""
    attempts: dict[TrialKey, int] = defaultdict(int)
    done: set[TrialKey] = set()
    for trial in trials:
        if trial.warmup:
            continue
        key = trial_key(trial)
        attempts[key] += 1
        if not trial.disturbed or attempts[key] >= MAX_ATTEMPTS:
            done.add(key)
    return attempts, done
