"""One draft of a brief in words and rows, ready for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench import text
from specbench.analysis.contract import CategoryResult, DraftResult, GammaResult, LengthResult, Summary
from specbench.analysis.facts import Facts
from specbench.analysis.stopped import stopped_line, stopped_note
from specbench.records import Policy, Trial
from specbench.report import readings, wording
from specbench.report.brief import glance
from specbench.report.brief.server import load_note, load_rows, load_shown
from specbench.report.economics import Economics, economics
from specbench.report.engine_words import words_of
from specbench.report.templating import mark
from specbench.report.wording import best_row


def category_note(drafts: Sequence[DraftResult], policy: Policy) -> str:
    """By what rule, and at which gamma, a category is decided; and why a GO's interval may begin below the minimum."""
    rule = "Each category is decided by the same rule as the whole, on its own prompts"
    if all(len(draft.gammas) == 1 for draft in drafts):
        rule += "."
    elif all(len({category.best_gamma for category in draft.categories}) == 1 for draft in drafts):
        rule += " and at its own best gamma, which is the same for all."
    else:
        rule += " and at its own best gamma; an engine with one fixed gamma for all gets less."
    below = [
        category
        for draft in drafts
        for category in draft.categories
        if category.verdict == "GO" and category.speedup_low is not None and category.speedup_low < policy.min_speedup
    ]
    if not below:
        return rule
    return (
        f"{rule} A GO asks for one side only, a chance of {text.percent(policy.confidence)} to reach "
        f"{text.speedup(policy.min_speedup)}; the intervals have two sides, so that of a GO may begin below it."
    )


def gamma_words(drafts: Sequence[DraftResult]) -> str:
    """What the columns of the table by gamma mean, of those that can be known: a server may not tell them."""
    rows = [row for draft in drafts for row in draft.gammas]
    words = []
    if any(row.drafted is not None for row in rows):
        words.append("r is accepted over drafted tokens; it falls as gamma grows, so do not compare it across gammas.")
    if any(row.rounds is not None for row in rows):
        words.append("tau is tokens per round, counting the one that the target itself adds.")
    return " ".join(words)


def gamma_note(draft: DraftResult) -> str:
    """alpha, and how far the replay agrees; empty where neither is known."""
    words = []
    if draft.alpha is not None:
        bounds = text.interval(draft.alpha_low, draft.alpha_high)
        words.append(
            f"alpha, the chance that a drafted token is accepted if all before it were, is {draft.alpha:.2f} {bounds}."
        )
    gaps = [
        abs(row.replay_tokens_per_round / row.tokens_per_round - 1)
        for row in draft.gammas
        if row.replay_tokens_per_round is not None and row.tokens_per_round is not None
    ]
    if gaps:
        words.append(
            "The replayed tau, counted in one pass over the target's text without speculating, is "
            f"within {_at_most(max(gaps))} of the live count."
        )
    return " ".join(words)


def best_note(draft: DraftResult, policy: Policy) -> str | None:
    """Why the verdict's speedup and the best row of the table differ, where they do."""
    if len(draft.gammas) == 1:
        return None
    row = best_row(draft)
    own = row.speedup_e2e if policy.metric == "e2e" else row.speedup
    return (
        f"Gamma {row.gamma} is best at {text.speedup(own)}, but picking the best of {len(draft.gammas)} rows flatters "
        f"it. The verdict's {text.speedup(draft.speedup)} takes each prompt at the gammas that random halves of the "
        f"others choose{_slower_so(draft, row, policy)}."
    )


def _slower_so(draft: DraftResult, row: GammaResult, policy: Policy) -> str:
    """The share of slower prompts that the policy's limit is held against, where it is not the row's."""
    own, rows = text.percent(draft.slower_share), text.percent(row.slower_share)
    if policy.metric == "e2e" or draft.slower_share is None or own == rows:
        return ""
    return f", and so does its share of prompts below {text.speedup(policy.slower_than)}, {own} against {rows}"


def _at_most(share: float) -> str:
    return "1%" if share < 0.01 else text.percent(share)


Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One draft in words and rows, ready for the template."""

    draft: DraftResult
    title: str
    verdict: str
    policy: str
    category_header: tuple[str, ...]
    category_rows: Rows
    gamma_header: tuple[str, ...]
    gamma_rows: Rows
    gamma_note: str
    stopped: tuple[str, ...]
    stopped_note: str
    best_note: str | None
    length_header: tuple[str, ...]
    length_rows: Rows
    load_header: tuple[str, ...]
    load_rows: Rows
    load_note: str
    cost: tuple[str, ...]
    economics: Economics
    end_to_end: str
    lossless: str


def section(draft: DraftResult, facts: Facts, trials: Sequence[Trial], summary: Summary) -> Section:
    """Everything the page says of one draft."""
    loads = load_rows(summary, draft, facts.policy) if load_shown(summary) else ((), ())
    header, rows = _gamma_table(draft, facts.policy)
    categories, lengths = _category_table(draft, facts.policy), length_rows(draft, facts.policy)
    return Section(
        draft=draft,
        title=text.code(draft.draft),
        verdict=wording.verdict(draft, facts.policy, facts.batch_size, one_of_several=len(summary.drafts) > 1),
        policy=wording.policy_line(draft, facts.policy),
        category_header=categories[0],
        category_rows=categories[1],
        gamma_header=header,
        gamma_rows=rows,
        gamma_note=gamma_note(draft),
        stopped=tuple(text.sentence(stopped_line(row, facts.batch_size)) for row in draft.stopped),
        stopped_note=stopped_note(draft.stopped),
        best_note=best_note(draft, facts.policy),
        length_header=lengths[0],
        length_rows=lengths[1],
        load_header=loads[0],
        load_rows=loads[1],
        load_note=load_note(summary, draft, facts.policy) if loads[1] else "",
        cost=_cost(draft, facts),
        economics=economics(draft, facts.policy, summary.server.load if summary.server else None),
        end_to_end=_end_to_end(draft, facts),
        lossless=glance.losslessness(draft, facts, trials),
    )


def _cost(draft: DraftResult, facts: Facts) -> tuple[str, ...]:
    found = readings.cost(draft, facts.policy)
    if found is not None:
        return readings.round_time(found), readings.limiting(found), readings.ceilings(found)
    return readings.whole_round(draft, facts)


def _category_table(draft: DraftResult, policy: Policy) -> tuple[tuple[str, ...], Rows]:
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
            (f"decode {mark('predicted', 'category')}", predicted),
            ("best gamma", [str(row.best_gamma) for row in rows]),
            _prompts(rows),
        ]
    )


def length_rows(draft: DraftResult, policy: Policy) -> tuple[tuple[str, ...], Rows]:
    """A row for each length that was asked for, also where none was measured; empty where none was asked for."""
    rows = draft.lengths
    return text.table(
        [
            ("prompt tokens", [_tokens(row) for row in rows]),
            ("verdict", [row.verdict or "not measured" for row in rows]),
            (
                wording.metric_column(policy),
                [
                    text.UNKNOWN
                    if row.speedup is None
                    else text.estimate(row.speedup, row.speedup_low, row.speedup_high)
                    for row in rows
                ],
            ),
            ("best gamma", [str(row.best_gamma or text.UNKNOWN) for row in rows]),
            ("tokens per round", [text.digits(row.tokens_per_round) for row in rows]),
            ("a round, in steps", [text.digits(row.round_steps) for row in rows]),
            ("prompts", [f"{row.prompts:,}{wording.few_mark(row.prompts)}" for row in rows]),
        ]
    )


def _tokens(row: LengthResult) -> str:
    """What was asked for, and what was measured of it."""
    asked = f"{row.low:,} and more" if row.high is None else f"below {row.high:,}"
    if row.low and row.high is not None:
        asked = f"{row.low:,} to {row.high - 1:,}"
    return asked if row.shortest is None else f"{asked} (measured: {row.shortest:,} to {row.longest:,})"


def _prompts(rows: Sequence[CategoryResult]) -> tuple[str, list[str]]:
    """The column of prompts: few ones are marked row by row, or once where all are few."""
    marks = [wording.few_mark(row.prompts) for row in rows]
    if rows and all(marks):
        return f"prompts{marks[0]}", [f"{row.prompts:,}" for row in rows]
    return "prompts", [f"{row.prompts:,}{few}" for row, few in zip(rows, marks, strict=True)]


def _gamma_table(draft: DraftResult, policy: Policy) -> tuple[tuple[str, ...], Rows]:
    columns = [
        ("gamma", [str(row.gamma) for row in draft.gammas]),
        ("rounds", [text.whole(row.rounds) for row in draft.gammas]),
        ("r", [text.percent(row.acceptance_rate) for row in draft.gammas]),
        ("tau", [text.digits(row.tokens_per_round) for row in draft.gammas]),
        ("round's cost, steps", [_own_cost(row) for row in draft.gammas]),
        ("tau, replayed", [text.digits(row.replay_tokens_per_round) for row in draft.gammas]),
        ("speedup, decode", [text.estimate(row.speedup, row.speedup_low, row.speedup_high) for row in draft.gammas]),
        (f"decode {mark('predicted', 'curve')}", [text.speedup(row.predicted_speedup) for row in draft.gammas]),
        ("speedup, end to end", [text.speedup(row.speedup_e2e) for row in draft.gammas]),
        ("tokens/s", [f"{row.tokens_per_s:.1f}" for row in draft.gammas]),
        (f"prompts below {text.speedup(policy.slower_than)}", [text.percent(row.slower_share) for row in draft.gammas]),
        ("same text", [text.out_of(row.identical_prompts, row.prompts) for row in draft.gammas]),
    ]
    return text.table(columns)


def _own_cost(row: GammaResult) -> str:
    """Where its parts are not known, which say more."""
    return text.UNKNOWN if row.round_time is not None else text.digits(row.round_steps)


def _end_to_end(draft: DraftResult, facts: Facts) -> str:
    row, words = wording.best_row(draft), words_of(facts)
    share = ""
    if facts.prefill_share is not None:
        share = f" {words.reading_takes} {text.percent(facts.prefill_share)} of the time of the target alone."
    return (
        f"At gamma {row.gamma} the speedup is {text.speedup(row.speedup)} for decoding alone and "
        f"{text.speedup(row.speedup_e2e)} with {words.both_reading} (measured; the latter without an interval).{share}"
    )
