"""The Summary and the StoredRun of a made-up world (see fake_worlds).

The numbers of one world hang together: tokens per round follow from survival, and speedup from tokens per round
and round time, so a reader who checks one against another finds no contradiction.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from fake_worlds import Category, World

from specbench.acceptance.lossless import lossy_reason
from specbench.analysis.contract import (
    SCHEMA,
    CategoryGamma,
    CategoryResult,
    DraftResult,
    GammaResult,
    RoundTime,
    Summary,
    Texts,
)
from specbench.analysis.facts import read_facts
from specbench.analysis.results import texts_of
from specbench.config import RunConfig
from specbench.decision.verdict import Gates, judge
from specbench.records import Arm, Divergence, Interval, Policy, Reason, Times, Trial
from specbench.report import brief
from specbench.report.explain.explain import Explanation, Level
from specbench.report.explain.explain import explain_run as explained
from specbench.run_record import CategoryCount, Machine, ModelFacts, Provenance, RunRecord, Status, WorkloadFacts
from specbench.store import StoredRun

TARGET = "demo:target"
DRAFT = "demo:draft"
ENGINE = "transformers models in process, specbench loop (cpu)"
HARDWARE = "Example CPU 3000, 2 cores, 8 GiB"


def of_run(stored: StoredRun, summary: Summary) -> Summary:
    """A Summary whose numbers were made up, with what summarise would say of the run beside them."""
    run, trials = stored.run, stored.main
    greedy = run.config.sampling.greedy

    def texts(draft: str, gamma: int | None) -> Texts | None:
        own = [t for t in trials if t.arm.draft == draft and gamma in (None, t.arm.gamma)]
        return texts_of(own, draft, run.precision) if greedy and own else None

    def told(draft: DraftResult) -> DraftResult:
        gammas = tuple(replace(row, texts=texts(draft.draft, row.gamma)) for row in draft.gammas)
        share = next((row.slower_share for row in gammas if row.gamma == draft.best_gamma), None)
        share = share if draft.slower_share is None else draft.slower_share
        return replace(draft, gammas=gammas, texts=texts(draft.draft, None), slower_share=share)

    return replace(
        summary,
        run=str(stored.folder),
        policy=run.config.policy,
        facts=read_facts(stored),
        drafts=tuple(told(draft) for draft in summary.drafts),
        trials_run=len(trials),
        trials_disturbed=sum(trial.disturbed for trial in trials),
        baseline_texts=texts_of(trials, None, run.precision).differing,
    )


def render_brief(stored: StoredRun, summary: Summary) -> str:
    return brief.render_brief(of_run(stored, summary))


def write_brief(stored: StoredRun, summary: Summary, folder: Path | None = None) -> Path:
    return brief.write_brief(of_run(stored, summary), folder)


def explain_run(stored: StoredRun, summary: Summary, level: Level) -> Explanation:
    return explained(of_run(stored, summary), level)


def summary_of(world: World) -> Summary:
    """The world's Summary, one draft."""
    gammas = tuple(_gamma(world, gamma) for gamma in world.gammas)
    best = max(gammas, key=lambda row: row.speedup)
    # Choosing gamma on other prompts costs a little against the best row.
    expected = _interval(best.speedup - (0.01 if len(gammas) > 1 else 0), world.half, world.prompts)
    trials = _trials(world, world.gammas)
    verdict = judge(expected, Policy(), Gates(best.slower_share, lossy=lossy_reason(trials, "bfloat16")))
    draft = DraftResult(
        draft=DRAFT,
        verdict=verdict.call,
        reasons=verdict.reasons,
        best_gamma=best.gamma,
        speedup=expected.value,
        speedup_low=expected.low,
        speedup_high=expected.high,
        probability=verdict.probability,
        baseline_tokens_per_s=1 / world.step_s,
        alpha=world.alpha,
        alpha_low=None if world.half is None else world.alpha - 0.03,
        alpha_high=None if world.half is None else world.alpha + 0.03,
        gammas=gammas,
        categories=tuple(_category(world, category) for category in world.categories),
    )
    return Summary(
        run=f"20250102T030405Z-{world.name}",
        schema=SCHEMA,
        policy=Policy(),
        facts=read_facts(_stored(world, Path("reports"))),
        target=TARGET,
        engine=ENGINE,
        hardware=HARDWARE,
        noise_floor=world.noise_floor,
        drafts=(draft,),
        warnings=world.warnings,
    )


def stored_of(world: World, folder: Path, *, status: Status = "finished", missing: int = 0) -> StoredRun:
    """The world's run folder as read from disk, `missing` trials short; nothing is written."""
    return _stored(world, folder, status=status, missing=missing)


def _stored(world: World, folder: Path, *, status: Status = "finished", missing: int = 0) -> StoredRun:
    trials = _trials(world, world.gammas)
    config = replace(
        RunConfig(), gamma=world.gammas, temperature=world.temperature, limit=world.prompts, policy=Policy()
    )
    run = RunRecord(
        status=status,
        command="sweep",
        name=world.name,
        config=config,
        fingerprint="f" * 64,
        provenance=_provenance(world, status),
        target=ModelFacts("Example-Target-135M", "b179c952", 134_515_008, 269_000_000),
        drafts={DRAFT: ModelFacts("example-draft", None, 15_700_000, 31_400_000)},
        workload=WorkloadFacts(
            "workloads/mixed.jsonl",
            "0123456789abcdef" * 4,
            world.available,
            world.prompts,
            {c.name: CategoryCount(c.prompts, c.prompts) for c in world.categories},
        ),
        trials_planned=len(trials),
    )
    return StoredRun(folder / f"20250102T030405Z-{world.name}", run, tuple(trials[: len(trials) - missing]), torn=False)


def with_second_draft(summary: Summary, name: str = "ngram:n=3") -> Summary:
    """The same run with one more draft, a little slower everywhere."""
    draft = summary.drafts[0]
    slower = replace(
        draft,
        draft=name,
        verdict="NO-GO",
        reasons=(Reason("odds", {"minimum": 1.10, "confidence": 0.95, "probability": 0.0}),),
        probability=0.0,
        speedup=draft.speedup - 0.4,
        speedup_low=None if draft.speedup_low is None else draft.speedup_low - 0.4,
        speedup_high=None if draft.speedup_high is None else draft.speedup_high - 0.4,
        gammas=tuple(_less_accepted(_shifted(row)) for row in draft.gammas),
        categories=tuple(_shifted(row) for row in draft.categories),
    )
    return replace(summary, drafts=(draft, slower))


def _shifted(row: Any) -> Any:
    low = None if row.speedup_low is None else row.speedup_low - 0.4
    high = None if row.speedup_high is None else row.speedup_high - 0.4
    return replace(row, speedup=row.speedup - 0.4, speedup_low=low, speedup_high=high)


def _less_accepted(row: GammaResult) -> GammaResult:
    survival = tuple(None if share is None else share * 0.7 for share in row.survival)
    predicted = None if row.predicted_speedup is None else row.predicted_speedup - 0.4
    return replace(
        row, survival=survival, tokens_per_round=1 + sum(s or 0 for s in survival), predicted_speedup=predicted
    )


def _gamma(world: World, gamma: int) -> GammaResult:
    survival = tuple(world.alpha**j for j in range(1, gamma + 1))
    tau = 1 + sum(survival)
    times = RoundTime(gamma * world.draft_step_s, world.step_s * (1 + world.verify_extra * gamma), world.other_s)
    speedup = tau * world.step_s / (times.draft_s + times.verify_s + times.other_s)
    measured = _interval(speedup, world.half, world.prompts)
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
        speedup_low=measured.low,
        speedup_high=measured.high,
        speedup_e2e=1 + (speedup - 1) * 0.9,
        tokens_per_s=speedup / world.step_s,
        predicted_speedup=speedup * (1 + 0.01 * gamma) if world.replay else None,
        identical_prompts=world.prompts - len(_margins_at(world, gamma)) if greedy else None,
        prompts=world.prompts,
        slower_share=max(0.0, min(1.0, 1.2 - speedup)),
        round_time=times,
    )


def _category(world: World, category: Category) -> CategoryResult:
    rows = []
    for gamma in world.gammas:
        at = _interval(category.speedup - 0.05 * abs(gamma - category.best_gamma), category.half, category.prompts)
        rows.append(CategoryGamma(gamma, at.value, at.low, at.high, 1 + 0.4 * gamma, 0.4))
    expected = _interval(category.speedup, category.half, category.prompts)
    verdict = judge(expected, Policy(), Gates())
    return CategoryResult(
        category.name,
        verdict.call,
        verdict.reasons,
        category.best_gamma,
        expected.value,
        expected.low,
        expected.high,
        category.prompts,
        1 / world.step_s,
        tuple(rows),
    )


def _interval(value: float, half: float | None, n: int) -> Interval:
    """An interval with normal draws, so that the real rule can judge it."""
    if half is None:
        return Interval(value, None, None, 0.95, n)
    normal = NormalDist(value, half / 1.96)
    draws = tuple(normal.inv_cdf((i + 0.5) / 2000) for i in range(2000))
    return Interval(value, value - half, value + half, 0.95, n, draws)


def _trials(world: World, gammas: tuple[int, ...]) -> list[Trial]:
    """Interleaved by prompt: the target alone, then every gamma. The first prompts diverge."""
    names = [c.name for c in world.categories for _ in range(c.prompts)]
    trials = []
    for index in range(world.prompts):
        trials.append(_trial(world, index, names[index], Arm("baseline"), ()))
        for gamma in gammas:
            arm = Arm("speculative", DRAFT, gamma)
            trials.append(_trial(world, index, names[index], arm, (gamma,) * 10))
    return trials


def _margins_at(world: World, gamma: int | None) -> tuple[float, ...]:
    return world.margins if gamma == world.gammas[-1] else ()


def _trial(world: World, index: int, category: str, arm: Arm, drafted: tuple[int, ...]) -> Trial:
    margins = _margins_at(world, arm.gamma)
    margin = margins[index] if index < len(margins) else None
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


def _provenance(world: World, status: str) -> Provenance:
    done = status == "finished"
    return Provenance(
        engine=ENGINE,
        argv=("specbench", "sweep", "--limit", str(world.prompts), "--name", world.name),
        started="2025-01-02T03:04:05+00:00",
        versions={"specbench": "0.1.0", "python": "3.11.9", "torch": "2.9.0", "transformers": "5.23.0"},
        commit="abc1234",
        platform="Linux-6.1-x86_64",
        hardware=Machine(line=HARDWARE),
        device="cpu",
        precision="bfloat16",
        threads=2,
        load_at_start=0.31,
        finished="2025-01-02T03:24:05+00:00" if done else None,
        load_at_end=2.04 if done else None,
    )
