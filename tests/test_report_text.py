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


def test_a_chance_is_never_certain_and_on_its_own_side_of_what_a_verdict_takes() -> None:
    assert [text.chance(p) for p in (0.0, 0.5, 1.0)] == ["below 1%", "50%", "above 99%"]
    assert [text.chance(p) for p in (0.948, 0.95, 0.952, 0.052)] == ["94.8%", "95%", "95.2%", "5.2%"]
    assert [text.chance(p, 0.995) for p in (0.004, 0.006, 0.992, 1.0)] == ["below 0.5%", "0.6%", "99%", "above 99.5%"]


def test_what_is_just_past_a_limit_does_not_read_as_the_limit() -> None:
    assert [text.speedup(v, 1.1) for v in (1.097, 1.0996, 1.1, 1.1 + 1e-12, 1.12)] == [
        "1.097x",
        "1.0996x",
        "1.10x",
        "1.10x",
        "1.12x",
    ]
    assert text.speedup(1.123, 1.125) == "1.123x"
    assert text.interval(0.998, 1.003, 1) == "[0.998, 1.003]" and text.interval(0.9, 1.1, 1) == "[0.90, 1.10]"
    assert text.estimate(1.097, 1.05, 1.101, 1.1) == "1.097x [1.05, 1.101]"
    assert [text.percent(s, 0.25) for s in (29 / 115, 0.25, 0.3, 0.001)] == ["25.2%", "25%", "30%", "<1%"]
    assert [text.percent(s, 0.005) for s in (0.008, 0.005)] == ["1%", "0.5%"]
    assert text.percent(0.996, 0.995) == "99.6%" and text.speedup(1.125, 1.125) == "1.125x"
    assert text.size(2.0004e9, "B", 2e9) == "2.0004 GB" and text.size(2.3e9, "B", 2e9) == "2.3 GB"


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
    assert text.escape("__init__ _a_ snake_case ~~b~~") == r"\_\_init\_\_ \_a\_ snake_case \~\~b\~\~"
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
