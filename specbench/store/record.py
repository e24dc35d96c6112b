"""What the files of a run folder hold, as it is read from the disk and written to it, with the same checks for both:
run.json, and files of one JSON object a line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from operator import lt
from pathlib import Path
from typing import Any, TypeVar

from specbench.config import POLICY_SETTINGS, RUN_SETTINGS
from specbench.errors import StoreError
from specbench.kinds import MAX_GAMMA
from specbench.records import MOST_DRAFTED, Arm, Count, Divergence, Number, Trial, Window
from specbench.run_record import SCHEMA, RunRecord
from specbench.validation import read_json, strict_json, why_not

RUN_FILE = "run.json"

# Beyond anything that was ever written, and below what would not fit into memory.
LARGEST_RECORD = 64 << 20

# How the reason begins of a prompt that was left out because memory ran out on it.
OUT_OF_MEMORY = "out of memory"

# Without these a verdict would be read from defaults. Newer settings may be missing: their default is what was done.
_NEEDED = ("target", "draft", "gamma", "temperature", "repeats", "batch_size", "policy")
# An environment variable need not be here, and a probe may have no draft.
_UNCHECKED = ("api_key_env", "draft")


def read_record(folder: Path) -> RunRecord:
    """run.json, of a schema that this version knows. Raises StoreError."""
    try:
        if not (folder / RUN_FILE).is_file():
            raise StoreError(
                "Not a run folder: it has no run.json", where=str(folder), hint="Name a folder that specbench made."
            )
        if (folder / RUN_FILE).stat().st_size > LARGEST_RECORD:
            raise ValueError(f"larger than {LARGEST_RECORD >> 20} MiB")
        data = (folder / RUN_FILE).read_bytes()
        plain = strict_json(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"run.json is not JSON: {why_not(error)}", where=str(folder), hint="Run again.") from None
    except OSError as error:
        raise StoreError(
            f"Cannot read run.json: {error.strerror}", where=str(folder), hint="Check the path and its permissions."
        ) from None
    found = plain.get("schema") if isinstance(plain, dict) else None
    if isinstance(found, bool) or found != SCHEMA:
        raise StoreError(
            f"run.json has {f'schema {found}' if isinstance(found, int) else 'no schema'}, this version reads {SCHEMA}",
            where=str(folder),
            hint="Use the specbench that wrote it, or run again.",
        )
    try:
        return _checked(data, plain)
    except ValueError as error:
        raise StoreError(
            f"run.json is not one that specbench wrote: {error}",
            where=str(folder),
            hint="Undo the change, use the specbench that wrote it, or run again.",
        ) from None


def record_json(record: RunRecord) -> bytes:
    """What run.json holds. Raises ValueError where it could not be read again."""
    data = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, indent=1).encode()
    _checked(data, strict_json(data))
    return data


def _checked(data: bytes, plain: Mapping[str, Any]) -> RunRecord:
    """The record that `data`, parsed as `plain`, holds. ValueError: `config.gamma is text, not a list`."""
    record = read_json(RunRecord, data, "it")
    missing = [key for key in _NEEDED if key not in plain["config"]]
    if missing:
        raise ValueError(f"it lacks config.{missing[0]}")
    for settings, values, place, what in (
        (RUN_SETTINGS, plain["config"], "config", "configuration"),
        (POLICY_SETTINGS, plain["config"]["policy"], "config.policy", "policy"),
    ):
        for key, value in values.items():
            try:
                if key in settings and key not in _UNCHECKED:
                    settings[key].read(value)
            except ValueError:  # its words quote the value
                raise ValueError(f"{place}.{key} is not what a {what} may hold") from None
    for number, warning in enumerate(record.warnings):
        if not isinstance(warning.values.get("said"), str):
            raise ValueError(f"warnings[{number}] says nothing")
    for point in record.probe or ():
        if min(point.median_s, point.low_s, point.high_s, point.tokens, point.batch) <= 0:
            raise ValueError("probe has a time, width or batch that is not above 0")
        if point.context and point.tokens > 2 * MAX_GAMMA:
            raise ValueError("probe has a width that no round has")
    encoded = record.workload.encoded
    if encoded is not None and encoded.now is not None:
        try:
            datetime.fromisoformat(encoded.now)
        except ValueError:
            raise ValueError("workload.encoded.now is not a time") from None
    return record


def left_out(run: RunRecord) -> set[str]:
    return {one.id for one in run.workload.skipped if one.reason.startswith(OUT_OF_MEMORY)}


# Beyond anything that was ever written, and below what would take forever.
LONGEST_LINE = 64 << 20

Row = TypeVar("Row")


def read_lines(path: Path, parse: Callable[[bytes], Row]) -> tuple[list[Row], bool]:
    """Every line parsed, and whether the last one was torn and dropped: it has no line end, since a line is written
    with its end at once. Raises StoreError naming the line that cannot be read."""
    if not path.is_file():
        return [], False
    rows: list[Row] = []
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST_LINE:
                        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB")
                    return rows, True
                if line.strip():
                    rows.append(parse(line))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"Not a line that specbench wrote: {why_not(error)}",
            where=f"{path}, line {number}",
            hint="Remove that line: the same command then measures it again.",
        ) from None
    except OSError as error:
        raise StoreError(
            f"Cannot read the run folder: {error.strerror}", where=str(path), hint="Check the disk and its permissions."
        ) from None
    return rows, False


_CLOCK_S = 1e-6  # by which parts of a time, rounded, may exceed the whole


def trial_of(line: bytes, max_new_tokens: int | None = None) -> Trial:
    """The inverse of `asdict(trial)`; raises ValueError on anything else, and on numbers that no trial has, among them
    more tokens than the run allowed an answer where that is given (a server is warmed up with its own number)."""
    trial = read_json(Trial, line, "the line")
    # A loop or server that drafts more than it was asked runs over by a round at most, and is named elsewhere.
    most = None if max_new_tokens is None or trial.warmup else (max_new_tokens + MAX_GAMMA) * trial.sequences
    if most is not None and trial.output_tokens > most:
        raise ValueError("more tokens than max_new_tokens allows")
    _check_arm(trial.arm)
    times = trial.times
    if len(trial.drafted) != len(trial.accepted):
        raise ValueError("drafted and accepted are not of one length")
    if any(map(lt, trial.drafted, trial.accepted)):
        raise ValueError("more is accepted than drafted")
    told = trial.told
    if told is not None and None not in (told.drafted, told.accepted) and (told.accepted or 0) > (told.drafted or 0):
        raise ValueError("told: more is accepted than drafted")
    if max(trial.drafted, default=0) > MOST_DRAFTED:
        raise ValueError(f"a round drafted more than {MOST_DRAFTED} tokens")
    parts = (times.prefill_s, times.draft_prefill_s, times.draft_s, times.verify_s, times.total_s)
    decode_s = times.decode_s
    if min([part for part in parts if part is not None]) < 0 or decode_s < -_CLOCK_S:
        raise ValueError("times are below 0, or their parts more than the whole")
    if decode_s <= 0 < trial.decode_tokens and not trial.warmup:
        raise ValueError("tokens were decoded in no time")
    return trial


def line_of(row: Mapping[str, Any]) -> bytes:
    """A line, as it is written. Raises ValueError for what no line can be."""
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    if len(line) >= LONGEST_LINE:
        raise ValueError(f"the line is longer than {LONGEST_LINE >> 20} MiB")
    return line


def check_trial(trial: Trial) -> None:
    """Raises ValueError for one that could not be read again."""
    trial_of(line_of(asdict(trial)))


def _check_arm(arm: Arm) -> None:
    if arm.kind == "speculative" and (arm.draft is None or not 1 <= (arm.gamma or 0) <= MAX_GAMMA):
        raise ValueError(f"arm speculates without a draft, or without a gamma from 1 to {MAX_GAMMA}")
    if arm.kind != "speculative" and arm.gamma is not None:
        raise ValueError("arm has a gamma and does not speculate")
    if arm.load.concurrency < 1 or (arm.load.rate is not None and arm.load.rate <= 0):
        raise ValueError("arm.load is not above 0")


@dataclass(frozen=True, slots=True)
class DivergenceRow:
    """A line of divergences.jsonl: the trial's key, and where its text left the target's."""

    prompt_id: str
    arm: Arm
    repeat: Count
    index: Count
    margin: Number | None
    gap: Number | None = None


def divergence_of(line: bytes) -> tuple[tuple[str, Arm, int], Divergence]:
    """A line of divergences.jsonl: the trial's key and the divergence. ValueError as above."""
    found = read_json(DivergenceRow, line, "the line")
    _check_arm(found.arm)
    return (found.prompt_id, found.arm, found.repeat), Divergence(found.index, found.margin, found.gap)


def stretch_of(line: bytes) -> Window:
    """The inverse of `asdict(stretch)`. ValueError as above."""
    stretch = read_json(Window, line, "the line")
    _check_arm(stretch.arm)
    return stretch
