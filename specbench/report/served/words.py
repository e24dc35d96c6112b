"""A server against what we saw of it, as sentences and rows for the brief."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from specbench import text
from specbench.analysis.served.contract import ClockCheck, CounterCheck, Server
from specbench.analysis.served.server import NUMBERS
from specbench.run_record import State

# An arm whose clocks differ by so much more than those of all arms together is named.
_APART = 0.005


@dataclass(frozen=True, slots=True)
class ServerWords:
    """Ready for the template: the server's counters and clock beside ours, where each number comes from, and what the
    server said of itself in each arm."""

    counters: str
    clock: str
    sources: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]


def server_words(server: Server) -> ServerWords:
    """Everything about the server that the numbers themselves do not say."""
    return ServerWords(
        counters=_counters(server.counters),
        clock=_clock(server.clocks),
        sources=tuple((text.code(name), text.code(field)) for name, field in server.sources.items()),
        settings=tuple((text.escape(arm), _settings(values)) for arm, values in server.settings.items()),
    )


def _counters(found: CounterCheck | None) -> str:
    if found is None or not found.compared:
        return "Not compared: the server has no counters for what we sent, or counted more than we did."
    rest = f" {found.not_comparable:,} more could not be compared." if found.not_comparable else ""
    where = f"in {found.agreeing:,} of {found.compared:,} stretches of requests"
    if found.agreeing == found.compared:
        listed = ", ".join(f"{NUMBERS[number.name]} {number.theirs:,}" for number in found.numbers)
        return f"The server's own counters agree: {listed} {where}.{rest}"
    listed = "; ".join(
        f"{NUMBERS[number.name]} {number.theirs:,} by its counters, {number.ours:,} by our sums"
        for number in found.numbers
    )
    return f"**The server's own counters disagree**: they agree {where} only. {listed[:1].upper()}{listed[1:]}.{rest}"


def _clock(clocks: tuple[ClockCheck, ...]) -> str:
    if not clocks:
        return "All times are measured from outside; the server tells none of its own."
    client_s, server_s = sum(clock.client_s for clock in clocks), sum(clock.server_s for clock in clocks)
    share = 1 - server_s / client_s
    much = f"{abs(share):.1%} {'less' if share >= 0 else 'more'}"
    worst = max(clocks, key=lambda clock: abs(clock.server_less))
    most = ""
    if abs(worst.server_less) > abs(share) + _APART:
        less = "less" if worst.server_less >= 0 else "more"
        most = f", at most {abs(worst.server_less):.1%} {less} in one arm ({text.escape(worst.arm)})"
    return f"Measured from outside; of decoding the server's own clock says {much}{most}."


def _settings(state: State) -> str:
    values = asdict(state)
    return ", ".join(f"{text.escape(key)} {text.escape(value)}" for key, value in values.items() if value is not None)
