"""The brief of a run over recorded answers: acceptance with its intervals, what it rests on, and no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench import text
from specbench.analysis.recorded import RecordedAcceptance, RecordedDraft
from specbench.report.brief.brief import write_pages
from specbench.report.layout import Column
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
from specbench.report.templating import template
from specbench.store import StoredRun

Grid = tuple[Sequence[str], list[Sequence[str]]]


def write_acceptance_brief(stored: StoredRun, found: RecordedAcceptance, folder: Path | None = None) -> Path:
    """Write `brief.md` and `brief.html`; returns the path of the Markdown. Raises StoreError where they cannot be
    written."""
    page = template("acceptance.md.j2").render(_values(stored, found)).rstrip() + "\n"
    return write_pages(stored.folder if folder is None else folder, page, "Acceptance on recorded answers")


def _values(stored: StoredRun, found: RecordedAcceptance) -> dict[str, Any]:
    run = stored.run
    return {
        "source": text.code(Path(run.workload.source or "a log").name),
        "no_verdict": NO_VERDICT,
        "missing": text.escape(missing_words(found)),
        "basis": text.escape(basis_words(found)),
        "priced": any(draft.best_gamma is not None for draft in found.drafts),
        "costs": text.code(found.costs or ""),
        "glance": [_glance(draft) for draft in found.drafts],
        "doubts": _doubts(found),
        "drafts": [_section(draft) for draft in found.drafts],
        "provenance": _provenance(stored),
    }


def _glance(draft: RecordedDraft) -> list[str]:
    best = draft.best_gamma
    rows = {row.gamma: row for row in draft.gammas}
    row = rows[best] if best is not None else max(draft.gammas, key=lambda one: one.tokens_per_round.value or 0.0)
    cells = [text.code(draft.draft), str(row.gamma), text.digits(row.tokens_per_round.value)]
    cells += [limits(row.tokens_per_round), ranged(draft.alpha, 3)]
    return cells if best is None else [*cells, ranged(row.predicted_speedup)]


def _doubts(found: RecordedAcceptance) -> list[str]:
    facts = found.answers
    checked = facts.verified
    if checked is None:
        lines = [
            "That these answers are the target's: nobody looked (`--verify-answers 20` does).",
            "That they were drawn as the drafts are held against them: nobody looked.",
        ]
    elif checked.foreign:
        lines = ["**These answers are not the target's**: what is here holds for whatever wrote them."]
    else:
        how = f"{checked.identical:,} of them it wrote anew, word for word" if checked.identical is not None else ""
        if checked.excess_nats is not None:
            how = f"their tokens are {checked.excess_nats:+.3f} nats less likely, each, than its own would be"
        lines = [f"{checked.answers:,} answers were held against the target, and could be its own: {how}."]
    lines += [
        f"{text.escape(text.sentence(one.message))} {text.escape(text.sentence(one.hint))}" for one in found.warnings
    ]
    return [*lines, "What drafts do after their first wrong token is off the text: drafted counts are upper bounds."]


def _section(draft: RecordedDraft) -> dict[str, Any]:
    tables = [group_columns(draft.categories, "category"), group_columns(lengths(draft), "prompt of")]
    tables += [place_columns(draft)] if draft.places else []
    return {
        "name": text.code(draft.draft),
        "gammas": _grid(gamma_columns(draft.gammas, False)),
        "more": [_grid(columns) for columns in tables if len(columns[0].cells) > 1],
        "best": text.escape(best_words(draft)) if draft.best_gamma is not None else "",
    }


def _grid(columns: Sequence[Column]) -> Grid:
    """Header and rows for Markdown; a sparkline is for terminals."""
    kept = [column for column in columns if column.name != "survival"]
    header = [column.header.replace("\n", " ") for column in kept]
    return header, [tuple(map(text.escape, cells)) for cells in zip(*(column.cells for column in kept), strict=True)]


def _provenance(stored: StoredRun) -> list[tuple[str, str]]:
    run, origin = stored.run, stored.run.provenance
    pairs = (
        ("run", text.code(stored.folder.name)),
        ("status", text.escape(run.status)),
        ("target", text.code(run.config.target)),
        ("command", text.code(" ".join(origin.argv))),
        ("time", text.escape(", ".join(filter(None, (origin.started, origin.finished))))),
        ("machine", text.escape(origin.hardware.line or "")),
        ("versions", text.escape(", ".join(f"{name} {version}" for name, version in origin.versions.items()))),
        ("log sha256", text.code(run.workload.sha256 or "")),
    )
    return [(what, value) for what, value in pairs if value]
