"""Asking a server about texts as token ids: what it read and wrote, what it would have written, and whether two servers
mean the same by the same ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from specbench.backends.base import TargetText
from specbench.backends.server.adapter import AnswerError, Ask, Get, Json, Post
from specbench.errors import VocabularyError


@dataclass(frozen=True, slots=True)
class Top:
    """One place of a text: the `token` that stands there, and the token `top` that the model finds likeliest after all
    before it, with its log-probability in nats. They are equal where greedy decoding would have gone on so.
    `confidence` is what the engine holds against its cut-off where that is not the probability itself, `own_logprob`
    the log-probability of `token`, where the engine tells it."""

    token: int
    top: int
    top_logprob: float
    confidence: float | None = None
    own_logprob: float | None = None

    @property
    def sure(self) -> float:
        """The probability that the engine holds against its cut-off."""
        return min(1.0, math.exp(self.top_logprob)) if self.confidence is None else self.confidence


@runtime_checkable
class Scorer(Protocol):
    """An adapter whose engine can do it. One request reads the text once and writes one token."""

    def score_request(self, ids: Sequence[int], model: str | None = None) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of the request for a text of token ids; the answer is not streamed."""

    def read_scores(self, payload: Json, ids: Sequence[int]) -> list[Top]:
        """The places of `ids` from the second on: entry i is about ids[i + 1], for nothing comes before the first.
        Raises ValueError for an answer that is not about these ids."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The places of an output from its second token on, [n] for n + 1 tokens, and how many tokens the server read that
    it had read before."""

    tops: list[Top]
    read_again: int = 0


@runtime_checkable
class StepScorer(Protocol):
    """An adapter whose engine tells only what comes next. Asked token by token, each request one token longer than the
    one before, it reads one token a request: its own cache has the rest."""

    async def score_steps(self, post: Post, prompt: Sequence[int], output: Sequence[int]) -> Scored:
        """As `score_output`. Raises ValueError for an answer that is not about these ids."""


async def score_output(
    adapter: Scorer | StepScorer, post: Post, prompt: Sequence[int], output: Sequence[int], model: str | None
) -> Scored:
    """What the server's model would have said in place of each token of `output` but the first."""
    if len(output) < 2:
        return Scored([])
    if isinstance(adapter, StepScorer):
        return await adapter.score_steps(post, prompt, output)
    ids = [*prompt, *output]
    path, body = adapter.score_request(ids, model)
    return Scored(adapter.read_scores(await post(path, body), ids)[len(prompt) :])


def require_places(places: Sequence[object], ids: Sequence[int]) -> None:
    """Raises ValueError where an engine scored another number of places than the text has tokens."""
    if len(places) != len(ids):
        raise AnswerError(f"the server scored {len(places)} places of a text of {len(ids)} tokens")


@runtime_checkable
class Tokenizing(Protocol):
    """An adapter whose engine says which token ids a text has."""

    async def token_ids(self, post: Post, text: str, model: str | None) -> tuple[int, ...]:
        """The ids of a text, special tokens in it read as such and none added."""


@runtime_checkable
class Writer(Tokenizing, Protocol):
    """An adapter whose engine tells token ids of what it writes. Raises ValueError for an answer that does not."""

    async def write(self, post: Post, ask: Ask, model: str | None) -> TargetText:
        """The text that a chat request gets."""

    async def end_ids(self, get: Get, post: Post, model: str | None) -> frozenset[int]:
        """Tokens that end a text, as far as the server says."""


# Texts that tokenizers of different families cut differently, and what their special tokens are called.
PROBES = (
    "The quick brown fox, 1234567890 times.",
    "def f(x):\n\treturn [x  **  2]\r\n\n",
    "naïve café, Straße, 漢字かな, Привет 👍🏽",
    "<|im_start|><|im_end|><|endoftext|><|eot_id|><s></s><bos><eos><start_of_turn>[INST]",
)

Ids = list[tuple[int, ...]]


async def probed(adapter: Tokenizing, post: Post, model: str | None) -> Ids:
    return [await adapter.token_ids(post, text, model) for text in PROBES]


def require_same(target: Ids, draft: Ids, name: str, text_of: Callable[[Sequence[int]], str] | None = None) -> None:
    """Raises VocabularyError where the two cut a probe differently; `name` is the draft's. With `text_of`, what the
    target's ids mean, only where they also mean another text: llama.cpp cuts some spaces as no other tokenizer does."""
    cut = [(own, other) for own, other in zip(target, draft, strict=True) if own != other]
    others = sum(text_of is None or text_of(own) != text_of(other) for own, other in cut)
    if others:
        raise VocabularyError(
            f"Target and draft do not share their token ids: {others} of {len(PROBES)} texts differ",
            where=name,
            hint="Serve a draft with the target's tokenizer.",
        )
