"""Prompt lookup: what followed when these words were written before is proposed again. No model, no weights.

Of n-grams the longest that ends the sequence and occurred before decides, its earliest occurrence is copied, as
transformers (`prompt_lookup_num_tokens`) and vLLM (`ngram`) do it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from specbench.acceptance.loop import Drafter, Proposal
from specbench.acceptance.scores import until_end
from specbench.drafters.spec import DraftSpec, NgramSpec
from specbench.drafters.suffix import Corpus, SuffixLookUp


class NgramLookUp:
    """Keeps the earliest place of every n-gram of the sequence. The sequence only grows by emitted tokens, so nothing
    ever needs to be forgotten within a text."""

    def __init__(self, spec: NgramSpec, *, eos: Collection[int]) -> None:
        self._spec = spec
        self._eos = frozenset(eos)

    def begin(self, prompt: Sequence[int]) -> None:
        """Read a new prompt."""
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token that first followed it
        self._indexed = 0
        self._index(prompt)

    def find(self, x: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens to follow `x`, none after an end of sequence; [] where nothing is found."""
        self._index(x)
        k = min(k, self._spec.longest or k)
        for n in range(min(self._spec.n, len(x) - 1), self._spec.shortest - 1, -1):
            at = self._after.get(tuple(x[-n:]))
            if at is not None:
                return until_end(x[at : at + k], self._eos)
        return []

    def _index(self, x: Sequence[int]) -> None:
        """Enter every n-gram that something follows: those that end before the last token."""
        for follower in range(max(1, self._indexed), len(x)):
            for n in range(self._spec.shortest, min(self._spec.n, follower) + 1):
                self._after.setdefault(tuple(x[follower - n : follower]), follower)
        self._indexed = len(x)


class NgramDrafter(NgramLookUp):
    """A look-up that drafts."""

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        return Proposal(self.find(x, k))


class SuffixDrafter(SuffixLookUp):
    """The same of the longest suffix."""

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        return Proposal(self.find(x, k))


def look_up(spec: DraftSpec, *, eos: Collection[int], corpus: Corpus | None = None) -> LookUpDrafter | None:
    """The look-up of a draft; None where it has none."""
    if spec.ngram is not None:
        return NgramDrafter(spec.ngram, eos=eos)
    return None if spec.suffix is None else SuffixDrafter(corpus, eos=eos)


LookUpDrafter = NgramDrafter | SuffixDrafter


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
