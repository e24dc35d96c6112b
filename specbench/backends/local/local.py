"""The engine in process: transformers models under specbench's own loop, one sequence at a time."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch

from specbench.acceptance.loop import Generation
from specbench.acceptance.rules import RepetitionPenalty, margins
from specbench.backends.base import Admitted, Conditions, Item
from specbench.backends.local.batch import generate_batch, ignores_padding
from specbench.backends.local.cached import CachedModel, ModelReader
from specbench.backends.local.drafting import Draft, Setting, facts, in_process
from specbench.backends.local.drafts import HeadDraft, choose_layers, load_drafts, refuse_batches, require_rounds
from specbench.backends.local.graphs import CudaRecorder, record_all
from specbench.backends.local.lanes import Lane, Underway, judge_of, lane_over, opened_anew, passes
from specbench.backends.local.lean import make_lean
from specbench.backends.local.probing import Prober
from specbench.backends.local.ragged import WIDEST, RaggedModel
from specbench.backends.local.reference import TOKENS, check_reference, failing_as_ours, require_rollback
from specbench.clock import Clock, EventStopwatch, Stopwatch, device_sync
from specbench.config import RunConfig
from specbench.cost.plan import Costs, ProbePlan
from specbench.drafters import DraftSpec, parse_draft, require_in_process
from specbench.errors import ModelError
from specbench.models import LoadedModel, load_model, resolve_device
from specbench.models.defaults import unwritten
from specbench.models.family import attention_of, frequency_limit, require_batches, shares_layers
from specbench.models.headconfig import Head
from specbench.models.heads import heads_of, require_fit, require_own
from specbench.models.load import load_files, read_config
from specbench.models.memory import cache_bytes
from specbench.models.prompts import EncodedPrompts, encode, encode_all, encoded_record, end_tokens, today_of
from specbench.models.vocabulary import check_vocabularies
from specbench.records import Arm, Finding, Omitted, Prompt, ReferenceCheck, Sampling, warned
from specbench.run_record import ModelFacts, RunRecord

NO_GRAPHS = warned(
    "no-cuda-graphs",
    "the models' passes could not be recorded as CUDA graphs: every step pays for its kernel launches, with a draft "
    "and without, and small models more than large ones",
    "Read the speedup as that of an engine without graphs, or measure on a server: specbench sweep --engine.",
)


def _eager(name: str) -> Finding:
    return warned(
        "no-sdpa",
        f"transformers has no fused attention for {name}: it is written out in single operations, so that a step, a "
        "verify pass over several tokens above all, takes longer than on an engine with a kernel for it",
        "Read acceptance as it is, and measure the speedup where it is served: specbench sweep --engine or --server.",
    )


def _rereads(name: str) -> Finding:
    return warned(
        "rereads",
        f"{name} has states that each token writes over: after a rejection it reads the kept tokens again, which is "
        "part of its passes here. An engine keeps the states of every verified token instead",
        "Read acceptance as it is, and the speedup as a lower bound; measure it on the engine that serves the model: "
        "specbench sweep --engine or --server.",
    )


class LocalEngine:
    """Loaded target and drafts. `encode` prompts first, then `reserve` room for the longest, then `generate`. Without
    the `weights` of the target there are only the scores of drafts that say one token each. What the session of
    run.json `earlier` chose and wrote stays: the layers of skip drafts, and the date."""

    def __init__(
        self, config: RunConfig, threads: int, *, weights: bool = True, earlier: RunRecord | None = None
    ) -> None:
        torch.set_num_threads(threads)
        self._threads = threads
        self.device = resolve_device(config.device)
        self.sampling: Sampling = config.sampling
        self._config = config
        self.cautions: list[Finding] = []
        specs = [parse_draft(text) for text in config.draft]
        for spec in specs:
            require_in_process(spec)
        _require_forms(config, specs)
        trusted = frozenset(config.trust_remote_code)
        self.weights = weights
        self.target = self._load(config.target) if weights else load_files(config.target, trust_remote_code=trusted)
        found = load_drafts(specs, self.target, self._load)
        self.drafts: dict[str, Draft] = {draft.spec.text: draft for draft in found}
        models = [draft.loaded for draft in found if draft.loaded is not None and draft.spec.kind == "model"]
        for loaded in {model.name: model for model in models}.values():
            report = check_vocabularies(
                self.target.tokenizer, loaded.tokenizer, _vocab_size(self.target.model), _vocab_size(loaded.model)
            )
            self.cautions += report.cautions
        self.eos = end_tokens(self.target)
        self.today = today_of(None if earlier is None else earlier.workload.encoded)
        drafted = {} if earlier is None else earlier.drafts
        self._known = {text: facts.layers for text, facts in drafted.items() if facts.layers is not None}
        self._recorder: CudaRecorder | None = None  # once all passes were recorded

    def _load(self, name: str) -> LoadedModel:
        trusted = frozenset(self._config.trust_remote_code)
        loaded = load_model(name, dtype=self._config.dtype, device=self.device, trust_remote_code=trusted)
        make_lean(loaded.model)
        if require_rollback(loaded):
            self.cautions.append(_rereads(name))
        if attention_of(loaded.model.config) == "eager":
            self.cautions.append(_eager(name))
        return loaded

    @property
    def reader(self) -> CachedModel:
        """What reads the target's texts, one at a time. After `reserve`."""
        return self._setting.read

    @property
    def vocab_size(self) -> int:
        return self._setting.vocab_size

    @property
    def frequency_limit(self) -> int | None:
        """The length below or above which a text has to stay as a whole (LongRoPE), of all models here; None where
        there is none."""
        target = [self.target] if self.weights else []
        models = (*target, *(draft.loaded for draft in self.drafts.values() if draft.loaded is not None))
        limits = (frequency_limit(loaded.model.config) for loaded in models)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def max_context(self) -> int | None:
        """Tokens that every model here that reads whole texts can read; None where none says."""
        drafts = [draft.loaded for draft in self.drafts.values() if draft.spec.reads_all]
        models = (self.target, *(loaded for loaded in drafts if loaded is not None))
        limits = [model.max_context for model in models if model.max_context is not None]
        return min(limits, default=None)

    @cached_property
    def writes_together(self) -> bool:
        """Whether texts of the target can be written in padded batches; else they are written one by one."""
        with failing_as_ours(self.target):
            return ignores_padding(self.target.model)

    def admitted(
        self, items: Sequence[Item], skipped: Sequence[Omitted], reference: Sequence[ReferenceCheck], hashes: bool
    ) -> Admitted:
        """What run.json says of all that; with the `hashes` of the items' ids where these are prompts."""
        target = facts(self.target) if self.weights else ModelFacts(self.target.name, self.target.revision)
        ids = [(item.prompt.sha256, item.tokens) for item in items] if hashes else []
        return Admitted(
            list(items),
            list(skipped),
            Conditions(in_process(self.device), self.device, self._config.dtype, self._threads),
            replace(target, end_tokens=tuple(sorted(self.eos))),
            {text: draft.facts() for text, draft in self.drafts.items()},
            cautions=self.cautions,
            encoded=encoded_record(self.target, ids, self.today),
            reference=tuple(reference),
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt, through the target's chat template where it has one, written `today`."""
        return encode(self.target, prompt, self._config.chat_template_kwargs, self.today)

    def encode_all(self, prompts: Sequence[Prompt]) -> EncodedPrompts:
        """All that the template does not refuse; what it does not write of them is among the cautions."""
        options = self._config.chat_template_kwargs
        found = encode_all(self.target, prompts, options, self.today)
        self.cautions += unwritten(self.target, [prompt for prompt, _ in found.encoded], options)
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.target.tokenizer.decode(tokens))

    def reserve(self, capacity: int) -> None:
        reader, many = CachedModel(self.target.model, capacity) if self.weights else None, None
        if (rows := self._config.batch_size) > 1:  # one may be padded by as much as the widest pass
            many = RaggedModel(self.target.model, capacity + WIDEST, rows)
        self._setting = Setting(self.target, reader, self.sampling, self.eos, max(self._config.gamma), many)
        for draft in self.drafts.values():
            if draft.spec.kind != "skip" or draft.spec.layers is not None:
                draft.open(self._setting, capacity)

    def settle(self, prompts: Sequence[Sequence[int]]) -> None:
        """Choose the layers of `skip:auto` drafts over a few prompts, or take those of the earlier session; on CUDA,
        record the passes of every model. After `reserve`."""
        for text, draft in list(self.drafts.items()):
            if draft.spec.kind == "skip" and draft.spec.layers is None:
                layers = self._known.get(text) or choose_layers(self._setting, prompts, self._config.gamma)
                (settled,) = load_drafts([replace(draft.spec, layers=layers)], self.target, lambda name: self.target)
                settled.open(self._setting, self.reader.capacity)
                self.drafts[text] = settled
        if self.device.startswith("cuda"):
            drafts = [None, *self.drafts.values()]
            judges = dict.fromkeys(judge_of(self._setting, draft) for draft in drafts)
            self._recorder = CudaRecorder()
            if not record_all(passes(judges, drafts, max(self._config.gamma)), self._recorder):
                self._recorder = None
                self.cautions.append(NO_GRAPHS)

    def check_reference(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, padded: bool
    ) -> list[ReferenceCheck]:
        """Hold target and drafts against transformers' own `generate`, before anything is measured. Raises ModelError
        where a model here is not the one that transformers runs. After `settle`."""
        many = None if padded else self._setting.many
        pairs: list[tuple[LoadedModel, CachedModel | RaggedModel]] = []
        if self.weights:
            pairs.append((self.target, many or self.reader))
        for draft in self.drafts.values():
            reader = draft.reader if many is None else draft.stepper
            if draft.loaded is not None and draft.spec.kind != "skip" and reader is not None:
                pairs.append((draft.loaded, reader))
        found = []
        for loaded, reader in {id(loaded): (loaded, reader) for loaded, reader in pairs}.values():
            is_target = loaded is self.target
            widest = max(self._config.gamma) + 1 if is_target else 2
            room = _room(loaded, reader, min(TOKENS, max_new_tokens) + widest)
            # A draft may know fewer ids; which ones are read does not matter here.
            texts = [[token % reader.vocab_size for token in prompt[-room:]] for prompt in prompts]
            found.append(
                check_reference(
                    loaded,
                    reader,
                    texts,
                    max_new_tokens=max_new_tokens,
                    widest=widest,
                    eos=self.eos if is_target else (),
                    dtype=self._config.dtype,
                    padded=padded and is_target and self.writes_together,  # a draft writes no text
                )
            )
        return found

    def warm(self, ids: Sequence[int], widths: Sequence[int]) -> None:
        """Run the target once at every width n of a verify pass, so that no trial pays for a first call."""
        ids = ids[-_room(self.target, self.reader, max(widths)) :]
        with torch.inference_mode():
            for width in widths:
                self.reader.rewind(0)
                self.reader.forward(ids, keep=1)
                self.reader.forward([ids[-1]] * width, keep=width)

    def probe(self, ids: Sequence[int], plan: ProbePlan) -> Costs:
        """What target and drafts cost alone; n-gram look-up is taken to cost nothing."""
        models: dict[str | None, Any] = {None: self.target.model}
        models |= {d.spec.reader: d.loaded.model for d in self.drafts.values() if d.loaded is not None}
        heads = {draft.spec.reader: draft.head for draft in self.drafts.values() if isinstance(draft, HeadDraft)}
        seed = self._config.seed
        return Prober(models, plan, ids, device=self.device, seed=seed, sampling=self.sampling, heads=heads).run()

    def new_lane(self, draft: str | None) -> Lane | None:
        """Caches of its own for an arm with `draft`. Where the engine's own passes are recorded, on CUDA, so are these;
        None where that fails."""
        setting, own = opened_anew(self._setting, None if draft is None else self.drafts[draft])
        wanted = passes([judge_of(setting, own)], [own], 0 if own is None else max(self._config.gamma))
        recorded = self._recorder is None or record_all(wanted, self._recorder)
        return lane_over(setting, own) if recorded else None

    def lane_bytes(self, draft: str | None) -> int:
        config, element = self.target.model.config, next(self.target.model.parameters()).element_size()
        rows = self._config.batch_size
        capacity = self.reader.capacity + (WIDEST if rows > 1 else 0)
        added = 0 if draft is None else self.drafts[draft].facts().cache_bytes_per_token or 0
        return cache_bytes(config, capacity, rows, element) + added * capacity * rows

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        arm: Arm,
        *,
        max_new_tokens: int,
        seed_texts: Sequence[str],
        lane: Lane | None = None,
    ) -> Underway:
        """One trial, of a prompt or of a batch of them, on the caches of `lane`, else on the engine's own. The same
        seed text draws the same random numbers in the same arm; a row draws those that it would draw alone, up to its
        last round."""
        seeds = [self._seed(f"{arm.label}/{text}") for text in seed_texts]
        clock = self._clock()
        steps = (lane or self._own_lane(arm.draft))(
            prompts,
            generators=[torch.Generator(self.device).manual_seed(seed) for seed in seeds],
            gamma=arm.gamma or 0,
            sampling=self.sampling,
            eos=self.eos,
            max_new_tokens=max_new_tokens,
            clock=clock,
        )
        return Underway(arm, steps, clock)

    def generate(self, ids: Sequence[int], arm: Arm, *, max_new_tokens: int, seed_text: str) -> Generation:
        return self.start([ids], arm, max_new_tokens=max_new_tokens, seed_texts=[seed_text]).finish()[0]

    def _own_lane(self, draft: str | None) -> Lane:
        return lane_over(self._setting, None if draft is None else self.drafts[draft])

    def texts(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed_text: str) -> list[list[int]]:
        """Texts of the target alone for several prompts at once; not for timing."""
        return generate_batch(
            self.target.model,
            prompts,
            sampling=self.sampling,
            eos=self.eos,
            max_new_tokens=max_new_tokens,
            seed=self._seed(seed_text),
            together=self.writes_together,
        )

    def release(self) -> None:
        """Give back what a pass that ran out of memory left behind. Caches stay: the next text begins them anew."""
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _clock(self) -> Clock:
        if self.device.startswith("cuda"):
            return EventStopwatch(partial(torch.cuda.Event, enable_timing=True))
        return Stopwatch(device_sync(self.device))

    def _seed(self, text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._config.seed}/{text}".encode()).digest()[:7], "big")

    def margin(self, ids: Sequence[int]) -> float:
        """How near a tie the token after `ids` is. A penalty counts, as it did for the text."""
        with torch.inference_mode():
            self.reader.rewind(0)
            logits = RepetitionPenalty(self.sampling).apply(self.reader.forward(ids, keep=1), ids)
            return float(margins(logits)[0])


def _require_forms(config: RunConfig, specs: Sequence[DraftSpec]) -> None:
    """Raise ConfigError or ModelError, before weights are loaded, where batches or a skip draft are asked of a model
    that has no such form."""
    trusted = frozenset(config.trust_remote_code)
    heads = heads_of([spec.model for spec in specs if spec.kind == "model"])
    own = any(spec.kind == "mtp" for spec in specs)
    every: list[Head] = []
    if heads or own:
        of_target = read_config(config.target, trust_remote_code=trusted)
        every = [*heads.values(), *([require_own(config.target, of_target)] if own else [])]
        for head in every:
            require_fit(head, config.target, of_target)
            require_rounds(head, config.gamma)
    if config.batch_size > 1:
        refuse_batches(specs, {head.name: head for head in every})
        models = [spec.model for spec in specs if spec.model is not None and spec.model not in heads]
        for name in dict.fromkeys([config.target, *models]):
            require_batches(read_config(name, trust_remote_code=trusted), name)
    for spec in specs:
        if spec.kind == "skip" and not shares_layers(read_config(config.target, trust_remote_code=trusted)):
            raise ModelError(
                f"The first layers of {config.target} cannot draft alone: they share keys and values with later ones, "
                "hold more than one attention each, or keep an index",
                where=spec.text,
                hint="Use another draft.",
            )


def _room(loaded: LoadedModel, reader: ModelReader, beyond: int) -> int:
    """Tokens of a text after which `beyond` others can be read."""
    return max(1, min(reader.capacity, loaded.max_context or reader.capacity) - beyond)


def _vocab_size(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)
