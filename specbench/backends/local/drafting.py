"""The drafts of a run in process: what `--draft` names, loaded, with the drafter that the loop drives and the scores
that the replay needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specbench.acceptance.loop import Drafter
from specbench.acceptance.many import ManyDrafter
from specbench.acceptance.score import match_each_block, score, score_head
from specbench.acceptance.scores import BlockScores, Scores, match_blocks
from specbench.backends.local.batch import score_batch
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.eagle3 import Eagle3, HeadReader, ManyHeadReader, load_head
from specbench.backends.local.ragged import RaggedModel
from specbench.backends.local.states import States
from specbench.backends.local.swap import forward_of
from specbench.drafters import DraftSpec
from specbench.drafters.cross import CrossDrafter
from specbench.drafters.head import HeadDrafter, ManyHeadDrafter
from specbench.drafters.lookup import CombinedDrafter, NgramDrafter
from specbench.drafters.many import ManyModelDrafter, SideBySide
from specbench.drafters.model import ModelDrafter
from specbench.drafters.readable import ManyReadableDrafter, ReadableDrafter, readable, silent_after
from specbench.drafters.skip import SkipDrafter, first_layers
from specbench.errors import ConfigError
from specbench.kinds import MAX_GAMMA
from specbench.models import LoadedModel
from specbench.models.heads import heads_of
from specbench.models.memory import cache_bytes, cache_bytes_per_token
from specbench.models.prompts import end_tokens
from specbench.records import Sampling
from specbench.run_record import ModelFacts

# Drafts of a round that a head is scored for, at least: replays of longer rounds need a run that names them.
DEPTHS = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """What the drafts of one run share: the target, its reader, and how text is generated. `gamma` is the largest.
    Where only answers of a log are scored, drafts that say one token each need no target: its `reader` is None."""

    target: LoadedModel
    reader: CachedModel | None
    sampling: Sampling
    eos: frozenset[int]
    gamma: int

    @property
    def vocab_size(self) -> int:
        """Token ids that the target gives a logit."""
        return int(self.target.model.config.get_text_config(decoder=True).vocab_size)

    @property
    def read(self) -> CachedModel:
        """The reader where there has to be one."""
        assert self.reader is not None
        return self.reader


class Draft:
    """One draft. `loaded` is its model, for a skip draft the target's first layers; None for n-grams alone and for a
    head. Once open, `stepper` is what reads its draft steps, and `target` the reader of the target that its rounds are
    verified with, where that is not the run's own; `many_target` the same of a batch."""

    target: CachedModel | None = None
    many_target: RaggedModel | None = None

    def __init__(self, spec: DraftSpec, loaded: LoadedModel | None) -> None:
        self.spec = spec
        self.loaded = loaded

    def unopened(self) -> Draft:
        """The same draft, to be opened anew."""
        return Draft(self.spec, self.loaded)

    def facts(self) -> ModelFacts:
        """What it is and what it adds to the target, for run.json; layers that are shared add nothing. `reader` is the
        name under which its model is timed alone, None where there is none."""
        loaded = self.loaded
        if loaded is None or self.spec.kind == "skip":
            own = ModelFacts(name=self.spec.text, parameters=0, weight_bytes=0, cache_bytes_per_token=0)
            return own if loaded is None else replace(own, layers=self.spec.layers, reader=self.spec.reader)
        config, element = loaded.model.config, next(loaded.model.parameters()).element_size()
        return replace(
            facts(loaded),
            cache_bytes_per_token=cache_bytes_per_token(config, element),
            state_bytes=cache_bytes(config, 0, 1, element),
            reader=self.spec.reader,
        )

    def open(self, setting: Setting, capacity: int) -> None:
        """Make its drafter, with room for sequences of `capacity` tokens."""
        self._setting = setting
        self._lookup = NgramDrafter(self.spec.ngram, eos=setting.eos) if self.spec.ngram is not None else None
        if self.spec.kind == "cross" and self.loaded is not None:
            # The same text may take more tokens in another tokenizer.
            capacity = min(2 * capacity, self.loaded.max_context or 2 * capacity)
        self.reader = None if self.loaded is None else CachedModel(self.loaded.model, capacity)
        self.stepper: CachedModel | RaggedModel | None = self.reader
        model = self._model_drafter()
        if self._lookup is None or model is None:
            self.drafter = self._lookup or model
        else:
            self.drafter = CombinedDrafter(self._lookup, model)

    def _model_drafter(self) -> Drafter | None:
        spec, setting, loaded = self.spec, self._setting, self.loaded
        if loaded is None or self.reader is None:
            return None
        if spec.kind == "cross":
            return CrossDrafter(
                self.reader,
                loaded.tokenizer,
                setting.target.tokenizer,
                eos=setting.eos,
                end=_main_end(setting),
                draft_eos=end_tokens(loaded),
                repetition_penalty=setting.sampling.repetition_penalty,
            )
        options: dict[str, Any] = {
            "vocab_size": setting.vocab_size,
            "sampling": self.spec.sampling(setting.sampling),
            "eos": setting.eos,
            "cutoff": spec.cutoff,
            "chained": _chains(setting),
        }
        if spec.kind == "skip":
            self.stepper = shared = setting.read.sharing(loaded.model)
            return SkipDrafter(shared, **options)
        drafter = ModelDrafter(self.reader, **options)
        return ReadableDrafter(drafter, self.reader.vocab_size) if self._knows_fewer else drafter

    @property
    def _knows_fewer(self) -> bool:
        """Whether the target may write tokens that this draft model cannot read."""
        known = None if self.reader is None else self.reader.vocab_size
        return self.spec.kind == "model" and known is not None and known < self._setting.vocab_size

    def open_many(self, setting: Setting, target: RaggedModel) -> ManyDrafter:
        """Its drafter for batches that `target` reads, whose model then is what reads draft steps."""
        if self.loaded is None:
            ngram = self.spec.ngram
            assert ngram is not None
            return SideBySide(lambda: NgramDrafter(ngram, eos=setting.eos))
        self.stepper = RaggedModel(self.loaded.model, target.capacity, target.batch)
        drafter = ManyModelDrafter(
            self.stepper,
            vocab_size=setting.vocab_size,
            sampling=self.spec.sampling(setting.sampling),
            eos=setting.eos,
            cutoff=self.spec.cutoff,
            chained=_chains(setting),
        )
        return ManyReadableDrafter(drafter, self.stepper.vocab_size) if self._knows_fewer else drafter

    def score(self, ids: Sequence[int], output: Sequence[int]) -> Scores | BlockScores:
        """What it would have said at every position of `output`, a text of the target alone after `ids`."""
        blocks, setting = self._blocks(ids, output), self._setting
        if self.loaded is None or self.reader is None or self.spec.kind == "cross":
            assert blocks is not None
            return blocks
        found = score(
            setting.read,
            self.reader,
            *self._readable(ids, output),
            vocab_size=setting.vocab_size,
            sampling=self.spec.sampling(setting.sampling),
            eos=setting.eos,
        )
        return replace(silent_after(found, len(output) - 1), blocks=blocks)

    def score_texts(
        self, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
    ) -> Sequence[Scores | BlockScores]:
        """`score` for several texts at once."""
        setting = self._setting
        if self.loaded is None or self.spec.kind == "cross":
            return [self.score(ids, output) for ids, output in zip(prompts, outputs, strict=True)]
        found = score_batch(
            setting.target.model,
            self.loaded.model,
            *map(list, zip(*map(self._readable, prompts, outputs), strict=True)),
            vocab_size=setting.vocab_size,
            sampling=self.spec.sampling(setting.sampling),
            eos=setting.eos,
        )
        texts = zip(found, prompts, outputs, strict=True)
        return [
            replace(silent_after(scores, len(output) - 1), blocks=self._blocks(ids, output))
            for scores, ids, output in texts
        ]

    def _readable(self, ids: Sequence[int], output: Sequence[int]) -> tuple[list[int], list[int]]:
        """A text as far as the draft model can be scored over it: prompt and output."""
        if not self._knows_fewer or self.reader is None:
            return list(ids), list(output)
        known = self.reader.vocab_size
        return [min(token, known - 1) for token in ids], readable(ids, output, known)

    def _blocks(self, ids: Sequence[int], output: Sequence[int]) -> BlockScores | None:
        if isinstance(self.drafter, CrossDrafter):
            return match_each_block(self.drafter, ids, output, self._setting.gamma)
        return None if self._lookup is None else match_blocks(self._lookup, ids, output, MAX_GAMMA)


class HeadDraft(Draft):
    """A draft head, which reads the target's states: in its arm the target is one that keeps them."""

    def __init__(self, spec: DraftSpec, head: Eagle3) -> None:
        super().__init__(spec, None)
        self.head = head

    def unopened(self) -> Draft:
        return HeadDraft(self.spec, self.head)

    @property
    def setting(self) -> Setting:
        """What it was opened in."""
        return self._setting

    def facts(self) -> ModelFacts:
        head, text = self.head, self.head.config
        cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        kept = len(head.reads) * head.head.target_hidden
        return ModelFacts(
            name=head.head.name,
            revision=head.head.revision,
            parameters=head.parameters,
            weight_bytes=head.weight_bytes,
            forward=head.forward,
            head=head.head.kind,
            layer_ids=head.reads,
            draft_vocabulary=head.head.draft_vocab,
            cache_bytes_per_token=(cache + kept) * head.dtype.itemsize,
            reader=self.spec.reader,
        )

    def open(self, setting: Setting, capacity: int) -> None:
        self._setting, self._lookup = setting, None
        self.reader = self.stepper = None
        self.memory = HeadReader(self.head, capacity)
        self.target = setting.read.keeping(self.head.reads)
        assert self.target.states is not None
        self.states: States = self.target.states
        drafter: Drafter = HeadDrafter(self.memory, self.states.read, **self._options(setting))
        if self.spec.ngram is not None:
            self._lookup = NgramDrafter(self.spec.ngram, eos=setting.eos)
            drafter = CombinedDrafter(self._lookup, drafter)
        self.drafter = drafter

    def _options(self, setting: Setting) -> dict[str, Any]:
        return {
            "vocab_size": setting.vocab_size,
            "sampling": self.spec.sampling(setting.sampling),
            "eos": setting.eos,
            "cutoff": self.spec.cutoff,
            "chained": _chains(setting),
        }

    def open_many(self, setting: Setting, target: RaggedModel) -> ManyDrafter:
        self.many_target = target.keeping(self.head.reads)
        assert self.many_target.states is not None
        memory = ManyHeadReader(self.head, self.many_target.states, target.capacity)
        return ManyHeadDrafter(memory, **self._options(setting))

    def score(self, ids: Sequence[int], output: Sequence[int]) -> Scores:
        setting = self._setting
        assert self.target is not None
        found = score_head(
            self.target,
            self.states.read,
            self.memory,
            ids,
            output,
            depths=max(setting.gamma, DEPTHS),
            sampling=self.spec.sampling(setting.sampling),
            eos=setting.eos,
        )
        return replace(found, blocks=self._blocks(ids, output))

    def score_texts(self, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Sequence[Scores]:
        return [self.score(ids, output) for ids, output in zip(prompts, outputs, strict=True)]


def _chains(setting: Setting) -> bool:
    """Whether drafts stay on a device that runs behind."""
    return setting.reader is not None and not setting.reader.device.startswith("cpu")


def _main_end(setting: Setting) -> int:
    """Of the target's ends of sequence the one that its tokenizer names."""
    named = setting.target.tokenizer.eos_token_id
    return named if named in setting.eos else min(setting.eos)


def refuse_batches(specs: Sequence[DraftSpec]) -> None:
    """Raise ConfigError for a draft that has no form for batches."""
    for spec in specs:
        if spec.kind in ("skip", "cross") or (spec.kind and spec.ngram):
            raise ConfigError(
                "Batches take a draft model, a draft head or an n-gram look-up",
                where=spec.text,
                hint="Use --batch-size 1.",
            )


def load_drafts(specs: Sequence[DraftSpec], target: LoadedModel, load: Callable[[str], LoadedModel]) -> list[Draft]:
    """One Draft for each spec; a model or head that several name is loaded once. `skip:auto` comes without its
    layers."""
    models: dict[str, LoadedModel] = {}
    named = heads_of([spec.model for spec in specs if spec.kind == "model"])
    heads = {name: load_head(head, target) for name, head in named.items()}
    drafts: list[Draft] = []
    for spec in specs:
        loaded = None
        if spec.kind == "model" and spec.model in heads:
            drafts.append(HeadDraft(spec, heads[spec.model]))
            continue
        if spec.kind == "skip" and spec.layers is not None:
            loaded = replace(target, name=spec.text, model=first_layers(target.model, spec.layers))
        elif spec.model is not None:
            if spec.model not in models:
                models[spec.model] = load(spec.model)
            loaded = models[spec.model]
        drafts.append(Draft(spec, loaded))
    return drafts


def facts(loaded: LoadedModel) -> ModelFacts:
    """What identifies a loaded model in run.json, and what runs its layers."""
    return ModelFacts(
        name=loaded.name,
        revision=loaded.revision,
        parameters=loaded.parameters,
        weight_bytes=loaded.weight_bytes,
        forward=forward_of(loaded.model),
    )
