"""Where the pages come from (jinja2 templates beside this file), and the marks on claims that were not measured:
`(predicted, D3)`, where D3 is the entry under "What to distrust".

A mark is put where the sentence is made, as a kind and a key; the page numbers them when it is whole, and takes one
entry into the list for every key that it found. So no mark lacks its entry, and none is listed that nobody made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from specbench import text

Kind = Literal["measured", "predicted", "assumed", "extrapolated", "few prompts", "not known"]
Key = Literal[
    "another round",
    "batches",
    "carry over",
    "category",
    "curve",
    "few",
    "lossless",
    "mix",
    "near-tie",
    "other engine",
    "price",
    "settle",
    "split",
    "steady",
    "what if",
]

# Control characters cannot come from a user's names: text.clean takes them out.
_OPEN, _CLOSE = "\x02", "\x03"
_MARK = re.compile(f"{_OPEN}([^{_CLOSE}]+){_CLOSE}")


@dataclass(frozen=True, slots=True)
class Doubt:
    """A claim not to take at face value: what sort of number it is, and what would change it. `key` ties it to its
    marks in the text; None where the text has none."""

    kind: Kind
    claim: str
    change: str
    key: Key | None = None


def mark(kind: Kind, key: Key) -> str:
    """`(predicted)`, and unseen the key of its entry."""
    return f"({kind}{_OPEN}{key}{_CLOSE})"


def unmarked(words: str) -> str:
    """The words where there is no list to refer to: `(predicted)`."""
    return _MARK.sub("", words)


def keys_in(page: str) -> list[str]:
    """The keys of the marks on a page, each once, in the order of the text."""
    return list(dict.fromkeys(_MARK.findall(page)))


def numbered(page: str, doubts: Sequence[Doubt]) -> str:
    """The page with `, D3` in place of the key of the third doubt. Raises KeyError for a mark without a doubt."""
    number: dict[str, int] = {doubt.key: index for index, doubt in enumerate(doubts, 1) if doubt.key is not None}
    return _MARK.sub(lambda found: f", D{number[found[1]]}", page)


def in_order(doubts: Iterable[Doubt], page: str) -> list[Doubt]:
    """The marked doubts that the page refers to, as it does so, then those without a mark."""
    found, place = list(doubts), {key: index for index, key in enumerate(keys_in(page))}
    marked = [doubt for doubt in found if doubt.key is not None and doubt.key in place]
    return [*sorted(marked, key=lambda doubt: place[doubt.key or ""]), *(d for d in found if d.key is None)]


def template(name: str, *, html: bool = False) -> Template:
    """The template `name` below `templates/`; a value that it misses is an error."""
    environment = Environment(
        loader=PackageLoader("specbench.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=html,  # in Markdown, names are escaped where they enter a sentence
    )
    environment.filters["cell"] = text.cell
    return environment.get_template(name)
