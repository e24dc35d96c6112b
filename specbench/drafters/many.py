"""Drafters for a batch: a draft model that reads all rows in one pass, and single-sequence drafters side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from specbench.acceptance.loop import Drafter, Proposal
from specbench.acceptance.many import ManyTarget
from specbench.drafters.step import Drafted, DraftRule, agreeing
from specbench.records import Sampling


class ManyModelDrafter:
    """`ModelDrafter` for a batch: in each step a row that still drafts reads its unread tokens, the others nothing."""

    def __init__(
        self, model: ManyTarget, *, vocab_size: int, sampling: Sampling, eos: Collection[int], cutoff: float = 0.0
    ) -> None:
        self._model = model
        self._rule = DraftRule(vocab_size=vocab_size, sampling=sampling, eos=eos, cutoff=cutoff)

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
            del read[agreeing(read, x) :]
        self._model.rewind([len(read) for read in self._read])
        drafts = [Drafted() for _ in rows]
        unread = [list(x[len(read) :]) if k > 0 else [] for x, read, k in zip(rows, self._read, ks, strict=True)]
        while any(unread):
            logits = self._model.forward(unread, every=False)  # [batch, V]
            going = [row for row, tokens in enumerate(unread) if tokens]
            for row in going:
                self._read[row] += unread[row]
            some = logits if len(going) == len(rows) else logits[going]
            more = self._rule.extend([drafts[row] for row in going], some, [generators[row] for row in going])
            unread = [[] for _ in rows]
            for row, goes_on in zip(going, more, strict=True):
                if goes_on and len(drafts[row].tokens) < ks[row]:
                    unread[row] = drafts[row].tokens[-1:]
        return [draft.proposal() for draft in drafts]


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
