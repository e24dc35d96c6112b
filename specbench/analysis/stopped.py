"""Gammas that a sweep stopped measuring: apart from those that were measured on every prompt, and never chosen."""

from __future__ import annotations

from collections.abc import Mapping

from specbench.acceptance.metrics import pooled, trial_counts
from specbench.analysis.contract import StoppedGamma
from specbench.analysis.frame import ArmRows, shared_prompts
from specbench.analysis.views import arm_of, paired
from specbench.decision.interval import speedup_interval
from specbench.records import Arm, Policy
from specbench.run_record import RunRecord


def kept_arms(arms: Mapping[Arm, ArmRows], run: RunRecord) -> dict[Arm, ArmRows]:
    """Without the gammas that were stopped: what remains has every prompt."""
    stopped = {(one.draft, one.gamma) for one in run.ruled_out}
    return {arm: rows for arm, rows in arms.items() if (arm.draft, arm.gamma) not in stopped}


def stopped_gammas(
    arms: Mapping[Arm, ArmRows], spec: str, run: RunRecord, policy: Policy, excess: float
) -> tuple[StoppedGamma, ...]:
    """Those of one draft, ascending. Speedups are paired over the prompts that each was measured on, as they are: a mix
    is for what may be chosen."""
    base, found = arm_of(arms, "baseline"), []
    for one in sorted(run.ruled_out, key=lambda one: one.gamma):
        rows = arms.get(Arm("speculative", spec, one.gamma))
        shared = shared_prompts([base, rows]) if one.draft == spec and rows is not None else []
        if rows is None or not shared:
            continue
        mine = rows.of(shared)
        interval = speedup_interval(paired(base.of(shared), mine, "decode"), policy.confidence, excess)
        counts = pooled([trial_counts(trial, one.gamma) for trials in mine.trials for trial in trials])
        found.append(
            StoppedGamma(
                gamma=one.gamma,
                prompts=one.prompts,
                planned=one.planned,
                speedup=interval.value,
                speedup_low=interval.low,
                speedup_high=interval.high,
                tokens_per_round=counts.tokens_per_round,
                against=one.against,
                ratio=one.ratio,
                ratio_low=one.ratio_low,
                ratio_high=one.ratio_high,
                confidence=one.confidence,
                predicted_ratio=one.predicted_ratio,
            )
        )
    return tuple(found)
