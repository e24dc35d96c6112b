"""How near a tie the target's next token was where two greedy texts part, from log-probabilities of OpenAI's interface.

A server gives no logits, but the difference of two log-probabilities is the difference of their logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from specbench.backends.server.answers import Fields, Json, Text, Tokens
from specbench.records import Divergence, LogProb


class _Top(Fields):
    logprob: LogProb


class _Token(Fields):
    token: Text | None = None
    bytes: Tokens | None = None
    top_logprobs: list[_Top] | None = None


class _Logprobs(Fields):
    content: list[_Token] | None = None


class _Message(Fields):
    content: Text | None = None


class _Choice(Fields):
    message: _Message | None = None
    logprobs: _Logprobs | None = None


class _Answer(Fields):
    choices: list[_Choice] | None = None


def logprobs_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a text, as one that tells the two best tokens at each position, without a stream."""
    kept = {key: value for key, value in body.items() if key not in ("stream", "stream_options", "timings_per_token")}
    return kept | {"stream": False, "logprobs": True, "top_logprobs": 2}


def divergence(answer: Json, own: str, other: str) -> Divergence | None:
    """Where `other` leaves `own`, the target's text that `answer` repeats; None where it does not repeat it or has no
    log-probabilities. Raises ValueError for what is not such an answer."""
    choice = (_Answer.of(answer).choices or [_Choice()])[0]
    if choice.message is None or choice.message.content != own:
        return None
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own.encode(), other.encode(), strict=False)))
    read = 0
    tokens = (choice.logprobs and choice.logprobs.content) or []
    for index, token in enumerate(tokens):
        read += len(token.bytes or (token.token or "").encode())
        # The last token may be an end of sequence, which has no text.
        if read > same or index == len(tokens) - 1:
            best = [top.logprob for top in token.top_logprobs or ()]
            return Divergence(index, None, best[0] - best[1] if len(best) > 1 else None)
    return None
