"""Acceptance at every gamma from one pass: what the loop would have done, without running it.

The emitted text is distributed as the target's whatever the draft and gamma are, so one text of the target alone, and
for each of its positions the probability that the draft's token is accepted there given what was emitted, determine
the rounds of every gamma. Greedy: that probability is 0 or 1 and the walk over the rounds is the loop's own. Sampling:
it is min(1, q(x)/p(x)), and the walk becomes a sum over all ways the rounds can fall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Counts32 = NDArray[np.int32]

# Prompts walked side by side: bounds the memory, whatever the workload's size.
CHUNK = 1024
BLOCK_NUMBERS = ("proposed", "matched")


@dataclass(frozen=True, slots=True)
class Positions:
    """One text of the target alone under one draft. The text has n + 1 tokens, the first from prefill; entry i of each
    array [n] belongs to output token i + 1.

    Of a draft head `accept`, `confidence` and `ends` are [n, J], since what it drafts depends on where the round began:
    entry [i, j] is of draft j + 1 of a round that starts when i + 1 tokens are out, which stands for output token
    i + 1 + j; entries beyond the end of the text are 0. The other arrays are those of the first draft, j = 0.

    `accept`: P(a draft for this position is accepted, given that the text has this token). `overlap`: sum over the
    vocabulary of min(p, q), whose mean is the exact alpha. `confidence`: the draft's top probability at temperature 1;
    NaN where it has none, since the text holds a token that it cannot read. `ends`: the draft's own greedy token is an
    end of sequence, after which it drafts no further (False when sampling).
    `log_p`, `log_q`: log-probability of the emitted token after the warpers; `log_p` is NaN under greedy, where the
    target's distribution is not needed. `limit` is max_new_tokens. Of a recorded answer `prompt_tokens` and its
    `conversation` are known. `blocks` is there where an n-gram look-up goes first
    and the draft model only drafts where that proposes nothing.
    """

    prompt_id: str
    category: str | None
    draft: str
    repeat: int
    limit: int
    accept: Singles
    overlap: Singles
    confidence: Singles
    log_p: Singles
    log_q: Singles
    ends: NDArray[np.bool_]
    blocks: Blocks | None = None
    prompt_tokens: int | None = None
    conversation: str | None = None

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


@dataclass(frozen=True, slots=True)
class Blocks:
    """One text of the target alone under a drafter that proposes a whole block at the round's start. Entry i of each
    array is for a round that starts when i + 1 tokens are out: `proposed` tokens, of which the first `matched` are the
    text's own. One-hot drafts are accepted exactly where they match, at any temperature.

    Arrays are [n] where a shorter block is the beginning of a longer one (n-grams), and [n, G] where it need not be (a
    draft of k tokens that is translated to the target's): column k - 1 is for a round allowed k tokens, up to G. At a
    gamma below `least` nothing is proposed."""

    prompt_id: str
    category: str | None
    draft: str
    repeat: int
    limit: int
    proposed: Counts32
    matched: Counts32
    prompt_tokens: int | None = None
    conversation: str | None = None
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


Text = Positions | Blocks


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected counts at one gamma, for each text [texts]; whole numbers under greedy.

    `reached[:, j-1]` rounds drafted at least j tokens, `survived[:, j-1]` had the first j accepted. What the draft does
    after its first wrong token is off the text and not known: it might draft an end of sequence there, or meet the
    confidence cut-off. `reached` and `drafted` assume that it does not, and are upper bounds; `drafted_low` assumes
    that it stops at once. Rounds, accepted and survived do not depend on it.

    For the cost model: `catch_ups` rounds begin with a draft model that has tokens to read, since the round before
    accepted all it drafted or was an n-gram's; `copied` drafts were an n-gram's and cost no draft step; `cut_offs`
    draft steps gave no drafted token: the cut-off stopped it, or translation left nothing of it. In `started` rounds a
    draft model or head took a step.
    """

    gamma: int
    rounds: Floats
    accepted: Floats
    rejections: Floats
    reached: Floats
    survived: Floats
    drafted_low: Floats
    catch_ups: Floats
    copied: Floats
    cut_offs: Floats
    started: Floats

    @property
    def drafted(self) -> Floats:
        return np.asarray(self.reached.sum(1), dtype=np.float64)

    @property
    def tokens_per_round(self) -> float | None:
        """tau pooled over the texts; None without a round."""
        rounds = float(self.rounds.sum())
        return 1 + float(self.accepted.sum()) / rounds if rounds else None

    @property
    def alpha(self) -> float | None:
        judged = float(self.accepted.sum() + self.rejections.sum())
        return float(self.accepted.sum()) / judged if judged else None

    @property
    def survival(self) -> tuple[float | None, ...]:
        """s_j pooled over the texts; where drafting may stop early (see above) a lower bound."""
        survived, reached = self.survived.sum(0), self.reached.sum(0)
        return tuple(float(s / r) if r else None for s, r in zip(survived, reached, strict=True))


def replay(texts: Sequence[Text], gamma: int, cutoff: float = 0.0) -> Expected:
    """Expected counts at `gamma` of one draft, over texts in their order. With a `cutoff` a draft model stops before a
    token whose confidence is below it, as llama.cpp's p-min does, whose confidence is a share among ten tokens: only a
    run on its own servers stores that, and by the probability among all tokens drafts stop sooner. Block drafters have
    no confidence and ignore it."""
    parts = []
    for i in range(0, max(1, len(texts)), CHUNK):
        chunk = texts[i : i + CHUNK]
        blocks = [text for text in chunk if isinstance(text, Blocks)]
        tokens = [text for text in chunk if isinstance(text, Positions)]
        if blocks and tokens:
            raise ValueError("a draft proposes either token by token or in blocks")
        parts.append(_walk_blocks(blocks, gamma) if blocks else _walk(tokens, gamma, cutoff))
    return Expected(gamma, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _walk_blocks(texts: Sequence[Blocks], gamma: int) -> tuple[Floats, ...]:
    """The loop's own rounds, of all texts side by side: nothing about a block is uncertain."""
    count = len(texts)
    size, limit = np.array([text.tokens for text in texts]), np.array([text.limit for text in texts])
    first = np.cumsum(size - 1) - size  # of a text in the arrays of all, less the 1 that places begin at
    proposed, matched = (np.concatenate([getattr(text, name) for text in texts]) for name in BLOCK_NUMBERS)
    modelled = proposed.ndim == 2  # a model drafted k tokens of its own, whatever came of them
    allowed = np.array([gamma if gamma >= text.least else 0 for text in texts])
    found: list[tuple[NDArray[np.int_], ...]] = []
    row = np.flatnonzero(size > 1)
    i = np.ones(len(row), dtype=int)
    while len(row):
        k = np.clip(limit[row] - i - 1, 0, allowed[row])
        if modelled:
            if k.max() > proposed.shape[1]:
                raise ValueError(f"this draft was scored up to gamma {proposed.shape[1]}, not {k.max()}")
            here = first[row] + i, np.maximum(k, 1) - 1
            drafted, kept = np.where(k, proposed[here], 0), np.where(k, matched[here], 0)
        else:
            drafted = np.minimum(k, proposed[first[row] + i])
            kept = np.minimum(drafted, matched[first[row] + i])
        found.append((row, k, drafted, kept))
        i = i + kept + 1
        left = i < size[row]
        row, i = row[left], i[left]
    rows, k, drafted, kept = (np.concatenate([part[at] for part in found] or [row]) for at in range(4))

    def total(of: NDArray[Any]) -> Floats:
        return np.bincount(rows, of, count).astype(np.float64)

    def reaching(tokens: NDArray[np.int_]) -> Floats:
        """Rounds of each text that have at least j of `tokens` [texts, gamma]."""
        by_tokens = np.bincount(rows * (gamma + 1) + tokens, minlength=count * (gamma + 1)).reshape(count, gamma + 1)
        return np.asarray(by_tokens[:, :0:-1].cumsum(1)[:, ::-1], dtype=np.float64)

    reached, survived, nothing = reaching(drafted), reaching(kept), np.zeros(count)
    started = total(k > 0) if modelled else nothing
    idle = total(k - drafted) if modelled else nothing
    rounds, rejections = np.bincount(rows, minlength=count).astype(np.float64), total(kept < drafted)
    return (rounds, total(kept), rejections, reached, survived, reached.sum(1), started, nothing, idle, started)


def _walk(texts: Sequence[Positions], gamma: int, cutoff: float) -> tuple[Floats, ...]:
    """All texts side by side, from the first output position to the last. A *mass* is the probability, for each text,
    that the walk is in some state."""
    size = np.array([text.tokens for text in texts], dtype=int)
    longest = int(size.max(initial=1))
    limit = np.array([text.limit for text in texts], dtype=int)
    scored = min((text.longest for text in texts if text.longest is not None), default=gamma)
    if scored < gamma:
        raise ValueError(f"this draft was scored up to gamma {scored}, not {gamma}")
    accept = _padded([text.accept for text in texts], longest + gamma)
    confidence = _padded([text.confidence for text in texts], longest + gamma)
    drafts, silent = confidence >= cutoff, np.isnan(confidence)
    ends = _padded([text.ends for text in texts], longest + gamma)

    copying = [
        (row, text, text.blocks)
        for row, text in enumerate(texts)
        if text.blocks is not None and gamma >= text.blocks.least
    ]
    start = np.zeros((len(texts), longest + gamma + 1))  # start[:, i]: a round begins when i tokens are out
    start[:, 1] = 1.0
    behind = np.zeros_like(start)  # behind[:, i]: .. and the draft model has not read all of them
    rounds, accepted, rejections, drafted_low = (np.zeros(len(texts)) for _ in range(4))
    catch_ups, copied, cut_offs, started = (np.zeros(len(texts)) for _ in range(4))
    reached, survived = np.zeros((len(texts), gamma)), np.zeros((len(texts), gamma))
    for i in range(1, longest):
        begun = start[:, i] * (i < size)
        rounds += begun
        k = np.clip(limit - i - 1, 0, gamma)  # the loop drafts no further than the limit allows
        for row, drafted, matched in _copies(copying, i, k):
            mass, begun[row] = begun[row], 0.0
            accepted[row] += mass * matched
            rejections[row] += mass * (matched < drafted)
            reached[row, :drafted] += mass
            survived[row, :matched] += mass
            drafted_low[row] += mass * drafted
            copied[row] += mass * drafted
            start[row, i + matched + 1] += mass
            behind[row, i + matched + 1] += mass
            behind[row, i] = 0.0
        catch_ups += behind[:, i] * (i < size) * (k > 0)
        started += begun * (k > 0)
        kept, stopped = begun, np.zeros(len(texts))
        for j in range(gamma):
            at = i + j  # draft j + 1 of the round stands for output token `at`
            full = kept * (j >= k)  # all kept that the limit allowed: the bonus follows
            start[:, at + 1] += full
            behind[:, at + 1] += full * (k > 0)
            stopped, kept = stopped + full, kept - full
            open_ = kept * (at < size)  # else the text has ended with an accepted end of sequence
            entry = (slice(None), at) if accept.ndim == 2 else (slice(None), i, j)
            drafting = open_ * drafts[entry]
            stopped = stopped + kept - drafting
            cut_offs += (open_ - drafting) * ~silent[entry]
            refused = drafting * (1 - accept[entry])
            kept = drafting - refused
            reached[:, j] += (begun - stopped) * (j < k)
            survived[:, j] += kept
            accepted += kept
            rejections += refused
            drafted_low += drafting
            start[:, at + 1] += open_ - kept  # cut off or refused: the target's own token follows
            stopped = stopped + refused * ends[entry]
        start[:, i + gamma + 1] += kept  # all kept: the bonus follows
        behind[:, i + gamma + 1] += kept
    return rounds, accepted, rejections, reached, survived, drafted_low, catch_ups, copied, cut_offs, started


def _copies(
    texts: Sequence[tuple[int, Positions, Blocks]], i: int, k: NDArray[np.int_]
) -> Iterator[tuple[int, int, int]]:
    """(text, drafted, matched) for each text in which an n-gram look-up drafts the round that starts at `i`."""
    for row, text, blocks in texts:
        if i < text.tokens:
            drafted, matched = blocks.at(i, int(k[row]))
            if drafted:
                yield row, drafted, matched


def _padded(columns: Sequence[NDArray[np.generic]], width: int) -> Floats:
    """Columns [n] or [n, J] of unequal length as rows [texts, width] or [texts, width, J]; entry i + 1 of a row is
    entry i of its column."""
    deep = min((column.shape[1:] for column in columns), default=())
    columns = [column[:, : deep[0]] for column in columns] if deep else columns
    rows = np.zeros((len(columns), width, *deep))
    for row, column in zip(rows, columns, strict=True):
        row[1 : len(column) + 1] = column
    return rows
