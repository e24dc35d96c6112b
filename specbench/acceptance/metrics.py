"""Counts of rounds to the rates people quote. docs/measuring.md section 1 fixes the words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from specbench.records import Round, ServerStats, Trial

# Of the texts whose counts are known in part, so many must be known in full for the others to be left out.
ENOUGH = 0.5


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened over some rounds. `reached[j-1]` rounds drafted at least j tokens, `survived[j-1]` of them had the
    first j accepted; `rejections` rounds ended in a rejection (the others are censored). Of a server that lists no
    rounds any may be unknown: None, or empty for `reached` and `survived`."""

    rounds: int | None
    drafted: int | None
    accepted: int | None
    rejections: int | None
    reached: tuple[int, ...]
    survived: tuple[int, ...]

    @property
    def acceptance_rate(self) -> float | None:
        """r = A / D. It falls as gamma grows, by construction: not comparable across gamma."""
        return self.accepted / self.drafted if self.drafted and self.accepted is not None else None

    @property
    def alpha(self) -> float | None:
        """P(a draft is accepted, given that the drafts before it were) = A / (A + R)."""
        if self.accepted is None or self.rejections is None:
            return None
        judged = self.accepted + self.rejections
        return self.accepted / judged if judged else None

    @property
    def tokens_per_round(self) -> float | None:
        """tau = 1 + A / s, pooled over rounds; the 1 is the correction or the bonus. None without a round."""
        return 1 + self.accepted / self.rounds if self.rounds and self.accepted is not None else None

    @property
    def survival(self) -> tuple[float | None, ...]:
        """s_j = P(the first j drafts are all accepted), over the rounds that drafted at least j."""
        return tuple(s / r if r else None for s, r in zip(self.survived, self.reached, strict=True))

    @property
    def known(self) -> int:
        """How much is known: 3 every round, 2 the totals with the number of rounds, 1 drafts alone, 0 nothing."""
        if self.drafted is None or self.accepted is None:
            return 0
        return 1 if self.rounds is None else 2 if self.rejections is None else 3


def count(rounds: Iterable[Round], gamma: int) -> Counts:
    """Count rounds that drafted at most `gamma` tokens each. Raises ValueError for an impossible round."""
    return _tallied(Counter((r.drafted, r.accepted) for r in rounds), gamma)


def _tallied(rounds: Counter[tuple[int, int]], gamma: int) -> Counts:
    """How many rounds there were of each (drafted, accepted): few kinds, however many rounds."""
    drafted = accepted = rejections = 0
    by_drafted, by_kept = [0] * (gamma + 1), [0] * (gamma + 1)
    for (tokens, kept), times in rounds.items():
        if not 0 <= kept <= tokens <= gamma:
            raise ValueError(f"a round of gamma {gamma} cannot accept {kept} of {tokens}")
        drafted += tokens * times
        accepted += kept * times
        rejections += (kept < tokens) * times
        by_drafted[tokens] += times
        by_kept[kept] += times
    return Counts(rounds.total(), drafted, accepted, rejections, _at_least(by_drafted), _at_least(by_kept))


def _at_least(numbers: Sequence[int]) -> tuple[int, ...]:
    """How many have 1 or more, 2 or more and so on, from how many have 0, 1 and so on."""
    return tuple(accumulate(numbers[:0:-1]))[::-1]


def told_counts(told: ServerStats, gamma: int) -> Counts:
    """Counts from a server's totals of one request. Where every round drafted `gamma` tokens and it tells how many
    survived to each position, the rounds are known but for their order, as if it had listed them."""
    rounds, drafted, accepted, survived = told.rounds, told.drafted, told.accepted, told.survived
    if rounds is not None and drafted == rounds * gamma and survived is not None and len(survived) <= gamma:
        survived += (0,) * (gamma - len(survived))
        falling = all(after <= before for before, after in zip((rounds, *survived), survived, strict=False))
        if falling and sum(survived) == accepted:
            return Counts(rounds, drafted, accepted, rounds - survived[-1], (rounds,) * gamma, survived)
    return Counts(rounds, drafted, accepted, None, (), ())


def trial_counts(trial: Trial, width: int) -> Counts:
    """Counts of one trial, whose rounds drafted at most `width` tokens: of its rounds where they are listed, else of
    what the server told. A server may leave out the steps in which it drafted nothing."""
    served = trial.told is not None or trial.times.verify_s is None
    if not served or not trial.decode_tokens:
        return _tallied(Counter(zip(trial.drafted, trial.accepted, strict=True)), width)
    told = trial.told or ServerStats()
    if trial.drafted:
        found = _written(trial, width)
    elif told.drafted == 0:
        found = count([], width)
    else:
        found = told_counts(told, width)
    return _with_plain_steps(found, trial)


def _room(trial: Trial) -> int:
    """Tokens that rounds write, each one and what it accepts; the one that accepts the end of a text, or of a turn,
    adds none. Of turns that did not all end by themselves the longest was cut."""
    if trial.finish == "eos":
        return trial.decode_tokens + max(1, len(trial.turns))
    longest = max((turn.output_tokens for turn in trial.turns), default=0)
    return trial.decode_tokens + sum(turn.output_tokens < longest for turn in trial.turns)


def _written(trial: Trial, width: int) -> Counts:
    """Of listed rounds the last may have accepted more than the text had room for, as vLLM counts: that was drafted for
    nothing, and nobody rejected it."""
    rounds = Counter(zip(trial.drafted, trial.accepted, strict=True))
    over = len(trial.drafted) + sum(trial.accepted) - _room(trial)
    drafted, accepted = trial.drafted[-1], trial.accepted[-1]
    if over <= 0 or not accepted:
        return _tallied(rounds, width)
    kept = max(0, accepted - over)
    found = _tallied(rounds - Counter([(drafted, accepted)]) + Counter([(kept, kept)]), width)
    return replace(found, drafted=(found.drafted or 0) + drafted - kept)


def _with_plain_steps(found: Counts, trial: Trial) -> Counts:
    """Every token came from a round or was accepted in one; what is left came from steps without a draft, which are
    rounds of 0 drafted tokens: too few by what the last round accepted beyond the text's end. Where there were none,
    that is what is too much."""
    if found.rounds is None or found.accepted is None:
        return found
    plain = max(0, trial.decode_tokens - found.rounds - found.accepted)
    over = max(0, found.rounds + found.accepted - _room(trial))
    return replace(found, rounds=found.rounds + plain, accepted=max(0, found.accepted - over))


def pooled(counts: Sequence[Counts]) -> Counts:
    """Counts of several texts at one gamma as one, over `basis(counts)`: the texts of which enough is known."""
    if len(counts) == 1 and counts[0].known == 3:  # as every prompt that was measured once
        return counts[0]
    parts = basis(counts)

    def total(name: str) -> Any:
        values = [getattr(c, name) for c in parts]
        return None if None in values or (counts and not parts) else sum(values)

    listed = [c for c in parts if c.rejections is not None]
    columns = [[c.reached for c in listed], [c.survived for c in listed]] if len(listed) == len(parts) else [[], []]
    reached, survived = (tuple(map(sum, zip(*column, strict=True))) for column in columns)
    return Counts(total("rounds"), total("drafted"), total("accepted"), total("rejections"), reached, survived)


def basis(counts: Sequence[Counts]) -> list[Counts]:
    """The texts that rates are taken over: those known in full where they are at least ENOUGH of all, else those with
    as much as that share has, so that every rate is over the same texts."""
    for level in (3, 2, 1):
        enough = [c for c in counts if c.known >= level]
        if enough and len(enough) >= ENOUGH * len(counts):
            return enough
    return []
