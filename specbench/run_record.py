"""run.json: what was run, as a typed record. Its keys on the disk are the names of these fields (docs/contract.md).

Whatever a run does not know is None. specbench/store reads and writes it; the limits of numbers stand in records.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from specbench.config import RunConfig
from specbench.records import (
    Bandwidth,
    CostPoint,
    Count,
    Counts,
    Finding,
    Moment,
    Number,
    Omitted,
    Plain,
    ReferenceCheck,
    RuledOut,
    Size,
)

SCHEMA: Literal[1] = 1

Command = Literal["measure", "sweep", "replay", "probe"]
Status = Literal["started", "finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class Machine:
    """`line` is the whole in words; of a machine that others look after it may be all there is."""

    cpu: str | None = None
    physical_cores: Count | None = None
    memory_bytes: Size | None = None
    accelerator: str | None = None
    line: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a verdict holds for. `device` and `precision` are None where a server runs the models. Times are ISO 8601,
    loads the system's load average over a minute."""

    engine: str
    argv: tuple[str, ...] = ()
    started: Moment | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    commit: str | None = None
    platform: str | None = None
    hardware: Machine = Machine()
    device: str | None = None
    precision: Plain | None = None
    threads: Count | None = None
    load_at_start: Number | None = None
    finished: Moment | None = None
    load_at_end: Number | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What identifies a model, and what it takes: `state_bytes` of a text however long that is. `reader` is the name
    under which a draft's model is timed alone, None where there is none; `forward` what runs its layers; `layers` those
    of the target that a skip draft has; `end_tokens` the ids at which the target's texts end. Of a draft `head`, its
    kind, the target's layers before which it reads states, and how many tokens it can draft."""

    name: str | None = None
    revision: str | None = None
    parameters: Size | None = None
    weight_bytes: Size | None = None
    step_bytes: Size | None = None
    forward: str | None = None
    cache_bytes_per_token: Size | None = None
    state_bytes: Size | None = None
    reader: str | None = None
    layers: Count | None = None
    end_tokens: Counts = ()
    head: str | None = None
    layer_ids: Counts = ()
    draft_vocabulary: Size | None = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """The prompts as token ids: a hash of each prompt's ids by that of its content, and what may change them: the
    template, None where there is none, and the moment that it wrote (ISO 8601), None where it wrote none."""

    template_sha256: str | None
    now: str | None
    ids_sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CategoryCount:
    """Prompts of one category."""

    available: Count = 0
    used: Count = 0


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """The prompts: where they are from, how many there are and were used, and which were left out and why. `encoded` is
    None where a server encodes them."""

    source: str | None = None
    sha256: Plain | None = None
    prompts_available: Count | None = None
    prompts_used: Count | None = None
    categories: Mapping[str, CategoryCount] = field(default_factory=dict)
    skipped: tuple[Omitted, ...] = ()
    encoded: Encoding | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a server says of itself; None is what it does not say. `speculating` is whether it drafts at all, `method`
    how; `busy` counts requests in it now; `gamma` is the draft length that it was started with; `context` the longest
    sequence in tokens; `prefix_cache` whether prompts may be answered from earlier ones; `limit_field` is what it takes
    in the place of max_tokens; `defaults` what it does to texts though requests do not ask for it, such as
    {"dry_multiplier": 0.8}."""

    model: str | None = None
    version: str | None = None
    speculating: bool | None = None
    method: str | None = None
    gamma: Count | None = None
    busy: Count | None = None
    context: Count | None = None
    prefix_cache: bool | None = None
    limit_field: str | None = None
    defaults: Mapping[str, Number] | None = None


@dataclass(frozen=True, slots=True)
class ServedBy:
    """The servers of a run: which adapter read their answers and from which field each number comes (`sources`), the
    launch file that started them, what each said of itself by the label of its arm (`settings`), and the token ids that
    ended texts, where they were seen."""

    adapter: str | None = None
    launch: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, State] = field(default_factory=dict)
    ends: Counts = ()


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """One of several sessions of a run that was continued."""

    started: Moment | None = None
    argv: tuple[str, ...] = ()
    commit: str | None = None
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class AnswersVerified:
    """Whether a few recorded answers are this target's. Greedy: of `answers` so many are `identical` to what it writes,
    and of their `tokens` so many are its `likeliest`, after all before them. Sampled: `excess_nats` is how much less
    likely it finds their tokens, each, than tokens of its own, with its interval; 0 for its own. `logged_gap_nats` is
    by how much the log-probabilities in the log, of `logged_tokens` tokens, differ from its own, in the mean."""

    answers: Count
    tokens: Count
    identical: Count | None = None
    likeliest: Count | None = None
    excess_nats: Number | None = None
    excess_low: Number | None = None
    excess_high: Number | None = None
    logged_tokens: Count | None = None
    logged_gap_nats: Number | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """The answers of a log that drafts were scored on: by what wrote the log, by the name that it has for the model and
    by the temperature of the request. Of `from_log` the log held the tokens; of `unended` it did not say how they
    ended, and the end of sequence was taken for written. Of the tokens of the first answers (`round_trips`,
    `round_trip_tokens`) `changed_tokens` are cut otherwise when the text is tokenized again."""

    sources: Mapping[str, Count] = field(default_factory=dict)
    models: Mapping[str, Count] = field(default_factory=dict)
    temperatures: Mapping[str, Count] = field(default_factory=dict)
    conversations: Count = 0
    answers: Count = 0
    tokens: Count = 0
    from_log: Count = 0
    unended: Count = 0
    round_trips: Count = 0
    round_trip_tokens: Count = 0
    changed_tokens: Count = 0
    verified: AnswersVerified | None = None


@dataclass(frozen=True, slots=True)
class EndedEarly:
    """A run under a time budget that ended after `prompts` of `planned` (batches, above batch 1): at a sure verdict or
    when `time` was up."""

    why: Literal["GO", "NO-GO", "time"]
    prompts: Count
    planned: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """run.json. `revision` counts how often it was written, `fingerprint` is of the settings that decide what is
    measured, `failure` where a session failed. `probe` are the models timed alone, None while they are not, and
    `probe_from` the folder that they were taken from. `looks` are the prompts after which a sweep looked at itself, and
    `ruled_out` what it then stopped; `ended_early` is where a time budget ended it. `answers` are there where a log had
    them. `sessions` are empty for a run of one session."""

    schema: Literal[1] = SCHEMA
    status: Status
    command: Command
    name: str | None = None
    config: RunConfig
    fingerprint: Plain | None = None
    provenance: Provenance
    target: ModelFacts = ModelFacts()
    drafts: Mapping[str, ModelFacts] = field(default_factory=dict)
    workload: WorkloadFacts = WorkloadFacts()
    served: ServedBy | None = None
    trials_planned: Count | None = None
    warnings: tuple[Finding, ...] = ()
    reference_check: tuple[ReferenceCheck, ...] = ()
    probe: tuple[CostPoint, ...] | None = None
    probe_from: str | None = None
    bandwidth: Bandwidth | None = None
    looks: Counts = ()
    ruled_out: tuple[RuledOut, ...] = ()
    answers: AnswerFacts | None = None
    ended_early: EndedEarly | None = None
    sessions: tuple[SessionFacts, ...] = ()
    failure: str | None = None
    revision: Count = 0

    @property
    def on_server(self) -> bool:
        return self.served is not None or self.config.engine != "local"

    @property
    def precision(self) -> str | None:
        """Of the target's weights and arithmetic. A server has its own, whatever the configuration says of models in
        this process."""
        own = None if self.on_server or self.config.dtype == "auto" else self.config.dtype
        return self.provenance.precision or own

    @property
    def spared(self) -> int:
        ruled_out = sum(one.planned - one.prompts for one in self.ruled_out) * self.config.repeats
        if self.ended_early is None or self.ended_early.why == "time" or not self.trials_planned:
            return ruled_out
        share = 1 - self.ended_early.prompts / self.ended_early.planned
        arms = self.trials_planned - len(self.ruled_out) * self.ended_early.planned * self.config.repeats
        return ruled_out + round(arms * share)
