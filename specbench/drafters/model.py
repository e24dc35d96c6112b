"""A smaller model with the target's vocabulary as drafter."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from specbench.acceptance.loop import Proposal, Target
from specbench.acceptance.rules import align, confidence, distribution, draw
from specbench.records import Sampling


class ModelDrafter:
    """Drafts token by token. Its memory may hold drafts that the target refused: what still agrees with the
    sequence is kept, the rest is forgotten when the next round begins.

    After a fully accepted round the model has not read its own last draft, so it reads two tokens next. With a `cutoff`
    it stops before a token of which it is less sure than that.
    """

    def __init__(
        self, model: Target, *, vocab_size: int, sampling: Sampling, eos: Collection[int], cutoff: float = 0.0
    ) -> None:
        self._model = model
        self._cutoff = cutoff
        self._vocab_size = vocab_size
        self._sampling = sampling
        self._eos = frozenset(eos)
        self._read: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self._model.rewind(0)
        self._model.forward(prompt, keep=1)
        self._read = list(prompt)
        self._known = len(prompt)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        self._forget_refused(x)
        unread = list(x[len(self._read) :])
        drafts: list[int] = []
        rows: list[Tensor] = []
        for _ in range(k):
            logits = align(self._model.forward(unread, keep=1), self._vocab_size)  # [1, V]
            self._read += unread
            if self._cutoff and confidence(logits) < self._cutoff:
                break
            if self._sampling.greedy:
                token = int(logits.argmax(-1))
            else:
                q = distribution(logits, self._sampling)
                rows.append(q)
                token = draw(q[0], generator)
            drafts.append(token)
            if token in self._eos:
                break
            unread = [token]
        self._known = len(x)
        return Proposal(drafts, torch.cat(rows) if rows else None)

    def _forget_refused(self, x: Sequence[int]) -> None:
        """Keep the longest common prefix of what was read and `x`, short of x's last token, which must be read for
        its logits. Only what was drafted since the last round can differ."""
        keep = min(self._known, len(x) - 1)
        limit = min(len(self._read), len(x) - 1)
        while keep < limit and self._read[keep] == x[keep]:
            keep += 1
        del self._read[keep:]
        self._model.rewind(keep)
