"""The decision brief: one page for the person who decides, then the evidence for the one who checks.

Everything comes from the run folder and its Summary; no model is loaded and no prompt text is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench import text
from specbench.analysis.contract import DraftResult, Summary
from specbench.analysis.facts import Facts, read_facts
from specbench.analysis.frame import main_trials
from specbench.errors import StoreError
from specbench.records import Policy
from specbench.report import readings, wording
from specbench.report.brief import commands, doubts, published, sections, steps
from specbench.report.brief.glance import glance, noise
from specbench.report.brief.sections import section
from specbench.report.brief.server import server_words
from specbench.report.economics import CURVE_NOTE
from specbench.report.settings.section import settings_of
from specbench.report.templating import Doubt, in_order, numbered, template
from specbench.store import StoredRun, replace_file


@dataclass(frozen=True, slots=True)
class Figure:
    """One embedded figure: file stem, heading, alt text, and a reading for each draft."""

    stem: str
    heading: str
    alt: str
    readings: tuple[str, ...]


def captions(summary: Summary, policy: Policy) -> list[Figure]:
    """One for each figure that the Summary has data for."""
    from specbench.report.figures import LOADS, SURVIVAL, available

    drafts = summary.drafts
    known = {
        "speedup": Figure(
            "speedup",
            "Speedup against gamma",
            "Speedup over the target alone, by gamma",
            _readings(drafts, lambda draft: readings.read_speedup(draft, policy)),
        ),
        SURVIVAL: Figure(
            SURVIVAL,
            "Survival by position",
            "Share of rounds whose first j drafted tokens were all accepted, by position j",
            _readings([draft for draft in drafts if any(row.survival for row in draft.gammas)], readings.read_survival),
        ),
        "round_time": Figure(
            "round_time",
            "Where a round's time goes",
            "Milliseconds per round for drafting, verifying and the rest, by gamma, beside one step of the target",
            _readings(
                [draft for draft in drafts if any(row.round_time for row in draft.gammas)], readings.read_round_time
            ),
        ),
        "categories": Figure(
            "categories",
            "Speedup by category",
            "Speedup over the target alone, by category",
            _readings([draft for draft in drafts if wording.by_speedup(draft)], readings.read_categories),
        ),
        LOADS: Figure(
            LOADS,
            "Speedup against concurrency",
            "Speedup over the target alone under the same load, by requests at a time",
            _readings(
                [
                    draft
                    for draft in drafts
                    if any(row.draft == draft.draft and row.concurrency for row in summary.loads)
                ],
                lambda draft: readings.read_loads(summary, draft, policy),
            ),
        ),
    }
    return [known[stem] for stem in available(summary)]


def _readings(drafts: Sequence[DraftResult], read: Callable[[DraftResult], str]) -> tuple[str, ...]:
    if len(drafts) == 1:
        return (read(drafts[0]),)
    return tuple(f"{text.code(draft.draft)}: {read(draft)}" for draft in drafts)


BRIEF_FILE = "brief.md"
PAGE_FILE = "brief.html"
FIGURES_FOLDER = "figures"


def render_brief(stored: StoredRun, summary: Summary) -> str:
    """The brief as Markdown; figures are referred to below `figures/`. The same run renders to the same text."""
    return _rendered(stored, summary, read_facts(stored))


def _rendered(stored: StoredRun, summary: Summary, facts: Facts) -> str:
    return with_doubts("brief.md.j2", _values(stored, summary, facts), doubts.doubts(summary, facts))


def with_doubts(name: str, values: Mapping[str, Any], every: list[Doubt]) -> str:
    """The page of a template with its marks numbered: rendered once to see which doubts the text refers to, and once
    more with these listed."""
    page = template(name)
    listed = in_order(every, page.render(values, doubts=[]))
    return numbered(page.render(values, doubts=listed), listed).rstrip() + "\n"


def write_brief(stored: StoredRun, summary: Summary, folder: Path | None = None) -> Path:
    """Write `brief.md`, `brief.html` and `figures/` to `folder` (default: the run folder) and return the path of the
    Markdown. Raises StoreError where they cannot be written."""
    from specbench.report.figures import write_figures

    folder = stored.folder if folder is None else folder
    facts = read_facts(stored)
    with writing(folder):
        write_figures(summary, facts.policy, folder / FIGURES_FOLDER, wording.circumstances(facts))
    title = f"Should {summary.target} decode speculatively?"
    return write_pages(folder, _rendered(stored, summary, facts), title)


def write_pages(folder: Path, page: str, title: str) -> Path:
    """The Markdown, and beside it the same as one HTML file with the figures inside."""
    from specbench.report.brief.page import to_html

    with writing(folder):
        html = to_html(page, folder, title)
        replace_file(folder / BRIEF_FILE, page.encode())
        replace_file(folder / PAGE_FILE, html.encode())
    return folder / BRIEF_FILE


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Makes the folder; what goes wrong there is said in one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StoreError(
            f"Cannot write the brief: {error.strerror}", where=str(folder), hint="Name another folder for it."
        ) from None


def _values(stored: StoredRun, summary: Summary, facts: Facts) -> dict[str, Any]:
    trials = main_trials(stored)
    glance_header, glance_rows = glance(summary, facts, trials)
    public_rows, public_note = published.public_figures(summary.drafts)
    return {
        "target": text.code(summary.target),
        "banner": wording.banner(facts),
        "mixed": bool(facts.policy.mix),
        "glance_header": glance_header,
        "glance_rows": glance_rows,
        "sections": [section(draft, facts, trials, summary) for draft in summary.drafts],
        "outside": wording.from_outside(summary.engine, facts),
        "server": None if summary.server is None else server_words(summary.server),
        "scope": wording.scope(facts, summary.engine, summary.hardware, summary.drafts),
        "carry": wording.carry(facts),
        "category_note": sections.category_note(summary.drafts, facts.policy),
        "gamma_words": sections.gamma_words(summary.drafts),
        "choice": wording.choice(summary, facts.policy),
        "curve_note": CURVE_NOTE,
        "noise": noise(summary),
        "figures": captions(summary, facts.policy),
        "figures_folder": FIGURES_FOLDER,
        "cautions": doubts.cautions(summary.warnings),
        "settings": settings_of(summary, facts),
        "steps": steps.next_steps(summary, facts, trials),
        "checks": commands.checks(facts, text.clean(stored.folder)),
        "public_header": published.HEADER,
        "public_rows": public_rows,
        "public_note": public_note,
        "provenance": provenance(stored, summary, facts),
    }


def provenance(stored: StoredRun, summary: Summary, facts: Facts) -> list[tuple[str, str]]:
    """(what, value) pairs; what the run did not record is left out."""
    origin = facts.provenance
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    loads = (("start", origin.load_at_start), ("end", origin.load_at_end))
    load = [f"{value:.2f} at the {end}" for end, value in loads if value is not None]
    stamps = (("started", origin.started), ("finished", origin.finished))
    times = [f"{word} {stamp}" for word, stamp in stamps if stamp]
    pairs = (
        ("run", text.code(stored.folder.name)),
        ("status", _status(facts)),
        ("time", text.escape(", ".join(times))),
        ("command", text.code(commands.command(facts)) if facts.argv else ""),
        ("versions", text.escape(versions)),
        ("commit", text.code(origin.commit) if origin.commit else ""),
        ("machine", text.escape(f"{summary.hardware}; {origin.platform or ''}".rstrip("; "))),
        ("load average", text.escape(", ".join(load))),
        ("revisions", text.escape(_revisions(facts))),
        ("workload sha256", text.code(facts.workload.sha256) if facts.workload.sha256 else ""),
        ("fingerprint", text.code(facts.fingerprint) if facts.fingerprint else ""),
    )
    return [(what, value) for what, value in pairs if value]


def _status(facts: Facts) -> str:
    spared = f"; {facts.spared:,} need not be run, since their gamma was ruled out" if facts.spared else ""
    return f"{facts.status}, {facts.done:,} of {facts.planned or facts.done:,} trials{spared}"


def _revisions(facts: Facts) -> str:
    models = (facts.target, *facts.drafts.values())
    return ", ".join(f"{model.spec} {model.revision}" for model in models if model.revision)
