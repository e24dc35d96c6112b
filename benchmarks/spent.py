"""What a child process took. Whoever measures with this stays small: a child begins with its parent's peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

SPECBENCH = [sys.executable, "-c", "from specbench.cli import main; main()"]
# ru_maxrss is in bytes on macOS and in KiB elsewhere.
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of all threads, seconds by the wall clock, and the peak of resident memory in MB of 10^6 bytes."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def child(command: Sequence[str]) -> Spent:
    """Run a command to its end. Raises RuntimeError where it fails."""
    # Compiled modules are kept, as Python does unless told otherwise: compiling ours anew each time is no user's case.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun_s = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begun_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed: {said.decode()[-500:]}")
    return Spent(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss * PEAK_UNIT / 1e6)
