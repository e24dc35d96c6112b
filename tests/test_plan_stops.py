"""Reasons to stop on the page of a measurement plan: each fires where it is planted, with its own threshold, and none
does on a healthy pilot."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fake_run import FakeDraft, FakeMachine, with_run
from fake_served import fake_served
from test_plan_document import REPORTS, example, flags_of, made, printed, section, value
from test_planned import pilot_of

from specbench.analysis.pilot import read_pilot
from specbench.analysis.plan import Wanted, plan_of
from specbench.analysis.stops import any_time, before_the_sweep, read_evidence, slower_shares, too_few
from specbench.analysis.summarise import summarise
from specbench.records import Divergence, Policy
from specbench.report.plan import plan_document
from specbench.run_record import WorkloadFacts


def reason(page, number):
    found = re.search(rf"^{number}\. (\*\*.*)$", section(page, 7), re.MULTILINE)
    assert found, number
    return found[1]


def met(page):
    return [number for number in range(1, 10) if "**Already met" in reason(page, number)]


BAD = {"d": FakeDraft({"code": 0.1, "chat": 0.1}, draft_s=0.02, catch_up_s=0.03)}
USELESS = {"d": FakeDraft({"code": 0.01, "chat": 0.01}, draft_s=0.001)}
DEAR = {"d": FakeDraft({"code": 0.8, "chat": 0.8}, draft_s=0.04, catch_up_s=0.05)}
NEVER = {"d": FakeDraft({"code": 0.0, "chat": 0.0})}


def parted(stored):
    """One text leaves the target's own where its two best tokens lie far apart."""
    spoilt = next(i for i, trial in enumerate(stored.trials) if trial.arm.gamma == 4)
    trials = list(stored.trials)
    trials[spoilt] = replace(trials[spoilt], identical=False, diverged=Divergence(3, 0.2))
    return replace(stored, trials=tuple(trials))


def nearly(stored):
    """The same at a near-tie."""
    trials = [replace(trial, diverged=trial.diverged and Divergence(3, 1e-8)) for trial in parted(stored).trials]
    return replace(stored, trials=tuple(trials))


PLANTED = {
    "nothing accepted": ({"drafts": NEVER}, 1, "One is enough", "`nothing-accepted`"),
    "other text": ({"change": parted}, 2, "0.000048% of the top logit", "1 of 90 texts differ, 1 of them"),
    "restless": ({"noise": 0.6}, 3, "10% or more", "its floor is"),
    "baselines": ({"machine": FakeMachine(a_a=1.07, noise=0.01)}, 4, "more than 5%,", "it differs by 6."),
    "few requests": ({"available": 11}, 5, "different ones", "it has 11, enough for an interval of"),
    "slower": ({"drafts": BAD}, 6, "More than 25% of prompts run below 0.95x", "100% of 30 prompts"),
    "useless": ({"drafts": USELESS}, 7, "stay below 1.10x", "at most"),
    "no": ({"drafts": DEAR}, 8, "the chance of 1.10x or more as 5% or less", "the chance is below 1%"),
    "on the minimum": ({"wanted": {"speedup": 1.1}}, 9, "more than 100,000 prompts", "the speedup is 1.10x"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_reason_to_stop_fires_with_its_own_threshold(case, tmp_path):
    planted, number, threshold, evidence = PLANTED[case]
    _, page, _ = made(tmp_path / "r", **planted)
    said = reason(page, number)
    assert threshold in said and "**Already met" in said
    assert evidence in said.partition("**Already met")[2]
    said_above = page.partition("**Not yet.**")[2].partition("\n")[0]
    assert (f"({number})" in said_above) == (number != 5)  # a small file is no reason not to begin


def test_a_healthy_pilot_meets_none(tmp_path):
    _, page, _ = made(tmp_path / "r", change=nearly)
    assert met(page) == []
    assert "Not yet." not in page
    assert page.count("Not met by the pilot") == 8 and "none by more than that" in reason(page, 2)
    assert "Settle them" not in page


def test_only_acceptance_is_called_hopeless_not_a_dear_draft(tmp_path):
    """A draft that loses for its price alone could be made cheaper."""
    _, page, _ = made(tmp_path / "r", DEAR)
    assert 7 not in met(page) and 8 in met(page)


def test_each_draft_stands_to_a_reason_by_itself(tmp_path):
    good = FakeDraft({"code": 0.8, "chat": 0.8})
    _, page, _ = made(tmp_path / "r", {"good": good, "bad": BAD["d"]})
    said = reason(page, 6)
    assert "**Already met by the pilot:** `bad`: 100% of 30 prompts." in said
    assert "Not met by the pilot: `good`: 0% of 30 prompts." in said


def test_thresholds_are_where_they_are_said_to_be(tmp_path):
    """Just beyond is met, just short of it is not."""
    plan, _, stored = made(tmp_path / "r")
    pilot = read_evidence(stored, summarise(stored), plan)
    draft = pilot.summary.drafts[0]

    def restless(floor):
        return any_time(plan, replace(pilot, summary=replace(pilot.summary, noise_floor=floor)))[2].state

    def no(probability):
        drafts = (replace(draft, probability=probability),)
        return before_the_sweep(plan, Policy(), replace(pilot, summary=replace(pilot.summary, drafts=drafts)))[2].state

    assert [restless(floor) for floor in (0.11, 0.09, None)] == ["met", "not met", "not known"]
    assert [no(probability) for probability in (0.04, 0.06, 0.5, None)] == ["met", "not met", "not met", "not known"]
    prompts = pilot.facts.workload.available
    assert [too_few(plan, n, pilot).state for n in (prompts + 1, prompts, None)] == ["met", "not met", "met"]


def test_a_few_slow_prompts_may_be_chance():
    def state(n, share):
        part = replace(pilot_of().whole, n=n, slower_share=share)
        pilot = SimpleNamespace(pilots={"d": replace(pilot_of(), whole=part)})
        return slower_shares(pilot, Policy(), 0.95)[0].state

    assert [state(16, 6 / 16), state(160, 60 / 160), state(16, 4 / 16)] == ["perhaps", "met", "not met"]


@pytest.mark.full
def test_the_slower_share_is_the_plans_own():
    page = printed(REPORTS / "llamacpp", "--markdown")
    warned = next(
        w for w in json.loads(printed(REPORTS / "llamacpp", "--json"))["warnings"] if w["code"] == "slower-prompts"
    )
    share = re.match(r"\d+%", warned["message"])[0]
    assert f"`ngram:n=3`: {share} of 80 prompts" in reason(page, 6)


def test_an_untried_draft_length_keeps_the_ceiling_open(tmp_path):
    _, page, _ = made(tmp_path / "r", USELESS, wanted={"gammas": (1, 8)})
    assert "leans that way" in reason(page, 7) and "gamma 8 was not measured" in reason(page, 7)


def test_on_a_server_a_round_costs_at_least_a_step(tmp_path):
    stored = fake_served(tmp_path / "r", prompts=24)
    stored = with_run(stored, workload=WorkloadFacts(prompts_available=900))
    plan = plan_of(Wanted(Policy(), 0.05), read_pilot(stored, Policy(), None), "r", 900)
    page = plan_document(plan, Policy(), stored)
    tau = re.search(r"at most (\d\.\d\d)x, at gamma 4", reason(page, 7))[1]
    assert 2.2 < float(tau) < 2.6  # 1 + .6 + .36 + .216 + .13 less what the limit cuts
    assert "0.5 nats" in reason(page, 2)
    assert flags_of(page, "doctor") == [] and "cannot examine a server" in page


def test_without_a_pilot_every_reason_is_open():
    page = printed("--spread", 0.3, "--markdown")
    assert all("Not known yet: there is no" in reason(page, number) for number in range(1, 10))
    assert "**There is no pilot yet.**" in page and "(measured" not in page
    assert "**Already met by this plan:**" in reason(printed("--spread", 0.3, "--speedup", 1.1, "--markdown"), 9)


def test_thresholds_are_those_asked_for_to_the_digit(tmp_path):
    policy = Policy(min_speedup=1.125, confidence=0.975, slower_than=0.9, max_slower_share=0.125, max_added_gb=1.5)
    _, page, _ = made(tmp_path / "r", policy=policy, wanted={"half_width": 0.025})
    assert all(words in section(page, 1) for words in ("1.125x", "97.5%", "2.5%", "12.5%", "0.90x", "1.5 GB"))
    assert "12.5% or more" in reason(page, 3) and "more than 2.5%" in reason(page, 4)
    assert "12.5% of prompts run below 0.90x" in reason(page, 6)
    assert "1.125x" in reason(page, 7) and "2.5% or less" in reason(page, 8)
    sweep = flags_of(page, "sweep")[-1]
    assert [value(sweep, flag) for flag in ("--min-speedup", "--confidence", "--max-added-gb")] == [
        "1.125",
        "0.975",
        "1.5",
    ]


def test_what_the_page_says_of_repeated_looks_is_so():
    z = np.random.default_rng(0).standard_normal((40_000, 20)).cumsum(1) / np.sqrt(np.arange(1, 21))
    left_out = [(np.abs(z[:, :looks]) > 1.96).any(1).mean() for looks in (1, 10, 20)]
    said = re.search(r"in (\d+) of 100 runs. Looked at ten.*?in (\d+) of 100.*?in (\d+) \(", example(), re.DOTALL)
    assert [int(each) for each in said.groups()] == pytest.approx([100 * share for share in left_out], abs=0.7)
