"""A Summary as tables for a terminal: the verdict first, then the evidence by gamma and by category, then warnings.

What is shown depends on the terminal: columns give way until the table fits its width, and an ASCII-only terminal
gets ASCII. Nothing is said by colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.analysis.contract import Choice, DraftResult, GammaResult, Summary
from specbench.analysis.stopped import stopped_line, stopped_note
from specbench.records import Call, Policy
from specbench.report.brief.server import load_shown, load_table
from specbench.report.layout import Block, Column, fit, note, readable, table, warnings
from specbench.report.wording import by_speedup

_COLOUR: dict[Call, str] = {"GO": "bold green", "NO-GO": "bold red", "UNCLEAR": "bold yellow"}


_MEANINGS = {
    "r": "r: accepted / drafted tokens (falls as gamma grows).",
    "tau": "tau: tokens per round, with the target's own.",
}

# More positions than this do not fit beside the sparkline.
_SURVIVAL_NUMBERS = 8
_CATEGORY_WIDTH = 24


def sweep_tables(summary: Summary, policy: Policy | None = None) -> list[RenderableType]:
    """What `measure` and `sweep` print. Without the run's `policy` the default one names the columns."""
    asked = policy or Policy()
    parts: list[RenderableType] = [Block(partial(_head, summary))]
    if len(summary.drafts) > 1 and summary.choice is not None:
        parts.append(Block(partial(_choice, summary.choice, asked)))
    for draft in summary.drafts:
        parts.append(Block(partial(_verdict, draft, asked)))
        parts.append(Block(partial(_by_gamma, draft, asked, summary)))
        if by_speedup(draft):
            parts.append(Block(partial(_by_category, draft, asked)))
    if load_shown(summary):
        parts.append(Block(partial(load_table, summary, asked)))
    if summary.warnings:
        parts.append(Block(partial(warnings, summary.warnings)))
    return parts


def _head(summary: Summary, width: int, plain: bool) -> Iterator[RenderableType]:
    yield note(f"{summary.target} on {summary.hardware}", width, plain, style="")
    yield note(summary.engine, width, plain)
    if summary.trials_spared:
        planned = summary.trials_run + summary.trials_spared
        yield note(f"Ran {summary.trials_run:,} of {planned:,} trials; the rest were ruled out.", width, plain)


def _verdict(draft: DraftResult, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    found = text.estimate(draft.speedup, draft.speedup_low, draft.speedup_high)
    kind = "end to end" if policy.metric == "e2e" else "decode"
    line = Text("\n")
    line.append(draft.verdict, _COLOUR[draft.verdict])
    name = readable(draft.draft, plain)
    line.append(
        f"  {name}: {found} {kind}, best gamma {draft.best_gamma}, asked for {text.speedup(policy.min_speedup)}"
    )
    yield line
    for reason in draft.reasons:
        yield note(reason, width, plain, indent="  ", style="")


def _choice(choice: Choice, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    """Of several drafts the best, and how far the others are from it."""
    line = Text("\n")
    line.append(choice.verdict, _COLOUR[choice.verdict])
    found = text.estimate(choice.speedup, choice.speedup_low, choice.speedup_high)
    line.append(
        f"  best of {len(choice.rivals) + 1} drafts: {readable(choice.draft, plain)}, gamma {choice.gamma}, {found}"
    )
    yield line
    for rival in choice.rivals:
        ratio = text.estimate(rival.ratio, rival.ratio_low, rival.ratio_high)
        found = "" if rival.difference == "faster" else f", {rival.difference}"
        against = f"against {readable(rival.draft, plain)}, gamma {rival.gamma}: {ratio}{found}"
        yield note(against, width, plain, indent="  ", style="")


def _by_gamma(
    draft: DraftResult, policy: Policy, summary: Summary, width: int, plain: bool
) -> Iterator[RenderableType]:
    columns = [column for column in _gamma_columns(draft, policy, plain) if set(column.cells) != {text.UNKNOWN}]
    kept = fit(columns, width)
    yield table(kept, plain)
    shown = {column.name for column in kept}
    hidden = [column.name for column in columns if column.name not in shown]
    prompts = max(row.prompts for row in draft.gammas)
    words = [
        f"Measured wall clock of decoding over {text.measured(prompts, summary.batch_size)}, {_how(summary)}.",
    ]
    known = {column.name for column in columns}
    words += [meaning for name, meaning in _MEANINGS.items() if name in known]
    if "survival" in shown:
        unit = " in tenths" if plain else ""
        words.append(f"Survival: share of rounds whose first 1, 2, .. drafts were accepted{unit}.")
    if "round's cost" in shown:
        words.append("Round's cost: its time in steps of the target alone.")
    if summary.noise_floor is not None:
        words.append(f"Noise floor: {summary.noise_floor:.1%}.")
    if draft.stops_paying_at_batch is not None:
        kind = "batch" if summary.server is None else "concurrency"
        words.append(f"Predicted to stop paying at {kind} {draft.stops_paying_at_batch}.")
    if draft.head is not None:
        first, step, states = map(text.milliseconds, (draft.head.first_s, draft.head.step_s, draft.head.states_s))
        words.append(
            f"Timed alone: a round's first draft {first}, each later one {step}; keeping the states that the head "
            f"reads adds {states} to the target's pass."
        )
    if hidden:
        words.append(f"Not shown at this width: {', '.join(hidden)}.")
    yield note(" ".join(words), width, plain)
    for row in draft.stopped:
        yield note(stopped_line(row, summary.batch_size), width, plain, style="")
    if draft.stopped:
        yield note(stopped_note(draft.stopped), width, plain)


def _how(summary: Summary) -> str:
    if summary.server is not None:
        return f"{summary.server.load}, over HTTP from outside"
    return "one at a time" if summary.batch_size == 1 else "each batch at once"


def _own_cost(row: GammaResult) -> str:
    """Where its parts are not known, which say more."""
    return text.UNKNOWN if row.round_time is not None else text.digits(row.round_steps)


def _gamma_columns(draft: DraftResult, policy: Policy, plain: bool) -> list[Column]:
    rows = draft.gammas

    def column(
        name: str, header: str, cell: Callable[[GammaResult], str], gives_way: int = 0, short: str | None = None
    ) -> Column:
        cells = tuple(cell(row) for row in rows)
        return Column(name, header, cells, gives_way, None if short is None else (short, cells))

    slower = text.speedup(policy.slower_than)
    interval = f"speedup\n[{text.percent(policy.confidence)} interval]"
    return [
        column("gamma", "gamma", lambda row: str(row.gamma)),
        column("rounds", "rounds", lambda row: text.whole(row.rounds), 8),
        column("r", "acceptance\nr", lambda row: text.percent(row.acceptance_rate), 1, "r"),
        column("tau", "tokens per\nround, tau", lambda row: text.digits(row.tokens_per_round), 1, "tau"),
        column("round's cost", "round's\ncost", _own_cost, 5, "cost"),
        column("tau replayed", "tau\nreplayed", lambda row: text.digits(row.replay_tokens_per_round), 6),
        _survival(rows, plain),
        column("speedup", interval, lambda row: text.estimate(row.speedup, row.speedup_low, row.speedup_high)),
        column("predicted", "pre-\ndicted", lambda row: text.speedup(row.predicted_speedup), 9),
        column("end to end", "end to\nend", lambda row: text.speedup(row.speedup_e2e), 2),
        column("tokens/s", "tokens\nper s", lambda row: f"{row.tokens_per_s:.1f}", 7),
        column("prompts slower", f"slower\n<{slower}", lambda row: text.percent(row.slower_share), 3),
        column("same text", "same\ntext", _same, 4),
    ]


def _survival(rows: Sequence[GammaResult], plain: bool) -> Column:
    lines = tuple(text.sparkline(row.survival, ascii_only=plain) for row in rows)
    lines = tuple(line or text.UNKNOWN for line in lines)
    longest = max(len(line) for line in lines)
    wide = lines
    if max(len(row.survival) for row in rows) <= _SURVIVAL_NUMBERS:
        wide = tuple(f"{line:{longest}} {_shares(row)}".rstrip() for line, row in zip(lines, rows, strict=True))
    return Column("survival", "survival", wide, 5, ("survival", lines), left=True)


def _shares(row: GammaResult) -> str:
    return " ".join("?" if share is None else f"{share:.2f}".removeprefix("0") for share in row.survival)


def _by_category(draft: DraftResult, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    rows = by_speedup(draft)
    names = tuple(readable(row.category, plain) for row in rows)
    short = tuple(textwrap.shorten(name, _CATEGORY_WIDTH, placeholder="..") for name in names)
    estimates = tuple(text.estimate(row.speedup, row.speedup_low, row.speedup_high) for row in rows)
    columns = [
        Column("category", "category", names, short=("category", short), left=True),
        Column("verdict", "verdict", tuple(row.verdict for row in rows), left=True),
        Column("speedup", f"speedup\n[{text.percent(policy.confidence)} interval]", estimates, left=True),
        Column("best gamma", "best\ngamma", tuple(str(row.best_gamma) for row in rows), 2),
        Column("prompts", "prompts", tuple(f"{row.prompts:,}" for row in rows), 1),
    ]
    yield Text("")
    yield table(fit(columns, width), plain, verdicts=[_COLOUR[row.verdict] for row in rows])


def _same(row: GammaResult) -> str:
    return text.UNKNOWN if row.identical_prompts is None else f"{row.identical_prompts}/{row.prompts}"
