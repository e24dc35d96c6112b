"""The outline of a workload, to share where its prompts are private: how many, in which category, how long. No text, no
id and no hash, for whoever guesses a short prompt can confirm it by its hash.

An outline cannot be measured: acceptance depends on the words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from specbench.errors import WorkloadError
from specbench.records import Prompt


@dataclass(frozen=True, slots=True)
class Outline:
    """What is told of one prompt. `number` counts from 1 in the order of the file, prompts that were left out not
    counted; `characters` are Unicode code points over all messages. No key is one that a prompt file has, so that an
    outline is never taken for prompts."""

    number: int
    category: str | None
    characters: int
    message_count: int
    user_messages: int
    has_system: bool


def outlines(prompts: Iterable[Prompt]) -> Iterator[Outline]:
    """One for each prompt, in order."""
    for number, prompt in enumerate(prompts, start=1):
        roles = [message.role for message in prompt.messages]
        yield Outline(
            number=number,
            category=prompt.category,
            characters=sum(len(message.content) for message in prompt.messages),
            message_count=len(roles),
            user_messages=roles.count("user"),
            has_system="system" in roles,
        )


def outline_lines(prompts: Iterable[Prompt]) -> str:
    """The outlines as JSON lines."""
    return "".join(json.dumps(asdict(outline)) + "\n" for outline in outlines(prompts))


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
