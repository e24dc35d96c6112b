"""`specbench probe`: what the models cost alone, by batch size and context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.app import app
from specbench.cli.options import AsJson, ConfigFile, Grouped, Keys, Own, Quiet, with_settings
from specbench.cli.show import print_json, print_parts
from specbench.errors import ConfigError


@app.command("probe", cls=Grouped)
@with_settings(
    "probe",
    draft=Own(help="Draft model id or directory; repeatable."),
    gamma=Own(help="Draft lengths: 1..8 or 1,2,4; the widest counts."),
    probe_batch_sizes=Own(flag="--batch-size", help="Sequences at once: 1,2,4,8."),
)
def probe(
    keys: Keys,
    config: ConfigFile = None,
    target_config: Annotated[
        Path | None,
        typer.Option(help="config.json, or its folder: time that shape with random weights.", rich_help_panel="models"),
    ] = None,
    draft_config: Annotated[
        list[Path] | None, typer.Option(help="The same for a draft; repeatable.", rich_help_panel="models")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Tokens read before: 128,512.  [default: the workload's, or 512 without a tokenizer]",
            rich_help_panel="drafts",
        ),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(
            help="Times everything is timed.  [default: 15; 7 above batch 1; 5 for a prefill; 9 on a server]",
            rich_help_panel="drafts",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time the models alone, at several batch sizes. A step, several tokens at once, a draft phase, a prefill; with
    --engine whole rounds of a server, at each --gamma and --concurrency."""
    if target_config is not None and keys["target"] is not None:
        raise ConfigError("The target is named twice", where="--target-config", hint="Drop --target.")
    contexts = None if context is None else _numbers(context, "--context", 1, 10_000_000)
    if passes is not None and not 5 <= passes <= 1000:
        # Of fewer passes not even the range from least to most is a 95 % interval of the median.
        raise ConfigError(f"{passes} is not a whole number from 5 to 1000", where="--passes")
    from dataclasses import replace

    from specbench.config import load_config
    from specbench.shipped import shipped

    settings = load_config(config or shipped("configs/default.yaml"), keys)
    if not keys["draft"] and (draft_config or target_config):
        # The default draft belongs to the default target.
        settings = replace(settings, draft=())
    from specbench.analysis.probed import probed
    from specbench.cost.plan import ProbeRequest
    from specbench.run.probe import run_probe
    from specbench.run.task import command_line
    from specbench.store import read_run

    request = ProbeRequest(target_config, tuple(draft_config or ()), contexts, passes)
    own = {"target_config": target_config, "draft_config": draft_config, "context": context, "passes": passes}
    argv = command_line("probe", {"config": config, **keys, **own})
    folder = run_probe(settings, request, _sayer(quiet), argv)
    found = probed(read_run(folder))
    if as_json:
        print_json(found)
        return
    from specbench.report.tables import probe_tables

    print_parts(probe_tables(found), folder)
    typer.echo(f"To use these costs in a run: specbench sweep --costs {folder}", err=True)


def _numbers(text: str, flag: str, low: int, high: int) -> tuple[int, ...]:
    """`128,512` as ascending numbers, each once."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"{text!r} is no list of whole numbers", where=flag, hint="Write 128,512.") from None
    if numbers[0] < low or numbers[-1] > high:
        raise ConfigError(f"{text!r} is outside {low} to {high}", where=flag)
    return tuple(numbers)


def _sayer(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))
