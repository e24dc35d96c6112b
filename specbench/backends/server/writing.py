"""Asking a server for a text as token ids: what it read, and what it wrote."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, runtime_checkable

from specbench.backends.base import TargetText
from specbench.backends.server.adapter import Ask, Get
from specbench.backends.server.answers import Json

# POST a JSON body to a path: the JSON of the answer.
Post = Callable[[str, dict[str, Any]], Awaitable[Json]]


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
