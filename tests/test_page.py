"""The brief as one HTML file: whole, inert whatever names it holds, and with everything that the Markdown has."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from fake_page import ALL, REPORTS, RUNS, SVG, html_of, page
from justhtml import JustHTML

from specbench.errors import StoreError
from specbench.report.canvas import COLOURS, GREY, INK
from specbench.report.page import to_html

CSS = Path(__file__).parent.parent / "specbench" / "report" / "templates" / "page.css"


def parsed(html: str) -> JustHTML:
    """Raises where the HTML breaks any rule of the standard's parser."""
    return JustHTML(html, strict=True, sanitize=False)


def texts(html: str, selector: str) -> list[str]:
    return [" ".join(node.to_text().split()) for node in parsed(html).query(selector)]


def values(html: str, selector: str, name: str) -> list[str]:
    """The attribute of each element that has it."""
    nodes = parsed(html).query(selector)
    return [str(node.attrs[name]) for node in nodes if node.attrs and name in node.attrs]


@pytest.mark.parametrize("name", ALL)
def test_it_is_one_strict_file_that_asks_for_nothing(name: str) -> None:
    nodes = parsed(html_of(name)).query("*")
    assert not {node.name for node in nodes} & {"script", "iframe", "object", "embed", "base", "form", "svg", "video"}
    for node in nodes:
        for key, value in (node.attrs or {}).items():
            assert not key.startswith("on")
            if key in ("src", "srcset", "poster", "background") or (key == "href" and node.name == "link"):
                assert str(value).startswith("data:")
            elif key == "href":
                assert str(value).startswith(("#", "https://"))
    # A style can fetch as well.
    assert not re.search(r"url\(|@import|image-set", "".join(texts(html_of(name), "style")), re.IGNORECASE)
    (policy,) = values(html_of(name), 'meta[http-equiv="Content-Security-Policy"]', "content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


@pytest.mark.parametrize("name", ALL)
def test_every_anchor_leads_to_one_place(name: str) -> None:
    ids = values(html_of(name), "*", "id")
    assert len(ids) == len(set(ids))
    assert {aim for aim in values(html_of(name), "a", "href") if aim[0] == "#"} <= {f"#{aim}" for aim in ids}
    listed = values(html_of(name), "nav a", "href")
    assert listed == [f"#{aim}" for aim in values(html_of(name), "main > h2", "id")]
    assert listed == values(html_of(name), "details a", "href")


def test_names_stay_words() -> None:
    html = html_of("hostile")
    assert texts(html, "title") == ['</title><script>x</script>"']
    assert '<script>document.title="pwned"</script>' in texts(html, "p.verdict")[0]
    assert texts(html, "blockquote li a") == ["to (predicted, D1)"]  # no link within a link
    assert values(html, "main p a", "href") == ["https://example.org/%22onclick=%22x"]
    assert not [c for c in html if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}"]


def test_verdicts_are_marked_by_their_word() -> None:
    assert values(page(), "p.verdict", "class") == ["verdict go choice", "verdict unclear"]
    assert values(html_of("llamacpp"), "p.verdict", "class")[0] == "verdict no-go choice"
    (description,) = values(page(), 'meta[name="description"]', "content")
    assert description.startswith("GO, of 2 drafts: turn a on. It ran 1.28x")
    # A verdict is said once, at the top; the same words further down are a quotation.
    assert texts(page("# T\n\n**GONE: x**\n\n## S\n\n**GO: x.** y"), ".verdict") == []


def test_marks_lead_to_their_entries() -> None:
    html = page()
    assert texts(html, "a.mark") == ["predicted, D2", "few prompts, D1"]
    assert values(html, "a.mark", "href") == ["#d2", "#d1"]
    assert [texts(html, entry)[0][:2] for entry in ("#d1", "#d2")] == ["D1", "D2"]
    # What leads nowhere stays text, and so does what is only measured.
    assert "(assumed, D9)" in html and "(measured)" in html


def test_headings_are_named_as_on_github() -> None:
    html = page("# A b\n\n## What it's for, `n=3`?\n\n## Año 2_x - y\n\n## ?\n\n### A b\n\n- **D1**, x\n\n## D1")
    ids = values(html, "h1, h2, h3", "id")
    assert ids == ["a-b", "what-its-for-n3", "año-2_x---y", "section", "a-b-1", "d1-1"]


def test_tables_align_numbers_and_leave_room_to_sign() -> None:
    document = parsed(page())
    numbers = [node.to_text() for node in document.query("td.number")]
    assert numbers == ["1.20x [1.10,\N{NO-BREAK SPACE}1.30]", "1.15x few prompts, D1"]
    assert texts(page(), "tr.blank th[scope=row]") == ["Name", "Date"]
    assert texts(page(), "tr:not(.blank) th[scope=row]") == ["run"]
    assert "" not in texts(page(), "th")
    assert values(page(), ".scroll", "aria-label") == ["Table: a", "Figure 1", "Table: Decision", "Table: Provenance"]


def test_figures_are_inside_with_their_words() -> None:
    kind, code = values(page(), "figure img", "src")[0].split(",")
    assert kind == "data:image/svg+xml;base64"
    # Without the fallback a browser that lacks the font shows serifs, which do not fit.
    assert base64.b64decode(code).decode() == SVG.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    assert values(page(), "figure img", "alt") == ["Speedup by gamma"]
    assert texts(page(), "figcaption") == ["Figure 1. Speedup by gamma"]
    for run in RUNS:
        assert len(texts(html_of(run), "figure img")) == len(list((REPORTS / run / "figures").glob("*.svg")))


def test_only_figures_of_the_folder_get_inside(tmp_path: Path) -> None:
    (tmp_path / "secret.svg").write_text("secret")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note.txt").write_text("secret")
    (tmp_path / "run" / "link.svg").symlink_to(tmp_path / "secret.svg")
    for source in ("../secret.svg", str(tmp_path / "secret.svg"), "note.txt", "link.svg", "none.svg", "."):
        html = to_html(f"![words]({source})", tmp_path / "run", "t")
        assert texts(html, "main p") == ["(No figure here: words)"]
        assert texts(html, "img") == []
    (tmp_path / "run" / "bytes.svg").write_bytes(b"\xff\xfe")
    for name in ("bytes.svg", f"{'x' * 300}.svg"):
        with pytest.raises(StoreError, match="Cannot read a figure"):
            to_html(f"![words]({name})", tmp_path / "run", "t")


def test_code_keeps_its_words_and_names_its_language() -> None:
    assert values(page(), "pre > code", "class") == ["language-sh"]
    assert texts(page(), "pre > code") == ["specbench sweep --max-new-tokens 32"]
    assert texts(page(), "pre span") == ["--max-new-tokens"]
    assert "a  b\n  --c d\n</code>" in page("```\na  b\n  --c d\n```").replace("<span>", "").replace("</span>", "")


def test_any_markdown_renders() -> None:
    assert texts(page(""), "main") == [""]
    assert texts(page("Setext\n---\n\n1. a\n   - b\n\n| a |\n| - |"), "h2, ul li, th") == ["Setext", "b", "a"]
    assert page() == page()


# Contrast, as in WCAG 2: 4.5 for words, 3 for lines and markers.


def luminance(rgb: tuple[float, ...]) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def in_the_dark(colour: str) -> tuple[float, ...]:
    """What the filter of the dark page makes of a figure's colour (Filter Effects, matrices of section 8)."""
    r, g, b = (0.9 - 0.8 * int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    turned = (-0.574 * r + 1.43 * g + 0.144 * b, 0.426 * r + 0.43 * g + 0.144 * b, 0.426 * r + 1.43 * g - 0.856 * b)
    return tuple(min(max(c, 0.0), 1.0) for c in turned)


def test_figures_stay_legible_in_the_dark() -> None:
    assert "img { filter: invert(0.9) hue-rotate(180deg); }" in CSS.read_text()
    paper = in_the_dark("#ffffff")
    assert paper == pytest.approx((0x1A / 255,) * 3, abs=0.01)  # --paper of the dark page: no card around a figure
    assert min(contrast(in_the_dark(colour), paper) for colour in (INK, GREY)) >= 4.5
    assert min(contrast(in_the_dark(colour), paper) for colour in COLOURS) >= 3
