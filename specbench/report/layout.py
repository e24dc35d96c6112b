"""How tables are laid out for a terminal: columns give way until they fit its width, an ASCII-only terminal gets ASCII,
and nothing is said by colour alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from specbench import text
from specbench.records import Caution

_GAP = 2

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


def table(columns: Sequence[Column], plain: bool, verdicts: Sequence[str] = ()) -> Table:
    """`verdicts` are the styles of the verdict column, row by row; without them it has none."""
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
    for index in range(len(columns[0].cells)):
        styles = [verdicts[index] if verdicts and column.name == "verdict" else "" for column in columns]
        laid_out.add_row(*(Text(column.cells[index], style) for column, style in zip(columns, styles, strict=True)))
    return laid_out


def warnings(found: Sequence[Caution], width: int, plain: bool) -> Iterator[RenderableType]:
    """Each warning with its hint."""
    yield Text("")
    for warning in found:
        line = Text()
        line.append(f"warning {readable(warning.code, plain)}: ", "yellow")
        line.append(readable(text.sentence(warning.message), plain))
        yield line
        yield note(text.sentence(warning.hint), width, plain, indent="  ", style="")


def note(words: str, width: int, plain: bool, *, indent: str = "", style: str = "dim") -> Text:
    """Prose wrapped here, because rich pads an indented paragraph with spaces to the full width."""
    lines = textwrap.wrap(readable(words, plain), width, initial_indent=indent, subsequent_indent=indent)
    return Text("\n".join(lines), style)


def readable(words: str, plain: bool) -> str:
    """One line without control characters; in ASCII where the terminal has nothing else."""
    return text.ascii_text(text.clean(words)) if plain else text.clean(words)
