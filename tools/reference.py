"""docs/reference.md: every command, option and setting, read from the command line and the declarations, with the notes
of docs/reference.yaml in their places."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, get_args

import typer.main
import yaml
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from specbench.cli.app import app
from specbench.config import SETTINGS
from specbench.settings import GROUPS, Setting
from tools.configuration import meaning, value_of, written

Param: TypeAlias = TyperArgument | TyperOption

KINDS = {"str": "text", "int": "whole number", "float": "number", "Path": "path"}


@dataclass(frozen=True, slots=True)
class CommandNotes:
    """What help texts are too short for. `unset` is what an option of this command stands for that is not given."""

    note: str = ""
    unset: str | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notes:
    """`commands` by name, in the order of the page; commands that share a section share the notes of the first.
    `every` is said of an option wherever the command has no note of its own on it."""

    commands: dict[str, CommandNotes] = field(default_factory=dict)
    every: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def read_notes(path: Path) -> Notes:
    """Raises TypeError for a key that is no field of Notes or CommandNotes."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    commands = {name: CommandNotes(**(notes or {})) for name, notes in values.pop("commands").items()}
    return Notes(commands, **values)


def reference(program: TyperGroup, notes: Notes, settings: Mapping[str, Setting]) -> str:
    """The page. Raises ValueError for a note on a command or an option that is not there."""
    _refuse_stale(program, notes)
    groups = _groups(program, notes)
    titles = [" and ".join(names) for names in groups]
    links = [f"[{title}](#{title.replace(' ', '-')})" for title in [*titles, "settings", "environment"]]
    parts = [
        "# Reference",
        "<!-- Written by `make docs` from the command line, specbench/config.py and docs/reference.yaml. -->",
        "Every command with its arguments and options, and every key of the configuration. The README says what to use "
        "when, [contract.md](contract.md) what `--json` prints and what the exit codes mean.",
        " · ".join(links),
        "`--help`, alone or after a command, prints the same in short.",
        _options(program, CommandNotes(), notes.every, {}),
    ]
    defaults = {key: setting.shipped for key, setting in settings.items()}
    for names, title in zip(groups, titles, strict=True):
        commands = {name: _commands(program)[name] for name in names}
        parts.append(f"## {title}\n\n{_section(commands, notes, defaults)}")
    parts += [_settings(settings), _environment(notes)]
    return "\n\n".join(parts) + "\n"


def _commands(program: TyperGroup) -> dict[str, TyperCommand]:
    return {name: found for name, found in program.commands.items() if isinstance(found, TyperCommand)}


def _params(command: TyperCommand | TyperGroup) -> list[Param]:
    return [param for param in command.params if isinstance(param, Param) and not param.hidden]


def _groups(program: TyperGroup, notes: Notes) -> list[list[str]]:
    """Commands in the order of the notes, others after them; those that are one function share a section."""
    commands = _commands(program)
    groups: dict[Any, list[str]] = {}
    for name in dict.fromkeys([*notes.commands, *commands]):
        function = commands[name].callback
        assert function is not None
        groups.setdefault(inspect.unwrap(function), []).append(name)
    return list(groups.values())


def _section(commands: dict[str, TyperCommand], notes: Notes, defaults: dict[str, Any]) -> str:
    first, command = next(iter(commands.items()))
    own = notes.commands.get(first, CommandNotes())
    arguments = "".join(f" {_usage(param)}" for param in _params(command) if isinstance(param, TyperArgument))
    heads = [f"`specbench {name}{arguments}`: {_flat(each.help)}" for name, each in commands.items()]
    taken = defaults if any(param.name == "config" for param in command.params) else {}
    return "\n\n".join(filter(None, [*heads, own.note.strip(), _options(command, own, notes.every, taken)]))


def _options(
    command: TyperCommand | TyperGroup, own: CommandNotes, every: dict[str, str], taken: dict[str, Any]
) -> str:
    """`taken` are the values of the configuration, which options of the same name stand for that are not given."""
    rows = []
    for param in _params(command):
        text, _, default = _flat(param.help).partition("[default: ")
        said = [found[name] for found in (own.options, every) for name in _names(param) if name in found]
        shown = default.rstrip("]") or _default(param, taken, own.unset)
        rows.append((" / ".join(map(_code, _names(param))), _kind(param), shown, " ".join([text.strip(), *said[:1]])))
    return _table(("option", "value", "default", "what it does"), rows)


def _default(param: Param, taken: dict[str, Any], unset: str | None) -> str:
    if isinstance(param, TyperOption) and param.is_flag:
        return "on" if param.default else "off"
    if param.default is not None:
        return _code(param.default)
    if param.name in taken:
        return _value(taken[param.name])
    return "must be given" if param.required else unset or "none"


def _kind(param: Param) -> str:
    if isinstance(param, TyperOption) and param.is_flag:
        return "flag"
    descriptor = param.type_descriptor
    hint = (*get_args(descriptor.annotation), descriptor.annotation)[0]
    kind = " or ".join(map(_code, descriptor.choices or ())) or KINDS[hint.__name__]
    return f"{kind}, repeatable" if descriptor.is_list else kind


def _names(param: Param) -> list[str]:
    if isinstance(param, TyperArgument):
        return [str(param.name).upper()]
    return [*param.opts, *param.secondary_opts]


def _usage(param: TyperArgument) -> str:
    (name,) = _names(param)
    name += "..." if param.nargs == -1 else ""
    return name if param.required else f"[{name}]"


def _settings(settings: Mapping[str, Setting]) -> str:
    """A table for each group; where a file of one's own that lacks the key means another value, both."""
    parts = [
        "## settings",
        "The keys of a file for `--config`, and their values in `configs/default.yaml`, which is used without one. A "
        "key that a file of your own leaves out has the same value, unless the table says otherwise. Flags go before "
        "the file. An unknown key is an error, with a suggestion. The keys of the decision are those of `policy`. The "
        "Python interface takes all of them.",
    ]
    for group in GROUPS:
        rows = []
        for setting in (each for each in settings.values() if each.declared.group == group):
            default = _code(value_of(setting))
            if setting.shipped != setting.default:
                default += f"; `{written(setting.default)}` where your file leaves it out"
            names = " / ".join(map(_code, (setting.key, *setting.declared.also)))
            flags = " / ".join(map(_code, setting.flags)) if setting.declared.on else "no flag"
            rows.append((names, default, flags, f"{meaning(setting)}."))
        if rows:
            parts += [f"### {group}", _table(("key", "value", "flag", "meaning"), rows)]
    return "\n\n".join(parts)


def _environment(notes: Notes) -> str:
    rows = [(_code(name), meaning) for name, meaning in notes.environment.items()]
    return f"## environment\n\n{_table(('variable', 'what it does'), rows)}"


def _refuse_stale(program: TyperGroup, notes: Notes) -> None:
    known = {
        name: {own for param in _params(command) for own in _names(param)}
        for name, command in _commands(program).items()
    }
    stale = [name for name in notes.commands if name not in known]
    for name, said in notes.commands.items():
        stale += [f"{name} {own}" for own in said.options if own not in known.get(name, ())]
    stale += [own for own in notes.every if not any(own in names for names in known.values())]
    if stale:
        raise ValueError(f"docs/reference.yaml has notes on what is not there: {', '.join(stale)}")


def _value(value: Any) -> str:
    """A default of the configuration as a flag has it."""
    if value is None or value == ():
        return "none"
    return _code(",".join(map(str, value)) if isinstance(value, tuple) else value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in cells)


def _cell(text: str) -> str:
    """One line of Markdown: bars do not end the cell, and `<name>` outside code is no tag."""
    parts = _flat(text).replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _code(value: object) -> str:
    return f"`{value}`"


def page(notes: Path) -> str:
    """The page as it should be now, with the notes of that file."""
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    return reference(program, read_notes(notes), SETTINGS)
