"""Gammas that a sweep stopped measuring: apart from those that were measured on every prompt, and never chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specbench import text
from specbench.acceptance.metrics import pooled, trial_counts
from specbench.analysis.contract import StoppedGamma
from specbench.analysis.frame import ArmRows, shared_prompts
from specbench.analysis.views import arm_of, paired
from specbench.decision.interval import speedup_interval
from specbench.records import Arm, Policy, RuledOut
from specbench.run_record import EndedEarly, RunRecord


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


def ruled_out_line(one: RuledOut) -> str:
    """Said while the sweep runs."""
    ratio = text.estimate(one.ratio, one.ratio_low, one.ratio_high)
    return (
        f"{one.draft} gamma {one.gamma} is stopped after {one.prompts:,} of {one.planned:,}: {ratio} of "
        f"gamma {one.against}, predicted {text.speedup(one.predicted_ratio)}"
    )


def ended_line(end: EndedEarly) -> str:
    """Said where a time budget ends a run."""
    why = "the time is up" if end.why == "time" else f"{end.why} is sure"
    return f"Stopped after {end.prompts:,} of {end.planned:,}: {why}"


def stopped_line(row: StoppedGamma, batch_size: int) -> str:
    """`gamma 8: stopped after 20 of 115 prompts, 0.71x [0.62, 0.81] of gamma 2 (predicted 0.74x); 0.93x [0.88, 0.98] of
    the target alone`"""
    unit = "prompts" if batch_size == 1 else "batches"
    against = text.estimate(row.ratio, row.ratio_low, row.ratio_high)
    alone = text.estimate(row.speedup, row.speedup_low, row.speedup_high)
    return (
        f"gamma {row.gamma}: stopped after {row.prompts:,} of {row.planned:,} {unit}, {against} of gamma {row.against} "
        f"(predicted {text.speedup(row.predicted_ratio)}); {alone} of the target alone"
    )


def stopped_note(rows: Sequence[StoppedGamma]) -> str:
    """What the lines above mean."""
    if not rows:
        return ""
    return (
        f"Stopped gammas are surely not the best ({text.percent(rows[0].confidence)} over all that was ruled out, and "
        "replay and costs agree) and cannot be chosen; their numbers are over their own prompts. --all-gammas measures "
        "them on every prompt."
    )
