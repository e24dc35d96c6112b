"""The only orchestrator: plan -> skip what is done -> run -> store.

For each prompt, every arm runs in an order drawn anew, so that drift of the machine falls on all arms alike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from specbench.acceptance.positions import PositionWriter
from specbench.analysis.stopped import ruled_out_line
from specbench.backends.local.room import WIDEST, require_disk, require_memory
from specbench.config import RunConfig
from specbench.cost.plan import Costs, ProbePlan, run_plan
from specbench.cost.stored import require_probe, stored_costs
from specbench.drafters import with_cutoff
from specbench.errors import WorkloadError
from specbench.models import resolve_device
from specbench.models.defaults import own_cautions
from specbench.models.encoding import Today, encoded_record, today_of
from specbench.models.memory import is_out_of_memory, memory_errors
from specbench.records import Arm, Omitted, Prompt
from specbench.run.bench import Bench, Encoded, LeftOut, Observer, Unit, batch_too_large, units
from specbench.run.looks import Looks
from specbench.run.provenance import in_process, provenance
from specbench.run.replay import replay_texts, scored_texts
from specbench.run.resume import opened, progress_of, threads_of, unfinished
from specbench.run.runfile import marked, prompts_of, run_record
from specbench.run_record import Command, RunRecord
from specbench.store import RunWriter, StoredRun, TrialKey, read_run

T = TypeVar("T")

if TYPE_CHECKING:
    from specbench.backends.local.local import LocalEngine


def plan_arms(config: RunConfig, gammas: Sequence[int]) -> list[Arm]:
    """The target alone, the same again (the noise floor), and every draft at every gamma."""
    speculative = [Arm("speculative", draft, gamma) for draft in config.draft for gamma in gammas]
    return [Arm("baseline"), Arm("baseline-again"), *speculative]


def shuffled(items: Sequence[T], seed: str) -> list[T]:
    """Arms, or servers, in an order that depends on `seed` alone, so that a resumed run keeps its plan."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


def plan_units(encoded: Sequence[Encoded], config: RunConfig) -> tuple[list[Unit], list[Omitted]]:
    """Prompts, or batches of them, in the order in which they are measured; and the prompts that fill no batch."""
    order = list(encoded)
    random.Random(config.seed).shuffle(order)
    if config.batch_size == 1:
        order = _spread(order, config.seed)
    found = units(order, config.batch_size)
    if not found:
        raise WorkloadError(
            f"{len(order)} prompts fill no batch of {config.batch_size}",
            where=config.workload,
            cure="Use more prompts (--limit) or a smaller --batch-size.",
        )
    rest = order[len(found) * config.batch_size :]
    return found, [Omitted(item.prompt.id, f"left over from batches of {config.batch_size}") for item in rest]


def _spread(order: Sequence[Encoded], seed: int) -> list[Encoded]:
    """Each category evenly over the whole run, so that its first prompts, which may be all there is or rule a gamma
    out, are of every kind. Within a category the order stays, and where it begins is drawn."""
    counts = Counter(item.prompt.category for item in order)
    rng = random.Random(f"{seed}/categories")
    begun = {category: rng.random() for category in counts}
    places = []
    for number, item in enumerate(order):
        category = item.prompt.category
        places.append((begun[category] / counts[category], number))
        begun[category] += 1
    return [order[number] for _, number in sorted(places)]


def run(
    config: RunConfig,
    command: Command,
    gammas: Sequence[int],
    observer: Observer,
    *,
    mode: str = "auto",
    replay_only: bool = False,
    costs: Path | None = None,
) -> Path:
    """Run or continue; returns the run folder, in which every finished trial already lies.

    `replay_only` measures acceptance and no wall clock. `costs`: the folder of a probe in this very setting, whose
    points are taken instead of timing the models alone. `mode`: "fresh" starts a new folder, "resume" demands an
    unfinished one, "auto" takes an unfinished one if there is one with the same configuration. KeyboardInterrupt
    passes through after the folder is marked interrupted.
    """
    # What cannot be drafted with is refused here, before anything is loaded.
    drafts = tuple(with_cutoff(draft, config.cutoff) for draft in config.draft)
    config = replace(config, gamma=tuple(gammas), draft=drafts)
    if costs is not None:
        require_probe(costs)
    kind: Command = "replay" if replay_only else command
    earlier = unfinished(config, kind, mode)
    plan = _prepared(config, kind, earlier, observer)
    reused = None if costs is None else stored_costs(costs, plan.record, _probe_plan(plan.encoded, config))
    folder, record = opened(config, plan.record, earlier, observer)
    with RunWriter(folder, record) as writer, marked(writer), memory_errors():
        if replay_only:
            replay_texts(plan.engine, plan.encoded, config, writer, observer)
        else:
            _measure(plan.engine, plan.order, plan_arms(config, gammas), config, writer, observer, reused)
    return folder


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything loaded and nothing measured: `order` are the units of a timed run, `record` is run.json as it would
    begin."""

    engine: LocalEngine
    encoded: list[Encoded]
    order: list[Unit]
    record: RunRecord


def _prepared(config: RunConfig, kind: Command, earlier: StoredRun | None, observer: Observer) -> Prepared:
    """Read the prompts, load the models, see what fits."""
    workload, chosen = prompts_of(config)
    threads = threads_of(config, earlier)
    replay_only = kind == "replay"
    require_memory(config, chosen, resolve_device(config.device), replay_only=replay_only)
    from specbench.backends.local.local import LocalEngine

    used = f"{len(chosen):,} of {len(workload.prompts):,} prompts"
    observer.say(f"Loading {', '.join((config.target, *config.draft))} for {used}")
    engine = LocalEngine(config, threads)
    engine.today = _today(earlier, observer)
    encoded, skipped = _fit(engine, chosen, config, batched=replay_only or config.batch_size > 1)
    ids = [item.ids for item in encoded]
    engine.cautions += own_cautions(engine.target, config, ids, engine.eos, engine.today)
    order: list[Unit] = []
    if not replay_only:
        order, short = plan_units(encoded, config)
        skipped += short
    engine.settle(ids, {} if earlier is None else _layers(earlier))
    observer.say("Comparing with transformers' generate")
    reference = engine.check_reference(ids, config.max_new_tokens, padded=replay_only)
    planned = len(order) * len(plan_arms(config, config.gamma)) * config.repeats
    require_disk(config, chosen, planned - (len(earlier.trials) if earlier else 0))
    contents = [(item.prompt.sha256, item.ids) for item in encoded]
    record = run_record(
        config,
        kind,
        workload,
        [item.prompt for item in encoded],
        skipped,
        setting=provenance(in_process(engine.device), engine.device, config.dtype, threads),
        models=engine.describe(),
        cautions=engine.cautions,
        trials_planned=planned,
        encoded=encoded_record(engine.target, contents, engine.today),
        reference=reference,
    )
    return Prepared(engine, encoded, order, record)


def _today(earlier: StoredRun | None, observer: Observer) -> Today:
    """What a chat template takes for today: in a run that goes on, the day that it began with, or its prompts would
    become others in the middle."""
    today = today_of(None if earlier is None else earlier.run.workload.encoded)
    if today.at.date() != datetime.now().date():
        observer.say(f"The chat template writes the date: prompts keep that of the run, {today.at:%Y-%m-%d}")
    return today


def _measure(
    engine: LocalEngine,
    order: Sequence[Unit],
    arms: Sequence[Arm],
    config: RunConfig,
    writer: RunWriter,
    observer: Observer,
    reused: Costs | None,
) -> None:
    """Every unit through every arm, then its positions; what an earlier session finished is skipped."""
    attempts, done = progress_of(read_run(writer.folder).trials)
    scored = scored_texts(writer.folder)
    total = len(order) * len(arms) * config.repeats
    with PositionWriter(writer.folder) as positions:
        bench = Bench(engine, config, writer, positions, observer, attempts, repeats_left=3 + total // 10)
        looks = Looks(writer, arms, len(order))
        bench.warm_up(order[0], looks.arms)
        if writer.run.probe is None:
            if reused is None:
                observer.say("Timing the models alone")
            encoded = [one for item in order for one in item.items]
            costs = engine.probe(encoded[0].ids, _probe_plan(encoded, config)) if reused is None else reused
            # At once: a kill in between would leave the costs without what is wrong with them.
            writer.update(
                probe=costs.points,
                probe_from=costs.source,
                warnings=(*writer.run.warnings, *costs.cautions),
            )
        left_out = LeftOut(writer)
        order = [item for item in order if item.id not in left_out.ids]
        left = _trials_left(order, looks.arms, config.repeats, done)
        observer.begin(len(done) + left.total(), len(done))
        measured = 0
        for place, item in enumerate(order):
            observer.left(left, len(order) - place)
            arms = looks.arms
            left -= _trials_left([item], arms, config.repeats, done)
            if _whole(bench, item, arms, done, scored):
                left_out.fitted()
                measured += 1
                for one in looks.after(measured):
                    observer.say(ruled_out_line(one))
                    del left[Arm("speculative", one.draft, one.gamma)]
                continue
            bench.drop()
            engine.release()
            if config.batch_size > 1:
                raise batch_too_large(config.batch_size, writer.folder)
            left_out.add(item.id, len(item.items[0].ids) + config.max_new_tokens)
        left_out.end()


def _whole(
    bench: Bench, item: Unit, arms: Sequence[Arm], done: Container[TrialKey], scored: Container[TrialKey]
) -> bool:
    """One unit through every arm, and its positions; False where memory ran out in the middle. The error is not kept:
    its frames hold the tensors that filled the memory."""
    config = bench.config
    try:
        if any((item.id, arm, repeat) not in done for arm in arms for repeat in range(config.repeats)):
            bench.meet(item, arms)
        for repeat in range(config.repeats):
            for arm in shuffled(arms, f"{config.seed}/{item.id}/{repeat}"):
                if (item.id, arm, repeat) not in done:
                    bench.trial(item, arm, repeat)
        bench.close(item, arms, scored)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _trials_left(order: Sequence[Unit], arms: Sequence[Arm], repeats: int, done: Container[TrialKey]) -> Counter[Arm]:
    return Counter(
        arm for item in order for arm in arms for repeat in range(repeats) if (item.id, arm, repeat) not in done
    )


def _probe_plan(encoded: Sequence[Encoded], config: RunConfig) -> ProbePlan:
    return run_plan([len(item.ids) for item in encoded], config)


def _layers(earlier: StoredRun) -> dict[str, int]:
    """Layers that an earlier session chose for its skip drafts."""
    return {spec: facts.layers for spec, facts in earlier.run.drafts.items() if facts.layers is not None}


def _fit(
    engine: LocalEngine, prompts: Sequence[Prompt], config: RunConfig, *, batched: bool
) -> tuple[list[Encoded], list[Omitted]]:
    """Encode the prompts; those that the chat template refuses or that would not fit the context are skipped and
    listed, never changed."""
    found = engine.encode_all(prompts)
    encoded: list[Encoded] = []
    skipped = found.refused
    for prompt, ids in found.encoded:
        need = len(ids) + config.max_new_tokens
        if engine.max_context is not None and need > engine.max_context:
            reason = f"{len(ids)} + {config.max_new_tokens} new tokens exceed the context of {engine.max_context}"
            skipped.append(Omitted(prompt.id, reason))
        else:
            encoded.append(Encoded(prompt, ids))
    if not encoded:
        raise WorkloadError(
            "No prompt fits the models' context", where=config.workload, cure="Use shorter prompts or fewer new tokens."
        )
    if engine.frequency_limit is not None:
        encoded, crossing = _on_one_side(encoded, engine.frequency_limit, config, batched)
        skipped += crossing
    engine.reserve(max(len(item.ids) for item in encoded) + config.max_new_tokens + max(config.gamma) + 1)
    return encoded, skipped


def _on_one_side(
    encoded: Sequence[Encoded], limit: int, config: RunConfig, batched: bool
) -> tuple[list[Encoded], list[Omitted]]:
    """Texts that stay below the length at which a model changes its frequencies, or begin above it: a text that crosses
    it would go on with keys of the other frequencies. In a batch all rows are turned alike, so there the side with more
    prompts is taken."""
    room = config.max_new_tokens + (WIDEST if batched else 0)
    below = [item for item in encoded if len(item.ids) + room <= limit]
    above = [item for item in encoded if len(item.ids) > limit]
    kept = [max(below, above, key=len)] if batched else [below, above]
    ids = {item.prompt.id for side in kept for item in side}
    if not ids:
        raise WorkloadError(
            f"Every text would cross {limit} tokens, where the model changes its rotary frequencies (LongRoPE)",
            where=config.workload,
            cure="Use shorter prompts, or --max-new-tokens that end below it.",
        )
    why = "and a batch holds texts of one side" if batched else "which a cached text cannot follow"
    reason = f"the model changes its rotary frequencies at {limit} tokens (LongRoPE), {why}"
    left_out = [Omitted(item.prompt.id, reason) for item in encoded if item.prompt.id not in ids]
    return [item for item in encoded if item.prompt.id in ids], left_out
