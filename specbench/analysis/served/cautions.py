"""What the reader of a server's run should know before trusting it: whether it did what it was asked, and whether it
counts as we do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from specbench import text
from specbench.analysis.served.contract import ClockCheck, CounterCheck, Server
from specbench.analysis.served.server import NUMBERS, total_drafted
from specbench.records import Arm, Caution, Load, Trial, Window
from specbench.run_record import State

# A server may keep the tokens of a chat template, which are the same in every prompt.
TEMPLATE_TOKENS = 32

# Clocks on both sides of a connection differ by the way there and back, and a text's end.
CLOCK_SHARE = 0.10


# A first token that waited for us longer than this share of its time tells of the client. With it the error of a time
# to first token is as large (benchmarks/client.py); that of the time per token, a difference, is far smaller.
LAG_SHARE = 0.05


def server_cautions(server: Server, trials: Sequence[Trial], stretches: Sequence[Window] = ()) -> list[Caution]:
    """Everything that the server's own word gives away, and what our own clock does. `trials` are the counted ones, at
    every load."""
    found = [
        _late(trials, stretches),
        _counters(server.counters),
        _clock(server.clocks),
        _prefix_cache(trials),
        _gamma(server, trials),
        _not_speculating(server, trials),
        _baseline(server, trials),
    ]
    return [caution for caution in found if caution is not None]


def _counters(found: CounterCheck | None) -> Caution | None:
    if found is None or found.agreeing == found.compared:
        return None
    off = [number for number in found.numbers if number.ours != number.theirs]
    what = text.join(
        f"{NUMBERS[number.name]} {number.theirs:,} by its counters and {number.ours:,} by our sums "
        f"({number.theirs - number.ours:+,})"
        for number in off
    )
    return Caution(
        "counters-disagree",
        f"the server counts otherwise than we do in {found.compared - found.agreeing} of {found.compared} stretches"
        + (f": {what}" if what else ", though the differences cancel out"),
        "Somebody else may have sent requests, or the server restarted: make sure that it serves nobody else, and run "
        "again with --fresh. If the numbers still differ, do not trust the counts.",
    )


def _clock(clocks: Iterable[ClockCheck]) -> Caution | None:
    off = [clock for clock in clocks if abs(clock.server_less) > CLOCK_SHARE]
    if not off:
        return None
    listed = text.join(
        f"{abs(clock.server_less):.0%} {'less' if clock.server_less > 0 else 'more'} for {clock.arm}" for clock in off
    )
    return Caution(
        "clock-disagrees",
        f"the server's own clock says of decoding {listed} than the client saw",
        "The connection or a busy client may take part of the time: run specbench on the server's machine.",
    )


def _late(trials: Sequence[Trial], stretches: Iterable[Window]) -> Caution | None:
    """By the load at which our share was largest."""
    late: dict[Load, list[tuple[float, float]]] = {}
    for stretch in stretches:
        if stretch.lag is not None:
            late.setdefault(stretch.arm.load, []).append((stretch.lag.mean_s, stretch.wall_s))
    shares: list[tuple[float, float, Load]] = []
    for load, found in late.items():
        waits = [trial.times.prefill_s for trial in trials if trial.arm.load == load]
        seconds = sum(wall_s for _, wall_s in found)
        if waits and seconds > 0 and (first_s := median(waits)) > 0:
            late_s = sum(mean_s * wall_s for mean_s, wall_s in found) / seconds
            shares.append((late_s / first_s, late_s, load))
    share, late_s, load = max(shares, key=lambda each: each[0], default=(0.0, 0.0, Load()))
    if share <= LAG_SHARE:
        return None
    return Caution(
        "client-late",
        f"at {load.label} answers waited {text.milliseconds(late_s)} on average until specbench read them, "
        f"{text.percent(share)} of the median time to first token: the server looks slower than it is",
        "This machine is too busy: run specbench where cores are idle, or measure fewer requests at once.",
    )


def _prefix_cache(trials: Iterable[Trial]) -> Caution | None:
    told = [(t.told.cached_tokens, t.prompt_tokens) for t in trials if t.told and t.told.cached_tokens is not None]
    beyond = sum(max(0, cached - TEMPLATE_TOKENS) for cached, _ in told)
    if not beyond:
        return None
    cached, prompts = sum(cached for cached, _ in told), sum(tokens or 0 for _, tokens in told)
    of = f" of {prompts:,}" if prompts >= cached else ""
    return Caution(
        "prefix-cache",
        f"{cached:,}{of} prompt tokens were taken from earlier requests and not read again, so times to the first "
        "token and end-to-end speedups are not those of new prompts",
        "Start the server without its prefix cache.",
    )


def _gamma(server: Server, trials: Sequence[Trial]) -> Caution | None:
    wrong = []
    for arm, own in _by_arm(trials).items():
        gamma = arm.gamma or 0
        widest = max((drafted for trial in own for drafted in trial.drafted), default=0)
        # Totals alone show too many drafts, never too few.
        over = any(t.told and t.told.rounds and (t.told.drafted or 0) > t.told.rounds * gamma for t in own)
        started = server.settings.get(f"{arm.draft} gamma {gamma}", State()).gamma
        if widest and widest != gamma:
            wrong.append(
                f"{arm.label}: no round drafted more than {widest}"
                if widest < gamma
                else f"{arm.label}: rounds drafted up to {widest}"
            )
        elif not widest and over:
            wrong.append(f"{arm.label}: more tokens were drafted than its rounds allow")
        elif not widest and started is not None and started != gamma:
            wrong.append(f"{arm.label}: the server was started with {started}")
    if not wrong:
        return None
    return Caution(
        "gamma-not-honoured",
        f"the server did not draft as many tokens as it was asked to ({'; '.join(wrong)})",
        "See the server's settings; what a row says of its gamma is not about that gamma.",
    )


def _not_speculating(server: Server, trials: Sequence[Trial]) -> Caution | None:
    idle = []
    for arm, own in _by_arm(trials).items():
        drafted = [total_drafted(trial) for trial in own if trial.decode_tokens]
        denies = server.settings.get(f"{arm.draft} gamma {arm.gamma}", State()).speculating is False
        if (drafted and all(tokens == 0 for tokens in drafted)) or (denies and not any(drafted)):
            idle.append(arm.label)
    if not idle:
        return None
    return Caution(
        "not-speculating",
        f"the server drafted nothing at all with {text.join(idle)}: the target alone was measured against itself",
        "Check how the server was started; its log says whether it loaded the draft.",
    )


def _baseline(server: Server, trials: Sequence[Trial]) -> Caution | None:
    drafted = sum(t.told.drafted or 0 for t in trials if t.arm.kind != "speculative" and t.told)
    if not drafted and server.settings.get("baseline", State()).speculating is not True:
        return None
    much = f" ({drafted:,} tokens drafted)" if drafted else ""
    return Caution(
        "baseline-speculates",
        f"the target alone speculated as well{much}: no speedup here is against the target alone",
        "Start the server for the baseline without a draft.",
    )


def _by_arm(trials: Sequence[Trial]) -> dict[Arm, list[Trial]]:
    found: dict[Arm, list[Trial]] = {}
    for trial in trials:
        if trial.arm.kind == "speculative":
            found.setdefault(trial.arm, []).append(trial)
    return found
