"""How far the brief trusts itself: losslessness, noise, doubts, next steps and checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_summary import stored_of, summary_of
from fake_worlds import FEW, GO, MIXED, NO_GO, World

from specbench.records import Policy
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
    stored = stored_of(MIXED, HERE)
    stored.run["provenance"]["precision"] = "float32"
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


def test_checks_repeat_the_command() -> None:
    stored = stored_of(NO_GO, HERE)
    stored.run["provenance"]["argv"] = ["specbench", "sweep", "--limit=40", "--resume", "--workload", "my file|x.jsonl"]
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
