"""Four made-up runs with known answers: a clear GO, a clear NO-GO, mixed by category, and too few prompts.

The numbers of one world hang together: tokens per round follow from survival, and speedup from tokens per round
and round time, so a reader who checks one against another finds no contradiction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specbench.config import RunConfig
from specbench.records import Arm, Call, Caution, Divergence, Policy, Times, Trial
from specbench.report.contract import CategoryGamma, CategoryResult, DraftResult, GammaResult, RoundTime, Summary
from specbench.store import StoredRun

TARGET = "demo:target"
DRAFT = "demo:draft"
ENGINE = "transformers models in process, specbench loop (cpu)"
HARDWARE = "Example CPU 3000, 2 cores, 8 GiB"


@dataclass(frozen=True)
class Category:
    """One category: its verdict, the speedup at its best gamma, half the width of the interval (None: none)."""

    name: str
    verdict: Call
    speedup: float
    half: float | None
    prompts: int
    best_gamma: int = 2


@dataclass(frozen=True)
class World:
    """A run's truth. Times are seconds; `alpha` is the chance that a draft is accepted after its prefix."""

    name: str
    verdict: Call
    reasons: tuple[str, ...]
    probability: float | None
    alpha: float
    gammas: tuple[int, ...]
    half: float | None
    prompts: int
    available: int
    categories: tuple[Category, ...]
    margins: tuple[float | None, ...] = ()
    temperature: float = 0.0
    step_s: float = 0.025
    draft_step_s: float = 0.0035
    verify_extra: float = 0.02
    other_s: float = 0.0008
    noise_floor: float | None = 0.012
    warnings: tuple[Caution, ...] = ()
    replay: bool = True


GO = World(
    name="go",
    verdict="GO",
    reasons=(
        "P(speedup >= 1.10) is 1.00, at least 0.95",
        "12 % of prompts were slower than 0.95x, at most 25 % allowed",
    ),
    probability=1.0,
    alpha=0.78,
    gammas=(1, 2, 4, 8),
    half=0.09,
    prompts=48,
    available=48,
    categories=(
        Category("code", "GO", 2.01, 0.14, 16, 4),
        Category("maths", "GO", 1.83, 0.12, 16, 4),
        Category("chat", "GO", 1.37, 0.11, 16, 2),
    ),
    draft_step_s=0.002,
)

NO_GO = World(
    name="no-go",
    verdict="NO-GO",
    reasons=("P(speedup >= 1.10) is 0.00, at most 0.05",),
    probability=0.0,
    alpha=0.35,
    gammas=(1, 2, 4),
    half=0.04,
    prompts=40,
    available=200,
    categories=(
        Category("summarise", "NO-GO", 0.99, 0.05, 20, 1),
        Category("translate", "NO-GO", 0.90, 0.04, 20, 1),
    ),
    draft_step_s=0.009,
)

MIXED = World(
    name="mixed",
    verdict="UNCLEAR",
    reasons=("P(speedup >= 1.10) is 0.62, between 0.05 and 0.95",),
    probability=0.62,
    alpha=0.52,
    gammas=(1, 2, 4),
    half=0.13,
    prompts=40,
    available=40,
    categories=(
        Category("code", "GO", 1.74, 0.21, 12, 4),
        Category("maths", "GO", 1.42, 0.17, 10, 2),
        Category("summarise", "NO-GO", 0.93, 0.06, 14, 1),
        Category("chat", "UNCLEAR", 1.08, None, 4, 1),
    ),
    margins=(0.02, 0.06, 0.11, 1.9),
    draft_step_s=0.0075,
    warnings=(
        Caution(
            "few-prompts", "The category chat has 4 prompts: no interval.", "Add at least 6 prompts of that category."
        ),
    ),
)

FEW = World(
    name="few",
    verdict="UNCLEAR",
    reasons=("6 prompts are too few for an interval",),
    probability=None,
    alpha=0.66,
    gammas=(2,),
    half=None,
    prompts=6,
    available=120,
    categories=(Category("chat", "UNCLEAR", 1.31, None, 4), Category("code", "UNCLEAR", 1.44, None, 2)),
    temperature=0.7,
    noise_floor=None,
    replay=False,
)

WORLDS = {world.name: world for world in (GO, NO_GO, MIXED, FEW)}


def summary_of(world: World) -> Summary:
    """The world's Summary, one draft."""
    gammas = tuple(_gamma(world, gamma) for gamma in world.gammas)
    best = max(gammas, key=lambda row: row.speedup)
    low, high = _ends(best.speedup - 0.01, world.half)
    draft = DraftResult(
        draft=DRAFT,
        verdict=world.verdict,
        reasons=world.reasons,
        best_gamma=best.gamma,
        speedup=best.speedup - 0.01 if len(gammas) > 1 else best.speedup,
        speedup_low=low,
        speedup_high=high,
        probability=world.probability,
        baseline_tokens_per_s=1 / world.step_s,
        alpha=world.alpha,
        alpha_low=None if world.half is None else world.alpha - 0.03,
        alpha_high=None if world.half is None else world.alpha + 0.03,
        gammas=gammas,
        categories=tuple(_category(world, category) for category in world.categories),
    )
    return Summary(
        run=f"20250102T030405Z-{world.name}",
        schema=1,
        target=TARGET,
        engine=ENGINE,
        hardware=HARDWARE,
        noise_floor=world.noise_floor,
        drafts=(draft,),
        warnings=world.warnings,
    )


def stored_of(world: World, folder: Path, *, status: str = "finished", missing: int = 0) -> StoredRun:
    """The world's run folder as read from disk, `missing` trials short; nothing is written."""
    summary = summary_of(world)
    trials = _trials(world, summary.drafts[0])
    config = replace(
        RunConfig(), gamma=world.gammas, temperature=world.temperature, limit=world.prompts, policy=Policy()
    )
    run: dict[str, Any] = {
        "schema": 1,
        "status": status,
        "command": "sweep",
        "name": world.name,
        "config": config.as_dict(),
        "fingerprint": "f" * 64,
        "provenance": _provenance(world),
        "target": {
            "name": "Example-Target-135M",
            "parameters": 134_515_008,
            "weight_bytes": 269e6,
            "revision": "b179c952",
        },
        "drafts": {
            DRAFT: {"name": "example-draft", "parameters": 15_700_000, "weight_bytes": 31_400_000, "revision": None}
        },
        "workload": {
            "source": "workloads/mixed.jsonl",
            "sha256": "0123456789abcdef" * 4,
            "prompts_available": world.available,
            "prompts_used": world.prompts,
            "categories": {c.name: {"available": c.prompts, "used": c.prompts} for c in world.categories},
            "skipped": [],
        },
        "trials_planned": len(trials),
        "warnings": [],
    }
    return StoredRun(folder / summary.run, run, tuple(trials[: len(trials) - missing]), torn=False)


def with_second_draft(summary: Summary, name: str = "ngram:n=3") -> Summary:
    """The same run with one more draft, a little slower everywhere."""
    draft = summary.drafts[0]
    slower = replace(
        draft,
        draft=name,
        verdict="NO-GO",
        speedup=draft.speedup - 0.4,
        speedup_low=None if draft.speedup_low is None else draft.speedup_low - 0.4,
        speedup_high=None if draft.speedup_high is None else draft.speedup_high - 0.4,
        gammas=tuple(_shifted(row) for row in draft.gammas),
        categories=tuple(_shifted(row) for row in draft.categories),
    )
    return replace(summary, drafts=(draft, slower))


def _shifted(row: Any) -> Any:
    low = None if row.speedup_low is None else row.speedup_low - 0.4
    high = None if row.speedup_high is None else row.speedup_high - 0.4
    return replace(row, speedup=row.speedup - 0.4, speedup_low=low, speedup_high=high)


def _gamma(world: World, gamma: int) -> GammaResult:
    survival = tuple(world.alpha**j for j in range(1, gamma + 1))
    tau = 1 + sum(survival)
    times = RoundTime(gamma * world.draft_step_s, world.step_s * (1 + world.verify_extra * gamma), world.other_s)
    speedup = tau * world.step_s / (times.draft_s + times.verify_s + times.other_s)
    low, high = _ends(speedup, world.half)
    rounds = round(world.prompts * 63 / tau)
    accepted = round(rounds * (tau - 1))
    greedy = world.temperature == 0
    return GammaResult(
        gamma=gamma,
        rounds=rounds,
        drafted=rounds * gamma,
        accepted=accepted,
        emitted=rounds + accepted,
        acceptance_rate=accepted / (rounds * gamma),
        tokens_per_round=tau,
        replay_tokens_per_round=tau + 0.01 if world.replay else None,
        replay_rounds=float(rounds) if world.replay else None,
        survival=survival,
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        speedup_e2e=1 + (speedup - 1) * 0.9,
        tokens_per_s=speedup / world.step_s,
        predicted_speedup=speedup * (1 + 0.01 * gamma) if world.replay else None,
        identical_prompts=world.prompts - len(world.margins) if greedy else None,
        prompts=world.prompts,
        slower_share=max(0.0, min(1.0, 1.2 - speedup)),
        round_time=times,
    )


def _category(world: World, category: Category) -> CategoryResult:
    rows = []
    for gamma in world.gammas:
        speedup = category.speedup - 0.05 * abs(gamma - category.best_gamma)
        low, high = _ends(speedup, category.half)
        rows.append(CategoryGamma(gamma, speedup, low, high, 1 + 0.4 * gamma, 0.4))
    low, high = _ends(category.speedup, category.half)
    return CategoryResult(
        category.name,
        category.verdict,
        (f"made up for {category.name}",),
        category.best_gamma,
        category.speedup,
        low,
        high,
        category.prompts,
        1 / world.step_s,
        tuple(rows),
    )


def _ends(value: float, half: float | None) -> tuple[float | None, float | None]:
    return (None, None) if half is None else (value - half, value + half)


def _trials(world: World, draft: DraftResult) -> list[Trial]:
    """Interleaved by prompt: the target alone, then every gamma. The first prompts diverge."""
    names = [c.name for c in world.categories for _ in range(c.prompts)]
    trials = []
    for index in range(world.prompts):
        trials.append(_trial(world, index, names[index], Arm("baseline"), ()))
        for row in draft.gammas:
            arm = Arm("speculative", DRAFT, row.gamma)
            trials.append(_trial(world, index, names[index], arm, (row.gamma,) * 10))
    return trials


def _trial(world: World, index: int, category: str, arm: Arm, drafted: tuple[int, ...]) -> Trial:
    margin = world.margins[index] if index < len(world.margins) and arm.gamma == world.gammas[-1] else None
    compared = arm.kind == "speculative" and world.temperature == 0
    return Trial(
        prompt_id=f"prompt-{index}",
        prompt_sha256=f"{index:064x}",
        category=category,
        arm=arm,
        repeat=0,
        prompt_tokens=60,
        output_tokens=64,
        output_sha256="0" * 64,
        finish="eos" if index % 4 == 0 else "length",
        drafted=drafted,
        accepted=(0,) * len(drafted),
        times=Times(0.12, 0.0, 0.0, 63 * world.step_s, 0.0, 0.12 + 63 * world.step_s),
        identical=(margin is None) if compared else None,
        diverged=Divergence(17, margin) if compared and margin is not None else None,
    )


def _provenance(world: World) -> dict[str, Any]:
    return {
        "argv": ["specbench", "sweep", "--limit", str(world.prompts), "--name", world.name],
        "started": "2025-01-02T03:04:05+00:00",
        "finished": "2025-01-02T03:24:05+00:00",
        "duration_s": 1200.0,
        "versions": {"specbench": "0.1.0", "python": "3.11.9", "torch": "2.9.0", "transformers": "5.23.0"},
        "commit": "abc1234",
        "platform": "Linux-6.1-x86_64",
        "hardware": {"line": HARDWARE},
        "engine": ENGINE,
        "device": "cpu",
        "precision": "bfloat16",
        "threads": 2,
        "load_at_start": 0.31,
        "load_at_end": 2.04,
    }
