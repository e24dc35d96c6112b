"""What a stored run of a few prompts tells the next one: how much prompts differ, and what a prompt takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specbench.analysis.facts import Cost, cost_of
from specbench.analysis.frame import ArmRows, arm_of, by_arm, kept_arms, paired, shared_prompts
from specbench.analysis.summarise import require_timed
from specbench.decision.interval import choose_gamma
from specbench.decision.plan import influence
from specbench.errors import StoreError
from specbench.records import Arm, Policy
from specbench.store import StoredRun


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the pilot's prompts: how they decide the log speedup [n], and what they take. `noise` [n] is the same for
    the target alone against itself; None without that arm."""

    n: int
    speedup: float
    influence: np.ndarray
    noise: np.ndarray | None
    slower_share: float
    cost: Cost


@dataclass(frozen=True, slots=True)
class Pilot:
    """One draft of a pilot, as a whole and by category. `gammas` are those that the speedup was chosen among."""

    draft: str
    drafts: int
    gammas: tuple[int, ...]
    repeats: int
    aa_log_ratio: float | None
    whole: Part
    categories: dict[str, Part]


def read_pilot(stored: StoredRun, policy: Policy, gammas: Sequence[int] | None) -> Pilot:
    """The draft of a run whose prompts differ most, at those of `gammas` that it was timed at (all, where none was).

    Raises StoreError on a run without a wall clock, and where fewer than two prompts have met every arm.
    """
    require_timed(stored, "it cannot say how long a prompt takes")
    found = read_pilots(stored, policy, gammas)
    if not found:
        raise StoreError(
            "Fewer than 2 prompts were measured in every arm, and how much prompts differ takes 2",
            where=str(stored.folder),
            hint="Measure some more (16 make a fair pilot), or plan from assumptions with --spread.",
        )
    return max(found.values(), key=lambda pilot: float(pilot.whole.influence.std()))


def read_pilots(stored: StoredRun, policy: Policy, gammas: Sequence[int] | None) -> dict[str, Pilot]:
    """Every draft of which two prompts or more met every arm."""
    measured = kept_arms(by_arm(stored.main), stored.run)
    found = {spec: _pilot(stored, measured, spec, policy, gammas) for spec in stored.run.config.draft}
    return {spec: pilot for spec, pilot in found.items() if pilot is not None}


def _pilot(
    stored: StoredRun, measured: Mapping[Arm, ArmRows], spec: str, policy: Policy, gammas: Sequence[int] | None
) -> Pilot | None:
    arms = {arm.gamma: rows for arm, rows in measured.items() if arm.draft == spec and arm.gamma is not None}
    timed = sorted(arms)
    base, again = arm_of(measured, "baseline"), arm_of(measured, "baseline-again")
    # A prompt that decoded nothing in an arm has no seconds per token.
    shared = shared_prompts(rows.take(rows.decode_tokens > 0) for rows in (base, *arms.values())) if arms else []
    if len(shared) < 2:
        return None
    asked = [gamma for gamma in timed if gamma in (gammas or timed)] or timed
    twice = set(again.prompt_id)

    def part(prompts: list[str]) -> Part:
        alone = base.of(prompts)
        choice = choose_gamma({gamma: paired(alone, arms[gamma].of(prompts), policy.metric) for gamma in asked})
        return Part(
            n=len(prompts),
            speedup=choice.paired.speedup,
            influence=influence(choice.paired),
            noise=influence(paired(alone, again.of(prompts), policy.metric)) if twice.issuperset(prompts) else None,
            slower_share=float((choice.paired.by_prompt < policy.slower_than).mean()),
            cost=cost_of(stored, set(prompts)),
        )

    aa = None
    if twice.issuperset(shared):
        aa = float(np.log(paired(base.of(shared), again.of(shared), policy.metric).speedup))
    category = dict(zip(base.prompt_id, base.category, strict=True))
    return Pilot(
        draft=spec,
        drafts=len(stored.run.config.draft),
        gammas=tuple(asked),
        repeats=stored.run.config.repeats,
        aa_log_ratio=aa,
        whole=part(shared),
        categories={
            name: part([prompt for prompt in shared if category[prompt] == name])
            for name in sorted({category[prompt] for prompt in shared})
        },
    )
