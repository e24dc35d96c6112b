"""What keeps a workload from carrying a verdict, as data with a cure."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.records import Caution, Prompt

FEWEST_PROMPTS = 10
TOLERATED_SHARE = 0.05  # of repeats, and of random-looking prompts


def cautions_of(prompts: Sequence[Prompt], suspects: int, id_clashes: int) -> tuple[Caution, ...]:
    """few-prompts, repeated-prompts, random-prompts, duplicate-ids. `suspects` of the prompts look random,
    `id_clashes` of them had to be renamed."""
    cautions: list[Caution] = []
    total = len(prompts)
    if total < FEWEST_PROMPTS:
        cautions.append(
            Caution(
                "few-prompts",
                f"the workload has {total} prompt{'' if total == 1 else 's'}, too few to judge how prompts differ",
                f"Add prompts: {FEWEST_PROMPTS} at the very least, 30 or more for a narrow interval.",
            )
        )
    repeats = total - len({prompt.sha256 for prompt in prompts})
    if repeats > TOLERATED_SHARE * total:
        cautions.append(
            Caution(
                "repeated-prompts",
                f"{repeats} of {total} prompts repeat another one exactly; repeats warm the prompt cache and count "
                "one prompt's acceptance several times",
                "Remove the repeats, unless the traffic repeats itself like this.",
            )
        )
    if suspects > TOLERATED_SHARE * total:
        cautions.append(
            Caution(
                "random-prompts",
                f"{suspects} of {total} prompts look like random characters or tokens; acceptance on them says "
                "nothing about real text",
                "Measure on prompts from the real traffic.",
            )
        )
    if id_clashes:
        cautions.append(
            Caution(
                "duplicate-ids",
                f"{id_clashes} of {total} prompts had the id of another prompt and were renamed with #2, #3, ...",
                "Give each prompt an id of its own.",
            )
        )
    return tuple(cautions)
