"""What is in a workload, by category, before anything is measured on it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median

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
    characters = [sum(len(message.content) for message in prompt.messages) for prompt in prompts]
    with_system = sum(any(message.role == "system" for message in prompt.messages) for prompt in prompts)
    tools, kwargs, request = (
        sum(bool(getattr(prompt, name)) for prompt in prompts) for name in ("tools", "template_kwargs", "request")
    )
    turns = fmean(sum(message.role == "user" for message in prompt.messages) for prompt in prompts)
    return CategoryProfile(
        category=category,
        prompts=len(prompts),
        characters_min=min(characters),
        characters_median=median(characters),
        characters_max=max(characters),
        system_share=with_system / len(prompts),
        mean_turns=turns,
        tools_share=tools / len(prompts),
        template_kwargs_share=kwargs / len(prompts),
        request_share=request / len(prompts),
    )
