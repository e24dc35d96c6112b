"""Is the machine fit to time anything? It changes no acceptance, so nothing here is broken but a lack of memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil

from specbench.backends.local.drafting import Draft
from specbench.cost.load import OthersMeter
from specbench.models import LoadedModel
from specbench.models.memory import available_bytes, cache_bytes
from specbench.records import Finding
from specbench.text import gigabytes
from specbench.verify.findings import noticed

SLOW_CLOCK_S = 1e-5
LOOK_S = 1.0


def quiet_cores(max_other_cores: float, look_s: float = LOOK_S) -> Finding:
    meter = OthersMeter()
    meter.start()
    time.sleep(look_s)
    others = meter.stop()
    if others is None:
        return noticed("busy-machine", "not checked", "the system does not tell how busy it is")
    evidence = f"other processes keep {others:.1f} cores busy, trials are repeated above {max_other_cores:g}"
    if others <= max_other_cores:
        return noticed("busy-machine", "ok", evidence)
    return noticed("busy-machine", "note", evidence, "Stop other work before timing; acceptance does not depend on it.")


def thread_count(threads: int, device: str) -> Finding:
    cores = psutil.cpu_count(logical=False) or 1
    evidence = (
        f"{threads} thread{'' if threads == 1 else 's'} on {cores} physical core{'' if cores == 1 else 's'} ({device})"
    )
    if threads <= cores or device != "cpu":
        return noticed("threads", "ok", evidence)
    return noticed("threads", "note", evidence, "Leave --threads out: more threads than cores wait for each other.")


def steady_clock() -> Finding:
    """Whether the clock is monotonic, and the smallest step that it shows."""
    monotonic = time.get_clock_info("perf_counter").monotonic
    steps: list[int] = []
    last = time.perf_counter_ns()
    while len(steps) < 1000:
        now = time.perf_counter_ns()
        if now != last:
            steps.append(now - last)
        last = now
    step_s = sorted(steps)[len(steps) // 2] / 1e9
    evidence = f"{'monotonic' if monotonic else 'not monotonic'}, steps of {step_s * 1e6:.2f} us"
    if monotonic and min(steps) > 0 and step_s <= SLOW_CLOCK_S:
        return noticed("clock", "ok", evidence)
    return noticed("clock", "note", evidence, "Times of short rounds are rough here: measure longer texts.")


def memory(loaded: LoadedModel, drafts: Sequence[Draft], capacity: int, free: int | None = None) -> Finding:
    """Room for the caches of all models beside their weights, at the longest prompt of the examination."""
    device = str(loaded.model.device)
    models = {loaded.name: loaded} | {
        d.loaded.name: d.loaded for d in drafts if d.loaded is not None and d.spec.kind != "skip"
    }
    need = 0
    for one in models.values():
        element = next(one.model.parameters()).element_size()
        need += cache_bytes(one.model.config, capacity, 1, element)
    free = available_bytes(device) if free is None else free
    weights = sum(one.weight_bytes for one in models.values())
    evidence = (
        f"weights take {gigabytes(weights)}, caches of {capacity:,} tokens {gigabytes(need)}; {gigabytes(free)} free"
    )
    if need > free:
        return noticed("memory", "broken", evidence, "Use shorter prompts, smaller models or another device.")
    if need > 0.5 * free:
        return noticed("memory", "note", evidence, "Longer prompts may not fit.")
    return noticed("memory", "ok", evidence)
