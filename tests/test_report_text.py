"""Formatting shared by tables, figures and the brief."""

from __future__ import annotations

import pytest

from specbench import text


@pytest.mark.parametrize(
    ("share", "shown"),
    [(None, "-"), (0.0, "0%"), (0.004, "<1%"), (0.126, "13%"), (0.996, ">99%"), (1.0, "100%")],
)
def test_percent_keeps_its_ends_for_none_and_all(share: float | None, shown: str) -> None:
    assert text.percent(share) == shown


def test_a_chance_is_never_certain() -> None:
    assert [text.chance(p) for p in (0.0, 0.5, 1.0)] == ["below 1%", "50%", "above 99%"]


def test_estimates_say_when_there_is_no_interval() -> None:
    assert text.estimate(1.2345, 1.1, 1.35) == "1.23x [1.10, 1.35]"
    assert text.estimate(1.2345, None, None) == "1.23x (no interval)"


def test_milliseconds_keep_three_figures_or_so() -> None:
    assert [text.milliseconds(s) for s in (0.00042, 0.014, 1.2345)] == ["0.42 ms", "14.0 ms", "1,234 ms"]


def test_sizes() -> None:
    assert text.size(134_515_008, "parameters") == "135 M parameters"
    assert text.size(31_400_000, "B") == "31.4 MB"
    assert text.size(70e9, "parameters") == "70.0 B parameters"
    assert text.size(2.5e9, "B") == "2.5 GB"
    assert text.size(None, "B") is None


def test_sparkline_in_bars_and_in_tenths() -> None:
    assert text.sparkline((1.0, 0.5, None, 0.0)) == "█▅?▁"
    assert text.sparkline((1.0, 0.5, None, 0.0), ascii_only=True) == "95?0"
    assert len(text.sparkline([0.5] * 64)) == 8


def test_names_from_files_start_no_markup_and_obey_no_terminal() -> None:
    assert text.escape("a|b <b> [x](y) *z*") == r"a\|b \<b\> \[x\](y) \*z\*"
    assert text.clean("a\x1b[31mb\nc\u202e") == "a [31mb c"
    assert text.code("a`b") == "`` a`b ``"
    assert text.cell(text.code("a|b")) == r"`a\|b`"


def test_lists_read_as_prose() -> None:
    assert [text.join(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
