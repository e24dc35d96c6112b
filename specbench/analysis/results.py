"""One draft of a run: the verdict, and the evidence by gamma and by category."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from specbench.acceptance.lossless import explained
from specbench.acceptance.metrics import Counts, pooled, trial_counts
from specbench.analysis.contract import (
    Answer,
    BreakEven,
    CategoryGamma,
    CategoryResult,
    DraftResult,
    GammaResult,
    LengthResult,
    Memory,
    Money,
    RoundTime,
    StoppedGamma,
    Texts,
)
from specbench.analysis.facts import differing
from specbench.analysis.frame import ArmRows, DraftView, Steady, arm_of, paired, rate, shared_prompts
from specbench.analysis.predict import Predictor, missing_term, stops_paying
from specbench.cost.model import break_even_alpha, break_even_draft, closed_form
from specbench.decision.interval import Floats, Paired, choose_gamma, ends, share_bar, share_interval, speedup_interval
from specbench.decision.plan import spread_to_settle
from specbench.decision.verdict import Gates, judge, least_share
from specbench.kinds import THIRDS
from specbench.records import Arm, Call, Divergence, Interval, Policy, Reason, RuledOut, Trial, Verdict
from specbench.run_record import ModelFacts, RunRecord


class Judged:
    """Everything said about one view. `steady` has the variance of a log speedup that the A/A arm shows beyond the
    scatter of prompts; None: it is counted elsewhere. `facts` are the draft model's, from run.json."""

    def __init__(self, view: DraftView, policy: Policy, steady: Steady | None, facts: ModelFacts) -> None:
        self.view = view
        self.policy = policy
        self.steady = steady
        self.predictor = Predictor(view, policy.confidence)
        self.memory = _memory(view, facts)
        drafting = tuple(gamma for gamma in view.arms if view.counts(gamma).drafted != 0)
        # An arm that never drafted is the target alone under another name, and is no choice where there is another.
        self.choosable = drafting or tuple(view.arms)
        idle = None if drafting else Reason("never-drafted")
        self.gates = Gates(lossy=view.lossy, memory=_too_large(self.memory, policy), idle=idle)

    def interval(self, paired: Paired, category: str | None = None, excess: float = 0.0) -> Interval:
        """The speedup with everything that makes it uncertain; `excess` is that of a choice."""
        return speedup_interval(paired, self.policy.confidence, excess + self._excess(category))

    def verdict(self, paired: Paired, speedup: Interval, gates: Gates, category: str | None = None) -> Verdict:
        """By the rule, with how many prompts would settle it where it is open; of batches, with their size."""
        spread = partial(spread_to_settle, paired, self.policy.confidence, self._excess(category))
        found, batch = judge(speedup, self.policy, gates, spread), self.view.batch
        if batch == 1:
            return found
        return replace(found, reasons=tuple(replace(r, values={**r.values, "batch": batch}) for r in found.reasons))

    def _excess(self, category: str | None) -> float:
        if self.steady is None:
            return 0.0
        return self.steady.excess if category is None else self.steady.excess_of(category)

    def result(self) -> DraftResult:
        view, policy = self.view, self.policy
        choice = choose_gamma({g: view.paired(g, policy.metric) for g in self.choosable})
        speedup = self.interval(choice.paired, excess=choice.excess)
        gates = self.with_slower(choice.paired)
        verdict = self.verdict(choice.paired, speedup, gates)
        batches = self.predictor.batches()
        parts = {name: np.array(view.base.category == name, dtype=bool) for name in sorted(set(view.base.category))}
        return DraftResult(
            draft=view.spec,
            verdict=verdict.call,
            reasons=(*verdict.reasons, *self.whole_answer(verdict.call, choice.best)),
            best_gamma=choice.best,
            **ends("speedup", speedup),
            probability=verdict.probability,
            baseline_tokens_per_s=view.rate,
            **ends("alpha", self._alpha(choice.best)),
            gammas=tuple(self._gamma(gamma) for gamma in view.arms),
            categories=tuple(self._part(name, mine, name) for name, mine in parts.items() if self._decoded(mine)),
            lengths=self._lengths(),
            predicted=self.predictor.curve(),
            batches=batches,
            stops_paying_at_batch=stops_paying(batches),
            memory=self.memory,
            money=_money(view, choice.best, policy.price_per_hour),
            slower_share=gates.slower_share,
            head=self.predictor.head(choice.best),
            texts=self._texts(None),
            answer=self._answer(choice.best),
        )

    def whole_answer(self, call: Call, gamma: int) -> tuple[Reason, ...]:
        """What a GO for decoding leaves out: that answers with their prompts gain less than was asked for, or lose."""
        if call != "GO" or self.policy.metric != "decode":
            return ()
        whole = self.interval(self.view.paired(gamma, "e2e"))
        if whole.value >= self.policy.min_speedup:
            return ()
        values = {"speedup": whole.value, "low": whole.low, "high": whole.high}
        return (Reason("whole-answer", {**values, "minimum": self.policy.min_speedup}),)

    def _texts(self, gamma: int | None) -> Texts | None:
        """At one gamma, or over all of them; None where nothing was compared."""
        if all(same is None for rows in self.view.arms.values() for same in rows.identical):
            return None
        chosen = [rows for own, rows in self.view.arms.items() if gamma in (None, own)]
        trials = (trial for rows in chosen for trials in rows.trials for trial in trials)
        return texts_of(trials, self.view.spec, self.view.precision)

    def _answer(self, gamma: int) -> Answer | None:
        """Means over prompts and repeats; of a batch its time, and the tokens of one of its sequences."""
        base, own = self.view.base, self.view.arms[gamma]
        texts = len(base) * self.view.repeats
        if not texts:
            return None
        tokens, before_s, after_s = (float(c.sum()) / texts for c in (base.output_tokens, base.total_s, own.total_s))
        return Answer(tokens / self.view.batch, before_s, after_s)

    def with_slower(self, paired: Paired, weights: Floats | None = None) -> Gates:
        """The gates with the share of slower prompts, and how large it surely is; `weights` where the prompts are not
        those of the view."""
        weights = self.view.weights if weights is None else weights
        share = slower_share(paired, weights, self.policy)
        if share is None:
            return self.gates
        if share <= self.policy.max_slower_share:
            return replace(self.gates, slower_share=share)
        weights = _decoded_weights(paired, weights)
        effective = weights.sum() ** 2 / (weights**2).sum()  # Kish: so many equally weighed prompts tell as much
        return replace(self.gates, slower_share=share, slower_low=least_share(share, effective, self.policy.confidence))

    def _gamma(self, gamma: int) -> GammaResult:
        view, rows = self.view, self.view.arms[gamma]
        counts = view.counts(gamma)
        decode = view.paired(gamma, "decode")
        interval = self.interval(decode)
        compared = [same for same in rows.identical if same is not None]
        again, predicted = view.replayed(gamma), self.predictor.paired(gamma)
        tau, spent = counts.tokens_per_round, _round_time(rows, counts)
        # tau tokens at the arm's seconds per token: the time of a round where all tokens come from rounds.
        round_s = None if tau is None else tau / rate(rows)
        steps = None if round_s is None else round_s * view.rate
        even = (
            None if steps is None else break_even(gamma, counts, spent, 1 / view.rate, self.policy.min_speedup, steps)
        )
        c = None if even is None else even.measured_draft_steps
        expected = self.predictor.round_time(gamma)
        survival = self._survival(gamma, len(counts.survival))
        row = GammaResult(
            gamma=gamma,
            rounds=counts.rounds,
            drafted=counts.drafted,
            accepted=counts.accepted,
            emitted=int(rows.decode_tokens.sum()),
            acceptance_rate=counts.acceptance_rate,
            tokens_per_round=tau,
            replay_tokens_per_round=None if again is None else again.tokens_per_round,
            replay_rounds=None if again is None else float(again.rounds.sum()),
            survival=counts.survival,
            **ends("speedup", interval),
            speedup_e2e=view.paired(gamma, "e2e").speedup,
            tokens_per_s=rate(rows),
            predicted_speedup=None if predicted is None else predicted.speedup,
            identical_prompts=sum(compared) if compared else None,
            prompts=len(rows),
            slower_share=slower_share(decode, view.weights, self.policy) or 0.0,
            round_time=spent,
            predicted_speedup_e2e=self.predictor.end_to_end(gamma),
            predicted_round_time=expected,
            closed_form_speedup=None if counts.alpha is None or c is None else closed_form(counts.alpha, gamma, c),
            break_even=even,
            round_s=round_s,
            round_steps=steps,
            counted_share=view.counted_share(gamma),
            survival_low=tuple(each.low for each in survival),
            survival_high=tuple(each.high for each in survival),
            texts=self._texts(gamma),
        )
        return replace(row, missing_term=missing_term(row, expected, self.predictor.step_s, 1 / view.rate))

    def _lengths(self) -> tuple[LengthResult, ...]:
        lengths, edges = self.view.base.prompt_tokens, self.policy.by_length
        if not edges:
            return ()
        if edges == THIRDS:
            edges = tuple(sorted({math.ceil(edge) for edge in np.quantile(lengths, [1 / 3, 2 / 3])} - {lengths.min()}))
        return tuple(self._length(low, high) for low, high in zip((0, *edges), (*edges, None), strict=True))

    def _length(self, low: int, high: int | None) -> LengthResult:
        lengths = self.view.base.prompt_tokens
        mine = (lengths >= low) & (lengths < (math.inf if high is None else high))
        if not mine.any():
            return LengthResult(low, high, 0)
        shortest, longest = int(lengths[mine].min()), int(lengths[mine].max())
        if not self._decoded(mine):
            return LengthResult(low, high, int(mine.sum()), shortest, longest)
        found = self._part("", mine, None)
        row = next(row for row in found.gammas if row.gamma == found.best_gamma)
        decode = self.view.paired(found.best_gamma, "decode").take(mine).speedup
        same = ("prompts", "verdict", "reasons", "best_gamma", "speedup", "speedup_low", "speedup_high")
        return LengthResult(
            low=low,
            high=high,
            shortest=shortest,
            longest=longest,
            **{name: getattr(found, name) for name in same},
            tokens_per_round=row.tokens_per_round,
            acceptance_rate=row.acceptance_rate,
            round_steps=None if row.tokens_per_round is None else row.tokens_per_round / decode,
        )

    def _decoded(self, mine: NDArray[np.bool_]) -> bool:
        """Whether every arm decoded anything of some of the prompts: answers of one token have no speedup."""
        return all(self.view.paired(gamma, "decode").take(mine).decoded for gamma in self.view.arms)

    def _part(self, name: str, mine: NDArray[np.bool_], category: str | None) -> CategoryResult:
        """Some of the prompts, at their own best gamma; the noise is that of one `category`, or of all (None)."""
        view, metric = self.view, self.policy.metric
        choice = choose_gamma({g: view.paired(g, metric).take(mine) for g in self.choosable})
        speedup = self.interval(choice.paired, category, choice.excess)
        # Which prompts of a category are slow is decided by too few of them to be a gate.
        verdict = self.verdict(choice.paired, speedup, self.gates, category)
        gammas = []
        for gamma in view.arms:
            interval = self.interval(view.paired(gamma, metric).take(mine), category)
            counts, predicted = view.counts(gamma, mine), self.predictor.paired(gamma)
            gammas.append(
                CategoryGamma(
                    gamma=gamma,
                    **ends("speedup", interval),
                    tokens_per_round=counts.tokens_per_round,
                    acceptance_rate=counts.acceptance_rate,
                    predicted_speedup=None if predicted is None else predicted.take(mine).speedup,
                )
            )
        return CategoryResult(
            category=name,
            verdict=verdict.call,
            reasons=verdict.reasons,
            best_gamma=choice.best,
            **ends("speedup", speedup),
            prompts=int(mine.sum()),
            baseline_tokens_per_s=rate(view.base.take(mine)),
            gammas=tuple(gammas),
            baseline_ratio=None if self.steady is None or category is None else self.steady.baseline_ratio(category),
        )

    def _survival(self, gamma: int, positions: int) -> list[Interval]:
        """The interval of each s_j, with prompts as the unit."""
        counts = [c for c in self.view.by_prompt_counts(gamma) if len(c.reached) == positions]
        reached = np.array([c.reached for c in counts], dtype=float).reshape(len(counts), positions)
        survived = np.array([c.survived for c in counts], dtype=float).reshape(len(counts), positions)
        parts = zip(survived.T, (reached - survived).T, strict=True)
        return [share_bar(part, rest, self.policy.confidence) for part, rest in parts]

    def _alpha(self, gamma: int) -> Interval | None:
        """Conditional acceptance at `gamma`, with prompts as the unit; None where nothing was judged, or not known."""
        if self.view.counts(gamma).alpha is None:
            return None
        counts = [c for c in self.view.by_prompt_counts(gamma) if c.rejections is not None]
        accepted = np.array([c.accepted for c in counts], dtype=float)
        rejected = np.array([c.rejections for c in counts], dtype=float)
        if accepted.sum() + rejected.sum() == 0:
            return None
        return share_interval(accepted, rejected, self.policy.confidence)


def slower_share(paired: Paired, weights: Floats, policy: Policy) -> float | None:
    """Share of prompts (of traffic, under a mix) that the draft makes slower than the policy's `slower_than`."""
    weights = _decoded_weights(paired, weights)
    return float(np.average(paired.by_prompt < policy.slower_than, weights=weights)) if len(weights) else None


def _decoded_weights(paired: Paired, weights: Floats) -> Floats:
    """Of the prompts in which both arms decoded anything."""
    return weights[(paired.base_tokens > 0) & (paired.spec_tokens > 0)]


def _round_time(rows: ArmRows, counts: Counts) -> RoundTime | None:
    """The mean round's time by its parts; None where they, or the rounds, are not known."""
    totals = [float(column.sum()) for column in (rows.draft_s, rows.verify_s, rows.other_s)]
    if counts.rounds is None or any(map(math.isnan, totals)):
        return None
    return RoundTime(*(total / max(counts.rounds, 1) for total in totals))


def break_even(
    gamma: int, counts: Counts, spent: RoundTime | None, step_s: float, minimum: float, whole: float
) -> BreakEven:
    """What 1.0x and `minimum` take at this gamma, from the measured rounds. Where the parts of a round are not known,
    from its time in target steps alone (`whole`); what drafting may cost is not known then."""
    assert counts.tokens_per_round is not None
    tau, drafted = counts.tokens_per_round, (counts.drafted or 0) / (counts.rounds or 1)
    v = h = c = None
    if spent is not None:
        v, h = spent.verify_s / step_s, spent.other_s / step_s
        c = spent.draft_s / step_s / drafted if drafted else None
        whole = spent.total_s / step_s

    def at(times: float) -> tuple[float, float | None, float | None]:
        draft = None if v is None or h is None or c is None else break_even_draft(tau / times, drafted, v, h)
        return whole * times, break_even_alpha(gamma, 0.0, whole * times), draft

    return BreakEven(*at(1.0), c, *at(minimum))


def _memory(view: DraftView, facts: ModelFacts) -> Memory | None:
    weights, per_token = facts.weight_bytes, facts.cache_bytes_per_token
    if weights is None or per_token is None:
        return None
    context = int((view.base.prompt_tokens + view.base.output_tokens / view.repeats / view.batch).max())
    states = facts.state_bytes or 0
    return Memory(weights, per_token, context, weights + per_token * context + states, states)


def _too_large(memory: Memory | None, policy: Policy) -> Reason | None:
    if policy.max_added_gb is None or memory is None or memory.total_bytes <= policy.max_added_gb * 1e9:
        return None
    return Reason("memory", {"takes_bytes": memory.total_bytes, "allowed_bytes": policy.max_added_gb * 1e9})


def texts_of(trials: Iterable[Trial], draft: str | None, precision: str | None) -> Texts:
    """Those of `draft` (None: of the target measured again) that differ from the target's own, by what explains it."""
    found = [diverged for _, diverged in differing(trials, draft)]
    known = [each for each in found if each is not None and (each.margin is not None or each.gap is not None)]
    wide: list[Divergence] = [each for each in known if not explained(each, precision)]
    margins = [each.margin for each in wide if each.margin is not None]
    gaps = [each.gap for each in wide if each.gap is not None]
    margin, gap = max(margins, default=None), None if margins else max(gaps, default=None)
    return Texts(len(found), len(known) - len(wide), len(wide), len(found) - len(known), margin, gap)


def _money(view: DraftView, gamma: int, price_per_hour: float | None) -> Money | None:
    if price_per_hour is None or view.overlapping:
        return None
    paired = view.paired(gamma, "e2e")
    per_second = price_per_hour / 3600 * 1e6
    alone = paired.base_s.sum() / paired.base_tokens.sum() * per_second
    return Money(float(alone), float(paired.spec_s.sum() / paired.spec_tokens.sum() * per_second))


def stopped_gammas(
    arms: Mapping[Arm, ArmRows], spec: str, run: RunRecord, policy: Policy, excess: float
) -> tuple[StoppedGamma, ...]:
    """Those of one draft, ascending. Speedups are paired over the prompts that each was measured on, as they are: a mix
    is for what may be chosen."""
    base, found = arm_of(arms, "baseline"), []
    for one in sorted(run.ruled_out, key=lambda one: one.gamma):
        rows = arms.get(Arm("speculative", spec, one.gamma))
        shared = shared_prompts([base, rows]) if one.draft == spec and rows is not None else []
        if rows is None or not shared:
            continue
        mine = rows.of(shared)
        interval = speedup_interval(paired(base.of(shared), mine, "decode"), policy.confidence, excess)
        counts = pooled([trial_counts(trial, one.gamma) for trials in mine.trials for trial in trials])
        own = {name: value for name, value in asdict(one).items() if name in _RULED_OUT}
        found.append(StoppedGamma(**own, **ends("speedup", interval), tokens_per_round=counts.tokens_per_round))
    return tuple(found)


_RULED_OUT = {each.name for each in fields(RuledOut)} & {each.name for each in fields(StoppedGamma)}
