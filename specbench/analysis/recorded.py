"""What drafts would have got on the answers of a log: acceptance by draft length, category, length of the prompt and
place in the answer. `recorded_sums` fills it in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from specbench.analysis.replayed import BestPair
from specbench.records import Caution
from specbench.run_record import AnswerFacts


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval over conversations; Nones where it cannot be told, or of too few conversations."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class RecordedGamma:
    """One gamma over the answers of a group. `drafted` lies between `drafted_low` and `drafted_high`, as in a replay.
    `predicted_speedup` is of decoding, by costs that were measured elsewhere."""

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
    """Places in answers, from token `begin` on up to the next bucket: the share at which the first draft of a round
    that began there would have been accepted."""

    begin: int
    places: int
    accepted: Estimate


@dataclass(frozen=True, slots=True)
class RecordedDraft:
    """One draft. `alpha` is the mean over places of sum min(p, q), None where a draft does not propose everywhere;
    `best_gamma` and `best`, the pair of gamma and cut-off, are there where costs were given."""

    draft: str
    answers: int
    tokens: int
    alpha: Estimate
    gammas: tuple[RecordedGamma, ...]
    categories: tuple[Group, ...]
    prompt_lengths: tuple[Group, ...]
    places: tuple[Place, ...]
    best_gamma: int | None = None
    best: BestPair | None = None


@dataclass(frozen=True, slots=True)
class RecordedAcceptance:
    """A whole run over recorded answers. There is no verdict: `verdict` says so for scripts. `costs` is the folder of
    the probe that speedups are predicted from."""

    run: str
    schema: int
    target: str
    confidence: float
    cutoff: float
    answers: AnswerFacts
    drafts: tuple[RecordedDraft, ...]
    costs: str | None = None
    verdict: None = None
    warnings: tuple[Caution, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dumps`."""
        return asdict(self)
