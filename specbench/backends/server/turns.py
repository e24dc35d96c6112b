"""Conversations asked turn by turn (`--sessions`), each from its own beginning: what requests before it left in a
server's prefix cache, those of another arm among them, is not for it.

The prompt of a turn has the recorded answers of the turns before, and not what the server wrote: every arm reads the
same prompts, whatever it writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

from specbench.backends.base import Answer, Job, trial_of
from specbench.backends.server.adapter import Cache, Completion
from specbench.config import RunConfig
from specbench.records import Arm, ServerStats, Turn

# Between the texts of turns while they are compared; no server writes it.
BREAK = "\0"

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
        text=BREAK.join(one.text for one in readings),
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
    reading = joined(readings)
    trial = trial_of(
        job,
        arm,
        **reading.as_trial(waited_s),
        output_sha256=hashlib.sha256(reading.text.encode()).hexdigest(),
        output_text=reading.text.replace(BREAK, "\n\n") if config.keep_text else None,
        turns=as_turns(readings) if config.sessions else (),
        **more,
    )
    return Answer(job, reading.text, trial)
