"""`specbench probe` in process: load models, or build their shapes, and time them alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from specbench.backends.base import Admitted, Conditions
from specbench.backends.local.drafting import facts
from specbench.backends.local.drafts import HeadDraft, load_drafts, require_rounds
from specbench.backends.local.lean import make_lean
from specbench.backends.local.local import in_process
from specbench.backends.local.precision import with_precision
from specbench.backends.local.prober import Prober
from specbench.backends.local.reference import require_rollback
from specbench.clock import device_sync
from specbench.config import RunConfig
from specbench.cost.bandwidth import memory_bandwidth
from specbench.cost.load import OthersMeter, busy_machine, free_cores
from specbench.cost.plan import Costs, ProbePlan, ProbeRequest, run_plan
from specbench.drafters import parse_draft, require_in_process
from specbench.errors import ConfigError
from specbench.models import LoadedModel, load_model, resolve_device
from specbench.models.heads import heads_of, require_own
from specbench.models.memory import available_bytes, step_bytes
from specbench.models.prompts import encode_all
from specbench.models.shapes import load_shape, shape_cautions, shape_format
from specbench.records import Bandwidth, Prompt
from specbench.run_record import ModelFacts
from specbench.store import RunWriter

# Where no tokenizer says how long the prompts of a workload are.
DEFAULT_CONTEXT = 512

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subjects:
    """The models to time; drafts and draft heads by name. Look-ups are not among them."""

    target: LoadedModel
    drafts: dict[str, LoadedModel]
    heads: dict[str, HeadDraft]

    @property
    def every(self) -> list[LoadedModel]:
        return [self.target, *self.drafts.values()]


class LocalProbe:
    """Models of this process. `prompts` are those that a run would use."""

    def __init__(
        self, config: RunConfig, request: ProbeRequest, prompts: Callable[[], Sequence[Prompt]], say: Say
    ) -> None:

        own = None if request.target_config is None else shape_format(request.target_config)
        config, self._cautions = with_precision(config, own=own)
        self._config, self._request, self._prompts, self._say = config, request, prompts, say
        self._threads = config.threads or free_cores()
        self._device = resolve_device(config.device)
        self.setting = Conditions(in_process(self._device), self._device, config.dtype, self._threads)
        self._subjects: Subjects
        self._bandwidth: Bandwidth

    def admit(self) -> Admitted:
        """Load everything; memory is timed before, while there is some."""

        torch.set_num_threads(self._threads)
        self._say("Timing the memory")
        sync = device_sync(self._device)
        self._bandwidth = memory_bandwidth(self._device, available_bytes(self._device), sync=sync)
        subjects = self._subjects = _load(self._config, self._request, self._device, self._say)
        cautions = [
            *self._cautions,
            *(each for one in subjects.every if one.tokenizer is None for each in shape_cautions(one)),
        ]
        drafts = {name: _facts(loaded) for name, loaded in subjects.drafts.items()}
        drafts |= {name: replace(one.facts(), step_bytes=one.head.step_bytes) for name, one in subjects.heads.items()}
        return Admitted([], [], self.setting, _facts(subjects.target), drafts, cautions=cautions)

    def probe(self, writer: RunWriter) -> Costs:

        config, subjects = self._config, self._subjects
        ids, plan = _plan(config, self._request, subjects, self._prompts)
        models = {None: subjects.target.model} | {name: loaded.model for name, loaded in subjects.drafts.items()}
        prober = Prober(
            models,
            plan,
            ids,
            device=self._device,
            seed=config.seed,
            sampling=config.sampling,
            say=self._say,
            heads={name: draft.head for name, draft in subjects.heads.items()},
        )
        meter = OthersMeter()
        meter.start()
        costs = replace(prober.run(), bandwidth=self._bandwidth)
        others = meter.stop() or 0.0
        if others <= config.max_other_cores:
            return costs
        busy = busy_machine(others, "the models were timed: costs are too high")
        return replace(costs, cautions=(*costs.cautions, busy))


def _facts(loaded: LoadedModel) -> ModelFacts:

    return replace(facts(loaded), step_bytes=step_bytes(loaded.model))


def _load(config: RunConfig, request: ProbeRequest, device: str, say: Say) -> Subjects:

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

    specs = [parse_draft(text) for text in config.draft]
    for spec in specs:
        require_in_process(spec)
        if spec.kind == "skip" and spec.layers is None:
            raise ConfigError("A probe does not look for layers", where=spec.text, hint="Write skip:layers=8.")
    heads = heads_of([spec.model for spec in specs])
    for head in heads.values():
        require_rounds(head, config.gamma)
    target = real(config.target) if request.target_config is None else shape(request.target_config)
    own = [require_own(target.name, target.model.config) for spec in specs if spec.kind == "mtp"]
    for head in (*heads.values(), *own):
        require_rounds(head, config.gamma)
        say(f"Loading {head.name}")
    found = load_drafts(specs, target, real)
    drafts = {draft.spec.reader: draft.loaded for draft in found if draft.loaded is not None}
    drafts |= {str(path): shape(path) for path in request.draft_configs}
    return Subjects(target, drafts, {draft.spec.reader: draft for draft in found if isinstance(draft, HeadDraft)})


def _plan(
    config: RunConfig, request: ProbeRequest, subjects: Subjects, prompts_of: Callable[[], Sequence[Prompt]]
) -> tuple[list[int], ProbePlan]:
    prompts = [] if subjects.target.tokenizer is None else _encoded(config, subjects.target, prompts_of())
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


def _encoded(config: RunConfig, target: LoadedModel, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The prompts that a run would use, as token ids; none that it would leave out."""

    found = encode_all(target, prompts, config.chat_template_kwargs)
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
