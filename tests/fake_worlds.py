"""The truth of four made-up runs: a clear GO, a clear NO-GO, mixed by category, and too few prompts."""

from __future__ import annotations

from dataclasses import dataclass

from specbench.records import Finding, warned


@dataclass(frozen=True)
class Category:
    """One category: its speedup at its best gamma and half the width of the interval (None: too few prompts)."""

    name: str
    speedup: float
    half: float | None
    prompts: int
    best_gamma: int = 2


@dataclass(frozen=True)
class World:
    """A run's truth. Times are seconds; `alpha` is the chance that a draft is accepted after its prefix; `half` is
    half the width of every speedup's interval; `margins` are the first prompts' divergences at the largest gamma."""

    name: str
    alpha: float
    gammas: tuple[int, ...]
    half: float | None
    prompts: int
    available: int
    categories: tuple[Category, ...]
    margins: tuple[float, ...] = ()
    temperature: float = 0.0
    step_s: float = 0.025
    draft_step_s: float = 0.0035
    verify_extra: float = 0.02
    other_s: float = 0.0008
    noise_floor: float | None = 0.012
    warnings: tuple[Finding, ...] = ()
    replay: bool = True


GO = World(
    name="go",
    alpha=0.78,
    gammas=(1, 2, 4, 8),
    half=0.09,
    prompts=48,
    available=48,
    categories=(
        Category("code", 2.61, 0.14, 16, 4),
        Category("maths", 2.33, 0.12, 16, 4),
        Category("chat", 1.77, 0.11, 16, 2),
    ),
    draft_step_s=0.002,
)

NO_GO = World(
    name="no-go",
    alpha=0.35,
    gammas=(1, 2, 4),
    half=0.04,
    prompts=40,
    available=200,
    categories=(Category("summarise", 0.99, 0.05, 20, 1), Category("translate", 0.90, 0.04, 20, 1)),
    draft_step_s=0.009,
)

MIXED = World(
    name="mixed",
    alpha=0.52,
    gammas=(1, 2, 4),
    half=0.13,
    prompts=40,
    available=40,
    categories=(
        Category("code", 1.74, 0.21, 12, 4),
        Category("maths", 1.42, 0.17, 10, 2),
        Category("summarise", 0.93, 0.06, 14, 1),
        Category("chat", 1.08, None, 4, 1),
    ),
    margins=(0.002, 0.006, 0.011, 0.023),
    draft_step_s=0.006,
    warnings=(
        warned(
            "target-only-tokens",
            "the target has 12 tokens that the draft was not trained on, and will never propose",
            "If the workload uses them (tool calls, thinking), use a draft trained with them.",
        ),
    ),
)

FEW = World(
    name="few",
    alpha=0.66,
    gammas=(2,),
    half=None,
    prompts=6,
    available=120,
    categories=(Category("chat", 1.51, None, 4), Category("code", 1.62, None, 2)),
    temperature=0.7,
    noise_floor=None,
    warnings=(warned("few-prompts", "6 prompts are too few for an interval", "Measure 10 or more."),),
    replay=False,
)

WORLDS = {world.name: world for world in (GO, NO_GO, MIXED, FEW)}
