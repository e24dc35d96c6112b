"""A row -> what is asked in it. Shapes are tried in the order of `SHAPES`; the first one present wins.

A shape reader gets the value under its key, its place for errors, and the fields around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from specbench.records import Message
from specbench.validation import kind_of
from specbench.workload.beside import SYSTEM, read_beside
from specbench.workload.conversation import Messages, conversation, first_turn, looks_like_turns, text_prompt, unpacked
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.naming import list_names

# How a conversation begins that was written into a cell as JSON, or as Python prints a list.
_TURNS_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*(["'])(role|from|speaker|content|value)\1\s*:""")


@dataclass(frozen=True, slots=True)
class Asked:
    """One row, read: the conversation up to where the answer begins, and what stands beside it as Prompt has it.
    `unused` names fields that would change the prompt or its answer, `sampling` those that are a run's own settings."""

    messages: Messages
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    sampling: tuple[str, ...] = ()


def asked_in(row: object, column: str | None = None) -> Asked:
    """Raises SkipRowError and MalformedRowError, which leave the row out."""
    if isinstance(row, str):
        if column is not None:
            raise MalformedRowError("the rows are plain text without columns", "Leave out --column.")
        return Asked(text_prompt(row))
    if not isinstance(row, dict):
        raise MalformedRowError(f"the row is {kind_of(row)}, not an object", "Give one object or one string a row.")
    key = _key_of(row, column)
    if row[key] is None:
        raise SkipRowError("empty prompt")
    request = _request_in(key, row[key])
    if request is not None:
        # What stands beside the whole request is bookkeeping, but for a system text and tools.
        outer = {name: row[name] for name in (*SYSTEM, "tools") if name in row and name != key}
        return _request({**outer, **request}, key)
    return together(SHAPES.get(key, _text_or_conversation), row, key, key, request=False)


def _key_of(row: Mapping[str, Any], column: str | None) -> str:
    if column is not None:
        if column not in row:
            raise MalformedRowError(f"no column {column}; found: {list_names(row)}", "Correct --column NAME.")
        return column
    for key in SHAPES:
        # Parquet and data frames fill the shapes a row lacks with null. `body` is a batch line only as an object:
        # elsewhere the word names the text of a mail.
        if row.get(key) is not None and (key != "body" or isinstance(unpacked(row[key]), dict)):
            return key
    if any(key in row for key in SHAPES if key != "body"):
        raise SkipRowError("empty prompt")
    # A body that is there was no batch line, and naming it again would help nobody.
    shapes = ", ".join(key for key in SHAPES if key not in row)
    raise MalformedRowError(
        f"no prompt found in the row; its columns: {list_names(row)}",
        f"Name the prompt's column with --column NAME, or use one of {shapes}.",
    )


def _request_in(key: str, value: object) -> Mapping[str, Any] | None:
    """A whole request under one key: a line of OpenAI's batch API has it under `body`, traces under any name."""
    held = unpacked(value)
    if isinstance(held, dict) and (key == "body" or isinstance(held.get("messages"), list)):
        return held
    return None


def _request(fields: Mapping[str, Any], place: str) -> Asked:
    for key, read in (("messages", _conversation), ("prompt", _text_or_conversation)):
        if fields.get(key) is not None:
            return together(read, fields, key, f"{place}.{key}", request=True)
    raise MalformedRowError(
        f"the batch line's body holds neither messages nor prompt; its keys: {list_names(fields)}",
        "Use lines for /v1/chat/completions or /v1/completions.",
    )


Reader: TypeAlias = Callable[[Any, str, Mapping[str, Any]], Messages]


def together(read: Reader, fields: Mapping[str, Any], key: str, place: str, *, request: bool) -> Asked:
    """The conversation, and what stands beside it."""
    more = fields.get("extra_body")  # of OpenAI's client, which puts it among the others
    fields = {**fields, **more} if isinstance(more, dict) else fields
    messages = read(fields[key], place, fields)
    found = read_beside(fields, messages, key, request=request)
    opening = () if found.system is None else (Message("system", found.system),)
    return Asked(
        (*opening, *found.history, *messages),
        found.tools,
        found.template_kwargs,
        found.request,
        tuple(found.unused),
        tuple(found.sampling),
    )


def _text_or_conversation(value: object, place: str, fields: Mapping[str, Any]) -> Messages:
    """A text that is the JSON of a conversation is that conversation, whatever its column is called."""
    if isinstance(value, str) and not looks_like_turns(unpacked(value)):
        return text_prompt(value)
    return conversation(value, place)


def _conversation(value: object, place: str, fields: Mapping[str, Any]) -> Messages:
    return conversation(value, place)


def _turns(value: object, place: str, fields: Mapping[str, Any]) -> Messages:
    return first_turn(value, place)


# What an instruction is about: Alpaca's, LLaMA-Factory's and Dolly's names for it.
_INPUTS = ("input", "query", "context")


def _alpaca(value: object, place: str, fields: Mapping[str, Any]) -> Messages:
    if looks_like_turns(unpacked(value)):
        return conversation(value, place)
    parts = [_string(value, place), *(_string(fields[key], key) for key in _INPUTS if fields.get(key) is not None)]
    return text_prompt("\n\n".join(part for part in parts if part.strip()))


SHAPES: dict[str, Reader] = {
    "messages": _conversation,
    "body": _text_or_conversation,  # as text a mail's; as an object a request, read before
    "conversations": _conversation,
    "turns": _turns,
    "prompt": _text_or_conversation,
    "instruction": _alpaca,
}


def begins_as_turns(text: str) -> bool:
    """Whether a text that was read as text begins like a conversation: cut short, or printed by Python."""
    return _TURNS_AS_TEXT.match(text) is not None


def _string(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise MalformedRowError(f"{key} is {kind_of(value)}, not text", "Correct the row or name --column NAME.")
    return value
