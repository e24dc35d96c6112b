"""What a Summary says of runs whose truth is planted: predictions, traffic mixes, batches, several drafts, gates."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from fake_run import PREFILL_S, STEP_S, FakeDraft, FakeMachine, fake_run, with_policy, with_run
from fake_served import FakeServer, fake_served
from fake_summary import render_brief

from specbench.analysis.compare import compared
from specbench.analysis.predict import stops_paying
from specbench.analysis.summarise import summarise
from specbench.cost.model import break_even_alpha, tokens_per_round
from specbench.errors import ConfigError, StoreError
from specbench.records import Policy, Times, warned
from specbench.report.dialect import because, json_of, said

GOOD = FakeDraft({"code": 0.8, "chat": 0.4})


def test_the_prediction_is_the_measurement_where_costs_are_what_was_probed(tmp_path):
    draft = summarise(fake_run(tmp_path / "r", {"d": GOOD})).drafts[0]
    for row in draft.gammas:
        assert row.predicted_speedup == pytest.approx(row.speedup, rel=1e-9)
        assert row.predicted_speedup_e2e == pytest.approx(row.speedup_e2e, rel=1e-9)
        assert row.predicted_round_time.verify_s == pytest.approx(row.round_time.verify_s, rel=1e-9)
        assert row.missing_term is None
        assert row.closed_form_speedup > row.speedup  # it takes verifying for free
    assert [p.gamma for p in draft.predicted] == [1, 2, 3, 4]
    for category in draft.categories:
        for row in category.gammas:
            assert row.predicted_speedup == pytest.approx(row.speedup, rel=1e-9)


def test_what_the_last_token_adds_is_the_ratio_of_neighbours(tmp_path):
    found = summarise(fake_run(tmp_path / "r", {"d": GOOD})).drafts[0].predicted
    values = [1.0, *(row.speedup for row in found)]
    assert [row.gain for row in found] == pytest.approx([b / a - 1 for a, b in pairwise(values)])


@pytest.mark.parametrize(
    ("term", "change"),
    [
        ("verifying", {"machine": FakeMachine(verify=(1.0, 1.5, 1.6, 1.7, 1.8))}),
        ("drafting", {"drafts": {"d": replace(GOOD, draft_s=0.007, catch_up_s=0.008)}}),
        ("the rest", {"machine": FakeMachine(more_in_rounds_s=0.006)}),
    ],
)
def test_a_miss_names_the_term_that_was_planted(tmp_path, term, change):
    probed = fake_run(tmp_path / "probed", {"d": GOOD})
    wrong = fake_run(tmp_path / "timed", **({"drafts": {"d": GOOD}} | change))
    warm = tuple(t for t in probed.trials if t.warmup)
    timed = replace(
        wrong,
        run=replace(wrong.run, probe=probed.run.probe),
        trials=(*(t for t in wrong.trials if not t.warmup), *warm),
    )
    rows = summarise(timed).drafts[0].gammas
    assert all(abs(row.predicted_speedup / row.speedup - 1) > 0.05 for row in rows)
    assert {row.missing_term for row in rows} == {term}


def test_a_machine_that_was_slower_throughout_is_no_missing_term(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD})
    half = [replace(p, median_s=p.median_s / 2, low_s=p.low_s / 2, high_s=p.high_s / 2) for p in stored.run.probe]
    rows = summarise(with_run(stored, probe=tuple(half))).drafts[0].gammas
    assert all(row.missing_term in (None, "the rest") for row in rows)  # other_s did not slow down with it


def test_break_evens_are_where_the_speedup_is_one(tmp_path):
    for row in summarise(fake_run(tmp_path / "r", {"d": GOOD})).drafts[0].gammas:
        even = row.break_even
        step = STEP_S + 0.001
        times = row.round_time
        drafted = row.drafted / row.rounds
        assert even.tokens_per_round == pytest.approx((times.draft_s + times.verify_s + times.other_s) / step)
        assert tokens_per_round(even.alpha, row.gamma) == pytest.approx(even.tokens_per_round)
        at_best = even.draft_steps * drafted * step + times.verify_s + times.other_s
        assert row.tokens_per_round * step / at_best == pytest.approx(1.0)
        at_minimum = even.minimum_draft_steps * drafted * step + times.verify_s + times.other_s
        assert row.tokens_per_round * step / at_minimum == pytest.approx(1.10)
        assert even.minimum_alpha == pytest.approx(break_even_alpha(row.gamma, 0, 1.1 * even.tokens_per_round))


def test_the_batch_at_which_it_stops_paying(tmp_path):
    # a step at batch 8 costs 1.5 single steps, so 8 rows verify dearly
    machine = FakeMachine(verify=(1.0, 1.1, 1.2, 1.3, 1.4), batch={1: 1.0, 2: 1.02, 4: 1.1, 8: 1.5, 32: 4.0})
    draft = summarise(fake_run(tmp_path / "r", {"d": FakeDraft({"code": 0.5, "chat": 0.5})}, machine=machine)).drafts[0]
    by_batch = {row.batch: row for row in draft.batches}
    assert by_batch[1].speedup == pytest.approx(max(row.speedup for row in draft.predicted))
    one = next(row for row in draft.gammas if row.gamma == 1)
    # A round waits for the row that drafts, and for any of the four that has to catch up.
    tau, caught_up = one.replay_tokens_per_round, 1 - (1 - one.acceptance_rate) ** 4
    round_s = 0.002 + caught_up * 0.001 + machine.verify_s(2, 4) + 0.001
    assert by_batch[4].gamma == 1
    assert by_batch[4].speedup == pytest.approx(tau * (machine.verify_s(1, 4) + 0.001) / round_s, rel=0.005)
    assert draft.stops_paying_at_batch == min(row.batch for row in draft.batches if row.speedup < 1)
    assert by_batch[4].baseline_tokens_per_s == pytest.approx(4 / (machine.verify_s(1, 4) + 0.001))


def test_a_dip_in_the_middle_is_not_where_it_stops_paying(tmp_path):
    rows = summarise(fake_run(tmp_path / "r", {"d": GOOD})).drafts[0].batches

    def at(*speedups):
        return tuple(replace(rows[0], batch=2**i, speedup=s) for i, s in enumerate(speedups))

    assert stops_paying(at(1.2, 0.98, 1.1, 0.9)) == 8
    assert stops_paying(at(0.9, 0.8)) == 1
    assert stops_paying(at(1.2, 1.1)) is None


def test_a_traffic_mix_weighs_the_categories(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD}, prompts={"code": 20, "chat": 10})
    plain = summarise(stored)
    by_name = {category.category: category for category in plain.drafts[0].categories}
    base = STEP_S + 0.001

    def at(mix, gamma=1):
        row = next(g for g in summarise(with_policy(stored, mix=mix)).drafts[0].gammas if g.gamma == gamma)
        return row.speedup

    # every text is equally long, so seconds per token average by the shares
    per_token = {name: base / category.gammas[0].speedup for name, category in by_name.items()}
    assert at({"code": 2 / 3, "chat": 1 / 3}) == pytest.approx(plain.drafts[0].gammas[0].speedup)
    assert at({"code": 0.1, "chat": 0.9}) == pytest.approx(base / (0.1 * per_token["code"] + 0.9 * per_token["chat"]))
    assert at({"chat": 1.0}) == pytest.approx(by_name["chat"].gammas[0].speedup)
    assert summarise(with_policy(stored, mix={"chat": 1.0})).drafts[0].gammas[0].prompts == 10
    with pytest.raises(ConfigError, match=r"names maths, of which no prompt was measured .* chat, code"):
        summarise(with_policy(stored, mix={"maths": 1.0}))


def test_of_several_drafts_the_better_is_chosen_and_the_other_compared(tmp_path):
    poor = FakeDraft({"code": 0.3, "chat": 0.3})
    stored = fake_run(tmp_path / "r", {"poor": poor, "good": GOOD}, machine=FakeMachine(noise=0.02))
    found = summarise(stored)
    choice, (rival,) = found.choice, found.choice.rivals
    assert (choice.draft, rival.draft) == ("good", "poor")
    by_name = {draft.draft: {row.gamma: row for row in draft.gammas} for draft in found.drafts}
    ratio = by_name["good"][choice.gamma].speedup / by_name["poor"][rival.gamma].speedup
    assert rival.ratio == pytest.approx(ratio)
    assert rival.ratio_low > 1
    assert rival.difference == "faster"
    assert "**GO: turn `good` on" in render_brief(stored, found)


def test_the_same_draft_twice_is_not_called_better(tmp_path):
    flat = FakeDraft({"code": 0.6, "chat": 0.6})
    twice = summarise(fake_run(tmp_path / "r", {"a": flat, "b": flat}, machine=FakeMachine(noise=0.02)))
    assert twice.choice.rivals[0].difference in ("same", "not resolved")
    # choosing between equals must not look better than either
    assert twice.choice.speedup <= max(draft.speedup for draft in twice.drafts)


def test_what_is_true_of_two_drafts_is_said_of_both(tmp_path):
    none = FakeDraft({"code": 0.0, "chat": 0.0})
    stored = fake_run(tmp_path / "r", {"a": none, "b": none})
    probing = warned("busy-machine", "others were busy while the models were timed", "Stop other work.")
    disturbed = (replace(stored.trials[0], disturbed=True, other_cores=1.0), *stored.trials[1:])
    found = summarise(with_run(replace(stored, trials=disturbed), warnings=(probing,)))
    assert [one.values["draft"] for one in found.warnings if one.code == "nothing-accepted"] == ["a", "b"]
    assert [one.message for one in found.warnings if one.code == "busy-machine"] == ["", probing.message]
    page = render_brief(stored, found)
    assert all(said(one)[1:] in page for one in found.warnings)


def test_an_a_a_arm_that_disagrees_widens_the_verdicts_interval(tmp_path):
    def width(a_a):
        machine = FakeMachine(noise=0.01, a_a=a_a)
        draft = summarise(fake_run(tmp_path / str(a_a), {"d": GOOD}, machine=machine)).drafts[0]
        return draft.speedup_high - draft.speedup_low

    assert width(1.1) > 2 * width(1.0)


@pytest.mark.full
def test_a_machine_that_was_slow_over_one_category_widens_that_one_and_a_mix_of_it(tmp_path):
    """Over all prompts it hardly shows: the others outweigh it."""
    prompts = {"code": 12, "chat": 60}
    runs = {
        slow: fake_run(
            tmp_path / str(slow), {"d": GOOD}, machine=FakeMachine(noise=0.02, a_a_on={"code": slow}), prompts=prompts
        )
        for slow in (1.0, 1.15)
    }

    def categories(slow):
        return {c.category: c for c in summarise(runs[slow]).drafts[0].categories}

    def width(found):
        return found.speedup_high - found.speedup_low

    steady, unsteady = categories(1.0), categories(1.15)
    assert width(unsteady["code"]) > 2 * width(steady["code"])
    assert width(unsteady["chat"]) < width(unsteady["code"]) / 2
    assert unsteady["code"].baseline_ratio == pytest.approx(1 / 1.15, rel=0.02)
    assert [steady["code"].baseline_ratio, unsteady["chat"].baseline_ratio] == [None, None]
    mostly_code = {"code": 0.9, "chat": 0.1}
    floors = [summarise(with_policy(runs[1.15], mix=mix)).noise_floor for mix in (None, mostly_code)]
    assert floors[0] < 0.06 and floors[1] > 0.1
    brief = render_brief(runs[1.15], summarise(runs[1.15]))
    assert "timed twice, the target alone differs by more than chance on code (13%)" in brief
    assert "more than chance" not in render_brief(runs[1.0], summarise(runs[1.0]))


@pytest.mark.full
def test_a_comparison_of_a_slow_category_is_as_unsure_as_its_runs(tmp_path):
    prompts = {"code": 12, "chat": 60}

    def width(slow):
        runs = [
            fake_run(tmp_path / f"{slow}{n}", {"d": GOOD}, machine=FakeMachine(noise=0.02, a_a_on=on), prompts=prompts)
            for n, on in enumerate(({}, {"code": slow}))
        ]
        (draft,) = compared(*runs).drafts
        (code,) = (row for row in draft.gammas[0].categories if row.category == "code")
        return code.ratio_high - code.ratio_low

    assert width(1.15) > 2 * width(1.0)


def test_a_draft_that_does_not_fit_is_no_go_whatever_its_speed(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD})
    assert summarise(stored).drafts[0].verdict == "GO"
    memory = summarise(stored).drafts[0].memory
    assert (memory.context, memory.total_bytes) == (90 + 65, 30_000_000 + 1000 * 155)
    tight = summarise(with_policy(stored, max_added_gb=0.03))
    assert tight.drafts[0].verdict == "NO-GO"
    assert [because(each) for each in tight.drafts[0].reasons] == [
        "the draft takes 30.2 MB of memory, 30.0 MB are allowed"
    ]
    assert summarise(with_policy(stored, max_added_gb=0.04)).choice.verdict == "GO"


@pytest.mark.parametrize(
    ("prefill_s", "said"),
    [(0.00005, None), (0.0045, "less than was asked for"), (0.02, "slower than the target alone")],
)
def test_a_go_for_decoding_says_where_whole_answers_gain_less_than_asked(tmp_path, prefill_s, said):
    """A draft that takes long to read the prompt: decoding does not tell."""
    stored = fake_run(tmp_path / "r", {"d": replace(GOOD, prefill_s=prefill_s)})
    draft = summarise(stored).drafts[0]
    assert draft.verdict == "GO"
    added = [because(reason) for reason in draft.reasons if reason.code == "whole-answer"]
    assert [said in reason for reason in added] == ([] if said is None else [True])
    if said is not None:
        whole = next(row for row in draft.gammas if row.gamma == draft.best_gamma).speedup_e2e
        assert f"ran {whole:.2f}x [" in added[0]
        assert f"But a whole answer, prompt included, ran {whole:.2f}x" in render_brief(stored, summarise(stored))
    judged = summarise(with_policy(stored, metric="e2e")).drafts[0]
    assert (judged.verdict == "GO") == (said is None)
    assert not any(reason.code == "whole-answer" for reason in judged.reasons)


def test_money_is_price_over_rate(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD})
    assert summarise(stored).drafts[0].money is None
    draft = summarise(with_policy(stored, price_per_hour=3.6)).drafts[0]
    seconds = sum(PREFILL_S * (50 + 10 * (n % 5)) + 64 * (STEP_S + 0.001) for n in range(30)) / (30 * 65)
    assert draft.money.baseline_per_million == pytest.approx(1000 * seconds)
    e2e = next(row for row in draft.gammas if row.gamma == draft.best_gamma).speedup_e2e
    assert draft.money.per_million == pytest.approx(1000 * seconds / e2e)


def test_a_run_without_trials_has_no_verdict(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD})
    for command in ("replay", "probe"):
        with pytest.raises(StoreError, match="no verdict without a measurement"):
            summarise(with_run(stored, command=command))


def test_a_run_cut_before_any_prompt_met_both_has_nothing_to_judge_yet(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD})
    cut = tuple(t for t in stored.trials if (t.prompt_id == "p0") is (t.arm.kind == "baseline"))
    with pytest.raises(StoreError, match="No prompt was measured with and without a draft yet"):
        summarise(replace(stored, trials=cut))


class TestAnswersOfOneToken:
    """Nothing is decoded in them: there is no speedup, and none is made up."""

    def stored(self, folder, chosen, **policy):
        stored = fake_run(folder, {"d": GOOD}, prompts={"code": 24, "chat": 12})
        trials = tuple(
            replace(
                t, output_tokens=1, drafted=(), accepted=(), times=Times(t.times.prefill_s, 0, 0, 0, 0, t.times.total_s)
            )
            if chosen(t)
            else t
            for t in stored.trials
        )
        times = (replace(t.times, total_s=t.times.prefill_s) if chosen(t) else t.times for t in trials)
        found = tuple(replace(t, times=each) for t, each in zip(trials, times, strict=True))
        return with_policy(replace(stored, trials=found), **policy)

    def test_a_category_and_a_length_of_them_are_left_out_by_name(self, tmp_path):
        stored = self.stored(tmp_path / "r", lambda t: t.category == "chat")
        found = summarise(stored)
        json.dumps(json_of(found), allow_nan=False)
        assert [each.category for each in found.drafts[0].categories] == ["code"]
        assert found.drafts[0].speedup > 1
        warned = {one.code: said(one) for one in found.warnings}
        assert warned["no-decode"] == "chat: no verdict, for nothing was decoded in answers of one token"
        assert "nanx" not in render_brief(stored, found)
        (draft,) = compared(stored, stored).drafts
        assert [each.category for each in draft.shown.categories] == ["code"]
        assert [one.code for one in compared(stored, stored).warnings] == ["no-decode"]
        short = self.stored(tmp_path / "s", lambda t: t.prompt_tokens < 60, by_length=(60,))
        low, high = summarise(short).drafts[0].lengths
        assert (low.prompts, low.verdict, low.speedup) == (8, None, None) and high.speedup > 1
        assert said(summarise(short).warnings[0]).startswith("prompts of 0 to 59 tokens: no verdict")

    def test_a_run_or_a_mix_of_them_is_not_decoded_yet(self, tmp_path):
        for name, chosen, policy in (("a", lambda t: True, {}), ("m", lambda t: t.category == "chat", {"chat": 1.0})):
            with pytest.raises(StoreError, match="No trial has decoded anything yet"):
                summarise(self.stored(tmp_path / name, chosen, mix=policy or None))


def test_a_mix_is_not_judged_on_some_of_its_categories(tmp_path):
    stored = fake_run(tmp_path / "r", {"a": GOOD, "b": GOOD})
    mixed = with_policy(stored, mix={"code": 0.2, "chat": 0.8})

    def without(*specs):
        return replace(mixed, trials=tuple(t for t in mixed.trials if t.arm.draft not in specs or t.category == "code"))

    found = summarise(without("b"))
    assert [draft.draft for draft in found.drafts] == ["a"]
    assert [said(w) for w in found.warnings] == ["b is not judged: too little was measured with and without it"]
    with pytest.raises(StoreError, match="No prompt of chat, which the traffic mix names, was measured with and"):
        summarise(without("a", "b"))


def test_a_policy_with_everything_still_reads_well(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD}, machine=FakeMachine(batch={1: 1.0, 4: 1.1}))
    policy = {"mix": {"code": 0.7, "chat": 0.3}, "price_per_hour": 2.0, "max_added_gb": 1.0}
    page = render_brief(with_policy(stored, **policy), summarise(with_policy(stored, **policy)))
    for part in (
        "weighed as traffic of 70% code and 30% chat ([assumed](#traffic-mix))",
        "**Memory.** The draft adds 30.2 MB",
        "**Money.** One sequence at a time, a million output tokens cost",
        "## At larger batches",
        "Rounds, their costs and what they would give are over the prompts as they are, not weighed by the mix.",
        "It pays up to batch 4, the largest probed ([predicted](#larger-batches))",
    ):
        assert part in page


def test_policy_defaults_ask_for_none_of_it():
    assert (Policy().mix, Policy().price_per_hour, Policy().max_added_gb) == (None, None, None)


class TestIdleArms:
    """An arm that never drafted is the target alone under another name."""

    def served(self, tmp_path, drafts):
        return fake_served(tmp_path / "r", FakeServer(drafts=drafts, round_s=0.0095, alpha=0.05), gammas=(2, 4))

    def test_it_is_not_chosen_where_another_gamma_drafts(self, tmp_path):
        stored = self.served(tmp_path, lambda gamma: 0 if gamma == 2 else gamma)
        slower = tuple(
            replace(t, times=replace(t.times, total_s=t.times.total_s * 1.3)) if t.arm.gamma == 4 else t
            for t in stored.trials
        )
        stored = replace(stored, trials=slower)
        (draft,) = summarise(stored).drafts
        idle, other = draft.gammas
        assert idle.drafted == 0 and other.drafted > 0
        assert idle.speedup > other.speedup  # else nothing is shown
        assert draft.best_gamma == 4 and summarise(stored).choice.gamma == 4
        assert {category.best_gamma for category in draft.categories} == {4}

    def test_a_draft_that_never_drafts_is_refused(self, tmp_path):
        found = summarise(self.served(tmp_path, lambda gamma: 0))
        assert found.drafts[0].verdict == "NO-GO" == found.choice.verdict
        assert found.drafts[0].reasons[0].code == "never-drafted"

    def test_it_loses_to_a_draft_that_is_slower_but_drafts(self, tmp_path):
        slow = FakeDraft({"code": 0.02, "chat": 0.02}, draft_s=0.004)
        stored = fake_run(tmp_path / "r", {"idle": GOOD, "slow": slow})
        idle = tuple(
            replace(t, drafted=(0,) * 64, accepted=(0,) * 64, times=replace(t.times, draft_s=0.0))
            if t.arm.draft == "idle" and not t.warmup
            else t
            for t in stored.trials
        )
        found = summarise(replace(stored, trials=idle))
        assert found.drafts[0].speedup > found.drafts[1].speedup
        assert found.choice.draft == "slow" and found.choice.rivals == ()


def test_slower_prompts_of_a_draft_are_those_that_its_verdict_rests_on(tmp_path):
    """Cross-fitted, weighed by the mix: not those of the best row."""
    stored = fake_run(tmp_path / "r", {"d": FakeDraft({"code": 0.9, "chat": 0.05})}, machine=FakeMachine(noise=0.02))
    even = summarise(stored).drafts[0]
    chatty = summarise(with_policy(stored, mix={"code": 0.1, "chat": 0.9})).drafts[0]
    assert chatty.slower_share > even.slower_share
    assert f"| prompts slower than 0.95x | - | {chatty.slower_share:.0%} |" in render_brief(
        with_policy(stored, mix={"code": 0.1, "chat": 0.9}),
        summarise(with_policy(stored, mix={"code": 0.1, "chat": 0.9})),
    )


def test_slower_prompts_forbid_a_go_also_where_the_drafts_do_not_share_every_prompt(tmp_path):
    uneven = {"code": 0.95, "chat": 0.0}
    machine = FakeMachine(verify=(1.0, 1.1, 1.2, 1.3, 1.4))
    stored = fake_run(
        tmp_path / "r", {"a": FakeDraft(uneven), "b": FakeDraft(dict.fromkeys(uneven, 0.1))}, machine=machine
    )
    fewer = tuple(t for t in stored.trials if (t.arm.draft, t.prompt_id) != ("b", "p29"))
    stored = with_policy(replace(stored, trials=fewer), min_speedup=1.05)
    choice = summarise(stored).choice
    assert (choice.draft, choice.prompts, choice.verdict) == ("a", 29, "NO-GO")
    assert choice.reasons[0].code == "slower-prompts" and choice.reasons[0].values["share"] == pytest.approx(14 / 29)
    # and a mix weighs the prompts that they share
    even = summarise(with_policy(stored, mix={"code": 0.5, "chat": 0.5})).choice
    assert even.reasons[0].values["share"] == pytest.approx(0.5)


def test_the_answer_at_a_glance_is_over_the_prompts_of_the_mix(tmp_path):
    stored = fake_run(tmp_path / "r", {"d": GOOD})
    long = tuple(
        replace(t, times=replace(t.times, prefill_s=t.times.prefill_s + 10, total_s=t.times.total_s + 10))
        if t.category == "chat"
        else t
        for t in stored.trials
    )
    stored = with_policy(replace(stored, trials=long), mix={"code": 1.0})
    page = render_brief(stored, summarise(stored))
    alone = [t.times.total_s for t in stored.trials if t.category == "code" and t.arm.kind == "baseline"]
    assert f"| {sum(alone) / len(alone):.2f} |" in page and "not weighed by the mix" in page
