"""run.json of a run on servers: how it begins, which servers answered, and what was lost on the way."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from specbench.backends.server.adapter import Ask, State
from specbench.backends.server.provider import Provider
from specbench.config import RunConfig
from specbench.errors import ConfigError, EngineError, StoreError
from specbench.models.defaults import generation_caution
from specbench.records import Caution, Omitted, Prompt
from specbench.run.provenance import provenance
from specbench.run.runfile import prompts_of, run_record, skipped_prompts
from specbench.run_record import Command, RunRecord, ServedBy
from specbench.store import RunWriter
from specbench.text import clean

# What may not change between two sessions of a run, the last where both tell it: some servers do so only after the
# first request.
IDENTITY = ("model", "version", "speculating", "gamma", "context", "method")


def begun(config: RunConfig, command: Command, provider: Provider, arms: int) -> tuple[list[Prompt], RunRecord]:
    """The prompts in the order in which they are measured, and run.json as it would begin; `arms` times is each prompt
    to be timed."""
    workload, chosen = prompts_of(config)
    prompts = list(chosen)
    random.Random(config.seed).shuffle(prompts)
    try:
        provider.adapter.body(Ask((), config.max_new_tokens, config.sampling, config.seed), None)
    except ValueError as error:
        raise ConfigError(str(error), where=provider.adapter.name, cure="Leave that setting out.") from None
    own = generation_caution(config.target, config.sampling, new_tokens=config.max_new_tokens)
    served = ServedBy(provider.adapter.name, provider.launch, dict(provider.adapter.sources))
    record = run_record(
        config,
        command,
        workload,
        prompts,
        [],
        setting=provenance(engine(provider, None), None, None, provider.threads, provider.where),
        models=provider.models,
        cautions=[] if own is None else [own],
        trials_planned=len(prompts) * config.repeats * len(config.loads) * arms,
        served=served,
    )
    return prompts, record


def note_server(writer: RunWriter, label: str, state: State, name: str | None) -> None:
    """Store what the server of `label` is, and under which `name` the engine goes (None: as before). Raises StoreError
    where an earlier session measured another."""
    served = writer.run.served or ServedBy()
    earlier = served.settings.get(label)
    # Whoever reads the run need not know where on a disk the model lay.
    model = PurePath(state.model).name if state.model and state.model.startswith("/") else state.model
    now = replace(state, busy=None, model=model)
    changed = [] if earlier is None else [_change(key, earlier, now) for key in IDENTITY if _differ(key, earlier, now)]
    engine_was = writer.run.provenance.engine
    if earlier is not None and name not in (None, engine_was):
        changed.append(f"{clean(engine_was)} -> {clean(name)}")
    if changed:
        raise StoreError(
            f"The server of {label} is another than when this run began: {', '.join(changed)}",
            where=str(writer.folder),
            cure="Use --fresh to start a new run.",
        )
    writer.update(served=replace(served, settings={**served.settings, label: now}))
    if name is not None:
        writer.update(provenance=replace(writer.run.provenance, engine=name))


def _differ(key: str, was: State, now: State) -> bool:
    before, after = getattr(was, key), getattr(now, key)
    return bool(before != after and (key != "method" or None not in (before, after)))


def _change(key: str, was: State, now: State) -> str:
    return f"{key}: {clean(getattr(was, key))} -> {clean(getattr(now, key))}"


def refused_before(run: RunRecord) -> dict[str, str]:
    """Prompts that earlier sessions left out, by id, and why."""
    return {skipped.id: skipped.reason for skipped in run.workload.skipped}


def note_losses(
    writer: RunWriter, refused: Mapping[str, str], failures: Sequence[Mapping[str, str]], cautions: Sequence[Caution]
) -> None:
    """Put into run.json what a session noticed: prompts `refused`, with reasons, requests that failed for good, and
    other `cautions`."""
    run = writer.run
    workload = run.workload
    known = {skipped.id for skipped in workload.skipped}
    new = [Omitted(name, why) for name, why in refused.items() if name not in known]
    said = list(cautions)
    changes: dict[str, Any] = {}
    if new:
        skipped = (*workload.skipped, *new)
        changes["workload"] = replace(workload, skipped=skipped)
        said.append(skipped_prompts(skipped))
    if failures:
        said.append(_failed(failures))
        changes["status"] = "interrupted"  # the same command asks again
    unique = {caution.code: caution for caution in said}
    kept = [warning for warning in run.warnings if warning.code not in {*unique, "failed-requests"}]
    # At once: a kill in between would leave prompts out without a word.
    writer.update(**changes, warnings=(*kept, *unique.values()))


def nothing_done(
    config: RunConfig, prompts: Sequence[Prompt], refused: dict[str, str], failures: Sequence[Mapping[str, str]]
) -> EngineError:
    """The error of a run in which not a single prompt was measured: why, by the last that failed, or was refused. Of
    `refused` these prompts are taken out again: the same command, when that is mended, asks for all of them."""
    taken = [refused.pop(prompt.id) for prompt in prompts if prompt.id in refused]
    why = [failure["kind"] for failure in failures] if len(taken) < len(prompts) else taken
    return EngineError(
        f"Not a single prompt was measured; the last: {why[-1] if why else 'it was left out'}",
        where=config.server or config.launch or config.engine,
        cure="Mend that; the same command then asks again.",
    )


def engine(provider: Provider, state: State | None) -> str:
    """How the engine is called in tables and the brief."""
    version = provider.version or (None if state is None else state.version)
    name = " ".join(part for part in (provider.adapter.name, version) if part)
    how = f"started by specbench ({provider.launch})" if provider.launch else "running before specbench came"
    return f"{name} over HTTP, {how}"


def _failed(failures: Sequence[Mapping[str, str]]) -> Caution:
    kinds = ", ".join(sorted({failure["kind"] for failure in failures}))
    return Caution(
        "failed-requests",
        f"{len(failures)} requests failed for good ({kinds}), the first: prompt {failures[0]['prompt']}, "
        f"{failures[0]['arm']}",
        "Run the same command again, which asks them once more, or see the server's log.",
    )
