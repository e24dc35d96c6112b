"""The positions of recorded answers, added up.

The positions on disk are read once, text by text, and added up: memory does not grow with the log. Answers of one
conversation are not independent, so conversations are resampled whole. Each draws a Poisson(1) weight in every
resample, from a generator that its name alone seeds: its answers get the same weight wherever in the log they stand,
without anybody having to collect them (the Poisson bootstrap; Chamandy et al. 2012, Hanley and MacGibbon 2006).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from specbench.acceptance.replay import Blocks, Floats, Positions, Text, replay
from specbench.analysis.replayed import BestPair, best_pair, middle_costs
from specbench.cost.model import PROBED_REACH, apart, at_end, cost_variance, predicted_rounds
from specbench.decision.interval import MANY, MIN_PROMPTS, reach
from specbench.drafters import parse_draft
from specbench.records import CostPoint, Finding
from specbench.run_record import AnswerFacts


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval over conversations."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class RecordedGamma:
    """One gamma over the answers of a group, as in a replay; `predicted_speedup` by costs that were measured
    elsewhere."""

    gamma: int
    rounds: float
    accepted: float
    drafted_low: float
    drafted_high: float
    tokens_per_round: Estimate
    alpha: float | None
    survival: tuple[float | None, ...]
    predicted_speedup: Estimate


@dataclass(frozen=True, slots=True)
class Group:
    """Answers of one category, or to prompts of a like length."""

    name: str
    answers: int
    tokens: int
    gammas: tuple[RecordedGamma, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Places in answers, from token `begin` on to the next bucket: how often the first draft of a round that began
    there would have been accepted."""

    begin: int
    places: int
    accepted: Estimate


@dataclass(frozen=True, slots=True)
class RecordedDraft:
    """One draft. `alpha` is the mean over places of sum min(p, q), where a draft proposes everywhere; `context` is how
    many tokens stand before a token of these answers, in the mean; `best_gamma` and `best` are there where costs were
    given."""

    draft: str
    answers: int
    tokens: int
    alpha: Estimate
    gammas: tuple[RecordedGamma, ...]
    categories: tuple[Group, ...]
    prompt_lengths: tuple[Group, ...]
    places: tuple[Place, ...]
    context: float = 0.0
    best_gamma: int | None = None
    best: BestPair | None = None


@dataclass(frozen=True, slots=True)
class RecordedAcceptance:
    """`costs` is the folder of the probe that speedups are predicted from."""

    run: str
    schema: int
    target: str
    confidence: float
    cutoff: float
    answers: AnswerFacts
    drafts: tuple[RecordedDraft, ...]
    costs: str | None = None
    verdict: None = None
    warnings: tuple[Finding, ...] = ()


RESAMPLES = 1000
# Texts that are replayed side by side, and places of all of them together.
CHUNK, PLACES = 256, 1 << 20
# Texts over which pairs of draft length and cut-off are searched.
SEARCHED = 1000
# Where buckets of prompts and of places in answers begin, in tokens.
PROMPTS = (0, 256, 1024, 4096, 16384)
ANSWERS = (0, 64, 256, 1024, 4096)

# Columns of the sums.
ROUNDS, ACCEPTED, REJECTIONS, LOW, HIGH, DECODED, SECONDS = range(7)
# Of these, those that are resampled.
DRAWN = [ROUNDS, ACCEPTED, DECODED, SECONDS]


def recorded_drafts(
    texts: Iterable[Text],
    gammas: Sequence[int],
    cutoff: float,
    confidence: float,
    readers: Mapping[str, str] | None = None,
    points: Sequence[CostPoint] = (),
    lengths: Sequence[int] = PROMPTS,
) -> tuple[RecordedDraft, ...]:
    """Every draft at every gamma, under `cutoff` or its own, the higher; buckets of prompts begin at `lengths`, in
    tokens, the first at 0. With cost `points`, and the names under which the drafts' models were timed (`readers`),
    also what speedup they predict."""
    tallies: dict[str, _Tally] = {}
    for draft, chunk in _chunks(texts):
        if draft not in tallies:
            reader = None if readers is None else readers[draft]
            tallies[draft] = _Tally(draft, gammas, max(cutoff, parse_draft(draft).cutoff), reader, points, lengths)
        tallies[draft].add(chunk)
    return tuple(tally.result(confidence) for tally in tallies.values())


def _chunks(texts: Iterable[Text]) -> Iterator[tuple[str, list[Text]]]:
    waiting: dict[str, list[Text]] = {}
    longest: dict[str, int] = {}
    for text in texts:
        mine = waiting.setdefault(text.draft, [])
        most = max(text.tokens, longest.get(text.draft, 0))
        if mine and (len(mine) == CHUNK or most * (len(mine) + 1) > PLACES):
            yield text.draft, mine
            mine = waiting[text.draft] = []
            most = text.tokens
        longest[text.draft] = most
        mine.append(text)
    yield from ((draft, mine) for draft, mine in waiting.items() if mine)


@lru_cache(maxsize=1 << 14)
def _weights(conversation: str) -> NDArray[np.uint8]:
    """How often a conversation is in each resample."""
    return np.random.default_rng(int(conversation, 16)).poisson(1.0, RESAMPLES).astype(np.uint8)


@dataclass(slots=True)
class _Sums:
    """Totals [G, columns] of a group, the same under every resample [RESAMPLES, G, drawn], and as many of its
    conversations as decide how wide an interval is."""

    totals: Floats
    draws: Floats
    answers: int = 0
    tokens: int = 0
    conversations: set[str] = field(default_factory=set)

    def note(self, conversations: Iterable[str]) -> None:
        for one in conversations:
            if len(self.conversations) <= MANY:
                self.conversations.add(one)


class _Tally:
    def __init__(
        self,
        draft: str,
        gammas: Sequence[int],
        cutoff: float,
        reader: str | None,
        points: Sequence[CostPoint],
        lengths: Sequence[int],
    ) -> None:
        self.draft = draft
        self._gammas = tuple(gammas)
        self._cutoff = cutoff
        self._reader, self._points = reader, points
        self._costs = None if reader is None else middle_costs(points, reader)
        # The costs at both ends of what errs by itself in them, and the seconds that they make of all texts.
        self._ends = [
            tuple(middle_costs(at_end(points, end, chosen), str(reader)) for end in ("low", "high"))
            for chosen in (apart(reader) if self._costs is not None else ())
        ]
        self._seconds = np.zeros((len(gammas), len(self._ends), 2))
        self._before = 0.0
        self._lengths = tuple(lengths)
        self._sums: dict[tuple[str, str], _Sums] = {}
        self._survived = [np.zeros((2, gamma)) for gamma in gammas]
        self._places = _Sums(np.zeros((len(ANSWERS), 2)), np.zeros((RESAMPLES, len(ANSWERS), 2)))
        self._overlap = _Sums(np.zeros((1, 2)), np.zeros((RESAMPLES, 1, 2)))
        self._sample: list[Text] = []
        self._seen = 0
        self._random = random.Random(0)

    def add(self, texts: Sequence[Text]) -> None:
        names = [text.conversation or text.prompt_id.encode().hex()[-16:] for text in texts]
        weights = np.stack([_weights(name) for name in names]).astype(np.float64)  # [texts, RESAMPLES]
        columns = np.stack([self._columns(texts, index) for index in range(len(self._gammas))], axis=1)
        groups: dict[tuple[str, str], list[int]] = {}
        for row, text in enumerate(texts):
            length = text.prompt_tokens or 0
            begin = max(edge for edge in self._lengths if edge <= length)
            for key in (("all", ""), ("category", text.category or "all"), ("prompt", str(begin))):
                groups.setdefault(key, []).append(row)
        alike: dict[tuple[int, ...], list[tuple[str, str]]] = {}  # groups of the same texts are added up once
        for key, members in groups.items():
            alike.setdefault(tuple(members), []).append(key)
        for rows, keys in alike.items():
            mine, drawn = (columns, weights) if len(rows) == len(texts) else (columns[[*rows]], weights[[*rows]])
            draws = np.einsum("tr,tgc->rgc", drawn, mine[:, :, DRAWN], optimize=True)
            for key in keys:
                found = self._sums.setdefault(key, self._empty())
                found.totals += mine.sum(0)
                found.draws += draws
                found.answers += len(rows)
                found.tokens += sum(texts[row].tokens for row in rows)
                found.note(names[row] for row in rows)
        self._add_places(texts, weights, names)
        for text in texts:
            self._before += text.tokens * ((text.prompt_tokens or 0) + text.tokens / 2)
            self._keep(text)

    def _empty(self) -> _Sums:
        size = len(self._gammas)
        return _Sums(np.zeros((size, SECONDS + 1)), np.zeros((RESAMPLES, size, len(DRAWN))))

    def _columns(self, texts: Sequence[Text], index: int) -> Floats:
        """What one gamma gives for each text [texts, columns]; seconds are NaN where no cost is known."""
        found = replay(texts, self._gammas[index], self._cutoff)
        self._survived[index] += np.stack([found.survived.sum(0), found.reached.sum(0)])
        decoded = np.array([text.tokens - 1.0 for text in texts])
        seconds = np.full(len(texts), np.nan)
        if self._costs is not None and self._gammas[index] < len(self._costs.verify_s):
            seconds = predicted_rounds(found, self._costs).total_s
            for row, pair in enumerate(self._ends):
                self._seconds[index, row] += [predicted_rounds(found, c).total_s.sum() if c else 0.0 for c in pair]
        numbers = (found.rounds, found.accepted, found.rejections, found.drafted_low, found.drafted, decoded, seconds)
        return np.stack(numbers, axis=1)

    def _add_places(self, texts: Sequence[Text], weights: Floats, names: Sequence[str]) -> None:
        counts = np.zeros((len(texts), len(ANSWERS), 2))
        overlap = np.zeros((len(texts), 1, 2))
        for row, text in enumerate(texts):
            first = _first_accepted(text)
            if not len(first):
                continue
            bucket = np.searchsorted(ANSWERS, np.arange(1, len(first) + 1), side="right") - 1
            counts[row, :, 0] = np.bincount(bucket, first, len(ANSWERS))
            counts[row, :, 1] = np.bincount(bucket, minlength=len(ANSWERS))
            if isinstance(text, Positions):
                overlap[row, 0] = text.overlap[text.judged].sum(), text.judged.sum()
        for sums, added in ((self._places, counts), (self._overlap, overlap)):
            sums.totals += added.sum(0)
            sums.draws += np.einsum("tr,tgc->rgc", weights, added, optimize=True)
            sums.note(names)

    def _keep(self, text: Text) -> None:
        """A random part of the texts, each as likely as another (reservoir sampling)."""
        self._seen += 1
        if self._costs is None or not isinstance(text, Positions):
            return
        if len(self._sample) < SEARCHED:
            self._sample.append(text)
        elif (place := self._random.randrange(self._seen)) < SEARCHED:
            self._sample[place] = text

    def _variance(self, index: int) -> float:
        """Of the log of a predicted speedup, from what is uncertain in the costs."""
        if any(point.phase == "round" for point in self._points):
            return cost_variance(self._points, self._reader, self._gammas[index], 1)
        step_s = np.array([[costs.step_s if costs else 1.0 for costs in pair] for pair in self._ends])
        logs = np.log(step_s / self._seconds[index])
        return float((((logs[:, 0] - logs[:, 1]) / (2 * PROBED_REACH)) ** 2).sum())

    def result(self, confidence: float) -> RecordedDraft:
        whole = self._sums["all", ""]
        gammas = self._rows(whole, confidence, survival=True)
        priced = [row for row in gammas if row.predicted_speedup.value is not None]
        best = None
        if self._reader is not None and self._sample:
            best = best_pair(self._sample, self._points, self._gammas, confidence, self._reader)
        overlap = self._overlap
        return RecordedDraft(
            draft=self.draft,
            answers=whole.answers,
            tokens=whole.tokens,
            alpha=_estimate(overlap, 0, overlap.totals[0, 0], overlap.totals[0, 1], (0, 1), confidence, within=(0, 1)),
            gammas=gammas,
            categories=self._groups("category", confidence),
            prompt_lengths=self._groups("prompt", confidence),
            places=tuple(
                Place(begin, int(count), _estimate(self._places, index, hits, count, (0, 1), confidence, within=(0, 1)))
                for index, (begin, (hits, count)) in enumerate(zip(ANSWERS, self._places.totals, strict=True))
                if count
            ),
            context=self._before / max(whole.tokens, 1),
            best_gamma=max(priced, key=lambda row: row.predicted_speedup.value or 0.0).gamma if priced else None,
            best=best,
        )

    def _groups(self, kind: str, confidence: float) -> tuple[Group, ...]:
        keys = [key for key in self._sums if key[0] == kind]
        keys.sort(key=lambda key: (int(key[1]), "") if kind == "prompt" else (0, key[1]))
        return tuple(
            Group(key[1], (sums := self._sums[key]).answers, sums.tokens, self._rows(sums, confidence)) for key in keys
        )

    def _rows(self, sums: _Sums, confidence: float, *, survival: bool = False) -> tuple[RecordedGamma, ...]:
        rows = []
        for index, gamma in enumerate(self._gammas):
            total = [float(value) for value in sums.totals[index]]
            judged = total[ACCEPTED] + total[REJECTIONS]
            emitted = total[ROUNDS] + total[ACCEPTED]
            survived, reached = self._survived[index]
            step_s = None if self._costs is None else self._costs.step_s
            rows.append(
                RecordedGamma(
                    gamma=gamma,
                    rounds=total[ROUNDS],
                    accepted=total[ACCEPTED],
                    drafted_low=total[LOW],
                    drafted_high=total[HIGH],
                    tokens_per_round=_estimate(
                        sums, index, emitted, total[ROUNDS], (-1, 0), confidence, within=(1, gamma + 1)
                    ),
                    alpha=total[ACCEPTED] / judged if judged else None,
                    survival=tuple(float(s / r) if r else None for s, r in zip(survived, reached, strict=True))
                    if survival
                    else (),
                    predicted_speedup=Estimate()
                    if step_s is None or not total[SECONDS] > 0  # NaN, or nothing was decoded
                    else _estimate(
                        sums,
                        index,
                        total[DECODED] * step_s,
                        total[SECONDS],
                        (2, 3),
                        confidence,
                        step_s,
                        self._variance(index),
                    ),
                )
            )
        return tuple(rows)


def _first_accepted(text: Text) -> Floats:
    """P(the first draft is accepted) of a round that begins after each token of the text but the last [n]."""
    if isinstance(text, Blocks):
        matched = text.matched if text.matched.ndim == 1 else text.matched[:, 0]
        return np.asarray(matched > 0, dtype=np.float64)
    accept = np.asarray(text.accept if text.accept.ndim == 1 else text.accept[:, 0], dtype=np.float64)
    if text.blocks is not None:
        return np.where(text.blocks.proposed > 0, text.blocks.matched > 0, accept)
    return accept


def _estimate(
    sums: _Sums,
    index: int,
    above: float,
    below: float,
    columns: tuple[int, int],
    confidence: float,
    scale: float = 1.0,
    variance: float = 0.0,
    within: tuple[float, float] = (0.0, math.inf),
) -> Estimate:
    """above / below, and an interval on its logarithm: the spread over resamples, and Student's t with as many degrees
    of freedom as there are conversations, less one, cut to what is possible (`within`). `columns` are those of the
    draws; -1 is rounds and accepted together, the tokens that rounds emit. `variance` is that of the logarithm from
    elsewhere."""
    if not below:
        return Estimate()
    value, n = above / below, len(sums.conversations)
    draws = sums.draws[:, index]
    tops = draws[:, 0] + draws[:, 1] if columns[0] == -1 else draws[:, columns[0]] * scale
    bottoms = draws[:, columns[1]]
    usable = (tops > 0) & (bottoms > 0)
    if n < MIN_PROMPTS or not usable.any() or value <= 0:
        return Estimate(float(value))
    spread = float(np.std(np.log(tops[usable] / bottoms[usable]))) * np.sqrt(n / (n - 1))
    width = reach(n - 1, confidence) * float(np.sqrt(spread**2 + variance))
    low, high = np.clip(value * np.exp([-width, width]), *within)
    return Estimate(float(value), float(low), float(high))
