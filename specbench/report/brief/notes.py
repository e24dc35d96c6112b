"""What stands under the brief's tables: by which rule, what the columns mean, where numbers differ and why."""

from __future__ import annotations

from collections.abc import Sequence

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult
from specbench.records import Policy
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
