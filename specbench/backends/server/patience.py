"""Sending again what fails, and ending the run when too much does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from specbench.backends.server.failures import AnswerError, FailedError
from specbench.backends.server.provider import Up
from specbench.errors import EngineError

# A request is sent so often before it counts as failed, and so many failures in a row end the run.
TRIES = 3
GIVE_UP = 3
PAUSE_S = 0.5

T = TypeVar("T")


class Patience:
    """Adds to `failures` the requests that failed for good, each with what it was and how it failed."""

    def __init__(self, failures: list[dict[str, str]]) -> None:
        self._failures = failures
        self._in_a_row: defaultdict[str, int] = defaultdict(int)  # by address

    async def insist(
        self, attempt: Callable[[], Awaitable[T]], up: Up, *, prompt: str, arm: str
    ) -> tuple[T, int] | None:
        """What `attempt` gives, and after how many failures; None where it keeps failing. An answer that the engine
        cannot mean (ValueError) is a failure too. Raises EngineError after too many in a row; RefusedError passes."""
        kind, look = "", "See the server's log"
        for tries in range(TRIES):
            try:
                found = await attempt()
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
        self._failures.append({"prompt": prompt, "arm": arm, "kind": kind})
        if self._in_a_row[up.url] >= GIVE_UP:
            raise EngineError(
                f"{GIVE_UP} requests in a row failed, each {TRIES} times; the last: {kind}",
                where=up.url,
                cure=f"{look}; the same command then continues where it stopped.",
            )
        return None
