"""`specbench plan` and `specbench probe`, before a run: how many prompts and minutes it will take, and what the models
cost alone, by batch size and context.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli.app import app
from specbench.cli.show import (
    AsJson,
    ConfigFile,
    Grouped,
    Keys,
    Own,
    Quiet,
    RunsIn,
    option,
    print_found,
    run_folder,
    sayer,
    with_settings,
)
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.analysis.plan import Plan
    from specbench.records import Policy
    from specbench.store import StoredRun


@app.command("plan", cls=Grouped)
@with_settings(
    "plan",
    min_speedup=Own(unset="the pilot's, or 1.10"),
    confidence=Own(help="Of interval and verdict.", unset="the pilot's, or 0.95"),
    gamma=Own(help="Draft lengths to measure: 1..8 or 1,2,4.", unset="the pilot's, or 1,2,4"),
    repeats=Own(unset="the pilot's, or 1"),
)
def plan(
    ctx: typer.Context,
    keys: Keys,
    run: Annotated[
        Path | None, typer.Argument(help="Run folder of a pilot, or @1.  [default: the newest; none with --spread]")
    ] = None,
    half_width: Annotated[
        float, option("decision", "How far the interval may reach to either side, 0.03 for 3 % of the speedup.")
    ] = 0.03,
    drafts: Annotated[
        int | None, option("decision", "How many drafts to measure.  [default: as in the pilot, or 1]")
    ] = None,
    spread: Annotated[
        float | None, option("decision", "Assume this spread between prompts (about 0.2 to 0.4), without a pilot.")
    ] = None,
    seconds_per_prompt: Annotated[
        float | None, option("decision", "Assume that the target alone takes this long for a prompt.")
    ] = None,
    speedup: Annotated[float | None, option("decision", "Assume this true speedup.")] = None,
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
    markdown: Annotated[bool, option("output", "The plan as a page to agree on, on stdout.", "--markdown")] = False,
    write: Annotated[Path | None, option("output", "Write that page to this file.")] = None,
) -> None:
    """How many prompts and minutes a verdict will take. From a pilot, or from assumptions."""
    if as_json and markdown:
        raise ConfigError("Both --json and --markdown want stdout", hint="Leave one out, or use --write FILE.")
    assumed = {key: ctx.params[key] for key in ("half_width", "drafts", "spread", "seconds_per_prompt", "speedup")}
    _require_numbers(assumed)
    found, policy, pilot = _plan(
        None if spread is not None and run is None else run_folder(run, out, timed=True),
        {key: value for key, value in keys.items() if value is not None},
        assumed,
    )
    if markdown or write is not None:
        from specbench.report.plan import plan_document, write_document

        page = plan_document(found, policy, pilot)
        if write is not None:
            write_document(page, write)
            typer.echo(f"Written to {write}", err=True)
        if markdown:
            typer.echo(page, nl=False)
            return
    print_found(found, "planned", as_json)


def _plan(folder: Path | None, asked: dict[str, Any], assumed: dict[str, Any]) -> tuple[Plan, Policy, StoredRun | None]:
    """The plan, its policy, and its pilot under that policy. `asked` are keys of the configuration, checked as those
    of a run are."""
    from specbench.config import load_config

    settings = load_config(None, asked)
    wanted: dict[str, Any] = {
        **assumed,
        "gammas": settings.gamma if "gamma" in asked else None,
        "repeats": settings.repeats if "repeats" in asked else None,
    }
    from dataclasses import replace

    from specbench.analysis.pilot import read_pilot
    from specbench.analysis.plan import Wanted, plan_of
    from specbench.store import read_run

    if folder is None:
        return plan_of(Wanted(settings.policy, **wanted), None), settings.policy, None
    stored = read_run(folder)
    kept = {key: getattr(settings.policy, key) for key in ("min_speedup", "confidence") if key in asked}
    policy = replace(stored.run.config.policy, **kept)
    pilot = read_pilot(stored, policy, wanted["gammas"])
    found = plan_of(Wanted(policy, **wanted), pilot, str(folder), stored.run.workload.prompts_available)
    config = replace(stored.run.config, policy=policy)
    return found, policy, replace(stored, run=replace(stored.run, config=config))


def _require_numbers(assumed: dict[str, Any]) -> None:
    limits = {
        "half_width": (1, "Write 0.03 for 3 %."),
        "spread": (10, "A spread is a fraction, such as 0.25."),
        "seconds_per_prompt": (1e6, None),
        "speedup": (100, None),
    }
    for key, (most, hint) in limits.items():
        value = assumed[key]
        if value is not None and not (math.isfinite(value) and 0 < value <= most):
            where = f"--{key.replace('_', '-')}"
            raise ConfigError(f"{value:g} is not a number above 0 to {most:g}", where=where, hint=hint)
    drafts = assumed["drafts"]
    if drafts is not None and not 1 <= drafts <= 100:
        raise ConfigError(f"{drafts} is not a whole number from 1 to 100", where="--drafts")


@app.command("probe", cls=Grouped)
@with_settings(
    "probe",
    draft=Own(help="Draft model id or directory; repeatable."),
    gamma=Own(help="Draft lengths: 1..8 or 1,2,4."),
    probe_batch_sizes=Own(flag="--batch-size", help="Sequences at once: 1,2,4,8."),
)
def probe(
    keys: Keys,
    config: ConfigFile = None,
    target_config: Annotated[
        Path | None, option("models", "config.json, or its folder: time that shape with random weights.")
    ] = None,
    draft_config: Annotated[list[Path] | None, option("models", "The same for a draft; repeatable.")] = None,
    context: Annotated[
        str | None,
        option("drafts", "Context lengths in tokens: 128,512.  [default: the workload's, or 512 without a tokenizer]"),
    ] = None,
    passes: Annotated[
        int | None,
        option(
            "drafts", "How often everything is timed.  [default: 15; 7 above batch 1; 5 for a prefill; 9 on a server]"
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
    folder = run_probe(settings, request, sayer(quiet), argv)
    found = probed(read_run(folder))
    print_found(found, "probed", as_json, folder)
    if not as_json:
        typer.echo(f"To use these costs in a run: specbench sweep --costs {folder}", err=True)


def _numbers(text: str, flag: str, low: int, high: int) -> tuple[int, ...]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"{text!r} is no list of whole numbers", where=flag, hint="Write 128,512.") from None
    if numbers[0] < low or numbers[-1] > high:
        raise ConfigError(f"{text!r} is outside {low} to {high}", where=flag)
    return tuple(numbers)
