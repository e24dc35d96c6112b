"""What a setting is: a field of RunConfig (or of Policy) that says once what it is called, what it may hold, what it
means, and who may set it. Options, YAML keys, their checks, the reference and the Python interface derive from that.

A value is checked by pydantic, by the type of its field (kinds.py).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from specbench.errors import ConfigError
from specbench.kinds import PATH, Range
from specbench.text import did_you_mean, shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Group = Literal["models", "prompts", "generation", "drafts", "server", "decision", "output"]
GROUPS: tuple[Group, ...] = get_args(Group)

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,39}")


@dataclass(frozen=True, slots=True)
class Declared:
    """What is said of a setting beside its name, type and default.

    `help` is its line in --help, in configs/default.yaml and in the reference. `on` are the commands with a flag for
    it; YAML and the Python interface take every setting. `also` are other names for it, `unset` says what None stands
    for, and `shipped` is its value in configs/default.yaml where that is not the default (None: it is). A `private`
    text is never stored; a setting that is not `measured` changes nothing that a trial measures, so a run goes on when
    it changes."""

    help: str
    group: Group
    on: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    unset: str | None = None
    shipped: Any = None
    metavar: str | None = None
    private: bool = False
    measured: bool = True


def setting(default: Any, help: str, group: Group, on: tuple[str, ...] = (), **more: Any) -> Any:  # noqa: A002
    """A field of a dataclass that is a setting; `more` are fields of Declared."""
    return dataclasses.field(default=default, metadata={"declared": Declared(help, group, on, **more)})


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting; `kind` is the annotated type of its field."""

    key: str
    kind: Any
    default: Any
    declared: Declared

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(f"--{name.replace('_', '-')}" for name in (self.key, *self.declared.also))

    @property
    def shipped(self) -> Any:
        return self.default if self.declared.shipped is None else self.declared.shipped

    @property
    def bare(self) -> Any:
        return _bare(self.kind)[0]

    @property
    def repeated(self) -> bool:
        return bool(self.bare == tuple[str, ...])

    @property
    def flag_type(self) -> Any:
        """What the command line makes of its words; what is not a number or a switch, `read` parses."""
        if self.repeated:
            return list[str]
        bare, notes = _bare(self.kind)
        number = bare in (int, float) and any(isinstance(note, Range) for note in notes)
        return Path if PATH in notes else bare if number or bare is bool else str

    def read(self, value: Any) -> Any:
        """The value of a flag, of YAML or of Python, checked. ValueError says what is wrong with it."""
        from pydantic import ValidationError

        try:
            return _adapter(self.kind).validate_python(value)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            own = first.get("ctx", {}).get("error")  # of a parser, in its own words
            raise ValueError(str(own) if own is not None else self._refusal(value)) from None

    def _refusal(self, value: Any) -> str:
        bare, notes = _bare(self.kind)
        if bare is bool:
            return f"{shown(value)} is not true or false"
        if get_origin(bare) is Literal:
            choices = get_args(bare)
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{shown(value)} is none of {', '.join(choices)}{hint}"
        (span,) = (note for note in notes if isinstance(note, Range))
        if bare is int:
            return f"{shown(value)} is not a whole number from {span.low} to {span.high}"
        return f"{shown(value)} is not a number {'above' if span.above else 'from'} {span.low:g} to {span.high:g}"


def settings_of(kind: type) -> dict[str, Setting]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        each.name: Setting(each.name, hints[each.name], each.default, each.metadata["declared"])
        for each in dataclasses.fields(kind)
        if "declared" in each.metadata
    }


def by_name(values: Mapping[Any, Any], settings: Mapping[str, Setting], where: str) -> dict[Any, Any]:
    """The values under the settings' own names. Raises ConfigError where one is given under two."""
    own = {other: key for key, each in settings.items() for other in each.declared.also}
    found: dict[Any, Any] = {}
    for name, value in values.items():
        key = own.get(name, name)
        if key in found:
            raise ConfigError(f"`{key}` is there under two names", where=where, hint="Leave one out.")
        found[key] = value
    return found


def check_all(values: Mapping[Any, Any], settings: Mapping[str, Setting], where: str) -> dict[str, Any]:
    """Every value checked, under its setting's own name. Raises ConfigError for the first that is not what it may be,
    and for a key that is no setting."""
    checked: dict[str, Any] = {}
    for key, value in by_name(values, settings, where).items():
        if key not in settings:
            # Anything but a plain name may be a line of a prompt whose indentation went wrong.
            plain = isinstance(key, str) and _PLAIN_NAME.fullmatch(key) is not None
            hint = did_you_mean(key if plain else "", settings, f"Known keys: {', '.join(settings)}.", "`{}`")
            what = f"Unknown key `{key}`" if plain else "A key that is no plain word"
            raise ConfigError(what, where=where, hint=hint)
        try:
            checked[key] = settings[key].read(value)
        except ValueError as error:
            raise ConfigError(f"`{key}`: {error}", where=where) from None
    return checked


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind, config={"strict": True})


def _bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """`Annotated[int, Range(1, 9)] | None` -> (int, (Range(1, 9),))."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        return _bare(inner)[0], tuple(notes)
    return kind, ()
