"""What a brief needs to know beside the numbers, from run.json and the trials. What is absent is None and not shown."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any

import numpy as np

from specbench import text
from specbench.records import Divergence, Load, ReferenceCheck, Sampling, Trial
from specbench.run_record import ModelFacts, Provenance, RunRecord
from specbench.store import StoredRun

# With more of the answers cut than this, a run says little about how long answers go on.
MANY_CUT = 0.5


@dataclass(frozen=True, slots=True)
class Model:
    """One model as it was loaded. `ends` are the ids at which the target's texts ended; `head` the kind of a draft
    head."""

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
    server did. The columns, and that there was a `system_prompt`, as asked for."""

    source: str | None
    sha256: str | None
    available: int | None
    used: int | None
    templated: bool | None = None
    column: str | None = None
    category_column: str | None = None
    system_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """`done` of `planned` trials are stored, `spared` were not needed. `prefill_share` is of the wall clock of the
    target alone, `cut_share` of its outputs that the token limit ended, both at the first of the `loads`.
    `measured_twice` is whether there is an A/A arm, `sliced` whether arms took turns within a prompt. `prompt_tokens`
    are the shortest and the longest prompt. Under a mix shares and lengths are those of its categories."""

    status: str
    argv: tuple[str, ...]
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
    measured_twice: bool = False

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def read_facts(stored: StoredRun) -> Facts:
    """Everything but the measured results, which are the Summary's."""
    run = stored.run
    config, provenance = run.config, run.provenance
    mix = config.policy.mix
    main = [trial for trial in stored.main if not mix or trial.category in mix]
    lengths = [trial.prompt_tokens for trial in main]
    alone = [trial for trial in main if trial.arm.kind == "baseline"]
    alone_s = sum(trial.times.total_s for trial in alone)
    return Facts(
        status=stored.status,
        argv=provenance.argv,
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
        done=len(stored.counted),
        prefill_share=sum(trial.times.prefill_s for trial in alone) / alone_s if alone_s > 0 else None,
        cut_share=sum(trial.finish == "length" for trial in alone) / len(alone) if alone else None,
        provenance=provenance,
        fingerprint=run.fingerprint,
        served=run.on_server,
        sliced=any(trial.slices for trial in stored.main),
        loads=stored.loads,
        reference=run.reference_check,
        template_kwargs=config.chat_template_kwargs or {},
        prompt_tokens=(min(lengths), max(lengths)) if lengths else None,
        measured_twice=any(trial.arm.kind == "baseline-again" for trial in stored.main),
    )


def differing(trials: Iterable[Trial], draft: str | None) -> list[tuple[int | None, Divergence | None]]:
    """Gamma and place where each greedy text of `draft` (None: of the target measured again) leaves the target's own;
    the place is None where it was not recorded. One per prompt and gamma: repeats repeat the text."""
    found: dict[tuple[str, int | None], Divergence | None] = {}
    for trial in trials:
        if trial.arm.draft == draft and trial.identical is False:
            key = (trial.prompt_id, trial.arm.gamma)
            found[key] = trial.diverged or found.get(key)
    return [(gamma, diverged) for (_, gamma), diverged in found.items()]


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
        run.config.column,
        run.config.category_column,
        run.config.system_prompt is not None,
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """What a run like this one takes: `prompt_s` for a prompt (or a whole batch) in all its arms, `setup_s` once."""

    prompt_s: float
    setup_s: float

    def minutes(self, prompts: int) -> float:
        return (self.setup_s + prompts * self.prompt_s) / 60


# A run repeats about a tenth of its trials at most.
MAX_RETRIES = 1.1


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes, seconds. `base_s` is one generation by the target alone and `draft_s` one with a draft, by
    gamma (empty: not known). Each generation happens `retries` times; `untimed_s` goes by for each prompt between
    trials; `warm_up_s` is one arm's warm-up; `probe_s` happens once."""

    base_s: float
    draft_s: Mapping[int, float]
    retries: float = 1.0
    untimed_s: float = 0.0
    warm_up_s: float = 0.0
    probe_s: float = 0.0

    def minutes(self, prompts: int, gammas: Sequence[int], drafts: int, repeats: int) -> float:
        """The whole run: the target alone twice, and every draft at every gamma."""
        return self.pace(gammas, drafts, repeats).minutes(prompts)

    def pace(self, gammas: Sequence[int], drafts: int, repeats: int) -> Pace:
        """The same apart: for each prompt, and once."""
        one = 2 * self.base_s + drafts * sum(self.draft_at(gamma) for gamma in gammas)
        arms = 2 + drafts * len(gammas)
        return Pace(repeats * one * self.retries + self.untimed_s, arms * self.warm_up_s + self.probe_s)

    def draft_at(self, gamma: int) -> float:
        """At a gamma that was not timed: on the line between its neighbours, beyond them as at the nearest."""
        if not self.draft_s:
            return self.base_s
        timed = sorted(self.draft_s)
        return float(np.interp(gamma, timed, [self.draft_s[g] for g in timed]))


def pace_of(stored: StoredRun) -> Pace | None:
    """Of the same run again, over other prompts; None where nothing was timed."""
    cost = cost_of(stored, {trial.prompt_id for trial in stored.trials})
    config = stored.run.config
    pace = cost.pace(config.gamma, len(config.draft), config.repeats)
    return pace if pace.prompt_s > 0 else None


def cost_of(stored: StoredRun, prompts: set[str]) -> Cost:
    """Means over the trials of `prompts`, every load's added up; what happens once is that of the whole run."""
    counted, clock_s = stored.counted, _clock_s(stored)
    tries = sum(not trial.warmup for trial in stored.trials)
    spent: dict[int | None, dict[Load, list[float]]] = {}
    for trial in counted:
        if trial.prompt_id in prompts:
            spent.setdefault(trial.arm.gamma, {}).setdefault(trial.arm.load, []).append(clock_s(trial))
    means = {gamma: sum(map(fmean, by_load.values())) for gamma, by_load in spent.items()}
    warm = [trial.times.total_s for trial in stored.trials if trial.warmup]
    probe_s = sum(point.median_s * (point.passes + 1) for point in stored.run.probe or ())
    return Cost(
        base_s=means.get(None, 0.0),
        draft_s={gamma: seconds for gamma, seconds in means.items() if gamma is not None},
        retries=min(MAX_RETRIES, tries / max(len(counted), 1)),
        untimed_s=_untimed_s(stored, probe_s),
        warm_up_s=fmean(warm) if warm else 0.0,
        probe_s=probe_s,
    )


def _clock_s(stored: StoredRun) -> Callable[[Trial], float]:
    """What a trial adds to the run's own time: clients share theirs, and requests that arrive at a rate their
    stretch's."""
    shares: dict[int | None, float] = {each.number: each.wall_s / max(each.requests, 1) for each in stored.stretches}

    def seconds(trial: Trial) -> float:
        load = trial.arm.load
        if load.rate and not trial.warmup:
            return shares.get(trial.stretch, 1 / load.rate)
        return trial.times.total_s / (1 if trial.warmup else load.concurrency)

    return seconds


def _untimed_s(stored: StoredRun, probe_s: float) -> float:
    """Seconds for each prompt outside trials and probe: scoring, mostly. 0 where the run's own clock does not tell."""
    stamps = [stored.run.provenance.started, stored.run.provenance.finished]
    # A run that was continued stood still in between.
    if None in stamps or len(list(stored.folder.glob("positions-*.arrow"))) > 1:
        return 0.0
    started, finished = (datetime.fromisoformat(str(stamp)) for stamp in stamps)
    elapsed_s = (finished - started).total_seconds()
    timed_s = sum(map(_clock_s(stored), stored.trials)) + probe_s
    prompts = len({trial.prompt_id for trial in stored.trials if not trial.warmup})
    # As much again as the trials would be a suspended machine, not scoring.
    return (elapsed_s - timed_s) / prompts if 0 < elapsed_s - timed_s < timed_s else 0.0


def limited_command(facts: Facts, limit: int) -> str | None:
    """The run's own command over `limit` prompts; None where it was not recorded."""
    if not facts.argv:
        return None
    return shell([*_without(_fresh(facts.argv), "--limit"), "--limit", str(limit)])


def changed_command(facts: Facts, **options: str) -> str:
    """The run's own command with these options instead of its own; of `specbench sweep` where it was not recorded, and
    for several gammas, of which measure takes one. Empty for gammas of a running server, which has its own."""
    argv = _fresh(facts.argv) if facts.argv else ["specbench", "sweep"]
    if "gamma" in options:
        if "--server" in argv:
            return ""
        argv[1] = "sweep"
    for name in options:
        argv = _without(argv, f"--{name}")
    return shell([*argv, *(part for name, value in options.items() for part in (f"--{name}", value))])


def command(facts: Facts) -> str | None:
    """The run's own command, as typed."""
    return shell(facts.argv) if facts.argv else None


def _fresh(argv: Sequence[str]) -> list[str]:
    """Without a probe: it may be gone by then, and has not what another gamma, load or precision takes."""
    kept = _without(argv, "--costs")
    return [*(part for part in kept if part not in ("--fresh", "--resume")), "--fresh"]


def _without(argv: Sequence[str], option: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for part in argv:
        if skip:
            skip = False
        elif part == option:
            skip = True
        elif not part.startswith(f"{option}="):
            kept.append(part)
    return kept


def shell(argv: Sequence[str]) -> str:
    """The words as a line for a shell."""
    return shlex.join(text.clean(part) for part in argv)
