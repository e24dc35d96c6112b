"""Whether greedy speculative text is the target's own, and if not, whether rounding explains it.

A verify pass over n tokens rounds differently from n single steps. Where the two best tokens are nearly tied that
flips the arg-max and the text goes its own way from there: numerics. A flip across a wide margin is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable

from specbench.records import Trial

# Largest top-2 margin, over the top logit's magnitude, that rounding may flip: 4 units in the last place of the dtype.
# The largest of 126 seen in bfloat16 was 3 (docs/measuring.md section 10).
NEAR_TIE = {"float32": 4 * 2.0**-23, "float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}


def is_near_tie(margin: float, dtype: str) -> bool:
    """Whether rounding in `dtype` can explain a divergence at a position with this relative top-2 margin."""
    return margin <= NEAR_TIE[dtype]


def lossy_reason(trials: Iterable[Trial], dtype: str) -> str | None:
    """Why the speculative text of these trials is not the target's; None while rounding explains every divergence."""
    wide = [t for t in trials if t.diverged is not None and not is_near_tie(t.diverged.margin, dtype)]
    if not wide:
        return None
    worst = max(wide, key=lambda t: t.diverged.margin if t.diverged else 0.0)
    assert worst.diverged is not None
    prompts = len({t.prompt_id for t in wide})
    return (
        f"not lossless: the text of {prompts} prompt{'s' if prompts > 1 else ''} leaves the target's own where "
        f"rounding in {dtype} cannot explain it (prompt {worst.prompt_id}, token {worst.diverged.index}, "
        f"top-2 margin {worst.diverged.margin:.1%} of the logit)"
    )
