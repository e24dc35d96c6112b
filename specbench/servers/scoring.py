"""Asking a server what it would have chosen at every place of a given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from specbench.servers.fields import Json


@dataclass(frozen=True, slots=True)
class Top:
    """One place of a text: the `token` that stands there, and the token `top` that the model finds likeliest after all
    before it, with its log-probability in nats. They are equal where greedy decoding would have gone on so."""

    token: int
    top: int
    top_logprob: float


@runtime_checkable
class Scorer(Protocol):
    """An adapter whose engine can do it. One request reads the text once and writes one token."""

    def score_request(self, ids: Sequence[int], model: str | None = None) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of the request for a text of token ids; the answer is not streamed."""

    def read_scores(self, payload: Json, ids: Sequence[int]) -> list[Top]:
        """The places of `ids` from the second on: entry i is about ids[i + 1], for nothing comes before the first.
        Raises ValueError for an answer that is not about these ids."""


def require_places(places: Sequence[object], ids: Sequence[int]) -> None:
    """Raises ValueError where an engine scored another number of places than the text has tokens."""
    if len(places) != len(ids):
        raise ValueError(f"the server scored {len(places)} places of a text of {len(ids)} tokens")
