"""A draft head: it drafts from the hidden states that the target made of the text, and goes on from its own, or drafts
all tokens of a round at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Unpack

import torch
from torch import Tensor

from specbench.acceptance.loop import Proposal
from specbench.acceptance.rules import RepetitionPenalty
from specbench.acceptance.score import DeepHead
from specbench.drafters.model import Drafted, DraftOptions, DraftRule, Read

# The target's states [end - begin, width] of the tokens from `begin` to `end` of the text, which it has read.
StatesOf = Callable[[int, int], Tensor]


class DraftHead(DeepHead, Protocol):
    """A head that drafts."""

    def drafts(self, ids: Sequence[int], states: Tensor, k: int) -> Read:
        """Read tokens as `read` does, and draft up to k after them: what gives the logits [1, V] of each, from the
        token drafted before it, of no meaning for the first."""


class ManyDraftHead(Protocol):
    """A draft head with a memory of pairs for each of several sequences, beside a target that keeps their states."""

    @property
    def at_once(self) -> bool:
        """Whether it drafts by `block`, else by `read` and `step`."""

    def block(self, rows: Sequence[Sequence[int]], k: int) -> Tensor:
        """Read rows as `read` does, and draft k tokens after each in the same pass, which are not kept: logits
        [batch, k, V]."""

    def begin(self, batch: int) -> None:
        """Start anew with so many sequences."""

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read a row of tokens in each sequence, each beside the target's state of the token before it; an empty row
        reads nothing. Logits [batch, V] after each row's last."""

    def step(self, ids: Sequence[int] | Tensor, going: Sequence[int]) -> Tensor:
        """Read one drafted token [batch] in each of the sequences `going`, beside the output of the pair before it;
        logits [batch, V], those of other rows of no meaning."""

    def rewind(self, pairs: Sequence[int]) -> None:
        """Keep so many pairs of each sequence."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only; the target lets its states of the others go."""


class HeadDrafter:
    """Drafts token by token, or all tokens at once. When a round begins it forgets the pairs of the last round's
    drafts, which held its own states or masks, and reads what was emitted beside the target's."""

    def __init__(self, head: DraftHead, states: StatesOf, **options: Unpack[DraftOptions]) -> None:
        self._head, self._states, self._rule = head, states, DraftRule(**options)
        self._read = 0

    def begin(self, prompt: Sequence[int]) -> None:
        """The target has read the prompt; the pair of its last token waits for the one that follows."""
        self._head.rewind(0)
        self._read = len(prompt) - 1
        if self._read:
            self._head.read(prompt[1:], self._states(0, self._read), 0)
        self._penalty = RepetitionPenalty(self._rule.sampling)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        end = len(x) - 1
        begin = min(self._read, end - 1)  # the last pair gives the first draft
        self._head.rewind(begin)
        self._read = end
        step = self._head.drafts(x[begin + 1 :], self._states(begin, end), k)
        return self._rule.draft(step, [], k, Drafted(x, self._penalty), generator)


class ManyHeadDrafter:
    """`HeadDrafter` for a batch, as ManyModelDrafter is for draft models."""

    def __init__(self, head: ManyDraftHead, **options: Unpack[DraftOptions]) -> None:
        self._head, self._rule = head, DraftRule(**options)

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        self._head.begin(len(prompts))
        self._read = [len(prompt) - 1 for prompt in prompts]
        if any(self._read):
            self._head.read([prompt[1:] for prompt in prompts])
        self._penalties = [RepetitionPenalty(self._rule.sampling) for _ in prompts]

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
        step = self._steps(new, ks)
        if self._rule.chained:
            tokens, q = self._rule.chain(lambda ids: step(ids, going), [], max(ks), drafts, generators)
            return self._rule.proposals(tokens.tolist(), q, ks)
        while going:
            logits = step([(draft.tokens or [0])[-1] for draft in drafts], going)
            some = logits if len(going) == len(rows) else logits[going]
            more = self._rule.extend([drafts[row] for row in going], some, [generators[row] for row in going])
            pairs = zip(going, more, strict=True)
            going = [row for row, goes_on in pairs if goes_on and len(drafts[row].tokens) < ks[row]]
        return [draft.proposal() for draft in drafts]

    def _steps(
        self, new: Sequence[Sequence[int]], ks: Sequence[int]
    ) -> Callable[[Sequence[int] | Tensor, Sequence[int]], Tensor]:
        """As that of HeadDrafter: logits [batch, V], those of rows that are not among the going of no meaning."""
        if self._head.at_once:
            at_once = iter(self._head.block(new, max(ks)).unbind(1) if max(ks) > 0 else ())
            return lambda ids, going: next(at_once)
        emitted = iter([new])

        def step(ids: Sequence[int] | Tensor, going: Sequence[int]) -> Tensor:
            first = next(emitted, None)
            return self._head.step(ids, going) if first is None else self._head.read(first)

        return step
