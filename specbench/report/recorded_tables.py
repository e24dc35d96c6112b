"""What drafts would have got on recorded answers, as tables: on a terminal, and in the acceptance brief."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.report.layout import Block, Column, fit, note, readable, table, warnings

if TYPE_CHECKING:
    from specbench.analysis.recorded import Estimate, Group, RecordedAcceptance, RecordedDraft, RecordedGamma

NO_VERDICT = "NO VERDICT: cost not measured."


def recorded_tables(found: RecordedAcceptance) -> list[RenderableType]:
    """Acceptance by gamma for each draft, then by category, length of the prompt and place in the answer."""
    parts: list[RenderableType] = [Block(partial(_draft, found, draft)) for draft in found.drafts]
    parts.append(Block(partial(_end, found)))
    return parts


def _draft(found: RecordedAcceptance, draft: RecordedDraft, width: int, plain: bool) -> Iterator[RenderableType]:
    alpha = "" if draft.alpha.value is None else f"acceptance at a place, alpha, {ranged(draft.alpha, 3)}"
    yield Text(f"\n{readable(draft.draft, plain)}: {alpha or 'acceptance by draft length'}")
    yield table(fit(gamma_columns(draft.gammas, plain), width), plain)
    for columns in (group_columns(draft.categories, "category"), group_columns(lengths(draft), "prompt of")):
        if len(columns[0].cells) > 1:
            yield Text("")
            yield table(fit(columns, width), plain)
    if len(draft.places) > 1:
        yield Text("")
        yield table(fit(place_columns(draft), width), plain)
    yield note(best_words(draft), width, plain) if draft.best_gamma is not None else Text("")


def _end(found: RecordedAcceptance, width: int, plain: bool) -> Iterator[RenderableType]:
    yield note(basis_words(found), width, plain)
    yield note(f"{NO_VERDICT} {missing_words(found)}", width, plain, style="bold")
    if found.warnings:
        yield from warnings(found.warnings, width, plain)


def gamma_columns(rows: Sequence[RecordedGamma], plain: bool) -> list[Column]:
    """One row a gamma."""
    columns = [
        Column("gamma", "gamma", tuple(str(row.gamma) for row in rows)),
        Column("tau", "tokens per\nround, tau", tuple(text.digits(row.tokens_per_round.value) for row in rows)),
        Column("interval", "interval", tuple(limits(row.tokens_per_round) for row in rows), 1),
        Column("rounds", "rounds", tuple(f"{row.rounds:,.0f}" for row in rows), 4),
        Column("accepted", "accepted", tuple(f"{row.accepted:,.0f}" for row in rows), 3),
        Column("drafted", "drafted\n(at most)", tuple(f"{row.drafted_high:,.0f}" for row in rows), 2),
        Column("survival", "survival", tuple(text.sparkline(r.survival, ascii_only=plain) for r in rows), 5, left=True),
    ]
    if any(row.predicted_speedup.value is not None for row in rows):
        cells = tuple(
            text.UNKNOWN if row.predicted_speedup.value is None else f"{row.predicted_speedup.value:.2f}x"
            for row in rows
        )
        columns.insert(3, Column("speedup", "predicted\nspeedup", cells))
    return columns


def group_columns(groups: Sequence[Group], what: str) -> list[Column]:
    """One row a group, tau at each gamma."""
    columns = [
        Column("category", f"tau, by\n{what}", tuple(group.name for group in groups), left=True),
        Column("answers", "answers", tuple(f"{group.answers:,}" for group in groups)),
    ]
    for index, row in enumerate(groups[0].gammas if groups else ()):
        cells = tuple(ranged(group.gammas[index].tokens_per_round) for group in groups)
        short = tuple(text.digits(group.gammas[index].tokens_per_round.value) for group in groups)
        columns.append(Column(f"gamma {row.gamma}", f"gamma\n{row.gamma}", cells, index + 1, (f"{row.gamma}", short)))
    return columns


def place_columns(draft: RecordedDraft) -> list[Column]:
    """One row a stretch of the answers."""
    edges = [place.begin for place in draft.places]
    names = [f"{a:,} to {b - 1:,}" for a, b in pairwise(edges)] + [f"{edges[-1]:,} and on"]
    return [
        Column("category", "places in the answer,\nin tokens", tuple(names), left=True),
        Column("places", "places", tuple(f"{place.places:,}" for place in draft.places)),
        Column("first", "first draft\naccepted", tuple(ranged(place.accepted) for place in draft.places)),
    ]


def lengths(draft: RecordedDraft) -> list[Group]:
    """The groups by length of the prompt, named in tokens."""
    edges = [int(group.name) for group in draft.prompt_lengths]
    return [
        replace(
            group,
            name=f"{begin:,} tokens and more" if begin else f"fewer than {edges[1]:,} tokens" if edges[1:] else "any",
        )
        for group, begin in zip(draft.prompt_lengths, edges, strict=True)
    ]


def limits(one: Estimate) -> str:
    return text.interval(one.low, one.high)


def ranged(one: Estimate, digits: int = 2) -> str:
    """`2.31 [2.20, 2.42]`; the number alone where there is no interval."""
    if one.value is None:
        return text.UNKNOWN
    if one.low is None or one.high is None:
        return f"{one.value:.{digits}f}"
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def best_words(draft: RecordedDraft) -> str:
    """Which gamma the given costs favour, and which cut-off with it."""
    rows = {row.gamma: row.predicted_speedup for row in draft.gammas}
    best = draft.best_gamma
    assert best is not None
    one = rows[best]
    words = f"Best by the costs given: gamma {best}, predicted {text.estimate(one.value or 0.0, one.low, one.high)}."
    if draft.best is not None:
        pair = draft.best
        found = text.estimate(pair.speedup, pair.speedup_low, pair.speedup_high)
        words += f" With a cut-off: gamma {pair.gamma} with cut-off {pair.cutoff:g}, predicted {found}."
    return f"{words} Predicted, not measured."


def basis_words(found: RecordedAcceptance) -> str:
    """Whose answers these are and how many."""
    facts = found.answers
    sources = text.join(facts.sources) or "a log"
    scored = max(draft.answers for draft in found.drafts)
    models = f", written by {text.join(facts.models)} as the log says" if facts.models else ""
    return (
        f"Replayed on {text.count(scored, 'recorded answer')} ({sources}){models}: "
        f"{max(draft.tokens for draft in found.drafts):,} tokens, not generated here. Intervals at "
        f"{found.confidence:.0%} over {facts.conversations:,} conversations, which are resampled whole."
    )


def missing_words(found: RecordedAcceptance) -> str:
    """What it takes to say whether speculation pays."""
    if found.costs is None:
        return "Time a few prompts with specbench sweep, or give --costs PROBE for a prediction."
    return "The speedups here are predicted from a probe: measure one with specbench sweep."
