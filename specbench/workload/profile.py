"""What is in a workload before anything is measured on it: its profile by category, fewer prompts that still stand for
every category, and the outline that can be shared where prompts are private.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import fmean, median

from specbench.errors import WorkloadError
from specbench.records import Prompt
from specbench.workload.load import Workload


@dataclass(frozen=True, slots=True)
class CategoryProfile:
    """One category (None: prompts without one). Characters are Unicode code points over all messages of a prompt;
    a turn is a user message. `request_share` of the prompts have fields that only a server understands."""

    category: str | None
    prompts: int
    characters_min: int
    characters_median: float
    characters_max: int
    system_share: float
    mean_turns: float
    tools_share: float = 0.0
    template_kwargs_share: float = 0.0
    request_share: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkloadProfile:
    """`categories` in order of first appearance. `random_suspects` counts prompts that look like random characters
    or tokens; shorter ones (256 characters, 500 for random words) are not judged."""

    prompts: int
    categories: tuple[CategoryProfile, ...]
    random_suspects: int


def profile(workload: Workload) -> WorkloadProfile:
    """Counts, lengths, system messages and turns by category."""
    groups: dict[str | None, list[Prompt]] = {}
    for prompt in workload.prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    return WorkloadProfile(
        prompts=len(workload.prompts),
        categories=tuple(_category_profile(category, prompts) for category, prompts in groups.items()),
        random_suspects=workload.random_suspects,
    )


def _category_profile(category: str | None, prompts: list[Prompt]) -> CategoryProfile:
    characters = list(map(_characters, prompts))

    def share(has: Callable[[Prompt], object]) -> float:
        return fmean(bool(has(prompt)) for prompt in prompts)

    return CategoryProfile(
        category=category,
        prompts=len(prompts),
        characters_min=min(characters),
        characters_median=median(characters),
        characters_max=max(characters),
        system_share=share(lambda prompt: any(message.role == "system" for message in prompt.messages)),
        mean_turns=fmean(sum(message.role == "user" for message in prompt.messages) for prompt in prompts),
        tools_share=share(attrgetter("tools")),
        template_kwargs_share=share(attrgetter("template_kwargs")),
        request_share=share(attrgetter("request")),
    )


def _characters(prompt: Prompt) -> int:
    return sum(len(message.content) for message in prompt.messages)


def select(prompts: Sequence[Prompt], limit: int | None, seed: int) -> tuple[Prompt, ...]:
    """At most `limit` prompts, spread as `chosen` has it; None keeps all."""
    numbers = chosen([prompt.category for prompt in prompts], len(prompts) if limit is None else limit, seed)
    return tuple(prompts[number] for number in numbers)


def chosen(categories: Sequence[str | None], limit: int, seed: int) -> list[int]:
    """Numbers of at most `limit` prompts of these categories, as equal a number from each as there are prompts for, in
    file order. A larger limit with the same seed keeps what a smaller one chose, so that a run can be extended."""
    if limit >= len(categories):
        return list(range(len(categories)))
    groups: dict[str | None, list[int]] = {}
    for index, category in enumerate(categories):
        groups.setdefault(category, []).append(index)
    names = list(groups)
    random.Random(seed).shuffle(names)
    dealt: list[tuple[int, int, int]] = []  # round, the category's turn in it, index of the prompt
    for turn, name in enumerate(names):
        indices = groups[name]
        # A generator of its own for each category: prompts added to one do not reshuffle the others.
        random.Random(f"{seed}:{name}").shuffle(indices)
        dealt.extend((round_, turn, index) for round_, index in enumerate(indices))
    return sorted(index for _, _, index in sorted(dealt)[:limit])


def outline_lines(prompts: Iterable[Prompt]) -> str:
    """What can be told of private prompts, a line of JSON for each. `number` counts from 1 in the order of the file,
    prompts that were left out not counted. No key is one that a prompt file has, so that an outline is never taken for
    prompts."""
    lines = []
    for number, prompt in enumerate(prompts, start=1):
        roles = [message.role for message in prompt.messages]
        outline = {
            "number": number,
            "category": prompt.category,
            "characters": _characters(prompt),
            "message_count": len(roles),
            "user_messages": roles.count("user"),
            "has_system": "system" in roles,
        }
        lines.append(json.dumps(outline) + "\n")
    return "".join(lines)


def write_new(text: str, path: Path) -> None:
    """Write `text` to a file that is not there yet. Raises WorkloadError where something is, the workload itself above
    all, or where it cannot be written; then nothing is left behind."""
    try:
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        raise WorkloadError(
            "There is a file already, which is not overwritten", where=str(path), hint="Give --out another name."
        ) from None
    except OSError as error:
        raise WorkloadError(
            f"Cannot write the outline: {error.strerror}", where=str(path), hint="Give --out another name."
        ) from None
