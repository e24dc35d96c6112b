"""The nouns of specbench: plain frozen records that every room shares.

Absent is None, never 0. Times are seconds. The words are those of docs/measuring.md: a *round* is one
draft phase and one target pass over the drafted tokens; a *trial* is one prompt generated once by one arm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen, Predicate

from specbench.config import Metric as Metric
from specbench.config import Policy as Policy  # a setting each; declared with the others

Role = Literal["system", "user", "assistant", "tool"]
ArmKind = Literal["baseline", "baseline-again", "speculative"]
Finish = Literal["eos", "length"]
Call = Literal["GO", "NO-GO", "UNCLEAR"]

FEW_PROMPTS = 30  # an interval over fewer is wide and leans on its shape, and is marked
LARGEST = 10**12  # of any number, so that sums and ratios of numbers stay numbers
MOST_DRAFTED = 4096  # in a round; a server may draft more than it was asked for


class FirstFault:
    """For pydantic: a list is read up to its first wrong entry, not with an error for each of millions."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return handler(source) | {"fail_fast": True}


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


# What is read again from a run folder is held to these (specbench/validation.py).
Count = Annotated[int, Ge(0), Le(LARGEST)]
Size = Annotated[int, Ge(0), Le(10**18)]  # bytes, parameters: a model may have more than a million million
Number = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
LogProb = Annotated[float, Ge(-LARGEST), Le(1e-3)]  # rounded, it may be above 0 by a little
Speed = Annotated[float, Ge(0), Le(10**18)]  # bytes a second
Plain = Annotated[str, Predicate(re.compile(r"[A-Za-z0-9 .:,/+()_-]{0,100}").fullmatch)]  # safe wherever it is shown
Moment = Annotated[str, Predicate(_is_moment)]  # ISO 8601 with its offset
Counts = Annotated[tuple[Count, ...], FirstFault()]
Survived = Annotated[tuple[Count, ...], FirstFault(), MaxLen(MOST_DRAFTED)]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `fields` are what a request has beside its text: tool_calls, tool_call_id, name."""

    role: Role
    content: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the workload. `sha256` is of all that is asked, not of the id.

    `tools` are definitions that the chat template writes out, `template_kwargs` what else it is given, and `request`
    what only a server understands (tool_choice, response_format); each as OpenAI's interface has it.
    """

    id: str
    messages: tuple[Message, ...]
    sha256: str
    category: str | None = None
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    request: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Omitted:
    """A prompt that was not measured, by its id or its place in the file, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; the same processors apply to target and draft. Temperature 0 is greedy, which a
    repetition penalty changes and the others do not; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are
    off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether a token's chance depends on its being in the text already."""
        return self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class Round:
    """One draft phase and the target pass that judged it: `accepted` of `drafted` tokens were kept.

    A round with accepted < drafted ended in a rejection. A round that accepts all it drafted is censored:
    its run of acceptances was cut by gamma, by the token limit or by an accepted end-of-sequence token.
    """

    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Load:
    """How many requests a server sees at once: `concurrency` clients that each wait for their answer before asking
    again (a closed loop), or, where `rate` is given, requests that arrive at random (Poisson), so many a second."""

    concurrency: Count = 1
    rate: Number | None = None

    @property
    def label(self) -> str:
        return f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class Arm:
    """What is timed: the target alone (`baseline`), the same again (`baseline-again`, whose difference is the noise
    floor), or target + draft at one gamma; on a server at one `load`."""

    kind: ArmKind
    draft: str | None = None
    gamma: Count | None = None
    load: Load = Load()

    def __hash__(self) -> int:
        """Of what nearly always tells arms apart: every trial is looked up by its arm, again and again."""
        return hash((self.kind, self.draft, self.gamma))

    @property
    def label(self) -> str:
        name = self.kind if self.gamma is None else f"{self.draft} gamma {self.gamma}"
        return name if self.load == Load() else f"{name}, {self.load.label}"


@dataclass(frozen=True, slots=True)
class Times:
    """Where one trial's wall clock went, seconds. `prefill_s` ends with the first token, on a server as the client sees
    it. `other_s` is decoding outside both models. A server does not tell the parts."""

    prefill_s: Number
    draft_prefill_s: Number | None
    draft_s: Number | None
    verify_s: Number | None
    other_s: Number | None
    total_s: Number

    @property
    def decode_s(self) -> float:
        """Everything after the first token is known and both models have read the prompt."""
        return self.total_s - self.prefill_s - (self.draft_prefill_s or 0.0)


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server says of one request, totals; None is what it does not say. `survived[j-1]` rounds had their first j
    drafts accepted."""

    prefill_s: Number | None = None
    decode_s: Number | None = None
    queue_s: Number | None = None
    rounds: Count | None = None
    drafted: Count | None = None
    accepted: Count | None = None
    survived: Survived | None = None
    cached_tokens: Count | None = None


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where greedy text first differs from the target alone: index in output tokens, and the distance of the target's
    two best tokens there: `margin` over the magnitude of its top logit, of a server `gap` in nats. A near-tie is
    rounding, a wide one a bug."""

    index: Count
    margin: Number | None
    gap: Number | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: the server had `cached_tokens` of its prompt from the turns before (None: it does not
    tell); its first and last token arrived `first_s` and `last_s` after it was asked."""

    prompt_tokens: Count
    cached_tokens: Count | None
    output_tokens: Count
    first_s: Number
    last_s: Number


@dataclass(frozen=True, slots=True)
class Trial:
    """One prompt generated once by one arm; in a batch the whole batch: `members` are its prompts' ids, and tokens,
    rounds and times those of all. Of a conversation they are sums over its `turns`. `drafted[i]`, `accepted[i]` belong
    to round i; both are empty where a server lists no rounds, and `told` is what it says. `output_tokens` includes the
    first token, which no round emits. `other_cores` were kept busy by others, too many where it is `disturbed`;
    `attempt` counts from 0. `identical` and `diverged` compare greedy text with the target alone, filled in when a run
    is read. `begun_s` is when a request was due, from the start of its `stretch`; `slices` how many turns the trial
    took among the arms of its prompt, None at a stretch."""

    prompt_id: str
    prompt_sha256: str
    category: str | None
    arm: Arm
    repeat: Count
    prompt_tokens: Count
    output_tokens: Count
    output_sha256: str
    finish: Finish
    drafted: Counts
    accepted: Counts
    times: Times
    load_before: Number | None = None
    load_after: Number | None = None
    other_cores: Number | None = None
    disturbed: bool = False
    attempt: Count = 0
    warmup: bool = False
    identical: bool | None = None
    diverged: Divergence | None = None
    prompt_text: str | None = None
    output_text: str | None = None
    members: Annotated[tuple[str, ...], FirstFault()] = ()
    told: ServerStats | None = None
    begun_s: Number | None = None
    stretch: Count | None = None
    slices: Count | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def rounds(self) -> list[Round]:
        return [Round(d, a) for d, a in zip(self.drafted, self.accepted, strict=True)]

    @property
    def first_s(self) -> tuple[float, ...]:
        """Seconds to the first token of each request: of a conversation, of every turn."""
        return tuple(turn.first_s for turn in self.turns) or (self.times.prefill_s,)

    @property
    def decode_tokens(self) -> int:
        """Tokens that decoding emitted: all but the one that prefill gave each sequence."""
        return self.output_tokens - self.sequences

    @property
    def sequences(self) -> int:
        """Sequences that ran side by side, or turn after turn."""
        return len(self.members) or 1


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the server started; None is what it does not count. `rounds` drafted at least one token, and
    `survived[j-1]` of them had their first j drafts accepted."""

    tokens: Count | None = None
    rounds: Count | None = None
    drafted: Count | None = None
    accepted: Count | None = None
    survived: Survived | None = None

    def since(self, before: Counters) -> Counters | None:
        """What was added after `before`. A counter that was not there yet began at 0. None where one went backwards:
        the server started anew in between."""
        names = ("tokens", "rounds", "drafted", "accepted")
        now, then = ([getattr(each, name) for name in names] for each in (self, before))
        added = [None if new is None else new - (old or 0) for new, old in zip(now, then, strict=True)]
        survived = self.survived
        if survived is not None:
            old_survived = (before.survived or ()) + (0,) * len(survived)
            survived = tuple(new - old for new, old in zip(survived, old_survived, strict=False))
        gone = any(new is None and old is not None for new, old in zip(now, then, strict=True))
        if gone or any(value is not None and value < 0 for value in (*added, *(survived or ()))):
            return None
        return Counters(**dict(zip(names, added, strict=True)), survived=survived)


@dataclass(frozen=True, slots=True)
class ClientLag:
    """Over a stretch: how long an answer that had arrived waited until we read it (mean and 99th percentile), and how
    many cores our process used."""

    mean_s: Number
    p99_s: Number
    cores: Number


@dataclass(frozen=True, slots=True)
class Window:
    """An uninterrupted sequence of requests of one arm on a server. `counters` is what it counted meanwhile, None where
    it does not or started anew; where `alone` we sent nothing but the counted requests, so that the trials' sums must
    equal it unless others sent some. `lag` is None where the stretch was too short to tell."""

    number: Count
    arm: Arm
    requests: Count
    wall_s: Number
    counters: Counters | None
    alone: bool
    lag: ClientLag | None = None


@dataclass(frozen=True, slots=True)
class CostPoint:
    """Seconds for `model` (None: the target, else a draft's name) to read `tokens` tokens after `context` others (0: a
    prefill), in each of `batch` sequences at once: median over `passes` with an interval of about 95 %. `phase` is
    "read" for a forward pass, "draft" for a whole draft phase, "reread" for a pass over the tokens that a model with
    recurrent states keeps after a rejection. Of a draft head "read" is over emitted tokens beside the target's states,
    "step" over one that it drafted beside its own, "block" over an emitted one that drafts so many at once, and
    "states" a pass of the target that keeps the states for it. "round" is a whole round of a server that keeps no
    draft: `tokens` are those drafted and one more, the ends those of its ratio to a step, `batch` the clients at once.
    """

    model: str | None
    context: Count
    tokens: Count
    median_s: Number
    low_s: Number
    high_s: Number
    passes: Count
    batch: Count = 1
    phase: str = "read"


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast a machine moves memory: bytes per second, median with an interval, and in words what was measured."""

    bytes_per_s: Speed
    low: Speed
    high: Speed
    what: str


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """How the passes of one model compared with transformers' own `generate` before the run: `tokens` places of
    `prompts` texts, at `near_ties` of which the two chose differently between tokens that were nearly tied."""

    model: str
    prompts: Count
    tokens: Count
    near_ties: Count
    seconds: Number


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its confidence interval over `n` prompts. `low` and `high` are None when there are too few
    prompts for an interval. `draws` are the bootstrap draws, for P(value >= x)."""

    value: float
    low: float | None
    high: float | None
    confidence: float
    n: int
    draws: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def probability_at_least(self, threshold: float) -> float | None:
        """Share of bootstrap draws at or above `threshold`; None without an interval."""
        if not self.draws:
            return None
        return sum(draw >= threshold for draw in self.draws) / len(self.draws)


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A draft length that a sweep stopped measuring, after `prompts` of `planned` prompts (of a batch run, batches),
    and why. `ratio` is its measured speed in terms of the gamma `against`, of the same draft, over those prompts; its
    limits hold with `confidence` for everything that the run rules out together. `predicted_ratio` is the same by
    replay and cost model, and `predicted_ratio_high` its upper limit over texts."""

    draft: str
    gamma: Count
    prompts: Count
    planned: Count
    against: Count
    ratio: Number
    ratio_low: Number
    ratio_high: Number
    confidence: Number
    predicted_ratio: Number
    predicted_ratio_high: Number


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is as it is: a code that stays, and the values that its sentence is made from
    (report/templates/words.yaml)."""

    code: str
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)


Severity = Literal["ok", "note", "warning", "broken", "not checked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What the reader should know: a code that stays, how bad it is, the values of its sentence (what was noticed in
    words is `said`), and what to do about it ("" for nothing)."""

    code: str
    severity: Severity = "warning"
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)
    hint: str = ""

    @property
    def message(self) -> str:
        """What was said where it was noticed; empty where report/ makes the sentence."""
        return str(self.values.get("said", ""))


def warned(code: str, said: str, hint: str) -> Finding:
    """A warning in the words of the place that noticed it, shown as they are."""
    return Finding(code, "warning", {"said": said}, hint)


@dataclass(frozen=True, slots=True)
class Verdict:
    """GO, NO-GO or UNCLEAR, why, and the probability it rests on (None without an interval)."""

    call: Call
    reasons: tuple[Reason, ...]
    probability: float | None = None
