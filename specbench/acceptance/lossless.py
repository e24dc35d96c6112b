"""Whether greedy speculative text is the target's own, and if not, whether rounding explains it.

A verify pass over n tokens rounds differently from n single steps. Where the two best tokens are nearly tied that
flips the arg-max and the text goes its own way from there: numerics. A flip across a wide margin is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable

from specbench.records import Divergence, Reason, Trial

# Largest top-2 margin, over the top logit's magnitude, that rounding may flip: 4 units in the last place of the dtype.
# The largest of 126 seen in bfloat16 was 3 (docs/measuring.md section 10).
NEAR_TIE = {"float32": 4 * 2.0**-23, "float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}

# The same for a server, which tells log-probabilities and not the precision of its logits: the bfloat16 limit at a top
# logit of 16, in nats.
NEAR_TIE_NATS = 16 * NEAR_TIE["bfloat16"]


def near_tie_limit(dtype: str | None) -> float:
    """The largest margin that rounding may flip; in a precision that is not one of ours, or not known, the largest of
    all: only what no precision explains is called a bug."""
    return NEAR_TIE.get(dtype or "", max(NEAR_TIE.values()))


def is_near_tie(margin: float, dtype: str | None) -> bool:
    """Whether rounding in `dtype` can explain a divergence at a position with this relative top-2 margin."""
    return margin <= near_tie_limit(dtype)


def explained(diverged: Divergence, dtype: str | None) -> bool:
    """Whether rounding can explain a divergence, by whichever distance of the two best tokens is known."""
    if diverged.margin is not None:
        return is_near_tie(diverged.margin, dtype)
    return diverged.gap is None or diverged.gap <= NEAR_TIE_NATS


def lossy_reason(trials: Iterable[Trial], dtype: str | None) -> Reason | None:
    """Why the speculative text of these trials is not the target's; None while rounding explains every divergence."""
    wide = [(t, t.diverged) for t in trials if t.diverged is not None and not explained(t.diverged, dtype)]
    if not wide:
        return None
    worst, at = max(wide, key=lambda pair: pair[1].margin if pair[1].margin is not None else pair[1].gap or 0.0)
    return Reason(
        "not-lossless",
        {
            "prompts": len({t.prompt_id for t, _ in wide}),
            "prompt_id": worst.prompt_id,
            "index": at.index,
            "margin": at.margin,
            "gap": at.gap,
            "precision": dtype if at.margin is not None and dtype in NEAR_TIE else None,
        },
    )
