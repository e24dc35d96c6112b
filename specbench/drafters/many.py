"""Drafters for a batch: a draft model that reads all rows in one pass, and single-sequence drafters side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from specbench.acceptance.loop import Drafter, Proposal
from specbench.acceptance.many import ManyTarget
from specbench.acceptance.rules import align, confidence, distribution, draw
from specbench.records import Sampling


class ManyModelDrafter:
    """`ModelDrafter` for a batch: in each step a row that still drafts reads its unread tokens, the others nothing."""

    def __init__(
        self, model: ManyTarget, *, vocab_size: int, sampling: Sampling, eos: Collection[int], cutoff: float = 0.0
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._sampling = sampling
        self._eos = frozenset(eos)
        self._cutoff = cutoff

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        self._model.begin(len(prompts))
        self._model.forward(prompts, every=False)
        self._read = [list(prompt) for prompt in prompts]

    def keep(self, rows: Sequence[int]) -> None:
        self._model.keep(rows)
        self._read = [self._read[row] for row in rows]

    def propose(
        self, rows: Sequence[Sequence[int]], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Proposal]:
        for read, x in zip(self._read, rows, strict=True):
            del read[_agreeing(read, x) :]
        self._model.rewind([len(read) for read in self._read])
        drafts: list[list[int]] = [[] for _ in rows]
        qs: list[list[Tensor]] = [[] for _ in rows]
        unread = [list(x[len(read) :]) if k > 0 else [] for x, read, k in zip(rows, self._read, ks, strict=True)]
        while any(unread):
            logits = align(self._model.forward(unread, every=False), self._vocab_size)  # [batch, V]
            for i, tokens in enumerate(unread):
                self._read[i] += tokens
                if tokens:
                    unread[i] = self._draft(logits[i : i + 1], ks[i], drafts[i], qs[i], generators[i])
        return [Proposal(d, torch.cat(q) if q else None) for d, q in zip(drafts, qs, strict=True)]

    def _draft(
        self, logits: Tensor, k: int, drafts: list[int], qs: list[Tensor], generator: torch.Generator
    ) -> list[int]:
        """Draft one token of one row; what it has to read next, [] if it drafts no further."""
        if self._cutoff and confidence(logits) < self._cutoff:
            return []
        if self._sampling.greedy:
            token = int(logits.argmax(-1))
        else:
            qs.append(distribution(logits, self._sampling))
            token = draw(qs[-1][0], generator)
        drafts.append(token)
        return [token] if len(drafts) < k and token not in self._eos else []


def _agreeing(read: Sequence[int], x: Sequence[int]) -> int:
    """Length of the common prefix, short of x's last token, which must be read for its logits."""
    limit = min(len(read), len(x) - 1)
    return next((i for i in range(limit) if read[i] != x[i]), limit)


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
