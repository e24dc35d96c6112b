"""Does torch.compile pay on a CPU? One decoding step and one verify pass, compiled, against the lean pass as it is.

The compiled pass is the one that CUDA graphs record (backends/local/graphs.py): fixed shapes and places, so that
nothing is compiled again as the text grows; its weights are not packed, since the compiler knows no packed ones.
Compile time is that of the first call. It pays after as many passes as it saves their time for; a sweep needs a pass
for every width, from 1 to gamma + 1, and for target and draft.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from specbench.backends.local import lean
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.graphs import put_all
from specbench.backends.local.lean import decoder_of, seen_from
from specbench.cost.load import load_average
from specbench.cost.probe import median_interval
from specbench.models import load_model

CONTEXT, CAPACITY, WIDTHS = 200, 320, (1, 3)


def main(*, quick: bool = False) -> None:
    """Measure and print, with one thread. Quick: the draft alone, once."""
    torch.set_num_threads(1)
    print(f"bfloat16, after {CONTEXT} tokens, one thread; load average {load_average()}")
    print(f"{'model':12} {'tokens':>6} {'compile, s':>11} {'lean, ms':>20} {'compiled, ms':>20}   pays after")
    for name in ("demo:draft",) if quick else ("demo:draft", "demo:target"):
        for width in WIDTHS[:1] if quick else WIDTHS:
            print(_line(name, width, 10 if quick else 40), flush=True)


@torch.inference_mode()  # as the loop runs it
def _line(name: str, width: int, passes: int) -> str:
    lean, plain = CachedModel(_lean(name), CAPACITY), CachedModel(_lean(name, packing=False), CAPACITY)
    for reader in (lean, plain):
        reader.forward([token % 1000 for token in range(CONTEXT)], keep=1)
    step = partial(_compiled(plain, width), torch.full((1, width), 7), torch.arange(CONTEXT, CONTEXT + width)[None])
    start_s = time.perf_counter()
    step()
    compile_s = time.perf_counter() - start_s

    def once() -> None:
        lean.forward([7] * width, keep=width)
        lean.rewind(CONTEXT)

    ours, theirs = _interleaved((once, step), passes)
    saved_s = median(ours) - median(theirs)
    pays = f"{compile_s / saved_s:,.0f} passes" if saved_s > 0 else "never"
    return f"{name:12} {width:6} {compile_s:11.1f} {_ms(ours):>20} {_ms(theirs):>20}   {pays}"


def _lean(name: str, *, packing: bool = True) -> Any:
    model = load_model(name, dtype="bfloat16", device="cpu").model
    packs = lean.packs if packing else lambda _: False
    with patch.object(lean, "packs", packs):
        lean.make_lean(model)
    return model


def _compiled(reader: CachedModel, keep: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A pass over ids [1, n] at positions [1, n], over all the room of the reader's cache."""
    decoder, layers, places = decoder_of(reader.model), reader.cache.layers, torch.arange(CAPACITY)
    assert decoder is not None

    def run(ids: Tensor, at: Tensor) -> Tensor:
        return decoder.run(ids, at, seen_from(at, places), put_all(layers)(at, CAPACITY), keep)

    torch._dynamo.reset()
    return torch.compile(run, fullgraph=True, dynamic=False)


def _interleaved(jobs: tuple[Callable[[], object], ...], passes: int) -> list[list[float]]:
    spent: list[list[float]] = [[] for _ in jobs]
    order = random.Random(0)
    for _ in range(passes):
        for index in order.sample(range(len(jobs)), len(jobs)):
            start_s = time.perf_counter()
            jobs[index]()
            spent[index].append(time.perf_counter() - start_s)
    return spent


def _ms(seconds: list[float]) -> str:
    low, middle, high = (1e3 * value for value in median_interval(seconds))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"
