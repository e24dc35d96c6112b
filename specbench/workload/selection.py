"""Fewer prompts that still stand for every category."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from specbench.errors import ConfigError


class HasCategory(Protocol):
    """A prompt, or whatever stands for one here."""

    @property
    def category(self) -> str | None: ...


Labelled = TypeVar("Labelled", bound=HasCategory)


def select(prompts: Sequence[Labelled], limit: int | None, seed: int) -> tuple[Labelled, ...]:
    """At most `limit` prompts, as equal a number from each category as there are prompts for, in file order.

    A larger limit with the same seed keeps what a smaller one chose, so that a run can be extended. None or a
    limit of at least all prompts keeps all. Raises ConfigError below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit} selects no prompts", hint="Give 1 or more, or leave it out.")
    if limit is None or limit >= len(prompts):
        return tuple(prompts)
    groups: dict[str | None, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.category, []).append(index)
    names = list(groups)
    random.Random(seed).shuffle(names)
    dealt: list[tuple[int, int, int]] = []  # round, the category's turn in it, index into prompts
    for turn, name in enumerate(names):
        indices = groups[name]
        # A generator of its own for each category: prompts added to one do not reshuffle the others.
        random.Random(f"{seed}:{name}").shuffle(indices)
        dealt.extend((round_, turn, index) for round_, index in enumerate(indices))
    return tuple(prompts[index] for _, _, index in sorted(sorted(dealt)[:limit], key=lambda card: card[2]))
