"""The kept runs and what the README shows of them are what the code writes of them today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import full
from typer.testing import CliRunner

import specbench
from specbench.analysis.compare import compared
from specbench.analysis.summarise import summarise
from specbench.cli import app
from specbench.report.brief import render_brief, render_page
from specbench.report.dialect import PLAIN, sentence_of
from specbench.report.explain.explain import explain_run
from specbench.report.several import write_several
from specbench.store import read_run
from tools.kept import BRIEFS, brief, of_the_choice

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENGINES = (ROOT / "docs/engines.md").read_text(encoding="utf-8")
KEPT = sorted(path.parent.name for path in ROOT.glob("reports/[a-z]*/run.json"))
# None: recorded answers have none.
VERDICTS = {"example": "GO", "llamacpp": "NO-GO", "hybrid": "NO-GO", "recorded": None}
WRITTEN = {name: made for name, made in BRIEFS.items() if made[0] in KEPT}


def example(name):
    """The block of the README between its two comments, without its fence."""
    block = README.split(f"<!-- example:{name} -->\n")[1].split(f"<!-- /example:{name} -->")[0]
    return block.removeprefix("```text\n").removesuffix("```\n")


@pytest.mark.parametrize("name", [name for name in KEPT if VERDICTS[name] is not None])
def test_a_kept_brief_is_what_the_code_writes(name, monkeypatch):
    """Else: make kept"""
    monkeypatch.chdir(ROOT)
    folder = Path("reports") / name
    stored = read_run(folder)
    summary = summarise(stored)
    assert summary.verdict == VERDICTS[name]
    assert render_brief(summary) == (folder / "brief.md").read_text(encoding="utf-8")
    assert render_page(summary, folder) == (folder / "brief.html").read_text(encoding="utf-8")


def test_the_kept_mixed_brief_is_another_traffic_under_a_stricter_policy(monkeypatch):
    """Else: make kept"""
    monkeypatch.chdir(ROOT)
    run = specbench.load_run("reports/example", **BRIEFS["mixed"][1])
    assert run.brief() == Path("reports/mixed/brief.md").read_text(encoding="utf-8")
    chosen = next(draft for draft in run.summary.drafts if draft.draft == run.summary.choice.draft)
    assert {row.category: row.verdict for row in chosen.categories} == {"code-edit": "GO", "chat": "UNCLEAR"}
    svg = Path("reports/mixed/figures/speedup.svg").read_text(encoding="utf-8")
    assert "weighed by a mix of traffic<" in svg and "115 prompts" not in svg  # 28 of them are shown
    assert "| code-edit | GO |" in run.brief().split("## Evidence")[0]


def test_a_server_run_does_not_call_a_slow_minute_a_speedup():
    """Over its code edits the target alone is 10 % faster the second time: 1.26x against the first is no GO."""
    rows = specbench.load_run(ROOT / "tests/runs/llamacpp").summary.drafts[1].categories
    (edits,) = (row for row in rows if row.category == "code-edit")
    assert edits.verdict == "UNCLEAR" and edits.baseline_ratio == pytest.approx(1.10, abs=0.01)
    assert [row.category for row in rows if row.baseline_ratio is not None] == ["code-edit"]


def test_the_kept_unclear_brief_is_the_example_under_a_stricter_policy(monkeypatch):
    """Else: make kept"""
    monkeypatch.chdir(ROOT)
    run = specbench.load_run("reports/example", **BRIEFS["unclear"][1])
    assert run.verdict == "UNCLEAR"
    assert run.brief() == Path("reports/unclear/brief.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["llamacpp", *full(*(name for name in WRITTEN if name != "llamacpp"))])
def test_every_kept_file_is_what_is_written_today(name, monkeypatch, tmp_path):
    """Pages and figures, byte for byte, and nothing left over. PNGs are packed otherwise by other builds of zlib."""
    monkeypatch.chdir(ROOT)
    run, policy = WRITTEN[name]
    brief(Path("reports") / run, policy, tmp_path)
    folder = Path("reports") / name
    kept = {path.relative_to(folder) for path in [*folder.glob("brief.*"), *folder.glob("figures/*")]}
    assert kept == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for path in sorted(kept):
        if path.suffix != ".png":
            assert (folder / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_every_kept_run_has_its_verdict_here():
    assert set(KEPT) == set(VERDICTS)


def test_the_readme_shows_the_verdict_and_the_table_of_a_kept_run(monkeypatch):
    """`specbench show reports/example`, of which the chosen draft's first table."""
    monkeypatch.chdir(ROOT)
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["show", "reports/example"]).stdout
    chosen = specbench.load_run("reports/example").summary.choice.draft
    assert of_the_choice(shown, chosen) == example("table").strip()


def test_the_page_on_engines_says_of_two_what_the_kept_runs_say():
    found = compared(read_run(ROOT / "reports/example"), read_run(ROOT / "reports/llamacpp"))
    for draft in found.drafts:
        assert f"> `{draft.draft}`: **{sentence_of('compared', PLAIN, draft)}**" in ENGINES


def test_no_two_sentences_run_together(monkeypatch, tmp_path):
    """A template's line end between two tags is a space: not `is 90%.About 200 more prompts`."""
    monkeypatch.chdir(ROOT)
    pages = {str(path): path.read_text(encoding="utf-8") for path in Path("reports").glob("*/brief.md")}
    stored = [read_run(Path("reports") / name) for name in ("example", "llamacpp")]
    pages["several"] = write_several(stored, tmp_path)[1].read_text(encoding="utf-8")
    for level in ("manager", "engineer"):
        for each in stored:
            pages[f"{level} {each.folder}"] = explain_run(summarise(each), level).text
    for name, page in pages.items():
        prose = re.sub(r"```.*?```|`[^`\n]+`|\]\([^)\n]*\)", "", page, flags=re.DOTALL)
        assert not re.findall(r".{20}[a-z0-9%x\])][.;:]\**[A-Z][a-z]+.{10}", prose), name
