"""The brief as one HTML file: whole, inert whatever names it holds, and with everything that the Markdown has."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from fake_page import ALL, PWN, REPORTS, RUNS, html_of
from justhtml import JustHTML

from specbench.analysis.summarise import summarise
from specbench.errors import StoreError
from specbench.report.canvas import COLOURS, GREY, INK
from specbench.report.page import Page
from specbench.store import read_run

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
    assert listed == [f"#{aim}" for aim in values(html_of(name), "main h2", "id")]


def test_names_stay_words() -> None:
    html = html_of("hostile")
    assert texts(html, "title") == [f'Should </title>{PWN}" decode speculatively?']
    assert f"leave {PWN} off for now" in texts(html, "p.verdict")[0]
    assert texts(html, "h1 code") == [f'</title>{PWN}"']
    assert all(re.match(r"#|https://(github\.com|arxiv\.org)/[\w./-]+$", aim) for aim in values(html, "main a", "href"))
    assert "#price" not in values(html, "a", "href")
    assert not [c for c in html if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}"]


def test_verdicts_are_marked_by_their_word() -> None:
    assert values(html_of("hostile"), "p.verdict", "class") == ["verdict unclear"]
    for name in RUNS:
        call = summarise(read_run(REPORTS / name)).verdict
        assert values(html_of(name), "p.verdict", "class") == [f"verdict {call.lower()}"]
        (description,) = values(html_of(name), 'meta[name="description"]', "content")
        assert re.match(rf"{call}: .+\. Best estimate: decoding runs \d\.\d\dx", description)


def test_marks_lead_to_their_entries() -> None:
    for name in ALL:
        marks = values(html_of(name), "a.mark", "href")
        assert marks and set(marks) <= {f"#{each}" for each in values(html_of(name), "li", "id")}


def test_headings_are_named_as_on_github() -> None:
    page = Page(REPORTS)
    given = ("A b", "What it's for, n=3?", "Año 2_x - y", "?", "A b")
    assert [page.heading(each) for each in given] == ["a-b", "what-its-for-n3", "año-2_x---y", "section", "a-b-1"]


def test_tables_align_numbers_and_leave_room_to_sign() -> None:
    html = html_of("example")
    assert texts(html, "tr.blank th[scope=row]") == ["Name", "Date", "Decision", "Conditions"]
    assert "1.10x" not in texts(html, "td:not(.number)") and "" not in texts(html, "th")
    labels = values(html, ".scroll", "aria-label")
    assert labels[:2] == ["Table: The candidates", "Table: What users would see"]


def test_figures_are_inside_with_their_words() -> None:
    for run in RUNS:
        sources = values(html_of(run), "figure img", "src")
        assert len(sources) == len(list((REPORTS / run / "figures").glob("*.svg")))
        for source in sources:
            kind, code = source.split(",")
            assert kind == "data:image/svg+xml;base64"
            # Without the fallback a browser that lacks the font shows serifs, which do not fit.
            assert "'DejaVu Sans', Verdana, sans-serif" in base64.b64decode(code).decode()
    assert values(html_of("example"), "figure img", "alt")[0] == "Speedup over the target alone, by gamma"


def test_only_figures_of_the_folder_get_inside(tmp_path: Path) -> None:
    (tmp_path / "secret.svg").write_text("secret")
    figures = tmp_path / "run" / "figures"
    figures.mkdir(parents=True)
    (figures / "link.svg").symlink_to(tmp_path / "secret.svg")
    page = Page(tmp_path / "run")
    assert [page.picture(stem) for stem in ("../../secret", "link", "none", ".")] == [""] * 4
    (figures / "bytes.svg").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="Cannot read a figure"):
        page.picture("bytes")


def test_code_keeps_its_words_and_names_its_language() -> None:
    html = html_of("example")
    assert set(values(html, "pre > code", "class")) <= {"language-sh", "language-python"}
    assert any(words.startswith("llama-server ") for words in texts(html, "pre > code"))
    flags = [words for words in texts(html, "p code span, li code span") if words.startswith("--")]
    assert {"--draft", "--limit"} <= set(flags)


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
