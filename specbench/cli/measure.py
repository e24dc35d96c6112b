"""`specbench measure` and `specbench sweep`: one function, since one is the other with a single gamma."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.app import app
from specbench.cli.show import show, show_replay
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.run.task import Command

RUN_HELP = {
    "measure": "Time the target alone and with a draft, at one gamma. Arms take turns prompt by prompt.",
    "sweep": "The same at every gamma, and find the best.",
}


@app.command("sweep", help=RUN_HELP["sweep"])
@app.command("measure", help=RUN_HELP["measure"])
def measure_or_sweep(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; flags override it.  [default: configs/default.yaml]")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Model id or directory.")] = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="A model, ngram:n=3, skip:layers=8 or cross:MODEL; repeatable."),
    ] = None,
    workload: Annotated[str | None, typer.Option(help="Prompt file, or hub:ID for a data set.")] = None,
    gamma: Annotated[
        str | None, typer.Option(help="Draft lengths: 1..8, 1..8..2 or 1,2,4; for measure just one.")
    ] = None,
    cutoff: Annotated[float | None, typer.Option(help="Drafts stop below this confidence; 0 is off.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most N prompts, spread over the categories.")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the prompt.")] = None,
    category_column: Annotated[str | None, typer.Option(help="Column that holds the category.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Put before prompts that have none.")] = None,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="For the chat template: '{\"enable_thinking\": false}'.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to generate at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off.")] = None,
    min_p: Annotated[float | None, typer.Option(help="0 is off.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="On tokens of prompt and output; 1 is off.")] = None,
    seed: Annotated[int | None, typer.Option(help="For sampling, order and selection.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [default: the free cores less one]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences at a time, in every arm.")] = None,
    probe_batch_sizes: Annotated[
        str | None, typer.Option(help="Batch sizes at which the models are timed alone: 1,2,4,8.")
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="Folder of a probe in this setting, instead of timing the models alone.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="local, or a server: llamacpp, vllm, sglang, openai.  [default: local]")
    ] = None,
    launch: Annotated[Path | None, typer.Option(help="YAML file that says how to start the server.")] = None,
    server: Annotated[str | None, typer.Option(help="Address of a running server, the target alone.")] = None,
    spec_server: Annotated[str | None, typer.Option(help="Address of a running server that speculates.")] = None,
    draft_server: Annotated[
        str | None, typer.Option(help="Address of a running server of the draft alone, for --replay-only.")
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="What the server calls the model, where it lists several.")
    ] = None,
    concurrency: Annotated[str | None, typer.Option(help="Clients at once: 1,2,4,8; verdict on the first.")] = None,
    rate: Annotated[str | None, typer.Option(help="Also requests per second at random: 0.5,1,2.")] = None,
    request_timeout_s: Annotated[float | None, typer.Option(help="A longer request is given up.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the server's key.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Measure every prompt in every arm N times.")] = None,
    all_gammas: Annotated[
        bool | None, typer.Option("--all-gammas", help="Every gamma on every prompt, also those ruled out on the way.")
    ] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Smallest speedup worth having.")] = None,
    metric: Annotated[str | None, typer.Option(help="What the verdict is on: decode or e2e.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Of intervals and verdicts, such as 0.95.")] = None,
    mix: Annotated[str | None, typer.Option(help="Your traffic: code=0.6,chat=0.4.  [default: the prompts]")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of the machine: adds the price per token.")] = None,
    max_added_gb: Annotated[float | None, typer.Option(help="Memory that the draft may take.")] = None,
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
    for own in ("config", "resume", "replay_only", "costs", "as_json", "quiet", "strict"):
        flags.pop(own)
    flags["out"] = None if out is None else str(out)
    flags["launch"] = None if launch is None else str(launch)
    flags = {key: None if value in ([], ()) else value for key, value in flags.items()}
    if strict and replay_only:
        raise ConfigError("There is no verdict without a wall clock", where="--strict", cure="Drop --replay-only.")
    from specbench.run.task import carry_out, task_of

    command: Command = "measure" if ctx.command.name == "measure" else "sweep"
    task = task_of(command, flags, config=config, costs=costs, resume=resume, replay_only=replay_only)
    folder = carry_out(task, quiet=quiet)
    if replay_only:
        show_replay(folder, task.gammas, 0.0, as_json)
        return
    from specbench.analysis.summarise import summarise
    from specbench.store import read_run

    show(summarise(read_run(folder)), task.config.policy, as_json, strict)
