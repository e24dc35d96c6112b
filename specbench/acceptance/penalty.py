"""The repetition penalty (Keskar et al. 2019, arXiv 1909.05858) on logits at several positions of one text.

Every position is penalised by what stands before it: prompt, emitted tokens, and the drafts of the round before it. So
the i-th draft is judged by the p that the target has after the drafts before it, and the text stays the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from specbench.acceptance.rules import queued
from specbench.records import Sampling


class RepetitionPenalty:
    """The penalty over one text that only grows. Its tokens are kept where the logits are: to bring a long text there
    anew in every step would take longer than the penalty."""

    def __init__(self, sampling: Sampling) -> None:
        self._penalty = float(sampling.repetition_penalty)
        self._x: Tensor | None = None

    def apply(self, logits: Tensor, x: Sequence[int], drafts: Sequence[int] | Tensor = ()) -> Tensor:
        """Logits [n, V], of which the last row follows `x` and all `drafts`, and each row before it one token fewer.
        `x` begins with the text of the call before. The same logits where the penalty is off."""
        if self._penalty == 1.0:
            return logits
        if self._x is None:
            self._x = torch.empty(0, dtype=torch.long, device=logits.device)
        if len(x) > len(self._x):
            self._x = torch.cat((self._x, queued(x[len(self._x) :], logits.device)))
        tokens = drafts if isinstance(drafts, Tensor) else queued(drafts, logits.device)
        return penalised(logits, torch.cat((self._x, tokens)), self._penalty)


def penalised(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits [n, V] -> [n, V] in float32; the last row follows all of `ids` [m], each row before it one token fewer."""
    n, m = len(logits), len(ids)
    before = ids.expand(n, m)
    if n > 1:
        # What a row does not follow yet is put in its place by a token that it follows anyway.
        seen = torch.ones(n, n - 1, dtype=torch.bool, device=ids.device).tril(-1)
        before = torch.cat((before[:, : m - n + 1], torch.where(seen, ids[m - n + 1 :], ids[0])), 1)
    found: Tensor = RepetitionPenaltyLogitsProcessor(penalty)(before, logits.float())
    return found


def apply_many(
    penalties: Sequence[RepetitionPenalty],
    logits: Tensor,
    rows: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int] | Tensor],
) -> Tensor:
    """`RepetitionPenalty.apply` for each row of logits [batch, n, V]. A row may have fewer than n - 1 drafts: then the
    positions after its last count for nothing."""
    n, found = logits.shape[1], []
    for penalty, row, x, tokens in zip(penalties, logits, rows, drafts, strict=True):
        found.append(penalty.apply(row[: len(tokens) + 1], x, tokens))
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, n - len(row))) for row in found])
