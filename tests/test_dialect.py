"""Templates are kept compiled in the user's cache, and none of it is needed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from specbench.records import Finding, Reason
from specbench.report.dialect import Compiled, because, environment, said
from specbench.report.filters import of_100
from specbench.report.layout import TerminalPage
from specbench.verify import Examination
from specbench.verify.doctor import noticed


@pytest.fixture
def fresh():
    environment.cache_clear()
    yield
    environment.cache_clear()


REASON = Reason("odds", {"minimum": 1.1, "confidence": 0.95, "probability": 0.5})
WORDS = "the chance of 1.10x or more is 50%"


@pytest.mark.parametrize(
    ("code", "values", "words"),
    [
        ("odds", {"minimum": 1.125, "confidence": 0.95, "probability": 0.948}, "of 1.125x or more is 94.8%"),
        ("memory", {"takes_bytes": 2.004e9, "allowed_bytes": 2e9}, "takes 2.004 GB of memory, 2.0 GB are allowed"),
        ("memory", {"takes_bytes": 1.3e9, "allowed_bytes": 1.25e9}, "takes 1.3 GB of memory, 1.25 GB are allowed"),
        (
            "whole-answer",
            {"speedup": 1.097, "low": 1.05, "high": 1.2, "minimum": 1.1},
            "ran 1.097x [1.05, 1.20] as fast",
        ),
        (
            "slower-prompts",
            {"share": 29 / 115, "slower_than": 0.975, "allowed": 0.25, "may_be_chance": False},
            "25.2% of prompts run below 0.975x (at most 25% allowed)",
        ),
        (
            "slower-prompts",
            {"share": 0.3, "slower_than": 0.95, "allowed": 0.125, "may_be_chance": True, "batch": 4},
            "30% of batches of 4 prompts run below 0.95x (at most 12.5% allowed), which over so few batches",
        ),
        ("more-prompts", {"more": 357, "needed": 472}, "about 357 more prompts like these, 472 in all"),
        ("too-few-prompts", {"prompts": 9, "needed": 10, "batch": 4}, "9 batches of 4 prompts: an interval takes"),
    ],
)
def test_a_reason_keeps_a_number_and_its_limit_apart(code, values, words):
    assert words in because(Reason(code, values))


def test_one_of_a_hundred_was():
    assert [of_100(share) for share in (0.004, 0.01, 0.08, 0.996)] == [
        "fewer than 1 was",
        "1 was",
        "8 were",
        "more than 99 were",
    ]
    assert said(Finding("few-prompts", values={"prompts": 1, "batch": 1})) == "1 prompt is too few for an interval"


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
    Console(file=file, width=80).print(TerminalPage("examined", seen))
    return file.getvalue()
