"""The draft-verify loop over several sequences at once: one pass for all, and each accepts its own.

Acceptance is ragged: a row that keeps three tokens moves on by four while its neighbour moves on by one. Rows that end
leave the batch, so the tail runs at a smaller one, with and without a draft alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from specbench.acceptance.loop import Generation, Proposal, Steps, accept, at_once, times_of
from specbench.acceptance.rules import (
    RepetitionPenalty,
    apply_many,
    best,
    distribution,
    judged_sampled,
    kept_of,
    queued,
)
from specbench.clock import Clock
from specbench.records import Round, Sampling


class ManyTarget(Protocol):
    """A language model with a rewindable memory for each of several sequences."""

    def begin(self, batch: int) -> None:
        """Start anew with so many empty sequences."""

    def forward(self, rows: Sequence[Sequence[int]] | Tensor, *, every: bool) -> Tensor:
        """Read one row in each sequence, numbers or a tensor [batch, n] of them; logits [batch, n, V] if `every`, else
        [batch, V] after each row's last."""

    def rewind(self, lengths: Sequence[int]) -> None:
        """Keep so many tokens of each sequence."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only."""


class ManyDrafter(Protocol):
    """Proposes for every sequence of a batch."""

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read new prompts."""

    def propose(
        self, rows: Sequence[Sequence[int]], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Proposal]:
        """At most `ks[i]` tokens to follow `rows[i]`."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only."""


@torch.inference_mode()
def rounds_of_many(
    target: ManyTarget,
    drafter: ManyDrafter | None,
    prompts: Sequence[Sequence[int]],
    *,
    gamma: int,
    sampling: Sampling,
    eos: Collection[int],
    max_new_tokens: int,
    generators: Sequence[torch.Generator],
    clock: Clock,
) -> Steps[list[Generation]]:
    """`loop.rounds_of` for several prompts at once, whose tokens it yields all together; every Generation carries the
    times of the whole batch."""
    penalties = [RepetitionPenalty(sampling) for _ in prompts]
    target.begin(len(prompts))
    logits = target.forward(prompts, every=False)[:, None]
    if sampling.penalised:
        logits = apply_many(penalties, logits, prompts, [()] * len(prompts))
    firsts = accept_many(logits, [Proposal([]) for _ in prompts], sampling, generators)
    x = [[*prompt, first] for prompt, (_, first) in zip(prompts, firsts, strict=True)]
    clock.lap("prefill")
    if drafter is not None:
        drafter.begin(prompts)
        clock.lap("draft_prefill")
    ends = [len(prompt) + max_new_tokens for prompt in prompts]
    rounds: list[list[Round]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    yield len(prompts)
    while going := [i for i, b in enumerate(running) if x[b][-1] not in eos and len(x[b]) < ends[b]]:
        if len(going) < len(running):  # the others leave every memory
            target.keep(going)
            if drafter is not None:
                drafter.keep(going)
            running = [running[i] for i in going]
        rows = [x[b] for b in running]
        ds = [Proposal([]) for _ in running]
        if drafter is not None:
            ks = [min(gamma, ends[b] - len(x[b]) - 1) for b in running]
            if max(ks) > 0:
                ds = drafter.propose(rows, ks, [generators[b] for b in running])
            clock.lap("draft")
        logits = target.forward([[row[-1], *d.tokens] for row, d in zip(rows, ds, strict=True)], every=True)
        clock.lap("verify")
        if sampling.penalised:
            logits = apply_many([penalties[b] for b in running], logits, rows, [d.tokens for d in ds])
        found = accept_many(logits, ds, sampling, [generators[b] for b in running])
        for b, d, (n, token) in zip(running, ds, found, strict=True):
            x[b] += d.tokens[:n]
            if x[b][-1] not in eos:
                x[b].append(token)
            rounds[b].append(Round(len(d.tokens), n))
        target.rewind([len(x[b]) - 1 for b in running])
        clock.lap("other")
        yield sum(map(len, x)) - sum(map(len, prompts))
    times = times_of(clock)
    return [
        Generation(row[len(prompt) :], done, "eos" if row[-1] in eos else "length", times)
        for row, prompt, done in zip(x, prompts, rounds, strict=True)
    ]


generate_many = at_once(rounds_of_many)


def accept_many(
    logits: Tensor, ds: Sequence[Proposal], sampling: Sampling, generators: Sequence[torch.Generator]
) -> list[tuple[int, int]]:
    """`loop.accept` for each row of logits [batch, n, V], of which row i's first len(ds[i].tokens) + 1 count. A device
    is waited for once."""
    n = logits.shape[1]
    if sampling.greedy:
        choices = best(logits.flatten(0, 1))
        return [kept_of(choices[n * i : n * i + len(d.tokens) + 1], d.numbers) for i, d in enumerate(ds)]
    if logits.device.type == "cpu":
        rows = zip(logits, ds, generators, strict=True)
        return [accept(row[: len(d.tokens) + 1], d, sampling, generator) for row, d, generator in rows]
    judged = []
    for row, d, generator in zip(logits, ds, generators, strict=True):
        p, drafts = distribution(row[: len(d.tokens) + 1], sampling), queued(d.numbers, logits.device)
        judged.append(judged_sampled(p, d.q, drafts.long(), generator))
    numbers = iter(torch.cat(judged).tolist())
    return [tuple(islice(numbers, 2 + len(d.tokens)))[:2] for d in ds]
