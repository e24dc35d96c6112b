"""The engine in process: transformers models under specbench's own loop, one sequence at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from specbench.acceptance.loop import Drafter, Generation, generate
from specbench.acceptance.score import BlockScores, Scores, match_blocks, score
from specbench.clock import Stopwatch, device_sync
from specbench.config import MAX_GAMMA, RunConfig
from specbench.cost.probe import Probed, probe
from specbench.drafters import parse_draft
from specbench.drafters.model import ModelDrafter
from specbench.drafters.ngram import NgramDrafter, NgramSpec
from specbench.engines.batch import generate_batch, score_batch
from specbench.engines.cached import CachedModel
from specbench.errors import ConfigError
from specbench.models import LoadedModel, load_model, resolve_device
from specbench.models.vocabulary import check_vocabularies
from specbench.records import Arm, Caution, CostPoint, Prompt, Sampling


class LocalEngine:
    """Loaded target and drafts. `encode` prompts first, then `reserve` room for the longest, then `generate`."""

    def __init__(self, config: RunConfig, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = resolve_device(config.device)
        self.sampling: Sampling = config.sampling
        self.seed = config.seed
        self.target = self._load(config, config.target)
        specs = {text: parse_draft(text) for text in config.draft}
        self.ngrams = {text: spec for text, spec in specs.items() if isinstance(spec, NgramSpec)}
        self.drafts = {text: self._load(config, spec) for text, spec in specs.items() if isinstance(spec, str)}
        self.cautions: list[Caution] = []
        for loaded in self.drafts.values():
            report = check_vocabularies(
                self.target.tokenizer, loaded.tokenizer, _vocab_size(self.target.model), _vocab_size(loaded.model)
            )
            self.cautions += report.cautions
        self.eos = end_tokens(self.target)

    def _load(self, config: RunConfig, name: str) -> LoadedModel:
        return load_model(
            name, dtype=config.dtype, device=self.device, trust_remote_code=frozenset(config.trust_remote_code)
        )

    @property
    def max_context(self) -> int | None:
        """Tokens that every model here can read; None where none says."""
        limits = [m.max_context for m in (self.target, *self.drafts.values()) if m.max_context is not None]
        return min(limits, default=None)

    def describe(self) -> dict[str, Any]:
        """What was loaded, for the record: name, revision, parameters and bytes of weights of each model."""
        weightless = {"revision": None, "parameters": 0, "weight_bytes": 0}
        drafts = {spec: _facts(loaded) for spec, loaded in self.drafts.items()}
        return {
            "target": _facts(self.target),
            "drafts": drafts | {spec: {"name": spec} | weightless for spec in self.ngrams},
        }

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt, through the target's chat template where it has one."""
        tokenizer = self.target.tokenizer
        if tokenizer.chat_template is None:
            ids: list[int] = tokenizer("\n\n".join(message.content for message in prompt.messages))["input_ids"]
            return ids or [next(iter(self.eos))]
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Output token ids as text."""
        return str(self.target.tokenizer.decode(tokens))

    def reserve(self, capacity: int) -> None:
        """Make room in every KV cache for sequences of `capacity` tokens."""
        self._target = CachedModel(self.target.model, capacity)
        self._readers = {spec: CachedModel(loaded.model, capacity) for spec, loaded in self.drafts.items()}
        self._drafters: dict[str, Drafter] = {
            spec: ModelDrafter(reader, vocab_size=self._target.vocab_size, sampling=self.sampling, eos=self.eos)
            for spec, reader in self._readers.items()
        }
        self._drafters |= {text: NgramDrafter(spec, eos=self.eos) for text, spec in self.ngrams.items()}

    def warm(self, ids: Sequence[int], widths: Sequence[int]) -> None:
        """Run the target once at every width n of a verify pass, so that no trial pays for a first call."""
        with torch.inference_mode():
            for width in widths:
                self._target.rewind(0)
                self._target.forward(ids, keep=1)
                self._target.forward([ids[-1]] * width, keep=width)

    def probe(self, ids: Sequence[int], contexts: Sequence[int], widest: int) -> list[CostPoint]:
        """What target and drafts cost after so many tokens: the target over 1 to `widest`, drafts over 1 and 2."""
        models: dict[str | None, Probed] = {None: Probed(self._target, tuple(range(1, widest + 1)), keep_all=True)}
        models |= {spec: Probed(reader, (1, 2), keep_all=False) for spec, reader in self._readers.items()}
        return probe(models, ids, contexts, seed=self.seed, sync=device_sync(self.device))

    def generate(self, ids: Sequence[int], arm: Arm, *, max_new_tokens: int, seed_text: str) -> Generation:
        """One trial. The same `seed_text` draws the same random numbers in the same arm."""
        generator = torch.Generator(self.device).manual_seed(self._seed(f"{arm.label}/{seed_text}"))
        return generate(
            self._target,
            None if arm.draft is None else self._drafters[arm.draft],
            ids,
            gamma=arm.gamma or 0,
            sampling=self.sampling,
            eos=self.eos,
            max_new_tokens=max_new_tokens,
            generator=generator,
            clock=Stopwatch(device_sync(self.device)),
        )

    def score(self, ids: Sequence[int], output: Sequence[int], draft: str) -> Scores | BlockScores:
        """What `draft` would have said at every position of `output`, a text of the target alone after `ids`."""
        if draft in self.ngrams:
            return match_blocks(self._drafters[draft], ids, output, MAX_GAMMA)
        return score(
            self._target,
            self._readers[draft],
            ids,
            output,
            vocab_size=self._target.vocab_size,
            sampling=self.sampling,
            eos=self.eos,
        )

    def texts(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed_text: str) -> list[list[int]]:
        """Texts of the target alone for several prompts at once; not for timing."""
        return generate_batch(
            self.target.model,
            prompts,
            sampling=self.sampling,
            eos=self.eos,
            max_new_tokens=max_new_tokens,
            seed=self._seed(seed_text),
        )

    def score_texts(
        self, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], draft: str
    ) -> Sequence[Scores | BlockScores]:
        """`score` for several texts at once."""
        if draft in self.ngrams:
            return [self.score(ids, output, draft) for ids, output in zip(prompts, outputs, strict=True)]
        return score_batch(
            self.target.model,
            self.drafts[draft].model,
            prompts,
            outputs,
            vocab_size=_vocab_size(self.target.model),
            sampling=self.sampling,
            eos=self.eos,
        )

    def _seed(self, text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{text}".encode()).digest()[:7], "big")

    def margin(self, ids: Sequence[int]) -> float:
        """The target's top-2 logit margin after `ids`, as a fraction of its top logit's magnitude: how near a tie
        the next token is, in the unit in which rounding errors come."""
        with torch.inference_mode():
            self._target.rewind(0)
            top = self._target.forward(ids, keep=1)[0].float().topk(2).values
        return float((top[0] - top[1]) / top[0].abs().clamp_min(1e-9))


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """The ids that end a text: of the generation config, which lists them all, else of the tokenizer."""
    ids: Any = getattr(loaded.model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = loaded.tokenizer.eos_token_id
    if ids is None:
        raise ConfigError(
            "The target has no end-of-sequence token",
            where=loaded.name,
            cure="Set eos_token_id in its generation config.",
        )
    return frozenset([ids] if isinstance(ids, int) else ids)


def _vocab_size(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "name": loaded.name,
        "revision": loaded.revision,
        "parameters": loaded.parameters,
        "weight_bytes": loaded.weight_bytes,
    }
