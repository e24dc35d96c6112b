"""Templates are kept compiled in the user's cache, and none of it is needed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from specbench.records import Reason
from specbench.report.dialect import Compiled, because, environment
from specbench.report.tables import doctor_tables
from specbench.verify.findings import Examination, noticed


@pytest.fixture
def fresh():
    environment.cache_clear()
    yield
    environment.cache_clear()


REASON = Reason("odds", {"minimum": 1.1, "probability": 0.5})
WORDS = "the chance of 1.10x or more is 50%"


def test_a_sentence_is_compiled_once_and_read_back(monkeypatch, tmp_path, fresh):
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path))
    assert because(REASON) == WORDS
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "templates").iterdir()}
    assert kept
    environment.cache_clear()
    monkeypatch.setattr("jinja2.Environment.compile", None)  # nothing is compiled again
    assert because(REASON) == WORDS
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "templates").iterdir()}


@pytest.mark.parametrize("spoilt", [b"", b"\x00nonsense"])
def test_a_spoilt_copy_is_made_again(spoilt, monkeypatch, tmp_path, fresh):
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path))
    because(REASON)
    for path in (tmp_path / "templates").iterdir():
        path.write_bytes(spoilt)
    environment.cache_clear()
    assert because(REASON) == WORDS


def test_without_a_place_for_it_words_are_the_same(monkeypatch, tmp_path, fresh):
    file = tmp_path / "file"
    file.write_text("in the way")
    monkeypatch.setenv("SPECBENCH_CACHE", str(file))
    assert because(REASON) == WORDS and Compiled(str(file / "x")).directory.endswith("x")


def test_the_doctors_page_names_a_draft_where_there_are_several_and_hints_where_there_is_something_to_do():
    found = [
        noticed("threads", "ok", "2 threads", "Not said."),
        noticed("same-text", "broken", "texts differ", "mend it", "a"),
        noticed("same-text", "note", "nearly a tie", None, "b"),
    ]
    page = shown(found)
    assert "broken: same-text a: texts differ\n    Mend it.\n" in page and "note: same-text b: nearly a tie" in page
    assert "1 check found something broken" in page and "Not said" not in page
    assert "ok: same-text: equal" in shown([noticed("same-text", "ok", "equal", draft="a")])


def shown(found):
    file = io.StringIO()
    broken = sum(each.severity == "broken" for each in found)
    seen = Examination(2, "t", ("a", "b"), "float32", 0.0, 2, 10, broken, tuple(found))
    for part in doctor_tables(seen):
        Console(file=file, width=80).print(part)
    return file.getvalue()
