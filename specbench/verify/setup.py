"""The models under examination in one precision: target, drafts, a few prompts, and the texts they give.

A test hands in a bed with a broken part in it, in place of the real one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specbench.acceptance.loop import Drafter, Generation, Proposal, Target, generate
from specbench.acceptance.replay import Expected, Text, as_text, replay
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Draft, Setting
from specbench.backends.local.drafts import load_drafts
from specbench.clock import Stopwatch
from specbench.drafters import DraftSpec
from specbench.models import LoadedModel
from specbench.models.memory import available_bytes
from specbench.records import Sampling

GAMMA = 4

# Weights in float32 beside the ones in use: more than this would take minutes on the device.
LARGEST_TWIN = {"cpu": 1e9, "cuda": 8e9}


@dataclass
class Setup:
    """`reader` is the target as the loop reads it, `loaded` the same without a cache. `exact` says that arithmetic is
    float32, in which texts and rounds must agree to the last token."""

    loaded: LoadedModel
    reader: Target
    drafts: list[Draft]
    prompts: list[list[int]]
    sampling: Sampling
    eos: frozenset[int]
    max_new_tokens: int
    dtype: str
    live: dict[str, list[tuple[Generation, list[Turn]]]] = field(default_factory=dict)
    replays: dict[str, Expected] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        return self.dtype == "float32"

    @property
    def capacity(self) -> int:
        return max(map(len, self.prompts)) + self.max_new_tokens + GAMMA + 2

    @property
    def vocab_size(self) -> int:
        return int(self.loaded.model.config.get_text_config().vocab_size)

    def run(
        self, drafter: Drafter | None, ids: Sequence[int], gamma: int = GAMMA, reader: Target | None = None
    ) -> Generation:
        """One text, through the loop that trials run. `reader` is the target where a draft wants one that keeps its
        states."""
        return generate(
            reader or self.reader,
            drafter,
            ids,
            gamma=gamma,
            sampling=self.sampling,
            eos=self.eos,
            max_new_tokens=self.max_new_tokens,
            generator=self.generator(),
            clock=Stopwatch(),
        )

    @cached_property
    def alone(self) -> list[list[int]]:
        return [self.run(None, ids).tokens for ids in self.prompts]

    def with_draft(self, draft: Draft) -> list[tuple[Generation, list[Turn]]]:
        """Texts with the draft, and what it proposed in each round."""
        name = draft.spec.text
        if name not in self.live:
            recorders = [Recorder(drafter_of(draft)) for _ in self.prompts]
            self.live[name] = [
                (self.run(r, ids, gamma_of(draft), draft.target), r.turns)
                for r, ids in zip(recorders, self.prompts, strict=True)
            ]
        return self.live[name]

    def replayed(self, draft: Draft) -> Expected:
        """What one pass of the draft over the target's own texts says about the rounds."""
        name = draft.spec.text
        if name not in self.replays:
            texts = [self._text(draft, i) for i in range(len(self.prompts))]
            self.replays[name] = replay(texts, gamma_of(draft), draft.spec.cutoff)
        return self.replays[name]

    @torch.inference_mode()
    def settle(self, draft: Draft, x: Sequence[int]) -> None:
        """Bring the draft as far as it is when a round begins after `x`; the target too where they share a cache, or
        the draft reads its states."""
        if draft.spec.kind == "skip" or draft.target is not None:
            reader = draft.target or self.reader
            reader.rewind(0)
            reader.forward(x[:-1], keep=1)
        drafter_of(draft).begin(x[:-1])

    def generator(self) -> torch.Generator:
        return torch.Generator(self.loaded.model.device).manual_seed(0)

    def _text(self, draft: Draft, i: int) -> Text:
        scores = draft.score(self.prompts[i], self.alone[i])
        limit = self.max_new_tokens
        return as_text(scores, prompt_id=str(i), category=None, draft=draft.spec.text, repeat=0, limit=limit)


@dataclass(frozen=True, slots=True)
class Turn:
    x: list[int]
    k: int
    tokens: list[int]


class Recorder:
    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.turns: list[Turn] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self._drafter.begin(prompt)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        proposal = self._drafter.propose(x, k, generator)
        self.turns.append(Turn(list(x), k, list(proposal.numbers)))
        return proposal


def drafter_of(draft: Draft) -> Drafter:
    assert draft.drafter is not None
    return draft.drafter


def make_setup(
    loaded: LoadedModel,
    drafts: Sequence[Draft],
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    eos: frozenset[int],
    max_new_tokens: int,
    dtype: str,
) -> Setup:
    """A bed with room for the longest prompt, and every draft ready."""
    ids = [list(prompt) for prompt in prompts]
    capacity = max(map(len, ids)) + max_new_tokens + GAMMA + 2
    reader = CachedModel(loaded.model, capacity)
    own = [draft.unopened() for draft in drafts]
    for draft in own:
        draft.open(Setting(loaded, reader, sampling, eos, gamma_of(draft)), capacity)
    return Setup(loaded, reader, own, ids, sampling, eos, max_new_tokens, dtype)


def gamma_of(draft: Draft) -> int:
    """How many tokens a round of it drafts here: a block drafter has as many as its block."""
    return min(GAMMA, draft.most or GAMMA)


def in_float32(loaded: LoadedModel, drafts: Sequence[Draft]) -> tuple[LoadedModel, list[Draft]] | None:
    """Target and drafts with their weights widened to float32; None where that takes too much memory or time."""
    device = str(loaded.model.device)
    models = {d.loaded.name: d.loaded for d in drafts if d.loaded is not None and d.spec.kind != "skip"}
    size = loaded.parameters + sum(model.parameters for model in models.values())
    most = LARGEST_TWIN.get(device.partition(":")[0], LARGEST_TWIN["cpu"])
    if size > most or 4 * size > 0.8 * available_bytes(device):
        return None
    target = _wide(loaded)
    specs: list[DraftSpec] = [draft.spec for draft in drafts]
    return target, load_drafts(specs, target, lambda name: _wide(models[name]))


def _wide(loaded: LoadedModel) -> LoadedModel:
    return replace(loaded, model=copy.deepcopy(loaded.model).float())


@torch.inference_mode()
def bare_logits(model: Any, ids: Sequence[int], keep: int) -> Tensor:
    """Logits [keep, V] after the last tokens of one whole pass without a cache: no code of ours is in it."""
    out = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    logits: Tensor = out.logits[0, -keep:]
    return logits.float()
