"""How a figure looks and is saved, apart from what it shows: ink, markers, labels that do not collide, SVG and PNG.

Dark ink on white; markers and hatches carry the meaning, colour repeats it, so that a black-and-white print reads.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench import text
from specbench.analysis.contract import Summary
from specbench.errors import StoreError
from specbench.records import Policy
from specbench.report.dialect import MARKDOWN, sentence_of
from specbench.store import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1b1b"
GREY = "#6e6e6e"
GREYS = ("#5c5c5c", "#8c8c8c", "#b0b0b0")
COLOURS = ("#1f4e79", "#b5541c", "#3d7a3d", "#6b4c9a")
MARKERS = ("o", "s", "^", "D", "v", "P")

# Any: the stubs want every key as a literal type.
_STYLE: Any = {
    "svg.hashsalt": "specbench",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    # A name from a user's file may hold a dollar sign; it is no formula.
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_DPI = 160
# A value and its interval.
Ends = tuple[float, float | None, float | None]
_NAME_WIDTH = 30
# Characters that fit beside each other above the narrowest figure.
_LEGEND_WIDTH = 78
_CAPTION_WIDTH = 120


@contextmanager
def page(summary: Summary, *, width: float = 6.6, height: float = 3.9) -> Iterator[Figure]:
    """An empty figure, inches; on leaving it is captioned with what was measured."""
    with sheet(_caption(summary), width, height) as figure:
        yield figure


@contextmanager
def sheet(caption: str, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, inches, with a caption below."""
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=7, color=GREY)


def save(figure: Figure, folder: Path, stem: str) -> None:
    """Write `<stem>.svg` and `<stem>.png`. The SVG carries no date and no random ids, so that the same Summary gives
    the same file. Raises StoreError where the folder is a link: it may lead out of a run folder that others made."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if folder.is_symlink():
        raise StoreError("The folder of the figures is a link", where=str(folder), hint="Remove it.")
    svg, png = BytesIO(), BytesIO()
    with _styled():
        # savefig would draw everything twice for each format.
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})  # type: ignore[no-untyped-call]
        figure.set_layout_engine("none")  # it has been laid out, and would be once more
        figure.set_dpi(_DPI)
        FigureCanvasAgg(figure).print_png(png, pil_kwargs={"compress_level": 1})  # type: ignore[no-untyped-call]
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, drawn in (("svg", svg), ("png", png)):
        replace_file(folder / f"{stem}.{suffix}", drawn.getvalue())


@contextmanager
def _styled() -> Iterator[None]:
    """The house style, for drawing and for saving: matplotlib looks some of it up as late as that."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def name(label: str) -> str:
    """A name short enough for an axis."""
    line = text.clean(label)
    return line if len(line) <= _NAME_WIDTH else f"{line[: _NAME_WIDTH - 3]}..."


def legend_above(axes: Axes, columns: int) -> None:
    """A legend outside the data, where it can hide nothing; predictions come last."""
    entries = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1].endswith("predicted")
    )
    handles, labels = zip(*entries, strict=True)
    rows = -(-len(labels) // columns)  # a legend fills column by column
    if sum(max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)) > _LEGEND_WIDTH:
        columns = 1
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0, handletextpad=0.5
    )


def level_lines(axes: Axes, levels: Sequence[tuple[float, str, str]]) -> None:
    """Horizontal (height, label, dash) lines, named in the right margin; names that would touch are moved apart."""
    low, high = axes.get_ylim()
    apart = (high - low) * 0.18
    places: list[float] = []
    for level, _, _ in sorted(levels):
        places.append(level if not places else max(level, places[-1] + apart))
    for (level, label, dash), place in zip(sorted(levels), places, strict=True):
        axes.axhline(level, color=INK, linewidth=0.9, linestyle=dash, zorder=1)
        beside(axes, place, label, 8.5)


def levels(policy: Policy) -> list[tuple[float, str, str]]:
    """The two lines that decide, as `level_lines` draws them: break-even and the policy's minimum."""
    if policy.min_speedup == 1.0:
        return [(1.0, "break-even and\npolicy minimum", "-")]
    what = "policy minimum" if policy.metric == "decode" else "policy minimum\n(end to end)"
    return [(1.0, "break-even\n1.00x", "-"), (policy.min_speedup, f"{what}\n{text.asked(policy.min_speedup)}", "--")]


def lined_up(axes: Axes, names: Sequence[str], policy: Policy, speedups: Sequence[float], label: str) -> None:
    """Axes of one line a name, from the top down, with speedups to the right and the lines that decide."""
    axes.set_xlim(*padded([1.0, policy.min_speedup, *speedups]))
    axes.set_ylim(len(names) - 0.4, -0.6)
    for level, words, dash in levels(policy):
        axes.axvline(level, color=INK, linewidth=0.9, linestyle=dash, zorder=1, label=words.replace("\n", " "))
    axes.set_yticks(range(len(names)), [name(each) for each in names])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    legend_above(axes, 2)


def beside(axes: Axes, place: float, note: str, size: float = 8) -> None:
    """Words in the right margin, at that height."""
    at = axes.get_yaxis_transform()
    axes.annotate(note, (1.01, place), xycoords=at, va="center", fontsize=size, annotation_clip=False)


def thinned(places: Sequence[int], most: int = 12) -> list[int]:
    """At most `most` of the places, evenly chosen from the first, so that their labels do not touch."""
    return list(places[:: -(-len(places) // most)])


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Axis ends that leave `share` of the range free on both sides."""
    low, high = min(values), max(values)
    room = (high - low or 1.0) * share
    return low - room, high + room


def _caption(summary: Summary) -> str:
    """Two short lines: a long engine or machine must not widen the figure. It can stand alone."""
    facts = summary.facts
    load = f"batch {summary.batch_size}" if summary.server is None else f"requests {summary.server.load}"
    used = facts.workload.used
    prompts = None if used is None else text.count(used, "prompt")
    if summary.policy.mix:  # its own prompts alone are shown, which are fewer than were measured
        prompts = "weighed by a mix of traffic"
    sampling = sentence_of("sampling", MARKDOWN, facts.sampling)
    known = ", ".join(part for part in (facts.precision, sampling, prompts) if part)
    lines = (f"target {summary.target}; {summary.engine}", f"{summary.hardware}; {load}; {known}")
    return "\n".join(textwrap.shorten(text.clean(line), _CAPTION_WIDTH, placeholder="...") for line in lines)


def bars_mean(policy: Policy, drawn: bool) -> str:
    """What a bar is, behind an axis label; empty where none is drawn."""
    return f"; bars: {text.exactly(policy.confidence)} interval over prompts" if drawn else ""


def lengths(ends: Sequence[Ends]) -> list[list[float]]:
    """Error-bar lengths below and above each point, NaN (not drawn) without an interval. A cross-fitted value may
    lie outside its row's interval, and matplotlib takes no negative length."""
    below = [math.nan if low is None else max(0.0, value - low) for value, low, _ in ends]
    above = [math.nan if high is None else max(0.0, high - value) for value, _, high in ends]
    return [below, above]
