"""What is said of a run on a server: what it tells, what it does not, its own counters and clock."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from conftest import full
from fake_run import with_run
from fake_served import LIMIT, FakeServer, fake_served, rounds
from fake_summary import render_brief, write_brief
from rich.console import Console

from specbench.acceptance.lossless import NEAR_TIE_NATS, lossy_reason
from specbench.acceptance.metrics import count, told_counts
from specbench.analysis.contract import Summary
from specbench.analysis.doubts import doubts
from specbench.analysis.steps import next_steps
from specbench.analysis.summarise import summarise
from specbench.records import ClientLag, Counters, Divergence, Load, Round, ServerStats, Window
from specbench.report.dialect import because, part, said
from specbench.report.layout import sweep_page
from specbench.run_record import Provenance
from specbench.store import StoredRun

BUSY = FakeServer(slower={4: 1.5, 16: 3.0}, spec_slower={4: 2.2, 16: 6.0})


def shown(summary: Summary, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width)
    console.print(sweep_page(summary))
    file.seek(0)
    return file.read()


def codes(stored: StoredRun) -> dict[str, str]:
    return {caution.code: said(caution) for caution in summarise(stored).warnings}


def with_trials(stored: StoredRun, change: Callable[[Any], Any], kind: str = "speculative") -> StoredRun:
    return replace(stored, trials=tuple(change(t) if t.arm.kind == kind else t for t in stored.trials))


def test_totals_and_survivors_are_as_good_as_a_list_of_rounds(tmp_path: Path) -> None:
    listed = summarise(fake_served(tmp_path / "a", FakeServer())).drafts[0]
    told = summarise(fake_served(tmp_path / "b", FakeServer(tells="survived"))).drafts[0]
    assert told == listed
    assert told.alpha is not None and told.alpha_low is not None


def test_totals_give_tau_and_r_but_neither_survival_nor_alpha(tmp_path: Path) -> None:
    listed = summarise(fake_served(tmp_path / "a", FakeServer())).drafts[0]
    told = summarise(fake_served(tmp_path / "b", FakeServer(tells="totals"))).drafts[0]
    for row, own in zip(told.gammas, listed.gammas, strict=True):
        assert (row.rounds, row.tokens_per_round, row.acceptance_rate) == (
            own.rounds,
            own.tokens_per_round,
            own.acceptance_rate,
        )
        assert row.survival == () and row.round_time is None and row.closed_form_speedup is None
        assert row.round_steps == own.round_steps
    assert told.alpha is None


def test_what_is_not_told_is_none_and_never_0(tmp_path: Path) -> None:
    drafts = summarise(fake_served(tmp_path / "a", FakeServer(tells="drafts"))).drafts[0].gammas[0]
    assert drafts.rounds is None and drafts.tokens_per_round is None and drafts.round_steps is None
    assert drafts.acceptance_rate is not None and 0.3 < drafts.acceptance_rate < 0.7
    stored = fake_served(tmp_path / "b", FakeServer(tells="nothing"))
    row = summarise(stored).drafts[0].gammas[0]
    assert (row.rounds, row.drafted, row.accepted, row.round_s, row.break_even) == (None,) * 5
    page = render_brief(stored, summarise(stored))
    assert "| gamma | speedup, decode [95% interval] |" in page and "None" not in page and " nan" not in page
    assert "The number of rounds is not known" in page and "r is accepted" not in page
    assert "tau" not in shown(summarise(stored))


def test_a_rounds_cost_is_its_planted_time_in_planted_steps(tmp_path: Path) -> None:
    quiet = FakeServer(step_s=0.010, round_s=0.023, noise=0.0)
    row = summarise(fake_served(tmp_path / "r", quiet)).drafts[0].gammas[1]
    assert row.round_s == pytest.approx(0.023)
    assert row.round_steps == pytest.approx(2.3)
    assert row.round_steps == pytest.approx(row.tokens_per_round / row.speedup)
    assert row.break_even.tokens_per_round == pytest.approx(2.3)
    assert (row.break_even.draft_steps, row.break_even.measured_draft_steps) == (None, None)


def test_counts_from_totals() -> None:
    listed = [Round(3, n) for n in (3, 3, 1, 0, 2)]
    told = ServerStats(rounds=5, drafted=15, accepted=9, survived=(4, 3, 2))
    assert told_counts(told, 3) == count(listed, 3)
    for strange in (
        replace(told, drafted=14),
        replace(told, survived=(4, 3, 1)),
        replace(told, survived=(2, 3, 4)),
        replace(told, survived=None),
    ):
        found = told_counts(strange, 3)
        assert (found.rejections, found.reached, found.survival, found.alpha) == (None, (), (), None)
        assert found.tokens_per_round == pytest.approx(1 + 9 / 5)
    assert told_counts(ServerStats(rounds=0, drafted=0, accepted=0, survived=()), 2).tokens_per_round is None


def test_texts_without_counts_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r")
    whole = summarise(stored).drafts[0].gammas[0]

    def some(trial: Any) -> Any:
        lost = trial.prompt_id in ("p1", "p2", "p3")
        return replace(trial, drafted=(), accepted=(), told=ServerStats()) if lost else trial

    part = with_trials(stored, some)
    row = summarise(part).drafts[0].gammas[0]
    assert row.counted_share == pytest.approx(21 / 24)
    assert row.rounds is not None and row.rounds < whole.rounds
    assert row.tokens_per_round == pytest.approx(whole.tokens_per_round, rel=0.05)
    assert "are over 88% of the texts" in render_brief(part, summarise(part))


def test_a_request_that_drafted_nothing_took_a_round_for_every_token(tmp_path: Path) -> None:
    stored = with_trials(
        fake_served(tmp_path / "r"),
        lambda t: replace(t, drafted=(), accepted=(), told=ServerStats(drafted=0, accepted=0)),
    )
    row = summarise(stored).drafts[0].gammas[0]
    assert (row.rounds, row.tokens_per_round, row.acceptance_rate) == (24 * (LIMIT - 1), 1.0, None)
    assert "drafted nothing at all" in codes(stored)["not-speculating"]


def test_a_server_that_drafted_nothing_says_so_first_and_what_a_draft_costs_is_not_known(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r", FakeServer(drafts=lambda gamma: 0, cached=45))
    page = render_brief(stored, summarise(stored))
    assert page.split("## What to distrust most\n\n")[1].startswith("- `not-speculating`: ")
    assert "no round drafted anything, so what a round with a draft costs is not known." in page
    for claim in ("every draft accepted", "What limits it", "Break-even", "It may be wrong: an engine", "(#what-if)"):
        assert claim not in page
    assert [step.code for step in next_steps(summarise(stored), most=9)] == ["never-drafts", "your-load"]


def test_counters_that_agree_are_a_line(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r", concurrency=(1, 4))
    summary = summarise(stored)
    assert "counters-disagree" not in codes(stored)
    found = summary.server.counters
    assert (found.compared, found.agreeing, found.not_comparable) == (4, 4, 4)
    drafted = sum(sum(t.drafted) for t in stored.trials if t.arm.load == Load())
    assert f"drafted {drafted:,}" in render_brief(stored, summary)
    assert "in 4 of 4 stretches of requests. 4 more could not be compared." in render_brief(stored, summary)


@pytest.mark.parametrize("name", ["tokens", "rounds", "drafted", "accepted"])
def test_a_miscount_is_named_with_its_size(tmp_path: Path, name: str) -> None:
    stored = fake_served(tmp_path / "r", FakeServer(miscount={name: 3}))
    message = codes(stored)["counters-disagree"]
    assert "in 2 of 4 stretches" in message and "(+6)" in message
    assert {"tokens": "output tokens"}.get(name, name) in message and message.count("(+") == 1
    assert "**The server's own counters disagree**" in render_brief(stored, summarise(stored))


def test_attempts_belong_to_their_stretch_and_missing_counters_to_none(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "a")
    first = next(trial for trial in stored.trials if trial.arm.kind == "speculative")
    again = replace(stored, trials=(*stored.trials, replace(first, attempt=1)))
    assert "output tokens" in codes(again)["counters-disagree"]
    silent = summarise(fake_served(tmp_path / "b", FakeServer(counts=False))).server.counters
    assert (silent.compared, silent.agreeing, silent.not_comparable) == (0, 0, 4)


def test_a_step_without_a_draft_is_a_round_of_ours_and_none_of_its_counters(tmp_path: Path) -> None:
    stored = with_trials(
        fake_served(tmp_path / "r"), lambda t: replace(t, drafted=(*t.drafted, 0), accepted=(*t.accepted, 0))
    )
    assert "counters-disagree" not in codes(stored)


def test_a_baseline_that_drafted_is_found_out(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r")
    base = next(stretch for stretch in stored.stretches if stretch.arm.kind == "baseline")
    drafting = Window(base.number, base.arm, 24, 1.0, replace(base.counters or Counters(), drafted=9), True)
    found = codes(replace(stored, stretches=(drafting, *stored.stretches[1:])))
    assert "in 1 of 4" in found["counters-disagree"] and "(+9)" in found["counters-disagree"]
    told = with_trials(stored, lambda t: replace(t, told=replace(t.told, drafted=2)), "baseline")
    assert "(48 tokens drafted)" in codes(told)["baseline-speculates"]


def test_the_servers_clock(tmp_path: Path) -> None:
    close = fake_served(tmp_path / "a", FakeServer(clock=0.97))
    assert "the server's own clock says 3.0% less." in render_brief(close, summarise(close))
    assert "clock-disagrees" not in codes(close)
    far = fake_served(tmp_path / "b", FakeServer(clock=0.85))
    assert "15% less for demo:draft gamma 4" in codes(far)["clock-disagrees"]


def test_a_client_that_is_late_says_so(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "a")
    first_s = median(trial.times.prefill_s for trial in stored.trials)

    def late(share: float) -> StoredRun:
        lag = ClientLag(share * first_s, first_s, 0.5)
        return replace(stored, stretches=tuple(replace(each, lag=lag) for each in stored.stretches))

    assert "client-late" not in codes(stored)
    assert "client-late" not in codes(late(0.04))
    assert "6% of the median time to first token" in codes(late(0.06))["client-late"]


def test_prompts_from_a_cache(tmp_path: Path) -> None:
    assert "prefix-cache" not in codes(fake_served(tmp_path / "a", FakeServer(cached=20)))
    message = codes(fake_served(tmp_path / "b", FakeServer(cached=45)))["prefix-cache"]
    assert message.startswith("4,320 of 4,800 prompt tokens")


@pytest.mark.parametrize(("drafts", "words"), [(1, "no round drafted more than 1"), (6, "rounds drafted up to 6")])
def test_a_gamma_that_was_not_honoured(tmp_path: Path, drafts: int, words: str) -> None:
    stored = fake_served(tmp_path / "r", FakeServer(drafts=lambda gamma: drafts), gammas=(4,))
    assert f"demo:draft gamma 4: {words}" in codes(stored)["gamma-not-honoured"]
    assert len(summarise(stored).drafts[0].gammas[0].survival) == max(4, drafts)
    assert "gamma-not-honoured" not in codes(fake_served(tmp_path / "right"))


def test_the_first_page_and_the_doubts(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r")
    page = render_brief(stored, summarise(stored))
    first = page.split("## What to do next")[0]
    assert first.split("\n\n")[1].startswith("**GO: turn `demo:draft` on")
    assert "Measured from outside, as a client sees it, with requests 1 at a time." in first
    assert "llama.cpp b11549 over HTTP, started by specbench" in page.split("## What it holds for")[1]
    codes = {doubt.code for doubt in doubts(summarise(stored))}
    assert {"parts-not-told", "nothing-predicted"} <= codes
    assert "| `drafted` | `timings.draft_n` |" in page
    assert "specbench check" not in page and "--dtype float32" not in page and "\n\n\n" not in page


@pytest.mark.full
@pytest.mark.parametrize("tells", ["nothing", *full("rounds", "totals", "drafts")])
@pytest.mark.parametrize("round_s", [0.009, 0.013, 0.040])
def test_there_are_two_next_steps_whatever_is_known(tmp_path: Path, tells: str, round_s: float) -> None:
    stored = fake_served(tmp_path / "r", FakeServer(tells=tells, round_s=round_s))
    path = write_brief(stored, summarise(stored))
    page = path.read_text(encoding="utf-8")
    steps = page.split("## What to do next\n")[1].split("\n## ")[0].strip().splitlines()
    assert len(steps) == 2 and all(" It may be wrong: " in step for step in steps)
    assert "in the engine that serves your traffic" not in page
    assert len(page.split("](figures/")) - 1 == len(list((path.parent / "figures").glob("*.svg")))


def test_a_server_knows_gaps_and_no_margins(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r")

    def parted(gap: float | None) -> StoredRun:
        def change(trial: Any) -> Any:
            if trial.prompt_id != "p0" or trial.arm.gamma != 4:
                return trial
            return replace(trial, identical=False, diverged=Divergence(3, None, gap))

        return with_trials(stored, change)

    near, wide, unknown = parted(NEAR_TIE_NATS / 2), parted(2.0), parted(None)
    assert summarise(near).drafts[0].verdict == "GO"
    page = render_brief(near, summarise(near))
    assert "nearly tie" in page and "Nearly means within 0.5 nats" in page
    assert summarise(wide).drafts[0].verdict == "NO-GO"
    page = render_brief(wide, summarise(wide))
    assert "up to 2.00 nats between them, **so suspect a bug**" in page
    assert "lie up to 2.00 nats apart" in page.split("## What to do next")[1]
    assert summarise(unknown).drafts[0].verdict == "GO"
    assert "without a recorded margin" in render_brief(unknown, summarise(unknown))
    for dtype in ("Q4_1", None):
        lossy = [replace(t, diverged=Divergence(1, 0.4)) for t in stored.trials[:1]]
        reason = lossy_reason(lossy, dtype)
        assert reason is not None and "rounding cannot explain it" in because(reason)
        assert lossy_reason([replace(lossy[0], diverged=Divergence(1, 0.001))], dtype) is None


def test_the_precision_is_the_servers_own_or_not_known(tmp_path: Path) -> None:
    silent = with_run(fake_served(tmp_path / "r", dtype="bfloat16"), provenance=Provenance("x"))
    page = render_brief(silent, summarise(silent))
    assert "precision not recorded" in page and "bfloat16" not in page and "x over HTTP;" in page
    assert "hardware not known" in page


def test_a_run_in_process_has_neither_server_nor_loads(tmp_path: Path) -> None:
    from fake_run import FakeDraft, fake_run

    summary = summarise(fake_run(tmp_path / "r", {"d": FakeDraft({"code": 0.8, "chat": 0.4})}))
    assert summary.server is None and summary.loads == ()
    for row in summary.drafts[0].gammas:
        times = row.round_time
        assert row.round_s == pytest.approx(times.draft_s + times.verify_s + times.other_s)
        assert row.counted_share == 1.0


def test_the_fake_drafts_as_it_says() -> None:
    drafted, accepted = rounds([True] * LIMIT, 4)
    assert len(drafted) + sum(accepted) == LIMIT - 1


def test_a_look_up_is_not_told_to_try_a_look_up(tmp_path: Path) -> None:
    found = summarise(fake_served(tmp_path / "r", FakeServer(round_s=0.013)))
    model = replace(found, choice=None, drafts=(replace(found.drafts[0], verdict="NO-GO"),))
    (step,) = (each for each in next_steps(model, most=9) if each.code == "cheaper-or-agreeing")
    assert part(step, "do").endswith(" or one that agrees more.") and "no more than" not in part(step, "why")
    dear = replace(step, values={**step.values, "right": 0.914})
    assert part(dear, "do") == "Try a cheaper draft, such as n-gram look-up where the engine has it."
    assert "Every draft accepted, at this cost, would give no more than 0.91x (predicted)." in part(dear, "why")
    assert "cheaper-or-agreeing" in [step.code for step in next_steps(model, most=9)]
    lookup = replace(model, drafts=(replace(model.drafts[0], draft="ngram:n=3"),))
    assert "longer-look-up" in [step.code for step in next_steps(lookup, most=9)]
