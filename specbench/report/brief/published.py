"""Public figures for a case like this one, so that a reader sees whether a run's acceptance is out of the ordinary.

Sources: Spec-Bench's leaderboard (Xia et al. 2024, github.com/hemingkx/Spec-Bench, Leaderboard.md, rows SpS and PLD;
its mean accepted tokens per decoding step are tau); Leviathan et al. 2023 (arXiv 2211.17192), Table 2; llama.cpp
issue 3649.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench import text
from specbench.analysis.contract import DraftResult
from specbench.drafters import parse_draft
from specbench.report.wording import best_row

_LEADERBOARD = "[Spec-Bench](https://github.com/hemingkx/Spec-Bench/blob/main/Leaderboard.md)"
_HERE = "this run"

HEADER = ("source", "case", "tau", "alpha", "speedup, decode")


@dataclass(frozen=True, slots=True)
class Published:
    """One published measurement; what it does not state is None. `drafts` is the kind of draft."""

    drafts: str
    source: str
    case: str
    tau: float | None
    alpha: float | None
    speedup: float


PUBLISHED = (
    Published("model", _LEADERBOARD, "Vicuna-7B, small draft model, float16, greedy, RTX 3090", 2.29, None, 1.83),
    Published("model", _LEADERBOARD, "the same draft and prompts on an A100", 2.28, None, 1.49),
    Published(
        "model",
        "[Leviathan et al. 2023](https://arxiv.org/abs/2211.17192)",
        "T5-XXL, T5-small, translation, gamma 7, greedy, TPU v4",
        None,
        0.75,
        3.4,
    ),
    Published(
        "model",
        "[llama.cpp issue 3649](https://github.com/ggml-org/llama.cpp/issues/3649)",
        "one text, 260 drafted, 208 accepted",
        None,
        None,
        1.68,
    ),
    Published("ngram", _LEADERBOARD, "Vicuna-7B, prompt look-up, float16, greedy, RTX 3090", 1.74, None, 1.55),
    Published("ngram", _LEADERBOARD, "the same prompts on an A100", 1.73, None, 1.59),
    Published("ngram", _LEADERBOARD, "RTX 3090, summarising alone", None, None, 2.31),
    Published("ngram", _LEADERBOARD, "RTX 3090, translating alone", None, None, 1.07),
)

_NOTES = {
    "model": (
        "Compare tau and alpha, which travel, and not the speedup: one draft on the same prompts gave tau 2.29 and "
        "2.28 on two GPUs, but 1.83x and 1.49x. A larger target beside a small draft pays more for the same tau."
    ),
    "ngram": (
        "Look-up lives on answers that repeat their prompt, so compare category with category: the same look-up gave "
        "2.31x on summaries and 1.07x on translations."
    ),
}


def public_figures(drafts: Sequence[DraftResult]) -> tuple[tuple[tuple[str, ...], ...], str]:
    """Rows under HEADER, this run's own first, and how to read them; empty for kinds of drafts of which no public
    figure states its setting."""
    rows: list[tuple[str, ...]] = []
    notes = []
    for kind in ("model", "ngram"):
        own = [draft for draft in drafts if _kind(draft.draft) == kind]
        if own:
            rows += [_own(draft) for draft in own]
            rows += [_row(each) for each in PUBLISHED if each.drafts == kind]
            notes.append(_NOTES[kind])
    return tuple(rows), " ".join(notes)


def _kind(spec: str) -> str | None:
    """A look-up with a model behind it is neither the one nor the other."""
    found = parse_draft(spec)
    if found.look_up:
        return "ngram" if found.kind is None else None
    return found.kind


def _own(draft: DraftResult) -> tuple[str, ...]:
    row = best_row(draft)
    case = f"{text.code(draft.draft)}, gamma {row.gamma}"
    return _HERE, case, text.digits(row.tokens_per_round), text.digits(draft.alpha), text.speedup(row.speedup)


def _row(found: Published) -> tuple[str, ...]:
    return found.source, found.case, text.digits(found.tau), text.digits(found.alpha), f"{found.speedup:g}x"
