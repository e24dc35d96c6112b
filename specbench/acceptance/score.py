"""One teacher-forced pass over a text of the target: what the draft would have said at every position.

Logits over the whole vocabulary exist for one chunk of positions at a time and are reduced to a few numbers each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specbench.acceptance.loop import Drafter, Target
from specbench.acceptance.penalty import RepetitionPenalty
from specbench.acceptance.rules import align, distribution
from specbench.acceptance.scores import BlockScores, Scores, agreed
from specbench.records import Sampling

CHUNK = 64


class EachBlock(Drafter, Protocol):
    """A block drafter that can say what it proposes at every allowance at once."""

    def blocks(self, x: Sequence[int], longest: int) -> list[list[int]]:
        """What a round allowed k tokens would propose, for k = 1 .. `longest`."""


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
        # Tokens that top-k or top-p cut from p cannot have been emitted, but rounding may leave p(x) = 0 there.
        accept = torch.where(p_x > 0, q_x / p_x, torch.ones_like(p_x)).clamp_max(1.0)
        overlap = torch.minimum(p, q).sum(-1)
        log_p, log_q = p_x.log(), q_x.log()
        ends = torch.zeros_like(accept)
    return torch.stack([accept, overlap, confidence.exp(), log_p, log_q, ends]).cpu()


def as_scores(columns: Tensor) -> Scores:
    """[6, n] from `reduce` -> named float32 arrays."""
    accept, overlap, confidence, log_p, log_q, ends = columns.to(torch.float32).numpy()
    return Scores(accept, overlap, confidence, log_p, log_q, ends > 0)
