"""What a run's stored positions say about draft lengths and cut-offs that were never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from specbench.acceptance.replay import Expected, Floats, Positions, Text, replay
from specbench.cost.model import RoundCosts, predicted_rounds, predicted_speedup, round_costs
from specbench.cost.stored import replay_costs
from specbench.decision.interval import Paired, choose_gamma, ends, share_interval, speedup_interval
from specbench.drafters import parse_draft, reader_of
from specbench.records import CostPoint, Finding, Interval, warned
from specbench.run_record import RunRecord

if TYPE_CHECKING:
    from specbench.analysis.recorded import RecordedDraft


@dataclass(frozen=True, slots=True)
class ReplayGamma:
    """One gamma over all texts. `drafted` lies between `drafted_low` and `drafted_high`, since what a draft does after
    its first wrong token is not on the text; `survival` is a lower bound for it. `predicted_speedup` is of decoding,
    where costs are known."""

    gamma: int
    rounds: float
    accepted: float
    drafted_low: float
    drafted_high: float
    tokens_per_round: float | None
    alpha: float | None
    survival: tuple[float | None, ...]
    predicted_speedup: float | None = None


@dataclass(frozen=True, slots=True)
class ReplayDraft:
    """`alpha` is the mean over positions of sum min(p, q). Drafting stops below the confidence `cutoff`: the draft's
    own, or a higher one that was asked for. `best` is there where asked for and known."""

    draft: str
    cutoff: float
    texts: int
    tokens: int
    alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    gammas: tuple[ReplayGamma, ...]
    categories: dict[str, tuple[ReplayGamma, ...]]
    best: BestPair | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """`cutoff` is the one that was asked for, 0 is none."""

    run: str
    schema: int
    cutoff: float
    drafts: tuple[ReplayDraft, ...]
    warnings: tuple[Finding, ...] = ()


def replayed(
    run: str,
    texts: Sequence[Text],
    gammas: Sequence[int],
    cutoff: float,
    confidence: float,
    readers: Mapping[str, str] | None = None,
    points: Sequence[CostPoint] = (),
    *,
    best: bool = False,
) -> Replayed:
    """Replay every draft of a run at every gamma. With cost `points`, and the names under which the drafts' models were
    timed (`readers`), each has its predicted speedup, and with `best` the pair of gamma and cut-off is looked for."""
    drafts = []
    for draft in dict.fromkeys(text.draft for text in texts):
        mine = [text for text in texts if text.draft == draft]
        reader = (readers or {}).get(draft)
        costs = None if reader is None else middle_costs(points, reader)
        at = max(cutoff, parse_draft(draft).cutoff)
        drafts.append(
            ReplayDraft(
                draft=draft,
                cutoff=at,
                texts=len(mine),
                tokens=sum(text.tokens for text in mine),
                **ends("alpha", overlap_interval(mine, confidence)),
                gammas=tuple(row(replay(mine, gamma, at), mine, costs) for gamma in gammas),
                categories={
                    name: tuple(row(replay(texts, gamma, at), texts, costs) for gamma in gammas)
                    for name, texts in _by_category(mine).items()
                },
                best=best_pair(mine, points, gammas, confidence, reader) if best and reader is not None else None,
            )
        )
    return Replayed(run, 1, cutoff, tuple(drafts))


def overlap_interval(texts: Sequence[Text], confidence: float) -> Interval | None:
    """Mean overlap of p and q over all positions with its interval over prompts; None without a position, as for block
    drafters."""
    prompts: dict[str, list[float]] = {}
    for text in texts:
        if not isinstance(text, Positions):
            continue  # a block drafter has no proposal at every position
        sums = prompts.setdefault(text.prompt_id, [0.0, 0.0])
        judged = text.overlap[text.judged]
        sums[0] += float(judged.sum())
        sums[1] += float((1 - judged).sum())
    accepted, rejected = np.array(list(prompts.values()), dtype=float).reshape(-1, 2).T
    return share_interval(accepted, rejected, confidence) if accepted.sum() + rejected.sum() else None


class Prices(NamedTuple):
    """The names under which the drafts' models were timed, and what was."""

    readers: dict[str, str]
    points: tuple[CostPoint, ...]


def prices_of(run: RunRecord) -> Prices:
    """What the run has; nothing where nothing was timed."""
    points = tuple(run.probe or ())
    whole = any(point.phase == "round" for point in points)  # a server's rounds go by the draft
    return Prices(
        {spec: spec if whole else reader_of(spec, facts.layers) for spec, facts in run.drafts.items()}, points
    )


def priced(run: RunRecord, costs: Path | None) -> RunRecord:
    """The run with the costs of the probe in folder `costs`, and what there is to say of them."""
    if costs is None:
        return run
    found = replay_costs(costs, run)
    codes = {one.code for one in found.cautions}  # what the run's own probe raised is of other costs
    warnings = (*(one for one in run.warnings if one.code not in codes), *found.cautions)
    return replace(run, probe=found.points, probe_from=found.source, warnings=warnings)


# Contexts further than this factor outside those of a probe are worth a caution.
_REACH = 1.5


def cost_cautions(drafts: Sequence[RecordedDraft], points: Sequence[CostPoint]) -> list[Finding]:
    """What a prediction from cost `points` lacks, or stretches."""
    found = []
    lacking = [
        f"{one.draft} at gamma {row.gamma}" for one in drafts for row in one.gammas if not row.predicted_speedup.value
    ]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        found.append(
            warned(
                "passes-not-probed",
                f"there is no prediction of {lacking[0]}{more}: the probe did not time as wide a pass",
                "Run specbench probe up to the largest --gamma.",
            )
        )
    contexts = [point.context for point in points if point.context > 0 and point.batch == 1]
    means = [one.context for one in drafts]
    if contexts and (min(means) * _REACH < min(contexts) or max(means) > max(contexts) * _REACH):
        found.append(
            warned(
                "probe-contexts",
                f"the models were timed after {min(contexts):,} to {max(contexts):,} tokens, tokens of these answers "
                f"stand after {round(max(means)):,} in the mean",
                f"Run specbench probe --context {round(max(means))}.",
            )
        )
    return found


def _by_category(texts: Sequence[Text]) -> dict[str, list[Text]]:
    names = sorted({text.category or "all" for text in texts})
    return {name: [text for text in texts if (text.category or "all") == name] for name in names}


def row(found: Expected, texts: Sequence[Text], costs: RoundCosts | None) -> ReplayGamma:
    """One gamma's expected counts over `texts`, pooled, and what they are worth."""
    decoded = sum(text.tokens - 1 for text in texts)
    known = costs is not None and found.gamma < len(costs.verify_s)
    return ReplayGamma(
        gamma=found.gamma,
        rounds=float(found.rounds.sum()),
        accepted=float(found.accepted.sum()),
        drafted_low=float(found.drafted_low.sum()),
        drafted_high=float(found.drafted.sum()),
        tokens_per_round=found.tokens_per_round,
        alpha=found.alpha,
        survival=found.survival,
        predicted_speedup=predicted_speedup(found, decoded, costs) if costs is not None and known else None,
    )


CUTOFFS = tuple(round(0.05 * i, 2) for i in range(20))


@dataclass(frozen=True, slots=True)
class CutoffRow:
    """One cut-off at the gamma that is predicted best with it. Where the cut-off may have stopped a draft that was
    already wrong `drafted_high` is an upper bound and `speedup` a lower one."""

    cutoff: float
    gamma: int
    tokens_per_round: float
    drafted_high: float
    speedup: float


@dataclass(frozen=True, slots=True)
class BestPair:
    """The pair of gamma and cut-off (0, 0.05, .. 0.95) predicted fastest at batch 1, of decoding. `speedup` is
    cross-fitted over all pairs; `without` is that of the best gamma without a cut-off."""

    gamma: int
    cutoff: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    without: float
    rows: tuple[CutoffRow, ...]


def middle_costs(points: Sequence[CostPoint], reader: str) -> RoundCosts | None:
    """What rounds cost in the middle of the contexts that were probed, at batch 1, nothing outside the models: prices
    for texts whose own lengths are not the run's. None without costs."""
    contexts = sorted({point.context for point in points if point.context > 0 and point.batch == 1})
    return round_costs(points, reader, contexts[len(contexts) // 2], 0.0) if contexts else None


def best_pair(
    texts: Sequence[Text],
    points: Sequence[CostPoint],
    gammas: Sequence[int],
    confidence: float,
    reader: str,
    cutoffs: Sequence[float] = CUTOFFS,
) -> BestPair | None:
    """Over the texts of one draft, with prompts or conversations as the unit. What a round spends outside the models is
    taken as nothing, for all pairs alike. None without costs, or for a draft that has no confidence to cut at. Gammas
    beyond the widest pass probed are left out."""
    if not texts or not isinstance(texts[0], Positions):
        return None
    costs = middle_costs(points, reader)
    usable = [gamma for gamma in gammas if costs is not None and gamma < len(costs.verify_s)]
    tokens = np.array([text.tokens - 1.0 for text in texts])
    if costs is None or not usable or not tokens.any():
        return None
    places: dict[str, int] = {}
    units = [places.setdefault(text.conversation or text.prompt_id, len(places)) for text in texts]

    def by_unit(values: Floats) -> Floats:
        return np.asarray(np.bincount(units, values), dtype=np.float64)

    tokens = by_unit(tokens)
    pairs = {(gamma, cutoff): replay(texts, gamma, cutoff) for cutoff in cutoffs for gamma in usable}
    priced = {
        key: Paired(tokens * costs.step_s, tokens, by_unit(predicted_rounds(found, costs).total_s), tokens)
        for key, found in pairs.items()
    }
    keys = list(pairs)
    choice = choose_gamma({number: priced[key] for number, key in enumerate(keys)})
    gamma, cutoff = keys[choice.best]
    interval = speedup_interval(choice.paired, confidence, choice.excess)
    rows = []
    for value in cutoffs:
        best = max(usable, key=lambda g: priced[g, value].speedup)
        found, speedup = pairs[best, value], priced[best, value].speedup
        rows.append(CutoffRow(value, best, found.tokens_per_round or 1.0, float(found.drafted.sum()), speedup))
    pair = ends("speedup", interval)
    return BestPair(gamma=gamma, cutoff=cutoff, **pair, without=rows[0].speedup, rows=tuple(rows))
