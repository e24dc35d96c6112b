"""A JSON value -> the record that a dataclass describes, every field of its type; ValueError says which is not.

Errors name fields and kinds of values, never values: what is stored may be private. A number is finite and below 1e12,
so that sums and ratios of numbers stay numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from specbench.validation import kind_of

Record = TypeVar("Record")

LARGEST = 1e12


def read_as(kind: type[Record], value: object, noun: str) -> Record:
    """`value` as the dataclass `kind`. ValueError: `times.total_s is text, not a number`, or with `noun` for the whole:
    `the line is a list, not an object`."""
    try:
        record: Record = _reader(cast(Any, kind))(value)
    except ValueError as error:
        raise ValueError(_whole(error, noun)) from None
    return record


def check_fields(values: object, kinds: dict[str, Any], noun: str) -> None:
    """Every value of the object whose key is in `kinds` is of that kind; other keys may hold anything. ValueError as
    `read_as`."""
    if not isinstance(values, dict):
        raise ValueError(f"{noun} is {kind_of(values)}, not an object")
    for name, kind in kinds.items():
        if name in values:
            try:
                _reader(kind)(values[name])
            except ValueError as error:
                raise ValueError(f"{noun}.{name}{error}".removeprefix(".")) from None


def _whole(error: ValueError, noun: str) -> str:
    words = str(error)
    return words[1:] if words.startswith(".") else noun + words


# A reader's message continues the name of what it reads: " is text, not a number", ".times lacks total_s".
_Read = Callable[[Any], Any]


@cache
def _reader(kind: Any) -> _Read:
    """How values of a type are read: dataclasses, tuples and dicts of them, unions with None, and plain values."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _one_of(inside)
    if origin in (Union, UnionType):
        (other,) = (each for each in inside if each is not NoneType)
        return _optional(_reader(other))
    if origin is tuple:
        return _many(_reader(inside[0]))
    if origin is dict:
        return _mapping(_reader(inside[1]))
    return _record(kind)


def _not(value: object, wanted: str) -> NoReturn:
    raise ValueError(f" is {kind_of(value)}, not {wanted}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        _not(value, "text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        _not(value, "true or false")
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
        _not(value, "a whole number")
    if not 0 <= value <= LARGEST:
        raise ValueError(f" is not from 0 to {LARGEST:g}")
    return value


def _number(value: Any) -> float:
    if type(value) is not float and type(value) is not int:  # JSON has no other kinds of them, and true is none
        _not(value, "a number")
    if not abs(value) <= LARGEST:
        raise ValueError(f" is not from -{LARGEST:g} to {LARGEST:g}")
    return value


_PLAIN: dict[Any, _Read] = {
    str: _text,
    bool: _flag,
    int: _count,
    float: _number,
    object: lambda value: value,
}


def _one_of(choices: tuple[str, ...]) -> _Read:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f" is none of {', '.join(choices)}")
        return value

    return read


def _optional(other: _Read) -> _Read:
    return lambda value: None if value is None else other(value)


def _many(each: _Read) -> _Read:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            _not(value, "a list")
        if (
            each is _count
            and set(map(type, value)) <= {int}
            and (not value or 0 <= min(value) <= max(value) <= LARGEST)
        ):
            return tuple(value)  # a list for every round of every trial: worth not being read one by one
        items = []
        for item in value:
            try:
                items.append(each(item))
            except ValueError as error:
                raise ValueError(f"[{len(items)}]{error}") from None
        return tuple(items)

    return read


def _mapping(each: _Read) -> _Read:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            _not(value, "an object")
        found = {}
        for name, item in value.items():
            try:
                found[name] = each(item)
            except ValueError as error:
                raise ValueError(f" has an entry that{error}" if error.args[0][0] == " " else str(error)) from None
        return found

    return read


def _record(kind: Any) -> _Read:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    whole = [(_taken(hints[name]), read) for name, read in readers.items()]
    order = list(readers)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            _not(value, "an object")
        if list(value) == order:  # as we write it: worth not being looked up key by key
            pairs = zip(whole, value.values(), strict=True)
            try:
                return kind(*[item if type(item) in taken else each(item) for (taken, each), item in pairs])
            except ValueError:
                pass  # said below, with the field's name
        if not needed <= value.keys():
            raise ValueError(f" lacks {', '.join(sorted(needed - value.keys()))}")
        if not value.keys() <= readers.keys():
            raise ValueError(" has a key that this version does not know")
        found = {}
        for name, item in value.items():
            try:
                found[name] = readers[name](item)
            except ValueError as error:
                raise ValueError(f".{name}{error}") from None
        return kind(**found)

    return read


def _taken(kind: Any) -> frozenset[type]:
    """Types of which a field of this kind takes every value as it is."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return frozenset(part for part in parts if part in (str, bool, NoneType))
