"""What is known of a text of the target at every position, and of a look-up there, which takes token ids and no model.

No torch here: a text that a server wrote is scored on a machine that has none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Singles = NDArray[np.float32]
Counts32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BlockScores:
    """One text of the target alone under a drafter that proposes a whole block at the round's start. The text has n + 1
    tokens, the first from prefill; entry i of each array is for a round that starts when i + 1 tokens are out:
    `proposed` tokens, of which the first `matched` are the text's own. One-hot drafts are accepted exactly where they
    match, at any temperature.

    Arrays are [n] where a shorter block is the beginning of a longer one (n-grams), and [n, G] where it need not be (a
    draft of k tokens that is translated to the target's): column k - 1 is for a round allowed k tokens, up to G. At a
    gamma below `least` nothing is proposed."""

    proposed: Counts32
    matched: Counts32
    least: int = 1

    @property
    def tokens(self) -> int:
        return len(self.matched) + 1

    @property
    def longest(self) -> int | None:
        """The largest gamma that was scored; None where every gamma was."""
        return self.proposed.shape[1] if self.proposed.ndim == 2 else None

    def at(self, i: int, k: int) -> tuple[int, int]:
        """Proposed and matched tokens of a round that starts when `i` tokens are out and is allowed `k`. Raises
        ValueError beyond the longest block that was scored."""
        if k == 0:
            return 0, 0
        if self.proposed.ndim == 1:
            proposed = min(k, int(self.proposed[i - 1]))
            return proposed, min(proposed, int(self.matched[i - 1]))
        if k > self.proposed.shape[1]:
            raise ValueError(f"this draft was scored up to gamma {self.proposed.shape[1]}, not {k}")
        return int(self.proposed[i - 1, k - 1]), int(self.matched[i - 1, k - 1])


@dataclass(frozen=True, slots=True)
class Scores:
    """One text of the target alone under one draft. The text has n + 1 tokens, the first from prefill; entry i of each
    array [n] belongs to output token i + 1.

    Of a draft head `accept`, `confidence` and `ends` are [n, J], since what it drafts depends on where the round began:
    entry [i, j] is of draft j + 1 of a round that starts when i + 1 tokens are out, which stands for output token
    i + 1 + j; entries beyond the end of the text are 0. The other arrays are those of the first draft, j = 0.

    `accept`: P(a draft for this position is accepted, given that the text has this token). `overlap`: sum over the
    vocabulary of min(p, q), whose mean is the exact alpha. `confidence`: the draft's top probability at temperature 1;
    NaN where it has none, since the text holds a token that it cannot read. `ends`: the draft's own greedy token is an
    end of sequence, after which it drafts no further (False when sampling). `log_p`, `log_q`: log-probability of the
    emitted token after the warpers; `log_p` is NaN under greedy, where the target's distribution is not needed.
    `blocks` is there where an n-gram look-up goes first and the draft model only drafts where that proposes nothing.
    """

    accept: Singles
    overlap: Singles
    confidence: Singles
    log_p: Singles
    log_q: Singles
    ends: NDArray[np.bool_]
    blocks: BlockScores | None = None

    @property
    def tokens(self) -> int:
        return len(self.accept) + 1

    @property
    def longest(self) -> int | None:
        """The largest gamma that was scored; None where every gamma was."""
        return self.accept.shape[1] if self.accept.ndim == 2 else None

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Positions [n] of which the draft says anything."""
        return ~np.isnan(self.confidence if self.confidence.ndim == 1 else self.confidence[:, 0])


class LookUp(Protocol):
    """Whoever proposes tokens of the text itself, at `least` or a larger gamma; a shorter proposal is the beginning of
    a longer one."""

    least: int

    def begin(self, prompt: Sequence[int]) -> None:
        """Read a new prompt."""

    def find(self, x: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens to follow `x`."""


def match_blocks(lookup: LookUp, prompt: Sequence[int], output: Sequence[int], longest: int) -> BlockScores:
    """For every round start in `output`: how many tokens a look-up proposes (at most `longest`), and how many of the
    first of them are the text's own."""
    proposed, matched = [], []
    lookup.begin(prompt)
    for i in range(1, len(output)):
        tokens = lookup.find([*prompt, *output[:i]], longest)
        proposed.append(len(tokens))
        matched.append(agreed(tokens, output, i))
    return BlockScores(np.array(proposed, dtype=np.int32), np.array(matched, dtype=np.int32), lookup.least)


def greedy_scores(
    output: Sequence[int],
    judged: Sequence[tuple[int, float, float]],
    eos: Collection[int],
    blocks: BlockScores | None = None,
) -> Scores:
    """Greedy scores of a text of n + 1 output tokens from what the draft finds likeliest in place of each but the first
    [n]: token, log-probability, and the confidence that a cut-off is about. The log-probability of the text's own
    token is known only where it is the likeliest, else NaN."""
    top = np.array([token for token, _, _ in judged], dtype=np.int64)
    logprob, confidence = (np.array([each[i] for each in judged], dtype=np.float32) for i in (1, 2))
    same, unknown = top == np.array(output[1:], dtype=np.int64), np.full(len(top), np.nan, dtype=np.float32)
    accept = same.astype(np.float32)
    log_q = np.where(same, logprob, unknown)
    return Scores(accept, accept, confidence, unknown, log_q, np.isin(top, sorted(eos)), blocks)


def own_token_scores(
    log_p: Sequence[float], log_q: Sequence[float], confidence: Sequence[float], blocks: BlockScores | None = None
) -> Scores:
    """Scores of a text of n + 1 output tokens that was drawn from p, from the log-probabilities in nats that target and
    draft find for its own tokens but the first [n each]. A draft that samples from q is accepted with
    min(1, q(x) / p(x)), given the text; that is sum min(p, q) in the mean over x from p, so that it stands for the
    overlap, which needs whole distributions."""
    p, q, sure = (np.array(each, dtype=np.float32) for each in (log_p, log_q, confidence))
    accept = np.exp(np.minimum(0, q - p)).astype(np.float32)
    return Scores(accept, accept, sure, p, q, np.zeros(len(p), dtype=bool), blocks)


def agreed(tokens: Sequence[int], output: Sequence[int], i: int) -> int:
    """How many of the first of `tokens`, proposed when `i` tokens of `output` are out, are the text's own."""
    same = 0
    while same < min(len(tokens), len(output) - i) and tokens[same] == output[i + same]:
        same += 1
    return same


def until_end(tokens: Sequence[int], eos: Collection[int]) -> list[int]:
    """The tokens up to the first end of sequence, it included; all of them without one."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
    return list(tokens[:end])
