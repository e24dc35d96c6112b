"""Going on with what an earlier session left: which run, whether it may be continued, and what of it is done."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from specbench.backends.base import Observer
from specbench.config import RunConfig
from specbench.cost.load import free_cores
from specbench.errors import StoreError
from specbench.models.prompts import changed_encoding
from specbench.records import Arm, Trial, warned
from specbench.run.record import HASHED, hardware, hashed, stored_config
from specbench.run_record import ModelFacts, RunRecord, SessionFacts
from specbench.store import (
    RUN_FILE,
    StoredRun,
    TrialKey,
    busy,
    find_runs,
    in_use,
    new_folder,
    read_record,
    read_run,
    trial_key,
)
from specbench.text import clean

# A disturbed trial is measured so often at most.
MAX_ATTEMPTS = 3

# What may change between two sessions of a run, and is said: it seldom matters, and nobody can know.
NAMED = {"commit": "commit of specbench", "platform": "system"}
# As much memory may come and go with a kernel.
SAME_MEMORY = 0.01


def unfinished(config: RunConfig, kind: str, mode: str) -> StoredRun | None:
    """The newest unfinished run of this very configuration; None to start anew. Raises StoreError where another process
    is at it, where it cannot be read, and where `mode` demands one and there is none."""
    if mode == "fresh":
        return None
    for folder, run in _unfinished(config):
        if run.get("fingerprint") == config.fingerprint() and run.get("command") == kind:
            if in_use(folder):
                raise busy(folder)
            return read_run(folder)
    if mode == "resume":
        other = _another(config, kind)
        raise StoreError(
            "No unfinished run with this configuration" + ("" if other is None else f". {other[0]} has {other[1]}"),
            where=config.out,
            hint="Leave out --resume to start one." if other is None else "Give what it has, or leave out --resume.",
        )
    return None


def _unfinished(config: RunConfig) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of unfinished runs, newest first, and their run.json as far as it is one."""
    for folder in find_runs(Path(config.out)):
        try:
            run = json.loads((folder / RUN_FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(run, dict) and run.get("status") != "finished":
            yield folder, run


def _another(config: RunConfig, kind: str) -> tuple[Path, str] | None:
    """The newest unfinished run that has another configuration, and how that differs: `max_new_tokens: 12 -> 7`."""
    for folder, run in _unfinished(config):
        if isinstance(run.get("config"), dict) and isinstance(run.get("command"), str):
            found = differences(run["config"] | {"command": run["command"]}, config, kind)
            if found:
                return folder, ", ".join(found)
    return None


def differences(was: Mapping[str, Any], config: RunConfig, kind: str) -> list[str]:
    """`key: was -> is` for each key that decides what is measured. `was` is a stored configuration with its command,
    `kind` the command now. Of a system prompt only that it is another."""
    now = json.loads(json.dumps(stored_config(config).as_dict())) | {"command": kind}
    found = []
    for key in ("command", *config.identity()):
        old, new = was.get(key, "not there"), now[key]
        if key == "system_prompt":
            if _hashed(old) != _hashed(new):
                found.append(f"{key}: another text")
        elif old != new:
            found.append(f"{key}: {_shown(old)} -> {_shown(new)}")
    return found


def _hashed(text: object) -> object:
    """A system prompt as it is stored without --keep-text, however it was stored."""
    return text if not isinstance(text, str) or text.startswith(HASHED) else hashed(text)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return clean(json.dumps(value, ensure_ascii=False))
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:12]  # a hash
    return "none" if value is None else clean(value)


def threads_of(config: RunConfig, earlier: StoredRun | None) -> int:
    """CPU threads of a run: as the user says, as in the session that began it, or as many as are free."""
    if config.threads is not None:
        return config.threads
    return free_cores() if earlier is None else earlier.run.provenance.threads or 1


def opened(config: RunConfig, now: RunRecord, earlier: StoredRun | None, observer: Observer) -> tuple[Path, RunRecord]:
    """Where the run goes and the run.json it goes on with, `now` if it is new; refuses to continue what was begun in
    another setting, and says which unfinished run is left as it is."""
    if earlier is None:
        other = _another(config, now.command)
        if other is not None:
            observer.say(f"Starting anew. {other[0]} is unfinished too, with another configuration ({other[1]})")
        return new_folder(Path(config.out), config.name or now.command), now
    observer.say(f"Continuing {earlier.folder}")
    if earlier.torn:
        observer.say("The last line of trials.jsonl is torn, as by a kill: dropped, and measured again")
    same_setting(earlier.run, now, earlier.folder)
    # What is not measured, such as the policy, may change.
    return earlier.folder, replace(_joined(earlier.run, now), config=now.config)


def _joined(old: RunRecord, new: RunRecord) -> RunRecord:
    """run.json with one more session, and a warning where the sessions differ in what NAMED lists."""
    sessions = (*(old.sessions or (_session(old),)), _session(new))
    several = {name: list(dict.fromkeys(str(getattr(one, name)) for one in sessions)) for name in NAMED}
    differ = [f"{NAMED[name]} ({', '.join(found)})" for name, found in several.items() if len(found) > 1]
    warnings = [warning for warning in old.warnings if warning.code != "mixed-sessions"]
    if differ:
        caution = warned(
            "mixed-sessions",
            f"the run was measured in {len(sessions)} sessions, which differ in the {' and the '.join(differ)}",
            "Run again with --fresh if that may matter.",
        )
        warnings.append(caution)
    return replace(old, sessions=sessions, warnings=tuple(warnings))


def _session(run: RunRecord) -> SessionFacts:
    was = run.provenance
    return SessionFacts(was.started, was.argv, was.commit, was.platform)


def same_setting(old: RunRecord, new: RunRecord, folder: Path) -> None:
    """Refuse to mix two measurements in one folder, and say what differs and how."""
    was, now = old.provenance, new.provenance
    drafts = [_changed(asdict(old.drafts.get(name, ModelFacts())), asdict(facts)) for name, facts in new.drafts.items()]
    before, after = (run.workload for run in (old, new))
    encoding = changed_encoding(before.encoded, after.encoded)
    differs = {
        "the workload": _changed({"sha256": before.sha256}, {"sha256": after.sha256}),
        "the prompts' tokens": [] if encoding is None else [encoding],
        "the target": _changed(asdict(old.target), asdict(new.target)),
        "a draft": [change for changes in drafts for change in changes],
        "the machine": _changed(asdict(was.hardware), asdict(now.hardware)),
        "the number of threads": _changed({"threads": was.threads}, {"threads": now.threads}),
        "a library version": _changed(was.versions, now.versions),
    }
    changed = [name for name, found in differs.items() if found]
    if changed:
        what = " and ".join(changed)
        how = ", ".join(change for changes in differs.values() for change in changes)
        raise StoreError(
            f"{what[0].upper()}{what[1:]} changed since this run began: {how}",
            where=str(folder),
            hint="Undo that and run the same command again, or use --fresh to start a new run.",
        )


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: was -> is` for each key of the two that differs."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        was, now = old.get(key), new.get(key)
        close = key == "memory_bytes" and was and now and math.isclose(was, now, rel_tol=SAME_MEMORY)
        if was != now and not close:
            found.append(f"{key}: {_shown(was)} -> {_shown(now)}")
    return found


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


def pace_of(config: RunConfig, arms: Sequence[Arm]) -> tuple[float | None, str | None]:
    """Seconds a token, prompts included, over `arms` alike, in the newest run below the same folder of the same models,
    engine and machine that measured them all; and that run."""
    now = hardware(None)
    for folder in find_runs(Path(config.out)):
        try:
            run = read_record(folder)
            was, machine = run.config, run.provenance.hardware
            same = all(getattr(was, key) == getattr(config, key) for key in ("target", "engine", "batch_size"))
            same = same and config.dtype in (was.dtype, run.precision)
            if not same or (machine.cpu, machine.physical_cores) != (now.cpu, now.physical_cores):
                continue
            stored = read_run(folder)
        except StoreError:
            continue
        paces = []
        for arm in arms:
            trials = [trial for trial in stored.trials if trial.arm == arm and not trial.warmup]
            tokens = sum(trial.output_tokens for trial in trials)
            if tokens:
                paces.append(sum(trial.times.total_s for trial in trials) / tokens)
        if arms and len(paces) == len(arms):
            return sum(paces) / len(paces), str(folder)
    return None, None
