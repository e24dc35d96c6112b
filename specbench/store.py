"""A run folder: run.json (what was run, written atomically), trials.jsonl (append-only, one line a trial),
divergences.jsonl (one line for each trial whose greedy text left the target's own) and, of a run on a server,
stretches.jsonl (one line for each sequence of requests, with what the server counted meanwhile).

Everything specbench shows is recomputed from these. A trial is on disk before the next one starts, so a
killed run loses at most the trial in flight; a torn last line is dropped and said.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from specbench.errors import StoreError
from specbench.records import Arm, Caution, Counters, Divergence, Load, Stretch, Times, Told, Trial

SCHEMA = 1
RUN_FILE = "run.json"
TRIALS_FILE = "trials.jsonl"
DIVERGENCES_FILE = "divergences.jsonl"
STRETCHES_FILE = "stretches.jsonl"

STAMPED = re.compile(r"\d{8}T\d{6}Z-")

TrialKey = tuple[str, Arm, int]
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it lies on disk. `run` is run.json; `torn` says that the last line of trials.jsonl was unusable.
    `stretches` are those of a run on a server."""

    folder: Path
    run: dict[str, Any]
    trials: tuple[Trial, ...]
    torn: bool
    stretches: tuple[Stretch, ...] = ()

    @property
    def status(self) -> str:
        return str(self.run["status"])


def new_folder(out: Path, name: str) -> Path:
    """Make `out/<utc>-<name>` and return it. Raises StoreError where it cannot be made."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        folder = out / f"{stamp}-{name}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise StoreError("The output path is not a folder", where=str(out), cure="Choose another --out.") from None
        except OSError as error:
            raise StoreError(
                f"Cannot make a run folder: {error.strerror}", where=str(folder), cure="Choose another --out."
            ) from None
        return folder
    raise StoreError("A hundred runs in one second", where=str(out), cure="Choose another --name.")


def read_run(folder: Path) -> StoredRun:
    """Read a run folder. Raises StoreError naming the file and line that cannot be read."""
    if not (folder / RUN_FILE).is_file():
        raise StoreError(
            "Not a run folder: it has no run.json", where=str(folder), cure="Name a folder that specbench made."
        )
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"run.json is not JSON: {type(error).__name__}", where=str(folder), cure="Run again."
        ) from None
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        found = run.get("schema") if isinstance(run, dict) else None
        raise StoreError(
            f"run.json has schema {found!r}, this version reads {SCHEMA}",
            where=str(folder),
            cure="Use the specbench that wrote it, or run again.",
        )
    rows, torn = _read_lines(folder / TRIALS_FILE, trial_from_json)
    divergences = dict(_read_lines(folder / DIVERGENCES_FILE, _divergence_from_json)[0])
    greedy = run.get("config", {}).get("temperature") == 0.0
    stretches, _ = _read_lines(folder / STRETCHES_FILE, _stretch_from_json)
    return StoredRun(folder, run, tuple(_compared(rows, divergences) if greedy else rows), torn, tuple(stretches))


def trial_key(trial: Trial) -> TrialKey:
    """What a trial measured: two trials with one key are attempts at the same thing."""
    return trial.prompt_id, trial.arm, trial.repeat


def find_runs(out: Path) -> list[Path]:
    """Run folders directly below `out`, newest first. Their names start with the UTC time; a folder renamed to anything
    else, such as a kept example, is found only when it is named."""
    if not out.is_dir():
        return []
    found = (path.parent for path in out.glob(f"*/{RUN_FILE}"))
    return sorted((f for f in found if STAMPED.match(f.name)), key=lambda folder: folder.name, reverse=True)


class RunWriter:
    """The one writer of a run folder: holds its lock, appends trials, replaces run.json."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        from filelock import FileLock, Timeout

        self.folder = folder
        self.run = run
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                "Another specbench is writing to this run folder",
                where=str(folder),
                cure="Wait for it, or use --fresh.",
            ) from None
        # A torn last line would otherwise swallow the first trial that is appended after it.
        for name in (TRIALS_FILE, DIVERGENCES_FILE, STRETCHES_FILE):
            _cut_torn_line(folder / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        (self.folder / ".lock").unlink(missing_ok=True)

    def append(self, trial: Trial) -> None:
        """Put one trial on disk, whole, before returning."""
        self._append(TRIALS_FILE, asdict(trial))

    def append_divergence(self, key: TrialKey, divergence: Divergence) -> None:
        """Note where a trial's greedy text left that of the target alone."""
        prompt_id, arm, repeat = key
        row = {"prompt_id": prompt_id, "arm": asdict(arm), "repeat": repeat}
        self._append(DIVERGENCES_FILE, row | asdict(divergence))

    def append_stretch(self, stretch: Stretch) -> None:
        """Note what a server counted over a sequence of requests."""
        self._append(STRETCHES_FILE, asdict(stretch))

    def _append(self, name: str, row: dict[str, Any]) -> None:
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"Cannot write to the run folder: {error.strerror}",
                where=str(self.folder / name),
                cure="Free some space and run the same command again: it continues where it stopped.",
            ) from None

    def update(self, **changes: Any) -> None:
        """Change keys of run.json, atomically."""
        self.run.update(changes)
        temporary = self.folder / f"{RUN_FILE}.tmp"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(self.run, file, ensure_ascii=False, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / RUN_FILE)
        except OSError as error:
            raise StoreError(
                f"Cannot write run.json: {error.strerror}",
                where=str(self.folder),
                cure="Free some space and run again.",
            ) from None


def cautions_of(run: dict[str, Any]) -> list[Caution]:
    """The warnings that the run itself noticed, as stored."""
    return [Caution(**caution) for caution in run.get("warnings", [])]


def trial_from_json(row: dict[str, Any]) -> Trial:
    """The inverse of `asdict(trial)`; raises KeyError, TypeError or ValueError on anything else."""
    values = dict(row)
    values["arm"] = _arm(values["arm"])
    values["times"] = Times(**values["times"])
    values["drafted"] = tuple(int(count) for count in values["drafted"])
    values["accepted"] = tuple(int(count) for count in values["accepted"])
    values["members"] = tuple(values.get("members", ()))
    if values.get("diverged") is not None:
        values["diverged"] = Divergence(**values["diverged"])
    if values.get("told") is not None:
        survived = values["told"]["survived"]
        values["told"] = Told(**values["told"] | {"survived": None if survived is None else tuple(survived)})
    return Trial(**values)


def _arm(row: dict[str, Any]) -> Arm:
    """Runs that were stored before servers could be measured say nothing of a load."""
    return Arm(**row | {"load": Load(**row.get("load", {}))})


def _divergence_from_json(row: dict[str, Any]) -> tuple[TrialKey, Divergence]:
    key = (str(row["prompt_id"]), _arm(row["arm"]), int(row["repeat"]))
    margin, gap = row["margin"], row.get("gap")
    return key, Divergence(
        int(row["index"]), None if margin is None else float(margin), None if gap is None else float(gap)
    )


def _stretch_from_json(row: dict[str, Any]) -> Stretch:
    counters = row["counters"]
    if counters is not None:
        survived = counters["survived"]
        counters = Counters(**counters | {"survived": None if survived is None else tuple(survived)})
    return Stretch(**row | {"arm": _arm(row["arm"]), "counters": counters})


def _compared(trials: list[Trial], divergences: dict[TrialKey, Divergence]) -> list[Trial]:
    """Fill in `identical` and `diverged` of every trial whose prompt the target also did alone, at the same load."""
    alone = {(t.prompt_id, t.arm.load): t.output_sha256 for t in trials if t.arm.kind == "baseline" and not t.warmup}
    compared = []
    for trial in trials:
        key = (trial.prompt_id, trial.arm.load)
        if not trial.warmup and trial.arm.kind != "baseline" and key in alone:
            identical = trial.output_sha256 == alone[key]
            diverged = None if identical else divergences.get(trial_key(trial))
            trial = replace(trial, identical=identical, diverged=diverged)
        compared.append(trial)
    return compared


def _read_lines(path: Path, parse: Callable[[dict[str, Any]], Row]) -> tuple[list[Row], bool]:
    """Every line parsed, and whether the last one was torn and dropped."""
    if not path.is_file():
        return [], False
    rows: list[Row] = []
    for number, line, last in _lines(path):
        try:
            rows.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if last:
                return rows, True
            raise StoreError(
                f"Not a line that specbench wrote: {type(error).__name__}",
                where=f"{path}, line {number}",
                cure="Remove that line: the same command then measures it again.",
            ) from None
    return rows, False


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Number, text, and whether it is the last, for each line that is not blank."""
    pending: tuple[int, str] | None = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if pending is not None:
                yield (*pending, False)
            pending = (number, line)
    if pending is not None:
        yield (*pending, True)


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
