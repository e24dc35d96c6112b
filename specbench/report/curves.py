"""The figures of survival by position, of loads, and of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.loads import metric_of
from specbench.analysis.served import LoadResult
from specbench.records import Policy
from specbench.report.canvas import (
    COLOURS,
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
    sheet,
    thinned,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from specbench.report.several import Run


# All lines at one position lie within so much to either side of it.
_DODGE = 0.12


def draw_survival(summary: Summary) -> Figure:
    """Survival s_j by position j with intervals, at each draft's best gamma (filled) and at its largest (open)."""
    policy = summary.policy
    with page(summary) as figure:
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


# More lines than this do not read; the gammas that were best anywhere go first.
_LINES = 4
_DASHES = ("-", "--", "-.", ":")
# Dodge between lines at one concurrency, as a share of its logarithm.
_LOAD_DODGE = 0.035


def draw_loads(summary: Summary) -> Figure:
    """Speedup by the policy's metric against concurrency, each with its interval, over the target alone under the same
    load; break-even is where the draft stops paying."""
    policy = summary.policy
    kind = "end-to-end" if policy.metric == "e2e" else "decode"
    server = None if summary.server is None else replace(summary.server, load="as on the axis")
    with page(replace(summary, server=server)) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        lines = _lines(summary, policy)
        for index, rows in enumerate(lines):
            _line(axes, rows, policy, index, 1 + _LOAD_DODGE * (2 * index - len(lines) + 1))
        every = [row for rows in lines for row in rows]
        known = [value for row in every for value in metric_of(row, policy) if value is not None]
        guesses = [] if policy.metric == "e2e" else [row for row in every if row.predicted_speedup is not None]
        if guesses:
            at, values = [row.concurrency or 1 for row in guesses], [row.predicted_speedup or 0.0 for row in guesses]
            known += values
            axes.plot(at, values, "x", color="black", markersize=7, label="predicted: replay and probed rounds")
        axes.set_ylim(*padded([1.0, policy.min_speedup, *known]))
        level_lines(axes, levels(policy))
        counts = sorted({row.concurrency or 1 for row in every})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlim(counts[0] / 1.35, counts[-1] * 1.35)
        axes.set_xlabel("concurrency (requests at a time)")
        axes.set_ylabel(f"{kind} speedup over target alone\nunder the same load (x)", linespacing=1.4)
        legend_above(axes, 2)
    return figure


def _lines(summary: Summary, policy: Policy) -> list[list[LoadResult]]:
    """One line for each draft and gamma, by concurrency; of too many those that are best at some load."""
    found: list[tuple[float, list[LoadResult]]] = []
    for draft in summary.drafts:
        own = [row for row in summary.loads if row.draft == draft.draft and row.concurrency is not None]
        best = _best(own, policy)
        for gamma in sorted({row.gamma for row in own}):
            rows = sorted((row for row in own if row.gamma == gamma), key=lambda row: row.concurrency or 0)
            found.append((-best.count(gamma), rows))
    kept = sorted(found, key=lambda entry: entry[0])[:_LINES]
    return [rows for _, rows in found if any(rows is each for _, each in kept)]


def _best(rows: list[LoadResult], policy: Policy) -> list[int]:
    counts = {row.concurrency for row in rows}
    return [
        max((row for row in rows if row.concurrency == count), key=lambda row: metric_of(row, policy)[0]).gamma
        for count in counts
    ]


def _line(axes: Axes, rows: list[LoadResult], policy: Policy, index: int, shift: float) -> None:
    values = [metric_of(row, policy) for row in rows]
    bars = any(low is not None for _, low, _ in values)
    says = f"{text.exactly(policy.confidence)} interval" if bars else "too few prompts for an interval"
    axes.errorbar(
        [(row.concurrency or 1) * shift for row in rows],
        [value for value, _, _ in values],
        yerr=[
            [math.nan if low is None else max(0.0, value - low) for value, low, _ in values],
            [math.nan if high is None else max(0.0, high - value) for value, _, high in values],
        ],
        label=f"{name(rows[0].draft)}, gamma {rows[0].gamma} ({says})",
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle=_DASHES[index % len(_DASHES)],
        capsize=4,
        markersize=6,
        linewidth=1.3,
    )


RUNS = "runs"


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Decode speedups as points with intervals, a group of lines for each run; a filled marker is the draft that the
    run's verdict is about."""
    lines = [(run, draft, draft.best) for run in runs for draft in run.summary.drafts]
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
            beside(axes, place, note)
        policy = runs[0].summary.policy
        ends = [v for _, _, row in lines for v in (row.speedup, row.speedup_low, row.speedup_high) if v is not None]
        drafts = [draft.draft for _, draft, _ in lines]
        lined_up(axes, drafts, policy, ends, "decode speedup over target alone (x)")
    return figure


def write_runs_figure(runs: Sequence[Run], folder: Path) -> None:
    save(draw_runs(runs), folder, RUNS)
