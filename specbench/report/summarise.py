"""A stored run to the Summary that `--json`, the tables and the brief all show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from specbench.acceptance.lossless import lossy_reason
from specbench.acceptance.metrics import Counts, count, pooled
from specbench.acceptance.replay import Expected, Text, replay
from specbench.cost.model import predicted_speedup, round_costs
from specbench.decision.holdout import choose_gamma
from specbench.decision.interval import Floats, Paired, share_interval, speedup_interval
from specbench.decision.verdict import Gates, judge
from specbench.errors import StoreError
from specbench.positions import read_positions
from specbench.records import CostPoint, Interval, Policy, Trial
from specbench.report.cautions import ReplayGap, run_cautions
from specbench.report.contract import (
    SCHEMA,
    CategoryGamma,
    CategoryResult,
    DraftResult,
    GammaResult,
    RoundTime,
    Summary,
)
from specbench.report.frame import counted, prompt_frame
from specbench.store import StoredRun, cautions_of

# Several gammas are compared at once; only a gap that sampling could hardly make is worth a warning.
GAP_CONFIDENCE = 0.999


def summarise(stored: StoredRun) -> Summary:
    """Everything specbench says about a run, from its folder alone. Works on an interrupted run with what there is;
    raises StoreError where not one prompt has both the target alone and a draft."""
    policy = Policy(**stored.run["config"]["policy"])
    trials = counted(stored.trials)
    if stored.run["command"] == "replay":
        raise StoreError(
            "This run measured acceptance only, no wall clock: there is no verdict without a measurement",
            where=str(stored.folder),
            cure="See it with specbench replay, or run specbench sweep without --replay-only.",
        )
    texts = read_positions(stored.folder)
    frame = prompt_frame(trials)
    if not len(frame) or not frame["decode_tokens"].sum():
        raise StoreError(
            "No trial has decoded anything yet", where=str(stored.folder), cure="Use prompts that get longer answers."
        )
    specs = [spec for spec in stored.run["config"]["draft"] if (frame["draft"] == spec).any()]
    base = _arm(frame, "baseline")
    drafts = [DraftView(frame, base, spec, trials, texts, stored, policy) for spec in specs]
    results = tuple(view.result() for view in drafts if view.complete)
    if not results:
        raise StoreError(
            "No prompt was measured with and without a draft yet",
            where=str(stored.folder),
            cure="Run the same command again: it continues where it stopped.",
        )
    floor = _noise(frame, base, policy.confidence)
    half_width = None if floor is None or floor.low is None or floor.high is None else _half_width(floor)
    gaps = [gap for view in drafts if view.complete for g in view.arms if (gap := view.replay_gap(g)) is not None]
    cautions = [*run_cautions(stored, trials, results, floor, policy, gaps), *cautions_of(stored.run)]
    return Summary(
        run=str(stored.folder),
        schema=SCHEMA,
        target=stored.run["config"]["target"],
        engine=stored.run["provenance"]["engine"],
        hardware=stored.run["provenance"]["hardware"]["line"],
        noise_floor=half_width,
        drafts=results,
        warnings=tuple({caution.code: caution for caution in cautions}.values()),
    )


class DraftView:
    """One draft's part of a run: the prompts that every one of its gammas and the target alone have finished."""

    def __init__(
        self,
        frame: pd.DataFrame,
        base: pd.DataFrame,
        spec: str,
        trials: Sequence[Trial],
        texts: Sequence[Text],
        stored: StoredRun,
        policy: Policy,
    ) -> None:
        self.spec = spec
        self.policy = policy
        own = frame[(frame["draft"] == spec) & (frame["kind"] == "speculative")]
        arms = {gamma: own[own["gamma"] == gamma].set_index("prompt_id") for gamma in stored.run["config"]["gamma"]}
        arms = {gamma: rows for gamma, rows in arms.items() if len(rows)}
        shared = base.index
        for rows in arms.values():
            shared = shared.intersection(rows.index)
        shared = shared.sort_values()
        self.complete = len(shared) > 0
        self.base = base.loc[shared]
        self.arms = {gamma: rows.loc[shared] for gamma, rows in arms.items()}
        # Replay speaks of the same prompts as the loop, or not at all.
        config = stored.run["config"]
        own_texts = {(text.prompt_id, text.repeat): text for text in texts if text.draft == spec}
        # Greedy repeats are one and the same text, scored once.
        self.repeats = int(config["repeats"])
        self.greedy = config["temperature"] == 0
        keys = [(prompt, 0 if self.greedy else r) for prompt in shared for r in range(self.repeats)]
        self.texts = [own_texts[key] for key in keys] if set(keys) <= set(own_texts) else []
        self.replayed = {gamma: replay(self.texts, gamma) for gamma in self.arms} if self.texts else {}
        self.points = [CostPoint(**point) for point in stored.run.get("probe", [])]
        self.other_s = _other_s(stored.trials, spec)
        self.prompt_tokens = [t.prompt_tokens for t in trials if t.arm.kind == "baseline" and t.prompt_id in shared]
        mine = [t for t in trials if t.arm.draft == spec]
        self.lossy = lossy_reason(mine, stored.run["config"]["dtype"])

    def result(self) -> DraftResult:
        choice = choose_gamma({g: self._paired(g, self.policy.metric) for g in self.arms})
        speedup = speedup_interval(choice.paired, self.policy.confidence)
        slower = _slower_share(choice.paired, self.policy)
        verdict = judge(speedup, self.policy, Gates(slower, self.lossy))
        alpha = self._alpha(choice.best)
        return DraftResult(
            draft=self.spec,
            verdict=verdict.call,
            reasons=verdict.reasons,
            best_gamma=choice.best,
            speedup=speedup.value,
            speedup_low=speedup.low,
            speedup_high=speedup.high,
            probability=verdict.probability,
            baseline_tokens_per_s=_rate(self.base),
            alpha=alpha.value if alpha else None,
            alpha_low=alpha.low if alpha else None,
            alpha_high=alpha.high if alpha else None,
            gammas=tuple(self._gamma(gamma) for gamma in sorted(self.arms)),
            categories=tuple(self._category(name) for name in sorted(self.base["category"].unique())),
        )

    def _gamma(self, gamma: int) -> GammaResult:
        rows = self.arms[gamma]
        counts = self._counts(gamma, rows)
        decode = self._paired(gamma, "decode")
        interval = speedup_interval(decode, self.policy.confidence)
        rounds = max(counts.rounds, 1)
        compared = rows["identical"].dropna()
        again = self.replayed.get(gamma)
        return GammaResult(
            gamma=gamma,
            rounds=counts.rounds,
            drafted=counts.drafted,
            accepted=counts.accepted,
            emitted=int(rows["decode_tokens"].sum()),
            acceptance_rate=counts.acceptance_rate,
            tokens_per_round=counts.tokens_per_round,
            replay_tokens_per_round=None if again is None else again.tokens_per_round,
            replay_rounds=None if again is None else float(again.rounds.sum()),
            survival=counts.survival,
            speedup=interval.value,
            speedup_low=interval.low,
            speedup_high=interval.high,
            speedup_e2e=self._paired(gamma, "e2e").speedup,
            tokens_per_s=_rate(rows),
            predicted_speedup=None if again is None else self._predicted(again),
            identical_prompts=int(compared.sum()) if len(compared) else None,
            prompts=len(rows),
            slower_share=_slower_share(decode, self.policy) or 0.0,
            round_time=RoundTime(*(float(rows[name].sum()) / rounds for name in ("draft_s", "verify_s", "other_s"))),
        )

    def _category(self, name: str) -> CategoryResult:
        mine = (self.base["category"] == name).to_numpy()
        metric = self.policy.metric
        choice = choose_gamma({g: self._paired(g, metric).take(mine) for g in self.arms})
        speedup = speedup_interval(choice.paired, self.policy.confidence)
        # Which prompts of a category are slow is decided by too few of them to be a gate.
        verdict = judge(speedup, self.policy, Gates(None, self.lossy))
        gammas = []
        for gamma, rows in sorted(self.arms.items()):
            interval = speedup_interval(self._paired(gamma, metric).take(mine), self.policy.confidence)
            counts = self._counts(gamma, rows[mine])
            gammas.append(
                CategoryGamma(
                    gamma,
                    interval.value,
                    interval.low,
                    interval.high,
                    counts.tokens_per_round,
                    counts.acceptance_rate,
                )
            )
        return CategoryResult(
            category=name,
            verdict=verdict.call,
            reasons=verdict.reasons,
            best_gamma=choice.best,
            speedup=speedup.value,
            speedup_low=speedup.low,
            speedup_high=speedup.high,
            prompts=int(mine.sum()),
            baseline_tokens_per_s=_rate(self.base[mine]),
            gammas=tuple(gammas),
        )

    def _paired(self, gamma: int, metric: str) -> Paired:
        return _pair(self.base, self.arms[gamma], metric)

    def _counts(self, gamma: int, rows: pd.DataFrame) -> Counts:
        return pooled([count(rounds, gamma) for rounds in rows["rounds"]])

    def _predicted(self, found: Expected) -> float | None:
        """Speedup from replayed rounds and probed costs alone: nothing of the timed trials enters."""
        if not self.points:
            return None
        tokens = sum(text.tokens - 1 for text in self.texts)
        context = sum(self.prompt_tokens) / len(self.prompt_tokens) + tokens / len(self.texts) / 2
        return predicted_speedup(found, tokens, round_costs(self.points, self.spec, context, self.other_s))

    def replay_gap(self, gamma: int) -> ReplayGap | None:
        """Live against replayed rounds per token at one gamma, prompt by prompt; None where nothing can be compared."""
        if gamma not in self.replayed:
            return None
        rows = self.arms[gamma]
        replayed = self.replayed[gamma].rounds.reshape(-1, self.repeats).sum(1)
        live = np.array([len(rounds) for rounds in rows["rounds"]], dtype=float)
        tokens = np.array([text.tokens - 1.0 for text in self.texts]).reshape(-1, self.repeats).sum(1)
        same_text = np.array([value is True for value in rows["identical"]])
        unequal = int((live[same_text] != replayed[same_text]).sum())
        paired = Paired(replayed, tokens, live, rows["decode_tokens"].to_numpy(dtype=float))
        if self.greedy:
            # A text that left the target's own at a near-tie is another text, with other rounds.
            paired = paired.take(same_text)
            if not paired.base_s.sum():
                return None
        return ReplayGap(self.spec, gamma, speedup_interval(paired, GAP_CONFIDENCE), unequal, int(same_text.sum()))

    def _alpha(self, gamma: int) -> Interval | None:
        """Conditional acceptance at `gamma`, with prompts as the unit; None where nothing was judged."""
        counts = [count(rounds, gamma) for rounds in self.arms[gamma]["rounds"]]
        accepted = np.array([c.accepted for c in counts], dtype=float)
        rejected = np.array([c.rejections for c in counts], dtype=float)
        if accepted.sum() + rejected.sum() == 0:
            return None
        return share_interval(accepted, rejected, self.policy.confidence)


def _other_s(trials: Sequence[Trial], spec: str) -> float:
    """Seconds of a round outside both models, from the warm-up trials, which no speedup counts."""
    warm = [t for t in trials if t.warmup and t.arm.draft == spec and t.drafted]
    rounds = sum(len(t.drafted) for t in warm)
    return sum(t.times.other_s for t in warm) / rounds if rounds else 0.0


def _arm(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    return frame[frame["kind"] == kind].set_index("prompt_id")


def _pair(base: pd.DataFrame, rows: pd.DataFrame, metric: str) -> Paired:
    seconds, tokens = ("decode_s", "decode_tokens") if metric == "decode" else ("total_s", "output_tokens")

    def column(frame: pd.DataFrame, name: str) -> Floats:
        return frame[name].to_numpy(dtype=float)

    return Paired(column(base, seconds), column(base, tokens), column(rows, seconds), column(rows, tokens))


def _noise(frame: pd.DataFrame, base: pd.DataFrame, confidence: float) -> Interval | None:
    """The target alone against itself; None without a second arm."""
    again = _arm(frame, "baseline-again")
    shared = base.index.intersection(again.index).sort_values()
    if not len(shared):
        return None
    return speedup_interval(_pair(base.loc[shared], again.loc[shared], "decode"), confidence)


def _half_width(floor: Interval) -> float:
    assert floor.low is not None and floor.high is not None
    return max(abs(floor.low - 1.0), abs(floor.high - 1.0))


def _slower_share(paired: Paired, policy: Policy) -> float | None:
    speedups = paired.by_prompt
    return float((speedups < policy.slower_than).mean()) if len(speedups) else None


def _rate(rows: pd.DataFrame) -> float:
    """Decoded tokens per second, totals over totals."""
    return float(rows["decode_tokens"].sum() / rows["decode_s"].sum())
