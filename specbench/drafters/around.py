"""Drafters around others: a look-up, alone and in front of a model; a draft model that knows fewer tokens than its
target, as Gemma 3's small models lack one id that the larger ones have; and the same in a batch. What knows fewer
tokens never proposes what it does not know, and from where the target writes such a token, which it cannot read, it
drafts nothing for the rest of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from specbench.acceptance.loop import Drafter, Proposal
from specbench.acceptance.many import ManyDrafter
from specbench.acceptance.scores import Scores
from specbench.drafters.lookup import Corpus, NgramLookUp, SuffixLookUp
from specbench.drafters.spec import DraftSpec


class NgramDrafter(NgramLookUp):
    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        return Proposal(self.find(x, k))


class SuffixDrafter(SuffixLookUp):
    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        return Proposal(self.find(x, k))


LookUpDrafter = NgramDrafter | SuffixDrafter


def look_up(spec: DraftSpec, *, eos: Collection[int], corpus: Corpus | None = None) -> LookUpDrafter | None:
    """The look-up of a draft; None where it has none."""
    if spec.ngram is not None:
        return NgramDrafter(spec.ngram, eos=eos)
    return None if spec.suffix is None else SuffixDrafter(corpus, eos=eos)


class CombinedDrafter:
    """Both see the whole sequence. While the look-up drafts, the model does not run; when its turn comes it reads what
    it has missed in one pass."""

    def __init__(self, lookup: Drafter, model: Drafter) -> None:
        self._lookup, self._model = lookup, model

    def begin(self, prompt: Sequence[int]) -> None:
        self._lookup.begin(prompt)
        self._model.begin(prompt)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        found = self._lookup.propose(x, k, generator)
        return found if found.tokens else self._model.propose(x, k, generator)


class ReadableDrafter:
    """`drafter`, silent once a text holds an id of `known` or above."""

    def __init__(self, drafter: Drafter, known: int) -> None:
        self._drafter, self._known = drafter, known

    def begin(self, prompt: Sequence[int]) -> None:
        self._read = len(prompt)
        self._silent = max(prompt, default=0) >= self._known
        if not self._silent:
            self._drafter.begin(prompt)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        self._silent = self._silent or max(x[self._read :], default=0) >= self._known
        self._read = len(x)
        return Proposal([]) if self._silent else self._drafter.propose(x, k, generator)


class ManyReadableDrafter:
    """The same for a batch. A silent row goes on as one that asks for nothing, with a token in place of each that is
    not known: what it reads is not used."""

    def __init__(self, drafter: ManyDrafter, known: int) -> None:
        self._drafter, self._known = drafter, known

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        self._drafter.begin([self._readable(prompt) for prompt in prompts])

    def keep(self, rows: Sequence[int]) -> None:
        self._drafter.keep(rows)

    def propose(
        self, rows: Sequence[Sequence[int]], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Proposal]:
        silent = [max(row) >= self._known for row in rows]
        asked = [0 if quiet else k for k, quiet in zip(ks, silent, strict=True)]
        if not any(asked):
            return [Proposal([]) for _ in rows]
        found = self._drafter.propose([self._readable(row) for row in rows], asked, generators)
        return [Proposal([]) if quiet else one for one, quiet in zip(found, silent, strict=True)]

    def _readable(self, row: Sequence[int]) -> list[int]:
        return [token if token < self._known else 0 for token in row]


def readable(prompt: Sequence[int], output: Sequence[int], known: int) -> list[int]:
    """The beginning of `output` that such a draft can be scored over: up to the first token that it does not know, and
    only the first where the prompt holds one already."""
    if max(prompt, default=0) >= known:
        return list(output[:1])
    unknown = next((i for i, token in enumerate(output) if token >= known), len(output))
    return list(output[: unknown + 1])


def silent_after(scores: Scores, positions: int) -> Scores:
    """Scores of the beginning of a text, as those of all its `positions`: beyond, nothing is drafted, and there is no
    confidence."""
    missing = positions - len(scores.accept)
    if missing <= 0:
        return scores
    nothing, unknown = np.zeros(missing, dtype=np.float32), np.full(missing, np.nan, dtype=np.float32)
    beyond = {"accept": nothing, "overlap": nothing, "ends": nothing > 0}
    beyond |= dict.fromkeys(("confidence", "log_p", "log_q"), unknown)
    grown: dict[str, Any] = {name: np.concatenate([getattr(scores, name), rest]) for name, rest in beyond.items()}
    return replace(scores, **grown)


class SideBySide:
    """One drafter of its own for each row, for drafters without a model (n-gram look-up)."""

    def __init__(self, make: Callable[[], Drafter]) -> None:
        self._make = make

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        self._drafters = [self._make() for _ in prompts]
        for drafter, prompt in zip(self._drafters, prompts, strict=True):
            drafter.begin(prompt)

    def keep(self, rows: Sequence[int]) -> None:
        self._drafters = [self._drafters[row] for row in rows]

    def propose(
        self, rows: Sequence[Sequence[int]], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Proposal]:
        return [
            drafter.propose(x, k, generator) if k > 0 else Proposal([])
            for drafter, x, k, generator in zip(self._drafters, rows, ks, generators, strict=True)
        ]
