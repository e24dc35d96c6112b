"""What `specbench explain RUN` says of a run: the Summary's numbers, and never more than they carry."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from fake_explained import KEPT, LEVELS, body, case, engineer, explained, manager, unlinked
from fake_summary import explain_run

from specbench.records import warned
from specbench.report.explain.explain import Level


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("level", LEVELS)
def test_numbers_are_those_of_the_summary(name: str, level: Level) -> None:
    stored, summary = case(f"kept:{name}")
    assert summary.choice is not None
    draft = next(draft for draft in summary.drafts if draft.draft == summary.choice.draft)
    row = next(row for row in draft.gammas if row.gamma == draft.best_gamma)
    of = summary.choice if len(summary.drafts) > 1 else draft
    text = unlinked(explain_run(stored, summary, level).text)
    assert f"**{of.verdict}" in text and f"{of.speedup:.2f}x" in text and f"[{of.speedup_low:.2f}, " in text
    assert f"{row.tokens_per_round:.2f}" in text and f"{row.acceptance_rate:.0%}".rstrip("%") in text
    steps = row.round_steps if row.round_time is None else row.break_even.tokens_per_round
    assert f"{steps:.2f}" in text and f"{row.speedup_e2e:.2f}x" in text
    assert f"{summary.noise_floor:.1%}" in text
    if level == "manager":
        assert f"| {draft.baseline_tokens_per_s:.1f} | {row.tokens_per_s:.1f} |" in text
        assert f"{draft.slower_share:.0%} of prompts ran at less than 0.95x of their speed" in text
        assert f"yield {row.break_even.minimum_tokens_per_round:.2f} tokens for 1.10x" in text
    else:
        assert f"{row.accepted:,} / {row.drafted:,} = {row.acceptance_rate:.0%}" in text
        assert f"{row.speedup:.2f}x [{row.speedup_low:.2f}, {row.speedup_high:.2f}]" in text
        assert f"{len(summary.warnings)}" and all(warning.code in text for warning in summary.warnings)


@pytest.mark.parametrize("level", LEVELS)
def test_a_change_in_the_summary_changes_the_page(level: Level) -> None:
    stored, summary = case("kept:example")
    (draft,) = summary.drafts
    faster = replace(draft, speedup=1.23, speedup_low=1.21, speedup_high=1.25)
    other = explain_run(stored, replace(summary, drafts=(faster,), choice=None), level).text
    assert "runs **1.23x** as fast" in other and "The [verdict](#verdict) rests on 1.23x" in other


def test_without_an_interval_nothing_is_said_of_other_prompts() -> None:
    for text in (manager("world-few"), engineer("world-few")):
        assert "There is no interval over so few prompts" in text and "expect answers" not in text
        assert "**GO" not in body(text) and "**NO-GO" not in body(text)
    assert "too little was measured to say what other prompts would do" in manager("world-few")
    assert "Without an interval there is neither GO nor NO-GO" in engineer("world-few")


def test_plain_words_are_no_surer_than_the_verdict() -> None:
    go, no, unclear = (manager(f"world-{name}") for name in ("go", "no-go", "mixed"))
    assert "expect answers, once begun, to come 2.16x to 2.34x as fast on average" in go
    assert "it makes answers, once begun, slower here, and you asked for 1.10x" in no
    assert "1.04x to 1.30x all fit what was seen, so 1.10x is open. This is not a no." in unclear
    assert "about 182 more prompts" in unclear.lower()
    assert "expect 0.98x to 1.06x here; the 1.10x that you asked for is unlikely" in manager("kept:llamacpp")
    assert "to come 1.16x to 1.40x as fast on average (95% interval)" in manager("kept:drafters"), "as the choice says"
    for name, chance in (("slow-gate", "above 99%"), ("slow-gate-open", "84%")):
        slow = manager(name)
        assert "too many prompts get slower" in slow and "expect " not in slow
        assert f"The chance for 1.10x or more is {chance}, but a gate fails: 31% of prompts" in engineer(name)


def test_a_gate_in_doubt_is_neither_yes_nor_no() -> None:
    plain = manager("slow-gate-in-doubt")
    assert "it is fast enough on average; whether too many prompts get slower is open" in plain
    assert "31% of prompts ran at less than 0.95x of their speed without the draft (measured); you allow 25%." in plain
    steps = engineer("slow-gate-in-doubt")
    assert "The chance for 1.10x or more is above 99%, which GO takes, but a gate is in doubt: 31% of prompts" in steps


def test_a_draft_that_never_drafted_is_not_judged_by_its_speed() -> None:
    plain, steps = manager("served:idle"), engineer("served:idle")
    assert "whatever the speed, this alone rules it out" in plain and "The draft guessed nothing at all" in plain
    assert "never drafted a token" in plain and "A gate fails, and then no speed counts: It never drafted" in steps
    assert "Out of 100" not in plain and "acceptance rate" not in body(steps)
    assert "the draft would have to guess" in plain and "has to yield" not in plain
    assert "Nothing was drafted, so nothing here tells" in steps and "What limits it" not in steps.replace(
        "## What", ""
    )


def test_why_follows_the_rule() -> None:
    assert "GO takes a chance of at least 95% for 1.10x or more, and no gate that fails. It is above 99%" in engineer(
        "world-go"
    )
    assert "NO-GO takes a chance of at most 5% for 1.10x or more. It is below 1%." in engineer("world-no-go")
    assert "NO-GO one of at most 5%. It is 84%. About 182 more prompts" in engineer("world-mixed")


def test_text_that_is_not_the_targets_ends_the_matter() -> None:
    plain, steps = manager("lossy"), engineer("lossy")
    assert "whatever the speed, this alone rules it out" in plain
    assert "46 of 48 are word for word" in plain
    assert "1 text parts from it where rounding is no explanation, so there may be a bug" in plain
    assert "expect answers" not in plain
    assert "A gate fails, and then no speed counts: Not lossless" in steps


def test_texts_are_not_compared_when_sampling() -> None:
    for text in (manager("world-few"), manager("served:sampling")):
        assert "nothing was compared" in text and "rejection rule (assumed)" in text
        assert "what the target alone wrote" not in text
    assert "not checked in this run: at temperature 0.7" in engineer("served:sampling").lower()


@pytest.mark.parametrize("tells", ["drafts", "nothing"])
def test_a_server_that_tells_no_rounds_is_not_taken_apart(tells: str) -> None:
    plain, steps = manager(f"served:{tells}"), engineer(f"served:{tells}")
    assert "is not known, because the server does not tell its rounds" in plain
    assert "tokens in" not in plain and "round has to yield" not in plain
    assert "the server does not tell its rounds. So the speedup cannot be taken apart here." in steps
    assert "The clock says 1.74x" in steps and "tau" not in steps.split("## Words")[0].replace("and tau are over", "")
    assert ("Out of 100 guessed tokens, 32 were kept." in plain) == (tells == "drafts")


def test_a_server_tells_no_parts_and_the_page_says_so() -> None:
    assert "How much of a round is guessing and how much checking is not known" in manager("served:rounds")
    steps = engineer("served:rounds")
    assert "(measured, from outside)" in steps and "host gap make up a round" not in steps
    assert "every arm on one prompt before the next" not in steps
    assert "as a client sees it" in steps and "as a client sees it" in manager("served:rounds")


def test_no_round_at_all_is_said_without_blaming_a_server() -> None:
    plain, steps = manager("no-rounds"), engineer("no-rounds")
    assert "The draft guessed nothing at all" in plain
    assert "no round was run" in steps and "server" not in steps


def test_a_broken_set_up_is_not_called_a_poor_draft() -> None:
    assert "Not one guessed token was kept, which points to a broken set-up" in manager("nothing-accepted")
    assert "that points to a broken set-up and not to a poor draft" in engineer("nothing-accepted")


@pytest.mark.parametrize("level", LEVELS)
def test_an_interrupted_run_says_so_first(level: Level) -> None:
    assert (
        explained("interrupted", level)
        .text.splitlines()[2]
        .startswith("> **This run is incomplete: interrupted after 170 of")
    )


def test_a_mix_explains_why_counts_and_speedup_differ() -> None:
    plain, steps = manager("served:mix"), engineer("served:mix")
    assert "The clock says 1.71x of decoding (measured): the speedup weighs prompts by the traffic mix" in plain
    assert "They differ: the speedup weighs prompts by the traffic mix, the counts of rounds do not." in steps
    assert "agree by construction" not in steps
    assert "| a million output tokens | 5.89 | 3.61 (assumed) |" in plain and "No price was given" not in plain


def test_an_end_to_end_policy_is_followed_to_its_number() -> None:
    _, summary = case("served:e2e")
    (row,) = summary.drafts[0].gammas
    for text in (manager("served:e2e"), engineer("served:e2e")):
        assert f"The policy is about end to end, which at gamma 2 is {row.speedup_e2e:.2f}x (measured)" in text
        assert "looks better than it is" not in text, "one gamma was not chosen among any"


@pytest.mark.parametrize("level", LEVELS)
def test_several_drafts_have_their_own_lines_and_one_verdict(level: Level) -> None:
    text = unlinked(explained("kept:drafters", level).text)
    _, summary = case("kept:drafters")
    assert summary.choice is not None
    for draft in summary.drafts:
        assert (
            f"- `{draft.draft}` by itself, at gamma {draft.best_gamma}: {draft.verdict}, {draft.speedup:.2f}x" in text
        )
    assert f"The verdict rests on {summary.choice.speedup:.2f}x: the best of 6 drafts and gammas looks better" in text
    assert f"of `{summary.choice.draft}`" in text or f"about `{summary.choice.draft}`" in text


@pytest.mark.parametrize("level", LEVELS)
def test_drafts_that_share_no_prompt_are_not_ranked(level: Level) -> None:
    text = explained("several-unchosen", level).text
    assert "so none is chosen; this is the fastest" in unlinked(text)


def test_what_limits_it_is_named_for_a_manager() -> None:
    assert "What holds it back most is the time for checking." in manager("verifying-dear")
    assert "What holds it back most is the time for guessing." in manager("world-go")
    assert "the time for the program around the two models" in manager("program-slow")
    assert "only more right guesses would help much" in manager("rounds-cheap")
    poor = manager("acceptance-poor")
    dear = manager("too-dear")
    assert "has to yield 9.30 tokens for 1.10x of decoding; it yields 1.35 (measured). More than 2 it cannot" in dear
    assert "it cannot yield" not in manager("priced")
    assert "With this acceptance, even a free draft would not reach 1.00x; a drafted token costs 0.24" in engineer(
        "too-dear"
    )
    assert "at most 0.40 target steps for 1.00x and at most 0.30 target steps for 1.10x; it costs" in engineer("priced")
    assert "how few guesses are right" in poor and "it would be 1.05x at most (predicted)" in poor


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("verifying-dear", "verifying at the price of one step"),
        ("world-go", "free drafting"),
        ("program-slow", "no work outside the models"),
    ],
)
def test_what_there_is_to_win_is_the_same_number_for_both(name: str, term: str) -> None:
    found = re.search(rf"{term} ([\d.]+x)", engineer(name))
    assert found is not None
    assert f"all else stayed the same, decoding would be {found[1]} as fast (predicted)" in manager(name)


def test_money_and_memory_where_they_are_known() -> None:
    text = manager("priced")
    assert "| a million output tokens | 4.20 | 3.62 (assumed) |" in text and "| memory added | - | 32.0 MB |" in text
    assert "No price was given" not in text and "adds 31.4 MB" not in text
    assert "The draft adds 31.4 MB of memory for itself" in manager("world-go")
    assert "The draft may take 500 MB of memory." in manager("memory-limit")


def test_load_is_measured_predicted_or_not_known() -> None:
    assert "More requests at once: not measured." in manager("world-go")
    assert "It stops paying at 4 at a time" in manager("served:busy")
    assert "it stops paying at batch 8 (predicted)" in manager("kept:drafters")


def test_warnings_reach_both_readers() -> None:
    stored, summary = case("world-go")
    told = replace(summary, warnings=(warned("busy-machine", "others were running", "Stop them."),))
    assert "should read first: `busy-machine`" in explain_run(stored, told, "manager").text
    assert "- `busy-machine`: Others were running. Stop them." in explain_run(stored, told, "engineer").text


@pytest.mark.parametrize("level", LEVELS)
def test_no_prompt_is_shown_and_names_cannot_write_the_page(level: Level) -> None:
    stored, summary = case("world-mixed")
    trials = tuple(replace(t, prompt_text="SECRET PROMPT", output_text="SECRET OUTPUT") for t in stored.trials)
    rude = replace(summary.drafts[0].categories[0], category="x | GO |\n# [a](http://b) <script>")
    draft = replace(summary.drafts[0], draft="a`b|c", categories=(rude,))
    text = explain_run(replace(stored, trials=trials), replace(summary, drafts=(draft,)), level).text
    assert "SECRET" not in text and "\n# [a]" not in text and "<script>" not in text.replace(r"\<script\>", "")
    assert "`` a`b|c ``" in text


def test_a_batch_is_called_one() -> None:
    assert "40 batches of 4 prompts were answered with the draft and without it" in manager("batch")
    assert "batch 4" in manager("batch") and "40 batches of 4 prompts in these arms" in engineer("batch")
