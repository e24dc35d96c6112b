"""What a server says against what the client saw: its counters, its clock, where each number comes from, and what to
know before trusting it: whether it did what it was asked, and whether it counts as we do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from specbench.analysis.cautions import warning
from specbench.analysis.contract import ClockCheck, CounterCheck, NumberCheck, Server, TurnCheck
from specbench.analysis.frame import counted, loads_of, main_trials
from specbench.records import Arm, Counters, Finding, Load, Trial, Turn, Window
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
        turns=check_turns(main_trials(stored)),
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


def check_turns(trials: Iterable[Trial]) -> tuple[TurnCheck, ...]:
    """Turn by turn in every arm; nothing where no conversation was asked."""
    asked: dict[tuple[str, int], list[Turn]] = {}
    for trial in trials:
        for number, turn in enumerate(trial.turns, 1):
            asked.setdefault((trial.arm.label, number), []).append(turn)
    found = []
    for (arm, number), turns in asked.items():
        cached = [turn.cached_tokens for turn in turns]
        after = sum(turn.output_tokens - 1 for turn in turns)
        found.append(
            TurnCheck(
                arm,
                number,
                len(turns),
                sum(turn.prompt_tokens for turn in turns),
                None if None in cached else sum(tokens or 0 for tokens in cached),
                median(turn.first_s for turn in turns),
                sum(turn.last_s - turn.first_s for turn in turns) / after if after else None,
            )
        )
    return tuple(found)


# Of two arms that read the same prompts, the shares that came from the cache may differ by so much.
CACHE_SHARE = 0.02

# A server may keep the tokens of a chat template, which are the same in every prompt.
TEMPLATE_TOKENS = 32

# Clocks on both sides of a connection differ by the way there and back, and a text's end.
CLOCK_SHARE = 0.10


# A first token that waited for us longer than this share of its time tells of the client. With it the error of a time
# to first token is as large (benchmarks/client.py); that of the time per token, a difference, is far smaller.
LAG_SHARE = 0.05


def server_cautions(server: Server, trials: Sequence[Trial], stretches: Sequence[Window] = ()) -> list[Finding]:
    """Everything that the server's own word gives away, and what our own clock does. `trials` are the counted ones, at
    every load."""
    found = [
        _late(trials, stretches),
        _counters(server.counters),
        _clock(server.clocks),
        _unequal_cache(server.turns) if server.turns else _prefix_cache(trials),
        _gamma(server, trials),
        _not_speculating(server, trials),
        _baseline(server, trials),
    ]
    return [caution for caution in found if caution is not None]


def _counters(found: CounterCheck | None) -> Finding | None:
    if found is None or found.agreeing == found.compared:
        return None
    off = [number for number in found.numbers if number.ours != number.theirs]
    return warning(
        "counters-disagree",
        "Somebody else may have sent requests, or the server restarted: make sure that it serves nobody else, and run "
        "again with --fresh. If the numbers still differ, do not trust the counts.",
        disagreeing=found.compared - found.agreeing,
        compared=found.compared,
        numbers=[{"name": NUMBERS[number.name], "ours": number.ours, "theirs": number.theirs} for number in off],
    )


def _clock(clocks: Iterable[ClockCheck]) -> Finding | None:
    off = [clock for clock in clocks if abs(clock.server_less) > CLOCK_SHARE]
    if not off:
        return None
    return warning(
        "clock-disagrees",
        "The connection or a busy client may take part of the time: run specbench on the server's machine.",
        arms=[{"arm": clock.arm, "server_less": clock.server_less} for clock in off],
    )


def _late(trials: Sequence[Trial], stretches: Iterable[Window]) -> Finding | None:
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
    hint = "This machine is too busy: run specbench where cores are idle, or measure fewer requests at once."
    return warning("client-late", hint, load=load.label, late_s=late_s, share=share)


def hit_rates(turns: Iterable[TurnCheck]) -> dict[str, float | None]:
    """The share of its prompts' tokens that each arm had from the cache, None where the server does not tell."""
    by_arm: dict[str, list[TurnCheck]] = {}
    for turn in turns:
        by_arm.setdefault(turn.arm, []).append(turn)
    found: dict[str, float | None] = {}
    for arm, own in by_arm.items():
        cached, prompts = [turn.cached_tokens for turn in own], sum(turn.prompt_tokens for turn in own)
        found[arm] = None if None in cached or not prompts else sum(one or 0 for one in cached) / prompts
    return found


def _unequal_cache(turns: Sequence[TurnCheck]) -> Finding | None:
    rates = hit_rates(turns)
    alone = rates.get(Arm("baseline").label)
    untold = [arm for arm, rate in rates.items() if rate is None]
    if untold or alone is None:
        hint = "See that they do (vLLM: --enable-prompt-tokens-details, SGLang: --enable-cache-report)."
        return warning("cache-untold", hint, arms=untold)
    if not any(rates.values()):
        hint = "Start the server with its prefix cache (vLLM: --enable-prefix-caching)."
        return warning("cache-cold", hint)
    off = {arm: rate for arm, rate in rates.items() if rate is not None and abs(rate - alone) > CACHE_SHARE}
    if not off:
        return None
    hint = "Give the servers caches of one size and let nobody else use them, then run again with --fresh."
    return warning("cache-unequal", hint, alone=alone, arms=[{"arm": arm, "share": rate} for arm, rate in off.items()])


def _prefix_cache(trials: Iterable[Trial]) -> Finding | None:
    told = [(t.told.cached_tokens, t.prompt_tokens) for t in trials if t.told and t.told.cached_tokens is not None]
    beyond = sum(max(0, cached - TEMPLATE_TOKENS) for cached, _ in told)
    if not beyond:
        return None
    cached, prompts = sum(cached for cached, _ in told), sum(tokens or 0 for _, tokens in told)
    hint = "Start the server without its prefix cache."
    return warning("prefix-cache", hint, cached=cached, prompt_tokens=prompts if prompts >= cached else None)


def _gamma(server: Server, trials: Sequence[Trial]) -> Finding | None:
    wrong = []
    for arm, own in _by_arm(trials).items():
        gamma = arm.gamma or 0
        widest = max((drafted for trial in own for drafted in trial.drafted), default=0)
        # Totals alone show too many drafts, never too few.
        over = any(t.told and t.told.rounds and (t.told.drafted or 0) > t.told.rounds * gamma for t in own)
        started = server.settings.get(f"{arm.draft} gamma {gamma}", State()).gamma
        if widest and widest != gamma:
            wrong.append({"arm": arm.label, "widest": widest, "more": widest > gamma})
        elif not widest and over:
            wrong.append({"arm": arm.label, "totals": True})
        elif not widest and started is not None and started != gamma:
            wrong.append({"arm": arm.label, "started": started})
    if not wrong:
        return None
    hint = "See the server's settings; what a row says of its gamma is not about that gamma."
    return warning("gamma-not-honoured", hint, arms=wrong, by="the server")


def _not_speculating(server: Server, trials: Sequence[Trial]) -> Finding | None:
    idle = []
    for arm, own in _by_arm(trials).items():
        drafted = [total_drafted(trial) for trial in own if trial.decode_tokens]
        denies = server.settings.get(f"{arm.draft} gamma {arm.gamma}", State()).speculating is False
        if (drafted and all(tokens == 0 for tokens in drafted)) or (denies and not any(drafted)):
            idle.append(arm.label)
    if not idle:
        return None
    hint = "Check how the server was started; its log says whether it loaded the draft."
    return warning("not-speculating", hint, arms=idle)


def _baseline(server: Server, trials: Sequence[Trial]) -> Finding | None:
    drafted = sum(t.told.drafted or 0 for t in trials if t.arm.kind != "speculative" and t.told)
    if not drafted and server.settings.get("baseline", State()).speculating is not True:
        return None
    return warning("baseline-speculates", "Start the server for the baseline without a draft.", drafted=drafted or None)


def _by_arm(trials: Sequence[Trial]) -> dict[Arm, list[Trial]]:
    found: dict[Arm, list[Trial]] = {}
    for trial in trials:
        if trial.arm.kind == "speculative":
            found.setdefault(trial.arm, []).append(trial)
    return found
