"""The decision brief: one first page, its numbers, marks and names. What it says word by word is kept in reports/."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import FakeDraft, FakeMachine, fake_run, with_config, with_policy, with_provenance, with_run
from fake_served import FakeServer, fake_served
from fake_summary import of_run, render_brief, stored_of, summary_of, with_second_draft, write_brief
from fake_worlds import FEW, GO, MIXED, NO_GO, WORLDS, World
from justhtml import JustHTML
from test_report_served import shown

from specbench.analysis.contract import PredictedGamma, StoppedGamma, Summary
from specbench.analysis.doubts import doubts
from specbench.analysis.facts import Pace, changed_command
from specbench.analysis.pilot import read_pilot
from specbench.analysis.plan import Wanted, plan_of
from specbench.analysis.steps import next_steps
from specbench.analysis.summarise import summarise
from specbench.api import recorded_acceptance
from specbench.config import RunConfig
from specbench.errors import StoreError
from specbench.records import Finding, Policy, Trial, warned
from specbench.report import brief
from specbench.report.dialect import kind_of, part
from specbench.report.explain.explain import explain_run
from specbench.run_record import Provenance, RunRecord
from specbench.store import StoredRun, read_run

ROOT = Path(__file__).parent.parent
HERE = Path("reports")
KEPT = ("example", "drafters", "llamacpp")
MARK = re.compile(r"\(\[([a-z ]+)\]\(#([a-z-]+)\)\)")
ENTRY = re.compile(r'^- <a id="([a-z-]+)"></a>', re.MULTILINE)
SECTIONS = [
    "What to do next",
    "The candidates",
    "What users would see",
    "By category",
    "What it holds for",
    "What to distrust most",
    "Decision",
]


def page(world: World, **changes: object) -> str:
    return render_brief(stored_of(world, HERE, **changes), summary_of(world))  # type: ignore[arg-type]


def front(text: str) -> str:
    return text.split("\n## Evidence\n")[0]


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].strip()


def rich(folder: Path, policy: Policy) -> StoredRun:
    """A run with everything that can be predicted or stated: batches, break-evens, a mix and a price."""
    machine = FakeMachine(batch={1: 1.0, 2: 1.1, 4: 2.0}, noise=0.05)
    return fake_run(folder, {"demo:draft": FakeDraft({"code": 0.8, "chat": 0.3})}, machine=machine, policy=policy)


def idle(stored: StoredRun, draft: str) -> StoredRun:
    """The same with a draft that never drafted."""

    def none(trial: Trial) -> Trial:
        rounds = (0,) * len(trial.drafted)
        return replace(trial, drafted=rounds, accepted=rounds) if trial.arm.draft == draft else trial

    return replace(stored, trials=tuple(map(none, stored.trials)))


def with_idle(folder: Path) -> StoredRun:
    drafts = {name: FakeDraft({"code": 0.1, "chat": 0.1}) for name in ("demo:draft", "ngram:n=3")}
    return idle(fake_run(folder, drafts), "ngram:n=3")


def in_batches(stored: StoredRun, batch: int, **work: int) -> StoredRun:
    workload = replace(stored.run.workload, **work)
    return with_run(with_config(stored, batch_size=batch), workload=workload)


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Summary]:
    """Runs of every sort."""
    folder = tmp_path_factory.mktemp("runs")
    found = {world.name: of_run(stored_of(world, folder), summary_of(world)) for world in WORLDS.values()}
    runs = {
        "rich": rich(folder / "rich", Policy(mix={"code": 0.7, "chat": 0.3}, price_per_hour=4.0)),
        "open": rich(folder / "open", Policy(min_speedup=1.32)),
        "served": fake_served(folder / "served"),
        "mute": fake_served(folder / "mute", FakeServer(tells="nothing")),
        "idle": with_idle(folder / "idle"),
        "lengths": fake_run(
            folder / "lengths",
            {"demo:draft": FakeDraft({"all": 0.8})},
            prompts={"all": 40},
            policy=Policy(by_length=(70,)),
        ),
        **{name: read_run(ROOT / "tests/runs" / name) for name in KEPT},
    }
    found |= {name: summarise(stored) for name, stored in runs.items()}
    # The verdict on the whole is open, that of no draft alone; and at one batch, the only one, it does not pay.
    choice, decided = found["open"].choice, tuple(replace(each, reasons=()) for each in found["open"].drafts)
    assert choice is not None and "more-prompts" in [reason.code for reason in choice.reasons]
    lost = (replace(found["served"].drafts[0], stops_paying_at_batch=1),)
    found |= {"chosen": replace(found["open"], drafts=decided), "lost": replace(found["served"], drafts=lost)}
    return found


@pytest.fixture(scope="module")
def pages(summaries: dict[str, Summary]) -> dict[str, str]:
    return {name: brief.render_brief(summary) for name, summary in summaries.items()}


def words(markdown: str) -> list[str]:
    """What is read: without markup, targets of links and rules of tables."""
    plain = re.sub(r"<[^>]*>|\]\([^)]*\)|```\w*|[`*|>\[\]\\#_-]", " ", markdown)
    return [word for word in plain.split() if re.search(r"\w", word)]


def test_the_first_page_is_one_page_in_its_order(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        first = front(text)
        assert len(words(first)) <= 600, (name, len(words(first)))
        assert first.count("](figures/") == 1, name
        headings = re.findall(r"^## (.*)$", first, re.MULTILINE)
        assert headings == [each for each in SECTIONS if each in headings], name
        assert len(re.findall(r"^- ", section(first, "What to distrust most"), re.MULTILINE)) <= 3, name


def test_both_dialects_say_the_same(summaries: dict[str, Summary]) -> None:
    for name in ("mixed", "rich", "served", "drafters"):
        html = JustHTML(brief.render_page(summaries[name], HERE), sanitize=False)
        shown = " ".join(node.to_text() for node in html.query("main"))
        told = re.sub(r"^\d\. ", "", brief.render_brief(summaries[name]), flags=re.MULTILINE)
        told = re.sub(r"!\[([^]]*)\]\([^)]*\)", r"(No figure here: \1)", told)
        tidy = [re.sub(r"\W", "", word) for word in words(told) if word != "--"]
        said = [re.sub(r"\W", "", word) for word in words(shown) if word != "--"]
        assert "".join(said) == "".join(tidy), name


def test_the_estimate_of_the_verdict_stands_for_the_run(summaries: dict[str, Summary], pages: dict[str, str]) -> None:
    for name in KEPT:
        choice, first = summaries[name].choice, front(pages[name])
        assert choice is not None
        estimate = f"{choice.speedup:.2f}x [{choice.speedup_low:.2f}, {choice.speedup_high:.2f}]"
        assert f"**{choice.speedup:.2f}x**" in first and estimate in section(first, "The candidates")
        (draft,) = (draft for draft in summaries[name].drafts if draft.draft == choice.draft)
        slower = re.findall(r"slower than [\d.]+x \| - \| (\S+) ", first)
        assert slower == [f"{draft.slower_share:.0%}"]


def test_a_draft_that_never_drafted_is_no_candidate(summaries: dict[str, Summary], pages: dict[str, str]) -> None:
    summary, text = summaries["idle"], pages["idle"]
    assert [draft.draft for draft in summary.among] == ["demo:draft"] and summary.tried == 3
    said = "leave speculation off; `demo:draft` is the only draft that drafted."
    assert said in front(text) and "choosing among the 3." in front(text)
    assert "the only draft that drafted: demo:draft" in shown(summary)
    assert "the best of 3 gammas looks better" in explain_run(summary, "engineer").text
    costs = section(text, "What a round costs, and what limits it").partition("### `ngram:n=3`")[2]
    assert costs.startswith("\n\nAt gamma ") and "no round drafted anything, so what a round" in costs
    assert not re.search(r"What limits it|every draft accepted|Break-even|target steps", costs)
    assert text.count("The replayed tau") == 1
    alone = summarise(idle(fake_run(Path(summary.run + "-alone"), {"d": FakeDraft({"code": 0.5, "chat": 0.5})}), "d"))
    assert [step.code for step in next_steps(alone, most=9)] == ["never-drafts"] and alone.tried == 3


def test_predictions_that_cannot_be_judged_are_not_and_come_late() -> None:
    summary = of_run(stored_of(MIXED, HERE), summary_of(MIXED))
    off = Finding("prediction-unjudged", "warning", {"measured": 0.06, "probed": 0.01}, "Quiet it.")
    late = warned("rounds-not-probed", "in the probe x drafted nothing", "Probe it.")
    silent = Finding("not-speculating", "warning", {"arms": ["x gamma 2"]}, "Look at its log.")
    (draft,) = summary.drafts
    rows = tuple(replace(row, missing_term="drafting") for row in draft.gammas)
    predicted = (PredictedGamma(1, 1.5, 1.2, 1.1, 1.3, None, 0.2),)
    wrong = replace(summary, drafts=(replace(draft, gammas=rows, predicted=predicted),))
    assert "is off by more than 5%" in brief.render_brief(wrong)
    text = brief.render_brief(replace(wrong, warnings=(off, late, *summary.warnings, silent)))
    assert "is off by more than 5%" not in text
    codes = re.findall(r"^- (?:<a [^>]*></a>\*\*|`)([a-z-]+)", text.split("## What to distrust most")[1], re.MULTILINE)
    assert codes[:3] == ["not-speculating", "target-only-tokens", "few-prompts"]
    assert codes[3:5] == ["prediction-unjudged", "rounds-not-probed"]


def test_what_is_missing_is_counted_once(tmp_path: Path) -> None:
    """By the verdict's reason, its step, and a plan that has the run for its pilot."""
    stored = rich(tmp_path / "r", Policy(min_speedup=1.32))
    summary = summarise(stored)
    (reason,) = (each for each in summary.drafts[0].reasons if each.code == "more-prompts")
    (step,) = (each for each in next_steps(summary) if each.code == "more-prompts")
    plan = plan_of(Wanted(summary.policy, 0.05), read_pilot(stored, summary.policy, None))
    assert plan.verdict is not None
    assert reason.values["needed"] == step.values["needed"] == plan.verdict.need.prompts
    text = brief.render_brief(summary)
    more, needed = reason.values["more"], reason.values["needed"]
    assert f"bout {more:,} more prompts like these, {needed:,} in all" in text and more + 30 == needed
    assert f"**Add {more:,} prompts to the workload" in text


def test_batches_are_counted_in_prompts_where_prompts_are_asked_for(tmp_path: Path) -> None:
    stored = in_batches(rich(tmp_path / "r", Policy(min_speedup=1.32)), 4, prompts_available=9000, prompts_used=120)
    summary = summarise(stored)
    assert summary.pace is not None and summary.choice is not None
    needed = next(each.values["needed"] for each in summary.choice.reasons if each.code == "more-prompts")
    (step,) = (each for each in next_steps(summary) if each.code == "more-prompts")
    assert step.hint.endswith(f"--limit {4 * needed}")
    assert step.values["minutes"] == pytest.approx(summary.pace.minutes(needed))
    text = brief.render_brief(summary)
    assert f"**Measure {4 * needed:,} of the workload's 9,000 prompts, not 120.**" in text
    assert f"bout {needed - 30:,} more batches of 4 prompts like these, {needed:,} in all" in text
    assert "the output of 30 of 30 batches of 4 prompts is identical" in text and "| batches slower than" not in text
    assert "rest on fewer than 30 batches of 4 prompts." in text and "| batches (" in text
    few = in_batches(fake_run(tmp_path / "few", {"d": FakeDraft({"all": 0.8})}, prompts={"all": 6}), 4)
    assert "6 batches of 4 prompts are too few for an interval" in brief.render_brief(summarise(few))
    assert "6 batches of 4 prompts give no interval" in brief.render_brief(summarise(few))


def test_a_mix_holds_for_the_prompts_of_its_categories(tmp_path: Path) -> None:
    prompts = {"code": 20, "chat": 14, "maths": 13}
    drafts = {"demo:draft": FakeDraft(dict.fromkeys(prompts, 0.8))}
    stored = fake_run(tmp_path / "r", drafts, prompts=prompts, policy=Policy(mix={"code": 0.6, "chat": 0.4}))

    def longer(trial: Trial) -> Trial:
        odd = replace(trial, prompt_tokens=900, finish="eos", times=replace(trial.times, prefill_s=9, total_s=10))
        return odd if trial.category == "maths" else trial

    work = replace(stored.run.workload, prompts_available=47, prompts_used=47)
    whole = with_run(replace(stored, trials=tuple(map(longer, stored.trials))), workload=work)
    facts = summarise(whole).facts
    assert facts.prompt_tokens == (50, 90) and facts.cut_share == 1.0
    assert facts.prefill_share is not None and facts.prefill_share < 0.05
    text = brief.render_brief(summarise(whole))
    assert "\n- prompts: 34 of 47 in `" in text
    assert len(re.findall(r"34 of 47 in `\S+`, of 50 to 90 tokens, weighed as traffic of", text)) == 2


def test_every_mark_leads_to_an_entry_and_no_entry_is_made_up(pages: dict[str, str]) -> None:
    seen = set()
    for name, text in pages.items():
        entries, marks = ENTRY.findall(text), MARK.findall(text)
        assert len(entries) == len(set(entries)), name
        assert {code for _, code in marks} <= set(entries), name
        assert all(kind_of(code) == kind for kind, code in marks), name
        marked = [code for code in entries if kind_of(code) in ("predicted", "assumed", "few prompts")]
        assert set(marked) <= {code for _, code in marks}, name
        assert re.findall(r"\((?:predicted|assumed|extrapolated|few prompts)\)", text) == [], name
        seen |= {kind for kind, _ in marks}
    assert seen == {"predicted", "assumed", "extrapolated", "few prompts"}


def test_every_doubt_and_step_has_its_words(summaries: dict[str, Summary]) -> None:
    for summary in summaries.values():
        for finding in doubts(summary, engines=True, split=True):
            assert part(finding, "claim") and part(finding, "change")
        for step in next_steps(summary, most=20):
            assert part(step, "do") and part(step, "why") and part(step, "doubt")


@pytest.mark.parametrize(
    ("world", "steps"),
    [
        (GO, ["confirm-on-engine", "cheaper-draft"]),
        (NO_GO, ["cheaper-draft", "measure-on-engine"]),
        (MIXED, ["more-prompts", "by-category"]),
        (FEW, ["more-prompts", "larger-gamma"]),
        (replace(MIXED, margins=(0.002, 0.4)), ["texts-differ", "by-category"]),
        (replace(NO_GO, alpha=0.05, draft_step_s=0.03), ["agree-more"]),
    ],
    ids=lambda value: value.name if isinstance(value, World) else "",
)
def test_next_steps_come_from_the_runs_own_numbers(world: World, steps: list[str]) -> None:
    assert [step.code for step in next_steps(of_run(stored_of(world, HERE), summary_of(world)))] == steps


def test_a_step_that_cannot_be_enough_says_so() -> None:
    for world, code, said in (
        (
            replace(NO_GO, alpha=0.05, draft_step_s=0.03),
            "agree-more",
            "Every draft accepted, at this cost, would give no more than 0.89x",
        ),
        (replace(NO_GO, alpha=0.2, draft_step_s=0.03), "cheaper-draft", "1.14x"),
        (
            replace(NO_GO, alpha=0.2, verify_extra=0.4),
            "cheaper-verify",
            "At the price of one step it would give no more than",
        ),
    ):
        (step,) = (
            each for each in next_steps(of_run(stored_of(world, HERE), summary_of(world)), 9) if each.code == code
        )
        assert said in part(step, "why") and (step.values["most"] < 1.1) is (
            re.search("no more than|not enough", part(step, "why")) is not None
        )
        assert code != "agree-more" or "agrees with the target more and costs less as well." in part(step, "do")


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ("sweep --gamma 1,2 --costs p --limit 9", "sweep --limit 9 --fresh --gamma 2..4"),
        ("measure --gamma 2 --limit 9", "sweep --limit 9 --fresh --gamma 2..4"),
        ("measure --gamma 2 --server http://a --spec-server http://b", ""),
    ],
)
def test_another_gamma_is_asked_of_a_command_that_takes_it(argv: str, command: str) -> None:
    stored = with_provenance(stored_of(GO, HERE), argv=("specbench", *argv.split()))
    facts = of_run(stored, summary_of(GO)).facts
    assert changed_command(facts, gamma="2..4") == (f"specbench {command}" if command else "")
    assert "--costs" not in changed_command(facts) + changed_command(facts, limit="20")


def steps_of(stored: StoredRun, summary: Summary) -> list[Finding]:
    return list(next_steps(of_run(stored, summary)))


def test_how_long_other_gammas_take_is_told_by_all_that_ran_the_stopped_ones_too() -> None:
    stopped = StoppedGamma(9, 10, 40, 0.8, 0.7, 0.9, 1.4, 2, 0.7, 0.6, 0.8, 0.99, 0.7)
    summary = replace(of_run(stored_of(FEW, HERE), summary_of(FEW)), pace=Pace(60.0, 0.0))
    arms = 2 + sum(len(draft.gammas) for draft in summary.drafts)
    drafts = (replace(summary.drafts[0], stopped=(stopped,)), *summary.drafts[1:])
    one, other = (
        next(step.values["minutes"] for step in next_steps(each, 9) if step.code == "larger-gamma")
        for each in (summary, replace(summary, drafts=drafts))
    )
    assert other == pytest.approx(one * arms / (arms + 1))


def test_a_machine_that_disagrees_with_itself_comes_before_more_prompts_and_in_a_banner() -> None:
    values = {"value": 1.1, "low": 1.05, "high": 1.2}
    drift = Finding("noise-floor", "warning", values, "Quiet the machine.")
    stored, drowned = stored_of(MIXED, HERE), replace(summary_of(MIXED), noise_floor=0.2, warnings=(drift,))
    assert steps_of(stored, drowned)[0].code == "quiet"
    banner = next(line for line in render_brief(stored, drowned).splitlines() if line.startswith("> "))
    assert banner.startswith("> Do not trust the timing yet:") and "Quiet the machine." in banner
    for shared, told in ((True, True), (False, False)):
        trials = tuple(replace(trial, disturbed=shared) for trial in stored.trials)
        steps = steps_of(replace(stored, trials=trials), replace(summary_of(MIXED), noise_floor=0.2))
        assert ("quiet" in [step.code for step in steps]) is told


def test_more_prompts_are_those_of_the_workload_then_of_the_mix() -> None:
    stored = stored_of(MIXED, HERE)
    part_of = with_run(stored, workload=replace(stored.run.workload, prompts_available=41, prompts_used=40))
    (step, *_) = steps_of(part_of, summary_of(MIXED))
    assert step.values["available"] == 41 and step.hint.endswith("--fresh --limit 41")
    assert "Measure all 41 prompts of the workload, not 40, and add" in part(step, "do")
    (step, *_) = steps_of(with_policy(stored, mix={"code": 0.5, "chat": 0.5}), summary_of(MIXED))
    assert step.values["available"] is None and "prompts of code and chat" in part(step, "do")


@pytest.mark.parametrize(
    ("world", "limit"),
    [
        (replace(NO_GO, alpha=0.05), "acceptance"),
        (replace(GO, draft_step_s=0.0001, verify_extra=0.001), "acceptance"),
        (replace(GO, verify_extra=0.3), "verifying"),
        (replace(GO, other_s=0.02), "work outside the two models"),
    ],
)
def test_the_limiting_term_is_named(world: World, limit: str) -> None:
    assert f"**What limits it: {limit}.**" in page(world)


def test_texts_that_differ_by_rounding_and_by_more() -> None:
    assert "can flip. Nearly means within 3.12% of the top logit in bfloat16 ([assumed](#near-ties))." in page(MIXED)
    wide = page(replace(MIXED, margins=(0.002, 0.4)))
    assert "1 at a wide margin, up to 40% of the top logit, **so suspect a bug**" in wide
    assert wide.startswith("# Should `demo:target` decode speculatively?\n\n**NO-GO: leave `demo:draft` off.**")
    exact = render_brief(with_provenance(stored_of(MIXED, HERE), precision="float32"), summary_of(MIXED))
    assert "all of them at a wide margin" in exact and "suspect a bug until each has been looked at" in exact


def test_sampled_text_is_not_claimed_to_have_been_compared() -> None:
    text = page(FEW)
    assert "Not checked in this run: at temperature 0.7" in text and "| identical outputs | - | not compared |" in text


def test_few_prompts_get_no_certainty() -> None:
    text = page(FEW)
    assert "so this is what happened on them, not what to expect of others." in front(text)
    assert "> Too few prompts: 6 prompts are too few for an interval." in front(text)
    assert "the chance of that is" not in text and "as the whole, on its own prompts.\n" in text


@pytest.mark.parametrize("status", ["interrupted", "failed", "started"])
def test_an_incomplete_run_says_so_at_once(status: str) -> None:
    text = page(MIXED, status=status, missing=70)
    banner = next(line for line in text.splitlines() if line.startswith("> "))
    assert banner.startswith("> **This run is incomplete: ") and "after 90 of 160 trials" in banner
    assert f"| status | {status}, 90 of 160 trials |" in text and "1. **Finish this run" in text


def test_no_verdict_without_a_measurement() -> None:
    nothing = replace(summary_of(GO), drafts=())
    text = render_brief(stored_of(GO, HERE, status="interrupted", missing=240), nothing)
    assert "**No verdict: no prompt has been measured both with a draft and without.**" in text
    assert "GO:" not in text and "x as fast" not in text and "figures/" not in text


def test_end_to_end_policy_is_named() -> None:
    stored = with_config(stored_of(GO, HERE), policy=Policy(metric="e2e", min_speedup=1.5))
    text = render_brief(stored, summary_of(GO))
    assert "whole answers, prompt included, run **" in text and "You asked for 1.50x or more" in text
    assert "the end-to-end speedups in the tables by gamma have no interval" in text
    assert "| category | verdict | speedup, end to end [95% interval] |" in text


def test_what_was_asked_for_is_not_rounded() -> None:
    asked = Policy(min_speedup=1.125, confidence=0.975, slower_than=0.975, max_slower_share=0.125, max_added_gb=1.25)
    stored = with_config(stored_of(MIXED, HERE), policy=asked)
    text = render_brief(stored, summary_of(MIXED)) + shown(of_run(stored, summary_of(MIXED)))
    text += explain_run(of_run(stored, summary_of(MIXED)), "manager").text
    for said in ("1.125x", "97.5% interval", "97.5% confidence", "0.975x", "12.5% of prompts", "1.25 GB"):
        assert said in text
    assert not re.search(r"1\.1[23]x or more|98%|(?:than|below) 0\.9[78]x|1\.[23] GB", text)


def test_an_interval_just_below_1_shows_it() -> None:
    summary = summary_of(NO_GO)
    draft = replace(summary.drafts[0], speedup_high=0.997)
    text = render_brief(stored_of(NO_GO, HERE), replace(summary, drafts=(draft,)))
    assert "The whole interval, up to 0.997x, lies below 1.00x" in text


def test_several_drafts_stand_side_by_side_and_each_has_its_evidence() -> None:
    text = render_brief(stored_of(GO, HERE), with_second_draft(summary_of(GO)))
    assert section(front(text), "The candidates").count("\n| `") == 2
    assert "**`ngram:n=3` alone: NO-GO.**" in text and "### `ngram:n=3`" in text


def test_absent_keys_and_uncategorised_prompts_are_tolerated() -> None:
    summary = summary_of(GO)
    draft = replace(summary.drafts[0], categories=(replace(summary.drafts[0].categories[0], category="all"),))
    record = RunRecord(status="finished", command="sweep", config=RunConfig(), provenance=Provenance("an engine"))
    bare = StoredRun(HERE / "old", record, (), torn=False)
    text = render_brief(bare, replace(summary, drafts=(draft,)))
    assert "## By category" not in text and "categories.svg" not in text and "None" not in text
    row = replace(draft.gammas[0], rounds=0, tokens_per_round=None, acceptance_rate=None, survival=(None, None))
    idle = replace(draft, gammas=(row,), best_gamma=row.gamma)
    text = render_brief(stored_of(GO, HERE), replace(summary, drafts=(idle,)))
    assert "What limits it" not in text and "None" not in text


def test_names_from_files_cannot_write_the_page() -> None:
    summary = summary_of(MIXED)
    rude = replace(summary.drafts[0].categories[0], category="x | GO |\n# [a](http://b) <script>")
    draft = replace(summary.drafts[0], draft="a`b|c", categories=(rude,))
    odd = replace(summary, target="x](#price) (predicted)", hardware="<b>([predicted](#price))", drafts=(draft,))
    text = render_brief(stored_of(MIXED, HERE), odd)
    assert r"| x \| GO \| # \[a\](http://b) \<script\> | GO |" in text
    assert "\n# [a]" not in text and "<script>" not in text.replace(r"\<script\>", "")
    assert r"\<b\>(\[predicted\](#price))" in text and 'id="price"' not in text


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_rendering_is_deterministic_and_shows_no_prompt(world: World) -> None:
    stored = stored_of(world, HERE)
    trials = tuple(replace(t, prompt_text="SECRET PROMPT", output_text="SECRET OUTPUT") for t in stored.trials)
    first = render_brief(replace(stored, trials=trials), summary_of(world))
    assert first == page(world)
    assert "SECRET" not in first and "None" not in first and "  " not in first.replace("\n  ", "")
    assert first.endswith("|\n") and "\n\n\n" not in first and "{{" not in first


@pytest.mark.full
def test_what_is_written_is_what_is_embedded(tmp_path: Path) -> None:
    stored, summary = stored_of(MIXED, tmp_path), summary_of(MIXED)
    path = write_brief(stored, summary)
    text = path.read_text(encoding="utf-8")
    assert text == render_brief(stored, summary)
    embedded = [part.split(")")[0] for part in text.split("](")[1:] if part.startswith("figures/")]
    assert len(embedded) == 4 and all((path.parent / name).stat().st_size > 2000 for name in embedded)
    assert write_brief(stored, summary, tmp_path / "elsewhere") == tmp_path / "elsewhere" / "brief.md"


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match=r"Cannot write the brief.*Name another folder"):
        write_brief(stored_of(GO, tmp_path), summary_of(GO), tmp_path / "file")


@pytest.mark.full
def test_reporting_loads_no_model_library() -> None:
    code = (
        "import pkgutil, importlib, sys, specbench.report as r\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(r.__path__, 'specbench.report.')]\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checks_repeat_the_command() -> None:
    argv = ("specbench", "sweep", "--limit=40", "--resume", "--workload", "my file|x.jsonl")
    stored = with_provenance(stored_of(NO_GO, HERE), argv=argv)
    text = section(render_brief(stored, summary_of(NO_GO)), "How to check it")
    assert f"specbench check {stored.folder}\n" in text
    assert "specbench sweep --limit=40 --workload 'my file|x.jsonl' --fresh\n" in text
    assert "specbench sweep --workload 'my file|x.jsonl' --fresh --limit 200\n" in text
    assert "--fresh --dtype float32\n" in text
    assert "Drafted and accepted tokens, counted again" in text
    facts = stored.run.drafts["demo:draft"]
    for others, told in (({"skip:layers=3": facts}, "tokens of `demo:draft`, counted"), ({}, "")):
        drafts = others | ({"demo:draft": facts} if others else {"suffix": facts})
        text = render_brief(with_run(stored, drafts=drafts), summary_of(NO_GO))
        assert told in text and ("specbench check" in text) is bool(told)


def test_a_warning_in_other_words_is_shown_as_it_was_noticed() -> None:
    told = replace(summary_of(GO), warnings=(warned("odd", "others were *running*", "Stop them."),))
    assert r"- `odd`: Others were \*running\*." in front(render_brief(stored_of(GO, HERE), told))


def test_the_command_of_a_run_over_recorded_answers_can_be_typed_again(tmp_path: Path) -> None:
    stored = read_run(ROOT / "reports/recorded")
    stored = with_provenance(stored, argv=("specbench", "sweep", "--workload", "my log.jsonl"))
    path = brief.write_acceptance_brief(stored, recorded_acceptance(stored, (1,)), tmp_path)
    assert "`specbench sweep --workload 'my log.jsonl'`" in path.read_text(encoding="utf-8")


def test_the_worlds_are_what_their_names_say() -> None:
    assert [summary_of(world).drafts[0].verdict for world in (GO, NO_GO, MIXED, FEW)] == [
        "GO",
        "NO-GO",
        "UNCLEAR",
        "UNCLEAR",
    ]
    assert Policy() == Policy(min_speedup=1.10)
