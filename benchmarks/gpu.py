"""The engine on a CUDA device: recorded graphs, spans by CUDA events, several sequences at once, and a model large
enough to wait for memory.

First the table of benchmarks.baseline with `--device cuda`. Then the target alone at several batch sizes against
transformers' `generate` on the same prompts: as it is, and with a static cache, which makes transformers compile the
pass and record it (the first calls, which compile, are thrown away, and their seconds are said). The embedded target is
so small that a step is a chain of small kernels; the shape of Llama 3.1 8B, with random weights, is what a GPU is
bought for. Nothing here runs without a CUDA device.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks import baseline
from benchmarks.baseline import DTYPE, TARGET, ratio
from specbench.acceptance.loop import generate
from specbench.acceptance.many import generate_many
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.graphs import record_all
from specbench.backends.local.lean import make_lean
from specbench.backends.local.ragged import RaggedModel
from specbench.clock import EventStopwatch
from specbench.models import load_model
from specbench.models.hub import quiet_transformers
from specbench.models.prompts import encode
from specbench.models.shapes import load_shape
from specbench.records import Sampling
from specbench.shipped import shipped
from specbench.workload import load_workload, select

BATCHES, TOKENS, REPEATS = (1, 4, 16), 32, 7
SHAPE = Path(__file__).with_name("shapes") / "llama-3.1-8b"
CONTEXT = 200
Job = Callable[[], object]


def main(*, quick: bool = False) -> None:
    """Measure and print; exit 2 where there is no CUDA device. Quick: few repeats, one batch, nothing compiled."""
    if not torch.cuda.is_available():
        print("No CUDA device here (torch.cuda.is_available() is False). Run this where there is one.", file=sys.stderr)
        raise SystemExit(2)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    baseline.main(quick=quick, device="cuda")
    print(f"\nThe target alone in batches, {TOKENS} tokens each, tokens/s in all; ours over ... by turns")
    print(
        f"{'model':14} {'batch':>5} {'ours':>8} {'theirs':>8} {'compiled':>8}  {'theirs':20} {'compiled':20} compiling"
    )
    large(quick=quick)
    embedded(quick=quick)


def embedded(*, quick: bool) -> None:
    """Lines of the embedded target on prompts of the default workload."""
    prompts = select(load_workload(str(shipped("workloads/mixed.jsonl"))).prompts, max(BATCHES), seed=0)
    loaded = load_model(TARGET, dtype=DTYPE, device="cuda")
    encoded = [encode(loaded, prompt, None) for prompt in prompts]
    _lines(TARGET, lambda: load_model(TARGET, dtype=DTYPE, device="cuda").model, encoded, quick)


def large(*, quick: bool) -> None:
    """Lines of the large shape on random tokens."""
    draws = random.Random(0)
    rows = [draws.choices(range(128_000), k=CONTEXT) for _ in range(max(BATCHES))]
    shape = partial(load_shape, SHAPE, dtype=DTYPE, device="cuda", context=CONTEXT + TOKENS)
    _lines(SHAPE.name, lambda: shape().model, rows, quick)


def _lines(name: str, load: Callable[[], Any], rows: Sequence[list[int]], quick: bool) -> None:
    """A line for each batch size. Each side has its own copy of the weights, because ours are changed."""
    ours, theirs = load(), load()
    make_lean(ours)
    theirs.generation_config.eos_token_id = None
    for batch in BATCHES[:1] if quick else BATCHES:
        jobs = {"ours": _ours(ours, rows[:batch]), "theirs": _theirs(theirs, rows[:batch])}
        compiling_s: float | None = None
        if batch == 1 and not quick:
            jobs["compiled"] = _theirs(theirs, rows[:batch], cache_implementation="static")
            start_s = time.perf_counter()
            for _ in range(2):
                jobs["compiled"]()
            compiling_s = time.perf_counter() - start_s
        print(_line(name, batch, _turns(jobs, 2 if quick else REPEATS), compiling_s), flush=True)


def _ours(model: Any, rows: Sequence[list[int]]) -> Job:
    """The loop of a run over recorded passes, one sequence or several."""
    room, wanted = max(map(len, rows)) + TOKENS + 1, range(1, 2)
    options: dict[str, Any] = {"gamma": 0, "sampling": Sampling(), "eos": (), "max_new_tokens": TOKENS}
    seeds = [torch.Generator("cuda") for _ in rows]
    clock = partial(EventStopwatch, partial(torch.cuda.Event, enable_timing=True))
    one, many = CachedModel(model, room), RaggedModel(model, room, len(rows))
    if not record_all([(one if len(rows) == 1 else many, wanted, True)]):
        raise RuntimeError("the passes could not be recorded")
    if len(rows) == 1:
        return lambda: generate(one, None, rows[0], **options, generator=seeds[0], clock=clock())
    return lambda: generate_many(many, None, rows, **options, generators=seeds, clock=clock())


def _theirs(model: Any, rows: Sequence[list[int]], **more: Any) -> Job:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device="cuda")
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device="cuda")
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, **more)

    def job() -> None:
        with torch.inference_mode(), quiet_transformers():
            model.generate(ids, attention_mask=mask, generation_config=settings)

    return job


def _turns(jobs: dict[str, Job], repeats: int) -> dict[str, list[float]]:
    """Seconds of every job in every turn, in an order drawn anew; the first turn warms up and is left out."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    order = random.Random(0)
    for _ in range(repeats + 1):
        for name in order.sample(sorted(jobs), len(jobs)):
            torch.cuda.synchronize()
            start_s = time.perf_counter()
            jobs[name]()
            torch.cuda.synchronize()
            spent[name].append(time.perf_counter() - start_s)
    return {name: seconds[1:] for name, seconds in spent.items()}


def _line(name: str, batch: int, spent: dict[str, list[float]], compiling_s: float | None) -> str:
    rates = {side: f"{batch * TOKENS / median(seconds):8.1f}" for side, seconds in spent.items()}
    cells = {side: _ratio(seconds, spent["ours"]) for side, seconds in spent.items()}
    table = " ".join(rates.get(side, f"{'-':>8}") for side in ("ours", "theirs", "compiled"))
    ratios = " ".join(f"{cells.get(side, '-'):20}" for side in ("theirs", "compiled"))
    return f"{name:14} {batch:5} {table}  {ratios} {'-' if compiling_s is None else f'{compiling_s:.0f} s'}"


def _ratio(other: Sequence[float], ours: Sequence[float]) -> str:
    return ratio([b / a for a, b in zip(ours, other, strict=True)])
