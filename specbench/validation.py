"""What comes from outside, checked: JSON or plain values in, typed values out, ValueError with one line for the rest.

pydantic checks, by the types of the records and the limits that stand in them. A message names places and kinds of
values, never a value: what is stored may be private, and of any size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

    from specbench.errors import UsageError

Kind = TypeVar("Kind")

_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    NoneType: "null",
}

# What pydantic wanted, by the type of its error.
_WANTED = {
    "string_type": "text",
    "literal_error": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing_size": "a whole number of that size",
    "float_type": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "dataclass_type": "an object",
}
# What is wrong with a value of the right type.
_BEYOND = {
    "greater_than_equal": "is below {ge:g}",
    "greater_than": "is not above {gt:g}",
    "less_than_equal": "is not a number up to {le:g}",
    "less_than": "is not below {lt:g}",
    **dict.fromkeys(("too_long", "string_too_long"), "has more than {max_length} entries"),
    **dict.fromkeys(("too_short", "string_too_short"), "is empty"),
    "json_invalid": "is not JSON: {error}",  # what Python's reader takes, such as half a surrogate pair
    "string_unicode": "holds half a surrogate pair",
    "value_error": "{error}",  # a check of ours, whose words follow the place
}

# What settings are told of a value that we wrote ourselves: it is not what people write.
STORED = "stored"

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def kind_of(value: object) -> str:
    """What a JSON value is, in words: "text", "a number", "a list"."""
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


def expanded(path: str, error: type[UsageError]) -> Path:
    """The path, `~` written out. Raises this `error` for the home directory of nobody, and for a path that the system
    does not look at: too long, or in a folder that is closed to the user."""
    try:
        found = Path(path).expanduser()
        found.exists()
    except RuntimeError:
        raise error("no such home directory", where=path, hint="Write the path in full.") from None
    except OSError as why:
        raise error(
            f"cannot read the path: {why.strerror}", where=path, hint="Check the path and its permissions."
        ) from None
    return found


def read_json(kind: type[Kind], data: bytes, noun: str) -> Kind:
    """UTF-8 JSON as `kind`, every value of exactly its type and no key beside. ValueError: `times.total_s is text, not
    a number`, or with `noun` for the whole: `the line lacks arm`. RecursionError where it is nested too deeply."""
    from pydantic import ValidationError

    adapter: TypeAdapter[Kind] = _adapter(cast(Any, kind))
    try:
        return adapter.validate_json(data, strict=True, extra="forbid", context=STORED)
    except ValidationError as error:
        value = strict_json(data)  # says in better words where a text is not JSON at all
        raise ValueError(_line(error, value, noun, adapter)) from None


def read_value(kind: type[Kind], value: object, noun: str) -> Kind:
    """The same for a value that is parsed already; lists may be tuples, and how strict the rest is, `kind` says."""
    from pydantic import ValidationError

    adapter: TypeAdapter[Kind] = _adapter(cast(Any, kind))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(_line(error, value, noun, adapter)) from None


def strict_json(data: bytes) -> Any:
    """json.loads without NaN, infinities, keys given twice and encodings but UTF-8, which Python takes and JSON does
    not. Raises ValueError and RecursionError."""
    return _STRICT.decode(data.decode())


def why_not(error: Exception) -> str:
    """What is wrong with a text that should be JSON, without quoting it: it may be private."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _line(error: ValidationError, value: object, noun: str, adapter: TypeAdapter[Any]) -> str:
    """The first fault, without the value that has it."""
    faults = error.errors(include_input=False, include_url=False)
    first = faults[0]
    place, code, context = first["loc"], first["type"], first.get("ctx", {})
    names = _fields(adapter)
    if code in _UNKNOWN:
        return f"{_path(place[:-1], names) or noun} has a key that this version does not know"
    if code == "missing":
        keys = sorted(str(one["loc"][-1]) for one in faults if (one["type"], one["loc"][:-1]) == (code, place[:-1]))
        return f"{_path(place[:-1], names) or noun} lacks {', '.join(keys)}"
    found, path = _at(value, place), _path(place, names) or noun
    if code == "literal_error" and isinstance(found, str):
        choices = context["expected"].replace(" or ", ", ").replace("'", "")
        return f"{path} is none of {choices}"
    if code in _WANTED:
        return f"{path} is {kind_of(found)}, not {_WANTED[code]}"
    return f"{path} {_BEYOND.get(code, 'is not what may be there').format_map(context)}"


def _at(value: Any, place: tuple[int | str, ...]) -> object:
    """The value at a place, as far as it is there: a union adds names of its own."""
    for part in place:
        try:
            value = value[part]
        except (LookupError, TypeError):
            continue
    return value


def _path(place: tuple[int | str, ...], names: Collection[str]) -> str:
    """`times.total_s`, `drafted[0]`; a key that is no name of ours is somebody's text: `drafts[].weight_bytes`."""
    words = ""
    for part in place:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            words += f".{part}" if part in names else "[]"
    return words.removeprefix(".")


@cache
def _fields(adapter: TypeAdapter[Any]) -> frozenset[str]:
    return frozenset(_names(adapter.json_schema()))


def _names(schema: object) -> Iterator[str]:
    """The fields that a JSON schema names, however deep."""
    if isinstance(schema, dict):
        yield from schema.get("properties", ())
        for inner in schema.values():
            yield from _names(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _names(inner)


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
