"""A look-up as a drafter, alone and in front of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from specbench.acceptance.loop import Drafter, Proposal
from specbench.drafters.ngram import NgramLookUp
from specbench.drafters.spec import DraftSpec
from specbench.drafters.suffix import Corpus, SuffixLookUp


class NgramDrafter(NgramLookUp):
    """A look-up that drafts."""

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        return Proposal(self.find(x, k))


class SuffixDrafter(SuffixLookUp):
    """The same of the longest suffix."""

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
