"""Asking a server in the fields that it takes, again where that fails, and ending the run when too much does; and
conversations, asked turn by turn.

With `--sessions` each begins anew: what requests before it left in a server's prefix cache, those of another arm among
them, is not for it. The prompt of a turn has the recorded answers of the turns before, and not what the server wrote:
every arm reads the same prompts, whatever it writes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from secrets import token_hex
from typing import Any, TypeVar

from specbench.backends.base import Answer, Job, Noticed, trial_of
from specbench.backends.server.adapter import (
    LIMITS,
    AnswerError,
    Ask,
    Cache,
    Chunk,
    Completion,
    FailedError,
    RefusedError,
    State,
)
from specbench.backends.server.client import Client
from specbench.backends.server.provider import ServerHandle
from specbench.config import RunConfig
from specbench.errors import EngineError
from specbench.records import Arm, Message, Sampling, ServerStats, Turn

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


_TOTALS = ("prefill_s", "decode_s", "queue_s", "rounds", "drafted", "accepted", "cached_tokens")


class Slots:
    """Sequences of llama.cpp's server, one for each client: a conversation stays in its own, where its first turn
    overwrote what was there."""

    def __init__(self, clients: int) -> None:
        self._free = list(range(clients))

    @contextmanager
    def one(self) -> Iterator[int | None]:
        """None where more clients ask than were counted, as at random times."""
        slot = self._free.pop(0) if self._free else None
        try:
            yield slot
        finally:
            if slot is not None:
                self._free.insert(0, slot)


def caches(turns: int, slot: int | None) -> list[Cache]:
    """Of a conversation that begins now."""
    name = token_hex(8)
    return [Cache(name, turn, slot) for turn in range(turns)]


def as_turns(readings: Iterable[Completion]) -> tuple[Turn, ...]:
    return tuple(
        Turn(one.prompt_tokens or 0, one.told.cached_tokens, one.output_tokens, one.first_s, one.last_s)
        for one in readings
    )


def joined(readings: Sequence[Completion]) -> Completion:
    """The answers of a conversation as one: tokens, rounds and times are sums, but for the prompt's tokens, of which it
    is the mean; what one of them does not tell is not known."""
    if len(readings) == 1:
        return readings[0]
    prompts = [one.prompt_tokens for one in readings]
    return Completion(
        text="\0".join(one.text for one in readings),
        finish="eos" if all(one.finish == "eos" for one in readings) else "length",
        prompt_tokens=None if None in prompts else sum(prompt or 0 for prompt in prompts) // len(prompts),
        output_tokens=sum(one.output_tokens for one in readings),
        first_s=sum(one.first_s for one in readings),
        last_s=sum(one.last_s for one in readings),
        drafted=tuple(drafted for one in readings for drafted in one.drafted),
        accepted=tuple(accepted for one in readings for accepted in one.accepted),
        told=_told([one.told for one in readings]),
        pieces=sum(one.pieces for one in readings),
    )


def _told(told: Sequence[ServerStats]) -> ServerStats:
    values = {name: [getattr(one, name) for one in told] for name in _TOTALS}
    survived = [one.survived for one in told if one.survived is not None]
    longest = max(map(len, survived), default=0)
    filled = [(*one, *[0] * (longest - len(one))) for one in survived]
    return ServerStats(
        **{name: None if None in found else sum(found) for name, found in values.items()},
        survived=tuple(map(sum, zip(*filled, strict=True))) if len(survived) == len(told) else None,
    )


def answered(
    job: Job, arm: Arm, readings: Sequence[Completion], config: RunConfig, *, waited_s: float = 0.0, **more: Any
) -> Answer:
    """`waited_s` passed between when it was due and when it was sent; `more` is of its trial."""
    reading, texts = joined(readings), tuple(one.text for one in readings)
    trial = trial_of(
        job,
        arm,
        **reading.as_trial(waited_s),
        output_sha256=hashlib.sha256(reading.text.encode()).hexdigest(),
        output_text="\n\n".join(texts) if config.keep_text else None,
        turns=as_turns(readings) if config.sessions else (),
        **more,
    )
    return Answer(job, texts, trial)
