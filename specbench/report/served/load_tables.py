"""A server's loads as a table: for the terminal and for the brief, which show the same columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from specbench import text
from specbench.analysis.contract import DraftResult, Summary
from specbench.analysis.served.contract import LoadResult, Percentiles
from specbench.analysis.served.loads import metric_of
from specbench.records import Load, Policy
from specbench.report.readings import stops_paying_words
from specbench.report.served.schedule import schedule_words

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
            Column(name, heading, tuple(cell(row) for row in rows), gives_way, left=name in ("load", "verdict"))
            for name, heading, cell, gives_way in _columns(policy)
        ]
        columns = [column for column in columns if set(column.cells) != {text.UNKNOWN}]
        kept = fit(columns, width)
        yield Text(f"\n{readable(draft.draft, plain)} under load")
        yield table(kept, plain)
        hidden = [column.name for column in columns if column.name not in {each.name for each in kept}]
        words = [_WORDS, stops_paying_words(summary, draft, policy), schedule_words(draft.schedule)]
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
    words = (stops_paying_words(summary, draft, policy), schedule_words(draft.schedule), _WORDS)
    return " ".join(filter(None, words))


_WORDS = (
    "Each load is measured against the target alone under the same load; where two numbers stand together the first is "
    "the target alone, the second with the draft. Percentiles are over requests, and only those that so many requests "
    "can show."
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
        ("predicted", "predicted,\ndecode", _predicted, 1),
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
