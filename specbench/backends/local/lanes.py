"""Arms that take turns within a prompt, each on caches of its own over the one copy of the weights.

A shared machine has good and bad seconds. Whole trials, one after the other, meet different ones, and their ratio is
partly luck; slices of a few tokens, in an order drawn anew each time, meet the same. A slice ends when its arm has so
many tokens and not after so many rounds: a draft emits several a round, and all arms are to reach the end of the text
together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from specbench.acceptance.loop import Drafter, Generation, Steps, Target, rounds_of
from specbench.acceptance.many import rounds_of_many
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Draft, Setting
from specbench.backends.local.graphs import Recordable
from specbench.backends.local.ragged import RaggedModel
from specbench.clock import Clock
from specbench.records import Arm

# Where an arm generates, a target and a drafter over caches of their own: begins a generation after each of several
# prompts, under settings of the loop (`rounds_of_many`).
Lane = Callable[..., Steps[list[Generation]]]


def lane_of_one(target: Target, drafter: Drafter | None) -> Lane:
    """For one prompt at a time."""

    def begin(prompts: Sequence[Sequence[int]], **settings: Any) -> Steps[list[Generation]]:
        (prompt,), (generator,) = prompts, settings.pop("generators")
        return [(yield from rounds_of(target, drafter, prompt, generator=generator, **settings))]

    return begin


def lane_over(setting: Setting, draft: Draft | None) -> Lane:
    """A lane over the caches of a setting, and those of a draft that was opened in it."""
    judge = judge_of(setting, draft)
    if isinstance(judge, RaggedModel):
        return partial(rounds_of_many, judge, None if draft is None else draft.many_drafter)
    return lane_of_one(judge, None if draft is None else draft.drafter)


def judge_of(setting: Setting, draft: Draft | None) -> CachedModel | RaggedModel:
    """What reads the target in a lane."""
    if setting.many is not None:
        return (None if draft is None else draft.many_target) or setting.many
    return (None if draft is None else draft.target) or setting.read


def opened_anew(setting: Setting, draft: Draft | None) -> tuple[Setting, Draft | None]:
    """New caches over the same weights, with as much room."""
    model, many, own = setting.target.model, setting.many, None
    if many is not None:
        many = RaggedModel(model, many.capacity, many.batch)
    setting = replace(setting, reader=CachedModel(model, setting.read.capacity), many=many)
    if draft is not None:
        own = draft.unopened()
        own.open(setting, setting.read.capacity)
    return setting, own


def passes(
    targets: Iterable[Recordable], drafts: Iterable[Draft | None], gamma: int
) -> list[tuple[Recordable, range, bool]]:
    """What is recorded of these: all widths of a verify pass, and draft steps where a model drafts."""
    steppers = [draft.stepper for draft in drafts if draft is not None and draft.stepper is not None]
    return [*((one, range(1, gamma + 2), True) for one in targets), *((one, range(1, 3), False) for one in steppers)]


class Underway:
    """A generation that can be left after any round and gone on with; `slices` counts how often it was, and `found` is
    there in the end."""

    def __init__(self, arm: Arm, steps: Steps[list[Generation]], clock: Clock) -> None:
        self.arm = arm
        self.slices = 0
        self.found: list[Generation] = []
        self._steps, self._clock = steps, clock

    def advance(self, tokens: int) -> bool:
        """Go on until there are so many tokens; whether there is more to come. What others did meanwhile is not on its
        clock."""
        self.slices += 1
        self._clock.resume()
        try:
            while next(self._steps) < tokens:
                pass
        except StopIteration as end:
            self.found = end.value
            return False
        return True

    def finish(self) -> list[Generation]:
        self.advance(sys.maxsize)
        return self.found


def take_turns(arms: Sequence[Underway], tokens: int, order: Random) -> None:
    """Bring all of them to their end: the prompt first, then `tokens` more in each slice."""
    running, due = list(arms), 1
    while running:
        order.shuffle(running)
        running = [each for each in running if each.advance(due)]
        due += tokens


class Lanes:
    """The lanes of a run, of which `most` may be there at a time. `make` gives one for a draft (None: the target
    alone), or none where it cannot be had."""

    def __init__(self, make: Callable[[str | None], Lane | None], most: int) -> None:
        self.most = most
        self._make = make
        self._made: dict[tuple[str | None, int], Lane] = {}

    def of(self, arms: Sequence[Arm]) -> list[Lane] | None:
        """One for each of at most `most` arms. A lane serves any arm of its draft. None where one cannot be had."""
        drafts = [arm.draft for arm in arms]
        wanted = [(draft, drafts[:place].count(draft)) for place, draft in enumerate(drafts)]
        if len({*self._made, *wanted}) > self.most:
            self._made = {key: lane for key, lane in self._made.items() if key in wanted}
        for key in wanted:
            if key not in self._made:
                lane = self._make(key[0])
                if lane is None:
                    return None
                self._made[key] = lane
        return [self._made[key] for key in wanted]

    def close(self, most: int) -> None:
        """Let all of them go, and have no more than `most` from now on."""
        self._made.clear()
        self.most = min(self.most, most)
