"""A server under load: planted speedups, rates and percentiles come back, and where a draft stops paying is found."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_run import with_policy
from fake_served import LIMIT, PREFILL_S, SPEC, FakeServer, fake_served
from fake_summary import render_brief
from matplotlib.image import imread
from rich.cells import cell_len
from rich.console import Console

from specbench.analysis.contract import Summary
from specbench.analysis.facts import pace_of
from specbench.analysis.loads import percentiles, stops_paying_at, throughput
from specbench.analysis.pilot import read_pilot
from specbench.analysis.served import Percentiles
from specbench.analysis.summarise import summarise
from specbench.records import Arm, ClientLag, Load, Policy, Times, Trial, Turn
from specbench.report.dialect import said
from specbench.report.figures import available, write_figures
from specbench.report.layout import sweep_page

BUSY = FakeServer(slower={4: 1.5, 16: 3.0}, spec_slower={4: 2.2, 16: 6.0})


def shown(summary: Summary, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width)
    console.print(sweep_page(summary))
    file.seek(0)
    return file.read()


def test_the_verdict_is_about_the_first_load_alone(tmp_path: Path) -> None:
    both = fake_served(tmp_path / "a", BUSY, concurrency=(16, 1))
    alone = summarise(fake_served(tmp_path / "b", replace(BUSY), concurrency=(1,)))
    found = summarise(both)
    assert [load.label for load in both.loads] == ["16 at a time", "1 at a time"]
    assert {trial.arm.load for trial in both.main} == {Load(16)}
    assert found.drafts[0].verdict == "NO-GO" and alone.drafts[0].verdict == "GO"
    assert found.drafts[0].gammas[0].prompts == 24
    assert found.server is not None and found.server.load == "16 at a time"
    assert (
        read_pilot(both, Policy(), None).whole.speedup
        < 1
        < read_pilot(fake_served(tmp_path / "c", BUSY), Policy(), None).whole.speedup
    )


def test_loads_recover_planted_speedups_and_rates(tmp_path: Path) -> None:
    server = replace(BUSY, noise=0.0)
    stored = fake_served(tmp_path / "r", server, concurrency=(1, 4, 16), rate=(2.0,))
    rows = {(row.load, row.gamma): row for row in summarise(stored).loads}
    assert len(rows) == 8 and rows["2 requests/s", 4].rate == 2.0 and rows["2 requests/s", 4].concurrency is None
    one, many = rows["1 at a time", 4], rows["16 at a time", 4]
    assert many.speedup == pytest.approx(one.speedup * 3.0 / 6.0)
    alone_s = PREFILL_S * 3 + (LIMIT - 1) * server.step_s * 3
    assert many.baseline_throughput == pytest.approx(16 * LIMIT / alone_s)
    assert many.throughput_ratio == pytest.approx(many.throughput / many.baseline_throughput)
    assert many.throughput_ratio == pytest.approx(many.speedup_e2e)
    assert many.baseline_ttft.p50 == pytest.approx(PREFILL_S * 3)
    assert many.baseline_tpot.p50 == pytest.approx(server.step_s * 3)
    assert (one.verdict, many.verdict) == ("GO", "NO-GO")
    assert throughput(stored, Arm("baseline", load=Load(1, 2.0))) == pytest.approx(
        rows["2 requests/s", 4].baseline_throughput
    )
    assert throughput(replace(stored, stretches=()), Arm("baseline", load=Load(1, 2.0))) is None


def test_a_percentile_takes_enough_requests() -> None:
    assert percentiles([1.0]).p50 is None
    few = percentiles(np.arange(19.0))
    assert few.p50 == 9.0 and few.p95 is None and few.p99 is None
    assert percentiles(np.arange(20.0)).p95 is not None and percentiles(np.arange(99.0)).p99 is None
    assert percentiles(np.arange(101.0)).p99 == pytest.approx(99.0)


def test_of_conversations_every_turn_is_a_request(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r")
    turns = (Turn(9, 0, 32, 0.010, 0.320), Turn(50, 9, 34, 0.040, 0.700))
    times = Times(0.050, None, None, None, None, 0.050 + 0.310 + 0.660)
    trials = tuple(replace(t, members=("a", "b"), output_tokens=66, turns=turns, times=times) for t in stored.trials)
    late = ClientLag(0.006, 0.006, 1.0)
    stretches = tuple(replace(each, lag=late) for each in stored.stretches)
    found = summarise(replace(stored, trials=trials, stretches=stretches))
    row = found.loads[0]
    for first, each in ((row.ttft, row.tpot), (row.baseline_ttft, row.baseline_tpot)):
        assert first == Percentiles(48, pytest.approx(0.025), pytest.approx(0.040), None)
        assert each == Percentiles(48, pytest.approx(0.015), pytest.approx(0.020), None)
    (warned,) = [one for one in found.warnings if one.code == "client-late"]
    assert warned.values["share"] == pytest.approx(0.006 / 0.025)


def test_waiting_that_moved_from_the_first_token_to_later_ones_is_said(tmp_path: Path) -> None:
    """As on vLLM with four clients: decoding 0.70x, whole answers 0.98x, the first token after a third of the time."""
    stored = fake_served(tmp_path / "r", BUSY, concurrency=(1, 4))

    def moved(trial: Trial, loads: set[int], share: float) -> Trial:
        """All wait for a second, of which a draft's arm has only a share before its first token."""
        if trial.arm.load.concurrency not in loads:
            return trial
        first_s = share if trial.arm.draft else 1.0
        return replace(trial, times=Times(first_s, None, None, None, None, 1.0 + trial.times.decode_s))

    def rows(loads: set[int], share: float, metric: str = "decode") -> list[tuple[str, int]]:
        trials = tuple(moved(trial, loads, share) for trial in stored.trials)
        summary = summarise(with_policy(replace(stored, trials=trials), metric=metric))
        found = [one for one in summary.warnings if one.code == "first-token-moved"]
        assert all("whole answers" in said(one) for one in found)
        return [(row["load"], row["gamma"]) for one in found for row in one.values["rows"]]

    gammas = [row.gamma for row in summarise(stored).drafts[0].gammas]
    assert sorted(rows({4}, 0.1)) == [("4 at a time", gamma) for gamma in gammas]
    assert rows({4}, 0.1, "e2e") == rows({1}, 0.1) == rows({4}, 0.9) == []


def test_where_it_stops_paying_is_found_and_backed_by_its_interval(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r", BUSY, concurrency=(1, 4, 16))
    summary = summarise(stored)
    assert summary.drafts[0].stops_paying_at_concurrency == 16
    page = render_brief(stored, summary)
    assert "It stops paying at 16 at a time (the interval [0." in page and "supports it)" in page
    assert "**Turn `demo:draft` off where 16 or more requests come at a time.**" in page
    rows = [replace(row, speedup_high=1.02) for row in summary.loads]
    doubtful = render_brief(stored, replace(summary, loads=tuple(rows)))
    assert "holds 1.00x, so this may be chance)" in doubtful
    # A dip in the middle is not where it stops paying.
    dip = [replace(row, speedup={1: 1.2, 4: 0.9, 16: 1.1}[row.concurrency or 0]) for row in summary.loads]
    assert stops_paying_at(dip, SPEC, Policy()) is None


def test_what_a_probe_says_of_more_clients_is_said_of_clients(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r")
    summary = summarise(stored)
    found = replace(summary, drafts=(replace(summary.drafts[0], stops_paying_at_batch=2),))
    assert "| stops paying at | - | 2 clients ([predicted](#larger-batches)) |" in render_brief(stored, found)


def test_the_policys_metric_decides_where_it_stops_paying(tmp_path: Path) -> None:
    rows = summarise(fake_served(tmp_path / "r", BUSY, concurrency=(1, 4, 16))).loads
    slow = [replace(row, speedup_e2e=0.5) for row in rows]
    assert stops_paying_at(slow, SPEC, Policy(metric="e2e")) == 1
    assert stops_paying_at(slow, SPEC, Policy()) == 16


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_table_of_loads_fits(tmp_path: Path, width: int, encoding: str) -> None:
    summary = summarise(fake_served(tmp_path / "r", BUSY, concurrency=(1, 4, 16), rate=(2.0,)))
    page = shown(summary, width, encoding)
    assert "under load" in page and "16 at a time" in page
    assert max(cell_len(line) for line in page.splitlines()) <= width


def test_one_request_at_a_time_needs_no_table_of_loads(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "a")
    assert summarise(stored).loads and "under load" not in shown(summarise(stored))
    assert "## Under load" not in render_brief(stored, summarise(stored))
    busy = fake_served(tmp_path / "b", BUSY, concurrency=(4,))
    assert "## Under load" in render_brief(busy, summarise(busy))


@pytest.mark.full
def test_the_figures_of_a_server(tmp_path: Path) -> None:
    assert tuple(available(summarise(fake_served(tmp_path / "a")))) == ("speedup", "survival", "categories")
    nothing = summarise(fake_served(tmp_path / "b", FakeServer(tells="nothing")))
    assert tuple(available(nothing)) == ("speedup", "categories")
    summary = summarise(fake_served(tmp_path / "c", BUSY, concurrency=(1, 4, 16)))
    assert list(available(summary))[-1] == "loads"
    write_figures(summary, tmp_path / "f")
    svg = (tmp_path / "f" / "loads.svg").read_text(encoding="utf-8")
    for label in ("concurrency (requests at a time)", "break-even", "gamma 4 (95% interval)", "as on the axis"):
        assert label in svg
    picture = imread(tmp_path / "f" / "loads.png")
    assert 0.005 < float((picture[..., :3].mean(axis=2) < 0.9).mean()) < 0.5


def test_a_tokens_price_under_load_is_that_of_throughput(tmp_path: Path) -> None:
    policy = Policy(price_per_hour=3.6)
    stored = fake_served(tmp_path / "r", replace(BUSY, noise=0.0), concurrency=(16,), policy=policy)
    summary = summarise(stored)
    row = next(row for row in summary.loads if row.gamma == summary.drafts[0].best_gamma)
    assert summary.drafts[0].money.per_million == pytest.approx(1000 / row.throughput)
    assert "With requests 16 at a time, a million output tokens cost" in render_brief(stored, summary)


def test_throughput_does_not_count_the_seconds_of_requests_that_only_keep_up_the_load(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r", replace(BUSY, noise=0.0), concurrency=(16,))
    arm = Arm("baseline", load=Load(16))
    longer = replace(stored, stretches=tuple(replace(s, wall_s=3 * s.wall_s) for s in stored.stretches))
    assert throughput(longer, arm) == throughput(stored, arm)


def test_a_run_takes_the_time_of_every_load_which_clients_share(tmp_path: Path) -> None:
    for loads in ({"concurrency": (8,)}, {"concurrency": (1, 8)}, {"rate": (2.0,)}):
        stored = fake_served(tmp_path / str(loads), FakeServer(slower={8: 3.0}, spec_slower={8: 4.0}), **loads)
        took_s = sum(stretch.wall_s for stretch in stored.stretches)
        pace = pace_of(stored)
        assert pace is not None and pace.prompt_s * 24 == pytest.approx(took_s)
