"""The glossary: one source, whole words, links that lead somewhere, definitions as docs/measuring.md has them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from specbench.acceptance.metrics import count
from specbench.decision.interval import MIN_PROMPTS
from specbench.errors import ConfigError
from specbench.records import FEW_PROMPTS, Policy, Round
from specbench.report.dialect import codes, kind_of
from specbench.report.explain import glossary
from specbench.report.explain.glossary import (
    find,
    linked,
    slug,
    term_markdown,
    terms,
    used_in,
    words,
)
from tools import glossary as page_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "glossary.md"

# Meanings may use these without further ado: a text that lists any meaning explains them too.
CORE = {"token", "prompt", "target", "draft", "round"}

WANTED = """
speculative decoding, target, draft, drafter, round, gamma, draft length, bonus token, drafted, accepted, emitted,
acceptance rate, r, alpha, survival, tau, tokens per round, target step, round's cost, verify cost, draft cost, host
gap, prefill, decode, end to end, time to first token, speedup, interval, noise floor, A/A, replay, predicted,
measured, assumed, extrapolated, few prompts, break-even, verdict, GO, NO-GO, UNCLEAR, policy, minimum speedup,
lossless, near-tie, rejection rule, speculative sampling, n-gram look-up, skip layers, cross-tokenizer draft, cut-off,
batch, concurrency, load, workload, category, mix, baseline, arm, trial, hold-out, cross-fitted, bootstrap, KV cache,
token, prompt, engine, greedy, sampling, temperature, confidence, closed form, censored round, memory-bound,
throughput
"""


def names(markdown: str) -> list[str]:
    return [term.name for term in used_in(markdown)]


def test_every_word_of_the_field_is_there() -> None:
    known = {spelling for term in terms().values() for spelling in term.spellings}
    assert [word for word in (part.strip() for part in WANTED.replace("\n", " ").split(",")) if word not in known] == []


def test_every_kind_of_claim_is_explained() -> None:
    kinds = {kind_of(code) for code in codes("doubts")} - {"not known"}
    assert kinds <= set(terms())


def test_a_spelling_belongs_to_one_term_and_an_anchor_too() -> None:
    spellings = [spelling for term in terms().values() for spelling in term.spellings]
    assert len(spellings) == len(set(spellings))
    assert len({slug(term) for term in terms().values()}) == len(terms())


@pytest.mark.parametrize("name", terms())
def test_an_entry_is_plain_and_leads_somewhere(name: str) -> None:
    term = terms()[name]
    assert set(term.see) <= set(terms()) - {name}
    assert re.fullmatch(r"[A-Z][^.]*(?:[.:]\d[^.]*|\.cpp[^.]*)*\.", term.plain), "one sentence"
    assert not re.search(r"[=`<>^_]|P\(", term.plain), "no formula"
    assert {used.name for used in used_in(term.plain)} <= CORE | {name}


def test_definitions_are_those_of_the_measuring_page() -> None:
    page = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(): cells[2].strip()
        for line in page.partition("## 1. Words")[2].partition("## 2.")[0].splitlines()
        if len(cells := line.split("|")) > 3
    }
    for word, name in (
        ("acceptance rate `r`", "acceptance rate"),
        ("conditional acceptance `alpha`", "alpha"),
        ("tokens per round `tau`", "tau"),
        ("survival `s_j`", "survival"),
    ):
        formula = terms()[name].formula
        assert formula is not None and rows[word] in formula, word
    assert rows["emitted"] == "output tokens less the first"
    assert "all of an answer but its first" in terms()["emitted"].plain
    squeezed = " ".join(page.split())
    assert "S = (1 - alpha^(gamma + 1)) / ((1 - alpha) (gamma c + 1))" in (terms()["closed form"].formula or "")
    assert "Up to 4 units in the last place" in squeezed and "4 units in the last place" in (
        terms()["near-tie"].formula or ""
    )


def test_formulas_give_what_the_code_counts() -> None:
    """Four rounds of four drafts, one of them censored, read by the formulas of the entries."""
    rounds = [Round(4, 4), Round(4, 2), Round(4, 0), Round(4, 1)]
    found = count(rounds, 4)
    values = {"A": 7, "D": 16, "R": 3, "s": 4}
    for name, counted in (("acceptance rate", found.acceptance_rate), ("alpha", found.alpha)):
        formula = (terms()[name].formula or "").partition("=")[2]
        assert eval(formula, {}, values) == pytest.approx(counted)
    first = (terms()["tau"].formula or "").partition("=")[2].partition(";")[0]
    assert eval(first, {}, values) == pytest.approx(found.tokens_per_round)
    assert 1 + sum(share or 0.0 for share in found.survival) == pytest.approx(found.tokens_per_round)


def test_numbers_in_meanings_are_those_of_the_code() -> None:
    assert f"fewer than {FEW_PROMPTS} prompts" in terms()["few prompts"].plain
    assert MIN_PROMPTS == 10 and "fewer than ten" in (terms()["few prompts"].confused or "")
    assert f"{Policy().min_speedup:.2f}x" in terms()["minimum speedup"].plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One round, two rounds.", ["round"]),
        ("A target step is no target.", ["target step", "target"]),
        ("The target's own tokens", ["target", "token"]),
        ("Drafts of a draft length", ["draft", "gamma"]),
        ("rounding, untargeted, drafty", []),
        ("GO means go on; let us go", ["GO"]),
        ("NO-GO is not GO", ["NO-GO", "GO"]),
        ("r is a rate", ["acceptance rate"]),
        ("R is a count and R&D is neither", []),
        ("Tau of 1.5", ["tau"]),
        ("speculative\ndecoding", ["speculative decoding"]),
        ("`tau` and ``a `round` b`` and\n```sh\nspecbench sweep --gamma 1 # batch\n```\n", []),
        ('[here](docs/tau.md) <a id="tau"></a> <b>alpha</b>', ["alpha"]),
        ("model-draft, draft-model, and/draft", []),
        ("a \\` round \\` here", ["round"]),
        ("A/A arms", ["noise floor", "arm"]),
        ("near-ties where two tokens nearly tie", ["near-tie", "token"]),
    ],
)
def test_whole_words_in_any_declared_spelling(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_each_term_is_linked_once_and_never_inside_code_or_a_heading() -> None:
    text = "# The draft\n\n`draft` **Draft** drafts, and a *round* of `round` rounds.\n"
    assert (
        linked(text)
        == "# The draft\n\n`draft` **[Draft](#draft)** drafts, and a *[round](#round)* of `round` rounds.\n"
    )
    assert linked("A target step and a target") == "A [target step](#target-step) and a [target](#target)"


def test_a_list_of_words_has_an_anchor_for_each_by_name() -> None:
    listed = words(used_in("Tokens per round, r and GO"))
    assert re.findall(r'<a id="([\w-]+)"></a>\*\*(.+?)\*\*', listed) == [
        ("acceptance-rate", "acceptance rate"),
        ("go", "GO"),
        ("tau", "tau"),
    ]
    assert "**tau** (tokens per round): How many" in listed


def test_the_page_is_made_from_the_source_and_has_every_word_with_another_name() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_of.page(), "docs/glossary.md is out of date: run `make docs`"
    listed = re.findall(r"^- \*\*(.+?)\*\*", page, re.MULTILINE)
    assert {name for name, term in terms().items() if term.elsewhere} == set(listed)


def test_the_page_changes_with_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dict(terms())
    other["tau"] = replace(other["tau"], elsewhere="something else.")
    monkeypatch.setattr(glossary, "terms", lambda: other)
    assert page_of.page() != PAGE.read_text(encoding="utf-8")


def test_one_entry_has_all_that_is_known() -> None:
    shown = term_markdown(find("tokens per round"))
    assert shown.startswith("# tau\n\nHow many tokens a round yields")
    for part in (
        "- Formula: `tau = 1 + A / s",
        "- Unit: ",
        "- Also: tokens per round",
        "vLLM",
        "- Not to be",
        "- See also: [",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("word", "name"), [("TAU", "tau"), ("Rounds", "round"), (" no-go ", "NO-GO"), ("R", "acceptance rate")]
)
def test_a_word_is_found_in_any_case_and_spelling(word: str, name: str) -> None:
    assert find(word).name == name


def test_an_unknown_word_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"No term 'taau' in the glossary \(--term\)\. Did you mean 'tau'\?"):
        find("taau")
    with pytest.raises(ConfigError, match=r"docs/glossary\.md lists those"):
        find("xyzzyxyzzy")
