"""The decision brief: a first page for the person who decides, then the evidence for the one who checks.

Everything comes from the Summary; no model is loaded and no prompt text is shown. Markdown and HTML are one template in
two dialects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from specbench import text
from specbench.acceptance.lossless import NEAR_TIE_NATS, near_tie_limit
from specbench.analysis.checked import checks
from specbench.analysis.contract import DraftResult, Summary
from specbench.analysis.doubts import doubts
from specbench.analysis.facts import command
from specbench.analysis.loads import best_by_concurrency
from specbench.analysis.server import NUMBERS
from specbench.analysis.steps import cost, next_steps
from specbench.drafters import parse_draft
from specbench.errors import StoreError
from specbench.records import Finding
from specbench.report.dialect import (
    HTML,
    MARKDOWN,
    PLAIN,
    UNLINKED,
    Plain,
    columns,
    entries,
    say,
    sentence_of,
    squash,
    template,
)
from specbench.report.page import FIGURES_FOLDER, Page, html_page, markdown
from specbench.report.settings.section import settings_of
from specbench.store import StoredRun, replace_file

if TYPE_CHECKING:
    from specbench.analysis.recorded import RecordedAcceptance, RecordedDraft, RecordedGamma

BRIEF_FILE = "brief.md"
PAGE_FILE = "brief.html"

# Warnings that the timing itself is in doubt, or too little: said in a banner under the verdict.
BANNERS = ("slow-baseline", "unsynchronised-clock", "baseline-speculates", "noise-floor", "few-prompts")

# Warnings that weigh less than few prompts do, or are about predictions alone.
_LATE = (
    "below-noise-floor",
    "busy-machine",
    "torn-line",
    "time-budget",
    "prediction-unjudged",
    "rounds-not-probed",
    "passes-not-probed",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One embedded figure of the evidence: file stem, heading, alternative text, and the drafts that it shows."""

    stem: str
    heading: str
    alt: str
    drafts: tuple[DraftResult, ...]


def title_of(summary: Summary) -> str:
    return f"Should {text.clean(summary.target)} decode speculatively?"


def render_brief(summary: Summary) -> str:
    """The brief as Markdown; figures are referred to below `figures/`. The same run renders to the same text."""
    return markdown("brief.j2", values(summary, MARKDOWN))


def render_page(summary: Summary, figures: Path) -> str:
    """The same as one HTML file; `figures` is the folder that has `figures/`."""
    page = Page(figures)
    return html_page(page, "brief.j2", values(summary, HTML), title_of(summary), description(summary))


def description(summary: Summary) -> str:
    """The verdict in a line, without markup."""
    if summary.headline is None:
        return ""
    said = (sentence_of(name, HTML, summary) for name in ("headline", "estimate_of"))
    return " ".join(Markup(words).striptags() for words in said)  # noqa: S704  # escaped, and stripped of all tags


def in_short(summary: Summary) -> str:
    """For a terminal: the verdict, and in three lines the estimate, what to distrust most, and what to do next."""
    return _short("short.j2", summary, PLAIN)


def for_github(summary: Summary, folder: Path) -> str:
    """For a pull request: five lines and a picture, which lies in the folder of the brief."""
    picture = (folder / FIGURES_FOLDER / "speedup.png").as_posix()
    return _short("github.j2", summary, UNLINKED, picture=picture)


def _short(name: str, summary: Summary, d: Plain, **more: Any) -> str:
    page = template(name, d).render(values(summary, d), **more)
    return "\n".join(line for line in map(squash, page.splitlines()) if line)


def write_brief(summary: Summary, folder: Path | None = None) -> Path:
    """Write `brief.md`, `brief.html` and `figures/` to `folder` (default: the run folder) and return the path of the
    Markdown. Raises StoreError where they cannot be written."""
    from specbench.report.figures import write_figures

    folder = Path(summary.run) if folder is None else folder
    with writing(folder):
        write_figures(summary, folder / FIGURES_FOLDER)
    return write_pages(folder, render_brief(summary), render_page(summary, folder))


def write_pages(folder: Path, page: str, html: str) -> Path:
    """The Markdown, and beside it the same as one HTML file with the figures inside."""
    with writing(folder):
        replace_file(folder / BRIEF_FILE, page.encode())
        replace_file(folder / PAGE_FILE, html.encode())
    return folder / BRIEF_FILE


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StoreError(
            f"Cannot write the brief: {error.strerror}", where=str(folder), hint="Name another folder for it."
        ) from None


def values(s: Summary, d: Plain) -> dict[str, Any]:
    """What the template needs beside the Summary: tables, doubts in their order, and helpers bound to this run."""
    draft, facts = s.recommended, s.facts
    settings = settings_of(s)
    split = bool(settings and settings.routing)
    listed = doubts(s, engines=bool(settings and settings.engines), split=split)
    raised = [warning for warning in s.warnings if warning.code in BANNERS]
    shown = {"unfinished-run", *(warning.code for warning in raised)}
    limit = NEAR_TIE_NATS if facts.served else near_tie_limit(facts.precision)
    published, note = public_figures(s.drafts)
    return {
        "s": s,
        "d": d,
        "title": f"Should {s.target} decode speculatively?",
        "banners": raised,
        "steps": next_steps(s),
        "doubts": in_order([warning for warning in s.warnings if warning.code not in shown], listed),
        "candidates": candidates(s),
        "glance": columns(d, "glance", ("off", "on"), s=s, draft=draft) if draft else [],
        "why": why(s, d),
        "scope": scope(s, d),
        "concurrent": partial(best_by_concurrency, s.loads, policy=s.policy),
        "cost": partial(cost, policy=s.policy),
        "near_tie": limit,
        "figures": figures_of(s),
        "numbers": NUMBERS,
        "server_settings": _settings(s, d),
        "settings": settings,
        "checks": checks(facts, text.clean(s.run)),
        "published": published,
        "published_note": note,
        "provenance": provenance(s, d),
    }


def in_order(warnings: Sequence[Finding], listed: Sequence[Finding]) -> list[Finding]:
    """The weightiest first: warnings of the run, that of a server which drafted nothing before all; few prompts before
    the late ones."""
    places = {"not-speculating": 0, "few-prompts": 2} | dict.fromkeys(_LATE, 3)
    placed = [(places.get(each.code, 1), each) for each in warnings]
    placed += [(places.get(each.code, 4), each) for each in listed]
    return [each for _, each in sorted(placed, key=lambda pair: pair[0])]


def candidates(summary: Summary) -> list[dict[str, Any]]:
    """Every draft at its own best gamma, first the chosen one, whose estimate (`head`) is that of the verdict."""
    chosen, choice = summary.recommended, summary.choice
    others = sorted((draft for draft in summary.drafts if draft is not chosen), key=lambda draft: -draft.speedup)
    rows: list[dict[str, Any]] = [{"draft": other, "head": other, "gamma": other.best_gamma} for other in others]
    if chosen is not None:
        gamma = chosen.best_gamma if choice is None else choice.gamma
        rows.insert(0, {"draft": chosen, "head": summary.headline, "gamma": gamma})
    return rows


def why(summary: Summary, d: Plain) -> str:
    """Guesses, tokens per round and the time of a round, and what these make together, as `explain` has it."""
    from specbench.report.explain.story import gain, story

    return gain(story(summary), d) if summary.drafts else ""


def scope(s: Summary, d: Plain) -> list[str]:
    """What was measured, one line a circumstance; for the evidence, where each model has its size."""
    return [line for line in map(squash, say(d).scope(s).split("\n")) if line]


def public_figures(drafts: Sequence[DraftResult]) -> tuple[list[dict[str, Any]], str]:
    """Rows, this run's own first, and how to read them; none for kinds of drafts of which no public figure states its
    setting."""
    rows: list[dict[str, Any]] = []
    notes = []
    for kind, known in entries("published").items():
        own = [draft for draft in drafts if _kind(draft.draft) == kind]
        if own:
            rows += [
                {
                    "source": "this run",
                    "address": "",
                    "draft": draft.draft,
                    "gamma": row.gamma,
                    "tau": row.tokens_per_round,
                }
                | {"alpha": draft.alpha, "speedup": row.speedup}
                for draft in own
                for row in (draft.best,)
            ]
            blank = {"draft": "", "tau": None, "alpha": None}
            rows += [blank | each | {"address": entries("sources")[each["source"]]} for each in known["rows"]]
            notes.append(known["note"])
    return rows, " ".join(notes)


def _kind(spec: str) -> str | None:
    """A look-up with a model behind it is neither the one nor the other."""
    found = parse_draft(spec)
    if found.look_up:
        return "ngram" if found.kind is None else None
    return found.kind


def figures_of(summary: Summary) -> list[Figure]:
    """Of the evidence, those that the Summary has data for; that of speedup is on the first page."""
    from specbench.report.figures import available

    drafts = summary.drafts
    concurrent = {row.draft for row in summary.loads if row.concurrency}
    known = {
        "survival": (
            "Survival by position",
            "Share of rounds whose first j drafted tokens were all accepted, by position j",
            [draft for draft in drafts if any(row.survival for row in draft.gammas)],
        ),
        "round_time": (
            "Where a round's time goes",
            "Milliseconds per round for drafting, verifying and the rest, by gamma, beside one step of the target",
            [draft for draft in drafts if any(row.round_time for row in draft.gammas)],
        ),
        "categories": (
            "Speedup by category",
            "Speedup over the target alone, by category",
            [draft for draft in drafts if draft.by_speedup],
        ),
        "loads": (
            "Speedup against concurrency",
            "Speedup over the target alone under the same load, by requests at a time",
            [draft for draft in drafts if draft.draft in concurrent],
        ),
    }
    found = [(stem, known[stem]) for stem in available(summary) if stem in known]
    return [Figure(stem, heading, alt, tuple(shown)) for stem, (heading, alt, shown) in found]


def _settings(s: Summary, d: Plain) -> list[tuple[str, str]]:
    """(arm, what its server says of itself) pairs."""
    states = {} if s.server is None else s.server.settings
    return [
        (d.n(arm), d.n(", ".join(f"{key} {value}" for key, value in asdict(state).items() if value is not None)))
        for arm, state in states.items()
    ]


def provenance(s: Summary, d: Plain) -> list[tuple[str, str]]:
    """(what, value) pairs; what the run did not record is left out."""
    facts, origin = s.facts, s.facts.provenance
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    loads = (("start", origin.load_at_start), ("end", origin.load_at_end))
    load = [f"{value:.2f} at the {end}" for end, value in loads if value is not None]
    stamps = (("started", origin.started), ("finished", origin.finished))
    times = [f"{word} {stamp}" for word, stamp in stamps if stamp]
    models = (facts.target, *facts.drafts.values())
    revisions = ", ".join(f"{model.spec} {model.revision}" for model in models if model.revision)
    pairs = (
        ("run", d.code(Path(s.run).name)),
        ("status", _status(s)),
        ("time", d.n(", ".join(times))),
        ("command", d.code(command(facts)) if facts.argv else ""),
        ("versions", d.n(versions)),
        ("commit", d.code(origin.commit) if origin.commit else ""),
        ("machine", d.n(f"{s.hardware}; {origin.platform or ''}".rstrip("; "))),
        ("load average", d.n(", ".join(load))),
        ("revisions", d.n(revisions)),
        ("workload sha256", d.code(facts.workload.sha256) if facts.workload.sha256 else ""),
        ("fingerprint", d.code(facts.fingerprint) if facts.fingerprint else ""),
    )
    return [(what, value) for what, value in pairs if value]


def _status(s: Summary) -> str:
    facts = s.facts
    spared = f"; {facts.spared:,} need not be run, since their gamma was ruled out" if facts.spared else ""
    return f"{facts.status}, {facts.done:,} of {facts.planned or facts.done:,} trials{spared}"


def write_acceptance_brief(stored: StoredRun, found: RecordedAcceptance, folder: Path | None = None) -> Path:
    """The brief of a run over recorded answers: acceptance with its intervals, what it rests on, and no verdict. Writes
    `brief.md` and `brief.html`; returns the path of the Markdown. Raises StoreError where they cannot be written."""
    folder = stored.folder if folder is None else folder

    def values(d: Plain) -> dict[str, Any]:
        source = d.code(Path(stored.run.workload.source or "a log").name)
        best = [(draft, _best_recorded(draft)) for draft in found.drafts]
        return {"found": found, "source": source, "glance": best, "provenance": _recorded_provenance(stored, d)}

    words = sentence_of("no_verdict", PLAIN)
    html = html_page(Page(folder), "acceptance.j2", values(HTML), "Acceptance on recorded answers", words)
    return write_pages(folder, markdown("acceptance.j2", values(MARKDOWN)), html)


def _best_recorded(draft: RecordedDraft) -> RecordedGamma:
    """By costs, or else with the most tokens per round."""
    if draft.best_gamma is not None:
        return next(row for row in draft.gammas if row.gamma == draft.best_gamma)
    return max(draft.gammas, key=lambda row: row.tokens_per_round.value or 0.0)


def _recorded_provenance(stored: StoredRun, d: Plain) -> list[tuple[str, str]]:
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
