"""The decision brief: one page for the person who decides, then the evidence for the one who checks.

Everything comes from the run folder and its Summary; no model is loaded and no prompt text is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from specbench.errors import StoreError
from specbench.records import Policy, Trial
from specbench.report import readings, steps, text, trust, wording
from specbench.report.contract import DraftResult, GammaResult, Summary
from specbench.report.economics import BATCH_HEADER, CURVE_NOTE, Economics, economics
from specbench.report.facts import Facts, read_facts
from specbench.report.frame import main_trials
from specbench.report.load_tables import load_note, load_rows, load_shown
from specbench.report.served_words import ServerWords, server_words
from specbench.store import StoredRun

BRIEF_FILE = "brief.md"
FIGURES_FOLDER = "figures"


@dataclass(frozen=True, slots=True)
class Figure:
    """One embedded figure: file stem, heading, alt text, and a reading for each draft."""

    stem: str
    heading: str
    alt: str
    readings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One draft in words and rows, ready for the template."""

    draft: DraftResult
    title: str
    verdict: str
    policy: str
    category_header: tuple[str, ...]
    category_rows: tuple[tuple[str, ...], ...]
    gamma_header: tuple[str, ...]
    gamma_rows: tuple[tuple[str, ...], ...]
    gamma_note: str
    best_note: str | None
    load_header: tuple[str, ...]
    load_rows: tuple[tuple[str, ...], ...]
    load_note: str
    cost: tuple[str, ...]
    economics: Economics
    end_to_end: str
    lossless: str


def render_brief(stored: StoredRun, summary: Summary) -> str:
    """The brief as Markdown; figures are referred to below `figures/`. The same run renders to the same text."""
    facts = read_facts(stored)
    trials = main_trials(stored)
    environment = Environment(
        loader=PackageLoader("specbench.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; names are escaped where they enter a sentence
    )
    environment.filters["cell"] = text.cell
    return environment.get_template("brief.md.j2").render(
        target=text.code(summary.target),
        banner=wording.banner(facts),
        sections=[_section(draft, facts, trials, summary) for draft in summary.drafts],
        outside=wording.from_outside(summary.engine, facts.loads[0]) if facts.served else "",
        server=_server(summary),
        scope=wording.scope(facts, summary.engine, summary.hardware, summary.drafts),
        carry=wording.carry(facts.served),
        category_note=wording.category_note(summary.drafts, facts.policy),
        gamma_words=wording.gamma_words(summary.drafts),
        choice=wording.choice(summary, facts.policy),
        curve_note=CURVE_NOTE,
        batch_header=BATCH_HEADER,
        noise=trust.noise(summary),
        figures=_figures(summary, facts.policy),
        figures_folder=FIGURES_FOLDER,
        doubts=trust.doubts(summary, facts),
        cautions=trust.cautions(summary.warnings),
        steps=steps.next_steps(summary, facts, trials),
        checks=steps.checks(facts, text.clean(stored.folder)),
        provenance=_provenance(stored, summary, facts),
    )


def write_brief(stored: StoredRun, summary: Summary, folder: Path | None = None) -> Path:
    """Write `brief.md` and `figures/` to `folder` (default: the run folder) and return the path of the brief.

    Raises StoreError where it cannot be written.
    """
    from specbench.report.figures import write_figures

    folder = stored.folder if folder is None else folder
    page = render_brief(stored, summary)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        facts = read_facts(stored)
        write_figures(summary, facts.policy, folder / FIGURES_FOLDER, wording.circumstances(facts))
        (folder / BRIEF_FILE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"Cannot write the brief: {error.strerror}", where=str(folder), cure="Name another folder for it."
        ) from None
    return folder / BRIEF_FILE


def _server(summary: Summary) -> ServerWords | None:
    return None if summary.server is None else server_words(summary.server)


def _section(draft: DraftResult, facts: Facts, trials: list[Trial], summary: Summary) -> Section:
    loads = load_rows(summary, draft, facts.policy) if load_shown(summary) else ((), ())
    header, rows = _gamma_table(draft, facts.policy)
    categories = _category_table(draft, facts.policy)
    return Section(
        draft=draft,
        title=text.code(draft.draft),
        verdict=wording.verdict(draft, facts.policy, facts.batch_size),
        policy=wording.policy_line(draft, facts.policy),
        category_header=categories[0],
        category_rows=categories[1],
        gamma_header=header,
        gamma_rows=rows,
        gamma_note=wording.gamma_note(draft),
        best_note=wording.best_note(draft, facts.policy),
        load_header=loads[0],
        load_rows=loads[1],
        load_note=load_note(summary, draft, facts.policy) if loads[1] else "",
        cost=_cost(draft, facts),
        economics=economics(draft, facts.policy, summary.server.load if summary.server else None),
        end_to_end=_end_to_end(draft, facts),
        lossless=trust.losslessness(draft, facts, trials),
    )


def _cost(draft: DraftResult, facts: Facts) -> tuple[str, ...]:
    found = readings.cost(draft, facts.policy)
    if found is not None:
        return readings.round_time(found), readings.limiting(found), readings.ceilings(found)
    return readings.whole_round(draft, facts.policy) if facts.served else ()


def _category_table(draft: DraftResult, policy: Policy) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    rows = wording.by_speedup(draft)
    # The prediction by category is of decoding; beside an end-to-end speedup it would mislead.
    predicted = [text.speedup(row.predicted_speedup if policy.metric == "decode" else None) for row in rows]
    return text.table(
        [
            ("category", [text.escape(row.category) for row in rows]),
            ("verdict", [row.verdict for row in rows]),
            (
                wording.metric_column(policy),
                [text.estimate(row.speedup, row.speedup_low, row.speedup_high) for row in rows],
            ),
            ("predicted", predicted),
            ("best gamma", [str(row.best_gamma) for row in rows]),
            ("prompts", [f"{row.prompts:,}" for row in rows]),
        ]
    )


def _gamma_table(draft: DraftResult, policy: Policy) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    columns = [
        ("gamma", [str(row.gamma) for row in draft.gammas]),
        ("rounds", [text.whole(row.rounds) for row in draft.gammas]),
        ("r", [text.percent(row.acceptance_rate) for row in draft.gammas]),
        ("tau", [_two_digits(row.tokens_per_round) for row in draft.gammas]),
        ("round's cost, steps", [_own_cost(row) for row in draft.gammas]),
        ("tau, replayed", [_two_digits(row.replay_tokens_per_round) for row in draft.gammas]),
        ("speedup, decode", [text.estimate(row.speedup, row.speedup_low, row.speedup_high) for row in draft.gammas]),
        ("predicted", [text.speedup(row.predicted_speedup) for row in draft.gammas]),
        ("speedup, end to end", [text.speedup(row.speedup_e2e) for row in draft.gammas]),
        ("tokens/s", [f"{row.tokens_per_s:.1f}" for row in draft.gammas]),
        (f"prompts below {text.speedup(policy.slower_than)}", [text.percent(row.slower_share) for row in draft.gammas]),
        ("same text", [_same(row.identical_prompts, row.prompts) for row in draft.gammas]),
    ]
    return text.table(columns)


def _own_cost(row: GammaResult) -> str:
    """Where its parts are not known, which say more."""
    return text.UNKNOWN if row.round_time is not None else _two_digits(row.round_steps)


def _two_digits(value: float | None) -> str:
    return text.UNKNOWN if value is None else f"{value:.2f}"


def _same(identical: int | None, prompts: int) -> str:
    return text.UNKNOWN if identical is None else f"{identical:,} of {prompts:,}"


def _end_to_end(draft: DraftResult, facts: Facts) -> str:
    row = wording.best_row(draft)
    share = ""
    if facts.prefill_share is not None:
        what = "The time to the first token is" if facts.served else "Reading the prompt takes"
        share = f" {what} {text.percent(facts.prefill_share)} of the time of the target alone."
    both = "the time to the first token" if facts.served else "both models reading the prompt"
    return (
        f"At gamma {row.gamma} the speedup is {text.speedup(row.speedup)} for decoding alone and "
        f"{text.speedup(row.speedup_e2e)} with {both} (measured; the latter without an interval).{share}"
    )


def _figures(summary: Summary, policy: Policy) -> list[Figure]:
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


def _provenance(stored: StoredRun, summary: Summary, facts: Facts) -> list[tuple[str, str]]:
    """(what, value) pairs; what the run did not record is left out."""
    origin = facts.provenance
    versions = ", ".join(f"{name} {version}" for name, version in dict(origin.get("versions") or {}).items())
    load = [f"{origin[key]:.2f} at the {end}" for key, end in _LOADS if isinstance(origin.get(key), int | float)]
    times = [f"{word} {origin[word]}" for word in ("started", "finished") if origin.get(word)]
    pairs = (
        ("run", text.code(stored.folder.name)),
        ("status", f"{facts.status}, {facts.done:,} of {facts.planned or facts.done:,} trials"),
        ("time", text.escape(", ".join(times))),
        ("command", text.code(steps.command(facts)) if facts.argv else ""),
        ("versions", text.escape(versions)),
        ("commit", text.code(origin["commit"]) if origin.get("commit") else ""),
        ("machine", text.escape(f"{summary.hardware}; {origin.get('platform') or ''}".rstrip("; "))),
        ("load average", text.escape(", ".join(load))),
        ("revisions", text.escape(_revisions(facts))),
        ("workload sha256", text.code(facts.workload.sha256) if facts.workload.sha256 else ""),
        ("fingerprint", text.code(facts.fingerprint) if facts.fingerprint else ""),
    )
    return [(what, value) for what, value in pairs if value]


def _revisions(facts: Facts) -> str:
    models = (facts.target, *facts.drafts.values())
    return ", ".join(f"{model.spec} {model.revision}" for model in models if model.revision)


_LOADS = (("load_at_start", "start"), ("load_at_end", "end"))
