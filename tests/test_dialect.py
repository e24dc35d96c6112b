"""Templates are kept compiled in the user's cache, and none of it is needed."""

from __future__ import annotations

import pytest

from specbench.records import Reason
from specbench.report.dialect import Compiled, because, environment


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
