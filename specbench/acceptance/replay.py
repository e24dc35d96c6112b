"""Acceptance at every gamma from one pass: what the loop would have done, without running it.

The emitted text is distributed as the target's whatever the draft and gamma are, so one text of the target alone, and
for each of its positions the probability that the draft's token is accepted there given what was emitted, determine
the rounds of every gamma. Greedy: that probability is 0 or 1 and the walk over the rounds is the loop's own. Sampling:
it is min(1, q(x)/p(x)), and the walk becomes a sum over all ways the rounds can fall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench.acceptance.scores import BlockScores, Scores

Floats = NDArray[np.float64]

# Prompts walked side by side: bounds the memory, whatever the workload's size.
CHUNK = 1024
BLOCK_NUMBERS = ("proposed", "matched")


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions(Scores):
    """The scores of one text, with what it takes to replay them. `limit` is max_new_tokens. Of a recorded answer
    `prompt_tokens` and its `conversation` are known."""

    prompt_id: str
    category: str | None
    draft: str
    repeat: int
    limit: int
    prompt_tokens: int | None = None
    conversation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks(BlockScores):
    """The same of a text whose drafts come in blocks."""

    prompt_id: str
    category: str | None
    draft: str
    repeat: int
    limit: int
    prompt_tokens: int | None = None
    conversation: str | None = None


Text = Positions | Blocks


def as_text(scores: Scores | BlockScores, **origin: Any) -> Text:
    """The scores of one text with its `origin`, the other fields of Positions and Blocks."""
    numbers = {one.name: getattr(scores, one.name) for one in fields(scores)}
    return Blocks(**numbers, **origin) if isinstance(scores, BlockScores) else Positions(**numbers, **origin)


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
    texts: Sequence[tuple[int, Positions, BlockScores]], i: int, k: NDArray[np.int_]
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
