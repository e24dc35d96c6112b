"""What benchmarks/calibration.py found: a file of every row, a figure, and a part of docs/calibration.md."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specbench.report.canvas import COLOURS, GREY, INK, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.calibration import Cell

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- begin: python -m benchmarks calibration -->\n", "<!-- end -->\n"
NOTE = (
    "Bars: 95 % Wilson intervals of the simulation. Grey: 93 to 97 %. Dashed: nominal.\n"
    "Wrong: GO where the truth is below 1.10x, or NO-GO where it is not."
)

Cells = Mapping[str, Sequence["Cell"]]
Methods = Mapping[int, Mapping[str, tuple[int, float]]]  # prompts -> method -> hits, median width


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.96
    share, bend = hits / of, z * z / of
    middle = (share + bend / 2) / (1 + bend)
    half = z / (1 + bend) * float(np.sqrt(share * (1 - share) / of + bend / (4 * of)))
    return max(0.0, middle - half), min(1.0, middle + half)


def print_tables(cells: Cells, methods: Methods, biased: Cells, compared: int) -> None:
    """All tables, as they stand in the documentation."""
    print(tables(cells, methods, biased, compared))


def write_page(cells: Cells, methods: Methods, biased: Cells, compared: int, seed: int) -> None:
    """Draw the figure, write every row beside it, and put the tables between the marks in docs/calibration.md."""
    draw_figure(cells, DOCS / "figures")
    (DOCS / "figures" / "calibration.csv").write_text(every_row(cells), encoding="utf-8")
    most = max(row.workloads for rows in biased.values() for row in rows)
    size = f"{most:,} workloads in each row at 1.10x and {compared:,} elsewhere"
    head = f"{date.today().isoformat()}, seed {seed}, {size}, `python -m benchmarks calibration`.\n"
    page = DOCS / "calibration.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    body = f"{head}\n{tables(cells, methods, biased, compared)}\n"
    page.write_text(before + BEGIN + body + END + after, encoding="utf-8")


HEAD = (
    "question",
    "true speedup",
    "prompts",
    "interval holds the truth",
    "wrong GO",
    "wrong NO-GO",
    "UNCLEAR",
    "width",
)


def every_row(cells: Cells) -> str:
    """CSV. Every share in percent, with its own 95 % interval; the width is the median one in percent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for name, rows in cells.items():
        for row in rows:
            shares = [share(count, row.workloads) for count in (row.covered, row.wrong_go, row.wrong_no_go)]
            unclear, width = 100 * row.unclear / row.workloads, 100 * row.width
            writer.writerow([name, f"{row.speedup:.2f}", row.n, *shares, f"{unclear:.0f}", f"{width:.1f}"])
    return text.getvalue()


def tables(cells: Cells, methods: Methods, biased: Cells, compared: int) -> str:
    """Markdown: over all true speedups, then methods, then an error that a whole arm shares."""
    head = "| | prompts | interval holds the truth | wrong GO, at most | wrong NO-GO, at most | UNCLEAR at each truth |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, rows in cells.items():
        sizes = sorted({row.n for row in rows})
        lines += [_over_truths(name, [row for row in rows if row.n == size]) for size in sizes]
    truths = ", ".join(
        f"{speedup:.2f}x" for speedup in sorted({row.speedup for rows in cells.values() for row in rows})
    )
    parts = [f"### Over true speedups of {truths}\n\n" + "\n".join(lines)]
    prompts = list(methods)
    lines = [
        f"| method | {' | '.join(f'{n} prompts: held | width' for n in prompts)} |",
        "|---" * (1 + 2 * len(prompts)) + "|",
    ]
    for method in methods[prompts[0]]:
        found = [methods[n][method] for n in prompts]
        lines.append(
            f"| {method} | " + " | ".join(f"{hits / compared:.1%} | {width:.1%}" for hits, width in found) + " |"
        )
    parts.append(f"### Methods, on the same {compared:,} workloads\n\n" + "\n".join(lines))
    lines = [f"| | {' | '.join(f'{n} prompts: held | wrong NO-GO | width' for n in prompts)} |"]
    lines.append("|---" * (1 + 3 * len(prompts)) + "|")
    for label, rows in biased.items():
        found_at = (f"{r.covered / r.workloads:.1%} | {r.wrong_no_go / r.workloads:.1%} | {r.width:.1%}" for r in rows)
        lines.append(f"| {label} | {' | '.join(found_at)} |")
    parts.append("### Machines, at a true speedup of 1.10x\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def share(hits: int, of: int) -> str:
    """Such as "94.6 % [93.5, 95.5]"."""
    low, high = wilson(hits, of)
    return f"{100 * hits / of:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _over_truths(name: str, rows: Sequence[Cell]) -> str:
    held = [100 * row.covered / row.workloads for row in rows]
    most = [
        max(100 * count / row.workloads for count, row in zip(counts, rows, strict=True))
        for counts in ([row.wrong_go for row in rows], [row.wrong_no_go for row in rows])
    ]
    unclear = " ".join(f"{100 * row.unclear / row.workloads:.0f}" for row in rows)
    wrong = " | ".join(f"{share:.1f}%" for share in most)
    return f"| {name} | {rows[0].n} | {min(held):.1f} to {max(held):.1f}% | {wrong} | {unclear}% |"


def draw_figure(cells: Cells, folder: Path) -> None:
    """Coverage above, wrong verdicts below, against the true speedup; a column for each question. PNG and SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Any: the stubs want every key as a literal type.
    style: Any = {"font.size": 9, "svg.hashsalt": "specbench", "svg.fonttype": "none", "axes.spines.top": False}
    style |= {"axes.spines.right": False, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.6, 5.6), layout="constrained", facecolor="white")
        panels = figure.subplots(2, len(cells), sharex=True, sharey="row")
        for column, (name, rows) in enumerate(cells.items()):
            above, below = panels[0, column], panels[1, column]
            above.set_title(name, loc="left", fontsize=9.5)
            _points(above, rows, [row.covered for row in rows])
            _points(below, rows, [row.wrong_go + row.wrong_no_go for row in rows])
            above.axhspan(93, 97, color="#ececec", zorder=0)
            above.axhline(95, color=INK, linewidth=0.8, linestyle="--", zorder=1)
            below.axhline(5, color=INK, linewidth=0.8, linestyle="--", zorder=1)
            below.set_xlabel("true speedup (x)")
            speedups = sorted({row.speedup for row in rows})
            below.set_xticks(range(len(speedups)), [f"{speedup:.2f}" for speedup in speedups])
        panels[0, 0].set_ylim(90, 100)
        panels[1, 0].set_ylim(bottom=-0.3)
        panels[0, 0].set_ylabel("95 % intervals that\nhold the truth (%)")
        panels[1, 0].set_ylabel("wrong verdicts (%)")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
        figure.supxlabel(NOTE, x=0.01, ha="left", fontsize=7.5, color=GREY)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "calibration.svg", metadata={"Date": None})
        figure.savefig(folder / "calibration.png", dpi=160)


def _points(axes: Axes, rows: Sequence[Cell], hits: Sequence[int]) -> None:
    """Shares in percent, one marker for each number of prompts. True speedups are evenly spaced, because they lie
    closest together where it matters."""
    sizes, speedups = sorted({row.n for row in rows}), sorted({row.speedup for row in rows})
    for index, n in enumerate(sizes):
        mine = [(row, hit) for row, hit in zip(rows, hits, strict=True) if row.n == n]
        x = [speedups.index(row.speedup) + 0.22 * (index - (len(sizes) - 1) / 2) for row, _ in mine]
        y = np.array([100 * hit / row.workloads for row, hit in mine])
        ends = 100 * np.array([wilson(hit, row.workloads) for row, hit in mine])
        axes.errorbar(
            x,
            y,
            yerr=np.maximum(0, [y - ends[:, 0], ends[:, 1] - y]),  # rounding, at 0 and 100 %
            label=f"{n} prompts",
            color=COLOURS[index],
            marker=MARKERS[index],
            markersize=5,
            markerfacecolor="white" if index == 1 else COLOURS[index],
            linestyle="none",
            capsize=2.5,
            linewidth=1.0,
        )
