"""What the models cost at the lengths a round uses: t_dec, t_verify(n), a draft step, the two-token catch-up, a whole
draft phase; a prefill; and how fast memory moves, which every step has to wait for.

Every model, width and context is timed once in each pass, in an order drawn anew; a draft phase comes right after a
pass of the target, as a round has it. A speedup needs only ratios, and a machine that is slow for a second is slow for
all that it does then: so the times of one pass at one context are held against its own level, the median over all that
was timed in it of how slow each was (one sweep of Tukey's median polish and another). What is left of a ratio's error
is far less than that of a ratio of two medians.
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
from numpy.typing import NDArray
from torch import Tensor

from specbench.acceptance.loop import Drafter
from specbench.cost.plan import PASSES
from specbench.records import Bandwidth, CostPoint

# Fewer tasks than this say nothing of how fast a pass was.
FEW = 4

# What is moved to time the memory, and how often.
LARGEST_BYTES, MOVES = 1 << 30, 7

Rows = list[list[int]]
Floats = NDArray[np.float64]


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
    """A model to time, over a cache of its own for each context: `widths` are the numbers of tokens to read at once;
    `keep_all` wants logits for each of them, as a verify pass does, else for the last alone, as a draft does. A
    `drafter` that drives this same model is timed over whole draft phases of `gammas` tokens, at a batch of one.
    `phase` is what its points are called. `rereads` are numbers of tokens that may be kept after a rejection, timed
    where the model, having read a text, says that it `rereads` them."""

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

    context: int
    model: str | None
    tokens: int
    phase: str
    run: Callable[[], object]
    restore: Callable[[], None]


@torch.inference_mode()
def probe(
    at: Mapping[int, Sequence[tuple[str | None, Probed]]],
    ids: Sequence[int],
    *,
    seed: int | str,
    batch: int = 1,
    sync: Callable[[], None] = lambda: None,
    now: Callable[[], int] = time.perf_counter_ns,
    passes: int = PASSES,
    generator: torch.Generator | None = None,
) -> list[CostPoint]:
    """Time every model at every width, in `batch` sequences at once, after so many tokens of `ids` (repeated where it
    is too short) as `at` has for it. `now` is in nanoseconds; `generator` is what drafters draw from."""
    tasks: list[Task] = []
    for context, models in at.items():
        rows = texts(ids, context, batch)
        for name, probed in models:
            tasks += _step_tasks(name, probed, rows, generator or torch.Generator())
    return list(_timed(tasks, batch, random.Random(seed), sync, now, passes))


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
            tasks.append(Task(0, name, length, "read", partial(model.forward_rows, rows, 1), partial(model.rewind, 0)))
    return list(_timed(tasks, batch, random.Random(seed), sync, now, passes))


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
    context = len(rows[0])
    restore = partial(probed.model.rewind, context)
    if probed.drafter is not None and len(rows) == 1:
        probed.drafter.begin(rows[0])  # reads the context into `probed.model`, and notes that it did
        x = [*rows[0], rows[0][0]]
        for gamma in probed.gammas:
            yield Task(context, name, gamma, "draft", partial(probed.drafter.propose, x, gamma, generator), restore)
    else:
        probed.model.rewind(0)
        probed.model.forward_rows(rows, 1)
    for width in probed.widths:
        new = [(row * width)[:width] for row in rows]
        run = partial(probed.model.forward_rows, new, width if probed.keep_all else 1)
        yield Task(context, name, width, probed.phase, run, restore)
    if isinstance(probed.model, Rereader) and probed.model.rereads:
        for width in probed.rereads:
            again = partial(probed.model.reread, [(row * width)[:width] for row in rows])
            yield Task(context, name, width, "reread", again, restore)


def _timed(
    tasks: Sequence[Task],
    batch: int,
    order: random.Random,
    sync: Callable[[], None],
    now: Callable[[], int],
    passes: int,
) -> Iterator[CostPoint]:
    contexts = sorted({task.context for task in tasks})
    spent = np.empty((passes + 1, len(tasks)))  # seconds
    for number in range(passes + 1):
        for context in order.sample(contexts, len(contexts)):
            for turn in _turns([i for i, task in enumerate(tasks) if task.context == context], tasks, order):
                spent[number, turn] = _seconds(tasks[turn].run, sync, now)
                tasks[turn].restore()
    for context in contexts:
        mine = [i for i, task in enumerate(tasks) if task.context == context]
        # the first pass warms every shape
        for turn, seconds in zip(mine, levelled(spent[1:, mine]).T, strict=True):
            task = tasks[turn]
            low_s, median_s, high_s = median_interval(seconds)
            yield CostPoint(task.model, context, task.tokens, median_s, low_s, high_s, passes, batch, task.phase)


def _seconds(job: Callable[[], object], sync: Callable[[], None], now: Callable[[], int]) -> float:
    sync()
    start_ns = now()
    job()
    sync()
    return (now() - start_ns) / 1e9


def _turns(mine: Sequence[int], tasks: Sequence[Task], order: random.Random) -> list[int]:
    """These tasks in an order drawn anew; each draft phase after a pass of the target, as far as there are any."""
    phases = order.sample(found := [i for i in mine if tasks[i].phase == "draft"], len(found))
    rest = order.sample(found := [i for i in mine if tasks[i].phase != "draft"], len(found))
    targets = [i for i in rest if tasks[i].model is None]
    hosts = dict(zip(order.sample(targets, len(targets)), phases, strict=False))
    turns = [turn for i in rest for turn in ((i, hosts[i]) if i in hosts else (i,))]
    return [*turns, *phases[len(hosts) :]]


def levelled(seconds: Floats) -> Floats:
    """Seconds [passes, tasks] with the passes' own speed taken out, at the speed of the median pass. One slow task does
    not move a level, nor one slow pass a task. A few tasks have no level beside their own noise, and stay as they
    are."""
    if seconds.shape[1] < FEW:
        return seconds
    level = np.ones((len(seconds), 1))
    for _ in range(2):
        usual = np.median(seconds / level, axis=0)
        level = np.median(seconds / usual, axis=1, keepdims=True)
    return np.asarray(seconds / level * np.median(level), dtype=np.float64)


@torch.inference_mode()
def memory_bandwidth(
    device: str,
    available_bytes: int,
    *,
    sync: Callable[[], None] = lambda: None,
    now: Callable[[], int] = time.perf_counter_ns,
) -> Bandwidth:
    """The floor under every decoding step, which has to read all weights once. Sum a float32 tensor of a GB (less where
    memory is short), and copy one half of it over the other; the faster of the two counts. It has to be larger than the
    processor's caches, or the caches are what is measured."""
    size = min(LARGEST_BYTES, available_bytes // 4)
    tensor = torch.ones(max(2, size // 4), device=device)
    half = tensor.numel() // 2
    moved = tensor.numel() * tensor.element_size()
    jobs: dict[str, Callable[[], object]] = {
        "summing": tensor.sum,
        "copying within": lambda: tensor[half : 2 * half].copy_(tensor[:half]),
    }
    found = []
    for word, job in jobs.items():
        spent_s = [_seconds(job, sync, now) for _ in range(MOVES + 1)]
        low_s, median_s, high_s = median_interval(spent_s[1:])
        what = f"{word} a float32 tensor of {moved / 1e9:.1f} GB"
        found.append(Bandwidth(moved / median_s, moved / high_s, moved / low_s, what))
    return max(found, key=lambda one: one.bytes_per_s)
