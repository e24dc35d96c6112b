"""The object that `--json` prints, that the tables show and that the brief is written from.

One shape for three readers, so that they cannot disagree. Unknown numbers are None (null in JSON).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specbench.analysis.facts import Facts
from specbench.decision.interval import Difference
from specbench.records import Call, Finding, Policy, Reason
from specbench.run_record import State


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one time over `requests` requests, seconds. None where so few do not show it: the 50th takes 2 requests, the
    95th 20, the 99th 100."""

    requests: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One draft at one gamma under one load, against the target alone under the same load. `concurrency` is None where
    requests arrive at a `rate` (requests/s), and the other way round. `speedup` is of decoding time per output token,
    `speedup_e2e` of the whole time of a request, both as a client sees them, over `prompts` prompts; `verdict` follows
    the policy's metric.

    `predicted_speedup` is of decoding, from replayed rounds and rounds that were probed at this concurrency; its ends
    are over prompts and hold the costs' own uncertainty.

    `throughput` is output tokens per second of all clients together, None where an open loop's clock was not kept;
    `ttft` the time to the first token, `tpot` decoding time per output token of a request."""

    load: str
    concurrency: int | None
    rate: float | None
    draft: str
    gamma: int
    prompts: int
    verdict: Call
    reasons: tuple[Reason, ...]
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    speedup_e2e: float
    speedup_e2e_low: float | None
    speedup_e2e_high: float | None
    baseline_throughput: float | None
    throughput: float | None
    throughput_ratio: float | None
    baseline_ttft: Percentiles
    ttft: Percentiles
    baseline_tpot: Percentiles
    tpot: Percentiles
    predicted_speedup: float | None = None
    predicted_speedup_low: float | None = None
    predicted_speedup_high: float | None = None


@dataclass(frozen=True, slots=True)
class ScheduleStep:
    """The best gamma at one concurrency, 0 for none, by a speedup that was `measured` or is predicted."""

    concurrency: int
    gamma: int
    speedup: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many tokens to draft with so many clients at once. `gain` is how much faster all concurrencies together are,
    each with as much to do, than with `fixed_gamma`, the best single one; less than 0 where it is slower."""

    steps: tuple[ScheduleStep, ...]
    fixed_gamma: int
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, slots=True)
class NumberCheck:
    """One number over the stretches in which it could be compared: as we added it up, and as the server counted."""

    name: str
    ours: int
    theirs: int
    stretches: int


@dataclass(frozen=True, slots=True)
class CounterCheck:
    """Our sums against the server's own counters, stretch by stretch (a stretch is an uninterrupted sequence of
    requests of one arm). `agreeing` of `compared` stretches have every number equal; `not_comparable` have no counters
    or hold requests that we do not count."""

    compared: int
    agreeing: int
    not_comparable: int
    numbers: tuple[NumberCheck, ...]


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """Seconds of decoding of one arm over the requests of which the server tells its own: as the client saw them, and
    by the server's clock. `server_less` is by which share the server's are less."""

    arm: str
    requests: int
    client_s: float
    server_s: float
    server_less: float


@dataclass(frozen=True, slots=True)
class TurnCheck:
    """One turn of all conversations in one arm, at the load that the verdict is about: tokens of its prompts, those of
    them that the server had from earlier turns (None: it does not tell), the median time to its first token, and the
    mean of every token after it."""

    arm: str
    turn: int
    conversations: int
    prompt_tokens: int
    cached_tokens: int | None
    first_s: float
    token_s: float | None


@dataclass(frozen=True, slots=True)
class Server:
    """The server that was measured, as far as it tells. `launch` is the file that it was started from, None where it
    was running already; `load` the load that the verdict is about; `sources` says from which field each number comes,
    `settings` what the server said of itself in each arm; `turns` are there of conversations."""

    adapter: str
    launch: str | None
    load: str
    counters: CounterCheck | None
    clocks: tuple[ClockCheck, ...]
    sources: Mapping[str, str]
    settings: Mapping[str, State]
    turns: tuple[TurnCheck, ...] = ()


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
    """What would have to change for 1.0x at one gamma, all else as measured. `tokens_per_round` is also the round's
    time in target steps; `alpha` is the acceptance at every position that gives it (None where not even 1 does);
    `draft_steps` is the most that drafting one token may cost, in target steps (None where even 0 is too much), and
    `measured_draft_steps` what it does cost (where that is None, `draft_steps` is not known either). The `minimum_*`
    are the same for the policy's minimum speedup."""

    tokens_per_round: float
    alpha: float | None
    draft_steps: float | None
    measured_draft_steps: float | None
    minimum_tokens_per_round: float
    minimum_alpha: float | None
    minimum_draft_steps: float | None


@dataclass(frozen=True, slots=True)
class Texts:
    """Greedy texts that differ from the target's own, one for each prompt and gamma: `ties` where rounding explains it,
    `wide` where it does not, `unknown` where the distance of the two best tokens was not recorded. The widest distance
    that rounding does not explain: `margin` is over the top logit, `gap` in nats; None where there is none."""

    differing: int
    ties: int
    wide: int
    unknown: int
    margin: float | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, prompt included, over the prompts that both arms have: `tokens` of the target's own, and seconds
    by the target alone and with the draft; means."""

    tokens: float
    baseline_s: float
    draft_s: float


@dataclass(frozen=True, slots=True)
class GammaResult:
    """One draft at one gamma over all prompts. `survival[j-1]` is s_j: P(first j drafts accepted), over rounds
    that drafted at least j; `survival_low` and `survival_high` are its interval over prompts. `speedup` is decode-only,
    `speedup_e2e` includes both prefills; both are ratios of totals, per token. `identical_prompts` counts prompts whose
    greedy text equals the target alone's, token for token; None when sampling. These speedups do not follow the
    policy's metric; a draft's and a category's do.

    On a server that does not tell them rounds, drafts or the parts of a round's time are None, and `survival` is empty.
    `round_s` is a whole round, seconds, and `round_steps` the same in steps of the target alone; both need no parts.
    `counted_share` of the texts tell the counts, which are over those.

    `predicted_*` come from replayed rounds and costs probed with the models alone. `missing_term` names the term of the
    prediction that is furthest from the measured one, where they differ by more than 5 %."""

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
    """One gamma that the sweep stopped measuring after `prompts` of `planned` prompts, since it was surely not the best
    of its draft. `speedup` is of decoding, over those prompts; `ratio` to `confidence` and `predicted_ratio` are what
    it was ruled out by, as in run.json: its speed in terms of the gamma `against`."""

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
    """One gamma by replay and cost model, measured or not. The interval is over prompts, and holds what the timing does
    not know of the costs. `gain` is what the last drafted token adds: this speedup over that of gamma - 1 (of 1.0 at
    gamma 1), less 1."""

    gamma: int
    tokens_per_round: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    speedup_e2e: float | None
    gain: float


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """One batch size at the gamma that is predicted best there: replayed rounds, costs probed at that batch."""

    batch: int
    gamma: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    baseline_tokens_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What the draft adds. `cache_bytes_per_token` is its KV cache for one token of one sequence, `state_bytes` what it
    keeps of a sequence however long that is, `context` the longest text of the run in tokens, `total_bytes` weights,
    cache and states for one such text."""

    weight_bytes: int
    cache_bytes_per_token: int
    context: int
    total_bytes: int
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HeadCosts:
    """What a draft head costs, timed alone: `first_s` for the first draft of a round (one emitted token beside the
    target's states), `step_s` for each later one, of a head that drafts at once what each adds, and `states_s`, which
    keeping those states adds to the target's pass at the best gamma; timer noise may put that below 0."""

    first_s: float
    step_s: float
    states_s: float


@dataclass(frozen=True, slots=True)
class Money:
    """Price of a million output tokens, prompts included, one sequence at a time (on a server: at the load of the
    verdict), in the currency of the policy's price per hour: the target alone, and with the draft at its best gamma."""

    baseline_per_million: float
    per_million: float


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """One category: its verdict at its own best gamma. With few prompts the interval is None. `baseline_ratio` is the
    target alone over itself where two measurements of it differ by more than chance; the interval is wider for it."""

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
    """Prompts of `low` tokens and more, below `high` (None: any longer), of which the `shortest` and `longest` that
    were measured have so many (None: there was none): its verdict at its own best gamma, of which `tokens_per_round`,
    `acceptance_rate` and the round's time `round_steps`, in steps of the target alone, are."""

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
    """One draft: the verdict, and the evidence by gamma and by category.

    `speedup`, `speedup_low`, `speedup_high` are what the verdict rests on: with several gammas they are
    cross-fitted (gamma chosen on other prompts than those reported), so they may lie below the best row.
    `slower_share` of prompts are slower than the policy has it, by the same speedups. `gammas` were measured on every
    prompt; `stopped` were ruled out on the way.
    """

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
    `difference` says what that interval resolves: "same" is within 5 %, and where it merely holds 1 nothing is."""

    draft: str
    gamma: int
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    difference: Difference


@dataclass(frozen=True, slots=True)
class Choice:
    """The draft and gamma to run with, chosen among all, and the verdict on the whole run. The speedup is cross-fitted
    over drafts and gammas alike, on the `prompts` that every draft has measured."""

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
class Pace:
    """What a run like this one takes: `prompt_s` for a prompt in all its arms, `setup_s` once."""

    prompt_s: float
    setup_s: float

    def minutes(self, prompts: int) -> float:
        return (self.setup_s + prompts * self.prompt_s) / 60


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run under a `policy`: what was measured, and the `facts` beside it. `noise_floor` is the half-width of
    the A/A arm's interval around 1.0, as a fraction: how far two measurements of the same thing lie apart here; None
    without an A/A arm or with too few prompts. `choice` is None where no prompt was measured with every draft. With a
    `batch_size` above 1 a whole batch is what the tables call a prompt, and the unit of intervals. `server` and `loads`
    are of a run on a server; everything but `loads` is then about the first load. `trials_run` trials count;
    `trials_spared` more of the plan were not run, since their gamma had been ruled out; `trials_disturbed` shared the
    machine. `baseline_texts` are the texts that the target alone did not repeat. `pace` is what a run takes, None where
    it is not known."""

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
    def headline(self) -> Choice | DraftResult | None:
        """What the verdict rests on: its speedup is the one that stands for the run."""
        return self.choice or self.recommended
