"""What comes from outside, checked: plain values in, ValueError with one line for what is wrong.

A message names places and kinds of values, never a value: what is stored may be private, and of any size.
"""

from __future__ import annotations

import json
import math
from types import NoneType
from typing import Any, NoReturn

_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def kind_of(value: object) -> str:
    """What a JSON value is, in words: "text", "a number", "a list"."""
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


def strict_json(data: bytes) -> Any:
    """json.loads without NaN, infinities, keys given twice and encodings but UTF-8, which Python takes and JSON does
    not. Raises ValueError and RecursionError."""
    return _STRICT.decode(data.decode())


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


_STRICT = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)
