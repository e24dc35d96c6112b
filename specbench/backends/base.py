"""What a run asks of an engine, and what comes back. run/session.py is the only caller, and does not know which engine
it talks to; what an engine can do beyond this it shows by the methods that it has (Can..)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from specbench.acceptance.scores import BlockScores, Scores
from specbench.cost.plan import Costs, ProbePlan
from specbench.errors import EngineError
from specbench.records import Arm, Divergence, Finding, Finish, Load, Omitted, Prompt, ReferenceCheck, Trial, Window
from specbench.run_record import Encoding, ModelFacts, ServedBy
from specbench.store import RunWriter, TrialKey

# A warm-up is a text of so many tokens.
WARMUP_TOKENS = 8

# The texts of a job: token ids of every row in process, characters on a server.
Output = list[list[int]] | tuple[str, ...]


class Observer(Protocol):
    """Whoever shows the progress of a run."""

    def say(self, line: str) -> None:
        """Something worth a line."""

    def begin(self, total: int, done: int) -> None:
        """Trials planned, and how many of them an earlier session finished."""

    def left(self, trials: Mapping[Arm, int], units: int) -> None:
        """What is to be done from here on, told before every block: trials of each arm, and prompts (or batches) whose
        positions are scored after their trials."""

    def trial(self, trial: Trial) -> None:
        """A trial is on disk."""

    def advance(self, texts: int) -> None:
        """Texts were scored, in a run without trials."""


@dataclass(frozen=True, slots=True)
class TargetText:
    """Token ids of a prompt, with the chat template around it, and of the text that followed. `output` ends with the
    end of sequence where `finish` is "eos"."""

    prompt: Sequence[int]
    output: Sequence[int]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that was there already: its text, the most tokens that it might have had, its conversation, and the
    log-probabilities in nats that the log has of its first tokens, or of all."""

    text: TargetText
    limit: int
    conversation: str
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its token ids; a server keeps those to itself (None). `answer` is there where a log has it."""

    prompt: Prompt
    ids: list[int] | None
    answer: Answered | None = None

    @property
    def tokens(self) -> list[int]:
        """The ids where they are known, as in process they are."""
        assert self.ids is not None
        return self.ids


@dataclass(frozen=True, slots=True)
class Unit:
    """What one trial generates: one prompt, a batch of them, or the turns of a conversation. It is also the unit of
    every interval."""

    id: str
    sha256: str
    category: str | None
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Job:
    unit: Unit
    repeat: int

    def key(self, arm: Arm) -> TrialKey:
        return self.unit.id, arm, self.repeat


@dataclass(frozen=True, slots=True)
class Answer:
    """What one job gave in one arm: the texts, and their trial as far as the engine knows it. One that is a warm-up
    counts nowhere."""

    job: Job
    output: Output
    trial: Trial


def trial_of(job: Job, arm: Arm, **told: Any) -> Trial:
    """The trial of a job, with what was `told` of it by the names of Trial's fields."""
    unit = job.unit
    members = tuple(item.prompt.id for item in unit.items) if len(unit.items) > 1 else ()
    return Trial(unit.id, unit.sha256, unit.category, arm, job.repeat, members=members, **told)


# What sessions yield, as it comes; whoever stops listening closes it. A window, which comes at its end, gets its number
# where it is stored.
Events = Generator[Answer | Window, None, None]
Answers = Generator[Answer, None, None]
Texts = Generator[tuple[Item, TargetText], None, None]
Scored = Generator[tuple[Item, Scores | BlockScores], None, None]


@dataclass
class Noticed:
    """What a session notices on its way, for run.json: prompts that the engine `refused`, by id with its reason, or for
    which it has no memory even alone, with their tokens; requests that failed for good, and whatever a reader should
    know."""

    refused: dict[str, str] = field(default_factory=dict)
    too_long: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    cautions: list[Finding] = field(default_factory=list)


class DoesNotFitError(EngineError):
    """Memory ran out on one prompt of `tokens` tokens, its answer included; the others may fit."""

    def __init__(self, prompt_id: str, tokens: int) -> None:
        super().__init__("Out of memory", where=f"at {tokens:,} tokens", hint="Use shorter prompts or --limit.")
        self.prompt_id = prompt_id
        self.tokens = tokens


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where models run: the engine as reports call it, device and precision (None: a server's own), CPU threads, and
    the machine where it is not this one."""

    engine: str
    device: str | None
    precision: str | None
    threads: int | None
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """Prompts that can be asked, those that cannot with the reason, and what run.json says of the models and of how
    they encode the prompts, or of the servers."""

    items: list[Item]
    skipped: list[Omitted]
    setting: Conditions
    target: ModelFacts
    drafts: Mapping[str, ModelFacts]
    cautions: list[Finding] = field(default_factory=list)
    encoded: Encoding | None = None
    reference: tuple[ReferenceCheck, ...] = ()
    served: ServedBy | None = None


class Session(Protocol):
    """An engine that is up. The arms take turns block by block of at most `block_size` units (None: all at once)."""

    block_size: int | None
    noticed: Noticed

    def turn(self, load: Load) -> int | None:
        """After how many jobs of a block the next arm under this load has its turn. None: after all of the block, and
        then under every load before the next, as no two arms can be met side by side."""

    def block(self, units: Sequence[Unit], arms: Sequence[Arm]) -> AbstractContextManager[None]:
        """Everything about these units happens inside; `arms` are those in which something is left to do."""

    def generate(self, jobs: Sequence[Job], arm: Arm) -> Events:
        """Every job once, under the arm's load, each as soon as it is there. Raises DoesNotFitError."""

    def recall(self, jobs: Sequence[Job], arm: Arm) -> Answers:
        """The same texts again, untimed: an earlier session measured them."""

    def divergence(self, unit: Unit, own: Output, other: Output) -> Divergence | None:
        """Where `other` first leaves `own`, the text of the target alone, and how near a tie it was there; None where
        the engine cannot tell."""


class Scoring(Protocol):
    """Texts of the target alone, and what drafts would have said of them. Nothing is timed."""

    noticed: Noticed

    def batches(self, items: Sequence[Item]) -> Iterable[Sequence[Item]]:
        """What is written, then scored, before more is written."""

    def prepare(self, drafts: Sequence[str]) -> None:
        """See whether these drafts can be asked at all: a wrong one must not show after an hour of writing."""

    def write(self, batch: Sequence[Item], missing: Sequence[Item], repeat: int) -> Texts:
        """Texts of those `missing`, written as a part of their `batch`; others of it may come too. A prompt that the
        engine refuses, or has no memory for, does not come."""

    def score(self, texts: Sequence[tuple[Item, TargetText]], draft: str) -> Scored:
        """What `draft` would have said at every position of these texts."""


class Backend(Protocol):
    """An engine that can be asked. What it cannot do it says before anything is loaded."""

    def admit(self, prompts: Sequence[Prompt]) -> Admitted:
        """Load or meet the models, and see which prompts they can take."""

    def session(self, writer: RunWriter) -> AbstractContextManager[Session]:
        """Be ready to time, for the run that `writer` writes."""

    def scoring(self, writer: RunWriter) -> AbstractContextManager[Scoring]:
        """Be ready to score."""


class Prober(Protocol):
    """What times models alone, or an engine's rounds, without a run."""

    setting: Conditions

    def admit(self) -> Admitted:
        """Load or meet what is to be timed; no prompts."""

    def probe(self, writer: RunWriter) -> Costs:
        """Time it; `writer` has the folder of the probe."""


@runtime_checkable
class CanWarm(Protocol):
    """A session whose engine pays for first calls, or has to be checked, before anything is measured."""

    def warm(self, units: Sequence[Unit], arms: Sequence[Arm]) -> Iterator[Answer]:
        """Every arm briefly."""


@runtime_checkable
class CanSlice(Protocol):
    """A session that can leave a generation after any round and go on with it later. A server cannot be left: there
    the arms take turns request by request."""

    def slices(self, job: Job, arms: Sequence[Arm]) -> Answers:
        """The job once in each of `arms`, which take turns every few tokens. They have the same `other_cores`, and
        come when all are done. Raises DoesNotFitError."""


@runtime_checkable
class CanProbe(Protocol):
    """A session whose models can be timed alone, so that speedups can be predicted."""

    def probe(self, ids: Sequence[int], plan: ProbePlan) -> Costs:
        """What target and drafts cost alone."""


@runtime_checkable
class CanScore(Protocol):
    """A session that knows what drafts would have said of the target's own texts."""

    def score(self, item: Item, output: Sequence[int], draft: str) -> Scores | BlockScores:
        """At every position of `output`, a text of the target alone after the item's prompt."""
