"""What is known of a text of the target at every position, and of a look-up there, which takes token ids and no model.

No torch here: a text that a server wrote is scored on a machine that has none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specbench.acceptance.replay import Blocks, Counts32, Positions, Singles, Text


@dataclass(frozen=True, slots=True)
class BlockScores:
    """Arrays for a text of n + 1 output tokens, as replay.Blocks describes them."""

    proposed: Counts32
    matched: Counts32
    least: int = 1


@dataclass(frozen=True, slots=True)
class Scores:
    """Arrays for a text of n + 1 output tokens, as replay.Positions describes them: [n], of a head some [n, J]."""

    accept: Singles
    overlap: Singles
    confidence: Singles
    log_p: Singles
    log_q: Singles
    ends: NDArray[np.bool_]
    blocks: BlockScores | None = None


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


def as_text(
    scores: Scores | BlockScores,
    *,
    prompt_id: str,
    category: str | None,
    draft: str,
    repeat: int,
    limit: int,
    prompt_tokens: int | None = None,
    conversation: str | None = None,
) -> Text:
    """The scores of one text with what it takes to replay them; `limit` is max_new_tokens."""
    origin = prompt_id, category, draft, repeat, limit
    known: dict[str, Any] = {"prompt_tokens": prompt_tokens, "conversation": conversation}
    found = scores if isinstance(scores, BlockScores) else scores.blocks
    blocks = None if found is None else Blocks(*origin, found.proposed, found.matched, **known, least=found.least)
    if isinstance(scores, BlockScores):
        assert blocks is not None
        return blocks
    numbers = scores.accept, scores.overlap, scores.confidence, scores.log_p, scores.log_q
    return Positions(*origin, *numbers, scores.ends, blocks, **known)
