"""The decision brief: a first page for the person who decides, then the evidence for the one who checks.

Everything comes from the Summary; no model is loaded and no prompt text is shown. Markdown and HTML are one template in
two dialects.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from specbench import text
from specbench.acceptance.lossless import NEAR_TIE_NATS, near_tie_limit
from specbench.analysis.checked import checks
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.doubts import doubts
from specbench.analysis.facts import command, shell
from specbench.analysis.loads import best_by_concurrency
from specbench.analysis.server import NUMBERS
from specbench.analysis.steps import Cost, cost, next_steps
from specbench.drafters import parse_draft
from specbench.errors import StoreError
from specbench.records import Finding
from specbench.report import figures as drawn
from specbench.report.dialect import HTML, PLAIN, UNLINKED, Plain, entries, sentence_of, template
from specbench.report.filters import squash
from specbench.report.page import FIGURES_FOLDER, html_page, markdown
from specbench.report.settings.section import settings_of
from specbench.run_record import Provenance
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
class Story:
    """A run as it is explained: by the draft that its verdict is about, at its best gamma, which `row` is. `steps` is
    the cost of a round in target steps and `cost` its parts; None where they are not known."""

    s: Summary
    draft: DraftResult
    row: GammaResult
    cost: Cost | None
    steps: float | None

    @property
    def folder(self) -> str:
        """As it is typed in a command."""
        return shlex.quote(text.clean(self.s.run))

    @property
    def ended(self) -> int:
        return (self.row.accepted or 0) + (self.row.rounds or 0) - self.row.emitted

    @property
    def quotient(self) -> float:
        return (self.row.tokens_per_round or 0.0) / (self.steps or 1.0)

    @property
    def rounds_off(self) -> bool:
        """Whether the quotient of the digits shown is not the one shown."""
        shown = round(self.row.tokens_per_round or 0.0, 2) / round(self.steps or 1.0, 2)
        return f"{shown:.2f}" != f"{self.quotient:.2f}"


def story(summary: Summary) -> Story:
    """Of a Summary with at least one draft, as that of a stored run always has."""
    draft = summary.recommended
    assert draft is not None
    found = cost(draft, summary.policy)
    return Story(summary, draft, draft.best, found, draft.best.round_steps if found is None else found.steps)


def title_of(summary: Summary) -> str:
    return f"Should {text.clean(summary.target)} decode speculatively?"


def render_brief(summary: Summary) -> str:
    """The brief as Markdown; figures are referred to below `figures/`. The same run renders to the same text."""
    return markdown("brief.j2", values(summary))


def render_page(summary: Summary, figures: Path) -> str:
    """The same as one HTML file; `figures` is the folder that has `figures/`."""
    return html_page(figures, "brief.j2", values(summary), title_of(summary), description(summary))


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
    page = template(name, d).render(values(summary), **more)
    return "\n".join(line for line in map(squash, page.splitlines()) if line)


def write_brief(summary: Summary, folder: Path | None = None) -> Path:
    """Write `brief.md`, `brief.html` and `figures/` to `folder` (default: the run folder) and return the path of the
    Markdown. Raises StoreError where they cannot be written."""
    folder = Path(summary.run) if folder is None else folder
    with writing(folder):
        drawn.write_figures(summary, folder / FIGURES_FOLDER)
    return write_pages(folder, "brief.j2", values(summary), title_of(summary), description(summary))


def write_pages(folder: Path, name: str, found: Mapping[str, Any], title: str, description: str) -> Path:
    """A page of a template and its values as Markdown, whose path is returned, and beside it the same as one HTML file
    with the figures inside. Raises StoreError."""
    page, html = markdown(name, found), html_page(folder, name, found, title, description)
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


def values(s: Summary) -> dict[str, Any]:
    """What the templates need beside the Summary: rows, doubts in their order, and helpers bound to this run."""
    facts, settings = s.facts, settings_of(s)
    split = bool(settings and settings.routing)
    listed = doubts(s, engines=bool(settings and settings.engines), split=split)
    raised = [warning for warning in s.warnings if warning.code in BANNERS]
    shown = {"unfinished-run", *(warning.code for warning in raised)}
    limit = NEAR_TIE_NATS if facts.served else near_tie_limit(facts.precision)
    published, note = public_figures(s.drafts)
    return {
        "s": s,
        "banners": raised,
        "steps": next_steps(s),
        "doubts": in_order([warning for warning in s.warnings if warning.code not in shown], listed),
        "candidates": candidates(s),
        "t": story(s) if s.drafts else None,
        "concurrent": partial(best_by_concurrency, s.loads, policy=s.policy),
        "cost": partial(cost, policy=s.policy),
        "near_tie": limit,
        "figures": drawn.available(s),
        "numbers": NUMBERS,
        "server_settings": _settings(s),
        "settings": settings,
        "checks": checks(facts, text.clean(s.run)),
        "published": published,
        "sources": entries("sources"),
        "published_note": note,
        "provenance": provenance(s),
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


def public_figures(drafts: Sequence[DraftResult]) -> tuple[list[Any], str]:
    """Rows, this run's own drafts first, and how to read them; none for kinds of drafts of which no public figure
    states its setting."""
    rows: list[Any] = []
    notes = []
    for kind, known in entries("published").items():
        own = [draft for draft in drafts if _kind(draft.draft) == kind]
        if own:
            rows += [*own, *known["rows"]]
            notes.append(known["note"])
    return rows, " ".join(notes)


def _kind(spec: str) -> str | None:
    """A look-up with a model behind it is neither the one nor the other."""
    found = parse_draft(spec)
    if found.look_up:
        return "ngram" if found.kind is None else None
    return found.kind


def _settings(s: Summary) -> list[tuple[str, str]]:
    """(arm, what its server says of itself) pairs."""
    states = {} if s.server is None else s.server.settings
    return [
        (arm, ", ".join(f"{key} {value}" for key, value in asdict(state).items() if value is not None))
        for arm, state in states.items()
    ]


# What it is, its value, and whether that is code.
Recorded = tuple[str, str | None, bool]


def provenance(s: Summary) -> list[Recorded]:
    """Without what the run did not record."""
    facts, origin = s.facts, s.facts.provenance
    loads = (("start", origin.load_at_start), ("end", origin.load_at_end))
    stamps = (("started", origin.started), ("finished", origin.finished))
    models = (facts.target, *facts.drafts.values())
    spared = f"; {facts.spared:,} need not be run, since their gamma was ruled out" if facts.spared else ""
    rows: list[Recorded] = [
        ("run", Path(s.run).name, True),
        ("status", f"{facts.status}, {facts.done:,} of {facts.planned or facts.done:,} trials{spared}", False),
        ("time", ", ".join(f"{word} {stamp}" for word, stamp in stamps if stamp), False),
        ("command", command(facts), True),
        ("versions", _versions(origin), False),
        ("commit", origin.commit, True),
        ("machine", f"{s.hardware}; {origin.platform or ''}".rstrip("; "), False),
        ("load average", ", ".join(f"{load:.2f} at the {end}" for end, load in loads if load is not None), False),
        ("revisions", ", ".join(f"{model.spec} {model.revision}" for model in models if model.revision), False),
        ("workload sha256", facts.workload.sha256, True),
        ("fingerprint", facts.fingerprint, True),
    ]
    return [row for row in rows if row[1]]


def _versions(origin: Provenance) -> str:
    return ", ".join(f"{name} {version}" for name, version in origin.versions.items())


def write_acceptance_brief(stored: StoredRun, found: RecordedAcceptance, folder: Path | None = None) -> Path:
    """The brief of a run over recorded answers: acceptance with its intervals, what it rests on, and no verdict. Writes
    `brief.md` and `brief.html`; returns the path of the Markdown. Raises StoreError where they cannot be written."""
    folder = stored.folder if folder is None else folder

    run, origin = stored.run, stored.run.provenance
    rows: list[Recorded] = [
        ("run", stored.folder.name, True),
        ("status", run.status, False),
        ("target", run.config.target, True),
        ("command", shell(origin.argv), True),
        ("time", ", ".join(filter(None, (origin.started, origin.finished))), False),
        ("machine", origin.hardware.line, False),
        ("versions", _versions(origin), False),
        ("log sha256", run.workload.sha256, True),
    ]
    shown = {
        "found": found,
        "source": Path(run.workload.source or "a log").name,
        "glance": [(draft, _best_recorded(draft)) for draft in found.drafts],
        "provenance": [row for row in rows if row[1]],
    }
    words = sentence_of("no_verdict", PLAIN)
    return write_pages(folder, "acceptance.j2", shown, "Acceptance on recorded answers", words)


def _best_recorded(draft: RecordedDraft) -> RecordedGamma:
    """By costs, or else with the most tokens per round."""
    if draft.best_gamma is not None:
        return next(row for row in draft.gammas if row.gamma == draft.best_gamma)
    return max(draft.gammas, key=lambda row: row.tokens_per_round.value or 0.0)
