"""What the brief says of a server: its loads as a table, what it says itself, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from specbench import text
from specbench.analysis.contract import (
    ClockCheck,
    CounterCheck,
    DraftResult,
    GammaResult,
    LoadResult,
    Percentiles,
    Server,
    Summary,
)
from specbench.analysis.facts import Facts
from specbench.analysis.loads import metric_of
from specbench.analysis.server import NUMBERS
from specbench.drafters import parse_draft
from specbench.records import Load, Policy
from specbench.report.brief.commands import Step
from specbench.report.brief.schedule import schedule_words
from specbench.report.readings import stops_paying_words
from specbench.report.templating import mark, unmarked
from specbench.report.wording import best_row
from specbench.run_record import State

if TYPE_CHECKING:
    from rich.console import RenderableType


# Name, heading, cell, and how soon the column gives way.
_Spec = tuple[str, str, Callable[[LoadResult], str], int]


def load_shown(summary: Summary) -> bool:
    """Whether there is more to say than the other tables do: several loads, or one that is not one request at a
    time."""
    loads = {row.load for row in summary.loads}
    return bool(loads - {Load().label})


def load_table(summary: Summary, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    """For a terminal: one table for each draft."""
    from rich.text import Text

    from specbench.report.layout import Column, fit, note, readable, table  # rich, which a brief does without

    for draft in summary.drafts:
        rows = _rows(summary, draft)
        if not rows:
            continue
        columns = [
            Column(
                name, unmarked(heading), tuple(cell(row) for row in rows), gives_way, left=name in ("load", "verdict")
            )
            for name, heading, cell, gives_way in _columns(policy)
        ]
        columns = [column for column in columns if set(column.cells) != {text.UNKNOWN}]
        kept = fit(columns, width)
        yield Text(f"\n{readable(draft.draft, plain)} under load")
        yield table(kept, plain)
        hidden = [column.name for column in columns if column.name not in {each.name for each in kept}]
        words = [
            _WORDS,
            stops_paying_words(summary, draft, policy),
            schedule_words(draft.schedule),
            _read_between(rows),
        ]
        if hidden:
            words.append(f"Not shown at this width: {', '.join(hidden)}.")
        yield note(" ".join(filter(None, words)), width, plain)


def load_rows(
    summary: Summary, draft: DraftResult, policy: Policy
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows for the brief."""
    rows = _rows(summary, draft)
    return text.table(
        [
            (
                heading.replace("-\n", "").replace("\n", " "),
                [text.escape(cell(row)) if name == "load" else cell(row) for row in rows],
            )
            for name, heading, cell, _ in _columns(policy)
        ]
    )


def load_note(summary: Summary, draft: DraftResult, policy: Policy) -> str:
    """What the table means, and from where on the draft stops paying."""
    busy = _read_between(_rows(summary, draft))
    words = (stops_paying_words(summary, draft, policy), schedule_words(draft.schedule), _WORDS, busy)
    return " ".join(filter(None, words))


_WORDS = (
    "Each load is measured against the target alone under the same load; where two numbers stand together the first is "
    "the target alone, the second with the draft. Percentiles are over requests, and only those that so many requests "
    "can show."
)


def _read_between(rows: Sequence[LoadResult]) -> str:
    """What a prediction above one client gets wrong: a probe's text has a round for every token, a run's has fewer, and
    in both the server reads other clients' prompts between them."""
    if not any(row.predicted_speedup is not None and (row.concurrency or 1) > 1 for row in rows):
        return ""
    return (
        "A prediction above one client counts the reading of other clients' prompts too cheaply for the draft: do not "
        "trust it where answers are short against prompts."
    )


def _rows(summary: Summary, draft: DraftResult) -> Sequence[LoadResult]:
    return [row for row in summary.loads if row.draft == draft.draft]


def _columns(policy: Policy) -> list[_Spec]:
    kind = "decode" if policy.metric == "decode" else "end to end"
    other = "end to end" if policy.metric == "decode" else "decode"

    def others(row: LoadResult) -> str:
        return text.speedup(row.speedup_e2e if policy.metric == "decode" else row.speedup)

    def times(name: str, at: str) -> Callable[[LoadResult], str]:
        def cell(row: LoadResult) -> str:
            parts: list[Percentiles] = [getattr(row, f"baseline_{name}"), getattr(row, name)]
            return pair([None if getattr(part, at) is None else 1000 * getattr(part, at) for part in parts])

        return cell

    return [
        ("load", "load", lambda row: row.load, 0),
        ("gamma", "gamma", lambda row: str(row.gamma), 0),
        ("verdict", "verdict", lambda row: row.verdict, 1),
        ("speedup", f"speedup,\n{kind}", lambda row: text.estimate(*metric_of(row, policy)), 0),
        ("predicted", f"decode\n{mark('predicted', 'curve')}", _predicted, 1),
        (other, f"speedup,\n{other}", others, 5),
        ("tokens/s", "tokens/s", lambda row: pair([row.baseline_throughput, row.throughput]), 2),
        ("throughput", "through-\nput", lambda row: text.speedup(row.throughput_ratio), 6),
        ("first token", "first token,\np50, ms", times("ttft", "p50"), 3),
        ("first token p95", "first token,\np95, ms", times("ttft", "p95"), 7),
        ("first token p99", "first token,\np99, ms", times("ttft", "p99"), 9),
        ("per token", "per token,\np50, ms", times("tpot", "p50"), 4),
        ("per token p95", "per token,\np95, ms", times("tpot", "p95"), 8),
        ("per token p99", "per token,\np99, ms", times("tpot", "p99"), 10),
    ]


def _predicted(row: LoadResult) -> str:
    low, high = row.predicted_speedup_low, row.predicted_speedup_high
    return text.UNKNOWN if row.predicted_speedup is None else text.estimate(row.predicted_speedup, low, high)


def pair(values: Sequence[float | None]) -> str:
    """`46.1 / 9.4`: the target alone and with the draft; unknown where neither is known."""
    if all(value is None for value in values):
        return text.UNKNOWN
    return " / ".join(text.UNKNOWN if value is None else f"{value:,.{_digits(value)}f}" for value in values)


def _digits(value: float) -> int:
    return 2 if value < 1 else 1 if value < 100 else 0


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


# So many requests at once are far enough from the most that were measured to tell something new.
_MORE = 4


def server_steps(summary: Summary, draft: DraftResult, facts: Facts) -> list[Step]:
    """At least two, the most useful first, for the draft."""
    row = best_row(draft)
    load, gamma = _load(summary, draft, facts), _gamma(draft, row)
    about = [_acceptance(summary, draft, row, facts), _other_engine(row, facts)]
    order = [gamma, *about, load]
    if draft.verdict == "GO":
        order = [_off_above(draft, facts), *([load, gamma] if len(facts.loads) == 1 else [gamma, load]), *about]
    return [step for step in order if step is not None]


def _off_above(draft: DraftResult, facts: Facts) -> Step | None:
    """Where the verdict at the first load does not hold for larger ones."""
    at = draft.stops_paying_at_concurrency
    if at is None:
        return None
    return Step(
        f"Turn {text.code(draft.draft)} off where {at:,} or more requests come at a time.",
        f"from there on even the best gamma is slower than the target alone; at {facts.loads[0].label} it pays.",
        "the loads in between were not measured, and the machine may fill up at another number with other prompts.",
    )


def _load(summary: Summary, draft: DraftResult, facts: Facts) -> Step:
    counts = sorted({load.concurrency for load in facts.loads if load.rate is None})
    most = counts[-1] if counts else 1
    more = ",".join(str(count) for count in sorted({1, most, most * _MORE}))
    if draft.verdict == "GO":
        why = "a verdict holds for its load, and with more requests at once the target has less idle capacity."
        doubt = "if your server is never busier than this, it tells nothing that you need."
    else:
        why = f"the verdict is for {facts.loads[0].label}; loads decide what a round costs."
        doubt = "more requests at once mostly make speculation dearer, not cheaper."
    measured = " and ".join(load.label for load in facts.loads) if len(facts.loads) < 3 else f"{len(facts.loads)} loads"
    return Step(
        f"Measure it at the load of your traffic: `--concurrency {more}`, or `--rate` with its requests per second.",
        f"{why} Measured: {measured}.",
        doubt,
    )


def _gamma(draft: DraftResult, row: GammaResult) -> Step | None:
    """Worth trying where the best gamma is at an end of those measured."""
    gammas = [each.gamma for each in draft.gammas]
    if row.gamma == max(gammas) and (len(gammas) > 1 or row.speedup > 1):
        return Step(
            f"Try gamma above {row.gamma}, the largest measured: `--gamma {row.gamma}..{row.gamma * 2}`.",
            f"it is the best so far, {text.speedup(row.speedup)} of decoding.",
            "each further token survives less often than the one before, so the gain may end at once.",
        )
    if row.gamma == min(gammas) and row.gamma > 1:
        return Step(
            f"Try gamma below {row.gamma}, the smallest measured: `--gamma 1..{row.gamma}`.",
            f"it is the best so far, {text.speedup(row.speedup)} of decoding.",
            "fewer drafts give fewer tokens per round as well.",
        )
    return None


def _acceptance(summary: Summary, draft: DraftResult, row: GammaResult, facts: Facts) -> Step | None:
    tau, steps, asked = row.tokens_per_round, row.round_steps, facts.policy.min_speedup
    if tau is None or steps is None or draft.verdict == "GO":
        return None
    if looks_up(draft):
        return Step(
            "Try a look-up of more tokens, or a draft model where the texts do not repeat themselves.",
            f"drafting costs next to nothing here, so it is verifying {row.gamma + 1} tokens that makes a round cost "
            f"{steps:.2f} target steps, for {tau:.2f} tokens: drafts that are rarer and right more often cost less.",
            "a longer look-up also misses some of what this one finds.",
        )
    if tau < asked:
        return Step(
            "Try a draft that agrees with the target more: a larger one, or one trained on this traffic.",
            f"{tau:.2f} tokens per round could not give {text.speedup(asked)} even if a round cost one target step.",
            "a larger draft makes the round dearer.",
        )
    tried = any(looks_up(each) for each in summary.drafts)
    return Step(
        "Try a cheaper draft, " + ("" if tried else "such as n-gram look-up where the engine has it, ") + "or one that "
        "agrees more.",
        f"a round gives {tau:.2f} tokens and costs {steps:.2f} target steps; {text.speedup(asked)} takes rounds of at "
        f"most {tau / asked:.2f}.",
        "how much of the round is drafting is not known, so a cheaper draft may save little.",
    )


def looks_up(draft: DraftResult) -> bool:
    """Whether nothing but a look-up drafts."""
    spec = parse_draft(draft.draft)
    return spec.look_up and spec.alone


def _other_engine(row: GammaResult, facts: Facts) -> Step:
    costs = f"a round costs {row.round_steps:.2f} target steps here" if row.round_steps is not None else ""
    return Step(
        "Measure the same prompts on another engine or with other settings of this one, and compare the two runs.",
        f"{costs or 'what a round costs is up to the engine'}; acceptance goes with the models, the cost of a round "
        "with the engine.",
        "an engine whose target step is faster makes the same draft dearer in comparison.",
    )
