"""The columns of every table of a run, once: a terminal, Markdown and HTML show the same ones, and their names are the
keys of the records that `--json` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from textwrap import shorten
from typing import Any

from specbench import text
from specbench.analysis.contract import (
    DraftResult,
    GammaResult,
    LengthResult,
    LoadResult,
    Percentiles,
    Summary,
)
from specbench.analysis.loads import metric_of
from specbench.records import FEW_PROMPTS, Load, Policy
from specbench.report.dialect import PLAIN, Column, Plain

# More positions than this do not fit beside the sparkline.
_SURVIVAL_NUMBERS = 8
_CATEGORY_WIDTH = 24


def known(columns: Iterable[Column]) -> list[Column]:
    """Without those that no row can fill."""
    return [column for column in columns if any(cell != text.UNKNOWN for cell in column.cells)]


def _of(rows: Sequence[Any]) -> Callable[..., Column]:
    def column(
        name: str, header: str, cell: Callable[[Any], str], gives_way: int = 0, short: str | None = None, *,
        left: bool = False,
    ) -> Column:  # fmt: skip
        cells = tuple(cell(row) for row in rows)
        return Column(name, header, cells, gives_way, None if short is None else (short, cells), left)

    return column


def few(prompts: int, d: Plain) -> str:
    """` (few prompts)` behind a claim that rests on so many; empty where they are enough."""
    return type(d.mark("few-prompts"))(" ") + d.mark("few-prompts") if prompts < FEW_PROMPTS else ""


def estimate(row: Any) -> str:
    return text.estimate(row.speedup, row.speedup_low, row.speedup_high)


def interval_header(policy: Policy) -> str:
    return f"[{text.percent(policy.confidence)} interval]"


def gamma_columns(draft: DraftResult, policy: Policy, d: Plain = PLAIN, *, ascii_only: bool = False) -> list[Column]:
    """One draft, gamma by gamma. Survival is for a terminal, which has no figures."""
    of = _of(draft.gammas)
    bounds = interval_header(policy)
    predicted = "pre-\ndicted" if d is PLAIN else "decode " + d.mark("replay-and-costs")
    columns = [
        of("gamma", "gamma", lambda row: str(row.gamma)),
        of("rounds", "rounds", lambda row: text.whole(row.rounds), 8),
        of("acceptance_rate", "acceptance\nr", lambda row: text.percent(row.acceptance_rate), 1, "r"),
        of("tokens_per_round", "tokens per\nround, tau", lambda row: text.digits(row.tokens_per_round), 1, "tau"),
        of("round_steps", "round's cost,\nsteps", _own_cost, 5, "cost"),
        of("replay_tokens_per_round", "tau\nreplayed", lambda row: text.digits(row.replay_tokens_per_round), 7),
        *([_survival(draft.gammas, ascii_only)] if d is PLAIN else []),
        of("speedup", f"speedup, decode\n{bounds}", estimate, 0, f"speedup\n{bounds}"),
        of("predicted_speedup", predicted, lambda row: text.speedup(row.predicted_speedup), 9),
        of("speedup_e2e", "end to\nend", lambda row: text.speedup(row.speedup_e2e), 4),
        of("tokens_per_s", "decode\ntokens/s", lambda row: f"{row.tokens_per_s:.1f}", 1, "tok/s"),
        of(
            "slower_share",
            f"slower\nthan {text.speedup(policy.slower_than)}",
            lambda row: text.percent(row.slower_share),
            3,
            f"slower\n<{text.speedup(policy.slower_than)}",
        ),
        of("identical_prompts", "identical\noutputs", _same, 4, "same\ntext"),
    ]  # fmt: skip
    return known(columns)


def _own_cost(row: GammaResult) -> str:
    """Where its parts are not known, which say more."""
    return text.UNKNOWN if row.round_time is not None else text.digits(row.round_steps)


def _same(row: GammaResult) -> str:
    return text.UNKNOWN if row.identical_prompts is None else f"{row.identical_prompts}/{row.prompts}"


def _survival(rows: Sequence[GammaResult], ascii_only: bool) -> Column:
    lines = tuple(text.sparkline(row.survival, ascii_only=ascii_only) or text.UNKNOWN for row in rows)
    longest = max(len(line) for line in lines)
    wide = lines
    if max(len(row.survival) for row in rows) <= _SURVIVAL_NUMBERS:
        wide = tuple(f"{line:{longest}} {_shares(row)}".rstrip() for line, row in zip(lines, rows, strict=True))
    return Column("survival", "survival", wide, 6, ("survival", lines), left=True)


def _shares(row: GammaResult) -> str:
    return " ".join("?" if share is None else f"{share:.2f}".removeprefix("0") for share in row.survival)


def metric_words(policy: Policy) -> str:
    return "end to end" if policy.metric == "e2e" else "decode"


def category_columns(draft: DraftResult, policy: Policy, d: Plain = PLAIN, *, short: bool = False) -> list[Column]:
    """One draft by category, fastest first; `short` for the first page."""
    rows = draft.by_speedup
    of = _of(rows)
    names = tuple(d.n(row.category) for row in rows)
    marks = [few(row.prompts, d) for row in rows] if d is not PLAIN else [""] * len(rows)
    once = bool(rows) and all(marks)
    counts = tuple(
        type(mark)(f"{row.prompts:,}") + ("" if once else mark) for row, mark in zip(rows, marks, strict=True)
    )
    columns = [
        Column("category", "category", names, 0, ("category", _shortened(names)), left=True),
        of("verdict", "verdict", lambda row: row.verdict, left=True),
        of("speedup", f"speedup, {metric_words(policy)}\n{interval_header(policy)}", estimate),
    ]
    if d is not PLAIN and not short and policy.metric == "decode":
        mark = d.mark("by-category")
        columns.append(of("predicted_speedup", "decode " + mark, lambda row: text.speedup(row.predicted_speedup)))
    columns.append(of("best_gamma", "best\ngamma", lambda row: str(row.best_gamma), 2))
    columns.append(Column("prompts", "prompts" + (marks[0] if once else ""), counts, 1))
    return known(columns)


def _shortened(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(shorten(name, _CATEGORY_WIDTH, placeholder="..") for name in names)


def length_columns(draft: DraftResult, policy: Policy, d: Plain = PLAIN) -> list[Column]:
    """One draft by prompt length, where that was asked for; also lengths of which no prompt was measured."""
    rows = draft.lengths
    of = _of(rows)
    counts = tuple(type(d.n(""))(f"{row.prompts:,}") + (few(row.prompts, d) if row.prompts else "") for row in rows)
    return known([
        of("low", "prompt tokens", _tokens, left=True),
        of("verdict", "verdict", lambda row: row.verdict or "not measured", left=True),
        of("speedup", f"speedup, {metric_words(policy)}\n{interval_header(policy)}", _estimate_or_none),
        of("best_gamma", "best\ngamma", lambda row: str(row.best_gamma or text.UNKNOWN)),
        of("tokens_per_round", "tokens per\nround, tau", lambda row: text.digits(row.tokens_per_round)),
        of("round_steps", "round's cost,\nsteps", lambda row: text.digits(row.round_steps)),
        Column("prompts", "prompts", counts),
    ])  # fmt: skip


def _estimate_or_none(row: LengthResult) -> str:
    return text.UNKNOWN if row.speedup is None else estimate(row)


def _tokens(row: LengthResult) -> str:
    """What was asked for, and what was measured of it."""
    asked = f"{row.low:,} and more" if row.high is None else f"below {row.high:,}"
    if row.low and row.high is not None:
        asked = f"{row.low:,} to {row.high - 1:,}"
    return asked if row.shortest is None else f"{asked} (measured: {row.shortest:,} to {row.longest:,})"


def candidate_columns(summary: Summary, d: Plain) -> list[Column]:
    """Every draft at its own best gamma, the chosen one first. Its estimate is that of the verdict."""
    head, choice, policy = summary.headline, summary.choice, summary.policy
    others = sorted((o for o in summary.drafts if o is not summary.recommended), key=lambda draft: -draft.speedup)
    rows: list[tuple[Any, DraftResult]] = [(head, o) if o is summary.recommended else (o, o) for o in others]
    if summary.recommended is not None:
        rows.insert(0, (head, summary.recommended))
    of = _of(rows)
    minimum = text.speedup(policy.min_speedup)
    return [
        of("draft", "draft", lambda row: d.code(row[1].draft), left=True),
        of("gamma", "gamma", lambda row: str(choice.gamma if choice and row[0] is choice else row[1].best_gamma)),
        of("speedup", f"speedup, {metric_words(policy)}\n{interval_header(policy)}", lambda row: estimate(row[0])),
        of("probability", f"chance of\n{minimum}", lambda row: _chance(row[0].probability)),
        of("verdict", "verdict", lambda row: row[0].verdict, left=True),
    ]  # fmt: skip


def _chance(probability: float | None) -> str:
    return text.UNKNOWN if probability is None else text.chance(probability)


def glance_columns(summary: Summary, d: Plain) -> list[Column]:
    """What a request and the machine feel: the target alone beside the recommended draft at its best gamma."""
    draft = summary.recommended
    assert draft is not None
    row, answer, money, e = draft.best, draft.answer, draft.money, text.UNKNOWN
    unit = "a whole answer" if summary.batch_size == 1 else f"a batch of {summary.batch_size} answers"
    lines = [("decode tokens/s", f"{draft.baseline_tokens_per_s:.1f}", f"{row.tokens_per_s:.1f}")]
    if answer is not None:
        what = f"seconds for {unit}, prompt included (mean of {answer.tokens:.0f} tokens)"
        lines.append((what, f"{answer.baseline_s:.2f}", f"{answer.draft_s:.2f}"))
    share = text.percent(draft.slower_share)
    lines.append((f"prompts slower than {text.speedup(summary.policy.slower_than)}", e, share))
    lines.append(("identical outputs", e, _texts(row, d)))
    if draft.memory is not None:
        lines.append(
            ("memory added", e, text.size(draft.memory.total_bytes, "B") or e if draft.memory.total_bytes else "none")
        )
    if money is not None:
        price = type(d.mark("price"))(f"{money.per_million:,.2f} ") + d.mark("price")
        lines.append(("a million output tokens", f"{money.baseline_per_million:,.2f}", price))
    lines.append(("stops paying at", e, _stops(draft, d)))
    kept = [line for line in lines if line[2] != e]
    names, off, on = (tuple(column) for column in zip(*kept, strict=True))
    first = Column("what", "measured", names, left=True)
    return [first, Column("off", "off", off), Column("on", "on", on)]


def _texts(row: GammaResult, d: Plain) -> str:
    """How many are the same, and what the others are."""
    if row.identical_prompts is None:
        return "not compared"
    same, found = text.out_of(row.identical_prompts, row.prompts), row.texts
    parts = [d.n(same)]
    if found is not None and found.ties:
        parts.append(d.n(f"{found.ties:,} differ by rounding") + " " + d.mark("near-ties"))
    if found is not None and found.wide:
        parts.append(d.strong(f"{found.wide:,} by more than rounding"))
    if found is not None and found.unknown:
        parts.append(d.n(f"{found.unknown:,} for reasons not recorded"))
    return type(parts[0])("; ").join(parts)


def _stops(draft: DraftResult, d: Plain) -> str:
    if draft.stops_paying_at_concurrency is not None:
        return f"{text.count(draft.stops_paying_at_concurrency, 'request')} at a time"
    if draft.stops_paying_at_batch is not None:
        mark = d.mark("larger-batches")
        return type(mark)(f"batch {draft.stops_paying_at_batch} ") + mark
    return text.UNKNOWN


def curve_columns(draft: DraftResult) -> list[Column]:
    """What replay and costs predict, gamma by gamma, beside what was measured."""
    measured = {row.gamma: row.speedup for row in draft.gammas}
    of = _of(draft.predicted)
    return known([
        of("gamma", "gamma", lambda row: str(row.gamma)),
        of("tokens_per_round", "tau, replayed", lambda row: f"{row.tokens_per_round:.2f}"),
        of("speedup", "speedup, decode", estimate),
        of("speedup_e2e", "speedup, end to end", lambda row: text.speedup(row.speedup_e2e)),
        of("gain", "the last token adds", lambda row: f"{row.gain:+.1%}"),
        of("measured", "measured, decode", lambda row: text.speedup(measured.get(row.gamma))),
    ])  # fmt: skip


def batch_columns(draft: DraftResult, served: bool = False) -> list[Column]:
    of = _of(draft.batches)
    return [
        of("batch", "clients" if served else "batch", lambda row: str(row.batch)),
        of("baseline_tokens_per_s", "target alone, tokens/s", lambda row: f"{row.baseline_tokens_per_s:.1f}"),
        of("gamma", "best gamma", lambda row: str(row.gamma)),
        of("speedup", "speedup, decode", estimate),
        of("tokens_per_s", "tokens/s with it", lambda row: f"{row.tokens_per_s:.1f}"),
    ]


def load_shown(summary: Summary) -> bool:
    """Whether there is more to say than the other tables do: several loads, or one that is not one request at a
    time."""
    return bool({row.load for row in summary.loads} - {Load().label})


def load_columns(summary: Summary, draft: DraftResult, d: Plain = PLAIN) -> list[Column]:
    """A server's loads, under which a draft is measured beside the target alone; none without any."""
    policy = summary.policy
    rows = [row for row in summary.loads if row.draft == draft.draft]
    if not rows:
        return []
    of, decode = _of(rows), policy.metric == "decode"
    predicted = "predicted,\ndecode" if d is PLAIN else "decode " + d.mark("replay-and-costs")
    other, besides = ("speedup_e2e", "end to end") if decode else ("speedup", "decode")

    def times(name: str, at: str) -> Callable[[LoadResult], str]:
        def cell(row: LoadResult) -> str:
            parts: list[Percentiles] = [getattr(row, f"baseline_{name}"), getattr(row, name)]
            return pair([None if getattr(each, at) is None else 1000 * getattr(each, at) for each in parts])

        return cell

    return known([
        of("load", "load", lambda row: d.n(row.load), left=True),
        of("gamma", "gamma", lambda row: str(row.gamma)),
        of("verdict", "verdict", lambda row: row.verdict, 1, left=True),
        of("speedup", f"speedup,\n{metric_words(policy)}", lambda row: text.estimate(*metric_of(row, policy))),
        of(other, f"speedup,\n{besides}", lambda row: text.speedup(getattr(row, other)), 5),
        of("predicted_speedup", predicted, _predicted, 1),
        of("throughput", "output\ntokens/s", lambda row: pair([row.baseline_throughput, row.throughput]), 2),
        of("throughput_ratio", "through-\nput", lambda row: text.speedup(row.throughput_ratio), 6),
        of("ttft_p50", "first token,\np50, ms", times("ttft", "p50"), 3),
        of("ttft_p95", "first token,\np95, ms", times("ttft", "p95"), 7),
        of("ttft_p99", "first token,\np99, ms", times("ttft", "p99"), 9),
        of("tpot_p50", "per token,\np50, ms", times("tpot", "p50"), 4),
        of("tpot_p95", "per token,\np95, ms", times("tpot", "p95"), 8),
        of("tpot_p99", "per token,\np99, ms", times("tpot", "p99"), 10),
    ])  # fmt: skip


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
