"""How a request fails, in words that may be shown and stored: never a server's message, which may quote what was asked.

Of an error answer only its HTTP status, its type and code, and a field of our own request are told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")
_QUOTED = re.compile(r"""['"`](\w+)\\?['"`]""")

# Fields that every chat request has, so that their names in a message say nothing.
_ALWAYS = frozenset({"model", "messages", "stream"})

LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Problem:
    """What an error answer tells: its HTTP `status`, type and code (`kind`), the `field` of our request that it is
    about, and whether it is about how the longest answer is asked for (`about_limit`)."""

    status: int
    kind: str | None = None
    field: str | None = None
    about_limit: bool = False

    def __str__(self) -> str:
        told = ", ".join(part for part in (self.kind, self.field and f"field `{self.field}`") if part)
        return f"HTTP status {self.status}" + (f" ({told})" if told else "")


class RefusedError(Exception):
    """The server will not answer this request, or not so that it can be measured, and would not next time either."""

    def __init__(self, problem: Problem | str) -> None:
        self.problem = problem if isinstance(problem, Problem) else None
        super().__init__(str(problem))

    def said(self, who: str) -> str:
        """The reason for which a prompt is left out."""
        return f"{who} refuses it: {self}" if self.problem else f"{who}: {self}"


class FailedError(Exception):
    """The request failed in a way that may pass: `kind` says how, without a word of what was asked or answered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


class AnswerError(ValueError):
    """An answer that is not as its engine answers. The message is ours: it may be shown, and quotes no text."""


def problem_of(status: int, page: str, sent: Mapping[str, Any]) -> Problem:
    """What an error answer to the request `sent` tells, as OpenAI, FastAPI and the engines write theirs."""
    texts = json.dumps([sent.get("messages"), sent.get("prompt"), sent.get("content")], ensure_ascii=False)
    errors = list(_errors(page))
    words = [word(error.get(key)) for error in errors for key in ("type", "error_type", "code")]
    kinds = dict.fromkeys(each for each in words if each and each not in texts and each.lower() not in ("none", "null"))
    message = " ".join(str(error.get(key, "")) for error in errors for key in ("message", "msg"))
    field = next((name for error in errors for name in _named(error) if name in sent), None)
    if field is None:
        mentioned = {name for name in _QUOTED.findall(message) if name in sent} - _ALWAYS
        field = mentioned.pop() if len(mentioned) == 1 else None
    return Problem(status, ", ".join(kinds) or None, field, field in LIMITS or LIMITS[1] in message)


def error_word(error: object) -> str:
    """The type or code of an error inside an answer, as `: InternalServerError`; empty where it has none."""
    told = error if isinstance(error, dict) else {}
    found = word(told.get("type")) or word(told.get("code"))
    return "" if found is None else f": {found}"


def word(value: object) -> str | None:
    """A name such as `invalid_request_error`; None for anything that could be more."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def as_word(value: object) -> str:
    """A server's own word for a message of ours, or of which kind it is."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return word(value) or f"a {type(value).__name__}"


def _errors(page: str) -> Iterator[Mapping[str, Any]]:
    """The errors of an error answer: OpenAI's `error`, FastAPI's list `detail`, or the whole of it."""
    try:
        answer = json.loads(page)
    except (ValueError, RecursionError):
        return
    if not isinstance(answer, dict):
        return
    error, detail = answer.get("error"), answer.get("detail")
    if isinstance(detail, list):
        yield from (each for each in detail if isinstance(each, dict))
    yield error if isinstance(error, dict) else answer | {"message": error or answer.get("message") or detail}


def _named(error: Mapping[str, Any]) -> Iterator[str]:
    """Names of fields that an error points at: `param` of OpenAI's, such as messages[0].content, `loc` of FastAPI's."""
    param, place = error.get("param"), error.get("loc")
    if isinstance(param, str):
        yield re.split(r"[.\[]", param)[0]
    if isinstance(place, list):
        yield from (part for part in place if isinstance(part, str))
