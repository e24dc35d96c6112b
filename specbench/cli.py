"""The command line: parse, call, print. stdout is the product, stderr the progress; heavy imports wait until a
command needs them."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from specbench import __version__
from specbench.errors import ConfigError, SpecbenchError, StoreError

if TYPE_CHECKING:
    from specbench.records import Policy
    from specbench.report.contract import Summary

STRICT_EXIT = {"GO": 0, "UNCLEAR": 4, "NO-GO": 3}  # from the best verdict to the worst


class Group(TyperGroup):
    """Prints specbench's own errors as one line on stderr; a traceback is a bug of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SpecbenchError as error:
            typer.echo(f"specbench: {error.line()}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("specbench: interrupted. Run the same command again: it continues where it stopped.", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            # click's own errors know their exit code; anything else is a bug of ours
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or os.environ.get("SPECBENCH_DEBUG"):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
            cure = "What was finished is kept. SPECBENCH_DEBUG=1 shows the traceback; please report it."
            typer.echo(f"specbench: a bug of specbench or of a library: {place}. {cure}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Should we turn speculative decoding on, on our traffic, with this draft? Measures, with intervals.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"specbench {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


RUN_HELP = {
    "measure": "Time the target alone and target + draft at one gamma, paired and interleaved.",
    "sweep": "Time the target alone and target + draft at every gamma; find the best.",
}


@app.command("measure", help=RUN_HELP["measure"])
@app.command("sweep", help=RUN_HELP["sweep"])
def measure_or_sweep(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; flags override it.  [default: configs/default.yaml]")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Model id or directory.")] = None,
    draft: Annotated[list[str] | None, typer.Option(help="Draft model id or directory; repeatable.")] = None,
    workload: Annotated[str | None, typer.Option(help="Prompt file, or hub:ID for a data set.")] = None,
    gamma: Annotated[
        str | None, typer.Option(help="Draft lengths: 1..8, 1..8..2 or 1,2,4; for measure just one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most N prompts, spread over the categories.")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the prompt.")] = None,
    category_column: Annotated[str | None, typer.Option(help="Column that holds the category.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Put before prompts that have none.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to generate at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off.")] = None,
    seed: Annotated[int | None, typer.Option(help="For sampling, order and selection.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [default: the free cores less one]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences at a time; only 1 in this version.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Measure every prompt in every arm N times.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Smallest speedup worth having.")] = None,
    metric: Annotated[str | None, typer.Option(help="What the verdict is on: decode or e2e.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Of intervals and verdicts, such as 0.95.")] = None,
    trust_remote_code: Annotated[list[str] | None, typer.Option(help="Model whose own code may run.")] = None,
    keep_text: Annotated[bool | None, typer.Option("--keep-text", help="Store prompt and output texts.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where run folders go.")] = None,
    name: Annotated[str | None, typer.Option(help="Part of the run folder's name.")] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh", help="Demand an unfinished run, or start a new one.  [default: resume if any]"
        ),
    ] = None,
    replay_only: Annotated[
        bool, typer.Option("--replay-only", help="Acceptance at every gamma from batched passes, no wall clock.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 on NO-GO and 4 on UNCLEAR.")] = False,
) -> None:
    flags = dict(ctx.params)
    for own in ("config", "resume", "replay_only", "as_json", "quiet", "strict"):
        flags.pop(own)
    flags["out"] = None if out is None else str(out)
    flags = {key: None if value in ([], ()) else value for key, value in flags.items()}
    from specbench.config import load_config
    from specbench.shipped import shipped

    command = str(ctx.command.name)
    settings = load_config(config or shipped("configs/default.yaml"), flags)
    gammas = settings.gamma
    if strict and replay_only:
        raise ConfigError("There is no verdict without a wall clock", where="--strict", cure="Drop --replay-only.")
    if command == "measure":
        if replay_only:
            raise ConfigError("measure measures the wall clock", where="--replay-only", cure="Use specbench sweep.")
        if gamma is None:
            gammas = (settings.measure_gamma,)
        elif len(gammas) != 1:
            raise ConfigError(
                f"measure takes one gamma, not {len(gammas)}", where="--gamma", cure="Use specbench sweep."
            )
    from specbench.progress import RunProgress
    from specbench.report.summarise import summarise
    from specbench.run import run
    from specbench.store import read_run

    mode = {None: "auto", True: "resume", False: "fresh"}[resume]
    with RunProgress(quiet=quiet) as progress:
        folder = run(settings, command, gammas, progress, mode=mode, replay_only=replay_only)
    if replay_only:
        _show_replay(folder, gammas, 0.0, as_json)
        return
    _show(summarise(read_run(folder)), settings.policy, as_json, strict)


@app.command("brief")
def brief(
    run: Annotated[Path | None, typer.Argument(help="Run folder.  [default: the newest]")] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are.")] = Path("reports"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of the brief.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 on NO-GO and 4 on UNCLEAR.")] = False,
) -> None:
    """Write the decision brief (markdown and figures) from a run folder."""
    from specbench.report.brief import write_brief
    from specbench.report.summarise import summarise
    from specbench.store import read_run

    stored = read_run(run or _newest(out, timed=True))
    summary = summarise(stored)
    path = write_brief(stored, summary)
    if as_json:
        typer.echo(
            json.dumps(
                summary.to_json() | {"policy": stored.run["config"]["policy"], "brief": str(path)}, allow_nan=False
            )
        )
    else:
        typer.echo(path.read_text(encoding="utf-8"))
        typer.echo(f"Written to {path}", err=True)
    _exit_strictly(summary, strict)


@app.command("replay")
def replay(
    run: Annotated[Path | None, typer.Argument(help="Run folder.  [default: the newest]")] = None,
    gamma: Annotated[str, typer.Option(help="Draft lengths: 1..8, 1..8..2 or 1,2,4.")] = "1..8",
    cutoff: Annotated[float, typer.Option(help="Stop drafting below this draft confidence (llama.cpp: p-min).")] = 0.0,
    out: Annotated[Path, typer.Option(help="Where run folders are.")] = Path("reports"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Acceptance at any draft length and cut-off, from a stored run, without a model."""
    from specbench.config import parse_gammas

    try:
        gammas = parse_gammas(gamma)
    except ValueError as error:
        raise ConfigError(str(error), where="--gamma") from None
    if not 0.0 <= cutoff < 1.0:
        raise ConfigError(f"{cutoff} is no confidence", where="--cutoff", cure="Give a number from 0 to below 1.")
    _show_replay(run or _newest(out), gammas, cutoff, as_json)


@app.command("workload")
def workload_profile(
    file: Annotated[str, typer.Argument(help="Prompt file, or hub:ID for a data set.")],
    column: Annotated[str | None, typer.Option(help="Column that holds the prompt.")] = None,
    category_column: Annotated[str | None, typer.Option(help="Column that holds the category.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check a prompt file and say what is in it."""
    from dataclasses import asdict

    from rich.console import Console

    from specbench.report.tables import workload_tables
    from specbench.workload import load_workload, profile

    loaded = load_workload(file, column=column, category_column=category_column)
    found = profile(loaded)
    if as_json:
        cautions = [asdict(caution) for caution in loaded.cautions]
        typer.echo(
            json.dumps(
                {"source": loaded.source, "sha256": loaded.sha256, "profile": asdict(found), "warnings": cautions}
            )
        )
        return
    console = Console()
    for part in workload_tables(loaded, found):
        console.print(part)


def _newest(out: Path, *, timed: bool = False) -> Path:
    """The newest run folder; if `timed`, the newest with a wall clock."""
    from specbench.store import find_runs, read_run

    for folder in find_runs(out):
        if not timed or read_run(folder).run.get("command") != "replay":
            return folder
    raise StoreError("No run yet", where=str(out), cure="Run `specbench sweep` first.")


def _show_replay(folder: Path, gammas: Sequence[int], cutoff: float, as_json: bool) -> None:
    from specbench.positions import read_positions
    from specbench.report.replayed import replayed
    from specbench.store import read_run

    stored = read_run(folder)
    texts = read_positions(folder)
    if not texts:
        raise StoreError("Nothing to replay in this run yet", where=str(folder), cure="Run specbench sweep.")
    found = replayed(str(folder), texts, gammas, cutoff, stored.run["config"]["policy"]["confidence"])
    if as_json:
        typer.echo(json.dumps(found.to_json(), allow_nan=False))
        return
    from rich.console import Console

    from specbench.report.tables import replay_tables

    console = Console()
    for part in replay_tables(found):
        console.print(part)
    console.print(f"Run folder: {folder}", highlight=False, soft_wrap=True)


def _show(summary: Summary, policy: Policy, as_json: bool, strict: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary.to_json(), allow_nan=False))
    else:
        from rich.console import Console

        from specbench.report.tables import sweep_tables

        console = Console()
        for part in sweep_tables(summary, policy):
            console.print(part)
        console.print(f"Run folder: {summary.run}", highlight=False, soft_wrap=True)
        typer.echo(f"For the decision brief: specbench brief {summary.run}", err=True)
    _exit_strictly(summary, strict)


def _exit_strictly(summary: Summary, strict: bool) -> None:
    """With several drafts the best verdict decides: one way that pays is enough."""
    if strict:
        found = {draft.verdict for draft in summary.drafts}
        raise typer.Exit(next(code for verdict, code in STRICT_EXIT.items() if verdict in found))


def main() -> None:
    """The `specbench` command."""
    # Library chatter (progress bars, advice) belongs to no one who reads our stderr.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app(prog_name="specbench")


if __name__ == "__main__":
    main()
