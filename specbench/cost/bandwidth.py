"""How fast this machine moves memory: the floor under every decoding step, which has to read all weights once."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from specbench.cost.probe import median_interval
from specbench.records import Bandwidth

_LARGEST_BYTES = 1 << 30
_PASSES = 7


@torch.inference_mode()
def memory_bandwidth(
    device: str,
    available_bytes: int,
    *,
    sync: Callable[[], None] = lambda: None,
    now: Callable[[], int] = time.perf_counter_ns,
) -> Bandwidth:
    """Sum a float32 tensor of a GB (less where memory is short), and copy one half of it over the other; the faster of
    the two counts. It has to be larger than the processor's caches, or the caches are what is measured."""
    size = min(_LARGEST_BYTES, available_bytes // 4)
    tensor = torch.ones(max(2, size // 4), device=device)
    half = tensor.numel() // 2
    moved = tensor.numel() * tensor.element_size()
    jobs: dict[str, Callable[[], object]] = {
        "summing": tensor.sum,
        "copying within": lambda: tensor[half : 2 * half].copy_(tensor[:half]),
    }
    found = []
    for word, job in jobs.items():
        spent_s = []
        for _ in range(_PASSES + 1):
            sync()
            start_ns = now()
            job()
            sync()
            spent_s.append((now() - start_ns) / 1e9)
        low_s, median_s, high_s = median_interval(spent_s[1:])
        what = f"{word} a float32 tensor of {moved / 1e9:.1f} GB"
        found.append(Bandwidth(moved / median_s, moved / high_s, moved / low_s, what))
    return max(found, key=lambda one: one.bytes_per_s)
