"""p and q from logits, and which drafted tokens the target accepts.

Letters follow Leviathan et al. 2023 (arXiv 2211.17192): p is the target's distribution, q the draft's, both
after the same temperature, top-k, top-p and min-p, and where there is a repetition penalty after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbench.records import Sampling


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits [n, V] -> probabilities [n, V] in float32 after temperature, top-k, top-p, min-p, in this order.

    Greedy is the one-hot of the arg-max, so that one set of rules serves every temperature.
    """
    logits = logits.float()
    if sampling.greedy:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    for warper in _warpers(sampling, logits.shape[-1]):
        logits = warper(_UNUSED_IDS, logits)
    return torch.softmax(logits, dim=-1)


def margins(logits: Tensor, rival: Tensor | int | None = None) -> Tensor:
    """How near a tie each place is [n]: how far the best of logits [n, V] is above the second best, or above token
    `rival` ([n], or one for all), over the magnitude of the best, the unit in which rounding errors come
    (lossless.py)."""
    logits = logits.float()
    best = logits.topk(2).values  # [n, 2]
    if rival is None:
        below = best[:, 1]
    else:
        below = logits.gather(1, torch.as_tensor(rival, device=logits.device).expand(len(logits))[:, None])[:, 0]
    return (best[:, 0] - below) / best[:, 0].abs().clamp_min(1e-9)


_UNUSED_IDS = torch.empty(0, dtype=torch.long)


@lru_cache(maxsize=8)
def _warpers(sampling: Sampling, vocab_size: int) -> tuple[LogitsProcessor, ...]:
    """Called one after the other: transformers' own list of them reads the signature of each at every token."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(min(sampling.top_k, vocab_size)))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return tuple(warpers)


def align(logits: Tensor, vocab_size: int) -> Tensor:
    """Logits [n, V_draft] -> [n, vocab_size]: ids that only padding makes different cannot be drafted."""
    missing = vocab_size - logits.shape[-1]
    if missing <= 0:
        return logits[..., :vocab_size]
    return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))


def best(logits: Tensor) -> list[int]:
    """The id of the largest logit of each row [n, V], the first of equals. On a CPU numpy finds it ten times as fast
    as torch, whose search through bfloat16 would be a twentieth of a small draft's step."""
    if logits.device.type == "cpu":
        found: list[int] = logits.float().numpy().argmax(-1).tolist()
    else:
        found = logits.argmax(-1).tolist()
    return found


def queued(ids: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """Numbers as a tensor on `device`, without waiting for what the device is still doing: the driver takes its own
    copy of them before this returns."""
    return torch.tensor(ids, dtype=torch.long).to(device, non_blocking=True)


def draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """One token id from probabilities [V]."""
    return int(torch.multinomial(probabilities, 1, generator=generator))


def accept_greedy(logits: Tensor, drafts: list[int]) -> tuple[int, int]:
    """Greedy target: keep drafts while they are the arg-max. `logits` [k+1, V], k drafts.

    Returns how many are accepted and the next token: the correction, or the bonus if all were.
    """
    return kept_of(best(logits), drafts)


def kept_of(choices: Sequence[int], drafts: Sequence[int]) -> tuple[int, int]:
    """`accept_greedy` from the arg-max of each row."""
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == choices[accepted]:
        accepted += 1
    return accepted, choices[accepted]


def accept_sampled(p: Tensor, q: Tensor | None, drafts: list[int], generator: torch.Generator) -> tuple[int, int]:
    """Rejection sampling (Leviathan Algorithm 1; Chen et al. 2023, arXiv 2302.01318): the only rule that keeps p.

    `p` [k+1, V] and `q` [k, V] are probabilities; q None means that the drafts were not drawn but proposed with
    certainty (one-hot q). Draft x is accepted with probability min(1, p(x)/q(x)); on rejection the next token
    comes from norm(max(0, p - q)), otherwise the bonus comes from p. Returns (accepted, next token).
    """
    k = len(drafts)
    x = torch.tensor(drafts, dtype=torch.long, device=p.device)[:, None]  # [k, 1]
    p_x = p[:k].gather(1, x)[:, 0]  # [k]
    q_x = torch.ones_like(p_x) if q is None else q.gather(1, x)[:, 0]  # [k]
    u = torch.rand(k, generator=generator, device=p.device)
    # u < p/q without the division, so that q(x) = 0 rejects unless p(x) > 0 as well.
    accepted = int((u * q_x < p_x).cumprod(0).sum())
    if accepted == k:
        return k, draw(p[k], generator)
    return accepted, draw(residual(p[accepted], None if q is None else q[accepted], drafts[accepted]), generator)


def residual(p: Tensor, q: Tensor | None, rejected: int) -> Tensor:
    """norm(max(0, p - q)) over [V]; for one-hot q this is p without the rejected token."""
    if q is None:
        left = p.clone()
        left[rejected] = 0.0
    else:
        left = (p - q).clamp_min(0.0)
    total = left.sum()
    # p = q to the last bit leaves nothing over; then a rejection was rounding, and p itself is right.
    return left / total if total > 0 else p


def confidence(logits: Tensor) -> list[float]:
    """The draft's top probability at temperature 1 in each row [n, V]: what a cut-off is held against."""
    top: list[float] = torch.softmax(logits.float(), -1).amax(-1).tolist()
    return top


def judged_greedy(logits: Tensor, drafts: Tensor) -> Tensor:
    """`accept_greedy` without waiting for the device: logits [k+1, V] and drafts [k] -> accepted, the next token and
    the drafts, as one tensor [2 + k]."""
    choices = logits.argmax(-1)
    accepted = (choices[:-1] == drafts).cumprod(0).sum()
    return torch.cat((accepted[None], choices[accepted][None], drafts))


def judged_sampled(p: Tensor, q: Tensor | None, drafts: Tensor, generator: torch.Generator) -> Tensor:
    """`accept_sampled` without waiting for the device, from p [k+1, V] and q [k, V], as `judged_greedy` returns it. It
    draws the same random numbers in the same order."""
    k, x = len(drafts), drafts[:, None]
    p_x = p[:k].gather(1, x)[:, 0]
    q_x = torch.ones_like(p_x) if q is None else q.gather(1, x)[:, 0]
    u = torch.rand(k, generator=generator, device=p.device)
    accepted = (u * q_x < p_x).cumprod(0).sum()
    left = p[:k].scatter(1, x, 0.0) if q is None else (p[:k] - q).clamp_min(0.0)
    total = left.sum(-1, keepdim=True)
    rows = torch.cat((torch.where(total > 0, left / total, p[:k]), p[k:]))
    token = torch.multinomial(rows[accepted], 1, generator=generator)
    return torch.cat((accepted[None], token, drafts))


class RepetitionPenalty:
    """The repetition penalty (Keskar et al. 2019, arXiv 1909.05858) over one text that only grows. Every position is
    penalised by what stands before it: prompt, emitted tokens, and the drafts of the round before it. So the i-th draft
    is judged by the p that the target has after the drafts before it, and the text stays the target's own.

    Its tokens are kept where the logits are: to bring a long text there anew in every step would take longer than the
    penalty."""

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
