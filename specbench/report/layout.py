"""How a page is laid out for a terminal: columns give way until they fit its width, an ASCII-only terminal gets ASCII,
and nothing is said by colour alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from specbench import text
from specbench.records import Finding
from specbench.report.dialect import ASCII, PLAIN, Column, said, template
from specbench.report.filters import squash

if TYPE_CHECKING:
    from specbench.analysis.compare import Comparison
    from specbench.analysis.contract import Summary

_GAP = 2

# A rule below the header and blanks elsewhere, as box.SIMPLE_HEAD has it, in characters that every terminal has.
_ASCII_RULE = box.Box("    \n    \n----\n    \n    \n    \n    \n    \n", ascii=True)

# What a word at the beginning of a line, or in the column of verdicts, is repeated by.
_COLOURS = {
    "GO": "bold green",
    "NO-GO": "bold red",
    "UNCLEAR": "bold yellow",
    "THE SAME": "bold green",
    "THE SAME BUT FOR ROUNDING": "bold green",
    "DIFFERS": "bold red",
    "UNDECIDED": "bold yellow",
    "ok": "green",
    "note": "yellow",
    "warning": "yellow",
    "broken": "bold red",
    "not checked": "dim",
}


class TerminalPage:
    """A macro of terminal.j2 over what it is `about`, laid out once width and character set are known."""

    def __init__(self, macro: str, *about: Any) -> None:
        self.macro, self.about = macro, about

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blocks = Terminal(options.max_width, options.ascii_only)
        pages = template("terminal.j2", ASCII if options.ascii_only else PLAIN).module
        getattr(pages, self.macro)(blocks, *self.about)
        yield from blocks.parts


def sweep_page(summary: Summary) -> TerminalPage:
    """The verdict, then the evidence by gamma, category and load, then warnings."""
    from specbench.analysis.loads import best_by_concurrency

    return TerminalPage("sweep", summary, partial(best_by_concurrency, summary.loads, policy=summary.policy))


def comparison_page(found: Comparison) -> TerminalPage:
    from specbench.decision.interval import EQUIVALENT

    return TerminalPage("compared", found, EQUIVALENT)


class Terminal:
    """The blocks of a page as a terminal shows them, in the order in which a template says them. Of the last table
    `known` names the columns and `kept` are those shown; `hidden` says which are not."""

    def __init__(self, width: int, plain: bool) -> None:
        self.width, self.plain = width, plain
        self.parts: list[RenderableType] = []
        self.known: set[str] = set()
        self.kept: list[Column] = []
        self._all: Sequence[Column] = ()

    def p(self, style: str = "dim", indent: str = "", hang: str | None = None, *, caller: Callable[[], str]) -> str:
        """Prose wrapped here, because rich pads an indented paragraph with spaces to the full width."""
        words = self.readable(squash(caller()))
        if words:
            lines = textwrap.wrap(
                words, self.width, initial_indent=indent, subsequent_indent=indent if hang is None else hang
            )
            self.parts.append(Text("\n".join(lines), style))
        return ""

    def h(self, style: str = "", *, caller: Callable[[], str]) -> str:
        """A line above a table."""
        self.parts.append(Text("\n" + self.readable(squash(caller())), style))
        return ""

    def verdict(self, word: str, above: str = "\n", *, caller: Callable[[], str]) -> str:
        line = Text(above)
        line.append(word, _COLOURS[word])
        line.append("  " + self.readable(squash(caller())))
        self.parts.append(line)
        return ""

    def finding(self, state: str, label: str, *, caller: Callable[[], str]) -> str:
        """`broken: doctor-code: what was found`, further lines indented."""
        words = self.readable(f"{state}: {label}: {squash(caller())}")
        lines = textwrap.wrap(words, self.width, subsequent_indent=" " * 4, break_on_hyphens=False)
        line = Text("\n".join(lines))
        line.stylize(_COLOURS[state], 0, len(state))
        self.parts.append(line)
        return ""

    def gap(self) -> str:
        self.parts.append(Text(""))
        return ""

    def h1(self, words: str) -> str:
        """A terminal has the command above."""
        return ""

    def h2(self, words: str) -> str:
        return self.h("bold", caller=lambda: words)

    def h3(self, words: str) -> str:
        return self.h(caller=lambda: words)

    def ul(self, *, caller: Callable[[], str]) -> str:
        return caller()

    def li(self, *, caller: Callable[[], str]) -> str:
        return self.p("", caller=caller)

    def table(self, columns: Sequence[Column], title: str = "", gap: bool = False) -> str:
        """None of no rows. Under one with a title stands what it does not show."""
        self._all, self.kept = columns, fit(columns, self.width)
        self.known = {column.name for column in columns}
        if gap:
            self.gap()
        if columns:
            self.parts.append(_table(self.kept, self.plain))
        return self.p(caller=lambda: self.hidden) if title else ""

    @property
    def shown(self) -> set[str]:
        return {column.name for column in self.kept}

    @property
    def hidden(self) -> str:
        gone = [column.title for column in self._all if column.name not in self.shown]
        between = "; " if any("," in title for title in gone) else ", "
        return f"Not shown at this width: {between.join(gone)}." if gone else ""

    def warnings(self, found: Sequence[Finding], gap: bool = True) -> str:
        if found and gap:
            self.gap()
        for warning in found:
            line = Text()
            line.append(f"warning {self.readable(warning.code)}: ", "yellow")
            line.append(self.readable(text.sentence(said(warning))))
            self.parts.append(line)
            self.p("", "  ", caller=lambda hint=warning.hint: text.sentence(hint))  # type: ignore[misc]
        return ""

    def readable(self, words: str) -> str:
        """One line without control characters; in ASCII where the terminal has nothing else."""
        return text.ascii_text(text.clean(words)) if self.plain else text.clean(words)


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that `width` characters can hold: first all short forms are taken, then the least needed go."""
    kept = list(columns)
    if _total(kept) > width:
        # The survival numbers cost most and say what the bars show.
        kept = [column.shortened() if column.name == "survival" else column for column in kept]
    if _total(kept) > width:
        kept = [column.shortened() for column in kept]
    while _total(kept) > width and any(column.gives_way for column in kept):
        kept.remove(max(kept, key=lambda column: column.gives_way))
    return kept


def _width(column: Column) -> int:
    return max(cell_len(line) for line in (*column.header.split("\n"), *column.cells))


def _total(columns: Sequence[Column]) -> int:
    return sum(_width(column) for column in columns) + _GAP * (len(columns) - 1)


def _table(columns: Sequence[Column], plain: bool) -> Table:
    laid_out = Table(
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
        laid_out.add_column(column.header, justify=justify, vertical="bottom", no_wrap=not name, overflow="fold")
    cells = ([Text(c, _COLOURS.get(c, "") if each.name == "verdict" else "") for c in each.cells] for each in columns)
    for row in zip(*cells, strict=True):
        laid_out.add_row(*row)
    return laid_out
