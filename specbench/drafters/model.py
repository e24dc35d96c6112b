"""A smaller model with the target's vocabulary as drafter, and what every draft model does alike, one sequence or many:
keep what still agrees, and draft the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from specbench.acceptance.loop import Proposal, Target
from specbench.acceptance.rules import RepetitionPenalty, align, best, confidence, distribution
from specbench.records import Sampling


class DraftOptions(TypedDict):
    """What every drafter with a model is told, of `DraftRule`."""

    vocab_size: int
    sampling: Sampling
    eos: Collection[int]
    cutoff: NotRequired[float]
    chained: NotRequired[bool]


class DraftRule:
    """How a draft model's logits become drafts. Ids from `vocab_size` on are padding; with a `cutoff` drafting stops
    before a token of which the model is less sure than that. `chained` drafts stay on the device until the round is
    judged, which a cut-off forbids: it has to look at every token."""

    def __init__(self, **options: Unpack[DraftOptions]) -> None:
        self._vocab_size = options["vocab_size"]
        self.sampling = options["sampling"]
        self.eos = frozenset(options["eos"])
        self._cutoff = options.get("cutoff", 0.0)
        self.chained = options.get("chained", False) and not self._cutoff

    def extend(self, drafts: Sequence[Drafted], logits: Tensor, generators: Sequence[torch.Generator]) -> list[bool]:
        """Draft one token for each of `drafts` from its row of `logits` [batch, V]; whether another may follow it. A
        device is waited for once."""
        logits = self._penalised(align(logits, self._vocab_size), drafts, [draft.tokens for draft in drafts])
        sure = list(range(len(drafts)))
        if self._cutoff:
            sure = [row for row, top in enumerate(confidence(logits)) if top >= self._cutoff]
        more = [False] * len(drafts)
        if not sure:
            return more
        if len(sure) < len(drafts):
            logits = logits[sure]
        if self.sampling.greedy:
            tokens = best(logits)
        else:
            q = distribution(logits, self.sampling)
            drawn = [torch.multinomial(one, 1, generator=generators[row]) for one, row in zip(q, sure, strict=True)]
            tokens = torch.cat(drawn).tolist()
            for row, one in zip(sure, q, strict=True):
                drafts[row].q.append(one[None])
        for row, token in zip(sure, tokens, strict=True):
            drafts[row].tokens.append(token)
            more[row] = token not in self.eos
        return more

    def chain(
        self,
        read: Callable[[Sequence[int] | Tensor], Tensor],
        unread: Sequence[int] | Tensor,
        k: int,
        drafts: Sequence[Drafted],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor | None]:
        """Draft `k` tokens for each of `drafts` without looking at one: each goes from the logits [batch, V] of `read`
        into the next step on the device, which Python only keeps supplied. There is no cut-off, and no end stops it.
        Returns the tokens [batch, k] and the q [batch, k, V] that they were drawn from, None under greedy."""
        tokens: list[Tensor] = []
        q: list[Tensor] = []
        for _ in range(k):
            so_far = torch.stack(tokens, 1) if tokens else [()] * len(drafts)
            logits = self._penalised(align(read(unread), self._vocab_size), drafts, so_far)
            if self.sampling.greedy:
                unread = logits.argmax(-1)
            else:
                q.append(distribution(logits, self.sampling))
                rows = zip(q[-1], generators, strict=True)
                unread = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
            tokens.append(unread)
        return torch.stack(tokens, 1), torch.stack(q, 1) if q else None

    def chain_one(
        self, model: Target, unread: Sequence[int], k: int, draft: Drafted, generator: torch.Generator
    ) -> Proposal:
        """`chain` for the one sequence of `model`, as a proposal that is still on the device."""
        tokens, q = self.chain(lambda ids: model.forward(ids, keep=1), unread, k, [draft], [generator])
        return Proposal(tokens[0], None if q is None else q[0])

    def _penalised(
        self, logits: Tensor, drafts: Sequence[Drafted], tokens: Sequence[Sequence[int]] | Sequence[Tensor] | Tensor
    ) -> Tensor:
        """Logits [batch, V] after `tokens` of each row, which a penalty counts as part of the text."""
        if not self.sampling.penalised:
            return logits
        rows = zip(logits, drafts, tokens, strict=True)
        return torch.cat([draft.penalty.apply(row[None], draft.x, so_far) for row, draft, so_far in rows])


class Drafted:
    """The tokens of one round so far, which follow `x`, and the q [1, V] that each was drawn from; no q under
    greedy."""

    def __init__(self, x: Sequence[int], penalty: RepetitionPenalty) -> None:
        self.x, self.penalty = x, penalty
        self.tokens: list[int] = []
        self.q: list[Tensor] = []

    def proposal(self) -> Proposal:
        return Proposal(self.tokens, torch.cat(self.q) if self.q else None)


def agreeing(read: Sequence[int], x: Sequence[int], known: int = 0) -> int:
    """Length of the common prefix of what was read and `x`, short of x's last token, which must be read for its logits.
    The first `known` tokens are known to agree."""
    keep, limit = min(known, len(x) - 1), min(len(read), len(x) - 1)
    while keep < limit and read[keep] == x[keep]:
        keep += 1
    return keep


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
