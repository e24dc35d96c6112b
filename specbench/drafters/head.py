"""A draft head: it drafts from the hidden states that the target made of the text, and goes on from its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from specbench.acceptance.loop import Proposal
from specbench.acceptance.penalty import RepetitionPenalty
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
