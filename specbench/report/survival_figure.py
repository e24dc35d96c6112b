"""The figure of survival by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.records import Policy
from specbench.report.canvas import COLOURS, MARKERS, bars_mean, legend_above, lengths, name, page, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All lines at one position lie within so much to either side of it.
_DODGE = 0.12


def draw_survival(summary: Summary, policy: Policy, note: str = "") -> Figure:
    """Survival s_j by position j with intervals, at each draft's best gamma (filled) and at its largest (open)."""
    with page(summary, note) as figure:
        axes = figure.add_subplot()
        lines: list[tuple[int, DraftResult, GammaResult]] = []
        for index, draft in enumerate(summary.drafts):
            largest = max(draft.gammas, key=lambda row: row.gamma)
            lines += [(index, draft, row) for row in _without_repeats(draft, largest)]
        longest = max((row.gamma for _, _, row in lines), default=1)
        for place, (index, draft, row) in enumerate(lines):
            # Side by side, or one point's interval hides another's.
            shift = (place - (len(lines) - 1) / 2) * 2 * _DODGE / len(lines)
            _survival_line(axes, draft, row, index, shift)
        axes.set_ylim(0, 1.03)
        axes.set_xlim(0.6, longest + 0.4)
        axes.set_xticks(thinned(range(1, longest + 1), 16))
        known = any(low is not None for _, _, row in lines for low in row.survival_low)
        axes.set_xlabel("position j in the draft (tokens)" + bars_mean(policy, known))
        axes.set_ylabel("survival s_j (share of rounds\nwith the first j drafts accepted)", linespacing=1.4)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        legend_above(axes, 2)
    return figure


def _survival_line(axes: Axes, draft: DraftResult, row: GammaResult, index: int, shift: float) -> None:
    best = row.gamma == draft.best_gamma
    unknown = (None,) * len(row.survival)
    ends = zip(row.survival, row.survival_low or unknown, row.survival_high or unknown, strict=True)
    points = [(j, s, low, high) for j, (s, low, high) in enumerate(ends, 1) if s is not None]
    axes.errorbar(
        [j + shift for j, *_ in points],
        [s for _, s, _, _ in points],
        yerr=lengths([(s, low, high) for _, s, low, high in points]),
        label=f"{name(draft.draft)}, gamma {row.gamma}" + (" (best)" if best else " (largest)"),
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=6 if best else 8,
        markerfacecolor=None if best else "white",
        linestyle="-" if best else "--",
        linewidth=1.3 if best else 1.0,
        capsize=3,
        zorder=3 if best else 2,
    )


def _without_repeats(draft: DraftResult, largest: GammaResult) -> list[GammaResult]:
    best = [row for row in draft.gammas if row.gamma == draft.best_gamma]
    rows = best if largest in best else [*best, largest]
    return [row for row in rows if row.survival]
