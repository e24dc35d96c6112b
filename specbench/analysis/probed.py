"""The folder of a probe to what `probe --json` and its tables show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specbench.records import Bandwidth, CostPoint, Finding
from specbench.run_record import ModelFacts, RunRecord
from specbench.store import StoredRun

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One token in each sequence of a batch. `cost` is c = t_draft / t_dec, of a draft."""

    batch: int
    context: int
    step_s: float
    step_low_s: float
    step_high_s: float
    tokens_per_s: float
    cost: float | None
    cost_low: float | None
    cost_high: float | None


@dataclass(frozen=True, slots=True)
class Width:
    """Several tokens at once in each sequence. `ratio` is v(n) = t(n) / t(1) of the same model."""

    batch: int
    context: int
    tokens: int
    pass_s: float
    pass_low_s: float
    pass_high_s: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A whole draft phase at batch 1, sampling included. `ratio` is to `gamma` single steps."""

    context: int
    gamma: int
    phase_s: float
    phase_low_s: float
    phase_high_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Prefill:
    """A whole prompt in each sequence of a batch."""

    batch: int
    tokens: int
    prefill_s: float
    prefill_low_s: float
    prefill_high_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """A round of a server that drafts `gamma` tokens and keeps none, with so many clients at once. `steps` is in steps
    of the target alone under the same load, pass by pass: what a round has to give to break even."""

    draft: str
    concurrency: int
    context: int
    gamma: int
    step_s: float
    round_s: float
    round_low_s: float
    round_high_s: float
    steps: float
    steps_low: float
    steps_high: float


@dataclass(frozen=True, slots=True)
class ProbedModel:
    """One model. `step_bytes` are the weights that one token reads, `least_step_s` the time that takes at the measured
    bandwidth."""

    model: str
    role: str
    parameters: int
    weight_bytes: int
    step_bytes: int
    least_step_s: float
    steps: tuple[Step, ...]
    widths: tuple[Width, ...]
    phases: tuple[Phase, ...]
    prefills: tuple[Prefill, ...]


@dataclass(frozen=True, slots=True)
class ProbeSummary:
    """Of models in process each alone, of a server whole rounds."""

    run: str
    schema: int
    engine: str
    hardware: str
    precision: str | None
    threads: int | None
    bandwidth: Bandwidth | None
    models: tuple[ProbedModel, ...]
    warnings: tuple[Finding, ...]
    rounds: tuple[Round, ...] = ()


def probed(stored: StoredRun) -> ProbeSummary:
    run = stored.run
    origin, points, memory = run.provenance, run.probe or (), run.bandwidth
    models = [] if memory is None else _models(run, points, memory)
    return ProbeSummary(
        run=str(stored.folder),
        schema=SCHEMA,
        engine=origin.engine,
        hardware=origin.hardware.line or "hardware not known",
        precision=origin.precision,
        threads=origin.threads,
        bandwidth=memory,
        models=tuple(models),
        warnings=run.warnings,
        rounds=_rounds(points),
    )


def _rounds(points: Sequence[CostPoint]) -> tuple[Round, ...]:
    every = [p for p in points if p.phase == "round"]
    alone = {(p.model, p.batch): p.median_s for p in every if p.tokens == 1}
    found = []
    for p in sorted(every, key=lambda p: (str(p.model), p.batch, p.tokens)):
        if p.tokens > 1:
            step_s = alone[p.model, p.batch]
            ratios = [each / step_s for each in _times(p)]
            found.append(Round(str(p.model), p.batch, p.context, p.tokens - 1, step_s, *_times(p), *ratios))
    return tuple(found)


def _models(run: RunRecord, points: Sequence[CostPoint], memory: Bandwidth) -> list[ProbedModel]:
    target = {(p.batch, p.context): p for p in points if p.model is None and _is_step(p)}
    models = [_model(None, run.target, points, target, memory)]
    return models + [_model(name, facts, points, target, memory) for name, facts in run.drafts.items()]


def _is_step(point: CostPoint) -> bool:
    return point.phase == "read" and point.context > 0 and point.tokens == 1


def _model(
    name: str | None,
    facts: ModelFacts,
    every: Sequence[CostPoint],
    target: Mapping[tuple[int, int], CostPoint],
    memory: Bandwidth,
) -> ProbedModel:
    assert facts.name is not None and facts.parameters is not None
    assert facts.weight_bytes is not None and facts.step_bytes is not None
    points = [p for p in every if p.model == name]
    reads = [p for p in points if p.phase == "read"]
    single = {(p.batch, p.context): p for p in reads if _is_step(p)}
    wide = sorted((p for p in reads if p.context and p.tokens > 1), key=lambda p: (p.batch, p.context, p.tokens))
    phases = sorted((p for p in points if p.phase == "draft"), key=lambda p: (p.context, p.tokens))
    prefills = sorted((p for p in reads if not p.context), key=lambda p: (p.batch, p.tokens))
    known = {} if name is None else target
    unknown = (None, None, None)
    return ProbedModel(
        model=facts.name,
        role="target" if name is None else "draft",
        parameters=facts.parameters,
        weight_bytes=facts.weight_bytes,
        step_bytes=facts.step_bytes,
        least_step_s=facts.step_bytes / memory.bytes_per_s,
        steps=tuple(
            Step(*at, *_times(p), p.batch / p.median_s, *(_ratio(p, known[at]) if at in known else unknown))
            for at, p in sorted(single.items())
        ),
        widths=tuple(
            Width(p.batch, p.context, p.tokens, *_times(p), *_ratio(p, single[p.batch, p.context])) for p in wide
        ),
        phases=tuple(
            Phase(p.context, p.tokens, *_times(p), p.median_s / (p.tokens * single[1, p.context].median_s))
            for p in phases
        ),
        prefills=tuple(Prefill(p.batch, p.tokens, *_times(p), p.batch * p.tokens / p.median_s) for p in prefills),
    )


def _times(p: CostPoint) -> tuple[float, float, float]:
    return p.median_s, p.low_s, p.high_s


def _ratio(of: CostPoint, to: CostPoint) -> tuple[float, float, float]:
    """Value, low, high. The ends pair the two intervals' opposite ends, so the interval is on the wide side."""
    return of.median_s / to.median_s, of.low_s / to.high_s, of.high_s / to.low_s
