"""One brief over several runs: every number is its own run's, the server leads, marks and links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_run import FakeDraft, FakeMachine, fake_run
from fake_served import FakeServer, fake_served
from fake_summary import write_brief
from test_brief import ENTRY, MARK
from typer.testing import CliRunner

from specbench.analysis.summarise import summarise
from specbench.cli import app
from specbench.errors import StoreError
from specbench.report.page import markdown
from specbench.report.several import runs_of, values, write_several
from specbench.store import read_run

ROOT = Path(__file__).parent.parent
KEPT = [ROOT / "tests/runs" / name for name in ("drafters", "llamacpp")]


@pytest.fixture(scope="module")
def kept():
    runs = runs_of([read_run(folder) for folder in KEPT])
    return runs, markdown("several.j2", values(runs, ["../drafters/brief.md", ""]))


def column(page, run):
    """The column of a run in the table side by side: name of the line to cell."""
    table = page.split("## The runs side by side\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    place = rows[0].index(f"`{run}`")
    return {row[0]: row[place] for row in rows[2:]}


def test_the_server_leads_and_its_verdict_is_the_one_to_act_on(kept):
    runs, page = kept
    assert [run.name for run in runs] == ["llamacpp", "drafters"]
    verdicts = page.split("\n\n")[1:3]
    assert verdicts[0].startswith("**NO-GO: `llamacpp`, leave `ngram:n=3` off.**")
    assert verdicts[1].startswith("**GO: `drafters`, turn `ngram:n=3+demo:draft` on, at gamma 3.**")
    assert "Act on `llamacpp`: measured on a server." in page
    assert "From `llamacpp`:" in page.split("## What to do next\n")[1].split("\n## ")[0]


def test_every_number_side_by_side_is_its_own_runs(kept):
    runs, page = kept
    for run in runs:
        cells, summary = column(page, run.name), summarise(run.stored)
        choice = summary.choice
        row = next(r for d in summary.drafts if d.draft == choice.draft for r in d.gammas if r.gamma == choice.gamma)
        assert cells["verdict"] == choice.verdict
        assert cells["speedup"] == f"{choice.speedup:.2f}x [{choice.speedup_low:.2f}, {choice.speedup_high:.2f}]"
        assert cells["tau"] == f"{row.tokens_per_round:.2f}"
        assert cells["round's cost, steps"] == f"{row.round_steps:.2f}"
        assert cells["decode tokens/s, with the draft"] == f"{row.tokens_per_s:.1f}"


def test_marks_entries_and_links(kept):
    _, page = kept
    assert {code for _, code in MARK.findall(page)} <= set(ENTRY.findall(page))
    assert "\n\n\n" not in page
    assert "[`llamacpp`](../drafters/brief.md)" in page  # links go with the runs, in their order
    assert page.count("/brief.md)") == 1


def test_why_they_differ_is_what_compare_says(kept):
    _, page = kept
    assert "`drafters` and `llamacpp`, the same 80 prompts:" in page
    assert "a round costs 1.94 target steps rather than 1.26" in page
    assert "specbench compare " in page.split("## How to check it\n")[1].split("\n## ")[0]


@pytest.mark.full
def test_runs_without_a_prompt_in_common_are_not_held_together(tmp_path):
    first = fake_run(tmp_path / "a", {"demo:draft": FakeDraft({"code": 0.8, "chat": 0.8})}, machine=FakeMachine())
    other = fake_run(tmp_path / "b", {"ngram:n=3": FakeDraft({"code": 0.2, "chat": 0.2})}, machine=FakeMachine())
    page = markdown("several.j2", values(runs_of([first, other]), ["", ""]))
    assert "No draft at one gamma over one prompt in common" in page
    assert "All of them were measured in process, on no server" in page
    assert "/brief.md)" not in page


def test_servers_that_differ_get_no_verdict_in_common(tmp_path):
    quick = fake_served(tmp_path / "quick", FakeServer(round_s=0.009))
    slow = fake_served(tmp_path / "slow", FakeServer(round_s=0.040))
    page = markdown("several.j2", values(runs_of([quick, slow]), ["", ""]))
    assert "one for each of them, not one for all" in page
    assert set(re.findall(r"^\*\*(GO|NO-GO): `", page, re.MULTILINE)) == {"GO", "NO-GO"}


def test_a_run_named_twice_is_refused():
    with pytest.raises(StoreError, match="named twice"):
        runs_of([read_run(KEPT[0]), read_run(KEPT[0])])


def test_two_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for place in ("x", "y"):
        fake_run(tmp_path / place / "run", {"demo:draft": FakeDraft({"code": 0.8, "chat": 0.8})})
    stored = [fake_run(tmp_path / p / "again", {"demo:draft": FakeDraft({"code": 0.5, "chat": 0.5})}) for p in "xy"]
    assert [run.name for run in runs_of(stored)] == [str(tmp_path / p / "again") for p in "xy"]


@pytest.mark.full
def test_what_is_written(tmp_path):
    stored = [
        fake_run(tmp_path / n, {"demo:draft": FakeDraft({"code": a, "chat": a})}) for n, a in (("a", 0.8), ("b", 0.3))
    ]
    write_brief(stored[0], summarise(stored[0]))
    _, path = write_several(stored, tmp_path / "both")
    page = path.read_text(encoding="utf-8")
    assert "[`a`](../a/brief.md)" in page and "`b`](" not in page
    assert (path.parent / "../a/brief.md").is_file()
    assert (path.parent / "figures/runs.svg").is_file() and (path.parent / "figures/runs.png").is_file()
    html = path.with_suffix(".html").read_text(encoding="utf-8")
    assert html.lower().startswith("<!doctype html>")


@pytest.mark.full
def test_the_command_line(tmp_path):
    run = CliRunner().invoke
    found = run(app, ["brief", *map(str, KEPT), "--to", str(tmp_path / "b"), "--json", "--strict"])
    assert found.exit_code == 3, found.output
    printed = json.loads(found.stdout)
    assert [each["choice"]["verdict"] for each in printed["runs"]] == ["NO-GO", "GO"]
    assert not (tmp_path / "b").exists()
    asked = run(app, ["brief", *map(str, KEPT), "--to", str(tmp_path / "b"), "--json", "--min-speedup", "1.0"])
    assert json.loads(asked.stdout)["runs"][0]["choice"]["verdict"] != "GO"  # slower prompts still forbid it
    assert [each["policy"]["min_speedup"] for each in json.loads(asked.stdout)["runs"]] == [1.0, 1.0]
    both = run(app, ["brief", str(KEPT[0]), "--json", "--format", "html"])
    assert both.exit_code == 2 and "--json and --format" in both.output
    page = run(app, ["brief", str(KEPT[0]), "--to", str(tmp_path / "one"), "--format", "html"])
    assert page.exit_code == 0 and "<html" in page.stdout and (tmp_path / "one/brief.md").is_file()
