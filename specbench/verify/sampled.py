"""At temperatures above 0: are drafts drawn from the q that is reported, is that the q of these settings, and does the
acceptance rule give the target's distribution?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from specbench.acceptance.loop import Proposal, generate
from specbench.acceptance.rules import RepetitionPenalty, align, distribution, draw
from specbench.backends.local.drafting import Draft
from specbench.clock import Stopwatch
from specbench.records import Sampling
from specbench.verify.setup import Outcome, Setup, bare_logits, drafter_of

DRAWS = 300
TEXTS = 600
POSITIONS = 2
# So small that a sound set-up is accused once in a million examinations of one test.
IMPROBABLE = 1e-6
# Total variation between reported and expected q: rounding moves little, another temperature a tenth and more.
SAME_Q = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.15}
_SMALL_VOCABULARY = 24


@dataclass(frozen=True, slots=True)
class Place:
    """A position where the draft is unsure, so that its draws tell; `q` [V] as reported there."""

    x: list[int]
    q: Tensor


@torch.inference_mode()
def draws_follow_q(setup: Setup, draft: Draft) -> Outcome:
    """Many proposals at a few positions, against the q reported with them."""
    places = _places(setup, draft)
    if not places:
        if draft.spec.greedy or draft.spec.kind in (None, "cross"):
            return Outcome("ok", "proposes with certainty, which the acceptance rule takes as one-hot")
        hint = "Lossless, but accepted less often than drawn drafts, and the replay assumes drawn ones."
        return Outcome("note", "drafts greedily although the temperature is above 0", hint)
    least, top, kinds = 1.0, 1.0, 0
    for place in places:
        drawn = _draws(setup, draft, place.x)
        least = min(least, chi_square(drawn, place.q))
        top, kinds = min(top, float(place.q.max())), max(kinds, len(set(drawn)))
    evidence = (
        f"{DRAWS} draws at each of {len(places)} positions against the q reported: smallest p-value {least:.1g} (top "
        f"token {top:.0%} of q, up to {kinds} tokens drawn)"
    )
    if top > 0.97:
        return Outcome("not checked", "the draft is all but certain everywhere: nothing to draw")
    if least > IMPROBABLE:
        return Outcome("ok", evidence)
    hint = (
        "The drafter does not draw from the q it reports (temperature ignored?): the output is no longer the target's."
    )
    return Outcome("broken", evidence, hint)


@torch.inference_mode()
def q_of_these_settings(setup: Setup, draft: Draft) -> Outcome | None:
    """The q reported for several tokens in a row, against one pass of the draft without a cache. None for drafts that
    report none."""
    places = _places(setup, draft)
    if not places or draft.loaded is None:
        return None
    apart: list[list[float]] = [[], []]  # the first token of a round, later ones
    for place in places:
        setup.settle(draft, place.x)
        proposal = drafter_of(draft).propose(place.x, 3, setup.generator())
        for j, row in enumerate([] if proposal.q is None else proposal.q):
            x = [*place.x, *proposal.numbers[:j]]
            logits = align(bare_logits(draft.loaded.model, x, 1), setup.vocab_size)
            q = distribution(RepetitionPenalty(setup.sampling).apply(logits, x), setup.sampling)[0]
            apart[j > 0].append(float((row - q).abs().sum()) / 2)
    first, later = (sum(part) / len(part) if part else 0.0 for part in apart)
    evidence = (
        f"reported q differs from the draft's own at temperature {setup.sampling.temperature:g} by {first:.2f} in a "
        f"round's first token, {later:.2f} in later ones (total variation, {setup.dtype})"
    )
    if max(first, later) <= SAME_Q[setup.dtype]:
        return Outcome("ok", evidence)
    hint = "The drafter uses another temperature, top-k, top-p, min-p or penalty."
    if first <= SAME_Q[setup.dtype]:
        hint = "The drafter does not read its own tokens."
    return Outcome("broken", evidence, hint)


@torch.inference_mode()
def accept_rule(setup: Setup) -> Outcome:
    """Many short texts through the loop with a fixed p and a fixed other q: their tokens must be distributed as p."""
    logits = bare_logits(setup.loaded.model, setup.prompts[0], 1)[0].cpu()
    p = torch.softmax(logits.topk(min(_SMALL_VOCABULARY, len(logits))).values / 2, -1)
    q = 0.5 * p + 0.5 * p.flip(0)
    target, drafter = _FixedTarget(p), _FixedDrafter(q)
    generator = torch.Generator().manual_seed(0)
    texts = [
        generate(
            target,
            drafter,
            [0],
            gamma=1,
            sampling=Sampling(1.0),
            eos=(),
            max_new_tokens=3,
            generator=generator,
            clock=Stopwatch(),
        ).tokens
        for _ in range(TEXTS)
    ]
    least = min(chi_square([text[i] for text in texts], p) for i in (1, 2))
    evidence = f"{TEXTS:,} texts with a known p and q: tokens are the target's with p-value {least:.1g}"
    if least > IMPROBABLE:
        return Outcome("ok", evidence)
    hint = (
        "The acceptance rule is not the exact one: sampled text is not the target's, and acceptance is not comparable."
    )
    return Outcome("broken", evidence, hint)


class _FixedTarget:
    def __init__(self, p: Tensor) -> None:
        self._logits = p.log()

    def forward(self, ids: Sequence[int] | Tensor, keep: int) -> Tensor:
        return self._logits.expand(keep, -1)

    def rewind(self, length: int) -> None:
        pass


class _FixedDrafter:
    def __init__(self, q: Tensor) -> None:
        self._q = q

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        return Proposal([draw(self._q, generator) for _ in range(k)], self._q.expand(k, -1))


def _places(setup: Setup, draft: Draft) -> list[Place]:
    """The positions where the draft is least sure, among a few of every prompt."""
    found = []
    for prompt, text in zip(setup.prompts, setup.alone, strict=True):
        for end in range(1, min(len(text), 4)):
            x = [*prompt, *text[:end]]
            setup.settle(draft, x)
            proposal = drafter_of(draft).propose(x, 1, setup.generator())
            if proposal.q is not None and len(proposal.q):
                found.append(Place(x, proposal.q[0]))
    return sorted(found, key=lambda place: float(place.q.max()))[:POSITIONS]


def _draws(setup: Setup, draft: Draft, x: list[int]) -> list[int]:
    setup.settle(draft, x)
    drafter, generator = drafter_of(draft), setup.generator()
    proposals = [drafter.propose(x, 1, generator) for _ in range(DRAWS)]
    return [proposal.numbers[0] for proposal in proposals if len(proposal.tokens)]


def chi_square(seen: Sequence[int], p: Tensor) -> float:
    """p-value of tokens against probabilities [V]. Tokens are put together, likely ones first, until five are expected
    of each group, since of a flat p no token alone is expected often. A token that p rules out gives 0."""
    if not seen:
        return 1.0
    p = p.double().cpu()
    p = p / p.sum()
    if any(float(p[token]) <= 0 for token in set(seen)):
        return 0.0
    order = p.argsort(descending=True)
    # The group of a token: how many whole fives are expected of those before it.
    group = torch.empty_like(order)
    before = (p[order] * len(seen)).cumsum(0) - p[order] * len(seen)
    group[order] = (before / 5 + 1e-9).long()
    _, group = torch.unique(group, return_inverse=True)  # a likely token alone fills several fives
    size = int(group.max()) + 1
    expected = torch.zeros(size, dtype=torch.double).index_add_(0, group, p * len(seen))
    observed = torch.bincount(group[torch.tensor(seen)], minlength=size).double()
    if size > 1 and expected[-1] < 5:  # the rest that does not fill a group
        expected = torch.cat([expected[:-2], expected[-2:].sum(0, keepdim=True)])
        observed = torch.cat([observed[:-2], observed[-2:].sum(0, keepdim=True)])
    if len(expected) < 2:
        return 1.0
    return float(stats.chisquare(observed.numpy(), expected.numpy()).pvalue)
