"""`specbench doctor`: is the set-up sane, before anything is measured?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.app import app
from specbench.cli.show import print_parts

BROKEN_EXIT = 1


@app.command("doctor")
def doctor(
    config: Annotated[
        Path | None, typer.Option(help="YAML file; flags override it.  [default: configs/default.yaml]")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Model id or directory.")] = None,
    draft: Annotated[list[str] | None, typer.Option(help="Draft model id or directory; repeatable.")] = None,
    workload: Annotated[str | None, typer.Option(help="Prompt file, or hub:ID for a data set.")] = None,
    limit: Annotated[int, typer.Option(help="Use at most N prompts.")] = 4,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="For the chat template: '{\"enable_thinking\": false}'.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 24,
    temperature: Annotated[float | None, typer.Option(help="Above 0 how drafts are drawn is checked too.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off.")] = None,
    min_p: Annotated[float | None, typer.Option(help="0 is off.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="On tokens of prompt and output; 1 is off.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [default: the free cores less one]")] = None,
    trust_remote_code: Annotated[list[str] | None, typer.Option(help="Model whose own code may run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Find a broken set-up before a sweep calls it a poor draft. Exits 1 if something is broken."""
    flags = {
        "target": target,
        "draft": draft or None,
        "workload": workload,
        "limit": limit,
        "chat_template_kwargs": chat_template_kwargs,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "trust_remote_code": trust_remote_code or None,
    }
    from specbench.config import load_config
    from specbench.shipped import shipped

    settings = load_config(config or shipped("configs/default.yaml"), flags)
    from specbench.verify.admit import run_doctor

    found = run_doctor(settings, (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True)))
    if as_json:
        typer.echo(json.dumps(found.to_json(), allow_nan=False))
    else:
        from specbench.report.doctor_tables import doctor_tables

        print_parts(doctor_tables(found))
    if found.broken:
        raise typer.Exit(BROKEN_EXIT)
