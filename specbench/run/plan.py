"""What is measured in which order, drawn from the seed alone."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import TypeVar

from specbench.backends.base import Item, Unit
from specbench.config import RunConfig
from specbench.errors import WorkloadError
from specbench.records import Arm, Omitted
from specbench.workload import turns_of

T = TypeVar("T")


def plan_arms(config: RunConfig, gammas: Sequence[int]) -> list[Arm]:
    """The target alone, the same again (the noise floor), and every draft at every gamma; each under every load."""
    speculative = [Arm("speculative", draft, gamma) for draft in config.draft for gamma in gammas]
    arms = [Arm("baseline"), Arm("baseline-again"), *speculative]
    return [replace(arm, load=load) for arm in arms for load in config.loads]


def shuffled(items: Sequence[T], seed: str | int) -> list[T]:
    """An order that depends on `seed` alone, so that a resumed run keeps its plan."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


def plan_units(items: Sequence[Item], config: RunConfig) -> tuple[list[Unit], list[Omitted]]:
    """Prompts, or batches of them, in the order in which they are measured; and the prompts that fill no batch."""
    order = shuffled(items, config.seed)
    if config.sessions:
        units = [_conversation(item) for item in _spread(order, config.seed)]
        if all(len(unit.items) == 1 for unit in units):
            raise WorkloadError(
                "no prompt has an earlier turn with its answer", where=config.workload, hint="Leave --sessions out."
            )
        return units, []
    if config.batch_size == 1:
        order = _spread(order, config.seed)
    found = units_of(order, config.batch_size)
    if not found:
        raise WorkloadError(
            f"{len(order)} prompts fill no batch of {config.batch_size}",
            where=config.workload,
            hint="Use more prompts (--limit) or a smaller --batch-size.",
        )
    rest = order[len(found) * config.batch_size :]
    return found, [Omitted(item.prompt.id, f"left over from batches of {config.batch_size}") for item in rest]


def _conversation(item: Item) -> Unit:
    prompt = item.prompt
    turns = tuple(Item(turn, None) for turn in turns_of(prompt))
    return Unit(prompt.id, prompt.sha256, prompt.category, turns)


def _spread(order: Sequence[Item], seed: int) -> list[Item]:
    """Each category evenly over the whole run, so that its first prompts, which may be all there is or rule a gamma
    out, are of every kind. Within a category the order stays, and where it begins is drawn."""
    counts = Counter(item.prompt.category for item in order)
    rng = random.Random(f"{seed}/categories")
    begun = {category: rng.random() for category in counts}
    places = []
    for number, item in enumerate(order):
        category = item.prompt.category
        places.append((begun[category] / counts[category], number))
        begun[category] += 1
    return [order[number] for _, number in sorted(places)]


def units_of(items: Sequence[Item], batch_size: int) -> list[Unit]:
    """One unit for each prompt, or whole batches in the order given, whatever their categories, as a server mixes them.
    Prompts that fill no batch are left out."""
    if batch_size == 1:
        return [Unit(item.prompt.id, item.prompt.sha256, item.prompt.category, (item,)) for item in items]
    found = []
    for number in range(len(items) // batch_size):
        rows = tuple(items[number * batch_size : (number + 1) * batch_size])
        together = hashlib.sha256(",".join(item.prompt.sha256 for item in rows).encode()).hexdigest()
        found.append(Unit(f"batch-{number + 1}", together, None, rows))
    return found


def parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """`items` in order, in as few parts of at most `most` as there can be, of nearly one size: the last would else be
    one with which hardly anything is measured."""
    number = -(-len(items) // most)
    ends = [round(len(items) * (at + 1) / number) for at in range(number)]
    yield from (items[begin:end] for begin, end in pairwise([0, *ends]))


def by_server(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms that differ in load alone follow one another: one server answers them."""
    return [list(group) for _, group in groupby(arms, key=lambda arm: (arm.kind, arm.draft, arm.gamma))]
