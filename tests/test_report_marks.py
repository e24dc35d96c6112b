"""Marks and the list they refer to: every claim that was not measured has its entry, and no entry is made up."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from fake_run import FakeDraft, FakeMachine, fake_run
from fake_served import FakeServer, fake_served
from fake_summary import stored_of, summary_of
from fake_worlds import WORLDS, World

from specbench.analysis.facts import read_facts
from specbench.analysis.summarise import summarise
from specbench.records import Policy
from specbench.report.brief.brief import render_brief
from specbench.report.brief.doubts import doubts
from specbench.report.templating import Doubt, Key, in_order, mark, numbered, unmarked
from specbench.store import StoredRun, read_run

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"\((predicted|assumed|extrapolated|few prompts|not known), D(\d+)\)")
ENTRY = re.compile(r"^- \*\*D(\d+)\*\*, \*([a-z ]+)\*: ", re.MULTILINE)


def rich_run(folder: Path, policy: Policy) -> StoredRun:
    """A run with everything that can be predicted or stated: batches, break-evens, a mix and a price."""
    machine = FakeMachine(batch={1: 1.0, 2: 1.1, 4: 2.0}, noise=0.05)
    return fake_run(folder, {"demo:draft": FakeDraft({"code": 0.8, "chat": 0.3})}, machine=machine, policy=policy)


def pages(tmp_path: Path) -> dict[str, str]:
    found = {world.name: render_brief(stored_of(world, tmp_path), summary_of(world)) for world in WORLDS.values()}
    policy = Policy(mix={"code": 0.7, "chat": 0.3}, price_per_hour=4.0)
    for name, stored in {
        "rich": rich_run(tmp_path / "rich", policy),
        "open": rich_run(tmp_path / "open", Policy(min_speedup=1.32)),
        "served": fake_served(tmp_path / "served"),
        "mute": fake_served(tmp_path / "mute", FakeServer(tells="nothing")),
        **{name: read_run(ROOT / "reports" / name) for name in ("example", "drafters", "llamacpp")},
    }.items():
        found[name] = render_brief(stored, summarise(stored))
    return found


def test_every_mark_leads_to_an_entry_of_its_kind_and_no_bare_one_is_left(tmp_path: Path) -> None:
    seen = set()
    for name, page in pages(tmp_path).items():
        entries = {int(number): kind for number, kind in ENTRY.findall(page)}
        assert list(entries) == list(range(1, len(entries) + 1)), name
        marks = [(kind, int(number)) for kind, number in MARK.findall(page)]
        assert [mark for mark in marks if entries.get(mark[1]) != mark[0]] == [], name
        bare = re.findall(r"\((?:predicted|assumed|extrapolated|few prompts)\b(?!, D\d)[^)]*\)", page)
        assert bare == [] and "\x02" not in page and "\x03" not in page, name
        seen |= {kind for kind, _ in marks}
    assert seen == {"predicted", "assumed", "extrapolated", "few prompts"}


def test_an_entry_for_a_mark_that_the_text_does_not_make_is_not_listed(tmp_path: Path) -> None:
    text = render_brief(stored_of(WORLDS["go"], tmp_path), summary_of(WORLDS["go"]))
    assert "price of an hour" not in text and "Larger batches" not in text
    stored = rich_run(tmp_path / "rich", Policy(price_per_hour=4.0))
    priced = render_brief(stored, summarise(stored))
    assert "*assumed*: The price of an hour" in priced and "*predicted*: Larger batches" in priced


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_every_key_has_one_entry(world: World, tmp_path: Path) -> None:
    """Few prompts are listed only where there are some."""
    facts = read_facts(stored_of(world, tmp_path))
    keys = [doubt.key for doubt in doubts(summary_of(world), facts) if doubt.key is not None]
    assert len(keys) == len(set(keys)) and set(get_args(Key)) - set(keys) <= {"few"}


def test_categories_of_few_prompts_are_marked_row_by_row_or_all_at_once(tmp_path: Path) -> None:
    world = WORLDS["mixed"]
    summary = summary_of(world)
    assert "| prompts (few prompts, D2) |" in render_brief(stored_of(world, tmp_path), summary)
    first, *rest = summary.drafts[0].categories
    many = replace(summary.drafts[0], categories=(replace(first, prompts=30), *rest))
    page = render_brief(stored_of(world, tmp_path), replace(summary, drafts=(many,)))
    assert "| best gamma | prompts |" in page
    assert f"| {first.category} " in page and re.search(rf"\| {first.category} .*\| 30 \|", page)
    assert page.count("| 14 (few prompts, D") == 1
    assert f"{first.category} (30)" not in page


def test_marks_are_numbered_as_the_text_goes() -> None:
    page = f"{mark('assumed', 'mix')} {mark('predicted', 'curve')} {mark('assumed', 'mix')}"
    every = [Doubt("predicted", "c", "x", "curve"), Doubt("measured", "u", "x"), Doubt("assumed", "m", "x", "mix")]
    listed = in_order([*every, Doubt("assumed", "not there", "x", "price")], page)
    assert [doubt.claim for doubt in listed] == ["m", "c", "u"]
    assert numbered(page, listed) == "(assumed, D1) (predicted, D2) (assumed, D1)"
    assert unmarked(page) == "(assumed) (predicted) (assumed)"
    with pytest.raises(KeyError):
        numbered(page, every[:1])


def test_a_name_cannot_forge_a_mark(tmp_path: Path) -> None:
    summary = replace(summary_of(WORLDS["go"]), target="x\x02curve\x03", hardware="(predicted\x02price\x03)")
    page = render_brief(stored_of(WORLDS["go"], tmp_path), summary)
    assert "price of an hour" not in page and "\x02" not in page
