"""The figures: nothing empty, the axes named, the same bytes twice."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import full
from fake_summary import summary_of, with_second_draft
from fake_worlds import FEW, GO, MIXED, NO_GO
from matplotlib import rc_context
from matplotlib.image import imread
from matplotlib.text import Text

from specbench.analysis.contract import Summary
from specbench.records import Policy
from specbench.report.canvas import save
from specbench.report.figures import available, write_figures
from specbench.report.figures import draw as drawn

LABELS = {
    "speedup": ("gamma (tokens drafted per round)", "decode speedup over target alone (x)", "break-even", "1.10x"),
    "survival": ("position j in the draft (tokens)", "survival s_j (share of rounds"),
    "round_time": ("time per round (ms)", "drafting", "verifying", "target alone, 1 step (25.0 ms)"),
    "categories": ("speedup over target alone (x)", "break-even 1.00x", "policy minimum 1.10x"),
}


def draw(summary: Summary, folder: Path, policy: Policy | None = None) -> Path:
    write_figures(replace(summary, policy=policy or summary.policy), folder)
    return folder


@pytest.mark.parametrize("world", [MIXED, *full(GO, NO_GO, FEW)], ids=lambda world: world.name)
def test_every_figure_has_ink_and_named_axes(world: object, tmp_path: Path) -> None:
    folder = draw(summary_of(world), tmp_path)  # type: ignore[arg-type]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{s}.{e}" for s in LABELS for e in ("png", "svg"))
    for stem, labels in LABELS.items():
        svg = (folder / f"{stem}.svg").read_text(encoding="utf-8")
        assert [label for label in labels if label not in svg] == []
        assert "batch 1; bfloat16, " in svg
        picture = imread(folder / f"{stem}.png")
        assert picture.shape[0] > 300 and picture.shape[1] > 900
        assert 0.005 < float((picture[..., :3].mean(axis=2) < 0.9).mean()) < 0.5


@pytest.mark.full
def test_the_same_summary_gives_the_same_bytes(tmp_path: Path) -> None:
    summary = summary_of(MIXED)
    first, second = draw(summary, tmp_path / "first"), draw(summary, tmp_path / "second")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    assert "<dc:date>" not in (first / "speedup.svg").read_text(encoding="utf-8")


@pytest.mark.full
def test_two_drafts_are_told_apart_without_colour(tmp_path: Path) -> None:
    svg = (draw(with_second_draft(summary_of(GO)), tmp_path) / "speedup.svg").read_text(encoding="utf-8")
    assert "demo:draft, measured (95% interval)" in svg and "ngram:n=3, measured (95% interval)" in svg
    assert "stroke-dasharray" in svg


@pytest.mark.full
def test_figures_without_intervals_say_so(tmp_path: Path) -> None:
    folder = draw(summary_of(FEW), tmp_path)
    assert "too few prompts for an interval" in (folder / "speedup.svg").read_text(encoding="utf-8")
    assert "n = 4, no interval" in (folder / "categories.svg").read_text(encoding="utf-8")


def test_bars_are_drawn_and_named_and_no_line_hides_another(tmp_path: Path) -> None:
    summary = summary_of(GO)
    rows = tuple(
        replace(row, survival_low=tuple((s or 0) - 0.05 for s in row.survival), survival_high=row.survival)
        for row in summary.drafts[0].gammas
    )
    one = replace(summary.drafts[0], gammas=rows)
    twice = replace(summary, drafts=(one, replace(one, draft="other")))
    for stem in ("survival", "categories"):
        assert "bars: 95% interval over prompts" in drawn(stem, twice).axes[0].get_xlabel()
    axes = drawn("survival", twice).axes[0]
    starts = [round(container.lines[0].get_xdata()[0], 6) for container in axes.containers]  # type: ignore[union-attr]
    assert len(starts) > 1 and len(set(starts)) == len(starts)
    bars = axes.containers[0].lines[2][0].get_segments()  # type: ignore[union-attr,index]
    assert bars[0][1][1] - bars[0][0][1] == pytest.approx(0.05)
    bare = drawn("survival", summary).axes[0]
    assert "bars" not in bare.get_xlabel()


def test_no_figure_of_categories_where_prompts_have_none(tmp_path: Path) -> None:
    summary = summary_of(GO)
    draft = summary.drafts[0]
    only = replace(draft.categories[0], category="all")
    for categories in ((), (only,)):
        bare = replace(summary, drafts=(replace(draft, categories=categories),))
        assert tuple(available(bare)) == ("speedup", "survival", "round_time")
    assert not available(replace(summary, drafts=()))


@pytest.mark.full
def test_odd_names_and_policies_draw(tmp_path: Path) -> None:
    summary = summary_of(MIXED)
    draft = summary.drafts[0]
    odd = replace(draft.categories[0], category="$x_{$ 数学 " + "y" * 80)
    drafts = (replace(draft, draft="$\\frac{", categories=(odd, *draft.categories[1:])),)
    summary = replace(summary, drafts=drafts, facts=replace(summary.facts, precision="$y_{"))
    svg = (draw(summary, tmp_path, Policy(min_speedup=1.0, metric="e2e")) / "speedup.svg").read_text(encoding="utf-8")
    assert "$\\frac{" in svg and "policy minimum" in svg


@pytest.mark.full
def test_a_figure_object_is_what_its_file_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = summary_of(MIXED)
    figures = {stem: drawn(stem, summary) for stem in available(summary)}
    assert list(tmp_path.iterdir()) == []
    written = draw(summary, tmp_path / "written")
    for stem, labels in LABELS.items():
        said = "\n".join(text.get_text() for text in figures[stem].findobj(Text))
        assert [label for label in labels if label not in said] == []
        assert "batch 1; bfloat16, " in said
        save(figures[stem], tmp_path / "saved", stem)
        assert (tmp_path / "saved" / f"{stem}.svg").read_bytes() == (written / f"{stem}.svg").read_bytes()


@pytest.mark.full
def test_names_in_a_figure_object_are_no_formulas_in_anybodys_style() -> None:
    summary = summary_of(MIXED)
    draft = summary.drafts[0]
    odd = replace(draft.categories[0], category="$x_{$")
    drafts = (replace(draft, draft="$\\frac{", categories=(odd, *draft.categories[1:])),)
    summary = replace(summary, drafts=drafts, facts=replace(summary.facts, precision="$y_{"))
    written = {}
    for stem in available(summary):
        with rc_context({"svg.fonttype": "none"}), io.StringIO() as file:
            drawn(stem, summary).savefig(file, format="svg")
            written[stem] = file.getvalue()
    assert all("$y_{" in svg for svg in written.values()) and len(written) == 4
    assert "$x_{$" in written["categories"] and "$\\frac{" in written["speedup"]
