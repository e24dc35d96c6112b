"""Drafters around others: a look-up, alone and in front of a model; a draft model that knows fewer tokens than its
target, as Gemma 3's small models lack one id that the larger ones have; and the drafters of a batch. What knows fewer
tokens never proposes what it does not know, and from where the target writes such a token, which it cannot read, it
drafts nothing for the rest of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from specbench.acceptance.loop import Drafter, Proposal
from specbench.acceptance.many import ManyDrafter, ManyTarget
from specbench.acceptance.rules import RepetitionPenalty
from specbench.acceptance.scores import Scores, until_end
from specbench.drafters.lookup import Corpus, NgramLookUp, SuffixLookUp
from specbench.drafters.model import Drafted, DraftOptions, DraftRule, agreeing
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
    return replace(
        scores,
        accept=np.concatenate([scores.accept, nothing]),
        overlap=np.concatenate([scores.overlap, nothing]),
        confidence=np.concatenate([scores.confidence, unknown]),
        log_p=np.concatenate([scores.log_p, unknown]),
        log_q=np.concatenate([scores.log_q, unknown]),
        ends=np.concatenate([scores.ends, np.zeros(missing, dtype=bool)]),
    )


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
