"""The figure of several runs: every draft of every run at its own best gamma, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specbench import text
from specbench.report.canvas import COLOURS, INK, MARKERS, legend_above, levels, name, padded, save, sheet
from specbench.report.wording import best_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specbench.report.brief.several import Run

RUNS = "runs"


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Decode speedups as points with intervals, a group of lines for each run; a filled marker is the draft that the
    run's verdict is about."""
    lines = [(run, draft, best_row(draft)) for run in runs for draft in run.summary.drafts]
    caption = text.clean("Decoding, each draft at its own best gamma; filled: what the run's verdict is about")
    with sheet(caption, 6.6, 1.7 + 0.36 * len(lines)) as figure:
        axes = figure.add_subplot()
        seen: set[str] = set()
        for place, (run, draft, row) in enumerate(lines):
            index = runs.index(run)
            low, high = row.speedup_low, row.speedup_high
            known = low is not None and high is not None
            axes.errorbar(
                [row.speedup],
                [place],
                xerr=[[row.speedup - low], [high - row.speedup]] if low is not None and high is not None else None,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=6.5,
                markerfacecolor=None if draft is run.draft else "white",
                capsize=4,
                linewidth=1.3,
                label=None if run.name in seen else name(run.name),
            )
            seen.add(run.name)
            note = f"gamma {row.gamma}, n = {row.prompts:,}" + ("" if known else ", no interval")
            axes.annotate(
                note, (1.01, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8, annotation_clip=False
            )
        policy = runs[0].facts.policy
        ends = [v for _, _, row in lines for v in (row.speedup, row.speedup_low, row.speedup_high) if v is not None]
        axes.set_xlim(*padded([1.0, policy.min_speedup, *ends]))
        axes.set_ylim(len(lines) - 0.4, -0.6)
        for level, label, dash in levels(policy):
            axes.axvline(level, color=INK, linewidth=0.9, linestyle=dash, zorder=1, label=label.replace("\n", " "))
        axes.set_yticks(range(len(lines)), [name(draft.draft) for _, draft, _ in lines])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("decode speedup over target alone (x)")
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        legend_above(axes, 2)
    return figure


def write_runs_figure(runs: Sequence[Run], folder: Path) -> None:
    """`runs.svg` and `runs.png`."""
    save(draw_runs(runs), folder, RUNS)
