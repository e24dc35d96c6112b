"""What benchmarks/growth.py found, as tables, as a figure and as the generated part of docs/growth.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.growth import ACTS, DRAFTS, GAMMAS, PROMPTS, Found, Size, Taken, of_act

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Less memory is not drawn: a process differs from itself by as much.
LEAST_MB = 0.1
DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- begin: python -m benchmarks growth -->\n", "<!-- end -->\n"
MARKERS = {"workload": "D", "read": "o", "replay": "^", "brief": "s", "bookkeeping": "v"}
DASHES = {"workload": ":", "read": "-", "replay": "--", "brief": "-", "bookkeeping": "-."}
WORDS = {
    "workload": "profile a prompt file",
    "read": "read a run",
    "replay": "replay 8 gammas",
    "brief": "write a brief",
    "bookkeeping": "bookkeeping of a sweep",
}
NOTE = (
    "CPU seconds of all threads, medians. What does not vary: 1,000 prompts, 4 gammas, 1 draft; the bookkeeping has a "
    "tenth of the prompts.\nThin line: linear in the prompts. Less than 0.1 MB is not drawn."
)
AXES = {
    "prompts": ("prompts", [Size(prompts=n) for n in PROMPTS]),
    "gammas": ("gammas (draft lengths)", [Size(gammas=n) for n in GAMMAS]),
    "drafts": ("drafts", [Size(drafts=n) for n in DRAFTS]),
}


def tables(found: Found) -> str:
    """Markdown: growth with prompts, of which the last tenfold counts. Intervals are Student's over the turns."""
    head = "| | CPU at the fewest, s | exponent, last tenfold | µs by further one | KB by further one |"
    return "\n".join([head, "| :-- | --: | --: | --: | --: |", *(_by_prompts(found, act) for act in ACTS)])


def _by_prompts(found: Found, act: str) -> str:
    steps = [of_act(act, size) for size in AXES["prompts"][1] if (act, of_act(act, size)) in found]
    units = [size.prompts if act == "workload" else size.trials for size in steps]
    turns = [found[act, size] for size in steps]
    least = f"{median(each.cpu_s for each in turns[0]):.3f} ({steps[0].prompts:,} prompts)"
    pairs, times, added = list(zip(*turns[-2:], strict=True)), units[-1] / units[-2], units[-1] - units[-2]
    exponent = _with_interval([math.log(b.cpu_s / a.cpu_s) / math.log(times) for a, b in pairs], 2)
    micros = _with_interval([(b.cpu_s - a.cpu_s) / added * 1e6 for a, b in pairs], 0)
    kilos = _with_interval([(b.mb - a.mb) / added * 1e3 for a, b in pairs], 2)
    unit = "prompt" if act == "workload" else "trial"
    return f"| {' | '.join([WORDS[act], least, exponent, f'{micros} a {unit}', f'{kilos} a {unit}'])} |"


def _with_interval(values: Sequence[float], digits: int) -> str:
    """The mean, and its 95 % interval where there are turns enough for one."""
    middle = mean(values)
    if len(values) < 2:
        return f"{middle:,.{digits}f}"
    from scipy.special import stdtrit

    reach = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return f"{middle:,.{digits}f} [{middle - reach:,.{digits}f}, {middle + reach:,.{digits}f}]"


def write_page(found: Found) -> None:
    """Draw the figure and put the tables between the marks in docs/growth.md."""
    draw_figure(found, DOCS / "figures")
    page = DOCS / "growth.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    turns = max(map(len, found.values()))
    head = f"{date.today().isoformat()}, {turns} turns, `python -m benchmarks growth`.\n"
    page.write_text(f"{before}{BEGIN}{head}\n{tables(found)}\n{END}{after}", encoding="utf-8")


def draw_figure(found: Found, folder: Path) -> None:
    """CPU seconds above, memory below, against prompts, gammas and drafts; SVG and PNG."""
    from specbench.report.canvas import save, sheet

    with sheet(NOTE, 8.6, 5.6) as figure:
        panels = figure.subplots(2, len(AXES), sharex="col", sharey="row")
        for column, (label, steps) in enumerate(AXES.values()):
            _lines(panels[0, column], found, steps, label, lambda taken: taken.cpu_s, 0.0)
            _lines(panels[1, column], found, steps, label, lambda taken: taken.mb, LEAST_MB)
            panels[1, column].set_xlabel(label)
        panels[0, 0].set_ylabel("CPU time (s)")
        panels[1, 0].set_ylabel("memory added (MB)")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(ACTS), handlelength=2.6)
    save(figure, folder, "growth")


def _lines(
    axes: Axes, found: Found, steps: Sequence[Size], label: str, part: Callable[[Taken], float], least: float
) -> None:
    from specbench.report.canvas import GREY, INK

    at = {"prompts": 0, "gammas (draft lengths)": 1, "drafts": 2}[label]
    for act in ACTS:
        every = [(own[at], found.get((act, own))) for own in (of_act(act, size) for size in steps)]
        known = [(x, y) for x, taken in every if taken and (y := median(map(part, taken))) > least]
        if len(known) < 2:
            continue
        look: Any = {
            "marker": MARKERS[act],
            "linestyle": DASHES[act],
            "color": INK,
            "linewidth": 1.1,
            "markersize": 5.5,
        }
        filled = INK if act in ("brief", "bookkeeping") else "white"
        axes.plot(*zip(*known, strict=True), label=WORDS[act], markerfacecolor=filled, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = (steps[0][0] // 10, *(size[0] for size in steps)) if at == 0 else tuple(size[at] for size in steps)
    axes.set_xticks(shown, [f"{each:,}" for each in shown])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    if at == 0:
        low, high = shown[0], shown[-1]
        bottom, top = axes.get_ylim()
        begin = math.sqrt(bottom * top * low / high) / 2
        axes.plot([low, high], [begin, begin * high / low], color=GREY, linewidth=0.6, zorder=1)
        axes.set_ylim(bottom, top)
