"""The brief's figures: speedup, survival, round time, categories, loads; as objects or as `<stem>.svg` and `.png`.

Each is drawn from the Summary alone. Error bars are the interval at the policy's confidence; a point without bars
has too few prompts for one.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench import text
from specbench.analysis.contract import CategoryResult, DraftResult, GammaResult, PredictedGamma, Summary
from specbench.records import Policy
from specbench.report.canvas import (
    COLOURS,
    GREYS,
    INK,
    MARKERS,
    bars_mean,
    beside,
    legend_above,
    lengths,
    level_lines,
    levels,
    lined_up,
    name,
    padded,
    page,
    save,
    thinned,
)
from specbench.report.curves import draw_loads, draw_survival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEEDUP = "speedup"
SURVIVAL = "survival"
ROUND_TIME = "round_time"
CATEGORIES = "categories"
LOADS = "loads"

# Dodge between drafts at one gamma, as a share of the smallest distance between gammas.
_DODGE = 0.13


def available(summary: Summary) -> tuple[str, ...]:
    rows = [row for draft in summary.drafts for row in draft.gammas]
    has = {
        SPEEDUP: bool(rows),
        SURVIVAL: any(row.survival for row in rows),
        ROUND_TIME: any(row.round_time for row in rows),
        CATEGORIES: any(draft.by_speedup for draft in summary.drafts),
        LOADS: len({row.concurrency for row in summary.loads if row.concurrency is not None}) > 1,
    }
    return tuple(stem for stem, data in has.items() if data)


def draw(stem: str, summary: Summary) -> Figure:
    known = {
        SPEEDUP: draw_speedup,
        SURVIVAL: draw_survival,
        ROUND_TIME: draw_round_time,
        CATEGORIES: draw_categories,
        LOADS: draw_loads,
    }
    return known[stem](summary)


def write_figures(summary: Summary, folder: Path) -> None:
    for stem in available(summary):
        save(draw(stem, summary), folder, stem)


def draw_speedup(summary: Summary) -> Figure:
    """Decode speedup against gamma, measured with intervals, and the two lines that decide: break-even at 1.00x and the
    policy's minimum. The draft of the verdict is in ink with its chosen point ringed and its predictions as open
    markers; the others are told apart in grey."""
    policy, chosen = summary.policy, summary.recommended
    with page(summary) as figure:
        axes = figure.add_subplot()
        rows: list[GammaResult | PredictedGamma] = [row for draft in summary.drafts for row in draft.gammas]
        rows += chosen.predicted if chosen is not None else ()
        gammas = sorted({row.gamma for row in rows})
        step = _DODGE * min((b - a for a, b in pairwise(gammas)), default=1)
        grey = 0
        for draft in summary.drafts:
            if draft is chosen:
                gamma = summary.choice.gamma if summary.choice is not None else draft.best_gamma
                _chosen_line(axes, draft, policy, gamma, step)
            else:
                shift = step * (-1 - grey // 2 if grey % 2 == 0 else 1 + grey // 2)
                look = {"color": GREYS[grey % len(GREYS)], "marker": MARKERS[1 + grey % (len(MARKERS) - 1)]}
                _speedup_line(axes, draft, policy, shift, look, ("--", "-.", ":")[grey % 3])
                grey += 1
        axes.set_ylim(*padded([1.0, policy.min_speedup, *(value for row in rows for value in _values(row))]))
        level_lines(axes, levels(policy))
        axes.set_xticks(thinned(gammas))
        axes.set_xlim(gammas[0] - 5 * step, gammas[-1] + 5 * step)
        axes.set_xlabel("gamma (tokens drafted per round)")
        axes.set_ylabel("decode speedup over target alone (x)")
        legend_above(axes, 2)
    return figure


def _chosen_line(axes: Axes, draft: DraftResult, policy: Policy, gamma: int, step: float) -> None:
    look: dict[str, Any] = {"color": COLOURS[0], "marker": MARKERS[0]}
    _speedup_line(axes, draft, policy, 0.0, look, "-")
    point = next((row for row in draft.gammas if row.gamma == gamma), None)
    if point is not None:
        ring: dict[str, Any] = {
            "marker": "o",
            "markersize": 15,
            "markerfacecolor": "none",
            "markeredgewidth": 1.4,
            "color": INK,
        }
        axes.plot([gamma], [point.speedup], linestyle="none", label="chosen", zorder=4, **ring)
    known = [(row.gamma + step / 2, row.speedup) for row in draft.predicted] or [
        (row.gamma + step / 2, row.predicted_speedup) for row in draft.gammas if row.predicted_speedup is not None
    ]
    if known:
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            label=f"{name(draft.draft)}, predicted",
            markersize=6,
            linestyle="none",
            markerfacecolor="white",
            **look,
        )


def _speedup_line(
    axes: Axes, draft: DraftResult, policy: Policy, shift: float, look: dict[str, Any], dash: str
) -> None:
    rows = draft.gammas
    bars = any(row.speedup_low is not None for row in rows)
    says = f"{text.exactly(policy.confidence)} interval" if bars else "too few prompts for an interval"
    axes.errorbar(
        [row.gamma + shift for row in rows],
        [row.speedup for row in rows],
        yerr=_bars(rows),
        label=f"{name(draft.draft)}, measured ({says})",
        capsize=4,
        markersize=6,
        linewidth=1.3,
        linestyle=dash,
        **look,
    )


def draw_round_time(summary: Summary) -> Figure:
    """Where the mean round's time goes, stacked milliseconds by gamma, beside one step of the target alone."""
    drafts = [replace(draft, gammas=tuple(row for row in draft.gammas if row.round_time)) for draft in summary.drafts]
    drafts = [draft for draft in drafts if draft.gammas]
    count = len(drafts)
    with page(summary, width=max(6.6, 3.4 * count)) as figure:
        panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
        steps = [1000 / draft.baseline_tokens_per_s for draft in drafts]
        totals = [1000 * row.round_time.total_s for draft in drafts for row in draft.gammas if row.round_time]
        for axes, draft, step in zip(panels, drafts, steps, strict=True):
            axes.set_ylim(0, max([*totals, *steps]) * 1.12)
            _round_bars(axes, draft)
            axes.axhline(step, color=INK, linewidth=1.2, linestyle="--", label=f"target alone, 1 step ({step:.1f} ms)")
            axes.set_xlabel("gamma (tokens drafted per round)")
            if count > 1:
                axes.set_title(name(draft.draft), fontsize=9.5, loc="left")
                axes.legend(loc="upper left", fontsize=7.5)
                axes.set_ylim(0, max([*totals, *steps]) * 1.5)
        panels[0].set_ylabel("time per round (ms)")
        if count == 1:
            legend_above(panels[0], 4)
    return figure


def _round_bars(axes: Axes, draft: DraftResult) -> None:
    places = range(len(draft.gammas))
    bottom = [0.0] * len(draft.gammas)
    times = [row.round_time for row in draft.gammas if row.round_time]
    terms = (
        ("drafting", [1000 * each.draft_s for each in times], "#9db8d2", "///"),
        ("verifying", [1000 * each.verify_s for each in times], "#f4f4f4", ""),
        ("other", [1000 * each.other_s for each in times], "#6e6e6e", ""),
    )
    for label, heights, colour, hatch in terms:
        axes.bar(places, heights, 0.55, bottom, label=label, color=colour, hatch=hatch, edgecolor=INK, lw=0.8, zorder=2)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for place in thinned(places):
        top = bottom[place]
        axes.annotate(
            f"{top:.1f}", (place, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5, color=INK
        )
    axes.set_xticks(thinned(places), [str(draft.gammas[place].gamma) for place in thinned(places)])
    # One or two bars alone would be drawn as wide as walls.
    half = max(len(draft.gammas), 4) / 2 + 0.2
    middle = (len(draft.gammas) - 1) / 2
    axes.set_xlim(middle - half, middle + half)


def draw_categories(summary: Summary) -> Figure:
    """Speedup by category at its best gamma, fastest on top; an open marker has too few prompts for an interval."""
    policy = summary.policy
    rows = _category_order(summary)
    drafts = summary.drafts
    with page(summary, height=1.9 + 0.34 * len(rows) * max(1.0, 0.7 * len(drafts))) as figure:
        axes = figure.add_subplot()
        for index, draft in enumerate(drafts):
            shift = (index - (len(drafts) - 1) / 2) * 0.22
            _category_points(axes, draft, rows, index, shift)
            if policy.metric == "decode":
                _category_predictions(axes, draft, rows, shift)
        known = [value for draft in drafts for row in draft.categories for value in _values(row)]
        bars = any(row.speedup_low is not None for draft in drafts for row in draft.categories)
        lined_up(axes, rows, policy, known, "speedup over target alone (x)" + bars_mean(policy, bars))
    return figure


def _category_points(axes: Axes, draft: DraftResult, rows: list[str], index: int, shift: float) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    for position, category in enumerate(draft.categories):
        place = rows.index(category.category) + shift
        known = category.speedup_low is not None
        axes.errorbar(
            [category.speedup],
            [place],
            xerr=_bars((category,)),
            color=colour,
            marker=marker,
            markersize=6.5,
            markerfacecolor=colour if known else "white",
            capsize=4,
            linewidth=1.3,
            label=name(draft.draft) if position == 0 else None,
        )
        label = f"gamma {category.best_gamma}, n = {category.prompts:,}" + ("" if known else ", no interval")
        beside(axes, place, label)


def _category_predictions(axes: Axes, draft: DraftResult, rows: list[str], shift: float) -> None:
    """Small upright strokes, so that they hide no interval."""
    known = [(row.predicted_speedup, rows.index(row.category) + shift) for row in draft.categories]
    points = [(x, y) for x, y in known if x is not None]
    if points:
        label = "predicted" if not axes.get_legend_handles_labels()[1].count("predicted") else None
        axes.plot(
            *zip(*points, strict=True), linestyle="none", marker="|", markersize=11, color=INK, label=label, zorder=4
        )


def _category_order(summary: Summary) -> list[str]:
    best: dict[str, float] = {}
    for draft in summary.drafts:
        for row in draft.categories:
            best[row.category] = max(best.get(row.category, row.speedup), row.speedup)
    return sorted(best, key=lambda category: (-best[category], category))


def _values(row: GammaResult | CategoryResult | PredictedGamma) -> list[float]:
    predicted = None if isinstance(row, PredictedGamma) else row.predicted_speedup
    return [value for value in (row.speedup, row.speedup_low, row.speedup_high, predicted) if value is not None]


def _bars(rows: tuple[GammaResult, ...] | tuple[CategoryResult, ...]) -> list[list[float]]:
    return lengths([(row.speedup, row.speedup_low, row.speedup_high) for row in rows])
