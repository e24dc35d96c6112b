"""The object that `--json` prints, that the tables show and that the brief is written from.

One shape for three readers, so that they cannot disagree. Unknown numbers are None (null in JSON).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from specbench.records import Call, Caution

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class RoundTime:
    """Where the mean round's time goes, seconds: drafting, verifying, everything else."""

    draft_s: float
    verify_s: float
    other_s: float


@dataclass(frozen=True, slots=True)
class GammaResult:
    """One draft at one gamma over all prompts. `survival[j-1]` is s_j: P(first j drafts accepted), over rounds
    that drafted at least j. `speedup` is decode-only, `speedup_e2e` includes both prefills; both are ratios of
    totals, per token. `identical_prompts` counts prompts whose greedy text equals the target alone's, token for
    token; None when sampling. These speedups do not follow the policy's metric; a draft's and a category's do."""

    gamma: int
    rounds: int
    drafted: int
    accepted: int
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
    round_time: RoundTime


@dataclass(frozen=True, slots=True)
class CategoryGamma:
    """One category at one gamma."""

    gamma: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    tokens_per_round: float | None
    acceptance_rate: float | None


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """One category: its verdict at its own best gamma. With few prompts the interval is None."""

    category: str
    verdict: Call
    reasons: tuple[str, ...]
    best_gamma: int
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    prompts: int
    baseline_tokens_per_s: float
    gammas: tuple[CategoryGamma, ...]


@dataclass(frozen=True, slots=True)
class DraftResult:
    """One draft: the verdict, and the evidence by gamma and by category.

    `speedup`, `speedup_low`, `speedup_high` are what the verdict rests on: with several gammas they are
    cross-fitted (gamma chosen on other prompts than those reported), so they may lie below the best row.
    """

    draft: str
    verdict: Call
    reasons: tuple[str, ...]
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


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run. `noise_floor` is the half-width of the A/A arm's interval around 1.0, as a fraction: how far
    two measurements of the same thing lie apart here; None without an A/A arm or with too few prompts."""

    run: str
    schema: int
    target: str
    engine: str
    hardware: str
    noise_floor: float | None
    drafts: tuple[DraftResult, ...]
    warnings: tuple[Caution, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dumps`."""
        return asdict(self)
