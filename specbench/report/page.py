"""A page as Markdown, and as one HTML file: style and figures inside, no script, and nothing to fetch.

Names come from users' files. A template escapes whatever it is given, links that could run code are off, and the page
forbids scripts and requests besides.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from specbench import text
from specbench.errors import StoreError
from specbench.report.dialect import HTML, MARKDOWN, UNLINKED, Plain, blocks, codes, template

if TYPE_CHECKING:
    from specbench.analysis.compare import Comparison

# Matplotlib names one font; where it is missing a browser would set the figure in its serif.
_FONT = ("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
# Beyond printable ASCII, line ends, tabs and no-break spaces a character has to be looked at.
_STRANGE = re.compile(r"[^ -~\n\t\N{NO-BREAK SPACE}]+")
_DESCRIPTION_WIDTH = 200
FIGURES_FOLDER = "figures"


@dataclass
class Page:
    """What the blocks of one page share: `contents` are the ids and words of its sections, `last` is the heading above;
    `folder` has the figures below `figures/`."""

    folder: Path
    contents: list[tuple[str, str]] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    last: str = "Table"

    def heading(self, words: str, section: bool = False) -> str:
        """The id of a heading, as GitHub makes it."""
        plain = words.striptags() if isinstance(words, Markup) else words
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-") or "section"
        anchor, again = slug, 0
        while anchor in self.taken:
            again += 1
            anchor = f"{slug}-{again}"
        self.taken.add(anchor)
        self.last = plain
        if section:
            self.contents.append((anchor, plain))
        return anchor

    def picture(self, stem: str) -> str:
        """A figure as the source of an img element, where an SVG runs no script and fetches nothing; empty where there
        is none."""
        path = self.folder / FIGURES_FOLDER / f"{stem}.svg"
        try:
            # Only from below the folder: the page may be passed on, other files may not.
            if not path.is_file() or not path.resolve().is_relative_to(self.folder.resolve()):
                return ""
            drawn = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(
                f"Cannot read a figure: {error}", where=text.clean(path), hint="Write the brief again."
            ) from None
        return f"data:image/svg+xml;base64,{b64encode(drawn.replace(*_FONT).encode()).decode()}"


def markdown(name: str, found: Mapping[str, Any], d: Plain = MARKDOWN) -> str:
    """A page of a template and its values, without double blank lines."""
    made = blocks("blocks.md.j2", d, {"folder": FIGURES_FOLDER, "anchors": d is MARKDOWN})
    page = template(name, d).render(found, b=made)
    lines = [line.rstrip() for line in page.strip().split("\n")]
    return "\n".join(line for line, before in zip(lines, ["", *lines], strict=False) if line or before) + "\n"


def comparison_markdown(found: Comparison) -> str:
    """Two runs side by side."""
    from specbench.decision.interval import EQUIVALENT

    return markdown("compare.j2", {"c": found, "equivalent": EQUIVALENT}, UNLINKED)


def html_page(folder: Path, name: str, values: Mapping[str, Any], title: str, description: str) -> str:
    """One HTML5 document from a template, its values and the figures below `folder`; the same input gives the same
    text."""
    page = Page(folder, taken=set(codes("doubts")))  # which are their ids
    made = blocks("blocks.html.j2", HTML, page)
    body = Markup(template(name, HTML).render(values, b=made))  # noqa: S704  # escaped by the template
    short = description[:_DESCRIPTION_WIDTH].rsplit(" ", 1)[0]
    return _closed(
        template("page.html.j2", HTML).render(
            title=text.clean(title),
            description=description if len(description) <= _DESCRIPTION_WIDTH else f"{short}...",
            body=body,
            contents=page.contents,
        )
    )


def _closed(page: str) -> str:
    """Without blank lines but in code. As text.clean: a control character may reorder the words that are signed, and
    most are errors in HTML."""
    visible = _STRANGE.sub(lambda run: "".join(c if c.isprintable() else " " for c in run[0]), page)
    parts = re.split(r"(<pre.*?</pre>)", visible, flags=re.DOTALL)
    return "".join(part if part.startswith("<pre") else re.sub(r"\n[ \t]*(?=\n)", "", part) for part in parts)
