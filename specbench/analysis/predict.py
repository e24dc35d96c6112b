"""What replay and cost model say of one draft: every gamma up to the widest probed, and every batch size probed.

Nothing of the timed trials enters a prediction: rounds come from the replay of the target's own texts, costs from the
models timed alone, and what a round spends outside them from the warm-up. Into its interval goes, on a server, how far
the target alone has moved since the probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from specbench.acceptance.replay import Expected
from specbench.analysis.contract import GammaResult, HeadCosts, PredictedBatch, PredictedGamma, RoundTime
from specbench.analysis.frame import DraftView
from specbench.cost.model import (
    PROBED_REACH,
    RoundCosts,
    RoundSeconds,
    apart,
    at_end,
    cost_variance,
    decoding_seconds,
    predicted_rounds,
    prefill_seconds,
    round_costs,
)
from specbench.decision.interval import Floats, Paired, ends, speedup_interval
from specbench.records import CostPoint, Interval

# Below this a difference between prediction and measurement needs no explanation.
EXPLAINED = 0.05


class Predictor:
    """Predictions for one view; empty where the run has no probe or no stored positions."""

    def __init__(self, view: DraftView, confidence: float) -> None:
        self._view = view
        self._confidence = confidence
        self._pairs: dict[tuple[int, int | None], Paired | None] = {}
        self._served = any(point.phase == "round" for point in view.points)
        if not view.texts:
            return
        self._prompt_tokens = view.base.prompt_tokens
        self._tokens = view.by_prompt(np.array([text.tokens - 1.0 for text in view.texts]))
        decoded = sum(text.tokens - 1 for text in view.texts) / len(view.texts)
        self._context = float(self._prompt_tokens.mean() + decoded / 2)

    def paired(self, gamma: int, batch: int | None = None) -> Paired | None:
        """Decoding by target alone and with the draft, prompt by prompt, at the run's batch size or another; None
        beyond what was probed."""
        if (gamma, batch) not in self._pairs:
            self._pairs[gamma, batch] = self._pair(gamma, batch)
        return self._pairs[gamma, batch]

    def _unsure(self, gamma: int, batch: int | None = None) -> float:
        """Variance of the log of a predicted speedup that comes of the probe's own intervals."""
        return sum(self._moved(gamma, batch, chosen) for chosen in apart(self._view.reader))

    def _moved(self, gamma: int, batch: int | None, chosen: Callable[[CostPoint], bool]) -> float:
        """Variance of the log of a predicted speedup from the intervals of the `chosen` points, which err together."""
        low, high = (self._pair(gamma, batch, at_end(self._view.points, end, chosen)) for end in ("low", "high"))
        if low is None or high is None or min(low.speedup, high.speedup) <= 0:
            return 0.0
        return (math.log(low.speedup / high.speedup) / (2 * PROBED_REACH)) ** 2

    def _pair(self, gamma: int, batch: int | None, points: Sequence[CostPoint] | None = None) -> Paired | None:
        view, costs = self._view, self._costs(batch, points)
        found = view.replayed(gamma)
        if costs is None or found is None or gamma >= len(costs.verify_s) or not found.rounds.sum():
            return None
        clients = (batch or view.side_by_side or 1) if self._served else 1
        if clients > 1:
            base_s, spent_s = self._in_turn(found, clients, view.points if points is None else points)
        elif view.batch > 1 and batch in (None, view.batch):
            base_s, spent_s = self._with_tail(found, points)
        else:
            base_s, spent_s = self._tokens * costs.step_s, view.by_prompt(self._rounds(found, costs, batch).total_s)
        return Paired(*(each * view.weights for each in (base_s, self._tokens, spent_s, self._tokens)))

    def _in_turn(self, found: Expected, clients: int, points: Sequence[CostPoint]) -> tuple[Floats, Floats]:
        """Seconds of decoding of each prompt, without the draft and with it, where so many clients of a server ask at
        once and each waits for the reading of the others' prompts."""
        view = self._view
        sizes = sorted(
            {p.batch for p in points if p.phase == "round" and p.model == view.reader and p.batch <= clients}
        )
        found_at = {b: self._costs(b, points) for b in sizes}
        costs = {b: c for b, c in found_at.items() if c is not None and found.gamma < len(c.verify_s)}
        rounds = np.maximum(view.by_prompt(found.rounds), 1e-12)
        step_s = {b: np.full(len(rounds), c.step_s) for b, c in costs.items()}
        round_s = {b: view.by_prompt(predicted_rounds(found, c).total_s) / rounds for b, c in costs.items()}
        alone_s = prefill_seconds(points, None, self._prompt_tokens)
        more_s = prefill_seconds(points, view.reader, self._prompt_tokens)
        if alone_s is None or more_s is None:  # probed before readings were
            alone_s = more_s = np.zeros(len(rounds))
        # A turn of the others takes as long without what is read in it.
        read_s = np.maximum(0.0, alone_s - next(iter(step_s.values())))
        windows = view.windows(clients)
        walk = partial(decoding_seconds, windows, clients)
        n = view.repeats
        return n * walk(self._tokens / n, step_s, read_s), n * walk(rounds / n, round_s, read_s + more_s)

    def _with_tail(self, found: Expected, points: Sequence[CostPoint] | None) -> tuple[Floats, Floats]:
        """Seconds of each batch of the run, without the draft and with it. Its sequences end one after the other, and
        those that still run are a smaller batch."""
        costs = {b: c for b in range(1, self._view.batch + 1) if (c := self._costs(b, points)) is not None}
        steps = np.array([text.tokens - 1.0 for text in self._view.texts])
        step_s = {b: np.full(len(steps), c.step_s) for b, c in costs.items()}
        rounds = np.maximum(found.rounds, 1e-12)
        round_s = {b: self._rounds(found, c, b).total_s / rounds for b, c in costs.items()}
        return self._batches_s(steps, step_s), self._batches_s(found.rounds, round_s)

    def _rounds(self, found: Expected, costs: RoundCosts, batch: int | None) -> RoundSeconds:
        """Rounds of a batch (None: of the run's) wait for its widest row; on a server each request has its own."""
        return predicted_rounds(found, costs, 1 if self._served else batch or self._view.batch)

    def _batches_s(self, turns: Floats, turn_s: Mapping[int, Floats]) -> Floats:
        """Seconds of each batch whose texts take so many `turns` [texts]. A turn takes what it does on average of those
        that still run, at a batch of so many [batch: texts]; linear between the batches that are known."""
        sizes, full = list(turn_s), self._view.batch
        spent = np.zeros(len(turns))
        for begin in range(0, len(turns), full):
            order = begin + np.argsort(turns[begin : begin + full])
            more = np.diff(turns[order], prepend=0.0)  # turns from one end to the next
            for ended, text in enumerate(order):
                running = order[ended:]
                mean_s = [float(turn_s[size][running].mean()) for size in sizes]
                spent[text] = more[ended] * np.interp(len(running), sizes, mean_s)
        return self._view.by_prompt(spent)

    def end_to_end(self, gamma: int) -> float | None:
        """Speedup of the whole with both prefills; None where they were not probed, and for batches."""
        view, decode = self._view, self.paired(gamma) if self._view.batch == 1 else None
        target_s = prefill_seconds(view.points, None, self._prompt_tokens) if decode else None
        draft_s = self._draft_prefill() if decode else None
        if decode is None or target_s is None or draft_s is None:
            return None
        base_s, more_s = (each * view.repeats * view.weights for each in (target_s, draft_s))
        return float((base_s + decode.base_s).sum() / (base_s + more_s + decode.spec_s).sum())

    def _draft_prefill(self) -> Floats | None:
        """Seconds for each prompt; layers that are shared with the target have read it already."""
        if self._view.draft.kind == "skip":
            return np.zeros(len(self._prompt_tokens))
        return prefill_seconds(self._view.points, self._view.reader, self._prompt_tokens)

    def round_time(self, gamma: int) -> RoundTime | None:
        """Where the mean round's time should go; in a batch a sequence's share of it."""
        costs, found = self._costs(), self._view.replayed(gamma)
        if costs is None or found is None or gamma >= len(costs.verify_s) or not found.rounds.sum():
            return None
        spent, rounds = self._rounds(found, costs, None), found.rounds.sum() * self._view.batch
        return RoundTime(*(float(s.sum() / rounds) for s in (spent.draft_s, spent.verify_s, spent.other_s)))

    def curve(self) -> tuple[PredictedGamma, ...]:
        costs = self._costs()
        found, before = [], 1.0
        for gamma in range(1, len(costs.verify_s) if costs else 0):
            interval, again = self.interval(gamma), self._view.replayed(gamma)
            if interval is None or again is None or again.tokens_per_round is None:
                break
            found.append(
                PredictedGamma(
                    gamma=gamma,
                    tokens_per_round=again.tokens_per_round,
                    **ends("speedup", interval),
                    speedup_e2e=self.end_to_end(gamma),
                    gain=interval.value / before - 1,
                )
            )
            before = interval.value
        return tuple(found)

    def batches(self) -> tuple[PredictedBatch, ...]:
        """Every batch size probed, at the gamma that is best there. Rows accept raggedly: each goes on by its own
        tokens per round while all share the time of a round, so tokens per round stay what they are at batch 1."""
        rows = []
        for batch in sorted({point.batch for point in self._view.points}):
            costs = self._costs(batch)
            pairs = {g: p for g in range(1, len(costs.verify_s) if costs else 0) if (p := self.paired(g, batch))}
            if not pairs or costs is None:
                continue
            gamma = max(pairs, key=lambda g: pairs[g].speedup)
            interval = self.interval(gamma, batch)
            assert interval is not None
            alone = batch / costs.step_s
            rates = {"baseline_tokens_per_s": alone, "tokens_per_s": alone * interval.value}
            rows.append(PredictedBatch(batch=batch, gamma=gamma, **ends("speedup", interval), **rates))
        return tuple(rows)

    def _costs(self, batch: int | None = None, points: Sequence[CostPoint] | None = None) -> RoundCosts | None:
        view = self._view
        points = view.points if points is None else points
        if not points or not view.texts:
            return None
        batch = batch or view.side_by_side
        if batch is None:
            return None
        return round_costs(points, view.reader, self._context, view.other_s, batch)

    def interval(self, gamma: int, batch: int | None = None) -> Interval | None:
        """The predicted speedup, over prompts, with what is uncertain in the costs."""
        paired, batch = self.paired(gamma, batch), batch or self._view.side_by_side
        if paired is None or batch is None:
            return None
        return speedup_interval(paired, self._confidence, self.variance(gamma, batch))

    def variance(self, gamma: int, batch: int) -> float:
        """Of the log of a predicted speedup, from what is uncertain in the costs."""
        if not self._served:
            return self._unsure(gamma, batch)
        rounds = cost_variance(self._view.points, self._view.reader, gamma, batch) + self._since()
        return rounds + (self._moved(gamma, batch, lambda point: not point.context) if batch > 1 else 0.0)

    def _since(self) -> float:
        """A server is probed in a command of its own, at another time. How far the target alone then lies from what it
        takes in this run is one observation of what that does to a ratio: its squared log."""
        gamma = next(iter(self._view.arms))
        then, now = self.paired(gamma), self._view.paired(gamma, "decode")
        if then is None or not then.decoded or not now.decoded:
            return 0.0
        per_token_s = [float(pair.base_s.sum() / pair.base_tokens.sum()) for pair in (then, now)]
        return math.log(per_token_s[0] / per_token_s[1]) ** 2

    def head(self, gamma: int) -> HeadCosts | None:
        """What a draft head costs alone; None for any other draft, and where it was not timed."""
        costs = self._costs()
        if costs is None or not costs.read_s or not costs.states_s or gamma >= len(costs.states_s):
            return None
        return HeadCosts(costs.read_s[0], costs.draft_s, costs.states_s[gamma] - costs.verify_s[gamma])

    @property
    def step_s(self) -> float | None:
        """One probed step of the target alone; in a batch a sequence's share of it."""
        costs = self._costs()
        return None if costs is None else costs.step_s / self._view.batch


def stops_paying(batches: tuple[PredictedBatch, ...]) -> int | None:
    """The smallest probed batch from which on even the best gamma is predicted slower than the target alone."""
    below = None
    for row in reversed(batches):
        if row.speedup >= 1.0:
            break
        below = row.batch
    return below


def missing_term(row: GammaResult, predicted: RoundTime | None, step_s: float | None, alone: float) -> str | None:
    """Which term of the prediction is furthest from what was measured: acceptance or a part of the round's time, all in
    target steps, so that a machine that was faster or slower throughout does not count. `step_s` is the probed step,
    `alone` the measured one. None where the prediction is within EXPLAINED."""
    if row.predicted_speedup is None or row.round_time is None or predicted is None or not step_s:
        return None
    if abs(row.predicted_speedup / row.speedup - 1) <= EXPLAINED:
        return None
    whole = predicted.draft_s + predicted.verify_s + predicted.other_s
    names = {"draft_s": "drafting", "verify_s": "verifying", "other_s": "the rest"}
    off = {
        term: abs(getattr(row.round_time, name) / alone - getattr(predicted, name) / step_s) / (whole / step_s)
        for name, term in names.items()
    }
    if row.tokens_per_round and row.replay_tokens_per_round:
        off["acceptance"] = abs(math.log(row.tokens_per_round / row.replay_tokens_per_round))
    return max(off, key=lambda term: off[term])
