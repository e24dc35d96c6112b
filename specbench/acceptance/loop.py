"""The draft-verify loop: the oracle that every prediction and every replay is held against.

One round: draft up to gamma tokens, one target pass over them and the last emitted token, keep a prefix, emit it
and one token more (the correction after a rejection, else the bonus). The target alone is the same loop with no
drafter, so that both arms pay for the same Python.

It is a generator, so that it can be left after any round, for another arm to have its turn on the same machine at
nearly the same time, and taken up again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from specbench.acceptance.rules import (
    RepetitionPenalty,
    accept_greedy,
    accept_sampled,
    distribution,
    judged_greedy,
    judged_sampled,
    queued,
)
from specbench.acceptance.scores import until_end
from specbench.clock import Clock
from specbench.records import Finish, Round, Sampling, Times

P = ParamSpec("P")
T = TypeVar("T")

# A generation under way: how many tokens there are, after the prompt and after each round, and in the end all of it.
Steps = Generator[int, None, T]


class Target(Protocol):
    """A language model with a rewindable memory of the tokens it has read."""

    def forward(self, ids: Sequence[int] | Tensor, keep: int) -> Tensor:
        """Read `ids`, numbers or a tensor [n] of them; logits [keep, V] after each of the last `keep`."""

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens read; 0 starts a new sequence."""


@dataclass(slots=True)
class Proposal:
    """Drafted tokens, and the distributions q [k, V] they were drawn from; None if they were not drawn (greedy
    drafts, n-grams), which the acceptance rule takes as one-hot.

    Tokens may still be on a device, as a tensor [k]: then the target's pass is queued behind the draft's, nobody waits
    in between, and `accept` puts the numbers in their place. Such drafts may run on past an end of sequence."""

    tokens: list[int] | Tensor
    q: Tensor | None = None

    @property
    def numbers(self) -> list[int]:
        """The tokens as numbers, waited for where they are not here yet."""
        return self.tokens.tolist() if isinstance(self.tokens, Tensor) else self.tokens


class Drafter(Protocol):
    """Whoever proposes tokens. It sees the sequence so far and keeps its own memory in step with it."""

    def begin(self, prompt: Sequence[int]) -> None:
        """Read a new prompt."""

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        """At most `k` tokens to follow `x`; none after an end-of-sequence token."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one trial produced: output token ids (the first from prefill), rounds, and where the time went."""

    tokens: list[int]
    rounds: list[Round]
    finish: Finish
    times: Times


@torch.inference_mode()
def rounds_of(
    target: Target,
    drafter: Drafter | None,
    prompt: Sequence[int],
    *,
    gamma: int,
    sampling: Sampling,
    eos: Collection[int],
    max_new_tokens: int,
    generator: torch.Generator,
    clock: Clock,
) -> Steps[Generation]:
    """Generate up to `max_new_tokens` tokens after `prompt`; without a `drafter` (gamma unused) the target alone.

    Text past an accepted end-of-sequence token is never drafted, counted or emitted. Drafts are limited so that a
    round cannot run past `max_new_tokens`; the last rounds may therefore draft fewer than gamma. Whoever leaves it for
    a while resumes `clock` before going on.
    """
    penalty = RepetitionPenalty(sampling)
    target.rewind(0)
    logits = penalty.apply(target.forward(prompt, keep=1), prompt)
    _, first = accept(logits, Proposal([]), sampling, generator)
    clock.lap("prefill")
    if drafter is not None:
        drafter.begin(prompt)
        clock.lap("draft_prefill")

    x = [*prompt, first]
    end = len(prompt) + max_new_tokens
    rounds: list[Round] = []
    yield 1
    while x[-1] not in eos and len(x) < end:
        d = Proposal([])
        k = min(gamma, end - len(x) - 1)
        if drafter is not None:
            if k > 0:
                d = drafter.propose(x, k, generator)
            clock.lap("draft")
        logits = target.forward(to_verify(x[-1], d), keep=len(d.tokens) + 1)  # [k+1, V]
        clock.lap("verify")
        logits = penalty.apply(logits, x, d.tokens)
        n, token = accept(logits, d, sampling, generator)
        drafts = until_end(d.numbers, eos)
        n = min(n, len(drafts))
        x += drafts[:n]
        if x[-1] not in eos:  # an accepted end of sequence leaves no room for a bonus
            x.append(token)
        target.rewind(len(x) - 1)  # the newest token is read by the next round
        rounds.append(Round(len(drafts), n))
        clock.lap("other")
        yield len(x) - len(prompt)
    return Generation(x[len(prompt) :], rounds, "eos" if x[-1] in eos else "length", times_of(clock))


def at_once(steps_of: Callable[P, Steps[T]]) -> Callable[P, T]:
    """The same without a stop: what `steps_of` gives in the end."""

    def whole(*args: P.args, **more: P.kwargs) -> T:
        steps = steps_of(*args, **more)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: T = end.value
                return found

    return whole


generate = at_once(rounds_of)


def to_verify(last: int, d: Proposal) -> Sequence[int] | Tensor:
    """What the target reads in a round: the last emitted token and the drafts."""
    if isinstance(d.tokens, Tensor):
        return torch.cat((queued([last], d.tokens.device), d.tokens))
    return [last, *d.tokens]


def accept(logits: Tensor, d: Proposal, sampling: Sampling, generator: torch.Generator) -> tuple[int, int]:
    """How many of the k drafts the target's logits [k+1, V] keep, and the token that follows them. Drafts that are on
    a device are fetched together with these, in the one wait of the round."""
    if isinstance(d.tokens, Tensor):
        p = None if sampling.greedy else distribution(logits, sampling)
        found = judged_greedy(logits, d.tokens) if p is None else judged_sampled(p, d.q, d.tokens, generator)
        n, token, *d.tokens = found.tolist()
        return n, token
    if sampling.greedy:
        return accept_greedy(logits, d.tokens)
    return accept_sampled(distribution(logits, sampling), d.q, d.tokens, generator)


def times_of(clock: Clock) -> Times:
    return Times(
        prefill_s=clock.seconds("prefill"),
        draft_prefill_s=clock.seconds("draft_prefill"),
        draft_s=clock.seconds("draft"),
        verify_s=clock.seconds("verify"),
        other_s=clock.seconds("other"),
        total_s=clock.total_s,
    )
