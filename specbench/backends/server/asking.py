"""Asking a server in the fields that it takes: some want max_completion_tokens in the place of max_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specbench.backends.server.adapter import Ask, Chunk, State
from specbench.backends.server.client import Client
from specbench.backends.server.failures import LIMITS, AnswerError, FailedError, RefusedError
from specbench.backends.server.provider import Up
from specbench.errors import EngineError
from specbench.records import Message, Sampling

_USUAL, _NEWER = LIMITS


class Asking:
    """What servers were found to take, by address and model; kept for a session, and learnt from a refusal."""

    def __init__(self) -> None:
        self._limit: dict[tuple[str, str | None], str] = {}

    def limit_field(self, up: Up) -> str | None:
        """What the server takes in the place of max_tokens; None where it takes that."""
        return _NEWER if self._limit.get((up.url, up.model)) == _NEWER else None

    def body(self, up: Up, ask: Ask) -> dict[str, Any]:
        """The JSON of a streamed request."""
        body = up.adapter.body(ask, up.model)
        return {_NEWER if key == _USUAL and self.limit_field(up) else key: value for key, value in body.items()}

    async def send(self, client: Client, up: Up, ask: Ask) -> list[Chunk]:
        """The answer's events. Raises as `Client.send` does; FailedError where the next try is in another field."""
        body = self.body(up, ask)
        try:
            return await client.send(up.adapter.path, body)
        except RefusedError as refused:
            if refused.problem is None or not refused.problem.about_limit:
                raise
            known = self._limit.get((up.url, up.model))
            # A server that refuses both is asked in the usual one from then on.
            if _NEWER in body:
                self._limit[up.url, up.model] = _USUAL
            elif known != _USUAL:
                self._limit[up.url, up.model] = _NEWER
                raise FailedError(str(refused)) from None
            raise

    async def look(self, client: Client, up: Up) -> State:
        """What the server says of itself. Raises EngineError where its pages are another engine's."""
        try:
            found = await up.adapter.state(client.get)
        except ValueError as error:
            why = f": {error}" if isinstance(error, AnswerError) else ""
            raise EngineError(
                f"The server's pages are not those of {up.adapter.name}{why}",
                where=up.url,
                cure="Name the engine that runs there with --engine.",
            ) from None
        return replace(found, model=up.model or found.model, limit_field=self.limit_field(up))

    async def unread(self, client: Client, up: Up, asks: Sequence[Ask]) -> set[str]:
        """Which of `tools` and `chat_template_kwargs` leave the first prompt that has them as long as it is without
        them: the server drops them, or the chat template writes nothing for them."""
        found = set()
        bare = {
            "tools": [(ask, replace(ask, tools=())) for ask in asks if ask.tools],
            "chat_template_kwargs": [(ask, replace(ask, template_kwargs={})) for ask in asks if ask.template_kwargs],
        }
        for name, pairs in bare.items():
            for ask, other in pairs[:1]:
                lengths = [await self._prompt_tokens(client, up, each) for each in (ask, other)]
                if None not in lengths and lengths[0] == lengths[1]:
                    found.add(name)
        return found

    async def _prompt_tokens(self, client: Client, up: Up, ask: Ask) -> int | None:
        try:
            return up.adapter.read(await self.send(client, up, replace(ask, max_tokens=1))).prompt_tokens
        except (FailedError, RefusedError, ValueError):
            return None

    async def require_any(self, client: Client, up: Up, sampling: Sampling) -> None:
        """Raises EngineError where it was not the prompt that was refused, but whatever we ask."""
        try:
            await self.send(client, up, Ask((Message("user", "Hello."),), 8, sampling, 1))
        except FailedError:
            return
        except RefusedError as refused:
            field = refused.problem.field if refused.problem else None
            cure = "See the server's log; --served-model-name and --engine say what is asked for, and how."
            if field is not None:
                fewer = "" if up.adapter.name == "openai" else ", or use --engine openai, which sends the fewest fields"
                cure = f"Leave out the setting behind `{field}`{fewer}."
            raise EngineError(f"The server refuses every request: {refused}", where=up.url, cure=cure) from None
