"""The figures of a run (speedup, survival, round time, categories, loads) and of several runs, as objects or as
`<stem>.svg` and `.png`.

Each is drawn from the Summary alone. Error bars are the interval at the policy's confidence; a point without bars
has too few prompts for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench import text
from specbench.analysis.contract import CategoryResult, DraftResult, GammaResult, PredictedGamma, Summary
from specbench.analysis.loads import best_by_concurrency, metric_of
from specbench.analysis.served import LoadResult
from specbench.records import Policy
from specbench.report.canvas import (
    COLOURS,
    GREYS,
    INK,
    MARKERS,
    Ends,
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

# Dodge between drafts at one gamma, as a share of the smallest distance between gammas.
_DODGE = 0.13
# All lines at one position of survival lie within so much to either side of it.
_SURVIVAL_DODGE = 0.12
# Dodge between lines at one concurrency, as a share of its logarithm.
_LOAD_DODGE = 0.035
# More lines of loads than this do not read; the gammas that were best anywhere go first.
_LINES = 4
_DASHES = ("-", "--", "-.", ":")


def available(summary: Summary) -> dict[str, list[DraftResult]]:
    """The figures that a run has data for, and the drafts in each."""
    loads = [row for row in summary.loads if row.concurrency is not None]
    concurrent = {row.draft for row in loads} if len({row.concurrency for row in loads}) > 1 else set()
    has: dict[str, Callable[[DraftResult], object]] = {
        "speedup": lambda draft: draft.gammas,
        "survival": lambda draft: any(row.survival for row in draft.gammas),
        "round_time": lambda draft: any(row.round_time for row in draft.gammas),
        "categories": lambda draft: draft.by_speedup,
        "loads": lambda draft: draft.draft in concurrent,
    }
    found = {stem: [draft for draft in summary.drafts if shows(draft)] for stem, shows in has.items()}
    return {stem: drafts for stem, drafts in found.items() if drafts}


def draw(stem: str, summary: Summary) -> Figure:
    return _DRAWN[stem](summary)


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
                _speedup_line(axes, draft, policy, shift, linestyle=_DASHES[1 + grey % 3], **look)
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
    _speedup_line(axes, draft, policy, 0.0, linestyle="-", **look)
    ring: dict[str, Any] = {"color": INK, "markersize": 15, "markerfacecolor": "none", "markeredgewidth": 1.4}
    for row in draft.gammas:
        if row.gamma == gamma:
            axes.plot([gamma], [row.speedup], "o", label="chosen", zorder=4, **ring)
    known = [(row.gamma + step / 2, row.speedup) for row in draft.predicted] or [
        (row.gamma + step / 2, row.predicted_speedup) for row in draft.gammas if row.predicted_speedup is not None
    ]
    if known:
        label = f"{name(draft.draft)}, predicted"
        look |= {"linestyle": "none", "markersize": 6, "markerfacecolor": "white"}
        axes.plot(*zip(*known, strict=True), label=label, **look)


def _speedup_line(axes: Axes, draft: DraftResult, policy: Policy, shift: float, **look: Any) -> None:
    at = [row.gamma + shift for row in draft.gammas]
    _line(axes, at, [_ends(row) for row in draft.gammas], f"{name(draft.draft)}, measured", policy, **look)


def _line(axes: Axes, at: list[float], ends: list[Ends], label: str, policy: Policy, **look: Any) -> None:
    """A line of speedups, each with its interval."""
    bars = any(low is not None for _, low, _ in ends)
    says = f"{text.exactly(policy.confidence)} interval" if bars else "too few prompts for an interval"
    look = {"label": f"{label} ({says})", "capsize": 4, "markersize": 6, "linewidth": 1.3, **look}
    axes.errorbar(at, [value for value, _, _ in ends], yerr=lengths(ends), **look)


def draw_survival(summary: Summary) -> Figure:
    """Survival s_j by position j with intervals, at each draft's best gamma (filled) and at its largest (open)."""
    policy = summary.policy
    with page(summary) as figure:
        axes = figure.add_subplot()
        lines: list[tuple[int, DraftResult, GammaResult]] = []
        for index, draft in enumerate(summary.drafts):
            best = [row for row in draft.gammas if row.gamma == draft.best_gamma]
            largest = max(draft.gammas, key=lambda row: row.gamma)
            rows = best if largest in best else [*best, largest]
            lines += [(index, draft, row) for row in rows if row.survival]
        longest = max((row.gamma for _, _, row in lines), default=1)
        for place, (index, draft, row) in enumerate(lines):
            # Side by side, or one point's interval hides another's.
            shift = (place - (len(lines) - 1) / 2) * 2 * _SURVIVAL_DODGE / len(lines)
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
    points = [(j, (s, low, high)) for j, (s, low, high) in enumerate(ends, 1) if s is not None]
    axes.errorbar(
        [j + shift for j, _ in points],
        [s for _, (s, _, _) in points],
        yerr=lengths([each for _, each in points]),
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
    policy, drafts = summary.policy, summary.drafts
    rows = _category_order(summary)
    with page(summary, height=1.9 + 0.34 * len(rows) * max(1.0, 0.7 * len(drafts))) as figure:
        axes = figure.add_subplot()
        for index, draft in enumerate(drafts):
            shift = (index - (len(drafts) - 1) / 2) * 0.22
            for position, category in enumerate(draft.categories):
                place, label = rows.index(category.category) + shift, name(draft.draft) if position == 0 else None
                _point(axes, place, category, category.best_gamma, index, category.speedup_low is not None, label)
            if policy.metric == "decode":
                _category_predictions(axes, draft, rows, shift)
        known = [value for draft in drafts for row in draft.categories for value in _values(row)]
        bars = any(row.speedup_low is not None for draft in drafts for row in draft.categories)
        lined_up(axes, rows, policy, known, "speedup over target alone (x)" + bars_mean(policy, bars))
    return figure


def _point(
    axes: Axes,
    place: float,
    row: GammaResult | CategoryResult,
    gamma: int,
    index: int,
    filled: bool,
    label: str | None,
) -> None:
    """A speedup to the right, with its interval, and in the margin what it rests on."""
    colour = COLOURS[index % len(COLOURS)]
    axes.errorbar(
        [row.speedup],
        [place],
        xerr=lengths([_ends(row)]),
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markersize=6.5,
        markerfacecolor=colour if filled else "white",
        capsize=4,
        linewidth=1.3,
        label=label,
    )
    unsure = ", no interval" if row.speedup_low is None else ""
    beside(axes, place, f"gamma {gamma}, n = {row.prompts:,}{unsure}")


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


def draw_loads(summary: Summary) -> Figure:
    """Speedup by the policy's metric against concurrency, each with its interval, over the target alone under the same
    load; break-even is where the draft stops paying."""
    policy = summary.policy
    kind = "end-to-end" if policy.metric == "e2e" else "decode"
    server = None if summary.server is None else replace(summary.server, load="as on the axis")
    with page(replace(summary, server=server)) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        lines = _load_lines(summary)
        for index, rows in enumerate(lines):
            shift = 1 + _LOAD_DODGE * (2 * index - len(lines) + 1)
            look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
            at, ends = [(row.concurrency or 1) * shift for row in rows], [metric_of(row, policy) for row in rows]
            label = f"{name(rows[0].draft)}, gamma {rows[0].gamma}"
            _line(axes, at, ends, label, policy, linestyle=_DASHES[index % len(_DASHES)], **look)
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


def _load_lines(summary: Summary) -> list[list[LoadResult]]:
    """One line for each draft and gamma, by concurrency; of too many those that are best at most loads."""
    found: list[tuple[int, list[LoadResult]]] = []
    for draft in summary.drafts:
        own = [row for row in summary.loads if row.draft == draft.draft and row.concurrency is not None]
        best = [row.gamma for row in best_by_concurrency(own, draft.draft, summary.policy).values()]
        for gamma in sorted({row.gamma for row in own}):
            rows = sorted((row for row in own if row.gamma == gamma), key=lambda row: row.concurrency or 0)
            found.append((best.count(gamma), rows))
    kept = sorted(range(len(found)), key=lambda at: -found[at][0])[:_LINES]
    return [found[at][1] for at in sorted(kept)]


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Decode speedups as points with intervals, a group of lines for each run; a filled marker is the draft that the
    run's verdict is about."""
    lines = [(index, run, draft) for index, run in enumerate(runs) for draft in run.summary.drafts]
    caption = "Decoding, each draft at its own best gamma; filled: what the run's verdict is about"
    with sheet(caption, 6.6, 1.7 + 0.36 * len(lines)) as figure:
        axes = figure.add_subplot()
        for place, (index, run, draft) in enumerate(lines):
            label = name(run.name) if draft is run.summary.drafts[0] else None
            _point(axes, place, draft.best, draft.best.gamma, index, draft is run.draft, label)
        ends = [value for _, _, draft in lines for value in _ends(draft.best) if value is not None]
        drafts = [draft.draft for _, _, draft in lines]
        lined_up(axes, drafts, runs[0].summary.policy, ends, "decode speedup over target alone (x)")
    return figure


def _ends(row: GammaResult | CategoryResult | PredictedGamma) -> Ends:
    return row.speedup, row.speedup_low, row.speedup_high


def _values(row: GammaResult | CategoryResult | PredictedGamma) -> list[float]:
    predicted = None if isinstance(row, PredictedGamma) else row.predicted_speedup
    return [value for value in (*_ends(row), predicted) if value is not None]


_DRAWN: Mapping[str, Callable[[Summary], Figure]] = {
    "speedup": draw_speedup,
    "survival": draw_survival,
    "round_time": draw_round_time,
    "categories": draw_categories,
    "loads": draw_loads,
}
