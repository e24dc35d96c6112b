"""What one message says: a text, or content parts of OpenAI's, Anthropic's and Gemini's interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specbench.validation import kind_of
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.naming import list_names

_TEXT = ("text", "input_text", "output_text", "summary_text")
_THOUGHT = ("thinking", "reasoning", "reasoning_text")
_CURE = "Correct the row or name --column NAME."


@dataclass(frozen=True, slots=True)
class Result:
    """The answer of a tool among the parts of a message."""

    id: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """`text` is None where there is none; `thoughts` went before it; `calls` of tools are as they stand."""

    text: str | None = None
    thoughts: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    results: tuple[Result, ...] = ()


def read_content(content: object, place: str) -> Content:
    """Raises SkipRowError for a part that is no text, MalformedRowError for what is no content."""
    if content is None or isinstance(content, str):
        return Content(content)
    if isinstance(content, dict):
        parts = content.get("parts")
        return read_content(parts, place) if isinstance(parts, list) else _joined([_part(content, place)])
    if not isinstance(content, list):
        raise MalformedRowError(f"{place} is {kind_of(content)}, not text", _CURE)
    parts = [_part(part, f"{place}[{index}]") for index, part in enumerate(content) if part is not None]
    return _joined(parts)


def _joined(parts: list[Content]) -> Content:
    # vLLM joins the text parts of one message by line breaks where the chat template wants a string.
    texts = [part.text for part in parts if part.text is not None]
    return Content(
        text="\n".join(texts) if texts or not parts else None,
        thoughts="\n".join(part.thoughts for part in parts if part.thoughts),
        calls=tuple(call for part in parts for call in part.calls),
        results=tuple(result for part in parts for result in part.results),
    )


def _part(part: object, place: str) -> Content:
    if isinstance(part, str | list):
        return read_content(part, place)
    if not isinstance(part, dict):
        raise MalformedRowError(f"{place} is {kind_of(part)}, not a content part", "A part has a type and a text.")
    kind = part.get("type")
    if kind == "tool_use":
        return Content(calls=(part,))
    if kind == "tool_result":
        own = part.get("tool_use_id")
        return Content(
            results=(
                Result(own if isinstance(own, str) else None, read_content(part.get("content"), place).text or ""),
            )
        )
    if kind == "refusal":
        return Content(_string(part.get("refusal"), f"{place}.refusal"))
    if kind in _THOUGHT:
        found = next((part[key] for key in (*_THOUGHT, "text", "summary", "content") if part.get(key) is not None), "")
        return Content(thoughts=read_content(found, place).text or "")
    if kind in _TEXT or (kind is None and "text" in part):
        text = part.get("text")
        return Content(_string(text.get("value") if isinstance(text, dict) else text, f"{place}.text"))
    raise SkipRowError(f"not text: a content part of type {list_names([kind])}")


def _string(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise MalformedRowError(f"{place} is {kind_of(value)}, not text", _CURE)
    return value
