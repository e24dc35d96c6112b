"""What every engine's adapter does: a request to its body, a stream of answers to our records, pages to a state.

An adapter maps fields and nothing else; it opens no connection. What an engine does not tell is None.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from specbench.config import RunConfig
from specbench.records import Counters, Finish, Message, Prompt, Sampling, ServerStats
from specbench.run_record import State as State


@dataclass(frozen=True, slots=True)
class Cache:
    """Which of the prompts before it a request may be answered from: those with its `name`, of which it is number
    `turn`, from 0. In the server's sequence number `slot`, where it is to stay in one (None: where it likes)."""

    name: str
    turn: int
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `seed` draws the samples; `tools`, `template_kwargs` and `request` are as a Prompt has them. With
    `cache` it is a turn of a conversation; without, nothing is to be taken from earlier requests."""

    messages: tuple[Message, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    cache: Cache | None = None


def ask_of(prompt: Prompt, config: RunConfig, seed: int) -> Ask:
    """The request of a prompt: what it gives the chat template goes over what the run gives all."""
    return Ask(
        prompt.messages,
        config.max_new_tokens,
        config.sampling,
        seed,
        prompt.tools,
        {**(config.chat_template_kwargs or {}), **prompt.template_kwargs},
        prompt.request,
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a streamed answer, and its arrival in seconds after the request was sent."""

    at_s: float
    data: Mapping[str, Any]


# A draft may be accepted whole, and a short answer come at once: so many tokens do not.
PIECE = 8


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer. `first_s` and `last_s` are the arrivals of the first and of the last token; `output_tokens`
    counts as the engine does, with the end of sequence; `pieces` are the events that had a text. `drafted[i]`,
    `accepted[i]` belong to round i; both are empty where the engine lists no rounds."""

    text: str
    finish: Finish
    prompt_tokens: int | None
    output_tokens: int
    first_s: float
    last_s: float
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    told: ServerStats
    pieces: int

    @property
    def in_one_piece(self) -> bool:
        """Whether nobody can know when its tokens were written, as from a gateway that does not stream."""
        return self.output_tokens >= PIECE and self.pieces == 1

    @property
    def at_once(self) -> bool:
        """Whether all of it was read at once: it is so short, or we were so late."""
        return self.output_tokens > 1 and self.last_s <= self.first_s


# GET a path: the page as text, or None where the server does not have it.
Get = Callable[[str], Awaitable[str | None]]


class Adapter(Protocol):
    """One engine. `name` is how it is called in reports; `path` takes the requests, `metrics` is its page of counters
    (None: it has none). `sources` says from which field each number comes, by the names of our records."""

    name: str
    path: str
    metrics: str | None
    sources: Mapping[str, str]

    def body(self, ask: Ask, model: str | None) -> dict[str, Any]:
        """The JSON of a streamed request. `model` is the name under which the server knows its model."""

    def read(self, chunks: Sequence[Chunk]) -> Completion:
        """A streamed answer, whole. Raises ValueError for one that is not as this engine answers."""

    def counters(self, page: str) -> Counters:
        """The running counters of the metrics page."""

    async def state(self, get: Get) -> State:
        """What the server says of itself."""
