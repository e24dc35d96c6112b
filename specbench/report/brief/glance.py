"""The brief at a glance, and how far to believe it: what a request and the machine feel with and without the draft,
whether the text is the same, and how still the machine was."""

from __future__ import annotations

from collections.abc import Sequence

from specbench import text
from specbench.acceptance.lossless import NEAR_TIE, NEAR_TIE_NATS, near_tie_limit
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts, differing, parted
from specbench.records import Divergence, Trial
from specbench.report.engine_words import words_of
from specbench.report.templating import mark
from specbench.report.wording import best_row, recommended


def losslessness(draft: DraftResult, facts: Facts, trials: Sequence[Trial]) -> str:
    """Is the text what the target alone would write, and is that what transformers would."""
    return f"{_same(draft, facts, trials)} {reference(facts)}".rstrip()


def reference(facts: Facts) -> str:
    """The passes of target and drafts against transformers' own, before the run."""
    found = [each for each in facts.reference if each.tokens]
    if not found:
        return ""
    tokens, ties = sum(each.tokens for each in found), sum(each.near_ties for each in found)
    who = "the target was" if len(found) == 1 else "target and drafts were"
    same = f"{tokens - ties:,} of {tokens:,}" if ties else f"all {tokens:,}"
    nearly = f", and nearly tied tokens at the other {ties:,}" if ties else ""
    return (
        f"Before the run, {who} held against transformers' generate on {found[0].prompts} prompts: the same token "
        f"at {same} places{nearly} (measured, {sum(each.seconds for each in found):.1f} s)."
    )


def _same(draft: DraftResult, facts: Facts, trials: Sequence[Trial]) -> str:
    """Counted under greedy, argued when sampling."""
    words = words_of(facts)
    if not facts.sampling.greedy:
        return (
            f"Not checked in this run: at temperature {facts.sampling.temperature:g} two runs draw different tokens, "
            "and texts cannot be compared token for token. That the output keeps the target's distribution rests on "
            f"{words.rule} {mark('assumed', 'lossless')}{words.proof}."
        )
    row = best_row(draft)
    if row.identical_prompts is None:
        return "Not checked: no text was compared with the target's own."
    same = (
        f"At gamma {row.gamma}, {row.identical_prompts:,} of {row.prompts:,} prompts give the target's own text, "
        f"{words.alike} (measured)."
    )
    again = len(differing(trials, None))
    unsteady = f"The target alone does not repeat its own text on {text.count(again, 'prompt')}." if again else ""
    return " ".join(part for part in (same, _margins(differing(trials, draft.draft), facts, draft), unsteady) if part)


def _margins(found: list[Divergence | None], facts: Facts, draft: DraftResult) -> str:
    """What the texts that differ say: rounding, or a bug."""
    if not found:
        return ""
    over = "" if len(draft.gammas) == 1 else f" over all {len(draft.gammas)} gammas"
    head = f"{text.count(len(found), 'text')}{over} {'differs' if len(found) == 1 else 'differ'}:"
    by, all_of_them = parted(found, facts.precision), len(found)
    parts = []
    if by.ties:
        near_ties = _of(by.ties, all_of_them)
        parts.append(f"{near_ties}where the target's two best tokens nearly tie, which rounding can flip")
    if by.wide:
        wide = _of(len(by.wide), all_of_them)
        parts.append(f"{wide}at a wide margin, up to {widest(by.wide)}, **so suspect a bug**")
    if by.unknown:
        parts.append(f"{_of(by.unknown, all_of_them)}without a recorded margin")
    return f"{head} {'; '.join(parts)}. {_nearly(by.unknown < all_of_them, facts)}".rstrip()


def widest(found: Sequence[Divergence]) -> str:
    """The largest distance of the two best tokens, in whichever measure it is known."""
    margins = [each.margin for each in found if each.margin is not None]
    if margins:
        return f"{text.percent(max(margins))} of the top logit"
    return f"{max(each.gap or 0.0 for each in found):.2f} nats between them"


def _nearly(known: bool, facts: Facts) -> str:
    """What counts as a near-tie, and on what ground; `known` says that some distance is."""
    if facts.served:
        if not known:
            return ""
        near = f"Nearly means within {NEAR_TIE_NATS:.2g} nats, by the target's own log-probabilities"
        return f"{near} {mark('assumed', 'near-tie')}."
    near = f"Nearly means within {100 * near_tie_limit(facts.precision):.3g}% of the top logit"
    near += f" in {facts.precision}" if facts.precision in NEAR_TIE else ""
    near += f" {mark('assumed', 'near-tie')}."
    if facts.precision == "float32":
        near += " In float32 such ties are rare: suspect a bug until each has been looked at."
    return near


def _of(part: int, whole: int) -> str:
    return "" if whole == 1 else "all of them " if part == whole else f"{part:,} "


def noise(summary: Summary) -> str:
    """The A/A arm: how far two measurements of the same thing lie apart here, and which speedups are no further."""
    if summary.noise_floor is None:
        return (
            "Unknown: the target alone was not measured twice, or over too few prompts to say; that it was steady "
            f"rests on nothing {mark('assumed', 'steady')}."
        )
    floor = summary.noise_floor
    words = [f"The target alone, measured a second time, agrees with itself within {floor:.1%} (measured, A/A)."]
    words += [
        f"The {text.speedup(draft.speedup)} of {text.code(draft.draft)} is no further from 1.00x: perhaps noise."
        for draft in summary.drafts
        if abs(draft.speedup - 1) <= floor
    ]
    return " ".join(words)


Rows = tuple[tuple[str, ...], ...]


def glance(summary: Summary, facts: Facts, trials: Sequence[Trial]) -> tuple[tuple[str, ...], Rows]:
    """Header and rows for the draft that the verdict on the whole run is about, at its best gamma; none without one."""
    draft = recommended(summary)
    if draft is None:
        return (), ()
    row, mix = best_row(draft), facts.policy.mix
    trials = [trial for trial in trials if not mix or (trial.category or "all") in mix]
    name = f"with {text.code(draft.draft)}, gamma {row.gamma}"
    rows = [
        ("decoding, tokens/s", f"{draft.baseline_tokens_per_s:.1f}", f"{row.tokens_per_s:.1f}"),
        _answer(facts, trials, draft.draft, row.gamma),
        ("price of a million tokens", *_money(draft)),
        (f"chance of {text.speedup(facts.policy.min_speedup)} or more", text.UNKNOWN, _chance(draft)),
        (f"requests below {text.speedup(facts.policy.slower_than)}", text.UNKNOWN, _slower(row, draft, facts)),
        ("texts that are the target's own", text.UNKNOWN, _texts(row, draft, facts, trials)),
        ("memory added", text.UNKNOWN, _memory(draft)),
        ("stops paying at", text.UNKNOWN, _stops(draft)),
    ]
    return ("measured", "target alone", name), tuple(row for row in rows if row[2] != text.UNKNOWN)


def _answer(facts: Facts, trials: Sequence[Trial], draft: str, gamma: int) -> tuple[str, str, str]:
    """Seconds for a whole answer, the prompt included: means over the prompts that both arms have."""
    alone = {(t.prompt_id, t.repeat): t for t in trials if t.arm.kind == "baseline"}
    own = [t for t in trials if (t.arm.draft, t.arm.gamma) == (draft, gamma) and (t.prompt_id, t.repeat) in alone]
    what = "a whole answer" if facts.batch_size == 1 else f"a batch of {facts.batch_size} answers"
    if not own:
        return what, text.UNKNOWN, text.UNKNOWN
    both = [alone[t.prompt_id, t.repeat] for t in own], own
    tokens = sum(t.output_tokens / t.sequences for t in both[0]) / len(own)
    before_s, after_s = (sum(t.times.total_s for t in side) / len(own) for side in both)
    return f"{what}, prompt included (mean of {tokens:.0f} tokens)", f"{before_s:.2f} s", f"{after_s:.2f} s"


def _money(draft: DraftResult) -> tuple[str, str]:
    found = draft.money
    if found is None:
        return text.UNKNOWN, text.UNKNOWN
    return f"{found.baseline_per_million:,.2f}", f"{found.per_million:,.2f} {mark('assumed', 'price')}"


def _slower(row: GammaResult, draft: DraftResult, facts: Facts) -> str:
    """At this gamma, as the column says; the verdict's own share is over the gammas that hold-out halves choose."""
    return text.percent(draft.slower_share if facts.policy.metric == "e2e" else row.slower_share)


def _chance(draft: DraftResult) -> str:
    return text.UNKNOWN if draft.probability is None else text.chance(draft.probability)


def _texts(row: GammaResult, draft: DraftResult, facts: Facts, trials: Sequence[Trial]) -> str:
    """How many are the same, and what the others are."""
    if row.identical_prompts is None:
        return "not compared"
    found = differing([t for t in trials if t.arm.gamma == row.gamma], draft.draft)
    same = text.out_of(row.identical_prompts, row.prompts)
    if not found:
        return same
    by = parted(found, facts.precision)
    parts = [
        f"{by.ties:,} differ by rounding {mark('assumed', 'near-tie')}" if by.ties else "",
        f"**{len(by.wide):,} by more than rounding**" if by.wide else "",
        f"{by.unknown:,} for reasons not recorded" if by.unknown else "",
    ]
    return "; ".join([same, *filter(None, parts)])


def _memory(draft: DraftResult) -> str:
    found = draft.memory
    if found is None:
        return text.UNKNOWN
    return text.size(found.total_bytes, "B") or text.UNKNOWN if found.total_bytes else "none"


def _stops(draft: DraftResult) -> str:
    if draft.stops_paying_at_concurrency is not None:
        return f"{text.count(draft.stops_paying_at_concurrency, 'request')} at a time (measured)"
    if draft.stops_paying_at_batch is not None:
        return f"batch {draft.stops_paying_at_batch} {mark('predicted', 'batches')}"
    return text.UNKNOWN
