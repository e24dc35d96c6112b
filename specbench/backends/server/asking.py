"""Asking a server in the fields that it takes, again where that fails, and ending the run when too much does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from specbench.backends.base import Noticed
from specbench.backends.server.adapter import LIMITS, AnswerError, Ask, Chunk, FailedError, RefusedError, State
from specbench.backends.server.client import Client
from specbench.backends.server.provider import ServerHandle
from specbench.errors import EngineError
from specbench.records import Message, Sampling

_USUAL, _NEWER = LIMITS


class Asking:
    """What servers were found to take, by address and model; kept for a session, and learnt from a refusal."""

    def __init__(self) -> None:
        self._limit: dict[tuple[str, str | None], str] = {}

    def limit_field(self, up: ServerHandle) -> str | None:
        """What the server takes in the place of max_tokens; None where it takes that."""
        return _NEWER if self._limit.get((up.url, up.model)) == _NEWER else None

    def body(self, up: ServerHandle, ask: Ask) -> dict[str, Any]:
        body = up.adapter.body(ask, up.model)
        return {_NEWER if key == _USUAL and self.limit_field(up) else key: value for key, value in body.items()}

    async def send(self, client: Client, up: ServerHandle, ask: Ask) -> list[Chunk]:
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

    async def look(self, client: Client, up: ServerHandle) -> State:
        """What the server says of itself. Raises EngineError where its pages are another engine's."""
        try:
            found = await up.adapter.state(client.get)
        except ValueError as error:
            why = f": {error}" if isinstance(error, AnswerError) else ""
            raise EngineError(
                f"The server's pages are not those of {up.adapter.name}{why}",
                where=up.url,
                hint="Name the engine that runs there with --engine.",
            ) from None
        return replace(found, model=up.model or found.model, limit_field=self.limit_field(up))

    async def unread(self, client: Client, up: ServerHandle, asks: Sequence[Ask]) -> set[str]:
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

    async def _prompt_tokens(self, client: Client, up: ServerHandle, ask: Ask) -> int | None:
        try:
            return up.adapter.read(await self.send(client, up, replace(ask, max_tokens=1))).prompt_tokens
        except (FailedError, RefusedError, ValueError):
            return None

    async def require_any(self, client: Client, up: ServerHandle, sampling: Sampling) -> None:
        """Raises EngineError where it was not the prompt that was refused, but whatever we ask."""
        try:
            await self.send(client, up, Ask((Message("user", "Hello."),), 8, sampling, 1))
        except FailedError:
            return
        except RefusedError as refused:
            field = refused.problem.field if refused.problem else None
            hint = "See the server's log; --served-model-name and --engine say what is asked for, and how."
            if field is not None:
                fewer = "" if up.adapter.name == "openai" else ", or use --engine openai, which sends the fewest fields"
                hint = f"Leave out the setting behind `{field}`{fewer}."
            raise EngineError(f"The server refuses every request: {refused}", where=up.url, hint=hint) from None


# A request is sent so often before it counts as failed, and so many failures in a row end the run.
TRIES = 3
GIVE_UP = 3
PAUSE_S = 0.5

T = TypeVar("T")


class RetryPolicy:
    """Adds to what is `noticed` the requests that failed for good, each with what it was and how it failed, and those
    that were refused."""

    def __init__(self, noticed: Noticed) -> None:
        self._noticed = noticed
        self._in_a_row: defaultdict[str, int] = defaultdict(int)  # by address

    async def insist(
        self, attempt: Callable[[], Awaitable[T]], up: ServerHandle, *, prompt: str, arm: str, who: str | None = None
    ) -> tuple[T, int] | None:
        """What `attempt` gives, and after how many failures; None where it keeps failing, or `who` is asked refuses
        (None: RefusedError passes). An answer that the engine cannot mean (ValueError) is a failure too. Raises
        EngineError after too many in a row."""
        kind, look = "", "See the server's log"
        for tries in range(TRIES):
            try:
                found = await attempt()
            except RefusedError as refused:
                if who is None:
                    raise
                self._noticed.refused[prompt] = refused.said(who)
                return None
            except FailedError as failed:
                kind = failed.kind
            except AnswerError as odd:
                kind = f"not as {up.adapter.name} answers: {odd}"
                look = "Mend that, or name the engine that runs there with --engine"
            except ValueError:
                kind = f"not as {up.adapter.name} answers"
            else:
                self._in_a_row[up.url] = 0
                return found, tries
            await asyncio.sleep(PAUSE_S * 2**tries)
        self._in_a_row[up.url] += 1
        self._noticed.failures.append({"prompt": prompt, "arm": arm, "kind": kind})
        if self._in_a_row[up.url] >= GIVE_UP:
            raise EngineError(
                f"{GIVE_UP} requests in a row failed, each {TRIES} times; the last: {kind}",
                where=up.url,
                hint=f"{look}; the same command then continues where it stopped.",
            )
        return None
