"""Frames for notebooks: they hold what lies in the run folder, and what is absent is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CANARY
from fake_run import FakeDraft, fake_run
from fake_served import FakeServer as FakeServed
from fake_served import fake_served
from fake_summary import summary_of, with_second_draft
from fake_worlds import GO
from test_api import EXAMPLE, call, keys_for

import specbench
from specbench.acceptance.positions import PositionWriter
from specbench.acceptance.replay import Blocks
from specbench.errors import ConfigError, StoreError
from specbench.report.notebook import verdict_table

SERVED = EXAMPLE.parent / "llamacpp"
FRAMES = ("trials", "rounds", "gammas", "categories", "loads", "costs")


@pytest.fixture(scope="module")
def swept(typed):
    return specbench.load_run(typed.folder)


@pytest.fixture(scope="module")
def example():
    return specbench.load_run(EXAMPLE)


def raw(folder: Path) -> list[dict]:
    """The trials as plain JSON, read without specbench."""
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if not row["warmup"]]


def test_frames_agree_with_the_raw_lines_and_with_the_summary(swept):
    rows = raw(swept.folder)
    trials, rounds, gammas = swept.trials, swept.rounds, swept.gammas
    assert len(trials) == len(rows) and list(trials["prompt_id"]) == [row["prompt_id"] for row in rows]
    base = [row for row in rows if row["arm"]["kind"] == "baseline"]
    for result in gammas.itertuples():
        mine = [row for row in rows if row["arm"]["gamma"] == result.gamma]
        of_trials = trials[trials["gamma"] == result.gamma]
        of_rounds = rounds[rounds["gamma"] == result.gamma]
        for name in ("drafted", "accepted"):
            total = sum(sum(row[name]) for row in mine)
            assert total == of_trials[name].sum() == of_rounds[name].sum() == getattr(result, name)
        assert sum(len(row["drafted"]) for row in mine) == of_trials["rounds"].sum() == len(of_rounds) == result.rounds
        assert 0 < result.accepted < result.drafted
        assert of_trials["decode_tokens"].sum() == sum(row["output_tokens"] - 1 for row in mine) == result.emitted
        seconds = {}
        for name, arm in (("base", base), ("mine", mine)):
            spent = [row["times"]["total_s"] - row["times"]["prefill_s"] for row in arm]
            spent = sum(spent) - sum(row["times"]["draft_prefill_s"] or 0 for row in arm)
            seconds[name] = spent / sum(row["output_tokens"] - 1 for row in arm)
        assert result.speedup == pytest.approx(seconds["base"] / seconds["mine"])
        assert of_trials["decode_s"].sum() / of_trials["decode_tokens"].sum() == pytest.approx(seconds["mine"])


def test_every_round_is_the_one_that_was_stored(swept):
    stored = {(row["prompt_id"], row["arm"]["gamma"]): row for row in raw(swept.folder) if row["arm"]["gamma"]}
    for (prompt, gamma), found in swept.rounds.groupby(["prompt_id", "gamma"]):
        row = stored[prompt, gamma]
        assert list(found["round"]) == list(range(len(row["drafted"])))
        assert list(found["drafted"]) == row["drafted"] and list(found["accepted"]) == row["accepted"]
        assert set(found["category"]) == {row["category"]} and set(found["draft"]) == {row["arm"]["draft"]}
    assert set(swept.rounds["repeat"]) == {0} and set(swept.rounds["concurrency"]) == {1}


def test_frames_hold_the_records_of_the_summary(example):
    (draft,) = example.summary.drafts
    gammas, categories = example.gammas, example.categories
    assert list(gammas["survival"]) == [row.survival for row in draft.gammas]
    assert list(gammas["round_time_verify_s"]) == [row.round_time.verify_s for row in draft.gammas]
    assert list(gammas["break_even_minimum_alpha"]) == [row.break_even.minimum_alpha for row in draft.gammas]
    assert set(gammas["draft"]) == {"demo:draft"}
    shown = ["category", "verdict", "reasons", "best_gamma", "speedup_high", "prompts"]
    asked = [[getattr(row, name) for name in shown] for row in draft.categories]
    assert categories[shown].to_numpy().tolist() == asked and len(asked) == 8
    points = example.stored.run.probe
    assert list(example.costs["median_s"]) == [point.median_s for point in points]
    assert example.costs["model"].isna().sum() == sum(point.model is None for point in points) > 0
    assert example.loads.empty


def test_what_is_absent_is_missing_and_never_0(swept):
    alone = swept.trials[swept.trials["draft"].isna()]
    assert len(alone) == 24
    for name in ("gamma", "rounds", "drafted", "accepted", "told_drafted", "diverged_index", "begun_s", "rate"):
        assert alone[name].isna().all(), name
    assert swept.trials["identical"][swept.trials["kind"] == "baseline"].isna().all()
    assert swept.gammas["break_even_alpha"].dtype == "float64" and swept.gammas["rounds"].dtype == "Int64"


def test_a_disturbed_attempt_counts_in_no_frame(swept, tmp_path):
    folder = Path(shutil.copytree(swept.folder, tmp_path / "again"))
    path = folder / "trials.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = next(row for row in reversed(lines) if row["arm"]["gamma"] == 3)
    last["disturbed"] = True
    again = last | {"disturbed": False, "attempt": 1, "drafted": [3, 1], "accepted": [3, 0]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, again]))
    run = specbench.load_run(folder)
    assert len(run.trials) == len(swept.trials)
    (found,) = run.trials[run.trials["attempt"] == 1].itertuples()
    assert (found.rounds, found.drafted, found.accepted) == (2, 4, 3)
    mine = run.rounds[(run.rounds["prompt_id"] == last["prompt_id"]) & (run.rounds["gamma"] == 3)]
    assert list(mine["drafted"]) == [3, 1]


def test_totals_that_a_server_tells_are_counts_without_rounds(tmp_path):
    stored = fake_served(tmp_path / "r", FakeServed(tells="totals"), concurrency=(1, 4), rate=(2.0,))
    run = specbench.load_run(stored.folder)
    spec = run.trials[run.trials["kind"] == "speculative"]
    assert run.rounds.empty and len(spec) == 24 * 2 * 3
    assert list(spec["drafted"]) == list(spec["told_drafted"]) and spec["drafted"].sum() > 0
    first = spec[spec["concurrency"] == 1]
    for row in run.gammas.itertuples():
        mine = first[first["gamma"] == row.gamma]
        assert (mine["rounds"].sum(), mine["accepted"].sum()) == (row.rounds, row.accepted)
    assert sorted(set(run.trials["rate"].dropna())) == [2.0] and run.trials["concurrency"].isna().sum() == 24 * 4
    loads = run.loads
    assert list(loads["speedup_e2e"]) == [row.speedup_e2e for row in run.summary.loads] and len(loads) == 6
    assert list(loads["ttft_p50"]) == [row.ttft.p50 for row in run.summary.loads]
    assert loads["ttft_p99"].isna().all()
    silent = specbench.load_run(fake_served(tmp_path / "s", FakeServed(tells="nothing")).folder)
    assert silent.trials["drafted"].isna().all() and silent.gammas["rounds"].isna().all()


@pytest.mark.full
def test_rounds_of_a_real_server_add_up():
    run = specbench.load_run(SERVED)
    last = {}  # of several attempts at one thing
    for row in raw(SERVED):
        key = json.dumps([row["prompt_id"], row["arm"], row["repeat"]])
        if key not in last or last[key]["disturbed"] or not row["disturbed"]:
            last[key] = row
    listed = Counter()
    for row in last.values():
        for name in ("drafted", "accepted"):
            listed[row["arm"]["draft"], row["arm"]["gamma"], name] += sum(row[name])
    assert run.rounds["accepted"].sum() > 1000
    for key, found in run.rounds.groupby(["draft", "gamma"]):
        mine = run.trials[(run.trials["draft"] == key[0]) & (run.trials["gamma"] == key[1])]
        (summed,) = run.gammas[(run.gammas["draft"] == key[0]) & (run.gammas["gamma"] == key[1])].itertuples()
        for name in ("drafted", "accepted"):
            assert found[name].sum() == listed[*key, name]
        assert mine["rounds"].sum() >= len(found)  # with the steps that drafted nothing
        if summed.counted_share == 1:
            assert (mine["rounds"].sum(), mine["drafted"].sum()) == (summed.rounds, summed.drafted)


def test_a_frame_is_the_readers_own(example):
    mine = example.gammas
    mine["speedup"] *= 2
    assert list(example.gammas["speedup"]) == [row.speedup for row in example.summary.drafts[0].gammas]
    with pytest.raises(FrozenInstanceError):
        example.stored = None


def test_no_text_is_in_a_frame_even_where_it_was_stored(lab, tmp_path):
    run = specbench.sweep(**keys_for(lab, tmp_path, limit=1, gamma=1, keep_text=True), quiet=True)
    assert CANARY in (run.folder / "trials.jsonl").read_text()
    shown = [getattr(run, name).to_csv() for name in FRAMES] + [repr(run), run._repr_markdown_(), run.brief()]
    assert not [part for part in shown if CANARY in part]


def test_replayed_rounds_are_those_that_ran(swept):
    live, replayed = swept.gammas, swept.replay([1, 3])
    for name in ("draft", "gamma", "rounds", "accepted"):
        assert list(live[name]) == list(replayed[name])
    assert list(swept.replay()["gamma"]) == list(range(1, 9))
    result = call("replay", swept.folder, "--gamma", "1..4", "--cutoff", "0.4", "--json")
    typed = json.loads(result.stdout)["drafts"][0]["gammas"]
    found = swept.replay("1..4", cutoff=0.4)
    assert [row["drafted_high"] for row in typed] == list(found["drafted_high"])
    assert found["drafted_high"].sum() < swept.replay("1..4")["drafted_high"].sum()


def test_what_cannot_be_replayed_says_so(swept, tmp_path):
    with pytest.raises(ConfigError, match="`gamma`: 0 is outside"):
        swept.replay([0])
    with pytest.raises(ConfigError, match="`cutoff`: 1 would stop every draft"):
        swept.replay([1], cutoff=1)
    with pytest.raises(StoreError, match="Nothing to replay"):
        specbench.load_run(SERVED).replay([1])
    folder = Path(shutil.copytree(swept.folder, tmp_path / "cross"))
    columns = np.array([[1, 2], [1, 1]], dtype=np.int32)
    for path in folder.glob("positions-*"):
        path.unlink()
    with PositionWriter(folder) as positions:
        positions.append(Blocks(columns, columns, prompt_id="q0", category=None, draft="cross:x", repeat=0, limit=12))
    with pytest.raises(StoreError, match="cross:x was scored up to gamma 2 alone"):
        specbench.load_run(folder).replay("1..3")


def test_a_cell_shows_the_verdict_and_no_name_breaks_it(example):
    shown = example._repr_markdown_()
    (draft,) = example.summary.drafts
    estimate = f"{draft.speedup:.2f}x [{draft.speedup_low:.2f}, {draft.speedup_high:.2f}]"
    row = f"| `demo:draft` | {draft.best_gamma} | {estimate}"
    assert row in shown and "You asked for 1.10x or more with 95% confidence" in shown
    plain = with_second_draft(summary_of(GO))
    odd = replace(plain.drafts[0], draft="a|b`c\n| <b>$x$ |")
    choice = None if plain.choice is None else replace(plain.choice, draft=odd.draft)
    shown = verdict_table(replace(plain, drafts=(odd, plain.drafts[1]), choice=choice, hardware="*x* [y](z)"))
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in shown.splitlines() if line.startswith("|")}
    assert bars == {6} and r"`` a\|b`c \| <b>$x$ \| ``" in shown and "`*x* [y](z)`" in shown


def test_two_runs_lie_side_by_side():
    both = specbench.compare(EXAMPLE.parent / "drafters", specbench.load_run(SERVED))
    frame = both.gammas
    rows = [row for draft in both.comparison.drafts for row in draft.gammas]
    assert list(frame["ratio"]) == [row.ratio for row in rows] and "a_speedup" in frame
    assert both._repr_markdown_().startswith("# Two runs side by side")
    assert "<table>" in both._repr_html_()


def test_html_holds_no_markup_of_a_name(tmp_path):
    stored = fake_run(tmp_path / "r", {"<b>m</b>": FakeDraft({"code": 0.8, "chat": 0.8})})
    html = specbench.Run(stored)._repr_html_()
    assert "<table>" in html and "<b>m" not in html and "&lt;b&gt;m" in html
