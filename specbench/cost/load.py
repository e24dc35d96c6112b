"""How busy the machine is with other things: what disturbs a timing that nobody can see in the timing itself."""

from __future__ import annotations

import os
import time

import psutil

from specbench.records import Finding, warned


def load_average() -> float | None:
    """The 1-minute load average; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


class OthersMeter:
    """Cores kept busy by other processes between `start()` and `stop()`: all busy time less that of this process and of
    the tree of `server`, the process of a server that was started for the measurement."""

    def __init__(self, server: int | None = None) -> None:
        self._server = server

    def start(self) -> None:
        self._wall_s, self._busy_s, self._own_s = _now(self._server)

    def stop(self) -> float | None:
        """Cores, on average; None over a span too short for the system's 10 ms ticks."""
        wall_s, busy_s, own_s = _now(self._server)
        if wall_s - self._wall_s < 0.1:
            return None
        return max(0.0, ((busy_s - self._busy_s) - (own_s - self._own_s)) / (wall_s - self._wall_s))


def busy_machine(others: float, meanwhile: str) -> Finding:
    """That other processes kept so many cores busy, and what that means for what was done `meanwhile`."""
    what = f"other processes kept {others:.1f} cores busy while {meanwhile}"
    return warned("busy-machine", what, "Probe again on a quiet machine.")


def free_cores(look_s: float = 0.5) -> int:
    """Threads to run with: physical cores, less what other processes use now, less one for whatever comes, at least 1.

    The threads of one operation wait for the slowest, so one thread too many does not cost its share: on a 2-core
    machine with one other busy process, two threads ran a tenth as fast as one.
    """
    meter = OthersMeter()
    meter.start()
    time.sleep(look_s)
    others = meter.stop() or 0.0
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, round(cores - others) - 1)


def _now(server: int | None = None) -> tuple[float, float, float]:
    times = psutil.cpu_times()
    # Time waiting for a disk is idle time; time stolen by a hypervisor is somebody else's work.
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    busy_s = sum(times) - idle_s - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    own_s = sum(_spent_s(process) for process in (psutil.Process(), *_tree(server)))
    return time.perf_counter(), busy_s, own_s


def _tree(pid: int | None) -> list[psutil.Process]:
    if pid is None:
        return []
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _spent_s(process: psutil.Process) -> float:
    try:
        spent = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system)
