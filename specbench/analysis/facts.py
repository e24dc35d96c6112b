"""What a brief needs to know beside the Summary: run.json and the trials, read once and tolerantly.

An older or interrupted run may lack any key but `status`; what is absent is None here and is not shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specbench.acceptance.lossless import explained
from specbench.analysis.frame import counted, loads_of
from specbench.analysis.ruled import spared
from specbench.analysis.served.server import is_served
from specbench.records import Divergence, Load, Policy, ReferenceCheck, Sampling, Trial, sampling_of
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
    that the token limit ended, both at the first of the `loads`. `served` says that the target ran on a server."""

    status: str
    argv: tuple[str, ...]
    policy: Policy
    sampling: Sampling
    precision: str | None
    threads: int | None
    max_new_tokens: int | None
    batch_size: int
    target: Model
    drafts: dict[str, Model]
    workload: Workload
    planned: int | None
    done: int
    prefill_share: float | None
    cut_share: float | None
    provenance: dict[str, Any]
    fingerprint: str | None
    served: bool = False
    loads: tuple[Load, ...] = (Load(),)
    spared: int = 0
    reference: tuple[ReferenceCheck, ...] = ()
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def read_facts(stored: StoredRun) -> Facts:
    """Everything but the measured results, which are the Summary's."""
    run = stored.run
    config = _mapping(run.get("config"))
    provenance = _mapping(run.get("provenance"))
    loads = loads_of(stored)
    done = counted(stored.trials)
    main = [trial for trial in done if trial.arm.load == loads[0]]
    return Facts(
        status=stored.status,
        argv=tuple(str(part) for part in provenance.get("argv") or ()),
        policy=_policy(_mapping(config.get("policy"))),
        sampling=sampling_of(config),
        precision=precision_of(run),
        threads=provenance.get("threads") or config.get("threads"),
        max_new_tokens=config.get("max_new_tokens"),
        batch_size=int(config.get("batch_size") or 1),
        target=_model(str(config.get("target") or "target"), _mapping(run.get("target"))),
        drafts={spec: _model(spec, _mapping(model)) for spec, model in _mapping(run.get("drafts")).items()},
        workload=_workload(run, config),
        planned=run.get("trials_planned"),
        spared=spared(run),
        done=len(done),
        prefill_share=_prefill_share(main),
        cut_share=_cut_share(main),
        provenance=provenance,
        fingerprint=run.get("fingerprint"),
        served=is_served(run),
        loads=tuple(loads),
        reference=tuple(ReferenceCheck(**each) for each in run.get("reference_check") or ()),
        template_kwargs=_mapping(config.get("chat_template_kwargs")),
    )


def precision_of(run: Mapping[str, Any]) -> str | None:
    """Of the target's weights and arithmetic. A server has its own, whatever the configuration says of models in this
    process."""
    told = _mapping(run.get("provenance")).get("precision")
    return told or (None if is_served(run) else _mapping(run.get("config")).get("dtype"))


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


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _policy(values: Mapping[str, Any]) -> Policy:
    known = {field.name for field in dataclasses.fields(Policy)}
    return Policy(**{key: value for key, value in values.items() if key in known})


def _model(spec: str, values: Mapping[str, Any]) -> Model:
    return Model(
        spec,
        str(values.get("name") or spec),
        values.get("parameters"),
        values.get("weight_bytes"),
        values.get("revision"),
        tuple(values.get("end_tokens") or ()),
        values.get("head"),
    )


def _workload(run: Mapping[str, Any], config: Mapping[str, Any]) -> Workload:
    values = _mapping(run.get("workload"))
    encoded = values.get("encoded")
    return Workload(
        values.get("source") or config.get("workload"),
        values.get("sha256"),
        values.get("prompts_available"),
        values.get("prompts_used"),
        None if encoded is None else encoded["template_sha256"] is not None,
    )


def _prefill_share(trials: list[Trial]) -> float | None:
    baseline = [trial.times for trial in trials if trial.arm.kind == "baseline"]
    total = sum(times.total_s for times in baseline)
    return sum(times.prefill_s for times in baseline) / total if total > 0 else None


def _cut_share(trials: list[Trial]) -> float | None:
    baseline = [trial for trial in trials if trial.arm.kind == "baseline"]
    return sum(trial.finish == "length" for trial in baseline) / len(baseline) if baseline else None
