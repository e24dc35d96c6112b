"""A draft head: it drafts from the hidden states that the target made of the text, and goes on from its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from specbench.acceptance.loop import Proposal
from specbench.acceptance.penalty import RepetitionPenalty
from specbench.acceptance.scores import until_end
from specbench.drafters.step import Drafted, DraftRule
from specbench.records import Sampling

# The target's states [end - begin, width] of the tokens from `begin` to `end` of the text, which it has read.
StatesOf = Callable[[int, int], Tensor]


class Head(Protocol):
    """A draft head with a rewindable memory of pairs: a token, and the state of the token before it."""

    def read(self, ids: Sequence[int], states: Tensor) -> Tensor:
        """Read tokens `ids` beside the target's states [n, width] of those before them; logits [1, V] after the
        last."""

    def step(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Read one token that was drafted, beside the head's own state; logits [1, V] after it."""

    def rewind(self, pairs: int) -> None:
        """Forget all but the first `pairs` pairs."""


class ManyHead(Protocol):
    """A draft head with a memory of pairs for each of several sequences, beside a target that keeps their states."""

    def begin(self, batch: int) -> None:
        """Start anew with so many sequences."""

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read a row of tokens in each sequence, each beside the target's state of the token before it; an empty row
        reads nothing. Logits [batch, V] after each row's last."""

    def step(self, ids: Sequence[int] | Tensor, going: Sequence[int]) -> Tensor:
        """Read one drafted token [batch] in each of the sequences `going`, beside the head's own state; logits
        [batch, V]."""

    def rewind(self, pairs: Sequence[int]) -> None:
        """Keep so many pairs of each sequence."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only."""


class HeadDrafter:
    """Drafts token by token. When a round begins it forgets the pairs of the last round's drafts, which held its own
    states, and reads what was emitted beside the target's. `cutoff` and `chained` as in ModelDrafter."""

    def __init__(
        self,
        head: Head,
        states: StatesOf,
        *,
        vocab_size: int,
        sampling: Sampling,
        eos: Collection[int],
        cutoff: float = 0.0,
        chained: bool = False,
    ) -> None:
        self._head, self._states = head, states
        self._sampling = sampling
        self._chained = chained and not cutoff
        self._rule = DraftRule(vocab_size=vocab_size, sampling=sampling, eos=eos, cutoff=cutoff)
        self._read = 0

    def begin(self, prompt: Sequence[int]) -> None:
        """The target has read the prompt; the pair of its last token waits for the one that follows."""
        self._head.rewind(0)
        self._read = len(prompt) - 1
        if self._read:
            self._head.read(prompt[1:], self._states(0, self._read))
        self._penalty = RepetitionPenalty(self._sampling)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        end = len(x) - 1
        begin = min(self._read, end - 1)  # the last pair gives the first draft
        self._head.rewind(begin)
        self._read = end
        draft = Drafted(x, self._penalty)
        new = iter([x[begin + 1 :]])  # the first step reads what was emitted, the others what the one before drafted

        def step(ids: Sequence[int] | Tensor) -> Tensor:
            emitted = next(new, None)
            return self._head.step(ids) if emitted is None else self._head.read(emitted, self._states(begin, end))

        if self._chained:
            tokens, q = self._rule.chain(step, [], k, [draft], [generator])
            return Proposal(tokens[0], None if q is None else q[0])
        for _ in range(k):
            if not self._rule.extend([draft], step(draft.tokens[-1:]), [generator])[0]:
                break
        return draft.proposal()


class ManyHeadDrafter:
    """`HeadDrafter` for a batch, as ManyModelDrafter is for draft models."""

    def __init__(
        self,
        head: ManyHead,
        *,
        vocab_size: int,
        sampling: Sampling,
        eos: Collection[int],
        cutoff: float = 0.0,
        chained: bool = False,
    ) -> None:
        self._head, self._sampling, self._eos = head, sampling, eos
        self._chained = chained and not cutoff
        self._rule = DraftRule(vocab_size=vocab_size, sampling=sampling, eos=eos, cutoff=cutoff)

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        self._head.begin(len(prompts))
        self._read = [len(prompt) - 1 for prompt in prompts]
        if any(self._read):
            self._head.read([prompt[1:] for prompt in prompts])
        self._penalties = [RepetitionPenalty(self._sampling) for _ in prompts]

    def keep(self, rows: Sequence[int]) -> None:
        self._head.keep(rows)
        self._read = [self._read[row] for row in rows]
        self._penalties = [self._penalties[row] for row in rows]

    def propose(
        self, rows: Sequence[Sequence[int]], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Proposal]:
        self._head.rewind(self._read)
        drafts = [Drafted(x, penalty) for x, penalty in zip(rows, self._penalties, strict=True)]
        new = [list(x[read + 1 :]) if k > 0 else [] for x, read, k in zip(rows, self._read, ks, strict=True)]
        self._read = [read + len(unread) for read, unread in zip(self._read, new, strict=True)]
        going = [row for row, unread in enumerate(new) if unread]
        if self._chained:
            return self._chain(new, going, ks, drafts, generators)
        logits = self._head.read(new)
        while going:
            some = logits if len(going) == len(rows) else logits[going]
            more = self._rule.extend([drafts[row] for row in going], some, [generators[row] for row in going])
            pairs = zip(going, more, strict=True)
            going = [row for row, goes_on in pairs if goes_on and len(drafts[row].tokens) < ks[row]]
            if going:
                logits = self._head.step([(draft.tokens or [0])[-1] for draft in drafts], going)
        return [draft.proposal() for draft in drafts]

    def _chain(
        self,
        new: Sequence[Sequence[int]],
        going: Sequence[int],
        ks: Sequence[int],
        drafts: Sequence[Drafted],
        generators: Sequence[torch.Generator],
    ) -> list[Proposal]:
        first = iter([new])

        def step(ids: Sequence[int] | Tensor) -> Tensor:
            emitted = next(first, None)
            return self._head.step(ids, going) if emitted is None else self._head.read(emitted)

        tokens, q = self._rule.chain(step, [], max(ks), drafts, generators)
        found = []
        for row, (drafted, k) in enumerate(zip(tokens.tolist(), ks, strict=True)):
            kept = until_end(drafted[:k], self._eos)
            found.append(Proposal(kept, None if q is None or not kept else q[row, : len(kept)]))
        return found
