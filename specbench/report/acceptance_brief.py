"""The brief of a run over recorded answers: acceptance with its intervals, what it rests on, and no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from specbench import text
from specbench.analysis.recorded import RecordedAcceptance, RecordedDraft, RecordedGamma
from specbench.report.brief import markdown, write_pages
from specbench.report.dialect import HTML, MARKDOWN, Column, Plain
from specbench.report.page import Page, html_page
from specbench.report.recorded_tables import (
    NO_VERDICT,
    basis_words,
    best_words,
    gamma_columns,
    group_columns,
    lengths,
    limits,
    missing_words,
    place_columns,
    ranged,
)
from specbench.store import StoredRun


def write_acceptance_brief(stored: StoredRun, found: RecordedAcceptance, folder: Path | None = None) -> Path:
    """Write `brief.md` and `brief.html`; returns the path of the Markdown. Raises StoreError where they cannot be
    written."""
    folder = stored.folder if folder is None else folder
    values = _values(stored, found, HTML)
    html = html_page(Page(folder), "acceptance.j2", values, "Acceptance on recorded answers", NO_VERDICT)
    return write_pages(folder, markdown("acceptance.j2", _values(stored, found, MARKDOWN)), html)


def _values(stored: StoredRun, found: RecordedAcceptance, d: Plain) -> dict[str, Any]:
    return {
        "found": found,
        "source": d.code(Path(stored.run.workload.source or "a log").name),
        "no_verdict": NO_VERDICT,
        "missing": missing_words(found),
        "basis": basis_words(found),
        "glance": _glance(found.drafts, d),
        "drafts": [
            (each.draft, _tables(each, d), best_words(each) if each.best_gamma is not None else "")
            for each in found.drafts
        ],
        "provenance": _provenance(stored, d),
    }


def _glance(drafts: Sequence[RecordedDraft], d: Plain) -> list[Column]:
    """One line a draft, at its best gamma: by costs, or the one with the most tokens per round."""
    rows = [_best(draft) for draft in drafts]
    columns = [
        Column("draft", "draft", tuple(d.code(draft.draft) for draft in drafts), left=True),
        Column("gamma", "gamma", tuple(str(row.gamma) for row in rows)),
        Column("tau", "tokens per round, tau", tuple(text.digits(row.tokens_per_round.value) for row in rows)),
        Column("interval", "interval", tuple(limits(row.tokens_per_round) for row in rows)),
        Column("alpha", "alpha", tuple(ranged(draft.alpha, 3) for draft in drafts)),
    ]
    if any(draft.best_gamma is not None for draft in drafts):
        columns.append(Column("speedup", "predicted speedup", tuple(ranged(row.predicted_speedup) for row in rows)))
    return columns


def _best(draft: RecordedDraft) -> RecordedGamma:
    if draft.best_gamma is not None:
        return next(row for row in draft.gammas if row.gamma == draft.best_gamma)
    return max(draft.gammas, key=lambda row: row.tokens_per_round.value or 0.0)


def _tables(draft: RecordedDraft, d: Plain) -> list[list[Column]]:
    """Without what is for terminals, and without tables of one line."""
    more = [group_columns(draft.categories, "category"), group_columns(lengths(draft), "prompt of")]
    more += [place_columns(draft)] if draft.places else []
    tables = [gamma_columns(draft.gammas, False), *(columns for columns in more if len(columns[0].cells) > 1)]
    return [[_safe(column, d) for column in columns if column.name != "survival"] for columns in tables]


def _safe(column: Column, d: Plain) -> Column:
    return replace(column, cells=tuple(map(d.n, column.cells)), short=None)


def _provenance(stored: StoredRun, d: Plain) -> list[tuple[str, str]]:
    run, origin = stored.run, stored.run.provenance
    pairs = (
        ("run", d.code(stored.folder.name)),
        ("status", d.n(run.status)),
        ("target", d.code(run.config.target)),
        ("command", d.code(" ".join(origin.argv))),
        ("time", d.n(", ".join(filter(None, (origin.started, origin.finished))))),
        ("machine", d.n(origin.hardware.line or "")),
        ("versions", d.n(", ".join(f"{name} {version}" for name, version in origin.versions.items()))),
        ("log sha256", d.code(run.workload.sha256 or "")),
    )
    return [(what, value) for what, value in pairs if value]
