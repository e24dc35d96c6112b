"""The decision brief of four made-up runs, pinned where a reader would act on it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import with_config
from fake_summary import stored_of, summary_of, with_second_draft
from fake_worlds import FEW, GO, MIXED, NO_GO, WORLDS, World

from specbench.analysis.contract import Summary
from specbench.config import RunConfig
from specbench.errors import StoreError
from specbench.records import Policy
from specbench.report.brief.brief import render_brief, write_brief
from specbench.run_record import Provenance, RunRecord
from specbench.store import StoredRun

HERE = Path("reports")


def page(world: World, **changes: object) -> str:
    return render_brief(stored_of(world, HERE, **changes), summary_of(world))  # type: ignore[arg-type]


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].strip()


def test_go_first_page() -> None:
    assert page(GO).split("\n## ")[0].strip() == (
        "# Should `demo:target` decode speculatively?\n"
        "\n"
        "**GO: turn `demo:draft` on, at gamma 4.** With it, decoding at the best gamma (4) ran 2.25x as fast as the "
        "target alone (measured over 48 prompts, 95% interval [2.16, 2.34]). The policy asks for at least 1.10x with "
        "95% confidence; the chance of that speedup is above 99%.\n"
        "\n"
        "**Policy:** on for code, maths and chat (few prompts, D1)."
    )


def test_no_go_first_page() -> None:
    assert page(NO_GO).split("\n## ")[0].strip() == (
        "# Should `demo:target` decode speculatively?\n"
        "\n"
        "**NO-GO: leave `demo:draft` off.** With it, decoding at the best gamma (1) ran 0.95x as fast as the target "
        "alone (measured over 40 prompts, 95% interval [0.91, 0.99]). The policy asks for at least 1.10x with 95% "
        "confidence; the chance of that speedup is below 1%. The whole interval lies below 1.00x: it is slower than "
        "the target alone.\n"
        "\n"
        "**Policy:** off for summarise and translate (few prompts, D1)."
    )


def test_mixed_policy_and_tables() -> None:
    text = page(MIXED)
    assert (
        "**Policy:** on for code and maths (few prompts, D2); off for summarise (few prompts, D2); undecided for chat "
        "(too few prompts to say)."
    ) in text
    assert section(text, "By category").splitlines()[:6] == [
        "| category | verdict | speedup, decode | best gamma | prompts (few prompts, D2) |",
        "| :-- | :-- | --: | --: | --: |",
        "| code | GO | 1.74x [1.53, 1.95] | 4 | 12 |",
        "| maths | GO | 1.42x [1.25, 1.59] | 2 | 10 |",
        "| chat | UNCLEAR | 1.08x (no interval) | 1 | 4 |",
        "| summarise | NO-GO | 0.93x [0.87, 0.99] | 1 | 14 |",
    ]
    assert section(text, "By gamma").splitlines()[2] == (
        "| 1 | 1,658 | 52% | 1.52 | 1.53 | 1.18x [1.05, 1.31] | 1.19x | 1.16x | 47.1 | 2% | 40 of 40 |"
    )


def test_few_prompts_get_no_certainty() -> None:
    text = page(FEW)
    assert (
        "ran 1.55x as fast as the target alone (measured over 6 prompts) (few prompts, D1). There is no interval over "
        "so few prompts (an interval takes 10), so this is what happened on them, not what to expect of others.\n"
    ) in text
    assert "**Policy:** undecided for code and chat (too few prompts to say)." in text
    assert "alpha, the chance that a drafted token is accepted if all before it were, is 0.66 (no interval)." in text
    assert "too few prompts to say that they differ" in text
    assert "confidence; the chance" not in text


def test_scope_names_everything_the_verdict_depends_on() -> None:
    assert section(page(FEW), "What this holds for").splitlines()[:8] == [
        "The verdict holds for these and nothing else:",
        "",
        "- target `demo:target` (Example-Target-135M), 135 M parameters, 269 MB of weights",
        "- draft `demo:draft` (example-draft), 15.7 M parameters, 31.4 MB of weights",
        "- engine: transformers models in process, specbench loop (cpu)",
        "- machine: Example CPU 3000, 2 cores, 8 GiB; bfloat16, 2 threads; batch 1",
        "- sampling: temperature 0.7, at most 64 new tokens",
        "- prompts: 6 of 120 in `workloads/mixed.jsonl` (sha256 0123456789ab), of 60 tokens",
    ]


def test_round_time_in_words_agrees_with_the_table() -> None:
    words = section(page(MIXED), "What a round costs, and what limits it")
    assert words.startswith(
        "At gamma 1 a round takes 32.3 ms: 6.0 ms drafting (19%), 25.5 ms verifying (79%) and 0.80 ms on the rest "
        "(2%). The target alone takes 25.0 ms per token, so a round costs 1.29 target steps and pays if it emits more "
        "than 1.29 tokens. It emitted 1.52 (all measured).\n"
    )
    assert (
        "**What limits it: drafting.** Of the 7.3 ms that a round costs beyond one target step, 6.0 ms is drafting."
        in words
    )


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


@pytest.mark.parametrize(("status", "words"), [("interrupted", "interrupted"), ("failed", "failed")])
def test_an_incomplete_run_says_so_before_anything_else(status: str, words: str) -> None:
    text = page(MIXED, status=status, missing=70)
    assert text.splitlines()[2].startswith(f"> **This run is incomplete: {words} after 90 of 160 trials.**")
    assert f"| status | {status}, 90 of 160 trials |" in text
    assert "1. **Finish this run" in section(text, "Two next steps")


def test_a_run_that_was_never_closed_is_not_called_finished() -> None:
    assert "not finished: stopped or still running after 150 of 160 trials." in page(
        MIXED, status="started", missing=10
    )


def test_no_verdict_without_a_measurement() -> None:
    nothing = replace(summary_of(GO), drafts=())
    text = render_brief(stored_of(GO, HERE, status="interrupted", missing=240), nothing)
    assert "**No verdict: no prompt has been measured both with a draft and without.**" in text
    assert "GO:" not in text and "x as fast" not in text and "figures/" not in text


def test_end_to_end_policy_is_named() -> None:
    stored = with_config(stored_of(GO, HERE), policy=Policy(metric="e2e", min_speedup=1.5))
    text = render_brief(stored, summary_of(GO))
    assert "With it, generation with prefill at the best gamma (4) ran" in text
    assert "asks for at least 1.50x" in text and "| category | verdict | speedup, end to end |" in text


def test_two_drafts_have_two_verdicts_and_two_policies() -> None:
    text = render_brief(stored_of(GO, HERE), with_second_draft(summary_of(GO)))
    assert "**`demo:draft` alone: GO.** With it" in text and "**`ngram:n=3` alone: NO-GO.** With it" in text
    assert "- `ngram:n=3`: on for" in text and "### `ngram:n=3`" in text and "- draft `ngram:n=3`\n" in text


def test_absent_keys_and_uncategorised_prompts_are_tolerated() -> None:
    summary = summary_of(GO)
    draft = replace(summary.drafts[0], categories=(replace(summary.drafts[0].categories[0], category="all"),))
    record = RunRecord(status="finished", command="sweep", config=RunConfig(), provenance=Provenance("an engine"))
    bare = StoredRun(HERE / "old", record, (), torn=False)
    text = render_brief(bare, replace(summary, drafts=(draft,)))
    assert "**Policy:** on for everything: the prompts carry no category to tell apart." in text
    assert "## By category" not in text and "categories.svg" not in text and "None" not in text


def test_a_draft_that_ran_no_round_is_tolerated() -> None:
    summary = summary_of(FEW)
    row = replace(
        summary.drafts[0].gammas[0], rounds=0, tokens_per_round=None, acceptance_rate=None, survival=(None, None)
    )
    text = render_brief(stored_of(FEW, HERE), replace(summary, drafts=(replace(summary.drafts[0], gammas=(row,)),)))
    assert "What limits it" not in text and "None" not in text


def test_names_from_files_cannot_write_the_brief() -> None:
    summary = summary_of(MIXED)
    rude = replace(summary.drafts[0].categories[0], category="x | GO |\n# [a](http://b) <script>")
    draft = replace(summary.drafts[0], draft="a`b|c", categories=(rude,))
    text = render_brief(stored_of(MIXED, HERE), replace(summary, drafts=(draft,)))
    assert r"| x \| GO \| # \[a\](http://b) \<script\> | GO |" in text
    assert "\n# [a]" not in text and "<script>" not in text.replace(r"\<script\>", "")


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_rendering_is_deterministic_and_shows_no_prompt(world: World) -> None:
    stored = stored_of(world, HERE)
    trials = tuple(replace(t, prompt_text="SECRET PROMPT", output_text="SECRET OUTPUT") for t in stored.trials)
    first = render_brief(replace(stored, trials=trials), summary_of(world))
    assert first == page(world)
    assert "SECRET" not in first and "None" not in first and "  " not in first.replace("\n  ", "")
    assert first.endswith("|\n") and "\n\n\n" not in first


@pytest.mark.full
def test_write_brief_writes_what_it_embeds(tmp_path: Path) -> None:
    stored, summary = stored_of(MIXED, tmp_path), summary_of(MIXED)
    path = write_brief(stored, summary)
    assert path == tmp_path / summary.run / "brief.md"
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


def test_the_worlds_are_what_their_names_say() -> None:
    def call(summary: Summary) -> str:
        return summary.drafts[0].verdict

    assert [call(summary_of(world)) for world in (GO, NO_GO, MIXED, FEW)] == ["GO", "NO-GO", "UNCLEAR", "UNCLEAR"]
    assert Policy() == Policy(min_speedup=1.10)
