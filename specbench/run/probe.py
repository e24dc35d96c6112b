"""`specbench probe`: load, time the models alone, store."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.backends.base import Conditions
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, free_cores
from specbench.cost.plan import Costs, ProbePlan, run_plan
from specbench.drafters import DraftSpec, parse_draft
from specbench.errors import ConfigError
from specbench.records import Bandwidth, Caution
from specbench.run.provenance import provenance
from specbench.run.record import ended, prompts_of
from specbench.run_record import ModelFacts, Provenance, RunRecord
from specbench.store import RunWriter, new_folder

if TYPE_CHECKING:
    from specbench.models import LoadedModel

# Where no tokenizer says how long the prompts of a workload are.
DEFAULT_CONTEXT = 512

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What a probe wants beside the configuration. A model given as a config.json takes the place of one with weights;
    `contexts` None are those of the workload; `passes` None are the defaults."""

    target_config: Path | None = None
    draft_configs: tuple[Path, ...] = ()
    contexts: tuple[int, ...] | None = None
    passes: int | None = None


@dataclass(frozen=True, slots=True)
class Subjects:
    """The models to time; drafts by name. n-gram look-ups are not among them."""

    target: LoadedModel
    drafts: dict[str, LoadedModel]

    @property
    def every(self) -> list[LoadedModel]:
        return [self.target, *self.drafts.values()]


def run_probe(config: RunConfig, request: ProbeRequest, say: Say, argv: Sequence[str] = ()) -> Path:
    """Time the models alone and store what was found; returns the folder, made when all is done."""
    threads = config.threads or free_cores()
    import torch

    from specbench.backends.local.backend import in_process
    from specbench.backends.local.prober import Prober
    from specbench.clock import device_sync
    from specbench.cost.bandwidth import memory_bandwidth
    from specbench.models import resolve_device
    from specbench.models.memory import available_bytes

    torch.set_num_threads(threads)
    device = resolve_device(config.device)
    setting = provenance(Conditions(in_process(device), device, config.dtype, threads), argv)
    say("Timing the memory")
    sync = device_sync(device)
    bandwidth = memory_bandwidth(device, available_bytes(device), sync=sync)  # before the models take the memory
    subjects = _load(config, request, device, say)
    ids, plan = _plan(config, request, subjects)
    models = {None: subjects.target.model} | {name: loaded.model for name, loaded in subjects.drafts.items()}
    prober = Prober(models, plan, ids, device=device, seed=config.seed, sampling=config.sampling, say=say)
    meter = OthersMeter()
    meter.start()
    costs = prober.run()
    others = meter.stop() or 0.0
    if others > config.max_other_cores:
        costs = replace(costs, cautions=(*costs.cautions, _busy(others)))
    record = _record(config, setting, subjects, costs, bandwidth)
    folder = new_folder(Path(config.out), config.name or "probe")
    with RunWriter(folder, record) as writer:
        writer.update(status="finished", provenance=ended(setting))
    return folder


def _busy(others: float) -> Caution:
    return Caution(
        "busy-machine",
        f"other processes kept {others:.1f} cores busy while the models were timed: costs are too high",
        "Probe again on a quiet machine.",
    )


def _load(config: RunConfig, request: ProbeRequest, device: str, say: Say) -> Subjects:
    from specbench.backends.local.memories import require_rollback
    from specbench.backends.local.swap import make_lean
    from specbench.models import load_model
    from specbench.models.heads import find_head
    from specbench.models.shapes import load_shape

    longest = max(request.contexts or (DEFAULT_CONTEXT,)) + max(config.gamma) + 1

    def real(name: str) -> LoadedModel:
        say(f"Loading {name}")
        trusted = frozenset(config.trust_remote_code)
        return lean(load_model(name, dtype=config.dtype, device=device, trust_remote_code=trusted))

    def shape(path: Path) -> LoadedModel:
        say(f"Building {path} with random weights")
        return lean(load_shape(path, dtype=config.dtype, device=device, context=longest))

    def lean(loaded: LoadedModel) -> LoadedModel:
        make_lean(loaded.model)  # as a run does
        require_rollback(loaded)
        return loaded

    target = real(config.target) if request.target_config is None else shape(request.target_config)
    drafts = {}
    for spec in map(parse_draft, config.draft):
        if spec.kind == "skip":
            drafts[spec.reader] = _first_layers(target, spec)
        elif spec.model is not None:
            if find_head(spec.model) is not None:
                raise ConfigError(
                    "A draft head is not timed by a probe: it reads its target's states",
                    where=spec.text,
                    hint="Run specbench measure or sweep with it, which time it.",
                )
            drafts[spec.reader] = real(spec.model)
    return Subjects(target, drafts | {str(path): shape(path) for path in request.draft_configs})


def _first_layers(target: LoadedModel, spec: DraftSpec) -> LoadedModel:
    """The target's own first layers, which need no loading."""
    from specbench.drafters.skip import first_layers
    from specbench.models.memory import weight_bytes, weights

    if spec.layers is None:
        raise ConfigError("A probe does not look for layers", where=spec.text, hint="Write skip:layers=8.")
    model = first_layers(target.model, spec.layers)
    parameters = sum(weight.numel() for weight in weights(model))
    # With the target's tokenizer or none, and its revision: it is a part of it.
    return replace(target, name=spec.text, model=model, parameters=parameters, weight_bytes=weight_bytes(model))


def _plan(config: RunConfig, request: ProbeRequest, subjects: Subjects) -> tuple[list[int], ProbePlan]:
    """Token ids to read, and how much of them."""
    prompts = [] if subjects.target.tokenizer is None else _encoded(config, subjects.target)
    vocabulary = min(int(loaded.model.config.get_text_config().vocab_size) for loaded in subjects.every)
    if prompts:
        lengths = [len(ids) for ids in prompts]
        plan = run_plan(lengths, config)
        # A draft with fewer padding ids must be able to read them all.
        ids = [token % vocabulary for token in random.Random(config.seed).choice(prompts)]
    else:
        plan = run_plan([DEFAULT_CONTEXT], replace(config, max_new_tokens=0))
        ids = random.Random(config.seed).choices(range(vocabulary), k=DEFAULT_CONTEXT)
    if request.contexts is not None:
        at = request.contexts
        plan = replace(plan, contexts=at, batch_contexts=at, prompts=at)
    middle = (plan.prompts[len(plan.prompts) // 2],)
    plan = replace(plan, batch_prompts=middle, batch_sizes=config.probe_batch_sizes)
    if request.passes is not None:
        plan = replace(plan, passes=request.passes, batch_passes=request.passes, prefill_passes=request.passes)
    _require_context(plan, subjects.every)
    return ids, plan


def _encoded(config: RunConfig, target: LoadedModel) -> list[list[int]]:
    """The prompts that a run would use, as token ids; none that it would leave out."""
    from specbench.models.prompts import encode_all

    found = encode_all(target, prompts_of(config)[1], config.chat_template_kwargs)
    longest = (target.max_context or 2**62) - config.max_new_tokens - max(config.gamma) - 1
    return [ids for _, ids in found.encoded if len(ids) <= longest]


def _require_context(plan: ProbePlan, models: Sequence[LoadedModel]) -> None:
    for loaded in models:
        if loaded.max_context is not None and plan.capacity > loaded.max_context:
            raise ConfigError(
                f"{loaded.name} reads at most {loaded.max_context} tokens, {plan.capacity} are needed",
                where="--context",
                hint=f"Give contexts up to {loaded.max_context - max(plan.gammas) - 1}.",
            )


def _record(
    config: RunConfig, setting: Provenance, subjects: Subjects, costs: Costs, bandwidth: Bandwidth
) -> RunRecord:
    from specbench.backends.local.drafting import facts
    from specbench.models.memory import step_bytes
    from specbench.models.shapes import shape_cautions

    # A system prompt is private, and changes nothing here but lengths.
    config = replace(config, target=subjects.target.name, draft=tuple(subjects.drafts), system_prompt=None)
    cautions: list[Caution] = [*costs.cautions]
    for loaded in subjects.every:
        if loaded.tokenizer is None:
            cautions += shape_cautions(loaded)

    def known(loaded: LoadedModel) -> ModelFacts:
        return replace(facts(loaded), step_bytes=step_bytes(loaded.model))

    return RunRecord(
        status="started",
        command="probe",
        name=config.name or "probe",
        config=config,
        fingerprint=config.fingerprint(),
        provenance=setting,
        target=known(subjects.target),
        drafts={name: known(loaded) for name, loaded in subjects.drafts.items()},
        probe=costs.points,
        bandwidth=bandwidth,
        warnings=tuple(cautions),
    )
