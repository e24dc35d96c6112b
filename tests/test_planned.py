"""`specbench plan`: from a stored run or from assumptions to minutes, tables, JSON and error lines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_interval import fake_prompts
from typer.testing import CliRunner

from specbench.analysis.pilot import Cost, Part, Pilot, read_pilot
from specbench.analysis.plan import Wanted, plan_of
from specbench.cli import app
from specbench.decision.plan import influence
from specbench.records import Policy
from specbench.report.dialect import part
from specbench.run_record import SessionFacts
from specbench.store import read_run

EXAMPLE = Path(__file__).parent / "runs" / "example"


def test_minutes_grow_with_arms_repeats_and_prompts():
    cost = Cost(base_s=2.0, draft_s={1: 1.0, 3: 3.0}, retries=1.05, untimed_s=0.5, warm_up_s=0.2, probe_s=7.0)
    assert cost.minutes(10, (1, 2, 3), 1, 1) * 60 == pytest.approx(10 * (1.05 * (4 + 1 + 2 + 3) + 0.5) + 5 * 0.2 + 7)
    assert cost.minutes(10, (1, 8), 2, 3) * 60 == pytest.approx(10 * (3 * 1.05 * (4 + 2 * 4) + 0.5) + 6 * 0.2 + 7)
    assert cost.draft_at(8) == 3.0


def pilot_of(n=16, speedup=1.2, noise=0.01, **categories):
    rng = np.random.default_rng(8)
    cost = Cost(2.0, {1: 1.5, 2: 1.4}, warm_up_s=0.1, probe_s=10)

    def part(count):
        paired = fake_prompts(rng, count, speedup)
        return Part(count, paired.speedup, influence(paired), rng.normal(0, noise, count), 0.1, cost)

    return Pilot("d", 1, (1, 2), 1, 0.0, part(n), {name: part(count) for name, count in categories.items()})


def test_categories_with_few_prompts_take_the_spread_that_all_share():
    pilot = pilot_of(chat=12, code=3, maths=1)
    plan = plan_of(Wanted(Policy(), 0.05), pilot, "run", 16)
    chat, code, maths = plan.categories
    assert (chat.shared_spread, code.shared_spread, maths.shared_spread) == (False, True, True)
    assert code.spread == maths.spread != chat.spread
    assert code.verdict is None and chat.verdict is not None
    assert plan.every_category.prompts == sum(row.width.prompts for row in plan.categories)
    one_setting_up = 2 * pilot.whole.cost.minutes(0, (1, 2), 1, 1)
    spent = sum(row.width.minutes for row in plan.categories) - one_setting_up
    assert plan.every_category.minutes == pytest.approx(spent)
    assert any("code and maths" in part(assumed, "claim") for assumed in plan.assumed)


def test_what_a_plan_warns_of():
    def codes(pilot, **wanted):
        plan = plan_of(Wanted(Policy(), 0.05, **wanted), pilot, "run", 16)
        return {caution.code for caution in plan.warnings}

    assert codes(pilot_of(n=6)) >= {"few-pilot-prompts", "more-than-workload"}
    assert "speedup-near-minimum" in codes(pilot_of(speedup=1.1))
    assert "speedup-on-minimum" in codes(pilot_of(), speedup=1.1)
    assert "noisy-trials" in codes(pilot_of(noise=1.0))
    assert "noise-floor" in codes(replace(pilot_of(), aa_log_ratio=0.2))
    slow = replace(pilot_of(), whole=replace(pilot_of().whole, slower_share=0.4))
    assert "slower-prompts" in codes(slow)
    assert codes(pilot_of(speedup=2.0), spread=0.01) == set()


def test_everything_that_flags_state_is_listed_as_assumed():
    wanted = Wanted(Policy(), 0.05, gammas=(4,), drafts=2, repeats=3, spread=0.2, seconds_per_prompt=3, speedup=1.3)
    for pilot in (None, pilot_of()):
        said = "\n".join(part(assumed, "claim") for assumed in plan_of(wanted, pilot).assumed)
        assert all(words in said for words in ("spread 0.2,", "speedup 1.30x,", "prompt 3,"))
    assert "time at gamma 4:" in said and "every further draft" in said
    bare = plan_of(Wanted(Policy(), 0.05, spread=0.2), None)
    assert (bare.verdict, bare.width.minutes, bare.width.prompts_low) == (None, None, None)


runner = CliRunner()


def call(*args):
    return runner.invoke(app, ["plan", *map(str, args)])


@pytest.fixture
def broken(tmp_path):
    """A copy of the example's run folder, mended by a function of its run.json and with some of its trials."""

    def make(change=lambda run: None, trials=None):
        folder = tmp_path / "20250102T030405Z-pilot"
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("figures", "*.arrow", "brief.md"))
        run = json.loads((folder / "run.json").read_text())
        change(run)
        (folder / "run.json").write_text(json.dumps(run))
        lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
        (folder / "trials.jsonl").write_text("".join(lines[:trials]))
        return folder

    return make


def test_the_example_as_a_pilot():
    found = json.loads(call(EXAMPLE, "--half-width", 0.05, "--json").stdout)
    assert found["pilot_prompts"] == 115
    assert found["width"]["prompts_low"] <= found["width"]["prompts"] <= found["width"]["prompts_high"] < 115
    # 115 prompts took 34.5 minutes by the clock
    at_115 = found["width"]["minutes"] / found["width"]["prompts"] * 115
    assert at_115 == pytest.approx(34.5, rel=0.05)
    eight = json.loads(call(EXAMPLE, "--half-width", 0.05, "--gamma", "1..8", "--json").stdout)
    assert eight["width"]["prompts"] == found["width"]["prompts"]
    assert 1.7 < eight["width"]["minutes"] / found["width"]["minutes"] < 2.3


def test_times_are_those_of_the_trials_that_count():
    cost = read_pilot(read_run(EXAMPLE), Policy(), None).whole.cost
    assert cost.retries == 599 / 575  # 604 lines, of which 5 are warm-ups
    assert cost.warm_up_s < 1 < cost.base_s
    assert cost.untimed_s == pytest.approx((2070 - 1964.0 - 18.4) / 115, abs=0.01)
    assert cost.probe_s == pytest.approx(18.4, abs=0.1)


def test_a_run_that_was_continued_does_not_count_the_time_in_between():
    stored = read_run(EXAMPLE)
    continued = replace(stored, run=replace(stored.run, sessions=(SessionFacts(), SessionFacts())))
    assert read_pilot(continued, Policy(), None).whole.cost.untimed_s == 0


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("args", [(EXAMPLE,), ("--spread", 0.3, "--seconds-per-prompt", 4, "--speedup", 1.3)])
def test_the_tables_fit(args, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = call(*args)
    assert result.exit_code == 0, result.output
    assert "Assumed, not measured" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= columns


def test_the_newest_run_with_a_wall_clock_is_the_pilot(broken, tmp_path):
    folder = broken(trials=200)
    found = json.loads(call("--out", tmp_path, "--json").stdout)
    assert (found["run"], found["pilot_prompts"] < 115) == (str(folder), True)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--half-width", "nan"), "nan is not a number above 0 to 1 (--half-width). Write 0.03 for 3 %."),
        (("--half-width", "3"), "3 is not a number above 0 to 1 (--half-width). Write 0.03 for 3 %."),
        (("--half-width", "0"), "0 is not a number above 0 to 1 (--half-width)."),
        (("--spread", "-0.2"), "-0.2 is not a number above 0 to 10 (--spread)."),
        (("--speedup", "inf"), "inf is not a number above 0 to 100 (--speedup)."),
        (("--seconds-per-prompt", "0"), "0 is not a number above 0 to 1e+06 (--seconds-per-prompt)."),
        (("--min-speedup", "nan"), "`min_speedup`: nan is not a number above 0 to 100 (flags)."),
        (("--confidence", "2"), "`confidence`: 2.0 is not a number from 0.5 to 0.9999 (flags)."),
        (("--gamma", "0"), "`gamma`: '0' is outside 1..64"),
        (("--drafts", "0"), "0 is not a whole number from 1 to 100 (--drafts)."),
        (("--repeats", "-1"), "`repeats`: -1 is not a whole number from 1 to 1000 (flags)."),
    ],
)
def test_nonsense_is_one_line(args, says):
    result = call(EXAMPLE, *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"specbench: {says}")
    assert result.stderr.count("\n") == 1


def test_pilots_that_cannot_serve(broken, tmp_path):
    def complaint(*args):
        result = call(*args)
        assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")
        return result.stderr

    assert "No run yet" in complaint("--out", tmp_path)
    folder = broken(lambda run: run.update(command="replay"))
    assert "no wall clock: it cannot say how long a prompt takes" in complaint(folder)
    shutil.rmtree(folder)
    folder = broken(lambda run: run.update(command="probe"))
    assert "timed the models alone, no prompt: it cannot say" in complaint(folder)
    shutil.rmtree(folder)
    assert "Fewer than 2 prompts" in complaint(broken(trials=11))
    shutil.rmtree(folder)
    assert "Fewer than 2 prompts" in complaint(broken(trials=0))
