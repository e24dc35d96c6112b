"""A draft of a run in process: loaded, with the drafter that the loop drives and the scores that the replay needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specbench.acceptance.loop import Drafter
from specbench.acceptance.many import ManyDrafter
from specbench.acceptance.score import score
from specbench.acceptance.scores import BlockScores, Scores, match_blocks
from specbench.backends.local.batch import score_batch
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.lean import forward_of
from specbench.backends.local.ragged import RaggedModel
from specbench.drafters import DraftSpec
from specbench.drafters.around import (
    CombinedDrafter,
    LookUpDrafter,
    ManyReadableDrafter,
    ReadableDrafter,
    SideBySide,
    look_up,
    readable,
    silent_after,
)
from specbench.drafters.cross import CrossDrafter, match_each_block
from specbench.drafters.lookup import Corpus
from specbench.drafters.model import DraftOptions, ManyModelDrafter, ModelDrafter
from specbench.drafters.skip import SkipDrafter
from specbench.kinds import MAX_GAMMA
from specbench.models import LoadedModel
from specbench.models.memory import cache_bytes, cache_bytes_per_token
from specbench.models.prompts import end_tokens
from specbench.records import Sampling
from specbench.run_record import ModelFacts
from specbench.workload.answers import AnswerLog


@dataclass(frozen=True, slots=True)
class Setting:
    """What the drafts of one run share: the target, its reader, and how text is generated. `gamma` is the largest, and
    `many` the reader of batches, where there are some. Where only answers of a log are scored, drafts that say one
    token each need no target: its `reader` is None."""

    target: LoadedModel
    reader: CachedModel | None
    sampling: Sampling
    eos: frozenset[int]
    gamma: int
    many: RaggedModel | None = None

    @property
    def vocab_size(self) -> int:
        return int(self.target.model.config.get_text_config(decoder=True).vocab_size)

    @property
    def read(self) -> CachedModel:
        assert self.reader is not None
        return self.reader


class Draft:
    """One draft. `loaded` is its model, for a skip draft the target's first layers; None for n-grams alone and for a
    head. It can draft `most` tokens in a round, None: any number. Once open, `drafter` proposes for one text and
    `many_drafter` for a batch, `stepper` is what reads its draft steps, and `target` the reader of the target that its
    rounds are verified with, where that is not the run's own; `many_target` the same of a batch."""

    target: CachedModel | None = None
    many_target: RaggedModel | None = None
    many_drafter: ManyDrafter | None = None
    most: int | None = None

    def __init__(self, spec: DraftSpec, loaded: LoadedModel | None) -> None:
        self.spec = spec
        self.loaded = loaded
        self._corpus: Corpus | None = None

    def unopened(self) -> Draft:
        """The same, to be opened by itself."""
        return copy.copy(self)

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
        """Make its drafters, with room for sequences of `capacity` tokens."""
        self.setting, self._lookup = setting, self._look_up(setting)
        model = self._model_drafter(capacity)
        if self._lookup is None or model is None:
            self.drafter = self._lookup or model
        else:
            self.drafter = CombinedDrafter(self._lookup, model)
        if setting.many is not None:
            self.many_drafter = self._of_batches(setting.many)

    def _model_drafter(self, capacity: int) -> Drafter | None:
        """The readers of its model, and what drafts with it."""
        spec, setting, loaded = self.spec, self.setting, self.loaded
        self.reader: CachedModel | None = None
        self.stepper: CachedModel | RaggedModel | None = None
        if loaded is None:
            return None
        if spec.kind == "cross":  # the same text may take more tokens in another tokenizer
            capacity = min(2 * capacity, loaded.max_context or 2 * capacity)
        self.reader = self.stepper = CachedModel(loaded.model, capacity)
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
        options = self._options()
        if spec.kind == "skip":
            self.stepper = shared = setting.read.sharing(loaded.model)
            return SkipDrafter(shared, **options)
        drafter = ModelDrafter(self.reader, **options)
        return ReadableDrafter(drafter, self.reader.vocab_size) if self._knows_fewer else drafter

    def _options(self) -> DraftOptions:
        setting = self.setting
        return {
            "vocab_size": setting.vocab_size,
            "sampling": self.spec.sampling(setting.sampling),
            "eos": setting.eos,
            "cutoff": self.spec.cutoff,
            # On a device that runs behind, drafts stay there.
            "chained": setting.reader is not None and not setting.reader.device.startswith("cpu"),
        }

    @property
    def _knows_fewer(self) -> bool:
        """Whether the target may write tokens that this draft model cannot read."""
        known = None if self.reader is None else self.reader.vocab_size
        return self.spec.kind == "model" and known is not None and known < self.setting.vocab_size

    def _of_batches(self, target: RaggedModel) -> ManyDrafter:
        """Its drafter for batches that `target` reads, whose model then is what reads draft steps."""
        if self.loaded is None:

            def alone() -> Drafter:
                found = self._look_up(self.setting)
                assert found is not None
                return found

            return SideBySide(alone)
        self.stepper = RaggedModel(self.loaded.model, target.capacity, target.batch)
        drafter = ManyModelDrafter(self.stepper, **self._options())
        return ManyReadableDrafter(drafter, self.stepper.vocab_size) if self._knows_fewer else drafter

    def score(self, ids: Sequence[int], output: Sequence[int]) -> Scores | BlockScores:
        """What it would have said at every position of `output`, a text of the target alone after `ids`."""
        blocks, setting = self._blocks(ids, output), self.setting
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
        setting = self.setting
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

    def _look_up(self, setting: Setting) -> LookUpDrafter | None:
        suffix = self.spec.suffix
        if suffix is not None and suffix.corpus is not None and self._corpus is None:
            self._corpus = _corpus_of(suffix.corpus, setting)
        return look_up(self.spec, eos=setting.eos, corpus=self._corpus)

    def _readable(self, ids: Sequence[int], output: Sequence[int]) -> tuple[list[int], list[int]]:
        """A text as far as the draft model can be scored over it: prompt and output."""
        if not self._knows_fewer or self.reader is None:
            return list(ids), list(output)
        known = self.reader.vocab_size
        return [min(token, known - 1) for token in ids], readable(ids, output, known)

    def _blocks(self, ids: Sequence[int], output: Sequence[int]) -> BlockScores | None:
        if isinstance(self.drafter, CrossDrafter):
            return match_each_block(self.drafter, ids, output, self.setting.gamma)
        return None if self._lookup is None else match_blocks(self._lookup, ids, output, MAX_GAMMA)


def _main_end(setting: Setting) -> int:
    """Of the target's ends of sequence the one that its tokenizer names."""
    named = setting.target.tokenizer.eos_token_id
    return named if named in setting.eos else min(setting.eos)


def _corpus_of(source: str, setting: Setting) -> Corpus:
    """The answers of a log as token ids, each with its end. Raises WorkloadError where there are none."""
    log, end, tokenizer = AnswerLog(source), _main_end(setting), setting.target.tokenizer
    log.survey()
    replies = (one.reply for one in log)
    texts = (reply.ids or tokenizer(reply.message.content, add_special_tokens=False).input_ids for reply in replies)
    return Corpus([*ids, *([] if ids[-1:] == [end] else [end])] for ids in map(list, texts))


def in_process(device: str) -> str:
    return f"transformers models in process, specbench loop ({device})"


def facts(loaded: LoadedModel) -> ModelFacts:
    """What identifies a loaded model in run.json, and what runs its layers."""
    return ModelFacts(
        name=loaded.name,
        revision=loaded.revision,
        parameters=loaded.parameters,
        weight_bytes=loaded.weight_bytes,
        forward=forward_of(loaded.model),
    )
