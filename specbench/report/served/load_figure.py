"""The figure of a server under load: speedup against how many requests it sees at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from specbench import text
from specbench.analysis.contract import Summary
from specbench.analysis.served.contract import LoadResult
from specbench.analysis.served.loads import metric_of
from specbench.records import Policy
from specbench.report.canvas import COLOURS, MARKERS, legend_above, level_lines, levels, name, padded, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More lines than this do not read; the gammas that were best anywhere go first.
_LINES = 4
_DASHES = ("-", "--", "-.", ":")
# Dodge between lines at one concurrency, as a share of its logarithm.
_DODGE = 0.035


def draw_loads(summary: Summary, policy: Policy, note: str = "") -> Figure:
    """Speedup by the policy's metric against concurrency, each with its interval, over the target alone under the same
    load; break-even is where the draft stops paying."""
    kind = "end-to-end" if policy.metric == "e2e" else "decode"
    server = None if summary.server is None else replace(summary.server, load="as on the axis")
    with page(replace(summary, server=server), note) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        lines = _lines(summary, policy)
        for index, rows in enumerate(lines):
            _line(axes, rows, policy, index, 1 + _DODGE * (2 * index - len(lines) + 1))
        every = [row for rows in lines for row in rows]
        known = [value for row in every for value in metric_of(row, policy) if value is not None]
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
    """The best gamma at each concurrency."""
    counts = {row.concurrency for row in rows}
    return [
        max((row for row in rows if row.concurrency == count), key=lambda row: metric_of(row, policy)[0]).gamma
        for count in counts
    ]


def _line(axes: Axes, rows: list[LoadResult], policy: Policy, index: int, shift: float) -> None:
    values = [metric_of(row, policy) for row in rows]
    bars = any(low is not None for _, low, _ in values)
    says = f"{text.percent(policy.confidence)} interval" if bars else "too few prompts for an interval"
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
