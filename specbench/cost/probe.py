"""What the models cost at the lengths a round uses: t_dec, t_verify(n), a draft step, the two-token catch-up, a whole
draft phase; and a prefill.

Every width is timed once in each pass, in an order drawn anew, so that drift of the machine falls on all alike; a
speedup needs only their ratios.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from specbench.acceptance.loop import Drafter
from specbench.cost.plan import PASSES
from specbench.records import CostPoint

Rows = list[list[int]]


class Reader(Protocol):
    """A language model with a rewindable memory of several sequences of equal length."""

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        """Read a row of ids in each sequence; logits [batch, keep, V]."""

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens of each sequence."""


@runtime_checkable
class Rereader(Reader, Protocol):
    """One that may have to read the tokens that stay after a rejection again."""

    @property
    def rereads(self) -> bool:
        """Whether it has to; known when it has read a text."""

    def reread(self, rows: Sequence[Sequence[int]]) -> None:
        """Read a row of ids in each sequence again."""


@dataclass(frozen=True, slots=True)
class Probed:
    """A model to time: `widths` are the numbers of tokens to read at once; `keep_all` wants logits for each of them,
    as a verify pass does, else for the last alone, as a draft does. A `drafter` that drives this same model is timed
    over whole draft phases of `gammas` tokens, at a batch of one. `phase` is what its points are called. `rereads` are
    numbers of tokens that may be kept after a rejection, timed where the model, having read a text, says that it
    `rereads` them."""

    model: Reader
    widths: tuple[int, ...]
    keep_all: bool
    drafter: Drafter | None = None
    gammas: tuple[int, ...] = ()
    phase: str = "read"
    rereads: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to time: `run` is timed, `restore` puts the model back to where it was before."""

    model: str | None
    tokens: int
    phase: str
    run: Callable[[], object]
    restore: Callable[[], None]


@torch.inference_mode()
def probe(
    models: Mapping[str | None, Probed],
    ids: Sequence[int],
    contexts: Sequence[int],
    *,
    seed: int | str,
    batch: int = 1,
    sync: Callable[[], None] = lambda: None,
    now: Callable[[], int] = time.perf_counter_ns,
    passes: int = PASSES,
    generator: torch.Generator | None = None,
    beside: Sequence[tuple[str, Probed]] = (),
) -> list[CostPoint]:
    """Time every model at every width, in `batch` sequences at once, after each of `contexts` tokens of `ids` (repeated
    where it is too short); `beside` are more of what a draft takes. `now` is in nanoseconds; `generator` is what
    drafters draw from."""
    order = random.Random(seed)
    points: list[CostPoint] = []
    for context in contexts:
        rows = texts(ids, context, batch)
        tasks: list[Task] = []
        for name, probed in [*models.items(), *beside]:
            tasks += _step_tasks(name, probed, rows, generator or torch.Generator())
        points += _timed(tasks, context, batch, order, sync, now, passes)
    return points


@torch.inference_mode()
def probe_prefill(
    models: Mapping[str | None, Reader],
    ids: Sequence[int],
    lengths: Sequence[int],
    *,
    seed: int | str,
    batch: int = 1,
    sync: Callable[[], None] = lambda: None,
    now: Callable[[], int] = time.perf_counter_ns,
    passes: int = PASSES,
) -> list[CostPoint]:
    """Time every model over whole prompts of each of `lengths` tokens, as points with context 0."""
    tasks = []
    for length in lengths:
        rows = texts(ids, length, batch)
        for name, model in models.items():
            model.rewind(0)
            tasks.append(Task(name, length, "read", partial(model.forward_rows, rows, 1), partial(model.rewind, 0)))
    return list(_timed(tasks, 0, batch, random.Random(seed), sync, now, passes))


def texts(ids: Sequence[int], length: int, batch: int) -> Rows:
    """`batch` rows of `length` tokens [batch, length], each from another place of `ids`: equal rows would send every
    sequence to the same experts of a sparse model."""
    whole = list(ids) * (length // len(ids) + 2)
    starts = [row * len(ids) // batch for row in range(batch)]
    return [whole[start : start + length] for start in starts]


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Low, median, high: the order statistics that hold the true median in about 95 % of cases."""
    ranked = np.sort(np.asarray(values, dtype=float))
    reach = 0.98 * np.sqrt(len(ranked))  # 1.96 standard deviations of a binomial with p = 1/2
    low = max(0, int(np.floor(len(ranked) / 2 - reach)))
    high = min(len(ranked) - 1, int(np.ceil(len(ranked) / 2 + reach)))
    return float(ranked[low]), float(np.median(ranked)), float(ranked[high])


def _step_tasks(name: str | None, probed: Probed, rows: Rows, generator: torch.Generator) -> Iterator[Task]:
    """Read the context, and list what is to be timed after it."""
    context = len(rows[0])
    restore = partial(probed.model.rewind, context)
    if probed.drafter is not None and len(rows) == 1:
        probed.drafter.begin(rows[0])  # reads the context into `probed.model`, and notes that it did
        x = [*rows[0], rows[0][0]]
        for gamma in probed.gammas:
            yield Task(name, gamma, "draft", partial(probed.drafter.propose, x, gamma, generator), restore)
    else:
        probed.model.rewind(0)
        probed.model.forward_rows(rows, 1)
    for width in probed.widths:
        new = [(row * width)[:width] for row in rows]
        run = partial(probed.model.forward_rows, new, width if probed.keep_all else 1)
        yield Task(name, width, probed.phase, run, restore)
    if isinstance(probed.model, Rereader) and probed.model.rereads:
        for width in probed.rereads:
            yield Task(
                name, width, "reread", partial(probed.model.reread, [(row * width)[:width] for row in rows]), restore
            )


def _timed(
    tasks: Sequence[Task],
    context: int,
    batch: int,
    order: random.Random,
    sync: Callable[[], None],
    now: Callable[[], int],
    passes: int,
) -> Iterator[CostPoint]:
    spent_ns: list[list[int]] = [[] for _ in tasks]
    for _ in range(passes + 1):
        turns = list(range(len(tasks)))
        order.shuffle(turns)
        for turn in turns:
            sync()
            start_ns = now()
            tasks[turn].run()
            sync()
            spent_ns[turn].append(now() - start_ns)
            tasks[turn].restore()
    for task, spent in zip(tasks, spent_ns, strict=True):
        # the first pass warms every shape
        low_s, median_s, high_s = median_interval([ns / 1e9 for ns in spent[1:]])
        yield CostPoint(task.model, context, task.tokens, median_s, low_s, high_s, passes, batch, task.phase)
