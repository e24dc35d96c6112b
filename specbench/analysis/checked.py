"""The counts of a run beside those of another implementation: which drafts `check` compares, what it found, and whether
they agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from specbench.analysis.cautions import GAP_CONFIDENCE
from specbench.analysis.facts import Facts, changed_command, shell
from specbench.decision.interval import Paired, ends, speedup_interval
from specbench.drafters import DraftSpec, parse_draft
from specbench.kinds import HEADS
from specbench.records import Interval, Reason, Round, Sampling

if TYPE_CHECKING:
    from specbench.backends.local.assisted import Pair

SCHEMA = 2
TINY = 1e-9  # without any scatter the interval is a point, give or take a rounding

Agreement = Literal["same", "rounding", "differs", "undecided"]


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over some texts, with tau and r."""

    rounds: int
    drafted: int
    accepted: int
    tokens_per_round: float | None
    acceptance_rate: float | None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A difference in counting that was put right before comparing, and the rounds it touched."""

    name: str
    rounds: int


@dataclass(frozen=True, slots=True)
class CheckedGamma:
    """`ours`, `theirs` and `reconciled` (theirs, counted as we count) are over the texts that were compared: `texts`
    less `other_texts`. Of those `different_rounds`, in `different_texts`, are not the same; `rounding_texts` of all
    that differ are explained by a near-tie."""

    gamma: int
    texts: int
    other_texts: int | None
    ours: Tally
    theirs: Tally
    reconciled: Tally
    reconciliations: tuple[Reconciliation, ...]
    different_rounds: int | None
    different_texts: int | None
    rounding_texts: int | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    agreement: Agreement
    reason: Reason


@dataclass(frozen=True, slots=True)
class CheckedDraft:
    """One draft; `not_compared` says why where it could not be."""

    draft: str
    not_compared: str | None
    gammas: tuple[CheckedGamma, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """The counts of a run beside those of transformers on the same prompts. `agreement` is the worst of all rows."""

    run: str
    schema: int
    against: str
    precision: str
    greedy: bool
    prompts: int
    agreement: Agreement
    drafts: tuple[CheckedDraft, ...]


def checked_gamma(gamma: int, pairs: Sequence[Pair], *, greedy: bool, precision: str) -> CheckedGamma:
    """Compare round by round under greedy, tokens per round within sampling error otherwise."""
    compared = [pair for pair in pairs if pair.same_text or not greedy]
    touched = {name: sum(pair.touched[name] for pair in compared) for name in (pairs[0].touched if pairs else {})}
    ratio = None if greedy else _ratio(compared)
    agreement, reason = _greedy(pairs, precision) if greedy else _sampled(ratio)
    different = [pair for pair in compared if pair.different_rounds]
    return CheckedGamma(
        gamma=gamma,
        texts=len(pairs),
        other_texts=len(pairs) - len(compared) if greedy else None,
        ours=_tally(r for pair in compared for r in pair.trial.rounds),
        theirs=_tally(r for pair in compared for r in pair.theirs),
        reconciled=_tally(r for pair in compared for r in pair.reconciled),
        reconciliations=tuple(Reconciliation(name, rounds) for name, rounds in touched.items()),
        different_rounds=sum(pair.different_rounds for pair in different) if greedy else None,
        different_texts=len(different) if greedy else None,
        rounding_texts=sum(pair.near_tie is True for pair in pairs) if greedy else None,
        **ends("ratio", ratio),
        agreement=agreement,
        reason=reason,
    )


def unsupported(spec: DraftSpec, sampling: Sampling, *, head: str | None = None) -> str | None:
    """Why transformers does not do the same with this draft, or None."""
    if head is not None:
        if head in ("mtp", "dflash"):
            return f"transformers drafts with {HEADS[head]} heads too, but is not asked to here"
        return f"transformers drives no {HEADS.get(head, head)} head"
    if spec.look_up and not spec.alone:
        return "transformers has no look-up that falls back on a model"
    if spec.suffix is not None:
        return "transformers looks up n-grams, not the longest suffix"
    if spec.kind == "skip":
        return "transformers runs skipped layers with a cache of their own, ours share the target's"
    if spec.kind == "cross":
        return "transformers aligns the texts of the two tokenizers in another way, so drafts differ"
    if spec.cutoff:
        return "transformers keeps the token that the draft is unsure of, and stops after it; we stop before it"
    if spec.ngram is not None and spec.ngram.shortest > 1:
        return f"look-up in transformers goes down to single tokens, this draft to {spec.ngram.shortest}"
    if sampling.greedy:
        return None
    if spec.greedy:
        return "transformers draws a draft model's tokens at the target's temperature, this draft takes the likeliest"
    if spec.ngram is not None and sampling.top_p < 1:
        return "with top-p, look-up in transformers drops drafts by the order of token ids"
    if spec.ngram is not None and sampling.penalised and (sampling.top_k or sampling.min_p):
        # It tries its processors on equal logits, of which a penalty then sets those of the text apart.
        return "with top-k or min-p beside a penalty, look-up in transformers drops drafts for standing in the text"
    if spec.kind is not None and (sampling.temperature != 1 or sampling.top_p < 1):
        # Its processors are handed to the draft, which makes them anew and applies both. Top-k twice is top-k, min-p
        # min-p; of a penalty it takes the one that was handed over.
        return "transformers applies temperature and top-p to the draft's logits twice, so it draws other drafts"
    return None


def countable(heads: Mapping[str, str | None], sampling: Sampling) -> list[str]:
    """The drafts that transformers counts again; each with the kind of its head, None for any other draft."""
    return [spec for spec, head in heads.items() if unsupported(parse_draft(spec), sampling, head=head) is None]


def checks(facts: Facts, folder: str) -> list[tuple[Reason, str]]:
    """(what it tells, command) pairs that count again, repeat or extend the run in `folder`; those that repeat it are
    left out where its command was not recorded. What it tells is "counts", "again", "all" or "exact"."""
    found = []
    able = countable({spec: model.head for spec, model in facts.drafts.items()}, facts.sampling)
    # transformers' assisted generation knows no batches, and none of what a server runs.
    if facts.batch_size == 1 and not facts.served and able:
        some = able if len(able) < len(facts.drafts) else []
        found.append((Reason("counts", {"drafts": some}), shell(["specbench", "check", folder])))
    if not facts.argv:
        return found
    found.append((Reason("again"), changed_command(facts)))
    available, used = facts.workload.available, facts.workload.used
    if available is not None and used is not None and available > used:
        found.append((Reason("all"), changed_command(facts, limit=str(available))))
    if facts.sampling.greedy and not facts.served and facts.precision in ("bfloat16", "float16"):
        found.append((Reason("exact"), changed_command(facts, dtype="float32")))
    return found


def worst(drafts: Sequence[CheckedDraft]) -> Agreement:
    """Of all rows of all drafts."""
    found = {row.agreement for draft in drafts for row in draft.gammas}
    order: tuple[Agreement, ...] = ("differs", "undecided", "rounding", "same")
    return next((word for word in order if word in found), "undecided")


def _greedy(pairs: Sequence[Pair], precision: str) -> tuple[Agreement, Reason]:
    compared = [pair for pair in pairs if pair.same_text]
    different = [pair for pair in compared if pair.different_rounds]
    unexplained = sum(not pair.near_tie for pair in pairs if not pair.same_text or pair.different_rounds)
    values = {
        "texts": len(compared),
        "others": len(pairs) - len(compared),
        "different": len(different),
        "rounds": sum(len(pair.trial.rounds) for pair in compared),
    }
    if unexplained:
        gaps = _gaps(compared) if different else {}
        return "differs", Reason(
            "check-differs", values | {"gaps": gaps, "unexplained": unexplained, "precision": precision}
        )
    if not compared:
        return "undecided", Reason("check-no-text")
    if different:
        differ = sum(pair.different_rounds for pair in different)
        return "rounding", Reason("check-rounding", values | {"differ": differ})
    return "same", Reason("check-same", values)


def _gaps(pairs: Sequence[Pair]) -> dict[str, int]:
    ours, theirs = _tally(r for p in pairs for r in p.trial.rounds), _tally(r for p in pairs for r in p.reconciled)
    return {name: getattr(ours, name) - getattr(theirs, name) for name in ("rounds", "drafted", "accepted")}


def _sampled(ratio: Interval | None) -> tuple[Agreement, Reason]:
    if ratio is None:
        return "undecided", Reason("check-no-round")
    low, high = ratio.low, ratio.high
    if low is None or high is None:
        return "undecided", Reason("check-few-prompts", {"ratio": ratio.value})
    values = {"ratio": ratio.value, "low": low, "high": high, "confidence": GAP_CONFIDENCE}
    if low - TINY <= 1 <= high + TINY:
        return "same", Reason("check-sampled-same", values)
    return "differs", Reason("check-sampled-differs", values)


def _ratio(pairs: Sequence[Pair]) -> Interval | None:
    """Rounds per token there over here, with an interval over prompts; repeats of a prompt are summed."""
    ids = sorted({pair.trial.prompt_id for pair in pairs})
    sums = np.zeros((4, len(ids)))
    for pair in pairs:
        row = len(pair.reconciled), pair.tokens - 1, len(pair.trial.drafted), pair.trial.decode_tokens
        sums[:, ids.index(pair.trial.prompt_id)] += row
    return speedup_interval(Paired(*sums), GAP_CONFIDENCE) if sums.sum(1).all() else None


def _tally(rounds: Iterable[Round]) -> Tally:
    pairs = [(r.drafted, r.accepted) for r in rounds]
    drafted, accepted = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
    tau = 1 + accepted / len(pairs) if pairs else None
    return Tally(len(pairs), drafted, accepted, tau, accepted / drafted if drafted else None)
