"""What a server says against what the client saw: its counters, its clock, where each number comes from, and what to
know before trusting it: whether it did what it was asked, and whether it counts as we do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from specbench.analysis.cautions import warning
from specbench.analysis.served import ClockCheck, CounterCheck, NumberCheck, Server, TurnCheck
from specbench.records import Arm, Finding, Load, Trial, Turn, Window
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
        load=stored.loads[0].label,
        counters=check_counters(stored),
        clocks=check_clocks(stored.counted),
        sources=told.sources,
        settings=told.settings,
        turns=check_turns(stored.main),
    )


def check_counters(stored: StoredRun) -> CounterCheck | None:
    """Our sums against the server's, over the stretches in which it counted nothing but what we did. None without a
    stretch."""
    if not stored.stretches:
        return None
    sent: dict[int | None, list[Trial]] = {}
    for trial in stored.trials:
        sent.setdefault(trial.stretch, []).append(trial)
    found = [pairs for stretch in stored.stretches if (pairs := _pairs(stretch, sent.get(stretch.number, [])))]
    agreeing = sum(all(ours == theirs for ours, theirs in pairs.values()) for pairs in found)
    totals = {name: [pairs[name] for pairs in found if name in pairs] for name in NUMBERS}
    numbers = [
        NumberCheck(name, sum(ours for ours, _ in both), sum(theirs for _, theirs in both), len(both))
        for name, both in totals.items()
        if both
    ]
    return CounterCheck(len(found), agreeing, len(stored.stretches) - len(found), tuple(numbers))


def _pairs(stretch: Window, trials: Sequence[Trial]) -> dict[str, tuple[int, int]]:
    """(ours, the server's) by number, for those that both know; empty where nothing can be compared."""
    if not stretch.alone or stretch.counters is None:
        return {}
    speculative = stretch.arm.kind == "speculative"  # the target alone drafts nothing
    ours = {"tokens": sum(trial.output_tokens for trial in trials)}
    for name in ("rounds", "drafted", "accepted"):
        values = [_total(trial, name) if speculative else 0 for trial in trials]
        if None not in values:
            ours[name] = sum(filter(None, values))
    both = ((name, own, getattr(stretch.counters, name)) for name, own in ours.items())
    # That neither drafted with the target alone is no agreement; that only the server did is worth knowing.
    return {name: (own, told) for name, own, told in both if told is not None and (own or told)}


def _total(trial: Trial, name: str) -> int | None:
    """Rounds that drafted at least one token, as the server counts them, or tokens drafted or accepted. Totals alone
    tell such rounds from steps without a draft only where there was no such step."""
    if trial.drafted:
        return sum(tokens > 0 for tokens in trial.drafted) if name == "rounds" else sum(getattr(trial, name))
    told: int | None = getattr(trial.told, name) if trial.told else None
    if name != "rounds":
        return told if trial.decode_tokens else 0
    drafted = _total(trial, "drafted")
    if told is not None and drafted == told * (trial.arm.gamma or 0):
        return told
    return 0 if drafted == 0 else None


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


def server_cautions(server: Server, stored: StoredRun) -> list[Finding]:
    """Everything that the server's own word gives away, and what our own clock does, at every load."""
    trials = stored.counted
    arms: dict[Arm, list[Trial]] = {}
    for trial in trials:
        if trial.arm.kind == "speculative":
            arms.setdefault(trial.arm, []).append(trial)
    alone = Arm("baseline", load=stored.loads[0])
    return [
        *_late(trials, stored.stretches),
        *_disagreeing(server),
        *(_unequal_cache(server.turns, alone) if server.turns else _prefix_cache(trials)),
        *_gamma(server, arms),
        *_not_speculating(server, arms),
        *_baseline(server, trials),
    ]


def _disagreeing(server: Server) -> Iterator[Finding]:
    if (found := server.counters) is not None and found.agreeing != found.compared:
        off = [number for number in found.numbers if number.ours != number.theirs]
        yield warning(
            "counters-disagree",
            "Somebody else may have sent requests, or the server restarted: make sure that it serves nobody else, and "
            "run again with --fresh. If the numbers still differ, do not trust the counts.",
            disagreeing=found.compared - found.agreeing,
            compared=found.compared,
            numbers=[{"name": NUMBERS[number.name], "ours": number.ours, "theirs": number.theirs} for number in off],
        )
    if clocks := [clock for clock in server.clocks if abs(clock.server_less) > CLOCK_SHARE]:
        hint = "The connection or a busy client may take part of the time: run specbench on the server's machine."
        arms = [{"arm": clock.arm, "server_less": clock.server_less} for clock in clocks]
        yield warning("clock-disagrees", hint, arms=arms)


def _late(trials: Sequence[Trial], stretches: Iterable[Window]) -> Iterator[Finding]:
    """By the load at which our share was largest."""
    late: dict[Load, list[tuple[float, float]]] = {}
    for stretch in stretches:
        if stretch.lag is not None:
            late.setdefault(stretch.arm.load, []).append((stretch.lag.mean_s, stretch.wall_s))
    shares: list[tuple[float, float, Load]] = []
    for load, found in late.items():
        waits = [first_s for trial in trials if trial.arm.load == load for first_s in trial.first_s]
        seconds = sum(wall_s for _, wall_s in found)
        if waits and seconds > 0 and (first_s := median(waits)) > 0:
            late_s = sum(mean_s * wall_s for mean_s, wall_s in found) / seconds
            shares.append((late_s / first_s, late_s, load))
    share, late_s, load = max(shares, key=lambda each: each[0], default=(0.0, 0.0, Load()))
    if share > LAG_SHARE:
        hint = "This machine is too busy: run specbench where cores are idle, or measure fewer requests at once."
        yield warning("client-late", hint, load=load.label, late_s=late_s, share=share)


def _unequal_cache(turns: Sequence[TurnCheck], baseline: Arm) -> Iterator[Finding]:
    """By the share of its prompts' tokens that each arm had from the cache, None where the server does not tell."""
    rates: dict[str, float | None] = {}
    for arm in dict.fromkeys(turn.arm for turn in turns):
        own = [turn for turn in turns if turn.arm == arm]
        cached, prompts = [turn.cached_tokens for turn in own], sum(turn.prompt_tokens for turn in own)
        rates[arm] = None if None in cached or not prompts else sum(filter(None, cached)) / prompts
    alone = rates.get(baseline.label)
    untold = [arm for arm, rate in rates.items() if rate is None]
    if untold or alone is None:
        hint = "See that they do (vLLM: --enable-prompt-tokens-details, SGLang: --enable-cache-report)."
        yield warning("cache-untold", hint, arms=untold)
    elif not any(rates.values()):
        hint = "Start the server with its prefix cache (vLLM: --enable-prefix-caching)."
        yield warning("cache-cold", hint)
    elif off := {arm: rate for arm, rate in rates.items() if rate is not None and abs(rate - alone) > CACHE_SHARE}:
        hint = "Give the servers caches of one size and let nobody else use them, then run again with --fresh."
        arms = [{"arm": arm, "share": rate} for arm, rate in off.items()]
        yield warning("cache-unequal", hint, alone=alone, arms=arms)


def _prefix_cache(trials: Iterable[Trial]) -> Iterator[Finding]:
    told = [(t.told.cached_tokens, t.prompt_tokens) for t in trials if t.told and t.told.cached_tokens is not None]
    if any(cached > TEMPLATE_TOKENS for cached, _ in told):
        cached, prompts = sum(cached for cached, _ in told), sum(tokens or 0 for _, tokens in told)
        known = prompts if prompts >= cached else None
        hint = "Start the server without its prefix cache."
        yield warning("prefix-cache", hint, cached=cached, prompt_tokens=known)


def _gamma(server: Server, arms: Mapping[Arm, Sequence[Trial]]) -> Iterator[Finding]:
    wrong = []
    for arm, own in arms.items():
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
    if wrong:
        hint = "See the server's settings; what a row says of its gamma is not about that gamma."
        yield warning("gamma-not-honoured", hint, arms=wrong, by="the server")


def _not_speculating(server: Server, arms: Mapping[Arm, Sequence[Trial]]) -> Iterator[Finding]:
    idle = []
    for arm, own in arms.items():
        drafted = [_total(trial, "drafted") for trial in own if trial.decode_tokens]
        denies = server.settings.get(f"{arm.draft} gamma {arm.gamma}", State()).speculating is False
        if (drafted and all(tokens == 0 for tokens in drafted)) or (denies and not any(drafted)):
            idle.append(arm.label)
    if idle:
        hint = "Check how the server was started; its log says whether it loaded the draft."
        yield warning("not-speculating", hint, arms=idle)


def _baseline(server: Server, trials: Sequence[Trial]) -> Iterator[Finding]:
    drafted = sum(t.told.drafted or 0 for t in trials if t.arm.kind != "speculative" and t.told)
    if drafted or server.settings.get("baseline", State()).speculating:
        hint = "Start the server for the baseline without a draft."
        yield warning("baseline-speculates", hint, drafted=drafted or None)
