"""The brief as one HTML file: its Markdown, with style and figures inside, no script, and nothing to fetch.

Names in the Markdown come from users' files. Raw HTML is off, links that could run code are off, and the page forbids
scripts and requests besides.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from specbench import text
from specbench.errors import StoreError
from specbench.report.templating import template

_VERDICT = re.compile(r"(NO-GO|GO|UNCLEAR)(, of \d+ drafts)?:")
_MARK = re.compile(r"\(([a-z][a-z -]{0,30}, (D\d+))\)")
_DOUBT = re.compile(r"D\d+")
_INTERVAL = re.compile(r"(\[[-+\d.]+,) ([-+\d.]+\])")
# Beyond printable ASCII, line ends, tabs and no-break spaces a character has to be looked at.
_STRANGE = re.compile(r"[^ -~\n\t\N{NO-BREAK SPACE}]+")
_FLAG = re.compile(r"(?<!\S)(--\w[\w-]{0,30}|-[A-Za-z])(?![\w-])")
_DESCRIPTION_WIDTH = 200
# Matplotlib names one font; where it is missing a browser would set the figure in its serif.
_FONT = ("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


@dataclass(frozen=True, slots=True)
class Heading:
    """One line of the contents: the id that it leads to, and its words."""

    anchor: str
    title: str


def to_html(markdown: str, figures: Mapping[str, str] | Path, title: str) -> str:
    """One HTML5 document from CommonMark with tables; the same input gives the same text.

    `figures` are SVG texts by the path that an image names (`figures/speedup.svg`), or the folder that those paths
    start from. An image that is not among them becomes a line that says so. Raises StoreError where a figure that is
    there cannot be read.
    """
    parser = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    tokens = parser.parse(markdown)
    doubts = _name_doubts(tokens)
    contents = _name_headings(tokens, set(doubts.values()))
    summary = _box_verdicts(tokens)
    _dress_words(tokens, doubts)
    tokens = list(_frame_tables(list(_frame_figures(tokens, figures))))
    first = next((i for i, token in enumerate(tokens) if _opens(token, "h2")), len(tokens))

    def html(part: Sequence[Token]) -> Markup:
        return Markup(parser.renderer.render(part, parser.options, {}))

    page = template("page.html.j2", html=True).render(
        title=text.clean(title),
        description=summary,
        head=html(tokens[:first]),
        body=html(tokens[first:]),
        contents=contents,
    )
    return _visible(page)  # last, since Markdown can spell any character as `&#...;`


def _visible(words: str) -> str:
    """As text.clean: a control character may reorder the words that are signed, and most are errors in HTML."""
    return _STRANGE.sub(lambda run: "".join(c if c.isprintable() else " " for c in run[0]), words)


def _opens(token: Token, tag: str) -> bool:
    """Whether a heading of the document itself begins here, not one inside a quotation or a list."""
    return token.type == "heading_open" and token.tag == tag and token.level == 0


def _plain(inline: Token) -> str:
    """The words of a paragraph, heading or cell without their markup."""
    return "".join(" " if child.type.endswith("break") else child.content for child in inline.children or ())


def _name_doubts(tokens: Sequence[Token]) -> dict[str, str]:
    """Give each list entry that begins with a bold `D3` the id `d3`; returns ids by number."""
    found: dict[str, str] = {}
    for item, inline in zip(tokens, tokens[2:], strict=False):
        if item.type == "list_item_open" and inline.type == "inline":
            number = _bold_start(inline)
            if _DOUBT.fullmatch(number) and number not in found:
                found[number] = number.lower()
                item.attrSet("id", number.lower())
    return found


def _bold_start(inline: Token) -> str:
    """The first words of a paragraph if they are bold, else nothing."""
    children = [child for child in inline.children or () if child.type != "text" or child.content]
    bold = len(children) > 1 and children[0].type == "strong_open"
    return children[1].content if bold else ""


def _name_headings(tokens: Sequence[Token], taken: set[str]) -> list[Heading]:
    """Give each heading the id that GitHub would give it; returns the second level, which is the contents."""
    contents = []
    for heading, inline in pairwise(tokens):
        if heading.type != "heading_open":
            continue
        title = _plain(inline)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") or "section"
        anchor, again = slug, 0
        while anchor in taken:
            again += 1
            anchor = f"{slug}-{again}"
        taken.add(anchor)
        heading.attrSet("id", anchor)
        if _opens(heading, "h2"):
            contents.append(Heading(anchor, title))
    return contents


def _box_verdicts(tokens: Sequence[Token]) -> str:
    """Mark the verdicts before the first section by their outcome; returns the first one's words, shortened."""
    summary = ""
    for paragraph, inline in pairwise(tokens):
        if _opens(paragraph, "h2"):
            break
        if paragraph.type == "paragraph_open" and paragraph.level == 0:
            word = _VERDICT.match(_bold_start(inline))
            if word:
                paragraph.attrSet("class", f"verdict {word[1].lower()}{' choice' if word[2] else ''}")
                summary = summary or _plain(inline)
    short = summary[:_DESCRIPTION_WIDTH].rsplit(" ", 1)[0]
    return summary if len(summary) <= _DESCRIPTION_WIDTH else f"{short}..."


def _dress_words(tokens: Sequence[Token], doubts: Mapping[str, str]) -> None:
    """Turn each `(predicted, D3)` whose D3 is listed into a link to it, and keep intervals and flags on one line."""
    for token in tokens:
        if token.type == "inline":
            token.children = list(_dressed(token.children or [], doubts))
        elif token.type in ("fence", "code_block"):
            language = token.info.split()[:1]
            code = Token("code_open", "code", 1, attrs={"class": f"language-{language[0]}"} if language else {})
            token.type, token.children = "inline", [_tag("pre", 1), code, *_whole_flags(token.content)]
            token.children += [_tag("code", -1), _tag("pre", -1), _text("\n")]


def _dressed(children: Sequence[Token], doubts: Mapping[str, str]) -> Iterator[Token]:
    inside = 0  # a link cannot hold another
    for child in children:
        inside += child.nesting if child.tag == "a" else 0
        if child.type == "code_inline":
            yield from (_tag("code", 1), *_whole_flags(child.content), _tag("code", -1))
        elif child.type == "text":
            child.content = _INTERVAL.sub("\\1\N{NO-BREAK SPACE}\\2", child.content)
            yield from [child] if inside else _linked(child.content, doubts)
        else:
            yield child


def _linked(words: str, doubts: Mapping[str, str]) -> Iterator[Token]:
    end = 0
    for mark in _MARK.finditer(words):
        if mark[2] in doubts:
            yield from _whole_flags(words[end : mark.start()])
            yield Token("link_open", "a", 1, attrs={"class": "mark", "href": f"#{doubts[mark[2]]}"})
            yield from (_text(mark[1]), _tag("a", -1))
            end = mark.end()
    yield from _whole_flags(words[end:])


def _whole_flags(words: str) -> Iterator[Token]:
    """A browser breaks a line inside `--draft`, which is then typed wrongly from paper."""
    for i, part in enumerate(_FLAG.split(words)):
        yield from (_tag("span", 1), _text(part), _tag("span", -1)) if i % 2 else (_text(part),)


def _tag(tag: str, nesting: Literal[-1, 1]) -> Token:
    return Token(f"{tag}_{'open' if nesting == 1 else 'close'}", tag, nesting)


def _text(words: str) -> Token:
    return Token("text", "", 0, content=words)


def _frame_figures(tokens: Sequence[Token], figures: Mapping[str, str] | Path) -> Iterator[Token]:
    """Put the images inside the page; one that stands alone becomes a numbered figure with its words below."""
    number = 0
    for i, token in enumerate(tokens):
        images = [child for child in token.children or () if child.type == "image"]
        for image in images:
            _embed(image, figures)
        if len(images) == 1 and len(token.children or ()) == 1 and images[0].type == "image":
            number += 1
            name, words = f"Figure {number}", str(images[0].attrs.get("title") or _plain(images[0]))
            tokens[i - 1].tag = tokens[i + 1].tag = "figure"
            caption = [_tag("figcaption", 1), _text(f"{name}. {words}" if words else name), _tag("figcaption", -1)]
            token.children = [*_scrolling(name, images), *caption]
        yield token


def _embed(image: Token, figures: Mapping[str, str] | Path) -> None:
    """An SVG in an img element runs no script, fetches nothing, and can be saved on its own."""
    picture = _picture(str(image.attrs["src"]), figures)
    if picture is None:
        image.type, image.content = "text", f"(No figure here: {_plain(image) or 'no description'})"
    else:
        code = b64encode(picture.replace(*_FONT).encode()).decode()
        image.attrSet("src", f"data:image/svg+xml;base64,{code}")


def _picture(source: str, figures: Mapping[str, str] | Path) -> str | None:
    if not isinstance(figures, Path):
        return figures.get(source)
    try:
        path = (figures / source).resolve()
        # Only figures, and only from below the folder: the page may be passed on, other files may not.
        if path.suffix != ".svg" or not path.is_relative_to(figures.resolve()) or not path.is_file():
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"Cannot read a figure: {error}", where=text.clean(figures / source), hint="Write the brief again."
        ) from None


def _scrolling(name: str, content: Sequence[Token]) -> list[Token]:
    """A box that scrolls by itself where the screen is narrow, also from the keyboard."""
    attributes: dict[str, str | int | float] = {"class": "scroll", "role": "group", "aria-label": name, "tabindex": 0}
    return [Token("scroll_open", "div", 1, attrs=attributes), *content, _tag("div", -1)]


def _frame_tables(tokens: Sequence[Token]) -> Iterator[Token]:
    """Put each table into a scrolling box named after the heading above it."""
    name, start = "Table", 0
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            name = f"Table: {_plain(tokens[i + 1])}"
        if token.type == "table_open":
            yield from tokens[start:i]
            start = i
        elif token.type == "table_close":
            yield from _scrolling(name, _table(tokens[start : i + 1]))
            start = i + 1
    yield from tokens[start:]


def _table(tokens: Sequence[Token]) -> list[Token]:
    """Alignment as classes. Without headings a table is a form: its first column names the rows."""
    head = next(i for i, token in enumerate(tokens) if token.type == "thead_close")
    headings = [token.content for token in tokens[:head] if token.type == "inline"]
    form = not any(headings)
    for i, token in enumerate(tokens):
        if token.type in ("th_open", "td_open"):
            if token.attrs.pop("style", None) == "text-align:right":
                token.attrSet("class", "number")
            if token.type == "th_open":
                token.attrSet("scope", "col")
            elif form and tokens[i - 1].type == "tr_open":
                token.tag = tokens[i + 2].tag = "th"
                token.attrSet("scope", "row")
        if form and token.type == "tr_open" and _blank(tokens[i:]):
            token.attrSet("class", "blank")
    numbers = any(token.attrs.get("class") == "number" for token in tokens)
    if len(headings) == 2 and not numbers:
        tokens[0].attrSet("class", "pairs")
    return [tokens[0], *tokens[head + 1 :]] if form else list(tokens)


def _blank(tokens: Sequence[Token]) -> bool:
    """Whether the row that begins here is named and otherwise empty: a line to be filled in by hand."""
    end = next(i for i, token in enumerate(tokens) if token.type == "tr_close")
    name, *cells = [token.content for token in tokens[:end] if token.type == "inline"]
    return bool(name) and not any(cells)
