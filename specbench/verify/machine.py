"""Is the machine fit to time anything? It changes no acceptance, so nothing here is broken but a lack of memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil

from specbench.backends.local.drafting import Draft
from specbench.cost.load import OthersMeter
from specbench.models import LoadedModel
from specbench.models.memory import available_bytes, cache_bytes
from specbench.text import count, gigabytes
from specbench.verify.setup import Outcome, read_models

SLOW_CLOCK_S = 1e-5
LOOK_S = 1.0


def quiet_cores(max_other_cores: float, look_s: float = LOOK_S) -> Outcome:
    meter = OthersMeter()
    meter.start()
    time.sleep(look_s)
    others = meter.stop()
    if others is None:
        return Outcome("not checked", "the system does not tell how busy it is")
    evidence = f"other processes keep {others:.1f} cores busy, trials are repeated above {max_other_cores:g}"
    if others <= max_other_cores:
        return Outcome("ok", evidence)
    return Outcome("note", evidence, "Stop other work before timing; acceptance does not depend on it.")


def thread_count(threads: int, device: str) -> Outcome:
    cores = psutil.cpu_count(logical=False) or 1
    evidence = f"{count(threads, 'thread')} on {count(cores, 'physical core')} ({device})"
    if threads <= cores or device != "cpu":
        return Outcome("ok", evidence)
    return Outcome("note", evidence, "Leave --threads out: more threads than cores wait for each other.")


def steady_clock() -> Outcome:
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
        return Outcome("ok", evidence)
    return Outcome("note", evidence, "Times of short rounds are rough here: measure longer texts.")


def memory(loaded: LoadedModel, drafts: Sequence[Draft], capacity: int, free: int | None = None) -> Outcome:
    """Room for the caches of all models beside their weights, at the longest prompt of the examination."""
    device = str(loaded.model.device)
    models = {loaded.name: loaded, **read_models(drafts)}.values()
    need = sum(
        cache_bytes(one.model.config, capacity, 1, next(one.model.parameters()).element_size()) for one in models
    )
    free = available_bytes(device) if free is None else free
    weights = sum(one.weight_bytes for one in models)
    evidence = (
        f"weights take {gigabytes(weights)}, caches of {capacity:,} tokens {gigabytes(need)}; {gigabytes(free)} free"
    )
    if need > free:
        return Outcome("broken", evidence, "Use shorter prompts, smaller models or another device.")
    if need > 0.5 * free:
        return Outcome("note", evidence, "Longer prompts may not fit.")
    return Outcome("ok", evidence)
