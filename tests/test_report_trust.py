"""How far the brief trusts itself: losslessness, noise, doubts, next steps and checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import with_policy, with_provenance, with_run
from fake_summary import stored_of, summary_of
from fake_worlds import FEW, GO, MIXED, NO_GO, World

from specbench.analysis.contract import Choice, Memory, PredictedBatch, Summary
from specbench.records import Policy, warned
from specbench.report import wording
from specbench.report.brief.brief import render_brief

HERE = Path("reports")


def page(world: World) -> str:
    return render_brief(stored_of(world, HERE), summary_of(world))


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].strip()


def test_texts_that_differ_by_rounding_and_by_more() -> None:
    mixed = page(MIXED)
    assert "At gamma 1, 40 of 40 prompts give the target's own text, token for token (measured)." in mixed
    assert (
        "4 texts over all 3 gammas differ: all of them where the target's two best tokens nearly tie, which rounding "
        "can flip. Nearly means within 3.12% of the top logit in bfloat16 (assumed, D6)."
    ) in mixed
    wide = page(replace(MIXED, margins=(0.002, 0.4)))
    assert "1 at a wide margin, up to 40% of the top logit, **so suspect a bug**" in wide
    assert "**NO-GO: leave `demo:draft` off.**" in wide and "Not lossless" in wide
    assert "1. **Find out why texts differ before anything else.**" in wide


def test_float32_divergence_is_a_suspected_bug() -> None:
    stored = with_provenance(stored_of(MIXED, HERE), precision="float32")
    text = render_brief(stored, summary_of(MIXED))
    assert "all of them at a wide margin, up to 2% of the top logit, **so suspect a bug**" in text
    assert "In float32 such ties are rare: suspect a bug until each has been looked at." in text


def test_sampled_text_is_not_claimed_to_have_been_compared() -> None:
    text = page(FEW)
    assert "**Text.** Not checked in this run: at temperature 0.7" in text and "same text" not in section(
        text, "By gamma"
    )


def test_what_to_distrust_comes_from_the_run() -> None:
    doubts = section(page(NO_GO), "What to distrust").splitlines()
    assert (
        "*extrapolated*: The sample, 40 of the 200 prompts in the workload, stands for all of them. What would change "
        "it: measuring the other 160: `specbench sweep --name no-go --fresh --limit 200`"
    ) in "\n".join(doubts)
    assert any("75% of the target's were cut at 64 tokens" in doubt for doubt in doubts)
    assert any("24% of prompts ran below 0.95x" in doubt for doubt in doubts)
    assert "*assumed*: The machine was steady: there is no noise floor to show it." in page(FEW)
    assert "- *warning* `target-only-tokens`: The target has 12 tokens" in page(MIXED)


@pytest.mark.parametrize(
    ("world", "first", "second"),
    [
        (GO, "Confirm it in the engine", "Try a cheaper draft"),
        (NO_GO, "Try a cheaper draft", "Before giving it up, measure the time of a round"),
        (MIXED, "Add about 182 prompts", "Turn `demo:draft` on by category"),
        (FEW, "Measure all 120 prompts", "Sweep gamma, of which only 2 was measured"),
    ],
    ids=lambda value: value.name if isinstance(value, World) else "",
)
def test_two_next_steps_each_with_a_doubt(world: World, first: str, second: str) -> None:
    steps = section(page(world), "Two next steps").splitlines()
    assert len(steps) == 2
    assert steps[0].startswith(f"1. **{first}") and steps[1].startswith(f"2. **{second}")
    assert all(" Because " in step and " It may be wrong: " in step for step in steps)
    # Each reason is one of the run's own numbers.
    assert all(any(c.isdigit() for c in step.split(" Because ")[1].split(" It may be wrong: ")[0]) for step in steps)


def steps_of(summary: Summary, world: World) -> str:
    return section(render_brief(stored_of(world, HERE), summary), "Two next steps")


def test_a_go_in_process_is_always_sent_to_the_engine_first() -> None:
    summary = summary_of(GO)
    first, *others = summary.drafts[0].categories
    draft = replace(summary.drafts[0], categories=(replace(first, verdict="UNCLEAR"), *others))
    assert steps_of(replace(summary, drafts=(draft,)), GO).startswith("1. **Confirm it in the engine")


def test_a_machine_that_disagrees_with_itself_comes_before_more_prompts() -> None:
    drift = warned("noise-floor", "the target alone differs from itself", "Quiet the machine")
    drowned = steps_of(replace(summary_of(MIXED), noise_floor=0.2, warnings=(drift,)), MIXED)
    assert drowned.startswith("1. **Run it again with nothing else on the machine.** Because measured twice, ")
    assert "up to 20% from itself: what a draft does" in drowned
    stored = stored_of(MIXED, HERE)
    for shared, told in ((True, True), (False, False)):
        trials = tuple(replace(trial, disturbed=shared) for trial in stored.trials)
        busy = render_brief(replace(stored, trials=trials), replace(summary_of(MIXED), noise_floor=0.2))
        assert ("trials shared the machine" in section(busy, "Two next steps")) is told
        assert ("Run it again with nothing else" in busy) is told


def test_prompts_that_are_too_few_even_all_together_are_not_called_enough() -> None:
    stored = stored_of(MIXED, HERE)
    stored = with_run(stored, workload=replace(stored.run.workload, prompts_available=41, prompts_used=40))
    text = render_brief(stored, summary_of(MIXED))
    assert "1. **Measure all 41 prompts of the workload, not 40, and add about 181 more.**" in text
    assert "measuring the one left out" in section(text, "What to distrust")


def test_under_a_mix_only_its_own_prompts_count_towards_enough() -> None:
    stored = with_policy(stored_of(MIXED, HERE), mix={"code": 0.5, "chat": 0.5})
    steps = section(render_brief(stored, summary_of(MIXED)), "Two next steps")
    assert steps.startswith("1. **Measure about 182 more prompts of code and chat: 40 have been.**")


def test_a_look_up_that_was_measured_is_not_suggested() -> None:
    summary = summary_of(NO_GO)
    assert "or n-gram look-up where" in steps_of(summary, NO_GO)
    slower = replace(summary.drafts[0], draft="ngram:n=3", speedup=0.5)
    both = steps_of(replace(summary, drafts=(*summary.drafts, slower)), NO_GO)
    assert "1. **Try a cheaper draft: a smaller model than this one.**" in both


def test_the_share_of_slower_prompts_is_that_of_the_gamma_it_stands_under() -> None:
    summary = summary_of(GO)
    draft = replace(summary.drafts[0], slower_share=0.17)
    rows = tuple(replace(row, slower_share=0.21) for row in draft.gammas)
    text = render_brief(stored_of(GO, HERE), replace(summary, drafts=(replace(draft, gammas=rows),)))
    assert "| requests below 0.95x | - | 21% |" in text
    assert "and so does its share of prompts below 0.95x, 17% against 21%." in text


def test_what_was_not_timed_and_not_recorded_is_called_not_known() -> None:
    doubts = section(page(GO), "What to distrust")
    assert (
        "*not known*: At which batch it stops paying (nothing was timed beyond batch 1) and how much memory" in doubts
    )
    told = replace(summary_of(GO).drafts[0], memory=Memory(1, 1, 1, 2))
    batches = tuple(PredictedBatch(batch, 2, 1.5, 1.4, 1.6, 10.0, 15.0) for batch in (1, 2))
    for draft, part in ((told, True), (replace(told, batches=batches), False)):
        text = render_brief(stored_of(GO, HERE), replace(summary_of(GO), drafts=(draft,)))
        assert ("nothing was timed beyond batch 1" in text) is part and "its cache was not recorded" not in text


def test_a_verdict_whose_interval_holds_the_minimum_is_a_close_call() -> None:
    summary = summary_of(GO)
    first, *others = summary.drafts[0].categories
    for low, told in ((0.9, True), (1.3, False)):
        draft = replace(summary.drafts[0], categories=(replace(first, verdict="GO", speedup_low=low), *others))
        text = render_brief(stored_of(GO, HERE), replace(summary, drafts=(draft,)))
        assert (f"or holds it: {first.category} [{low:.2f}, " in text) is told


def test_a_mixed_verdict_says_so_in_its_first_paragraph() -> None:
    summary = summary_of(GO)
    first, *others = summary.drafts[0].categories
    draft = replace(summary.drafts[0], categories=(first, *(replace(c, verdict="NO-GO") for c in others)))
    choice = Choice(draft.draft, 4, "GO", (), 1.5, 1.3, 1.7, 0.99, 48)
    other = replace(draft, draft="ngram:n=3", speedup=0.5)
    told = wording.choice(replace(summary, drafts=(draft, other), choice=choice), Policy())
    assert told is not None and f"By category it is mixed: on for {first.category}" in told and "; off for " in told
    even = wording.choice(replace(summary, drafts=(summary.drafts[0], other), choice=choice), Policy())
    assert even is not None and "mixed" not in even


def test_checks_repeat_the_command() -> None:
    argv = ("specbench", "sweep", "--limit=40", "--resume", "--workload", "my file|x.jsonl")
    stored = with_provenance(stored_of(NO_GO, HERE), argv=argv)
    text = section(render_brief(stored, summary_of(NO_GO)), "How to check it")
    assert f"specbench check {stored.folder}\n" in text
    assert "specbench sweep --limit=40 --workload 'my file|x.jsonl' --fresh\n" in text
    assert "specbench sweep --workload 'my file|x.jsonl' --fresh --limit 200\n" in text
    assert "--fresh --dtype float32\n" in text
    assert r"--workload 'my file\|x.jsonl'` |" in render_brief(stored, summary_of(NO_GO))


def test_noise_that_could_explain_the_speedup() -> None:
    summary = replace(summary_of(NO_GO), noise_floor=0.08)
    assert "The 0.95x of `demo:draft` is no further from 1.00x: perhaps noise." in render_brief(
        stored_of(NO_GO, HERE), summary
    )


def test_a_decided_whole_with_undecided_categories_says_both() -> None:
    draft = summary_of(GO).drafts[0]
    first, *others = draft.categories
    open_ = [replace(category, verdict="UNCLEAR") for category in others]
    told = wording.policy_line(replace(draft, categories=(first, *open_)), Policy())
    assert told.startswith("on for this mix of traffic as a whole. Each category alone: on for ")
    assert "undecided for" in told
    against = [replace(category, verdict="NO-GO") for category in others]
    assert wording.policy_line(replace(draft, categories=(first, *against)), Policy()).startswith("on for ")
    assert "as a whole" not in wording.policy_line(replace(draft, categories=(first, *against)), Policy())
