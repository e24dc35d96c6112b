"""What a run's stored positions say about draft lengths and cut-offs that were never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specbench.acceptance.replay import Expected, Positions, Text, replay
from specbench.analysis.search import BestPair, best_pair, middle_costs
from specbench.cost.model import RoundCosts, predicted_speedup
from specbench.cost.stored import require_probe
from specbench.decision.interval import share_interval
from specbench.drafters import reader_of
from specbench.records import Caution, CostPoint
from specbench.run_record import RunRecord


@dataclass(frozen=True, slots=True)
class ReplayGamma:
    """One gamma, replayed over all texts. `drafted` lies between `drafted_low` and `drafted_high`: what a draft does
    after its first wrong token is not on the text. `survival` has the same reservation (a lower bound).
    `predicted_speedup` is of decoding, where costs are known; None where they are not, or not for so many drafts."""

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
    """One draft. `alpha` is the mean over positions of sum min(p, q), with its interval over prompts: the chance that
    a draft is accepted at a position of the text, whatever gamma. `best` is there where it was asked for and can be
    known."""

    draft: str
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
    """A whole run replayed; `cutoff` 0 is none. `warnings` are the run's own."""

    run: str
    schema: int
    cutoff: float
    drafts: tuple[ReplayDraft, ...]
    warnings: tuple[Caution, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dumps`."""
        return asdict(self)


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
        alpha = overlap_interval(mine, confidence)
        reader = (readers or {}).get(draft)
        costs = None if reader is None else middle_costs(points, reader)
        drafts.append(
            ReplayDraft(
                draft=draft,
                texts=len(mine),
                tokens=sum(text.tokens for text in mine),
                alpha=alpha[0],
                alpha_low=alpha[1],
                alpha_high=alpha[2],
                gammas=tuple(row(replay(mine, gamma, cutoff), mine, costs) for gamma in gammas),
                categories={
                    name: tuple(row(replay(texts, gamma, cutoff), texts, costs) for gamma in gammas)
                    for name, texts in _by_category(mine).items()
                },
                best=best_pair(mine, points, gammas, confidence, reader) if best and reader is not None else None,
            )
        )
    return Replayed(run, 1, cutoff, tuple(drafts))


def overlap_interval(texts: Sequence[Text], confidence: float) -> tuple[float | None, float | None, float | None]:
    """Mean overlap of p and q over all positions with its interval over prompts; Nones without a position, as for
    block drafters."""
    prompts: dict[str, list[float]] = {}
    for text in texts:
        if not isinstance(text, Positions):
            continue  # a block drafter has no proposal at every position
        sums = prompts.setdefault(text.prompt_id, [0.0, 0.0])
        judged = text.overlap[text.judged]
        sums[0] += float(judged.sum())
        sums[1] += float((1 - judged).sum())
    accepted, rejected = np.array(list(prompts.values()), dtype=float).reshape(-1, 2).T
    if accepted.sum() + rejected.sum() == 0:
        return None, None, None
    interval = share_interval(accepted, rejected, confidence)
    return interval.value, interval.low, interval.high


def prices_of(run: RunRecord, costs: Path | None = None) -> tuple[dict[str, str], tuple[CostPoint, ...]]:
    """The names under which the drafts' models were timed, and what was, in the run itself or in the probe of folder
    `costs`; nothing where nothing was."""
    points = run.probe if costs is None else require_probe(costs).probe
    return {spec: reader_of(spec, facts.layers) for spec, facts in run.drafts.items()}, points or ()


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
