"""Reading a field of somebody else's JSON. Absent and null are None; a value of another kind is AnswerError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from specbench.backends.server.failures import AnswerError

Json = Mapping[str, Any]
T = TypeVar("T")


def parsed(page: str | None) -> Json:
    """The JSON object of a page; empty where the server does not have the page. AnswerError for any other text."""
    try:
        value = {} if page is None else json.loads(page)
    except (ValueError, RecursionError):
        raise AnswerError("expected a JSON object, got another text") from None
    if not isinstance(value, dict):
        raise AnswerError(f"expected a JSON object, got {_shown(value)}")
    return value


def table(data: Json, key: str) -> Json:
    """An object; empty where there is none."""
    return _of(data, key, dict, "an object") or {}


def rows(data: Json, key: str) -> list[Json]:
    """A list of objects; empty where there is none."""
    value = _of(data, key, list, "a list") or []
    if not all(isinstance(row, dict) for row in value):
        raise AnswerError(f"{key} is {_shown(value)}, not a list of objects")
    return value


def counts(data: Json, key: str) -> tuple[int, ...] | None:
    """A list of counts."""
    value = _of(data, key, list, "a list")
    return None if value is None else tuple(_count(key, each) for each in value)


def count(data: Json, key: str) -> int | None:
    """A whole number, 0 or more."""
    value = data.get(key)
    return None if value is None else _count(key, value)


def seconds(data: Json, key: str, *, per_second: float = 1.0) -> float | None:
    """A duration in seconds; the field counts `per_second` of its units a second (1000: milliseconds)."""
    value = number(data, key)
    if value is None:
        return None
    if not value >= 0:
        raise AnswerError(f"{key} is {value:g}, not a duration")
    return value / per_second


def number(data: Json, key: str) -> float | None:
    """Any number."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise AnswerError(f"{key} is {_shown(value)}, not a number")
    return value


def text(data: Json, key: str) -> str | None:
    """A string."""
    return _of(data, key, str, "a string")


def flag(data: Json, key: str) -> bool | None:
    """True or false."""
    return _of(data, key, bool, "true or false")


def _of(data: Json, key: str, kind: type[T], called: str) -> T | None:
    value = data.get(key)
    if value is not None and not isinstance(value, kind):
        raise AnswerError(f"{key} is {_shown(value)}, not {called}")
    return value


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise AnswerError(f"{key} is {_shown(value)}, not a count")
    return value


def _shown(value: object) -> str:
    """Not the text of a prompt or an answer, which must not get into a message."""
    return repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"
