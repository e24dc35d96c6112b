"""Files of one JSON object a line, as they are read from the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from operator import lt
from pathlib import Path
from typing import Any, TypeVar

from specbench.errors import StoreError
from specbench.kinds import MAX_GAMMA
from specbench.records import MOST_DRAFTED, Arm, Count, Divergence, Number, Trial, Window
from specbench.validation import read_json, why_not

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
    more tokens than the run allowed an answer where that is given."""
    trial = read_json(Trial, line, "the line")
    if max_new_tokens is not None and trial.output_tokens > max_new_tokens * trial.sequences:
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
