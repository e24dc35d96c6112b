"""The models under examination in one precision: target, drafts, a few prompts, and the texts they give.

A test hands in a setup with a broken part in it, in place of a real one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbench.acceptance.loop import Drafter, Generation, Proposal, Target, generate
from specbench.acceptance.replay import Expected, Text, as_text, replay
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Draft, Setting
from specbench.backends.local.drafts import load_drafts
from specbench.clock import Stopwatch
from specbench.models import LoadedModel
from specbench.models.memory import available_bytes
from specbench.records import Sampling, Severity

GAMMA = 4

# Weights in float32 beside the ones in use: more than this would take minutes on the device.
LARGEST_TWIN = {"cpu": 1e9, "cuda": 8e9}


class Outcome(NamedTuple):
    """What a check came to: what was `said` in one line with numbers, and a hint where there is something to do."""

    severity: Severity
    said: str
    hint: str | None = None


@dataclass
class Setup:
    """The models as the loop runs them, with room for the longest prompt and every draft ready. `reader` is the target
    as the loop reads it, `loaded` the same without a cache."""

    loaded: LoadedModel
    drafts: Sequence[Draft]
    prompts: Sequence[list[int]]
    sampling: Sampling
    eos: frozenset[int]
    max_new_tokens: int
    dtype: str

    def __post_init__(self) -> None:
        self.reader: Target = CachedModel(self.loaded.model, self.capacity)
        self.drafts = [draft.unopened() for draft in self.drafts]
        for draft in self.drafts:
            setting = Setting(self.loaded, self.reader, self.sampling, self.eos, gamma_of(draft))
            draft.open(setting, self.capacity)
        self._live: dict[str, list[tuple[Generation, list[Turn]]]] = {}
        self._replays: dict[str, Expected] = {}

    @property
    def exact(self) -> bool:
        """Whether texts and rounds must agree to the last token."""
        return self.dtype == "float32"

    @property
    def capacity(self) -> int:
        return room(self.prompts, self.max_new_tokens)

    @property
    def vocab_size(self) -> int:
        return self.loaded.vocab_size

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
        if name not in self._live:
            recorders = [Recorder(drafter_of(draft)) for _ in self.prompts]
            self._live[name] = [
                (self.run(r, ids, gamma_of(draft), draft.target), r.turns)
                for r, ids in zip(recorders, self.prompts, strict=True)
            ]
        return self._live[name]

    def replayed(self, draft: Draft) -> Expected:
        """What one pass of the draft over the target's own texts says about the rounds."""
        name = draft.spec.text
        if name not in self._replays:
            texts = [self._text(draft, number) for number in range(len(self.prompts))]
            self._replays[name] = replay(texts, gamma_of(draft), draft.spec.cutoff)
        return self._replays[name]

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

    def _text(self, draft: Draft, number: int) -> Text:
        scores, limit = draft.score(self.prompts[number], self.alone[number]), self.max_new_tokens
        return as_text(scores, prompt_id=str(number), category=None, draft=draft.spec.text, repeat=0, limit=limit)


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


def room(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Tokens that a cache holds at most while these prompts are examined."""
    return max(map(len, prompts)) + max_new_tokens + GAMMA + 2


def gamma_of(draft: Draft) -> int:
    """How many tokens a round of it drafts here: a block drafter has as many as its block."""
    return min(GAMMA, draft.most or GAMMA)


def read_models(drafts: Sequence[Draft]) -> dict[str, LoadedModel]:
    """Models beside the target by name: one of its first layers lives in it."""
    return {d.loaded.name: d.loaded for d in drafts if d.loaded is not None and d.spec.kind != "skip"}


def in_float32(loaded: LoadedModel, drafts: Sequence[Draft]) -> tuple[LoadedModel, list[Draft]] | None:
    """Target and drafts with their weights widened to float32; None where that takes too much memory or time."""
    device = str(loaded.model.device)
    models = read_models(drafts)
    size = loaded.parameters + sum(model.parameters for model in models.values())
    most = LARGEST_TWIN.get(device.partition(":")[0], LARGEST_TWIN["cpu"])
    if size > most or 4 * size > 0.8 * available_bytes(device):
        return None
    target = _wide(loaded)
    return target, load_drafts([draft.spec for draft in drafts], target, lambda name: _wide(models[name]))


def _wide(loaded: LoadedModel) -> LoadedModel:
    return replace(loaded, model=copy.deepcopy(loaded.model).float())


@torch.inference_mode()
def bare_logits(model: Any, ids: Sequence[int], keep: int) -> Tensor:
    """Logits [keep, V] after the last tokens of one whole pass without a cache: no code of ours is in it."""
    out = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    logits: Tensor = out.logits[0, -keep:]
    return logits.float()
