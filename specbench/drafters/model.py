"""A smaller model with the target's vocabulary as drafter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch

from specbench.acceptance.loop import Proposal, Target
from specbench.acceptance.penalty import RepetitionPenalty
from specbench.drafters.step import Drafted, DraftOptions, DraftRule, agreeing


class ModelDrafter:
    """Drafts token by token. Its memory may hold drafts that the target refused: what still agrees with the
    sequence is kept, the rest is forgotten when the next round begins.

    After a fully accepted round the model has not read its own last draft, so it reads two tokens next.
    """

    def __init__(self, model: Target, **options: Unpack[DraftOptions]) -> None:
        self._model, self._rule = model, DraftRule(**options)
        self._last: Proposal | None = None
        self._read: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self._model.rewind(0)
        self._model.forward(prompt, keep=1)
        self._read = list(prompt)
        self._last = None
        self._known = len(prompt)
        self._penalty = RepetitionPenalty(self._rule.sampling)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        if self._last is not None:  # all but its last token was read, and by now the numbers are here
            self._read += self._last.numbers[:-1]
            self._last = None
        # Only what was drafted since the last round can differ from `x`.
        keep = agreeing(self._read, x, self._known)
        del self._read[keep:]
        self._model.rewind(keep)
        unread = list(x[keep:])
        draft = Drafted(x, self._penalty)
        if self._rule.chained:
            self._last = self._rule.chain_one(self._model, unread, k, draft, generator)
            self._read += unread
            self._known = len(x)
            return self._last
        for _ in range(k):
            logits = self._model.forward(unread, keep=1)  # [1, V]
            self._read += unread
            if not self._rule.extend([draft], logits, [generator])[0]:
                break
            unread = draft.tokens[-1:]
        self._known = len(x)
        return draft.proposal()
