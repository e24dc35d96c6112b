"""One teacher-forced pass over a text of the target: what the draft would have said at every position.

Logits over the whole vocabulary exist for one chunk of positions at a time and are reduced to a few numbers each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specbench.acceptance.loop import Target
from specbench.acceptance.rules import RepetitionPenalty, align, distribution, penalised, queued
from specbench.acceptance.scores import Scores
from specbench.records import Sampling

CHUNK = 64


class DeepHead(Protocol):
    """A draft head with a rewindable memory of pairs, a token and the target's state of the token before it, that can
    be asked for all depths at every place at once."""

    own: Tensor
    """Its own output [n, hidden] of the pairs that were read last."""

    def read(self, ids: Sequence[int], states: Tensor, keep: int = 1) -> Tensor:
        """Read tokens `ids` beside the target's states [n, width] of those before them; logits [keep, V] of the first
        draft after each of the last `keep`."""

    def deeper(self, first: int, own: Tensor, drafts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Draft on after each of the pairs from `first` on by itself, whose output is `own` [n, hidden], reading one of
        `drafts` [depths, n] after the other; logits [n, V] of each depth. Memory keeps nothing of it."""

    def rewind(self, pairs: int) -> None:
        """Forget all but the first `pairs` pairs."""


@torch.inference_mode()
def score(
    target: Target | None,
    draft: Target,
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    vocab_size: int,
    sampling: Sampling,
    eos: Collection[int],
) -> Scores:
    """Score `output` (token ids after `prompt`) under `draft`. `target` reads the text again for p, which greedy does
    not need: there it may be None. Draft ids from `vocab_size` on are padding and get no probability."""
    if sampling.greedy:
        target = None
    elif target is None:
        raise ValueError("sampling needs the target's distribution")
    columns: list[Tensor] = []
    x, penalty = [*prompt, *output], RepetitionPenalty(sampling)
    for model in (draft, target):
        if model is not None:
            model.rewind(0)
            model.forward(prompt, keep=1)
    for begin in range(0, len(output) - 1, CHUNK):
        read = output[begin : min(begin + CHUNK, len(output) - 1)]
        next_ids = torch.tensor(output[begin + 1 : begin + 1 + len(read)])
        so_far = x[: len(prompt) + begin + len(read)]
        draft_logits = penalty.apply(align(draft.forward(read, keep=len(read)), vocab_size), so_far)  # [chunk, V]
        p = None
        if target is not None:
            p = distribution(penalty.apply(target.forward(read, keep=len(read)), so_far), sampling)
        columns.append(reduce(draft_logits, p, next_ids.to(draft_logits.device), sampling, eos))
    return as_scores(columns)


@torch.inference_mode()
def score_head(
    target: Target,
    states: Callable[[int, int], Tensor],
    head: DeepHead,
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    depths: int,
    sampling: Sampling,
    eos: Collection[int],
) -> Scores:
    """Score `output` under a head for rounds of up to `depths` drafts. `target` reads the text and gives `states` of
    its tokens from one place to another. Where it drafts greedily, `sampling` is greedy, whatever drew the text:
    a draft is then accepted where it is the text's own.

    The draft at depth j of a round that begins at i sees the pairs of the text up to there and its own j - 1, for all
    i in one pass: the masks of EAGLE-3's training-time test."""
    x, n, begin = [*prompt, *output], len(output) - 1, len(prompt)
    penalty = RepetitionPenalty(sampling)
    target.rewind(0)
    target.forward(prompt, keep=1)
    head.rewind(0)
    if begin > 1:
        head.read(prompt[1:], states(0, begin - 1), 1)
    firsts, owns, p_x = [], [], []
    for at in range(0, n, CHUNK):
        read, so_far = output[at : min(at + CHUNK, n)], x[: begin + min(at + CHUNK, n)]
        next_ids = torch.tensor(x[len(so_far) - len(read) + 1 : len(so_far) + 1])
        target_logits = target.forward(read, keep=1 if sampling.greedy else len(read))
        logits = head.read(read, states(begin + at - 1, begin + at - 1 + len(read)), len(read))
        owns.append(head.own)
        logits, next_ids = penalty.apply(logits, so_far), next_ids.to(logits.device)
        p = None if sampling.greedy else distribution(penalty.apply(target_logits, so_far), sampling)
        firsts.append(reduce(logits, p, next_ids, sampling, eos))
        if p is not None:
            p_x.append(p.gather(1, next_ids[:, None])[:, 0])
    first = as_scores(firsts)
    table = np.zeros((3, n, depths), dtype=np.float32)
    table[:, :, 0] = first.accept, first.confidence, first.ends
    own, p_all = torch.cat(owns) if owns else torch.empty(0), torch.cat(p_x) if p_x else None
    for at in range(0, n, CHUNK):
        rows = range(at, min(at + CHUNK, n))
        drafts = [[output[row + j] if row + j < n else 0 for row in rows] for j in range(1, depths)]
        deeper = head.deeper(begin - 1 + at, own[at : rows.stop], drafts)
        for j, logits in enumerate(deeper, 1):
            known = min(rows.stop, n - j) - at  # of these places the text goes on so far
            if known <= 0:
                break
            logits = logits[:known]
            if sampling.penalised:
                text = queued(x[: begin + at + known + j], logits.device)
                logits = penalised(logits, text, sampling.repetition_penalty)
            ids = torch.tensor(output[at + 1 + j : at + 1 + j + known], device=logits.device)
            p = None if p_all is None else p_all[at + j : at + j + known]
            table[:, at : at + known, j] = reduce(logits, p, ids, sampling, eos)[[0, 2, 5]]  # accept, confidence, ends
    accept, confidence, ends = table
    return replace(first, accept=accept, confidence=confidence, ends=ends > 0)


def reduce(draft_logits: Tensor, p: Tensor | None, x: Tensor, sampling: Sampling, eos: Collection[int]) -> Tensor:
    """The draft's logits [n, V] at n positions and the tokens x [n] emitted there -> six numbers each, [6, n]. `p` is
    the target's distribution [n, V], or of that only p(x) [n], which leaves the overlap NaN; None under greedy."""
    draft_logits = draft_logits.float()
    plain = torch.log_softmax(draft_logits, -1)
    confidence, choice = plain.max(-1)
    at_x = x[:, None]
    if p is None:
        accept = (choice == x).float()
        overlap = accept
        log_p = torch.full_like(accept, float("nan"))
        log_q = plain.gather(1, at_x)[:, 0]
        ends = torch.isin(choice, torch.tensor(sorted(eos), device=x.device, dtype=x.dtype)).float()
    else:
        q, whole = distribution(draft_logits, sampling), p.dim() == 2
        p_x, q_x = p.gather(1, at_x)[:, 0] if whole else p, q.gather(1, at_x)[:, 0]
        # Tokens that top-k or top-p cut from p cannot have been emitted, but rounding may leave p(x) = 0 there.
        accept = torch.where(p_x > 0, q_x / p_x, torch.ones_like(p_x)).clamp_max(1.0)
        overlap = torch.minimum(p, q).sum(-1) if whole else torch.full_like(p_x, float("nan"))
        log_p, log_q = p_x.log(), q_x.log()
        ends = torch.zeros_like(accept)
    return torch.stack([accept, overlap, confidence.exp(), log_p, log_q, ends]).cpu()


def as_scores(columns: Sequence[Tensor]) -> Scores:
    """[6, n] from `reduce` of one part of a text after the other -> named float32 arrays."""
    accept, overlap, confidence, log_p, log_q, ends = torch.cat([torch.empty(6, 0), *columns], 1).numpy()
    return Scores(accept, overlap, confidence, log_p, log_q, ends > 0)
