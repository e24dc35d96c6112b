"""What keeps a workload from carrying a verdict, as data with a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specbench.records import Caution, Prompt
from specbench.workload.naming import list_names

FEWEST_PROMPTS = 10
TOLERATED_SHARE = 0.05  # of repeats, and of random-looking prompts


@dataclass(frozen=True, slots=True)
class Seen:
    """What was counted while reading. `suspects` of the prompts look random, `id_clashes` had to be renamed,
    `turns_as_text` begin like a conversation and are none,
    `special_tokens` spell such tokens; `left_out` of the `rows` cannot be read; `unused` fields
    would change a prompt or its answer, `sampling` ones are a run's own, each with its number of rows."""

    suspects: int = 0
    id_clashes: int = 0
    turns_as_text: int = 0
    special_tokens: int = 0
    left_out: int = 0
    rows: int = 0
    unused: Mapping[str, int] = field(default_factory=dict)
    sampling: Mapping[str, int] = field(default_factory=dict)


def cautions_of(prompts: Sequence[Prompt], seen: Seen) -> tuple[Caution, ...]:
    """rows-left-out, fields-not-used, sampling-not-used, turns-as-text, special-tokens, few-prompts,
    repeated-prompts, random-prompts, duplicate-ids."""
    cautions: list[Caution] = _reading(len(prompts), seen)
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
    if seen.suspects > TOLERATED_SHARE * total:
        cautions.append(
            Caution(
                "random-prompts",
                f"{seen.suspects} of {total} prompts look like random characters or tokens; acceptance on them says "
                "nothing about real text",
                "Measure on prompts from the real traffic.",
            )
        )
    if seen.id_clashes:
        cautions.append(
            Caution(
                "duplicate-ids",
                f"{seen.id_clashes} of {total} prompts had the id of another prompt and were renamed with #2, #3, ...",
                "Give each prompt an id of its own.",
            )
        )
    return tuple(cautions)


def _reading(total: int, seen: Seen) -> list[Caution]:
    """What the rows have that was not read, or not as it may have been meant."""
    cautions = []
    if 2 * seen.left_out > seen.rows:
        cautions.append(
            Caution(
                "rows-left-out",
                f"{seen.left_out} of {seen.rows} rows cannot be read and are left out: the {total} that are left may "
                "say little about the whole",
                "Look at the reasons: the file may have another shape, or name its column with --column NAME.",
            )
        )
    if seen.unused:
        cautions.append(
            Caution(
                "fields-not-used",
                f"rows have fields that may change the prompt or its answer and are not used: {_counted(seen.unused)}",
                "Put into the prompt what belongs to it, or take the fields out if they do not.",
            )
        )
    if seen.sampling:
        cautions.append(
            Caution(
                "sampling-not-used",
                f"rows have settings of generation, and a run has its own: {_counted(seen.sampling)}",
                "Give the run those that your traffic has: --temperature, --top-p, --max-new-tokens and so on.",
            )
        )
    if seen.turns_as_text:
        cautions.append(
            Caution(
                "turns-as-text",
                f"{seen.turns_as_text} of {total} prompts begin like a list of messages, are not JSON, and were read "
                "as plain text",
                "Write conversations with json.dumps, and see that no cell was cut short.",
            )
        )
    if seen.special_tokens:
        cautions.append(
            Caution(
                "special-tokens",
                f"{seen.special_tokens} of {total} prompts spell what many tokenizers read as a special token, such as "
                "<|im_start|>: text of a user then opens a turn, or ends one",
                "They are encoded as transformers does it. Take them out unless the traffic has them.",
            )
        )
    return cautions


def _counted(fields: Mapping[str, int]) -> str:
    """`images (3 rows), suffix (1 row)`; what may be text of a prompt is not shown."""
    known = [name for name in fields if list_names([name]) == name]
    hidden = [name for name in fields if name not in known]
    parts = [f"{name} ({count} row{'' if count == 1 else 's'})" for name, count in fields.items() if name in known]
    return ", ".join([*parts, *([list_names(hidden)] if hidden else [])])
