"""What several commands share: options, of which every setting of a command has one by its declaration, finding a run,
printing its tables or JSON, and the exit code under --strict.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand

from specbench.config import SETTINGS
from specbench.errors import StoreError
from specbench.settings import GROUPS, Group, Setting, check_all
from specbench.text import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from specbench.analysis.contract import Summary
    from specbench.records import Call
    from specbench.store import StoredRun


Keys: TypeAlias = Mapping[str, Any]


def option(group: Group, words: str, *flags: str, **more: Any) -> Any:
    """An option in a group of --help; without `flags` it is called as its parameter is."""
    return typer.Option(*flags, help=words, rich_help_panel=group, **more)


ConfigFile = Annotated[Path | None, typer.Option(help="YAML file; flags override it.  [default: configs/default.yaml]")]
RunsIn = Annotated[Path, option("output", "Where run folders are.")]
AsJson = Annotated[bool, option("output", "One JSON object on stdout.", "--json")]
Quiet = Annotated[bool, option("output", "No progress on stderr.", "--quiet")]
Strict = Annotated[bool, option("decision", "Exit 3 on NO-GO and 4 on UNCLEAR.", "--strict")]


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


STRICT_EXIT = {"GO": 0, "UNCLEAR": 4, "NO-GO": 3}


def run_folder(named: Path | None, out: Path, *, timed: bool = False) -> Path:
    """The folder that the user names, by its path or as `@1`; unnamed the newest of a run, if `timed` of one with a
    wall clock or over recorded answers, which have none."""
    from specbench.store import find_run, find_runs, read_record

    if named is not None:
        return find_run(named, out)
    others = {"probe", "replay"} if timed else {"probe"}
    for folder in find_runs(out):
        record = read_record(folder)
        if record.command not in others or record.answers is not None:
            return folder
    raise StoreError("No run yet", where=str(out), hint="Run `specbench sweep` first.")


def sayer(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))


def given(keys: Keys) -> dict[str, Any]:
    """What was given, checked as settings of a run are. Raises ConfigError."""
    return check_all({key: value for key, value in keys.items() if value is not None}, SETTINGS, "flags")


def print_page(page: RenderableType, folder: Path | str | None = None) -> None:
    """Tables on stdout, and the run folder that they are from where there is one."""
    from rich.console import Console

    console = Console()
    console.print(page)
    if folder is not None:
        console.print(f"Run folder: {clean(folder)}", highlight=False, markup=False, soft_wrap=True)


def print_found(found: Any, macro: str, as_json: bool, folder: Path | str | None = None) -> None:
    """What a command found: one JSON object, or that page of terminal.j2."""
    if as_json:
        print_json(found)
        return
    from specbench.report.layout import TerminalPage

    print_page(TerminalPage(macro, found), folder)


def print_json(found: Any, **more: Any) -> None:
    """A record as one JSON object on stdout, with the words of its codes."""
    from specbench.report.dialect import json_of

    typer.echo(json.dumps(json_of(found) | more, allow_nan=False))


def show_replay(
    folder: Path, gammas: Sequence[int], cutoff: float, as_json: bool, *, best: bool = False, costs: Path | None = None
) -> None:
    """Print the replay of a stored run, priced by the run's own probe or by that of the folder `costs`, where there is
    one; with `best` also the search over cut-offs."""
    from specbench.analysis.replayed import priced, prices_of
    from specbench.api import replay_of
    from specbench.store import read_run

    stored = read_run(folder)
    stored = replace(stored, run=priced(stored.run, costs))
    if best and not prices_of(stored.run)[1]:
        raise StoreError(
            "This run did not time the models, so no pair can be called best",
            where=str(folder),
            hint="Give --costs the folder of a specbench probe.",
        )
    if stored.run.answers is not None:
        show_recorded(stored, gammas, cutoff, as_json)
        return
    found = replay_of(stored, gammas, cutoff, best=best)
    print_found(replace(found, warnings=stored.run.warnings), "replayed", as_json, folder)


def show_recorded(stored: StoredRun, gammas: Sequence[int], cutoff: float, as_json: bool) -> None:
    """Print what drafts would have got on recorded answers; with costs also what they predict."""
    from specbench.api import recorded_acceptance

    print_found(recorded_acceptance(stored, gammas, cutoff), "recorded", as_json, stored.folder)
    if not as_json:
        typer.echo(f"For the acceptance brief: specbench brief {stored.folder}", err=True)


def show(summary: Summary, as_json: bool, strict: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        from specbench.report.layout import sweep_page

        print_page(sweep_page(summary), summary.run)
        typer.echo(f"For the decision brief: specbench brief {summary.run}", err=True)
    if strict:
        exit_on(summary.verdict)


def exit_on(verdict: Call) -> None:
    """Under --strict the verdict on the whole run is the exit code."""
    raise typer.Exit(STRICT_EXIT[verdict])
