"""Two runs side by side: planted differences come back, with the term that made them, and noise is called noise."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import with_run
from fake_served import FakeServer, fake_served
from rich.cells import cell_len
from rich.console import Console

from specbench.analysis.compare import ComparedDraft, Comparison, compared
from specbench.decision.interval import difference
from specbench.errors import StoreError
from specbench.report.dialect import PLAIN, json_of, said, sentence_of
from specbench.report.layout import comparison_page
from specbench.report.page import comparison_markdown
from specbench.run_record import ModelFacts, WorkloadFacts
from specbench.store import StoredRun

SLOW = FakeServer(step_s=0.046, round_s=0.060, adapter="vLLM")
FAST = FakeServer(step_s=0.0094, round_s=0.0273)


def shown(found: Comparison, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width)
    console.print(comparison_page(found))
    file.seek(0)
    return file.read()


def reason_of(draft: ComparedDraft) -> str:
    return sentence_of("compared", PLAIN, draft)


@pytest.fixture
def engines(tmp_path: Path) -> tuple[StoredRun, StoredRun]:
    """The same rounds, of which one engine makes other times."""
    return (
        fake_served(tmp_path / "a", SLOW, gammas=(2, 4), prompts=30),
        fake_served(tmp_path / "b", FAST, gammas=(4, 8)),
    )


def test_a_dearer_round_is_what_moved(engines: tuple[StoredRun, StoredRun]) -> None:
    found = compared(*engines)
    (draft,) = found.drafts
    (row,) = draft.gammas
    assert (found.prompts, found.only_a, found.only_b) == (24, ("demo:draft gamma 2",), ("demo:draft gamma 8",))
    assert row.a.round_steps == pytest.approx(0.060 / 0.046, rel=0.02)
    assert row.b.round_steps == pytest.approx(0.0273 / 0.0094, rel=0.02)
    assert row.ratio == pytest.approx((0.060 / 0.046) / (0.0273 / 0.0094), rel=0.02)
    assert row.ratio == pytest.approx(row.b.speedup / row.a.speedup)
    assert row.ratio_low < row.ratio < row.ratio_high < 1
    assert (row.moved, row.difference) == ("cost of a round", "slower")
    assert reason_of(draft).startswith("The target's step is 4.9x faster on B, llama.cpp (9.4 ms against 4")
    assert "a round only 2.2x, so a round costs 2.9" in reason_of(draft)
    assert "at much the same tau (2.27 against 2.27): GO becomes NO-GO." in reason_of(draft)
    assert row.a.tokens_per_round == row.b.tokens_per_round  # over the prompts that both have


def test_acceptance_is_what_moved(tmp_path: Path) -> None:
    a = fake_served(tmp_path / "a", FakeServer(alpha=0.8))
    b = fake_served(tmp_path / "b", FakeServer(alpha=0.2, round_s=0.014))
    draft = compared(a, b).drafts[0]
    assert {row.moved for row in draft.gammas} == {"acceptance"}
    assert reason_of(draft).startswith("Acceptance moved most: a round gives 1.2")
    assert "tokens on B" in reason_of(draft)


def test_pairing_takes_out_what_belongs_to_the_prompt(tmp_path: Path) -> None:
    a = fake_served(tmp_path / "a", FakeServer(round_s=0.0130))
    b = fake_served(tmp_path / "b", FakeServer(round_s=0.0136), noise_seed=1)
    row = compared(a, b).drafts[0].gammas[1]
    assert row.ratio == pytest.approx(0.0130 / 0.0136, rel=0.01)
    alone = row.a.speedup_high - row.a.speedup_low
    assert row.ratio_high - row.ratio_low < alone / 3
    assert row.difference == "slower"
    # The same difference drowns where the prompts are others.
    stranger = fake_served(tmp_path / "c", FakeServer(round_s=0.0136), seed=5)
    apart = compared(a, stranger)
    assert apart.drafts[0].gammas[1].difference == "not resolved"
    assert re.search(r"Not resolved, \d+% slower to \d+% faster: a round costs", reason_of(apart.drafts[0]))
    assert "nothing is resolved" in " ".join(shown(apart).split())


def test_the_same_again_is_the_same(tmp_path: Path) -> None:
    a, b = (fake_served(tmp_path / str(seed), prompts=30, noise_seed=seed) for seed in (0, 1))
    found = compared(a, b)
    assert all(row.difference == "same" and row.moved is None for row in found.drafts[0].gammas)
    assert reason_of(found.drafts[0]).startswith("The same to within 5%: a round costs 1.30 target steps against 1.30")
    assert '"same": the whole interval is within 5% of 1' in shown(found)
    assert found.warnings == ()


def test_prompts_are_paired_by_content_and_not_by_id(tmp_path: Path) -> None:
    a, b = fake_served(tmp_path / "a", SLOW), fake_served(tmp_path / "b", FAST)
    names = {f"p{n}": f"x{99 - n}" for n in range(24)}
    renamed = replace(b, trials=tuple(replace(t, prompt_id=names[t.prompt_id]) for t in b.trials))
    assert compared(a, renamed).drafts[0].gammas[1].ratio_low == pytest.approx(
        compared(a, b).drafts[0].gammas[1].ratio_low, rel=0.01
    )
    with pytest.raises(StoreError, match="no draft at one gamma over one prompt in common"):
        compared(a, fake_served(tmp_path / "c", replace(FAST, sha="other")))


def test_by_category(engines: tuple[StoredRun, StoredRun]) -> None:
    rows = compared(*engines).drafts[0].gammas[0].categories
    assert [(row.category, row.prompts) for row in rows] == [("chat", 12), ("code", 12)]
    assert all(row.ratio == pytest.approx(row.b_speedup / row.a_speedup) and row.difference == "slower" for row in rows)


def test_rounds_that_one_side_does_not_tell(tmp_path: Path) -> None:
    a, b = fake_served(tmp_path / "a", SLOW), fake_served(tmp_path / "b", replace(FAST, tells="drafts"))
    found = compared(a, b)
    row = found.drafts[0].gammas[0]
    assert row.b.tokens_per_round is None and row.moved is None and row.difference == "slower"
    assert "what a round gives and costs is not known in both" in reason_of(found.drafts[0])
    assert "1.94 / -" in shown(found, 200) and "None" not in comparison_markdown(found)


@pytest.mark.parametrize(
    ("code", "config"),
    [
        ("other-sampling", {"temperature": 0.7}),
        ("other-sampling", {"repetition_penalty": 1.1}),
        ("other-sampling", {"min_p": 0.1}),
        ("other-limit", {"max_new_tokens": 128}),
        ("other-load", {"concurrency": (4,)}),
    ],
)
def test_another_question_is_warned_of(tmp_path: Path, code: str, config: dict) -> None:
    a, b = fake_served(tmp_path / "a"), fake_served(tmp_path / "b", **config)
    assert [caution.code for caution in compared(a, b).warnings] == [code]


def test_another_workload_is_warned_of(tmp_path: Path) -> None:
    a, b = (fake_served(tmp_path / name) for name in "ab")
    other = with_run(b, workload=WorkloadFacts(sha256="cd" * 32))
    assert [caution.code for caution in compared(a, other).warnings] == ["other-prompts"]


def test_weights_in_another_format_are_named_and_the_engine_gets_no_credit_alone(tmp_path: Path) -> None:
    def named(stored: StoredRun, model: str) -> StoredRun:
        """As of a server, which does not tell its precision."""
        unsaid = replace(stored.run.provenance, precision=None)
        return with_run(stored, provenance=unsaid, target=ModelFacts(model))

    a = named(fake_served(tmp_path / "a", SLOW), "org/Model-7B-AWQ")
    b = named(fake_served(tmp_path / "b", FAST), "Model-7B-Instruct.Q4_1.gguf")
    found = compared(a, b)
    (warning,) = (one for one in found.warnings if one.code == "other-weights")
    assert "in AWQ on A and Q4_1 on B" in said(warning)
    assert "on B, llama.cpp in Q4_1 (9.4 ms" in reason_of(found.drafts[0])
    # one engine and one format: nothing to tell apart
    assert not [one for one in compared(a, a).warnings if one.code == "other-weights"]
    assert compared(a, a).a.name == "A"


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.51, 1.06, "not resolved"),
        (0.97, 1.04, "same"),
        (0.94, 1.01, "not resolved"),
        (1.01, 1.02, "faster"),
        (0.8, 0.99, "slower"),
        (None, None, "not resolved"),
    ],
)
def test_a_ratio_is_the_same_only_within_a_margin(low: float | None, high: float | None, says: str) -> None:
    assert difference(low, high) == says


def test_slower_only_where_the_interval_says_so(tmp_path: Path) -> None:
    a = fake_served(tmp_path / "a", FakeServer(round_s=0.013))
    worse = compared(a, fake_served(tmp_path / "b", FakeServer(round_s=0.014), noise_seed=1)).slower
    assert (worse.draft, worse.gamma) == ("demo:draft", 4)
    assert worse.by == pytest.approx(1 - 13 / 14, abs=0.01)
    assert worse.low < worse.by < worse.high
    assert worse.surely_above(0.03) and not worse.surely_above((worse.low + worse.by) / 2)
    again = compared(a, a).slower
    assert again.by == 0 and not again.surely_above(0.01)
    few = [fake_served(tmp_path / f"few{s}", FakeServer(round_s=s / 1000), prompts=6) for s in (13, 26)]
    found = compared(*few)
    assert found.slower.by > 0.4 and not found.slower.surely_above(0.03)
    assert reason_of(found.drafts[0]).startswith("Too few prompts to tell the two apart")


def test_nothing_is_slower_where_the_first_runs_choice_is_not_in_the_second(tmp_path: Path) -> None:
    a, b = fake_served(tmp_path / "a", gammas=(2, 4)), fake_served(tmp_path / "b", gammas=(2,))
    assert compared(a, b).slower is None


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_tables_fit(engines: tuple[StoredRun, StoredRun], width: int, encoding: str) -> None:
    page = shown(compared(*engines), width, encoding)
    assert "B over A" in page
    # A long path has to be readable whole.
    assert max(cell_len(line) for line in page.splitlines() if str(engines[0].folder.parent) not in line) <= width


def test_the_markdown_and_the_json_say_the_same(engines: tuple[StoredRun, StoredRun]) -> None:
    found = compared(*engines)
    page = comparison_markdown(found)
    assert "| gamma | speedup on A | speedup on B | B over A | tau |" in page and "None" not in page
    assert "**The target's step is 4.9x faster on B, llama.cpp" in page and "Only in B: demo:draft gamma 8." in page
    told = json.loads(json.dumps(json_of(found), allow_nan=False))
    assert told["drafts"][0]["gammas"][0]["moved"] == "cost of a round"


def test_a_run_in_process_beside_a_server(tmp_path: Path) -> None:
    from fake_run import FakeDraft, fake_run

    local = fake_run(tmp_path / "a", {"demo:draft": FakeDraft({"code": 0.6, "chat": 0.6})}, gammas=(2, 4))
    named = [replace(t, prompt_sha256=f"prompt{t.prompt_id[1:]}") for t in local.trials]
    found = compared(replace(local, trials=tuple(named)), fake_served(tmp_path / "b"))
    assert found.a.name == "A, specbench's own loop in float32" and found.a.load is None and found.prompts == 24
    assert found.drafts[0].gammas[0].a.round_steps is not None
