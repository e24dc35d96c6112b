"""What `replay` and `workload` print."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.report.layout import Block, Column, fit, note, readable, table, warnings

if TYPE_CHECKING:  # replays take numpy, and a profile of prompts does without
    from specbench.analysis.replayed import BestPair, ReplayDraft, Replayed
    from specbench.workload import Workload, WorkloadProfile


def replay_tables(found: Replayed) -> list[RenderableType]:
    """What `replay` prints: acceptance by gamma for each draft, and tokens per round by category."""
    parts: list[RenderableType] = [Block(partial(_replayed, draft)) for draft in found.drafts]
    return [*parts, Block(partial(warnings, found.warnings))] if found.warnings else parts


def _replayed(draft: ReplayDraft, width: int, plain: bool) -> Iterator[RenderableType]:
    rows = draft.gammas
    alpha = (
        text.UNKNOWN if draft.alpha is None else f"{draft.alpha:.3f} {text.interval(draft.alpha_low, draft.alpha_high)}"
    )
    at = f", drafting stops below confidence {draft.cutoff:g}" if draft.cutoff else ""
    yield Text(f"\n{readable(draft.draft, plain)}: acceptance at a position, alpha, {alpha}{at}")
    lines = tuple(text.sparkline(row.survival, ascii_only=plain) for row in rows)
    predicted = Column("speedup", "predicted\nspeedup", tuple(text.speedup(row.predicted_speedup) for row in rows))
    columns = [
        Column("gamma", "gamma", tuple(str(row.gamma) for row in rows)),
        Column("tau", "tokens per\nround, tau", tuple(text.digits(row.tokens_per_round) for row in rows)),
        *([predicted] if any(row.predicted_speedup is not None for row in rows) else []),
        Column("rounds", "rounds", tuple(f"{row.rounds:,.0f}" for row in rows), 3),
        Column("accepted", "accepted", tuple(f"{row.accepted:,.0f}" for row in rows), 2),
        Column("drafted", "drafted\n(at most)", tuple(f"{row.drafted_high:,.0f}" for row in rows), 1),
        Column("survival", "survival", lines, 4, left=True),
    ]
    yield table(fit(columns, width), plain)
    words = f"Replayed, not run: {text.count(draft.texts, 'text')} of the target alone, {draft.tokens:,} tokens."
    if predicted in columns:
        words += " Predicted from the times of the models alone, nothing of a round outside them."
    if draft.cutoff:
        words += " Drafted tokens are an upper bound: off the text the cut-off may stop the draft sooner."
    yield note(words, width, plain)
    if draft.best is not None:
        yield from _best(draft.best, width, plain)
    names = list(draft.categories)
    if len(names) > 1:
        shown = [Column("category", "tau of", tuple(readable(name, plain) for name in names), left=True)]
        for index, row in enumerate(rows):
            cells = tuple(text.digits(draft.categories[name][index].tokens_per_round) for name in names)
            shown.append(Column(f"gamma {row.gamma}", f"gamma\n{row.gamma}", cells, index + 1))
        yield Text("")
        yield table(fit(shown, width), plain)


def _best(best: BestPair, width: int, plain: bool) -> Iterator[RenderableType]:
    """The pair predicted fastest, and what each cut-off gives at its best gamma."""
    rows = best.rows
    columns = [
        Column("cutoff", "cut-off", tuple(f"{row.cutoff:.2f}" for row in rows)),
        Column("gamma", "best\ngamma", tuple(str(row.gamma) for row in rows)),
        Column("tau", "tokens per\nround, tau", tuple(text.digits(row.tokens_per_round) for row in rows)),
        Column("drafted", "drafted\n(at most)", tuple(f"{row.drafted_high:,.0f}" for row in rows), 1),
        Column("speedup", "predicted\nspeedup", tuple(text.speedup(row.speedup) for row in rows)),
    ]
    yield Text("")
    yield table(fit(columns, width), plain)
    found = text.estimate(best.speedup, best.speedup_low, best.speedup_high)
    yield note(
        f"Best: gamma {best.gamma} with cut-off {best.cutoff:g}, predicted {found} when chosen on other texts than "
        f"those reported; without a cut-off {text.speedup(best.without)}. Predicted, not measured: measure it with "
        f"--gamma {best.gamma} --cutoff {best.cutoff:g}.",
        width,
        plain,
    )


def workload_tables(workload: Workload, profile: WorkloadProfile) -> list[RenderableType]:
    """What `workload` prints: counts and lengths by category, then what was left out and what to distrust."""
    rows = profile.categories
    columns = [
        Column("prompts", "prompts", tuple(f"{row.prompts:,}" for row in rows)),
        Column("shortest", "shortest\n(characters)", tuple(f"{row.characters_min:,}" for row in rows), 2),
        Column("median", "median\n(characters)", tuple(f"{row.characters_median:,.0f}" for row in rows)),
        Column("longest", "longest\n(characters)", tuple(f"{row.characters_max:,}" for row in rows), 1),
        Column("turns", "mean\nturns", tuple(f"{row.mean_turns:.1f}" for row in rows), 3),
        Column("system", "with system\nmessage", tuple(text.percent(row.system_share) for row in rows), 4),
    ]

    shares = ("tools", "template_kwargs", "request")
    counts = [sum(round(getattr(row, f"{share}_share") * row.prompts) for row in rows) for share in shares]
    named = zip(("tools", "template arguments", "fields that only a server understands"), counts, strict=True)
    beside = ", ".join(f"{count:,} with {what}" for what, count in named if count)

    def build(width: int, plain: bool) -> Iterator[RenderableType]:
        yield note(f"{workload.source}: {text.count(profile.prompts, 'prompt')}", width, plain, style="")
        if beside:
            yield note(f"of these {beside}", width, plain, style="")
        yield note(f"sha256 of the content {workload.sha256}", width, plain)
        yield Text("")
        names = tuple(readable(row.category or "all", plain) for row in rows)
        yield table(fit([Column("category", "category", names, left=True), *columns], width), plain)
        for skipped in workload.skipped:
            yield note(f"left out: {skipped.name}, {skipped.reason}", width, plain, style="")
        yield from warnings(workload.cautions, width, plain)

    return [Block(build)]
