"""Models of this process timed alone, at one batch size after another as far as memory goes: for `specbench probe`,
which loads them or builds their shapes, and beside a run.

Of a draft head: its first step of a round, a step on its own state or a pass that drafts several tokens at once, a
whole draft phase; and what the target's pass costs that keeps the states for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specbench.backends.base import Admitted, Conditions
from specbench.backends.local.cached import CachedModel, States
from specbench.backends.local.drafting import facts, in_process
from specbench.backends.local.drafts import HeadDraft, load_drafts, reader_of, require_rounds
from specbench.backends.local.graphs import Recordable, record_all
from specbench.backends.local.headreader import HeadReader, ManyHeadReader, Network, out_of_memory
from specbench.backends.local.lean import make_lean
from specbench.backends.local.precision import with_precision
from specbench.backends.local.reference import require_rollback
from specbench.clock import device_sync
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, busy_machine, free_cores
from specbench.cost.plan import Costs, ProbePlan, ProbeRequest, run_plan
from specbench.cost.probe import Probed, memory_bandwidth, probe, probe_prefill
from specbench.drafters import parse_draft, require_in_process
from specbench.drafters.head import HeadDrafter
from specbench.drafters.model import DraftOptions, ModelDrafter
from specbench.errors import ConfigError
from specbench.models import LoadedModel, load_model, resolve_device
from specbench.models.heads import heads_of, require_own
from specbench.models.memory import ModelMemoryError, available_bytes, cache_bytes, pass_bytes, step_bytes
from specbench.models.prompts import encode_all
from specbench.models.shapes import load_shape, shape_cautions, shape_format
from specbench.records import Bandwidth, CostPoint, Finding, Prompt, Sampling, warned
from specbench.run_record import ModelFacts
from specbench.store import RunWriter
from specbench.text import gigabytes

# Where no tokenizer says how long the prompts of a workload are.
DEFAULT_CONTEXT = 512

# Of free memory, what caches of several contexts side by side may take.
SHARE = 0.8

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


class HeadProbe:
    """A head to time under `name`, beside the `reader` of its target, at that reader's batch. `parts` are what its
    passes are asked of. Raises ModelMemoryError with the `head` as reader where there is no room for its memory."""

    def __init__(self, name: str, head: Network, reader: CachedModel, plan: ProbePlan) -> None:
        self.name, self._head, self._plan = name, head, plan
        self.target = reader.keeping(head.reads)
        self.pairs: _Pairs | _ManyPairs
        self._phase: _Pairs | None = None
        with out_of_memory(head, f"{plan.capacity} tokens"):
            self._states = States((0,), plan.capacity, reader.batch)
            # Which numbers the states hold does not change the time.
            width = len(head.reads) * head.head.target_hidden
            self._states.following(0, 1)[0](torch.zeros(reader.batch, 1, width, dtype=head.dtype, device=head.device))
            if reader.batch == 1:
                self.pairs, self._phase = (_Pairs(reader_of(head, plan.capacity), self._states) for _ in range(2))
            else:
                self.pairs = _ManyPairs(ManyHeadReader(head, self._states, plan.capacity))
        self.parts = self.target, *(pairs.memory for pairs in (self.pairs, self._phase) if pairs is not None)

    def probed(self, sampling: Sampling) -> Iterator[tuple[str, Probed]]:
        """All that is timed after a context. The caches are those of the target, and one of the head."""
        plan = self._plan
        widths = plan.widths(self.target.batch)
        yield self.name, Probed(self.target, widths, keep_all=True, phase="states")
        yield self.name, Probed(self.pairs, widths, keep_all=False)
        drafts = _Drafts(self.pairs)
        if not self._head.at_once:
            yield self.name, Probed(drafts, (1,), keep_all=False, phase="step")
        else:
            most = max(plan.gammas)
            drafted = tuple(sorted({*(n for n in widths if n < most), most}))
            yield self.name, Probed(drafts, drafted, keep_all=False, phase="block")
        if self._phase is not None:
            memory = self._phase.memory
            drafter = HeadDrafter(memory, self._states.read, **_options(memory.vocab_size, sampling, self._head.device))
            yield self.name, Probed(self._phase, (), False, drafter, plan.phases)


def _options(vocab_size: int, sampling: Sampling, device: str) -> DraftOptions:
    """Of a draft phase, which is timed over all of its tokens: none ends it."""
    chained = not device.startswith("cpu")
    return {"vocab_size": vocab_size, "sampling": sampling, "eos": (), "chained": chained}


class _Pairs:
    """Reads emitted tokens beside states of the target."""

    def __init__(self, memory: HeadReader, states: States) -> None:
        self.memory, self._states = memory, states

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        (ids,) = rows
        # The first draft of a block comes with all of it.
        read = self.memory.block if self.memory.head.at_once else self.memory.read
        return read(ids, self._next(len(ids)), keep)[None]

    def draft(self, ids: Sequence[int], k: int) -> Tensor:
        if self.memory.head.at_once:
            return self.memory.block(ids, self._next(1), k)[None]
        return self.memory.step(ids)[None]

    def rewind(self, length: int) -> None:
        self.memory.rewind(length)

    def _next(self, pairs: int) -> Tensor:
        return self._states.read(self.memory.pairs, self.memory.pairs + pairs)


class _ManyPairs:
    def __init__(self, memory: ManyHeadReader) -> None:
        self.memory, self._batch = memory, memory.states.batch
        memory.begin(self._batch)

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        return self.memory.read(rows)[:, None]

    def draft(self, ids: Sequence[int], k: int) -> Tensor:
        if self.memory.at_once:
            return self.memory.block([[one] for one in ids], k)
        return self.memory.step(ids, range(self._batch))[:, None]

    def rewind(self, length: int) -> None:
        self.memory.rewind([length] * self._batch)


class _Drafts:
    """Reads a context as any, and drafts after it: by one step on the head's own state, or as many tokens as it is
    given, in one pass after one emitted token."""

    def __init__(self, pairs: _Pairs | _ManyPairs) -> None:
        self._pairs, self._read = pairs, False

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        if not self._read:
            self._read = True
            return self._pairs.forward_rows(rows, keep)
        return self._pairs.draft([ids[0] for ids in rows], len(rows[0]))

    def rewind(self, length: int) -> None:
        self._read = length > 0
        self._pairs.rewind(length)


@dataclass(frozen=True, slots=True)
class Bench:
    """Models and heads over caches that hold one context."""

    readers: Mapping[str | None, CachedModel]
    heads: Sequence[HeadProbe]

    def asked(self) -> Iterator[tuple[str | None, object]]:
        """All that a pass is asked of, by name."""
        yield from self.readers.items()
        yield from ((head.name, part) for head in self.heads for part in head.parts)


class Prober:
    """Probes transformers `models` by name (None: the target) as `plan` says, over the tokens `ids`."""

    def __init__(
        self,
        models: Mapping[str | None, Any],
        plan: ProbePlan,
        ids: Sequence[int],
        *,
        device: str,
        seed: int,
        sampling: Sampling,
        say: Callable[[str], None] = lambda _: None,
        heads: Mapping[str, Network] | None = None,
    ) -> None:
        self._models = dict(models)
        self._heads = dict(heads or {})
        self._plan = plan
        # A draft with another tokenizer knows fewer ids than the target; which ones are read does not change the time.
        known = min(int(model.config.get_text_config().vocab_size) for model in models.values())
        self._ids = [token % known for token in ids]
        self._device = device
        self._seed = seed
        self._sampling = sampling
        self._say = say
        self._cautions: list[Finding] = []

    def run(self) -> Costs:
        """Every batch size in turn. A model or head that does not fit is left out from there on; the others go on."""
        points: list[CostPoint] = []
        for batch in sorted(self._plan.batch_sizes):
            self._drop_what_cannot_fit(batch)
            while self._models:
                self._say(f"Timing the models alone, batch {batch}")
                lost = self._try(batch, points)
                if lost is None:
                    break
                self._drop(*lost, batch)
        return Costs(tuple(points), tuple(self._cautions))

    def _try(self, batch: int, points: list[CostPoint]) -> tuple[str | None, str] | None:
        """Add the points of one batch; or the model or head that ran out of memory, and where. The error is not kept:
        its frames hold the tensors that filled the memory."""
        contexts = self._plan.contexts if batch == 1 else self._plan.batch_contexts
        found: list[CostPoint] = []
        every: list[Bench] = []
        try:
            # Side by side in each pass where their caches fit, else one length after the other.
            for part in [contexts] if self._fits(batch, len(contexts)) else [(context,) for context in contexts]:
                every[:] = [self._bench(batch) for _ in part]
                for bench in every:
                    self._record(bench, batch)
                found += self._steps(dict(zip(part, every, strict=True)), batch)
            found += self._prefills(every[-1], batch)
        except ModelMemoryError as error:
            asked: list[tuple[str | None, object]] = [*self._heads.items()]
            asked += [pair for bench in every for pair in bench.asked()]
            name = next(name for name, reader in asked if reader is error.reader)
            return name, f"ran out of memory at {error.where}"
        points += found
        return None

    def _fits(self, batch: int, times: int) -> bool:
        """Whether so many caches of every model find room side by side."""
        needed = sum(times * cache_bytes(*self._size(model, batch)) for model in self._models.values())
        return needed <= SHARE * available_bytes(self._device)

    def _bench(self, batch: int) -> Bench:
        readers = {name: CachedModel(model, self._plan.capacity, batch) for name, model in self._models.items()}
        # A head whose rounds are bounded has no form for batches.
        wanted = {name: head for name, head in self._heads.items() if batch == 1 or head.head.most is None}
        heads = [HeadProbe(name, head, readers[None], self._plan) for name, head in wanted.items() if None in readers]
        return Bench(readers, heads)

    def _record(self, bench: Bench, batch: int) -> None:
        """On CUDA passes are recorded, as those of a run are."""
        if self._device.startswith("cuda"):
            widths = self._plan.widths(batch)
            passes: list[tuple[Recordable, Sequence[int], bool]] = [
                (reader, (1, 2) if name else widths, name is None) for name, reader in bench.readers.items()
            ]
            record_all([*passes, *((head.target, widths, True) for head in bench.heads)])

    def _steps(self, benches: Mapping[int, Bench], batch: int) -> list[CostPoint]:
        """What is timed after each of these contexts, over its own caches."""
        at = {
            context: [
                *((name, self._probed(name, reader)) for name, reader in bench.readers.items()),
                *(one for head in bench.heads for one in head.probed(self._sampling)),
            ]
            for context, bench in benches.items()
        }
        return probe(
            at,
            self._ids,
            seed=f"{self._seed}/{batch}/{min(at)}",
            batch=batch,
            sync=device_sync(self._device),
            passes=self._plan.passes if batch == 1 else self._plan.batch_passes,
            generator=torch.Generator(self._device).manual_seed(self._seed),
        )

    def _probed(self, name: str | None, reader: CachedModel) -> Probed:
        if name is None:
            widths = self._plan.widths(reader.batch)
            return Probed(reader, widths, keep_all=True, rereads=widths[:-1])
        # Of k drafts the model has read all but the last.
        kept = tuple(range(1, max(self._plan.gammas)))
        if reader.batch > 1:
            return Probed(reader, (1, 2), keep_all=False, rereads=kept)
        drafter = ModelDrafter(reader, **_options(reader.vocab_size, self._sampling, self._device))
        return Probed(reader, (1, 2), False, drafter, self._plan.phases, rereads=kept)

    def _prefills(self, bench: Bench, batch: int) -> list[CostPoint]:
        return probe_prefill(
            {**bench.readers, **{head.name: head.pairs for head in bench.heads}},
            self._ids,
            self._plan.prompts if batch == 1 else self._plan.batch_prompts,
            seed=f"{self._seed}/{batch}/prefill",
            batch=batch,
            sync=device_sync(self._device),
            passes=self._plan.prefill_passes,
        )

    def _size(self, model: Any, batch: int) -> tuple[Any, int, int, int]:
        return model.config, self._plan.capacity, batch, next(model.parameters()).element_size()

    def _drop_what_cannot_fit(self, batch: int) -> None:
        """By estimate, before anything is allocated. The target comes first: its costs matter most."""
        free = available_bytes(self._device)
        for name, model in list(self._models.items()):
            size = self._size(model, batch)
            needed = cache_bytes(*size) + pass_bytes(*size)
            if needed > free:
                self._drop(name, f"needs {gigabytes(needed)} beside the weights, {gigabytes(free)} are free", batch)
            else:
                free -= cache_bytes(*size)

    def _drop(self, name: str | None, why: str, batch: int) -> None:
        if name in self._heads:
            del self._heads[name]
        else:
            del self._models[name]
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()
        self._cautions.append(
            warned(
                "batch-too-large",
                f"{'the target' if name is None else name} was not timed at batch {batch} and above: it {why}",
                "Probe smaller batches or shorter contexts, or use a device with more memory.",
            )
        )
