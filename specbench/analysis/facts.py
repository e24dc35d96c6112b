"""What a brief needs to know beside the Summary, from run.json and the trials. What is absent is None and not shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specbench.acceptance.lossless import explained
from specbench.analysis.frame import counted, loads_of
from specbench.records import Divergence, Load, Policy, ReferenceCheck, Sampling, Trial
from specbench.run_record import ModelFacts, Provenance, RunRecord
from specbench.store import StoredRun

# With more of the answers cut than this, a run says little about how long answers go on.
MANY_CUT = 0.5


@dataclass(frozen=True, slots=True)
class Model:
    """One model as it was loaded. `parameters` is a count; `ends` are the ids at which the target's texts ended, empty
    where they are not known; `head` is the kind of a draft head, None for a model."""

    spec: str
    name: str
    parameters: int | None
    weight_bytes: int | None
    revision: str | None
    ends: tuple[int, ...] = ()
    head: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts: `used` of `available` were measured. `templated` is whether a chat template wrote them, None where a
    server did."""

    source: str | None
    sha256: str | None
    available: int | None
    used: int | None
    templated: bool | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """The run beside its numbers. `done` of `planned` trials are stored, `spared` need not be run, since their gamma
    was ruled out; `prefill_share` is of the wall clock of the target alone; `cut_share` is the share of its outputs
    that the token limit ended, both at the first of the `loads`. `served` says that the target ran on a server,
    `sliced` that arms took turns within a prompt. `prompt_tokens` are the shortest and the longest measured prompt."""

    status: str
    argv: tuple[str, ...]
    policy: Policy
    sampling: Sampling
    precision: str | None
    threads: int | None
    max_new_tokens: int
    batch_size: int
    target: Model
    drafts: dict[str, Model]
    workload: Workload
    planned: int | None
    done: int
    prefill_share: float | None
    cut_share: float | None
    provenance: Provenance
    fingerprint: str | None
    served: bool = False
    sliced: bool = False
    loads: tuple[Load, ...] = (Load(),)
    spared: int = 0
    reference: tuple[ReferenceCheck, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: tuple[int, int] | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def _range(lengths: Sequence[int]) -> tuple[int, int] | None:
    return (min(lengths), max(lengths)) if lengths else None


def read_facts(stored: StoredRun) -> Facts:
    """Everything but the measured results, which are the Summary's."""
    run = stored.run
    config, provenance = run.config, run.provenance
    loads = loads_of(stored)
    done = counted(stored.trials)
    main = [trial for trial in done if trial.arm.load == loads[0]]
    return Facts(
        status=stored.status,
        argv=provenance.argv,
        policy=config.policy,
        sampling=config.sampling,
        precision=run.precision,
        threads=provenance.threads or config.threads,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        target=_model(config.target, run.target),
        drafts={spec: _model(spec, model) for spec, model in run.drafts.items()},
        workload=_workload(run),
        planned=run.trials_planned,
        spared=run.spared,
        done=len(done),
        prefill_share=_prefill_share(main),
        cut_share=_cut_share(main),
        provenance=provenance,
        fingerprint=run.fingerprint,
        served=run.on_server,
        sliced=any(trial.slices for trial in main),
        loads=tuple(loads),
        reference=run.reference_check,
        template_kwargs=config.chat_template_kwargs or {},
        prompt_tokens=_range([trial.prompt_tokens for trial in main]),
    )


def differing(trials: Iterable[Trial], draft: str | None) -> list[Divergence | None]:
    """Where each greedy text of `draft` (None: of the target measured again) leaves the target's own; None where it was
    not recorded. One per prompt and gamma: repeats repeat the text."""
    found: dict[tuple[str, int | None], Divergence | None] = {}
    for trial in trials:
        if trial.arm.draft == draft and trial.identical is False:
            key = (trial.prompt_id, trial.arm.gamma)
            found[key] = trial.diverged or found.get(key)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Parted:
    """Texts that differ, sorted: `ties` that rounding explains, `wide` that it does not, `unknown` without a distance
    of the two best tokens."""

    ties: int
    wide: tuple[Divergence, ...]
    unknown: int


def parted(found: Sequence[Divergence | None], precision: str | None) -> Parted:
    """What `differing` found, by whether rounding explains it."""
    known = [each for each in found if each is not None and (each.margin is not None or each.gap is not None)]
    wide = tuple(each for each in known if not explained(each, precision))
    return Parted(len(known) - len(wide), wide, len(found) - len(known))


def _model(spec: str, facts: ModelFacts) -> Model:
    ends = facts.end_tokens
    return Model(spec, facts.name or spec, facts.parameters, facts.weight_bytes, facts.revision, ends, facts.head)


def _workload(run: RunRecord) -> Workload:
    facts = run.workload
    encoded = facts.encoded
    return Workload(
        facts.source or run.config.workload,
        facts.sha256,
        facts.prompts_available,
        facts.prompts_used,
        None if encoded is None else encoded.template_sha256 is not None,
    )


def _prefill_share(trials: list[Trial]) -> float | None:
    baseline = [trial.times for trial in trials if trial.arm.kind == "baseline"]
    total = sum(times.total_s for times in baseline)
    return sum(times.prefill_s for times in baseline) / total if total > 0 else None


def _cut_share(trials: list[Trial]) -> float | None:
    baseline = [trial for trial in trials if trial.arm.kind == "baseline"]
    return sum(trial.finish == "length" for trial in baseline) / len(baseline) if baseline else None
