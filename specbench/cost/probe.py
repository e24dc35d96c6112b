"""What the models cost at the lengths a round uses: t_dec, t_verify(n), a draft step and the two-token catch-up.

Every width is timed once in each pass, in an order drawn anew, so that drift of the machine falls on all alike; a
speedup needs only their ratios.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specbench.acceptance.loop import Target
from specbench.records import CostPoint

PASSES = 15


@dataclass(frozen=True, slots=True)
class Probed:
    """A model to time: `widths` are the numbers of tokens to read at once; `keep_all` wants logits for each of them,
    as a verify pass does, else for the last alone, as a draft does."""

    model: Target
    widths: tuple[int, ...]
    keep_all: bool


@torch.inference_mode()
def probe(
    models: Mapping[str | None, Probed],
    ids: Sequence[int],
    contexts: Sequence[int],
    *,
    seed: int,
    sync: Callable[[], None] = lambda: None,
    now: Callable[[], int] = time.perf_counter_ns,
    passes: int = PASSES,
) -> list[CostPoint]:
    """Time every model at every width after each of `contexts` tokens of `ids` (repeated where it is too short).
    `now` is in nanoseconds."""
    order = random.Random(seed)
    points = []
    for context in contexts:
        read = (list(ids) * (context // len(ids) + 1))[:context]
        for probed in models.values():
            probed.model.rewind(0)
            probed.model.forward(read, keep=1)
        spent_ns: dict[tuple[str | None, int], list[int]] = {
            (name, width): [] for name, probed in models.items() for width in probed.widths
        }
        for _ in range(passes + 1):
            turns = list(spent_ns)
            order.shuffle(turns)
            for name, width in turns:
                probed = models[name]
                sync()
                start_ns = now()
                probed.model.forward((read * width)[:width], keep=width if probed.keep_all else 1)
                sync()
                spent_ns[name, width].append(now() - start_ns)
                probed.model.rewind(context)
        for (name, width), spent in spent_ns.items():
            # the first pass warms every shape
            low_s, median_s, high_s = median_interval([ns / 1e9 for ns in spent[1:]])
            points.append(CostPoint(name, context, width, median_s, low_s, high_s, passes))
    return points


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Low, median, high: the order statistics that hold the true median in about 95 % of cases."""
    ranked = np.sort(np.asarray(values, dtype=float))
    reach = 0.98 * np.sqrt(len(ranked))  # 1.96 standard deviations of a binomial with p = 1/2
    low = max(0, int(np.floor(len(ranked) / 2 - reach)))
    high = min(len(ranked) - 1, int(np.ceil(len(ranked) / 2 + reach)))
    return float(ranked[low]), float(np.median(ranked)), float(ranked[high])
