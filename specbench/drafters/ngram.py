"""Prompt lookup: what followed the last time these words were written is proposed again. No model, no weights, and no
library that would have to be loaded for them.

The longest suffix of the sequence that occurred before decides, its earliest occurrence is copied, as transformers
(`prompt_lookup_num_tokens`) and vLLM (`ngram`) do it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from specbench.acceptance.scores import until_end
from specbench.drafters.spec import NgramSpec


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
