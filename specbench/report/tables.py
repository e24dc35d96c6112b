"""A Summary as tables for a terminal: the verdict first, then the evidence by gamma and by category, then warnings.

What is shown depends on the terminal: columns give way until the table fits its width, and an ASCII-only terminal
gets ASCII. Nothing is said by colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from specbench.records import Call, Caution, Policy
from specbench.report import text
from specbench.report.contract import Choice, DraftResult, GammaResult, Summary
from specbench.report.replayed import ReplayDraft, Replayed
from specbench.report.wording import by_speedup
from specbench.workload import Workload, WorkloadProfile

_COLOUR: dict[Call, str] = {"GO": "bold green", "NO-GO": "bold red", "UNCLEAR": "bold yellow"}
_GAP = 2

# More positions than this do not fit beside the sparkline.
_SURVIVAL_NUMBERS = 8
_CATEGORY_WIDTH = 24

# A rule below the header and blanks elsewhere, as box.SIMPLE_HEAD has it, in characters that every terminal has.
_ASCII_RULE = box.Box("    \n    \n----\n    \n    \n    \n    \n    \n", ascii=True)


@dataclass(frozen=True, slots=True)
class Column:
    """`cells` under `header`, whose lines are separated by newlines. In a table that is too wide, columns first take
    their `short` header and cells; then the one with the largest `gives_way` goes, and so on. Those with 0 stay."""

    name: str
    header: str
    cells: tuple[str, ...]
    gives_way: int = 0
    short: tuple[str, tuple[str, ...]] | None = None
    left: bool = False

    @property
    def width(self) -> int:
        return max(cell_len(line) for line in (*self.header.split("\n"), *self.cells))

    def shortened(self) -> Column:
        header, cells = self.short or (self.header, self.cells)
        return Column(self.name, header, cells, self.gives_way, None, self.left)


@dataclass(frozen=True, slots=True)
class Block:
    """Something that can only be laid out once width and character set are known."""

    build: Callable[[int, bool], Iterator[RenderableType]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.build(options.max_width, options.ascii_only)


def sweep_tables(summary: Summary, policy: Policy | None = None) -> list[RenderableType]:
    """What `measure` and `sweep` print. Without the run's `policy` the default one names the columns."""
    asked = policy or Policy()
    parts: list[RenderableType] = [Block(partial(_head, summary))]
    if len(summary.drafts) > 1 and summary.choice is not None:
        parts.append(Block(partial(_choice, summary.choice, asked)))
    for draft in summary.drafts:
        parts.append(Block(partial(_verdict, draft, asked)))
        parts.append(Block(partial(_by_gamma, draft, asked, summary.noise_floor)))
        if by_speedup(draft):
            parts.append(Block(partial(_by_category, draft, asked)))
    if summary.warnings:
        parts.append(Block(partial(_warnings, summary.warnings)))
    return parts


def replay_tables(found: Replayed) -> list[RenderableType]:
    """What `replay` prints: acceptance by gamma for each draft, and tokens per round by category."""
    return [Block(partial(_replayed, draft, found.cutoff)) for draft in found.drafts]


def _replayed(draft: ReplayDraft, cutoff: float, width: int, plain: bool) -> Iterator[RenderableType]:
    rows = draft.gammas
    alpha = (
        text.UNKNOWN if draft.alpha is None else f"{draft.alpha:.3f} {text.interval(draft.alpha_low, draft.alpha_high)}"
    )
    at = f", drafting stops below confidence {cutoff:g}" if cutoff else ""
    yield Text(f"\n{_readable(draft.draft, plain)}: acceptance at a position, alpha, {alpha}{at}")
    lines = tuple(text.sparkline(row.survival, ascii_only=plain) for row in rows)
    columns = [
        Column("gamma", "gamma", tuple(str(row.gamma) for row in rows)),
        Column("tau", "tokens per\nround, tau", tuple(_digits(row.tokens_per_round) for row in rows)),
        Column("rounds", "rounds", tuple(f"{row.rounds:,.0f}" for row in rows), 3),
        Column("accepted", "accepted", tuple(f"{row.accepted:,.0f}" for row in rows), 2),
        Column("drafted", "drafted\n(at most)", tuple(f"{row.drafted_high:,.0f}" for row in rows), 1),
        Column("survival", "survival", lines, 4, left=True),
    ]
    yield _table(fit(columns, width), plain)
    words = f"Replayed, not run: {text.count(draft.texts, 'text')} of the target alone, {draft.tokens:,} tokens."
    if cutoff:
        words += " Drafted tokens are an upper bound: off the text the cut-off may stop the draft sooner."
    yield _note(words, width, plain)
    names = list(draft.categories)
    if len(names) > 1:
        shown = [Column("category", "tau of", tuple(_readable(name, plain) for name in names), left=True)]
        for index, row in enumerate(rows):
            cells = tuple(_digits(draft.categories[name][index].tokens_per_round) for name in names)
            shown.append(Column(f"gamma {row.gamma}", f"gamma\n{row.gamma}", cells, index + 1))
        yield Text("")
        yield _table(fit(shown, width), plain)


def workload_tables(workload: Workload, profile: WorkloadProfile) -> list[RenderableType]:
    """What `workload` prints: counts and lengths by category, then what was left out and what to distrust."""
    rows = profile.categories
    columns = [
        Column("category", "category", tuple(row.category or "all" for row in rows), left=True),
        Column("prompts", "prompts", tuple(f"{row.prompts:,}" for row in rows)),
        Column("shortest", "shortest\n(characters)", tuple(f"{row.characters_min:,}" for row in rows), 2),
        Column("median", "median\n(characters)", tuple(f"{row.characters_median:,.0f}" for row in rows)),
        Column("longest", "longest\n(characters)", tuple(f"{row.characters_max:,}" for row in rows), 1),
        Column("turns", "mean\nturns", tuple(f"{row.mean_turns:.1f}" for row in rows), 3),
        Column("system", "with system\nmessage", tuple(text.percent(row.system_share) for row in rows), 4),
    ]

    def build(width: int, plain: bool) -> Iterator[RenderableType]:
        yield _note(f"{workload.source}: {text.count(profile.prompts, 'prompt')}", width, plain, style="")
        yield _note(f"sha256 of the content {workload.sha256}", width, plain)
        yield Text("")
        yield _table(fit(columns, width), plain)
        for skipped in workload.skipped:
            yield _note(f"left out: {skipped.where}, {skipped.reason}", width, plain, style="")
        yield from _warnings(workload.cautions, width, plain)

    return [Block(build)]


def _head(summary: Summary, width: int, plain: bool) -> Iterator[RenderableType]:
    yield _note(f"{summary.target} on {summary.hardware}", width, plain, style="")
    yield _note(summary.engine, width, plain)


def _verdict(draft: DraftResult, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    found = text.estimate(draft.speedup, draft.speedup_low, draft.speedup_high)
    kind = "end to end" if policy.metric == "e2e" else "decode"
    line = Text("\n")
    line.append(draft.verdict, _COLOUR[draft.verdict])
    name = _readable(draft.draft, plain)
    line.append(
        f"  {name}: {found} {kind}, best gamma {draft.best_gamma}, asked for {text.speedup(policy.min_speedup)}"
    )
    yield line
    for reason in draft.reasons:
        yield _note(reason, width, plain, indent="  ", style="")


def _choice(choice: Choice, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    """Of several drafts the best, and how far the others are from it."""
    line = Text("\n")
    line.append(choice.verdict, _COLOUR[choice.verdict])
    found = text.estimate(choice.speedup, choice.speedup_low, choice.speedup_high)
    line.append(
        f"  best of {len(choice.rivals) + 1} drafts: {_readable(choice.draft, plain)}, gamma {choice.gamma}, {found}"
    )
    yield line
    for rival in choice.rivals:
        ratio = text.estimate(rival.ratio, rival.ratio_low, rival.ratio_high)
        word = "the same within noise as" if rival.same else "as fast as"
        yield _note(
            f"{ratio} {word} {_readable(rival.draft, plain)}, gamma {rival.gamma}", width, plain, indent="  ", style=""
        )


def _by_gamma(
    draft: DraftResult, policy: Policy, noise_floor: float | None, width: int, plain: bool
) -> Iterator[RenderableType]:
    columns = [column for column in _gamma_columns(draft, policy, plain) if set(column.cells) != {text.UNKNOWN}]
    kept = fit(columns, width)
    yield _table(kept, plain)
    shown = {column.name for column in kept}
    hidden = [column.name for column in columns if column.name not in shown]
    prompts = max(row.prompts for row in draft.gammas)
    words = [
        f"Measured wall clock of decoding over {text.count(prompts, 'prompt')}, one at a time.",
        "r: accepted / drafted tokens (falls as gamma grows). tau: tokens per round, with the target's own.",
    ]
    if "survival" in shown:
        unit = " in tenths" if plain else ""
        words.append(f"Survival: share of rounds whose first 1, 2, .. drafts were accepted{unit}.")
    if noise_floor is not None:
        words.append(f"Noise floor: {noise_floor:.1%}.")
    if draft.stops_paying_at_batch is not None:
        words.append(f"Predicted to stop paying at batch {draft.stops_paying_at_batch}.")
    if hidden:
        words.append(f"Not shown at this width: {', '.join(hidden)}.")
    yield _note(" ".join(words), width, plain)


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
        column("rounds", "rounds", lambda row: f"{row.rounds:,}", 8),
        column("r", "acceptance\nr", lambda row: text.percent(row.acceptance_rate), 1, "r"),
        column("tau", "tokens per\nround, tau", lambda row: _digits(row.tokens_per_round), 1, "tau"),
        column("tau replayed", "tau\nreplayed", lambda row: _digits(row.replay_tokens_per_round), 6),
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
    longest = max(len(line) for line in lines)
    wide = lines
    if max(len(row.survival) for row in rows) <= _SURVIVAL_NUMBERS:
        wide = tuple(f"{line:{longest}} {_shares(row)}".rstrip() for line, row in zip(lines, rows, strict=True))
    return Column("survival", "survival", wide, 5, ("survival", lines), left=True)


def _shares(row: GammaResult) -> str:
    return " ".join("?" if share is None else f"{share:.2f}".removeprefix("0") for share in row.survival)


def _by_category(draft: DraftResult, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    rows = by_speedup(draft)
    names = tuple(_readable(row.category, plain) for row in rows)
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
    yield _table(fit(columns, width), plain, verdicts=[_COLOUR[row.verdict] for row in rows])


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that `width` characters can hold: first all short forms are taken, then the least needed go."""
    kept = list(columns)
    if _total(kept) > width:
        # The survival numbers cost most and say what the sparkline shows.
        kept = [column.shortened() if column.name == "survival" else column for column in kept]
    if _total(kept) > width:
        kept = [column.shortened() for column in kept]
    while _total(kept) > width and any(column.gives_way for column in kept):
        kept.remove(max(kept, key=lambda column: column.gives_way))
    return kept


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)


def _table(columns: Sequence[Column], plain: bool, verdicts: Sequence[str] = ()) -> Table:
    """`verdicts` are the styles of the verdict column, row by row."""
    table = Table(
        box=_ASCII_RULE if plain else box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
        header_style="bold",
    )
    for column in columns:
        # A long name may be cut to make room; numbers may not.
        name = column.name == "category"
        justify: Literal["left", "right"] = "left" if column.left else "right"
        table.add_column(column.header, justify=justify, vertical="bottom", no_wrap=not name, overflow="fold")
    for index in range(len(columns[0].cells)):
        styles = [verdicts[index] if column.name == "verdict" else "" for column in columns]
        table.add_row(*(Text(column.cells[index], style) for column, style in zip(columns, styles, strict=True)))
    return table


def _warnings(warnings: Sequence[Caution], width: int, plain: bool) -> Iterator[RenderableType]:
    yield Text("")
    for warning in warnings:
        line = Text()
        line.append(f"warning {_readable(warning.code, plain)}: ", "yellow")
        line.append(_readable(text.sentence(warning.message), plain))
        yield line
        yield _note(text.sentence(warning.cure), width, plain, indent="  ", style="")


def _note(words: str, width: int, plain: bool, *, indent: str = "", style: str = "dim") -> Text:
    """Prose wrapped here, because rich pads an indented paragraph with spaces to the full width."""
    lines = textwrap.wrap(_readable(words, plain), width, initial_indent=indent, subsequent_indent=indent)
    return Text("\n".join(lines), style)


def _readable(words: str, plain: bool) -> str:
    return text.ascii_text(text.clean(words)) if plain else text.clean(words)


def _digits(value: float | None) -> str:
    return text.UNKNOWN if value is None else f"{value:.2f}"


def _same(row: GammaResult) -> str:
    return text.UNKNOWN if row.identical_prompts is None else f"{row.identical_prompts}/{row.prompts}"
