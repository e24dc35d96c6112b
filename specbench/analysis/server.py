"""What a server says against what the client saw: its counters, its clock, where each number comes from, and what to
know before trusting it: whether it did what it was asked, and whether it counts as we do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from specbench import text
from specbench.analysis.contract import ClockCheck, CounterCheck, NumberCheck, Server
from specbench.analysis.frame import counted, loads_of
from specbench.records import Arm, Caution, Counters, Load, Trial, Window
from specbench.run_record import ServedBy, State
from specbench.store import StoredRun

NUMBERS = {"tokens": "output tokens", "rounds": "rounds", "drafted": "drafted", "accepted": "accepted"}


def server_of(stored: StoredRun) -> Server | None:
    """The server as far as it is known; None for a run in process."""
    if not stored.run.on_server:
        return None
    told = stored.run.served or ServedBy()
    return Server(
        adapter=told.adapter or stored.run.config.engine,
        launch=told.launch,
        load=loads_of(stored)[0].label,
        counters=check_counters(stored),
        clocks=check_clocks(counted(stored.trials)),
        sources=told.sources,
        settings=told.settings,
    )


def check_counters(stored: StoredRun) -> CounterCheck | None:
    """Our sums against the server's, over the stretches in which it counted nothing but what we did. None without a
    stretch."""
    if not stored.stretches:
        return None
    sent: dict[int, list[Trial]] = {}
    for trial in stored.trials:
        if trial.stretch is not None:
            sent.setdefault(trial.stretch, []).append(trial)
    totals: dict[str, list[tuple[int, int]]] = {name: [] for name in NUMBERS}
    compared = agreeing = 0
    for stretch in stored.stretches:
        pairs = _pairs(stretch, sent.get(stretch.number, []))
        if not pairs:
            continue
        compared += 1
        agreeing += all(ours == theirs for ours, theirs in pairs.values())
        for name, pair in pairs.items():
            totals[name].append(pair)
    numbers = [
        NumberCheck(name, sum(ours for ours, _ in pairs), sum(theirs for _, theirs in pairs), len(pairs))
        for name, pairs in totals.items()
        if pairs
    ]
    return CounterCheck(compared, agreeing, len(stored.stretches) - compared, tuple(numbers))


def _pairs(stretch: Window, trials: Sequence[Trial]) -> dict[str, tuple[int, int]]:
    """(ours, the server's) by number, for those that both know; empty where nothing can be compared."""
    if not stretch.alone or stretch.counters is None:
        return {}
    ours = _ours(stretch, trials)
    both = ((name, getattr(ours, name), getattr(stretch.counters, name)) for name in NUMBERS)
    # That neither drafted with the target alone is no agreement; that only the server did is worth knowing.
    return {name: (own, told) for name, own, told in both if own is not None and told is not None and (own or told)}


def _ours(stretch: Window, trials: Sequence[Trial]) -> Counters:
    """As the server counts: rounds are those that drafted. The target alone drafts nothing."""
    tokens = sum(trial.output_tokens for trial in trials)
    if stretch.arm.kind != "speculative":
        return Counters(tokens, 0, 0, 0)
    return Counters(
        tokens=tokens,
        rounds=_sum(_rounds(trial) for trial in trials),
        drafted=_sum(total_drafted(trial) for trial in trials),
        accepted=_sum(_accepted(trial) for trial in trials),
    )


def total_drafted(trial: Trial) -> int | None:
    """Tokens drafted in a trial, listed or told."""
    if trial.drafted:
        return sum(trial.drafted)
    return 0 if not trial.decode_tokens else trial.told.drafted if trial.told else None


def _accepted(trial: Trial) -> int | None:
    if trial.drafted:
        return sum(trial.accepted)
    return 0 if not trial.decode_tokens else trial.told.accepted if trial.told else None


def _rounds(trial: Trial) -> int | None:
    """Rounds that drafted at least one token. Totals alone tell them from steps without a draft only where there was
    no such step."""
    if trial.drafted:
        return sum(drafted > 0 for drafted in trial.drafted)
    drafted, rounds = total_drafted(trial), trial.told.rounds if trial.told else None
    if rounds is not None and drafted == rounds * (trial.arm.gamma or 0):
        return rounds
    return 0 if drafted == 0 else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def check_clocks(trials: Iterable[Trial]) -> tuple[ClockCheck, ...]:
    """Decoding by the client's clock and by the server's, arm by arm, over the requests of which it tells."""
    spent: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        if trial.told is not None and trial.told.decode_s is not None:
            spent.setdefault(trial.arm.label, []).append((trial.times.decode_s, trial.told.decode_s))
    found = []
    for arm, pairs in spent.items():
        client_s, server_s = (sum(column) for column in zip(*pairs, strict=True))
        if client_s > 0:
            found.append(ClockCheck(arm, len(pairs), client_s, server_s, 1 - server_s / client_s))
    return tuple(found)


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
