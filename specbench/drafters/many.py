"""Drafters for a batch: a draft model that reads all rows in one pass, and single-sequence drafters side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from specbench.acceptance.loop import Drafter, Proposal
from specbench.acceptance.many import ManyTarget
from specbench.acceptance.penalty import RepetitionPenalty
from specbench.acceptance.scores import until_end
from specbench.drafters.model import Drafted, DraftOptions, DraftRule, agreeing


class ManyModelDrafter:
    """`ModelDrafter` for a batch: in each step a row that still drafts reads its unread tokens, the others nothing.
    `chained` steps run on the device for all rows alike and are waited for once; what a row did not ask for, or drafted
    past an end of sequence, is thrown away."""

    def __init__(self, model: ManyTarget, **options: Unpack[DraftOptions]) -> None:
        self._model, self._rule = model, DraftRule(**options)

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        self._model.begin(len(prompts))
        self._model.forward(prompts, every=False)
        self._read = [list(prompt) for prompt in prompts]
        self._known = [len(prompt) for prompt in prompts]
        self._penalties = [RepetitionPenalty(self._rule.sampling) for _ in prompts]

    def keep(self, rows: Sequence[int]) -> None:
        self._model.keep(rows)
        self._penalties = [self._penalties[row] for row in rows]
        self._read = [self._read[row] for row in rows]
        self._known = [self._known[row] for row in rows]

    def propose(
        self, rows: Sequence[Sequence[int]], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Proposal]:
        for read, x, known in zip(self._read, rows, self._known, strict=True):
            del read[agreeing(read, x, known) :]
        self._model.rewind([len(read) for read in self._read])
        self._known = [len(x) for x in rows]
        if self._rule.chained:
            return self._chain(rows, ks, generators)
        drafts = self._drafted(rows)
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

    def _drafted(self, rows: Sequence[Sequence[int]]) -> list[Drafted]:
        return [Drafted(x, penalty) for x, penalty in zip(rows, self._penalties, strict=True)]

    def _chain(
        self, rows: Sequence[Sequence[int]], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Proposal]:
        unread = [x[len(read) :] for x, read in zip(rows, self._read, strict=True)]
        steps = iter([unread])  # the first reads numbers, the others what the one before drafted

        def step(drafted: Sequence[int] | Tensor) -> Tensor:
            ids = drafted[:, None] if isinstance(drafted, Tensor) else next(steps)
            return self._model.forward(ids, every=False)

        tokens, q = self._rule.chain(step, [], max(ks), self._drafted(rows), generators)
        found = []
        for row, (drafts, k) in enumerate(zip(tokens.tolist(), ks, strict=True)):
            kept = until_end(drafts[:k], self._rule.eos)
            self._read[row] += [*unread[row], *drafts[:-1]]
            found.append(Proposal(kept, None if q is None or not kept else q[row, : len(kept)]))
        return found


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
