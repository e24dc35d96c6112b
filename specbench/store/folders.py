"""Where run folders are: their names, new ones, and those that are there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from specbench.errors import StoreError
from specbench.store.record import RUN_FILE
from specbench.text import count, gigabytes

STAMP = "%Y%m%dT%H%M%SZ"
STAMPED = re.compile(r"\d{8}T\d{6}Z-")
NUMBERED = re.compile(r"@([1-9]\d{0,5})")

# A trial's line in trials.jsonl without its rounds and texts.
_TRIAL_BYTES = 600


def new_folder(out: Path, name: str) -> Path:
    """Make `out/<utc>-<name>` and return it. The newest run sorts last whatever the clock does: where it was set back,
    and within one second, the name counts on from the newest folder's. Raises StoreError where no folder can be made.
    """
    while True:
        now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        stamp = max([now, *(then + timedelta(seconds=1) for then in _stamps(out))])
        folder = out / f"{stamp:{STAMP}}-{name}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue  # another process was faster
            raise StoreError("The output path is not a folder", where=str(out), hint="Choose another --out.") from None
        except OSError as error:
            raise StoreError(
                f"Cannot make a run folder: {error.strerror}", where=str(folder), hint="Choose another --out."
            ) from None
        return folder


def require_disk(out: Path, trials: int, text_bytes: float | None) -> None:
    """Raise StoreError where the disk of `out` has less free than `trials` trials surely write; `text_bytes` is what
    each asks, None where texts are not kept. Rounds and output come on top: how many there will be is not known."""
    needed = trials * (_TRIAL_BYTES + (text_bytes or 0.0))
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        kept = text_bytes is not None
        raise StoreError(
            f"The run folder needs at least {gigabytes(needed)}, {gigabytes(free)} are free",
            where=f"{out}: {trials:,} trials{' with their texts' if kept else ''}",
            hint=f"Free some space, choose another --out, or use --limit{', without --keep-text' * kept}.",
        )


def _stamps(out: Path) -> Iterator[datetime]:
    """When the runs directly below `out` began, by their names."""
    for path in out.glob("*Z-*"):
        if STAMPED.match(path.name):
            with suppress(ValueError):  # digits that are no date
                yield datetime.strptime(path.name[:16], STAMP)


def find_runs(out: Path) -> list[Path]:
    """Run folders directly below `out`, newest first. Their names start with the UTC time; a folder renamed to anything
    else, such as a kept example, is found only when it is named."""
    if not out.is_dir():
        return []
    found = (path.parent for path in out.glob(f"*/{RUN_FILE}"))
    return sorted((f for f in found if STAMPED.match(f.name)), key=lambda folder: folder.name, reverse=True)


def find_run(named: Path, out: Path) -> Path:
    """The folder that a user names: its path, or `@1` for the newest below `out`, `@2` for the one before. Raises
    StoreError where there are not so many."""
    counted = NUMBERED.fullmatch(str(named))
    if counted is None or named.exists():
        return named
    runs, number = find_runs(out), int(counted[1])
    if number > len(runs):
        raise StoreError(f"No {named} among {count(len(runs), 'run')}", where=str(out), hint="See specbench runs.")
    return runs[number - 1]
