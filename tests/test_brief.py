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

from specbench.analysis.contract import Summary
from specbench.analysis.doubts import doubts
from specbench.analysis.pilot import read_pilot
from specbench.analysis.plan import Wanted, plan_of
from specbench.analysis.steps import next_steps
from specbench.analysis.summarise import summarise
from specbench.config import RunConfig
from specbench.errors import StoreError
from specbench.records import Finding, Policy, warned
from specbench.report import brief
from specbench.report.dialect import kind_of, part
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
        **{name: read_run(ROOT / "tests/runs" / name) for name in KEPT},
    }
    return found | {name: summarise(stored) for name, stored in runs.items()}


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


def test_what_is_missing_is_counted_once(tmp_path: Path) -> None:
    """By the verdict's reason, its step, and a plan that has the run for its pilot."""
    stored = rich(tmp_path / "r", Policy(min_speedup=1.32))
    summary = summarise(stored)
    (reason,) = (each for each in summary.drafts[0].reasons if each.code == "more-prompts")
    (step,) = (each for each in next_steps(summary) if each.code == "more-prompts")
    plan = plan_of(Wanted(summary.policy, 0.05), read_pilot(stored, summary.policy, None))
    assert plan.verdict is not None
    assert reason.values["needed"] == step.values["needed"] == plan.verdict.need.prompts
    assert f"{reason.values['needed']:,} in all" in brief.render_brief(summary)


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
    ],
    ids=lambda value: value.name if isinstance(value, World) else "",
)
def test_next_steps_come_from_the_runs_own_numbers(world: World, steps: list[str]) -> None:
    assert [step.code for step in next_steps(of_run(stored_of(world, HERE), summary_of(world)))] == steps


def steps_of(stored: StoredRun, summary: Summary) -> list[Finding]:
    return list(next_steps(of_run(stored, summary)))


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
    assert "the chance of that is" not in text


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
    assert "| category | verdict | speedup, end to end [95% interval] |" in text


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


def test_a_warning_in_other_words_is_shown_as_it_was_noticed() -> None:
    told = replace(summary_of(GO), warnings=(warned("odd", "others were *running*", "Stop them."),))
    assert r"- `odd`: Others were \*running\*." in front(render_brief(stored_of(GO, HERE), told))


def test_the_worlds_are_what_their_names_say() -> None:
    assert [summary_of(world).drafts[0].verdict for world in (GO, NO_GO, MIXED, FEW)] == [
        "GO",
        "NO-GO",
        "UNCLEAR",
        "UNCLEAR",
    ]
    assert Policy() == Policy(min_speedup=1.10)
