"""docs/reference.md: every command, option and setting, read from the command line and the declarations, with the notes
of docs/reference.yaml in their places."""

from __future__ import annotations

import inspect
from collections import Counter
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
    `every` is said of an option where the command has no note of its own on it. `drafts` are the forms of --draft."""

    commands: dict[str, CommandNotes] = field(default_factory=dict)
    every: dict[str, str] = field(default_factory=dict)
    drafts: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def read_notes(path: Path) -> Notes:
    """Raises TypeError for a key that is no field of Notes or CommandNotes."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    commands = {name: CommandNotes(**(notes or {})) for name, notes in values.pop("commands").items()}
    return Notes(commands, **values)


def reference(program: TyperGroup, notes: Notes, settings: Mapping[str, Setting]) -> str:
    """The page. What several commands share stands on it once: options in `shared`, settings in their lists. Raises
    ValueError for a note on a command or an option that is not there."""
    _refuse_stale(program, notes)
    groups = _groups(program, notes)
    titles = [" and ".join(names) for names in groups]
    shared = _shared(program, settings)
    parts = [
        "# Reference",
        "<!-- Written by `make docs` from the command line, specbench/config.py and docs/reference.yaml. -->",
        "[contract.md](contract.md) has what `--json` prints and what the exit codes mean.",
        "`specbench --version` shows the version. Every command takes `--help`, and many of them these:",
        _list(_row(param, notes.every, None) for param in shared.values()),
    ]
    for names, title in zip(groups, titles, strict=True):
        commands = {name: _commands(program)[name] for name in names}
        parts.append(f"## {title}\n\n{_section(commands, notes, settings, shared)}")
    return "\n\n".join([*parts, _settings(settings, notes), _drafts(notes), _environment(notes)]) + "\n"


def _said(param: Param) -> tuple[str, str]:
    """Its name, and what help says of it: by this two options are the same."""
    return _names(param)[0], _flat(param.help)


def _shared(program: TyperGroup, settings: Mapping[str, Setting]) -> dict[tuple[str, str], Param]:
    """Options that three or more commands have alike, and that are no settings."""
    params = [param for command in _commands(program).values() for param in _params(command)]
    counts = Counter(map(_said, params))
    helps = {_flat(each.declared.help) for each in settings.values()}
    return {
        _said(param): param
        for param in params
        if counts[_said(param)] >= 3 and isinstance(param, TyperOption) and _help(param) not in helps
    }


def _commands(program: TyperGroup) -> dict[str, TyperCommand]:
    return {name: found for name, found in program.commands.items() if isinstance(found, TyperCommand)}


def _params(command: TyperCommand) -> list[Param]:
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


def _section(
    commands: dict[str, TyperCommand],
    notes: Notes,
    settings: Mapping[str, Setting],
    shared: Mapping[tuple[str, str], Param],
) -> str:
    """What a command has of its own in a list; its settings and what it shares by name alone."""
    first, command = next(iter(commands.items()))
    own = notes.commands.get(first, CommandNotes())
    arguments = "".join(f" {_usage(param)}" for param in _params(command) if isinstance(param, TyperArgument))
    heads = [f"`specbench {name}{arguments}`: {_flat(each.help)}" for name, each in commands.items()]
    configured = any(param.name == "config" for param in command.params)
    plain: list[Param] = []
    named: list[str] = []
    also: list[str] = []
    for param in _params(command):
        setting = settings.get(str(param.name))
        if _said(param) in shared:
            also.append(_names(param)[0])
        elif setting is not None and _stands_for(param, setting, configured, own.unset):
            named.append(setting.flags[0])
        else:
            plain.append(param)
    before = f", else {own.unset}" if own.unset else ""
    flags = {each.flags[0] for each in settings.values() if each.declared.on}
    every = notes.every | own.options
    return "\n\n".join(
        [
            *heads,
            *filter(None, [own.note.strip()]),
            *([_list(_row(param, every, own.unset) for param in plain)] if plain else []),
            *([f"[Settings](#settings){before}: {'all' if flags == set(named) else _listed(named)}."] if named else []),
            *([f"Also: {_listed(also)}."] if also else []),
        ]
    )


def _stands_for(param: Param, setting: Setting, configured: bool, unset: str | None) -> bool:
    """Whether the option is the setting and no more, for its default is that of the configuration, or of the run."""
    shown = _shown(param, unset)
    if setting.flags[0] not in _names(param):
        return False
    if shown in (unset, setting.declared.unset):
        return True
    return configured and shown in ("none", "off", _value(setting.shipped))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _row(param: Param, said: Mapping[str, str], unset: str | None) -> tuple[str, str, str]:
    """An option, the kind of its value with its default, and what it does."""
    kind, shown = _kind(param), _shown(param, unset)
    notes = [said[name] for name in _names(param) if name in said]
    value = kind if shown in ("off", "none", "must be given") else f"{kind}; {shown}"
    return " / ".join(map(_code, _names(param))), value, " ".join([_help(param), *notes[:1]])


def _help(param: Param) -> str:
    return _flat(param.help).partition("[default: ")[0].strip()


def _shown(param: Param, unset: str | None) -> str:
    """What it stands for where it is not given."""
    default = _flat(param.help).partition("[default: ")[2].rstrip("]")
    if default:
        return default
    if isinstance(param, TyperOption) and param.is_flag:
        return "on" if param.default else "off"
    if param.default is not None:
        return _code(param.default)
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


def _settings(settings: Mapping[str, Setting], notes: Notes) -> str:
    """A list for each group; where a file of one's own that lacks the key means another value, both."""
    parts = [
        "## settings",
        "The keys of a file for `--config`, and their values in `configs/default.yaml`, which is used without one. "
        "Flags go before the file: that of `max_new_tokens` is `--max-new-tokens`, and so on. A key that your file "
        "leaves out has the same value, unless it says otherwise here; an unknown key is an error. Keys of the "
        "decision stand under `policy`.",
    ]
    sweep = notes.every | notes.commands.get("sweep", CommandNotes()).options
    for group in GROUPS:
        rows = []
        for setting in (each for each in settings.values() if each.declared.group == group):
            default = _code(value_of(setting))
            if setting.shipped != setting.default:
                default += f"; `{written(setting.default)}` where your file leaves it out"
            said = [sweep[flag] for flag in setting.flags if flag in sweep]
            flags = [] if setting.declared.on else ["No flag."]
            names = " / ".join(map(_code, (setting.key, *setting.declared.also)))
            rows.append((names, default, " ".join([f"{meaning(setting)}.", *said[:1], *flags])))
        if rows:
            parts += [f"### {group}", _list(rows)]
    return "\n\n".join(parts)


def _drafts(notes: Notes) -> str:
    rows = [(_code(form), "", meaning) for form, meaning in notes.drafts.items()]
    return f"## drafts\n\nWhat `--draft` takes.\n\n{_list(rows)}"


def _environment(notes: Notes) -> str:
    rows = [(_code(name), "", meaning) for name, meaning in notes.environment.items()]
    return f"## environment\n\n{_list(rows)}"


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


def _list(rows: Iterable[tuple[str, str, str]]) -> str:
    """A line for each: its names, the kind of its value or the value itself, and what it does."""
    return "\n".join(
        f"- {names}{f' ({_plain(value)})' if value else ''}: {_plain(text)}" for names, value, text in rows
    )


def _plain(text: str) -> str:
    """One line of Markdown, in which `<name>` outside code is no tag."""
    parts = _flat(text).split("`")
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
