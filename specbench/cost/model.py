"""What a round costs, and what speedup follows: measured costs and replayed rounds in, a prediction out.

    S = tokens * (t_dec + h) / sum over rounds of (t_draft(d) + t_verify(d + 1) + h)

for rounds that draft d tokens (docs/measuring.md). t_draft(d) is that of whole draft phases, timed after a pass of the
target; where no phase was timed, of single steps. A model that reads the j tokens that stay of a rejected round again
adds t_reread(j) to the next one. Leviathan's closed form is the case t_verify = t_dec, h = 0 and
independent acceptance; it stands beside for reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

import numpy as np

from specbench.acceptance.replay import Expected, Floats
from specbench.records import CostPoint

# A probe's intervals are of about 95 %: so many standard errors to either side.
PROBED_REACH = 1.96


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """Seconds, all at one context length and batch. `verify_s[n-1]` is the target over n tokens, so `verify_s[0]` is
    one decoding step; `draft_s` and `catch_up_s` are the draft over one and over two tokens (the first step after a
    round that accepted everything); `other_s` is what a round spends outside both models.

    Of a draft head `draft_s` is a step on its own state, and `read_s[n-1]` its first step of a round, over n emitted
    tokens and the target's states; `states_s[n-1]` is the target over n tokens where it keeps these states. Of a head
    that drafts at once, `block_s[d-1]` is the pass over one emitted token that drafts d, and `draft_s` what each draft
    after the first adds to it.

    `phase_s[d-1]` is a whole draft phase of d tokens after one emitted token, sampling included; empty where none was
    timed.

    `reread_s[j-1]` and `draft_reread_s[j-1]` are passes over the j tokens that stay after a rejection; empty where none
    is needed."""

    verify_s: tuple[float, ...]
    draft_s: float
    catch_up_s: float
    other_s: float
    read_s: tuple[float, ...] = ()
    states_s: tuple[float, ...] = ()
    block_s: tuple[float, ...] = ()
    reread_s: tuple[float, ...] = ()
    draft_reread_s: tuple[float, ...] = ()
    phase_s: tuple[float, ...] = ()

    @property
    def judge_s(self) -> tuple[float, ...]:
        """The target over n tokens in a round."""
        return self.states_s or self.verify_s

    def drafting_s(self, drafted: int) -> float:
        """Drafting so many tokens after one that was emitted."""
        if self.block_s and drafted:
            return (self.phase_s or self.block_s)[drafted - 1]
        return self.first_s + (drafted - 1) * self.each_s if drafted else 0.0

    @property
    def first_s(self) -> float:
        """The first draft step of a round, after one emitted token."""
        return self.phase_s[0] if self.phase_s else self.read_s[0] if self.read_s else self.draft_s

    @property
    def each_s(self) -> float:
        longer = len(self.phase_s) - 1
        return max(0.0, self.phase_s[-1] - self.phase_s[0]) / longer if longer > 0 else self.draft_s

    @property
    def step_s(self) -> float:
        """The target alone, per token."""
        return self.verify_s[0] + self.other_s


@dataclass(frozen=True, slots=True)
class RoundSeconds:
    """Where predicted rounds spend their time, seconds for each text [texts]."""

    draft_s: Floats
    verify_s: Floats
    other_s: Floats

    @property
    def total_s(self) -> Floats:
        return np.asarray(self.draft_s + self.verify_s + self.other_s, dtype=np.float64)


def round_costs(
    points: Sequence[CostPoint], draft: str | None, context: float, other_s: float, batch: int = 1
) -> RoundCosts | None:
    """Probed medians at one context length and batch. Linear between the lengths and widths that were probed, beyond
    them held. A draft that was not probed (n-gram look-up: microseconds) costs nothing. None where the target was not
    probed at this batch, or a draft that was at another batch was not at this."""
    steps = [p for p in points if p.context > 0 and p.batch == batch]

    def curve(model: str | None, phase: str = "read") -> tuple[float, ...]:
        """Seconds over 1, 2, .. tokens, up to the most that were probed."""
        mine = sorted((p for p in steps if p.model == model and p.phase == phase), key=attrgetter("context"))
        known = {}
        for tokens in sorted({p.tokens for p in mine}):
            at = [p for p in mine if p.tokens == tokens]
            known[tokens] = float(np.interp(context, [p.context for p in at], [p.median_s for p in at]))
        return tuple(
            float(np.interp(n, list(known), list(known.values()))) for n in range(1, max(known, default=0) + 1)
        )

    if any(p.phase == "round" for p in points):
        # A server shows whole rounds: they stand in the place of the pass that judges so many drafts.
        rounds_s = curve(draft, "round")
        return RoundCosts(rounds_s, 0.0, 0.0, 0.0) if rounds_s else None
    verify_s, read_s = curve(None), curve(draft)
    if not verify_s or (not read_s and any(p.model == draft for p in points)):
        return None
    step_s, block_s = curve(draft, "step"), curve(draft, "block")
    again_s, phase_s = curve(None, "reread"), curve(draft, "draft")
    if step_s or block_s:
        added_s = _states_s(steps, draft)
        each_s = step_s[0] if step_s else (block_s[-1] - block_s[0]) / max(1, len(block_s) - 1)
        states_s = tuple(v + added_s for v in verify_s)
        return RoundCosts(verify_s, each_s, each_s, other_s, read_s, states_s, block_s, again_s, phase_s=phase_s)
    draft_s, catch_up_s = read_s[:2] if read_s else (0.0, 0.0)
    kept_s = curve(draft, "reread")
    return RoundCosts(verify_s, draft_s, catch_up_s, other_s, reread_s=again_s, draft_reread_s=kept_s, phase_s=phase_s)


def at_end(
    points: Sequence[CostPoint], end: Literal["low", "high"], chosen: Callable[[CostPoint], bool]
) -> list[CostPoint]:
    """The points with those `chosen` at an end of their intervals."""
    name = f"{end}_s"
    return [replace(point, median_s=getattr(point, name)) if chosen(point) else point for point in points]


def apart(draft: str | None) -> tuple[Callable[[CostPoint], bool], ...]:
    """What of a probe errs by itself: the target's single step, its wider passes, the draft; each in itself
    together."""
    return (
        lambda point: point.model is None and point.tokens == 1,
        lambda point: point.model is None and point.tokens > 1,
        lambda point: point.model is not None and point.model == draft and point.phase != "states",
    )


def cost_variance(points: Sequence[CostPoint], draft: str | None, gamma: int, batch: int) -> float:
    """Variance of the log of a predicted speedup that comes from the costs of whole rounds: of the probed gamma next to
    this one, half the width of its interval being 1.96 standard errors. 0 where passes were timed alone."""
    rounds = [p for p in points if (p.phase, p.model, p.batch) == ("round", draft, batch) and p.tokens > 1]
    if not rounds:
        return 0.0
    near = min(rounds, key=lambda p: (abs(p.tokens - 1 - gamma), p.tokens))
    return float((np.log(near.high_s / near.low_s) / (2 * PROBED_REACH)) ** 2)


def _states_s(points: Sequence[CostPoint], draft: str | None) -> float:
    """What keeping the states for a head adds to a pass of the target: the median over all that was probed, since one
    difference of two medians is mostly noise."""
    plain = {(p.context, p.tokens): p.median_s for p in points if p.model is None and p.phase == "read"}
    kept = [(p.median_s, plain.get((p.context, p.tokens))) for p in points if (p.model, p.phase) == (draft, "states")]
    return float(np.median([with_s - alone_s for with_s, alone_s in kept if alone_s is not None] or [0.0]))


def prefill_seconds(points: Sequence[CostPoint], model: str | None, tokens: Floats) -> Floats | None:
    """Seconds in which `model` reads prompts of `tokens` [n] at batch 1: seconds per token, linear between the lengths
    that were probed and beyond them held. None where no prefill of the target was probed; 0 for a draft without."""
    every = [p for p in points if p.phase == "read" and p.context == 0 and p.batch == 1]
    mine = sorted((p for p in every if p.model == model), key=lambda p: p.tokens)
    if not any(p.model is None for p in every):
        return None
    if not mine:
        return np.zeros(len(tokens))
    rate = np.interp(tokens, [p.tokens for p in mine], [p.median_s / p.tokens for p in mine])
    return np.asarray(rate * tokens, dtype=np.float64)


def predicted_rounds(found: Expected, costs: RoundCosts, rows: int = 1) -> RoundSeconds:
    """What the rounds of each text would take. With `rows` side by side a pass is as wide as the row that reads most
    makes it, the others being any of these texts. Raises IndexError where a round drafts more than was probed."""
    by_drafted = _widest(_by_number(found.rounds, found.reached), rows)
    drafted = np.arange(found.gamma + 1)
    verify_s = np.array([costs.judge_s[n] for n in drafted])
    started, catch_ups = (_any(part, found.rounds, rows) for part in (found.started, found.catch_ups))
    # What an n-gram copied costs no step, and which rows' steps coincide is not known.
    own = _by_number(found.rounds, found.reached) if found.copied.any() else by_drafted
    steps = own @ drafted - found.copied + found.cut_offs
    draft_s = steps * costs.each_s + started * (costs.first_s - costs.each_s)
    draft_s = draft_s + catch_ups * (costs.catch_up_s - costs.draft_s)
    if costs.read_s:
        # A head's first step reads one emitted token in a text's first round, and later all that came of the round
        # before. A pass grows evenly with what it reads.
        more = (costs.read_s[-1] - costs.read_s[0]) / max(1, len(costs.read_s) - 1)
        unread = np.divide(found.accepted, found.rounds, out=np.zeros_like(found.rounds), where=found.rounds > 0)
        accepted = _widest(_by_number(found.rounds, found.survived), rows) @ drafted
        more_s = (accepted - unread) * more
        # A pass is paid for as a whole, also where fewer of its drafts are used: at a cut-off, an end of the text.
        own_s = started * costs.drafting_s(found.gamma) if costs.block_s else draft_s
        draft_s = own_s + more_s
    kept = _kept_after_rejection(found)
    return RoundSeconds(
        draft_s + _reread(kept[:, :-1], costs.draft_reread_s),
        by_drafted @ verify_s + _reread(kept, costs.reread_s),
        found.rounds * costs.other_s,
    )


def _by_number(rounds: Floats, at_least: Floats) -> Floats:
    """Rounds [texts, n + 1] with 0, 1, .. n of something, of which `at_least` [texts, n] had 1, 2, .. and more."""
    every = np.column_stack([rounds, at_least, np.zeros(len(rounds))])
    return np.asarray(every[:, :-1] - every[:, 1:], dtype=np.float64)


def _widest(by_number: Floats, rows: int) -> Floats:
    """Rounds [texts, n] by the most that is in a text's own and `rows` - 1 others, drawn from all rounds here."""
    total = by_number.sum()
    if rows == 1 or not total:
        return by_number
    others = (by_number.sum(0).cumsum() / total) ** (rows - 1)
    return np.asarray(np.diff(by_number.cumsum(1) * others, axis=1, prepend=0.0), dtype=np.float64)


def _any(part: Floats, rounds: Floats, rows: int) -> Floats:
    """Rounds of each text in which it or one of `rows` - 1 others is in a `part` of them."""
    others = 1 - part.sum() / max(rounds.sum(), 1e-12)
    return np.asarray(rounds - (rounds - part) * others ** (rows - 1), dtype=np.float64)


def _kept_after_rejection(found: Expected) -> Floats:
    """Rounds of each text that rejected their first, second, .. draft, and so keep 1, 2, .. of the tokens that were
    read [texts, gamma]. Those that accepted all of a short draft look the same; scaled to the rejections there were."""
    at_least = np.column_stack([found.reached[:, :1], found.survived])
    ended = np.maximum(at_least[:, :-1] - at_least[:, 1:], 0.0)
    total = ended.sum(1)
    share = np.divide(found.rejections, total, out=np.zeros(len(total)), where=total > 0)
    return np.asarray(ended * share[:, None], dtype=np.float64)


def _reread(kept: Floats, reread_s: Sequence[float]) -> Floats:
    """Seconds in each text."""
    if not reread_s or not kept.shape[1]:
        return np.zeros(len(kept))
    return np.asarray(kept @ np.array(reread_s[: kept.shape[1]]), dtype=np.float64)


def predicted_speedup(found: Expected, tokens: float, costs: RoundCosts) -> float | None:
    """Decode-only speedup at the gamma of `found`, over `tokens` decoded; None without a round."""
    if not found.rounds.sum():
        return None
    return float(tokens * costs.step_s / predicted_rounds(found, costs).total_s.sum())


def closed_form(alpha: float, gamma: int, c: float) -> float:
    """Leviathan et al. 2023, Theorem 3.8: speedup if drafts are accepted independently with probability alpha, a draft
    step costs c target steps and verifying costs one. It ranks, it does not predict."""
    return tokens_per_round(alpha, gamma) / (gamma * c + 1)


def tokens_per_round(alpha: float, gamma: int) -> float:
    """tau = 1 + alpha + .. + alpha^gamma, for independent acceptance."""
    return float(sum(alpha**j for j in range(gamma + 1)))


def break_even_alpha(gamma: int, c: float, v: float, h: float = 0.0) -> float | None:
    """The alpha at which a round of gamma drafts pays for itself, if a draft step costs c, verifying gamma + 1 tokens v
    and the rest h target steps; None where not even alpha = 1 pays, 0 where drafting costs nothing."""
    cost = gamma * c + v + h
    if cost > gamma + 1:
        return None
    if cost <= 1:
        return 0.0
    # 1 + alpha + .. + alpha^gamma rises from 1 to gamma + 1, so it meets the cost once.
    roots = np.roots([1.0] * gamma + [1.0 - cost])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def break_even_draft(tau: float, drafted: float, v: float, h: float = 0.0) -> float | None:
    """The most that a draft step may cost, in target steps, at `tau` tokens and `drafted` drafts per round; None where
    even a free draft would not pay."""
    c = (tau - v - h) / drafted
    return c if c >= 0 else None


# A prompt is read within one step of the others (continuous batching), who wait for it. How often that falls on a text
# depends on who ends when, so the loop is walked from one end of a text to the next.


@dataclass(slots=True)
class _Client:
    """Asks for one text after the other. When none is left it goes on asking, from its own place in the window on, so
    that the others keep their load; such answers do not count."""

    place: int
    text: int
    counts: bool = True
    left: float = 0.0  # turns until its answer is there; 0 while its prompt is not read
    began_s: float = 0.0


def decoding_seconds(
    windows: Sequence[Sequence[int]], clients: int, turns: Floats, turn_s: Mapping[int, Floats], read_s: Floats
) -> Floats:
    """Seconds from the first token of each text to its last [texts], on a server whose sequences decode in turns that
    all share; a text's mean where it is asked several times.

    In every window of `windows` (places of texts, in their order) so many `clients` ask at once, and go on asking until
    its last text is there. A text takes `turns` [texts] after its first token, each of what a turn takes on average of
    those that run, by how many these are (`turn_s` [sequences: texts], linear between the known). Its prompt adds
    `read_s` [texts] to the turn in which it is read."""
    sizes = list(turn_s)
    spent, asked = np.zeros(len(turns)), np.zeros(len(turns))

    def turn(running: Sequence[_Client]) -> float:
        texts = [client.text for client in running]
        return float(np.interp(len(texts), sizes, [turn_s[size][texts].mean() for size in sizes]))

    for window in windows:
        everyone = [_Client(place, text) for place, text in enumerate(window[:clients])]
        waiting, open_texts = [*window[clients:]], len(window)
        # What comes during a turn is read in the next. An idle server reads the first at once, as the others come.
        due, coming = list[_Client](), everyone
        now_s = 0.0
        while open_texts:
            running = [client for client in everyone if client.left]
            if not running and not due:
                due, coming = coming[:1], coming[1:]
            reading, due = due, coming
            # Until a prompt is to be read, nothing changes before the first of the answers ends.
            whole = 1.0 if reading or due else min(client.left for client in running)
            now_s += whole * turn(running) if running else 0.0
            now_s += sum(float(read_s[client.text]) for client in reading)
            coming = []
            for client in running:
                client.left -= whole
                if client.left >= 0.5:  # expected turns are no whole numbers
                    continue
                client.left = 0.0
                coming.append(client)
                if client.counts:
                    spent[client.text] += now_s - client.began_s
                    asked[client.text] += 1
                    open_texts -= 1
                client.counts = bool(waiting)
                client.text = waiting.pop(0) if waiting else window[client.place % len(window)]
                client.place += 0 if client.counts else clients
            for client in reading:
                client.began_s, client.left = now_s, max(1.0, float(turns[client.text]))
    return spent / np.maximum(asked, 1.0)
