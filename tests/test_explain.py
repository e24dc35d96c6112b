"""`specbench explain`: every word explained, every sum right, no formula for a manager, and the command itself."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Typed
from fake_explained import CASES, KEPT, LEVELS, ROOT, body, engineer, explained, manager, unlinked
from test_docs import wrong_flags
from test_imports import command, loaded
from typer.testing import CliRunner

from specbench.cli import app
from specbench.config import RunConfig
from specbench.report.explain.explain import Level, explain
from specbench.report.explain.glossary import Term, terms, used_in
from specbench.run_record import Provenance, RunRecord
from specbench.store.record import record_json
from specbench.text import Shown, add, divide, ms, multiply

runner = CliRunner()


def call(*args: object) -> Any:
    return runner.invoke(app, [str(arg) for arg in args])


def unexplained(text: str) -> list[str]:
    """Terms that a text uses, in its body or in the meanings themselves, without an entry under Words."""
    explained = set(re.findall(r'^- <a id="[\w-]+"></a>\*\*(.+?)\*\*', text, re.MULTILINE))
    return [term.name for term in used_in(text) if term.name not in explained]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_every_word_is_explained_and_no_other(case: str, level: Level) -> None:
    found = explained(case, level)
    assert unexplained(found.text) == []
    listed = re.findall(r"\*\*(.+?)\*\*", "\n".join(re.findall(r"^- <a .*$", found.text, re.MULTILINE)))
    assert listed == [term.name for term in found.words]
    assert {term.name for term in used_in(unlinked(body(found.text)))} == set(listed)
    anchors = re.findall(r'<a id="([\w-]+)">', found.text)
    links = re.findall(r"\]\(#([\w-]+)\)", body(found.text))
    assert sorted(links) == sorted(set(links)) and set(links) <= set(anchors) and len(anchors) == len(set(anchors))


def test_a_word_without_its_entry_is_caught() -> None:
    text = explain("manager").text
    entry = next(line for line in text.splitlines() if "**target**" in line)
    assert unexplained(text.replace(entry + "\n", "")) == ["target"]
    assert unexplained(text.replace("a small", "kernel, a small").replace("What it is.", "Its kernel.")) == ["kernel"]


# A result is right if it is what the digits shown give; one called "about" must follow from what they may stand for.
NUMBER = r"\d[\d,]*(?:\.\d+)?"
SUM = re.compile(rf"({NUMBER})(?: ms)?((?: [+/x] {NUMBER}(?: ms)?)+)( = | is about )({NUMBER})(%?)", re.ASCII)


def value(shown: str) -> tuple[float, float]:
    """A number as shown, and how far the true one may lie from it. Counts are exact."""
    decimals = len(shown.partition(".")[2])
    return float(shown.replace(",", "")), 0.5 * 10**-decimals if decimals else 0.0


def range_of(first: str, rest: str, exact: bool) -> tuple[float, float]:
    """Both ends of what a row of sums, products or quotients may come to."""

    def ends(shown: str) -> tuple[float, float]:
        middle, reach = value(shown)
        return (middle, middle) if exact else (middle - reach, middle + reach)

    low, high = ends(first)
    for sign, shown in re.findall(rf"([+/x]) ({NUMBER})", rest):
        a, b = ends(shown)
        if sign == "+":
            low, high = low + a, high + b
        else:
            low, high = (low * a, high * b) if sign == "x" else (low / b, high / a)
    return low, high


def wrong_sums(text: str) -> list[str]:
    wrong = []
    for found in SUM.finditer(unlinked(text)):
        first, rest, sign, result, percent = found.groups()
        shown, reach = value(result)
        scale = 100 if percent else 1
        low, high = (scale * end for end in range_of(first, rest, exact=sign == " = "))
        if sign == " = ":
            decimals = len(result.partition(".")[2])
            right = f"{low:.{decimals}f}" == f"{shown:.{decimals}f}"
        else:
            right = low - reach <= shown <= high + reach and "(the digits shown are rounded)" in unlinked(text)
        if not right:
            wrong.append(found[0])
    return wrong


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_sums_come_out_as_shown(case: str, level: Level) -> None:
    assert wrong_sums(body(explained(case, level).text)) == []


@pytest.mark.parametrize("name", KEPT)
def test_kept_runs_show_their_sums(name: str) -> None:
    assert len(SUM.findall(engineer(f"kept:{name}"))) >= 5
    ((tau, cost, about, product),) = re.findall(
        r"([\d.]+) tokens in ([\d.]+) times the time is (about )?([\d.]+)x as fast", manager(f"kept:{name}")
    )
    low, high = range_of(tau, f" / {cost}", exact=not about)
    assert low - 0.005 <= float(product) <= high + 0.005


def test_wrong_sums_are_caught() -> None:
    for right in ("1.45 / 1.26 = 1.15", "1 + 0.70 + 0.45 = 2.15", "35 / 100 = 35%", "2.27 x 5.7 ms = 12.9 ms"):
        assert wrong_sums(right) == [], right
    for wrong in ("1.45 / 1.26 = 1.16", "1 + 0.70 = 1.71", "36 / 100 = 35%", "1,128 / 1,304 = 0.86"):
        assert wrong_sums(wrong) == [wrong]
    assert wrong_sums("1.67 / 1.46 is about 1.15 (the digits shown are rounded)") == []
    assert wrong_sums("1.67 / 1.46 is about 1.16 (the digits shown are rounded)") != []
    assert wrong_sums("1.67 / 1.46 is about 1.15") != [], "and it has to say why"


def test_a_sum_says_when_its_digits_do_not_add_up() -> None:
    two, rounded = partial(Shown, digits=2), "(the digits shown are rounded)"
    assert divide(two(1.672), two(1.456), two(1.148, unit="x")) == f"1.67 / 1.46 is about 1.15x {rounded}"
    assert divide(Shown(2091), Shown(3109), two(2091 / 3109)) == "2,091 / 3,109 = 0.67"
    assert divide(Shown(36), Shown(15), two(2.4), "steps") == "36 / 15 = 2.40 steps"
    parts = [ms(0.0165), ms(0.0753), ms(0.00064)]
    assert add(parts, ms(0.0925)) == f"16.5 ms + 75.3 ms + 0.64 ms is about 92.5 ms {rounded}"
    assert add(parts, ms(0.09244)) == "16.5 ms + 75.3 ms + 0.64 ms = 92.4 ms"
    assert multiply(two(1.32), ms(0.0188), ms(0.0248)) == "1.32 x 18.8 ms = 24.8 ms"


def test_the_made_up_examples_add_up() -> None:
    text = " ".join(unlinked(explain("manager").text).split())
    found = re.search(
        r"takes (\d+) seconds for an answer of (\d+) tokens\. With a draft, each round takes (\d+) milliseconds and "
        r"yields (\d+) tokens: (\d+) rounds, (\d+) seconds, ([\d.]+) times as fast\. .* a round yields ([\d.]+) "
        r"tokens, it is (\d+) rounds and ([\d.]+) seconds",
        text,
    )
    assert found is not None
    alone, tokens, ms, each, rounds, took, speedup, few, more, longer = map(float, found.groups())
    assert rounds == tokens / each and took == rounds * ms / 1000 and speedup == round(alone / took, 2)
    assert more == round(tokens / few) and longer == round(more * ms / 1000, 1) and longer > alone
    assert f"{took:.0f} seconds instead of {alone:.0f} is {1 - took / alone:.0%} less" in text
    engineer = unlinked(explain("engineer").text)
    s = [0.70, 0.45, 0.25]
    alpha = sum(s) / (sum(s) + 1 - s[-1])
    assert f"survival {s[0]:.2f}, {s[1]:.2f} and {s[2]:.2f}" in engineer
    assert f"0.75 of rounds end in a rejection, so alpha is {sum(s):.2f} / 2.15 = {alpha:.2f}" in engineer
    closed = {a: (1 - a**4) / ((1 - a) * (3 * 0.1 + 1)) for a in (round(alpha, 2), round(sum(s) / 3, 2))}
    assert [f"{value:.2f}x" for value in closed.values()] == ["1.81x", "1.38x"]
    assert "= 1.81x where the example has 1.60x" in engineer and "it says 1.38x and is wrong the other way" in engineer


# What a manager should not meet at all; words of the glossary are explained wherever they stand.
JARGON = (
    "argmax arg-max softmax bootstrap studentised quantile percentile p-value logit logits kernel kernels cross-fitted "
    "survival alpha tau prefill host gap closed form KV cache speculate speculator tokenizer posterior stochastic"
)
FORMULA = re.compile(r"[=^]|P\(|\bmin\(|\bmax\(|\d / \d|s_j|t_dec|\d x \d")


@pytest.mark.parametrize("case", CASES)
def test_a_manager_meets_no_formula_and_no_unexplained_jargon(case: str) -> None:
    text = explained(case, "manager").text
    prose = re.sub(r"`[^`]*`|<a [^>]*>", "", unlinked(text))
    assert FORMULA.findall(prose) == []
    known = {spelling for term in used_in(text) for spelling in term.spellings}
    strange = [word for word in JARGON.split() if re.search(rf"(?<![\w-]){word}(?![\w-])", prose)]
    assert [word for word in strange if word not in known] == []


def test_formulas_are_caught() -> None:
    for formula in ("S = tau", "P(speedup", "1.67 / 1.46", "s_j", "2 x 3"):
        assert FORMULA.search(formula)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_a_page_is_clean(case: str, level: Level) -> None:
    text = re.sub(r"```.*?```", "(code)", explained(case, level).text, flags=re.DOTALL)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]|\bNone\b|\bnan\b|\binf\b|\n\n\n|  ", text.replace("\n  ", ""))
    assert wrong_flags(text) == []
    assert text.endswith("\n") and not text.endswith("\n\n")


class Terminal(io.TextIOWrapper):
    """stdout of somebody who reads along."""

    def isatty(self) -> bool:
        return True


def screen(args: list[str], monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    """What a terminal of 80 columns without colour shows."""
    for name, setting in (("COLUMNS", "80"), ("NO_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, setting)
    raw = io.BytesIO()
    terminal = Terminal(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as ended:
        app(args)
    terminal.flush()
    assert ended.value.code == 0
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("level", LEVELS)
def test_a_terminal_gets_80_columns_without_links(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", screen(["explain", "--basics", "--level", level], monkeypatch))
    assert max(map(len, shown.splitlines())) <= 80
    assert "](#" not in shown and "<a id" not in shown and "**" not in shown and "\x1b]8" not in shown
    assert "• target: The large model" in shown
    lines = [line for line in shown.partition("\nWords")[0].splitlines() if line.strip()]
    assert len(lines) <= {"manager": 60, "engineer": 130}[level]


def test_a_terminal_without_our_characters_gets_the_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert screen(["explain", "--basics"], monkeypatch, "ascii") == explain("manager").text


def test_a_pipe_gets_the_markdown_and_a_hint_on_stderr() -> None:
    result = call("explain", "--basics")
    assert result.exit_code == 0 and result.stdout == explain("manager").text


def test_unnamed_the_newest_run_is_explained_and_without_one_the_subject(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = call("explain")
    assert alone.stderr == "No run yet, so this is the subject itself.\n"
    assert alone.stdout == call("explain", "--basics").stdout == explain("manager").text
    shutil.copytree(typed.folder, tmp_path / "reports" / typed.folder.name)
    assert call("explain").stdout == call("explain", "@1").stdout != alone.stdout
    assert call("explain", "--basics").stderr == "For the newest run's numbers: specbench explain\n"


def test_json_has_the_text_and_the_words() -> None:
    found = json.loads(call("explain", "--basics", "--json", "--level", "engineer").stdout)
    assert list(found) == ["level", "run", "text", "words"]
    assert (found["level"], found["run"], found["text"]) == ("engineer", None, explain("engineer").text)
    assert {"term": "tau", "meaning": terms()["tau"].plain} in found["words"]


def test_a_run_is_explained_from_its_folder() -> None:
    folder = ROOT / "tests/runs/llamacpp"
    result = call("explain", folder)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout == explained("kept:llamacpp", "manager").text
    assert result.stdout.startswith("# What `llamacpp` says, in plain words\n")


def test_one_term_and_its_neighbour() -> None:
    assert call("explain", "--term", "TAU").stdout.startswith("# tau\n\nHow many tokens a round yields")
    entry = json.loads(call("explain", "--term", "tau", "--json").stdout)
    assert Term(**entry).name == "tau" and entry["formula"].startswith("tau = 1 + A / s")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--term", "alfa"], "No term 'alfa' in the glossary (--term). Did you mean 'alpha'?"),
        (["--level", "boss"], "No level 'boss' (--level). Use manager or engineer."),
        (["nowhere"], "Not a run folder: it has no run.json (nowhere). Name a folder that specbench made."),
        (["nowhere", "--term", "tau"], "A word means the same in every run (--term). Leave out the run, or --term."),
    ],
)
def test_bad_input_is_one_line(args: list[str], line: str) -> None:
    result = call("explain", *args)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"specbench: {line}\n")


@pytest.mark.parametrize("kind", ["replay", "probe"])
def test_a_folder_without_a_verdict_is_refused(kind: str, tmp_path: Path) -> None:
    run = RunRecord(status="finished", command=kind, config=RunConfig(), provenance=Provenance("fake"))
    (tmp_path / "run.json").write_bytes(record_json(run))
    result = call("explain", tmp_path)
    assert result.exit_code == 2 and "no verdict without a measurement" in result.stderr


@pytest.mark.full
def test_the_subject_itself_needs_no_heavy_library() -> None:
    assert loaded(command("explain", "--basics", "--level", "engineer")) <= {"pydantic"}
