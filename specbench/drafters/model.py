"""A smaller model with the target's vocabulary as drafter, and what every draft model does alike, one sequence or many:
keep what still agrees, and draft the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from specbench.acceptance.loop import Proposal, Target
from specbench.acceptance.many import ManyTarget
from specbench.acceptance.rules import RepetitionPenalty, align, best, confidence, distribution
from specbench.acceptance.scores import until_end
from specbench.records import Sampling

# Reads tokens, and gives the logits [batch, V] after the last.
Read = Callable[[Sequence[int] | Tensor], Tensor]


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
        logits = align(logits, self._vocab_size)
        if self.sampling.penalised:
            logits = _penalised(logits, drafts, [draft.tokens for draft in drafts])
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

    def draft(self, read: Read, unread: Sequence[int], k: int, draft: Drafted, generator: torch.Generator) -> Proposal:
        """Up to `k` tokens for one sequence: the first from what `read` gives for the `unread` ids, each other from
        what it gives for the one before. Chained drafts are still on the device."""
        if self.chained:
            tokens, q = self.chain(read, unread, k, [draft], [generator])
            return Proposal(tokens[0], None if q is None else q[0])
        for _ in range(k):
            if not self.extend([draft], read(unread), [generator])[0]:
                break
            unread = draft.tokens[-1:]
        return draft.proposal()

    def chain(
        self,
        read: Read,
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
            logits = align(read(unread), self._vocab_size)
            if self.sampling.penalised:
                logits = _penalised(logits, drafts, torch.stack(tokens, 1) if tokens else [()] * len(drafts))
            if self.sampling.greedy:
                unread = logits.argmax(-1)
            else:
                q.append(distribution(logits, self.sampling))
                rows = zip(q[-1], generators, strict=True)
                unread = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
            tokens.append(unread)
        return torch.stack(tokens, 1), torch.stack(q, 1) if q else None

    def proposals(self, chained: Sequence[list[int]], q: Tensor | None, ks: Sequence[int]) -> list[Proposal]:
        """Of the `chained` tokens of each row at most `ks`, and none past an end of sequence."""
        found = []
        for row, (tokens, k) in enumerate(zip(chained, ks, strict=True)):
            kept = until_end(tokens[:k], self.eos)
            found.append(Proposal(kept, None if q is None or not kept else q[row, : len(kept)]))
        return found


class Drafted:
    """The tokens of one round so far, which follow `x`, and the q [1, V] that each was drawn from; no q under
    greedy."""

    def __init__(self, x: Sequence[int], penalty: RepetitionPenalty) -> None:
        self.x, self.penalty = x, penalty
        self.tokens: list[int] = []
        self.q: list[Tensor] = []

    def proposal(self) -> Proposal:
        return Proposal(self.tokens, torch.cat(self.q) if self.q else None)


def _penalised(
    logits: Tensor, drafts: Sequence[Drafted], tokens: Sequence[Sequence[int]] | Sequence[Tensor] | Tensor
) -> Tensor:
    """Logits [batch, V] after `tokens` of each row, which a penalty counts as part of the text."""
    rows = zip(logits, drafts, tokens, strict=True)
    return torch.cat([draft.penalty.apply(row[None], draft.x, so_far) for row, draft, so_far in rows])


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
        self._known = len(x)
        found = self._rule.draft(self._forward, x[keep:], k, Drafted(x, self._penalty), generator)
        if self._rule.chained:
            self._last = found
        return found

    def _forward(self, ids: Sequence[int] | Tensor) -> Tensor:
        if not isinstance(ids, Tensor):
            self._read += ids
        return self._model.forward(ids, keep=1)  # [1, V]


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
        drafts = [Drafted(x, penalty) for x, penalty in zip(rows, self._penalties, strict=True)]
        if self._rule.chained:
            return self._chain(rows, ks, drafts, generators)
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

    def _chain(
        self,
        rows: Sequence[Sequence[int]],
        ks: Sequence[int],
        drafts: Sequence[Drafted],
        generators: Sequence[torch.Generator],
    ) -> list[Proposal]:
        unread = [x[len(read) :] for x, read in zip(rows, self._read, strict=True)]
        steps = iter([unread])  # the first reads numbers, the others what the one before drafted

        def step(drafted: Sequence[int] | Tensor) -> Tensor:
            ids = drafted[:, None] if isinstance(drafted, Tensor) else next(steps)
            return self._model.forward(ids, every=False)

        tokens, q = self._rule.chain(step, [], max(ks), drafts, generators)
        chained = tokens.tolist()
        for read, new, drafted in zip(self._read, unread, chained, strict=True):
            read += [*new, *drafted[:-1]]
        return self._rule.proposals(chained, q, ks)
