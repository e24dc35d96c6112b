"""The object that `--json` prints, that the tables show and that the brief is written from.

One shape for three readers, so that they cannot disagree. Unknown numbers are None (null in JSON).
"""

from __future__ import annotations

from dataclasses import dataclass

from specbench.analysis.facts import Facts, Pace
from specbench.analysis.served import LoadResult, Schedule, Server
from specbench.decision.interval import Difference
from specbench.records import Call, Finding, Policy, Reason

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class RoundTime:
    """Where the mean round's time goes, seconds: drafting, verifying, everything else."""

    draft_s: float
    verify_s: float
    other_s: float

    @property
    def total_s(self) -> float:
        """The whole round."""
        return self.draft_s + self.verify_s + self.other_s


@dataclass(frozen=True, slots=True)
class BreakEven:
    """What would give 1.0x at one gamma, all else as measured, and (`minimum_*`) the policy's minimum; over the prompts
    as they are, whatever the mix. `tokens_per_round` is also the round's time in target steps; `alpha` the acceptance,
    None where not even 1 is enough; `draft_steps` the most that drafting a token may cost, in target steps, None where
    even 0 is too much or `measured_draft_steps`, its cost, is not known."""

    tokens_per_round: float
    alpha: float | None
    draft_steps: float | None
    measured_draft_steps: float | None
    minimum_tokens_per_round: float
    minimum_alpha: float | None
    minimum_draft_steps: float | None


@dataclass(frozen=True, slots=True)
class Texts:
    """Greedy texts that differ from the target's own, one for each prompt and gamma: `ties` by rounding, `wide` by
    more, `unknown` where the distance of the two best tokens was not recorded. The widest of the `wide`: `margin` over
    the top logit, `gap` in nats."""

    differing: int
    ties: int
    wide: int
    unknown: int
    margin: float | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A mean answer, prompt included, over the prompts that both arms have: `tokens` of the target's own, and seconds
    without and with the draft."""

    tokens: float
    baseline_s: float
    draft_s: float


@dataclass(frozen=True, slots=True)
class GammaResult:
    """One draft at one gamma over all prompts, whatever the policy's metric. `survival[j-1]` is s_j. `speedup` is of
    decoding, `speedup_e2e` with both prefills. `identical_prompts` have the target's own greedy text; None when
    sampling. A server may not tell rounds, drafts or the parts of a round's time; `counted_share` of the texts tell the
    counts. `round_s` is a whole round, `round_steps` the same in steps of the target alone. `missing_term` is the term
    that is furthest off, where the prediction misses by more than 5 %."""

    gamma: int
    rounds: int | None
    drafted: int | None
    accepted: int | None
    emitted: int
    acceptance_rate: float | None
    tokens_per_round: float | None
    replay_tokens_per_round: float | None
    replay_rounds: float | None
    survival: tuple[float | None, ...]
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    speedup_e2e: float
    tokens_per_s: float
    predicted_speedup: float | None
    identical_prompts: int | None
    prompts: int
    slower_share: float
    round_time: RoundTime | None
    predicted_speedup_e2e: float | None = None
    predicted_round_time: RoundTime | None = None
    missing_term: str | None = None
    closed_form_speedup: float | None = None
    break_even: BreakEven | None = None
    round_s: float | None = None
    round_steps: float | None = None
    counted_share: float = 1.0
    survival_low: tuple[float | None, ...] = ()
    survival_high: tuple[float | None, ...] = ()
    texts: Texts | None = None


@dataclass(frozen=True, slots=True)
class StoppedGamma:
    """A gamma that was stopped after `prompts` of `planned` prompts, surely not the best of its draft. `speedup` is of
    decoding, over those; the rest is what ruled it out, as in run.json."""

    gamma: int
    prompts: int
    planned: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    tokens_per_round: float | None
    against: int
    ratio: float
    ratio_low: float
    ratio_high: float
    confidence: float
    predicted_ratio: float


@dataclass(frozen=True, slots=True)
class CategoryGamma:
    """One category at one gamma."""

    gamma: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    tokens_per_round: float | None
    acceptance_rate: float | None
    predicted_speedup: float | None = None


@dataclass(frozen=True, slots=True)
class PredictedGamma:
    """One gamma by replay and cost model, measured or not. The interval holds what is uncertain in prompts and costs.
    `gain` is what the last drafted token adds: this speedup over that of gamma - 1 (1.0 at gamma 1), less 1."""

    gamma: int
    tokens_per_round: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    speedup_e2e: float | None
    gain: float


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """The gamma that is predicted best at one batch size, by costs probed there."""

    batch: int
    gamma: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    baseline_tokens_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What the draft adds: weights, its KV cache for a token of one sequence, `state_bytes` however long that is, and
    all of it for `context`, the longest text of the run in tokens."""

    weight_bytes: int
    cache_bytes_per_token: int
    context: int
    total_bytes: int
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HeadCosts:
    """What a draft head costs, timed alone: `first_s` a round's first draft, `step_s` each later one (of a head that
    drafts at once, what each adds), `states_s` what keeping its states adds to the target's pass at the best gamma
    (timer noise may put it below 0)."""

    first_s: float
    step_s: float
    states_s: float


@dataclass(frozen=True, slots=True)
class Money:
    """Price of a million output tokens, prompts included, in the currency of the price per hour: the target alone, and
    with the draft at its best gamma; one sequence at a time, on a server at the verdict's load."""

    baseline_per_million: float
    per_million: float


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """One category at its own best gamma. `baseline_ratio` is the target alone over itself where two measurements of it
    differ by more than chance; it widens the interval."""

    category: str
    verdict: Call
    reasons: tuple[Reason, ...]
    best_gamma: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    prompts: int
    baseline_tokens_per_s: float
    gammas: tuple[CategoryGamma, ...]
    baseline_ratio: float | None = None

    @property
    def predicted_speedup(self) -> float | None:
        """Of decoding, at this category's best gamma."""
        return next((row.predicted_speedup for row in self.gammas if row.gamma == self.best_gamma), None)


@dataclass(frozen=True, slots=True)
class LengthResult:
    """Prompts of `low` tokens and more, below `high` (None: any longer), at their own best gamma; `shortest` and
    `longest` of those measured. `round_steps` is a round in steps of the target alone."""

    low: int
    high: int | None
    prompts: int
    shortest: int | None = None
    longest: int | None = None
    verdict: Call | None = None
    reasons: tuple[Reason, ...] = ()
    best_gamma: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    tokens_per_round: float | None = None
    acceptance_rate: float | None = None
    round_steps: float | None = None


@dataclass(frozen=True, slots=True)
class DraftResult:
    """`speedup` is what the verdict rests on: with several gammas cross-fitted, so it may lie below the best row.
    `slower_share` of prompts run below the policy's `slower_than`. `gammas` were measured on every prompt, `stopped`
    ruled out on the way."""

    draft: str
    verdict: Call
    reasons: tuple[Reason, ...]
    best_gamma: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    probability: float | None
    baseline_tokens_per_s: float
    alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    gammas: tuple[GammaResult, ...]
    categories: tuple[CategoryResult, ...]
    predicted: tuple[PredictedGamma, ...] = ()
    batches: tuple[PredictedBatch, ...] = ()
    stops_paying_at_batch: int | None = None
    memory: Memory | None = None
    money: Money | None = None
    stops_paying_at_concurrency: int | None = None
    slower_share: float | None = None
    stopped: tuple[StoppedGamma, ...] = ()
    head: HeadCosts | None = None
    schedule: Schedule | None = None
    lengths: tuple[LengthResult, ...] = ()
    texts: Texts | None = None
    answer: Answer | None = None

    @property
    def choosable(self) -> tuple[GammaResult, ...]:
        """The rows among which `best_gamma` was chosen: one that never drafted is none, where another did."""
        return tuple(row for row in self.gammas if row.drafted != 0) or self.gammas

    @property
    def best(self) -> GammaResult:
        """The row that `best_gamma` names."""
        return next((row for row in self.gammas if row.gamma == self.best_gamma), self.gammas[0])

    @property
    def by_speedup(self) -> list[CategoryResult]:
        """Fastest category first; ties by name. Empty where the prompts carry no category, which is stored as "all"."""
        if [category.category for category in self.categories] == ["all"]:
            return []
        return sorted(self.categories, key=lambda category: (-category.speedup, category.category))


@dataclass(frozen=True, slots=True)
class Rival:
    """A draft that was not chosen, at its own best gamma. `ratio` is how many times as fast the chosen one is;
    `difference` what its interval resolves: "same" is within 5 %."""

    draft: str
    gamma: int
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    difference: Difference


@dataclass(frozen=True, slots=True)
class Choice:
    """The draft and gamma to run with, chosen among all, and the verdict on the whole run, cross-fitted over drafts and
    gammas, on the `prompts` that every draft has."""

    draft: str
    gamma: int
    verdict: Call
    reasons: tuple[Reason, ...]
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    probability: float | None
    prompts: int
    rivals: tuple[Rival, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """`noise_floor` is how far from 1 the farther end of the A/A arm's interval lies. `choice` is None where no prompt
    was measured with every draft. With a `batch_size` above 1 a prompt, and the unit of intervals, is a whole batch. On
    a server all but `loads` is about the first load. `trials_run` trials count, `trials_spared` were not needed,
    `trials_disturbed` shared the machine. `baseline_texts` are those that the target alone did not repeat."""

    run: str
    schema: int
    target: str
    engine: str
    hardware: str
    noise_floor: float | None
    drafts: tuple[DraftResult, ...]
    warnings: tuple[Finding, ...]
    policy: Policy
    facts: Facts
    choice: Choice | None = None
    batch_size: int = 1
    server: Server | None = None
    loads: tuple[LoadResult, ...] = ()
    trials_run: int = 0
    trials_spared: int = 0
    trials_disturbed: int = 0
    baseline_texts: int = 0
    pace: Pace | None = None

    @property
    def verdict(self) -> Call:
        """On the whole run: that of the draft which was chosen among all; UNCLEAR where none could be."""
        return "UNCLEAR" if self.choice is None else self.choice.verdict

    @property
    def recommended(self) -> DraftResult | None:
        """The draft that was chosen among all, else the fastest; None without a measurement."""
        chosen = self.choice.draft if self.choice is not None else None
        named = [draft for draft in self.drafts if draft.draft == chosen]
        return named[0] if named else max(self.drafts, key=lambda draft: draft.speedup, default=None)

    @property
    def among(self) -> tuple[DraftResult, ...]:
        """The drafts among which the verdict's was chosen: one that never drafted is none, where another did."""
        if self.choice is None:
            return () if self.recommended is None else (self.recommended,)
        names = {self.choice.draft, *(rival.draft for rival in self.choice.rivals)}
        return tuple(draft for draft in self.drafts if draft.draft in names)

    @property
    def tried(self) -> int:
        """How many drafts at how many gammas the verdict's was chosen among."""
        return sum(len(draft.choosable) for draft in self.among)

    @property
    def headline(self) -> Choice | DraftResult | None:
        """What the verdict rests on: its speedup is the one that stands for the run."""
        return self.choice or self.recommended
