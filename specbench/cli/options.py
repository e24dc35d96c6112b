"""Options: those that every setting of a command has by its declaration, and those that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand

from specbench.config import SETTINGS
from specbench.settings import GROUPS, Setting

Keys: TypeAlias = Mapping[str, Any]

ConfigFile = Annotated[Path | None, typer.Option(help="YAML file; flags override it.  [default: configs/default.yaml]")]
RunsIn = Annotated[Path, typer.Option(help="Where run folders are.", rich_help_panel="output")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel="output")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.", rich_help_panel="output")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 3 on NO-GO and 4 on UNCLEAR.", rich_help_panel="decision")]


@dataclass(frozen=True, slots=True)
class Own:
    """What a command has otherwise than the setting's declaration: its words, its default, its flag."""

    help: str | None = None
    default: Any = None
    unset: str | None = None
    flag: str | None = None


class Grouped(TyperCommand):
    """A command whose options stand in --help by group, as plain text of any width."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        parts: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if param.param_type_name == "argument" else "Options"
                title = (getattr(param, "rich_help_panel", None) or plain).capitalize()
                parts.setdefault(title, []).append(record)
        for title, records in parts.items():
            if not records:
                continue
            with formatter.section(title):
                formatter.write_dl(records)


def with_settings(command: str, **own: Own) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function an option for each setting that names the command. It gets what was given as `keys`, by the
    settings' names, None where nothing was; `own` is what this command has otherwise."""
    settings = [each for each in SETTINGS.values() if command in each.declared.on]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        others = [each for each in signature.parameters.values() if each.name != "keys"]
        options = [_option(each, own.get(each.key, Own())) for each in settings]

        @wraps(function)
        def run(**params: Any) -> None:
            keys = {each.key: _plain(params.pop(each.key)) for each in settings}
            function(keys=keys, **params)

        parameters = sorted(
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*options, *others)], key=_place
        )
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _option(setting: Setting, own: Own) -> inspect.Parameter:
    declared = setting.declared
    text, unset = own.help or declared.help, own.unset or declared.unset
    if unset is not None and (setting.shipped is None or own.unset is not None):
        text += f"  [default: {unset}]"
    flags = setting.flags if own.flag is None else (own.flag, *setting.flags)
    option = typer.Option(*flags, help=text, metavar=declared.metavar, rich_help_panel=declared.group)
    kind = setting.flag_type if own.default is not None else setting.flag_type | None
    return inspect.Parameter(
        setting.key, inspect.Parameter.KEYWORD_ONLY, default=own.default, annotation=Annotated[kind, option]
    )


def _place(parameter: inspect.Parameter) -> int:
    """Arguments and options of no group first, then group by group."""
    notes = getattr(parameter.annotation, "__metadata__", ())
    panel = next((note.rich_help_panel for note in notes if hasattr(note, "rich_help_panel")), None)
    return -1 if panel is None else GROUPS.index(panel)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
