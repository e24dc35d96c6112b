"""One teacher-forced pass over a text of the target: what the draft would have said at every position.

Logits over the whole vocabulary exist for one chunk of positions at a time and are reduced to a few numbers each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specbench.acceptance.loop import Drafter, Target
from specbench.acceptance.rules import RepetitionPenalty, align, distribution, penalised, queued
from specbench.acceptance.scores import BlockScores, Scores, agreed
from specbench.records import Sampling

CHUNK = 64


class EachBlock(Drafter, Protocol):
    """A block drafter that can say what it proposes at every allowance at once."""

    def blocks(self, x: Sequence[int], longest: int) -> list[list[int]]:
        """What a round allowed k tokens would propose, for k = 1 .. `longest`."""


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
        target_logits = None if target is None else penalty.apply(target.forward(read, keep=len(read)), so_far)
        columns.append(reduce(draft_logits, target_logits, next_ids.to(draft_logits.device), sampling, eos))
    return as_scores(torch.cat(columns, 1) if columns else torch.empty(6, 0))


@torch.inference_mode()
def match_each_block(drafter: EachBlock, prompt: Sequence[int], output: Sequence[int], longest: int) -> BlockScores:
    """`scores.match_blocks` for a drafter whose shorter blocks need not begin its longer ones: arrays [n, longest]."""
    drafter.begin(prompt)
    proposed, matched = (np.zeros((max(0, len(output) - 1), longest), dtype=np.int32) for _ in range(2))
    for i in range(1, len(output)):
        for column, tokens in enumerate(drafter.blocks([*prompt, *output[:i]], longest)):
            proposed[i - 1, column] = len(tokens)
            matched[i - 1, column] = agreed(tokens, output, i)
    return BlockScores(proposed, matched)


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
        p = None if sampling.greedy else penalty.apply(target_logits, so_far)
        firsts.append(reduce(logits, p, next_ids, sampling, eos))
        if p is not None:
            p_x.append(distribution(p, sampling).gather(1, next_ids[:, None])[:, 0])
    first = as_scores(torch.cat(firsts, 1) if firsts else torch.empty(6, 0))
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
            table[:, at : at + known, j] = _deep(logits, p, ids, sampling, eos)
    accept, confidence, ends = table
    return replace(first, accept=accept, confidence=confidence, ends=ends > 0)


def _deep(
    draft_logits: Tensor, p_x: Tensor | None, x: Tensor, sampling: Sampling, eos: Collection[int]
) -> NDArray[np.float32]:
    """`reduce` where of the target's distribution only p of the text's own tokens p_x [n] is at hand: acceptance,
    confidence and ends [3, n]."""
    plain = torch.log_softmax(draft_logits.float(), -1)
    confidence, choice = plain.max(-1)
    if p_x is None:
        accept, ends = (choice == x).float(), torch.isin(choice, torch.tensor(sorted(eos), device=x.device)).float()
    else:
        q_x = distribution(draft_logits, sampling).gather(1, x[:, None])[:, 0]
        accept, ends = _accepted(p_x, q_x), torch.zeros_like(q_x)
    return np.asarray(torch.stack([accept, confidence.exp(), ends]).cpu().numpy(), dtype=np.float32)


def _accepted(p_x: Tensor, q_x: Tensor) -> Tensor:
    """P(a draft is accepted, given that the text's token is x). Tokens that top-k or top-p cut from p cannot have been
    emitted, but rounding may leave p(x) = 0 there."""
    return torch.where(p_x > 0, q_x / p_x, torch.ones_like(p_x)).clamp_max(1.0)


def reduce(
    draft_logits: Tensor, target_logits: Tensor | None, x: Tensor, sampling: Sampling, eos: Collection[int]
) -> Tensor:
    """Logits [n, V] of both models at n positions and the tokens x [n] emitted there -> six numbers each, [6, n]."""
    draft_logits = draft_logits.float()
    plain = torch.log_softmax(draft_logits, -1)
    confidence, choice = plain.max(-1)
    at_x = x[:, None]
    if target_logits is None:
        accept = (choice == x).float()
        overlap = accept
        log_p = torch.full_like(accept, float("nan"))
        log_q = plain.gather(1, at_x)[:, 0]
        ends = torch.isin(choice, torch.tensor(sorted(eos), device=x.device, dtype=x.dtype)).float()
    else:
        p, q = distribution(target_logits, sampling), distribution(draft_logits, sampling)
        p_x, q_x = p.gather(1, at_x)[:, 0], q.gather(1, at_x)[:, 0]
        accept = _accepted(p_x, q_x)
        overlap = torch.minimum(p, q).sum(-1)
        log_p, log_q = p_x.log(), q_x.log()
        ends = torch.zeros_like(accept)
    return torch.stack([accept, overlap, confidence.exp(), log_p, log_q, ends]).cpu()


def as_scores(columns: Tensor) -> Scores:
    """[6, n] from `reduce` -> named float32 arrays."""
    accept, overlap, confidence, log_p, log_q, ends = columns.to(torch.float32).numpy()
    return Scores(accept, overlap, confidence, log_p, log_q, ends > 0)
