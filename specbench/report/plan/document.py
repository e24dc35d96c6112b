"""The measurement plan: what a team agrees on before anything is measured, as one page of Markdown.

Every number comes from the Plan, its policy and the pilot's folder. No prompt text is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from specbench import text
from specbench.analysis.facts import MANY_CUT, Facts, Model
from specbench.analysis.plan import Amounts, Plan, amounts
from specbench.analysis.stops import (
    TOO_FEW,
    Evidence,
    Stop,
    any_time,
    before_the_sweep,
    exactly,
    read_evidence,
    speedup,
    too_few,
)
from specbench.analysis.summarise import summarise
from specbench.decision.interval import MIN_PROMPTS
from specbench.errors import StoreError
from specbench.records import Policy
from specbench.report.dialect import MARKDOWN, full_stop, part, said, sentence_of, template, upper_first
from specbench.report.plan import numbers as plan_numbers
from specbench.report.plan.commands import FILE, on_shipped_prompts, steps
from specbench.report.plan.numbers import Rows, about
from specbench.store import StoredRun
from specbench.workload.cautions import TOLERATED_SHARE

TITLE = "# Measurement plan"
BLANK = "\\_\\_\\_\\_\\_\\_"


def plan_document(plan: Plan, policy: Policy, stored: StoredRun | None = None) -> str:
    """The page, from the plan, its policy and its pilot (None without one); the same three give the same text. Raises
    StoreError or ConfigError where the pilot cannot be summarised."""
    pilot = None
    if stored is not None:
        pilot = read_evidence(stored, summarise(stored), plan)
    facts = pilot.facts if pilot else None
    found = amounts(plan, policy.mix)
    each = facts.batch_size if facts else 1
    requests = None if found.prompts is None else found.prompts * each
    early = [*any_time(plan, pilot), too_few(plan, found.prompts, pilot)]
    late = before_the_sweep(plan, policy, pilot)
    header, rows = plan_numbers.category_table(plan, found)
    return template("plan.md.j2").render(
        title=f"{TITLE}: should {text.code(facts.target.spec) if facts else 'the target'} decode speculatively?",
        lead=list(_lead(found, requests, pilot, [*early, *late])),
        question=_question(plan, facts),
        verdicts=_verdicts(plan, policy),
        metric=plan.metric,
        mix=_mix(policy),
        several=plan.drafts > 1,
        chosen=plan.drafts * len(plan.gammas) > 1,
        one_in=f"{1 / (1 - plan.confidence):,.0f}",
        pilot=pilot is not None,
        settings=_settings(plan, pilot),
        spread=list(plan_numbers.spread(plan)),
        goals=plan_numbers.goals(plan),
        confidence=exactly(plan.confidence),
        chance=exactly(plan.chance),
        ranges=plan.spread.low is not None,
        amount=list(plan_numbers.amount(plan, found, each)),
        minimum=speedup(plan.min_speedup),
        truths=[
            (text.speedup(row.speedup), row.verdict or "none", *plan_numbers.cells(row.need)) for row in plan.truths
        ],
        category_header=header,
        category_rows=rows,
        by_category=list(plan_numbers.by_category(plan, found, mixed=bool(policy.mix))),
        repeated=exactly(TOLERATED_SHARE),
        file=FILE,
        steps=steps(plan, policy, stored, requests),
        any_time=early,
        before=late,
        assumed=_assumed(plan, facts),
        warnings=[(text.code(each.code), _cautioned(said(each, MARKDOWN), each.hint)) for each in plan.warnings],
        longest=f"; here {about(found.minutes)}" if found.minutes else "",
        blank=BLANK,
    )


def write_document(page: str, path: Path) -> None:
    """Write the page to `path`. Raises StoreError where something else is there, or it cannot be written."""
    try:
        if path.exists() and not path.read_bytes().startswith(TITLE.encode()):
            raise StoreError(
                "There is a file already that is no measurement plan",
                where=str(path),
                hint="Give --write another name.",
            )
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"Cannot write the plan: {error.strerror}", where=str(path), hint="Give --write another name."
        ) from None


def _lead(found: Amounts, requests: int | None, pilot: Evidence | None, every: Sequence[Stop]) -> Iterator[str]:
    """What to do, after what speaks against it already."""
    # A pilot's own file is meant to be small: that it is too small for the sweep stops nobody.
    met = [(number, stop) for number, stop in enumerate(every, 1) if stop.state == "met" and stop.name != TOO_FEW]
    if met:
        listed = "; ".join(f"{stop.name[:1].lower()}{stop.name[1:]} ({number})" for number, stop in met)
        yield f"**Not yet.** Reasons to stop are met already, numbered as in section 7: {listed}. Settle them first."
    early = pilot is None or on_shipped_prompts(pilot.stored)
    if pilot is None:
        yield "**There is no pilot yet.** Make one (section 6) and plan again from it before anybody signs."
    elif early:
        yield (
            "**The pilot is not of your traffic.** It ran on the prompts that come with specbench. Make one on your "
            "own requests (section 6) and plan again from it before anybody signs."
        )
    if requests is None:
        yield "**In short.** As the question stands no number of prompts answers it: see reason 5 of section 7."
        return
    time = f", measure them in {about(found.minutes)}" if found.minutes else ", measure them"
    agree = "When that is settled, agree" if met or early else "Agree"
    yield (
        f"**In short.** {agree} on this page and sign it (section 10). Then collect {requests:,} real requests "
        f"(planned, section 4){time}, and let the rule of section 1 decide."
    )


def _question(plan: Plan, facts: Facts | None) -> str:
    names = [] if facts is None else [text.code(spec) for spec in facts.drafts]
    draft = text.join(names) if len(names) == plan.drafts else text.count(plan.drafts, "draft")
    target = "the target" if facts is None else text.code(facts.target.spec)
    what = "generation, prompts included," if plan.metric == "e2e" else "decoding"
    best = f"the best of {draft}" if plan.drafts > 1 else draft.replace("1 draft", "the draft")
    return (
        f"On requests drawn as in section 4, and set up as in section 2, does speculation with {best} make {what} with "
        f"{target} at least {speedup(plan.min_speedup)} as fast (asked for) as with the target alone?"
    )


def _verdicts(plan: Plan, policy: Policy) -> Rows:
    minimum, slow = speedup(plan.min_speedup), speedup(policy.slower_than)
    against = [
        f"that chance is {exactly(1 - plan.confidence)} or less",
        f"more than {exactly(policy.max_slower_share)} of prompts run below {slow}",
        "a text is not the target's own (section 7, reason 2)",
    ]
    if policy.max_added_gb is not None:
        against.append(f"the draft takes more than {policy.max_added_gb:g} GB of memory")
    return (
        ("GO", f"the chance of {minimum} or more is at least {exactly(plan.confidence)}, and nothing below says NO-GO"),
        ("NO-GO", "; or ".join(against)),
        ("UNCLEAR", f"everything else, and always with fewer than {MIN_PROMPTS} prompts"),
    )


def _mix(policy: Policy) -> str:
    return text.join(f"{text.percent(share)} {text.escape(name)}" for name, share in (policy.mix or {}).items())


def _settings(plan: Plan, pilot: Evidence | None) -> Rows:
    """(what, value) of everything that the answer depends on, as the pilot had it."""
    gammas = text.join(map(str, plan.gammas))
    arms = (
        f"{2 + plan.drafts * len(plan.gammas)} arms in an order drawn anew: the target alone twice, and "
        f"{text.count(plan.drafts, 'draft')} at gamma {gammas}; {text.count(plan.repeats, 'repeat')}"
    )
    if pilot is None:
        blanks = ("target and revision", "drafts and revisions", "engine and version", "machine, precision, threads")
        more = ("requests at a time", "sampling", "output limit")
        return (
            *((name, BLANK) for name in blanks),
            ("what every prompt meets", arms),
            *((name, BLANK) for name in more),
        )
    facts = pilot.facts
    threads = text.count(facts.threads, "thread") if facts.threads else None
    machine = [text.escape(pilot.summary.hardware), facts.precision or "precision not recorded", threads]
    load = facts.loads[0].label if facts.served else f"batch {facts.batch_size}"
    return (
        ("target", _model(facts.target)),
        *(("draft", _model(model)) for model in facts.drafts.values()),
        ("engine", text.escape(pilot.summary.engine)),
        ("machine", ", ".join(part for part in machine if part)),
        ("what every prompt meets", arms),
        ("requests at a time", load),
        ("sampling", sentence_of("sampling", MARKDOWN, facts.sampling)),
        *(
            (("chat template given", text.code(given)),)
            if (given := text.template_kwargs(facts.template_kwargs))
            else ()
        ),
        ("output limit", _limit(facts)),
    )


def _model(model: Model) -> str:
    name = sentence_of("model_name", MARKDOWN, model)
    return f"{name}, revision {text.code(model.revision)}" if model.revision else name


def _limit(facts: Facts) -> str:
    limit = BLANK if facts.max_new_tokens is None else text.count(facts.max_new_tokens, "token")
    if facts.cut_share is None:
        return limit
    cut = f"{limit}; it cut {text.percent(facts.cut_share)} of the target's answers (measured)"
    return cut + (". **Set it to what your service allows**" if facts.cut_share > MANY_CUT else "")


def _assumed(plan: Plan, facts: Facts | None) -> Rows:
    """(assumption, what would change it): the plan's own, then those of this page."""
    rows = [(full_stop(upper_first(part(a, "claim", MARKDOWN))), part(a, "change", MARKDOWN)) for a in plan.assumed]
    rows.append(
        (
            f"A run of the planned size gets what it is for in {exactly(plan.chance)} of cases.",
            "More prompts: the upper end of each range.",
        )
    )
    if facts is not None and facts.cut_share is not None and facts.cut_share > MANY_CUT:
        rows.append(
            (
                f"Answers go on as they begin: the pilot cut {text.percent(facts.cut_share)} of them (measured).",
                "A pilot with a larger `--max-new-tokens`.",
            )
        )
    return (
        *rows,
        ("Requests of the window stand for those to come.", "A new product, season or prompt: draw and measure anew."),
        ("Requests do not depend on each other.", "Many from one session or one user: a wider window."),
        ("Replaced names are as easy to draft as real ones.", "The check of section 5."),
    )


def _cautioned(message: str, hint: str) -> str:
    return f"{full_stop(upper_first(message))} {text.escape(hint)}"
