"""What a server says against what the client saw: its counters, its clock, and where each number comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specbench.analysis.frame import counted, loads_of
from specbench.analysis.served.contract import ClockCheck, CounterCheck, NumberCheck, Server
from specbench.records import Counters, Trial, Window
from specbench.run_record import ServedBy
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
