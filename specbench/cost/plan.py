"""What to probe: which context lengths, widths and batch sizes, how often; and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.config import RunConfig
from specbench.records import Bandwidth, Caution, CostPoint

PASSES = 15
BATCH_PASSES = 7
PREFILL_PASSES = 5

# At batches above 1 only these widths and the widest are timed: beyond 9 tokens the verify curve is smooth, and a pass
# is long. Whoever reads the points interpolates.
_BATCH_WIDTHS = frozenset({*range(1, 10), 13, 17, 33, 49})


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What a probe wants beside the configuration. A model given as a config.json takes the place of one with weights;
    `contexts` None are those of the workload; `passes` None are the defaults."""

    target_config: Path | None = None
    draft_configs: tuple[Path, ...] = ()
    contexts: tuple[int, ...] | None = None
    passes: int | None = None


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """`contexts` are read before batch 1, `batch_contexts` before larger batches;
    `prompts` and `batch_prompts` are the lengths of a prefill at batch 1 and at larger ones."""

    contexts: tuple[int, ...]
    batch_contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    batch_prompts: tuple[int, ...]
    gammas: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    passes: int = PASSES
    batch_passes: int = BATCH_PASSES
    prefill_passes: int = PREFILL_PASSES

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence that is read."""
        return max(max(*self.contexts, *self.batch_contexts) + max(self.gammas) + 1, *self.prompts)

    @property
    def phases(self) -> tuple[int, ...]:
        """Tokens of the draft phases that are timed: what the first one costs is told apart from the others."""
        return tuple(sorted({1, *self.gammas}))

    def widths(self, batch: int) -> tuple[int, ...]:
        """Numbers of tokens that the target reads at once: 1 to gamma + 1, thinned out at larger batches."""
        widest = max(self.gammas) + 1
        return tuple(n for n in range(1, widest + 1) if batch == 1 or n in _BATCH_WIDTHS or n == widest)


@dataclass(frozen=True, slots=True)
class Costs:
    """Points of every batch that fitted, cautions for what did not, and the probe's folder where they came from one.
    `bandwidth` is of the memory, where it was timed."""

    points: tuple[CostPoint, ...]
    cautions: tuple[Caution, ...] = ()
    source: str | None = None
    bandwidth: Bandwidth | None = None


def run_plan(prompt_tokens: Sequence[int], config: RunConfig) -> ProbePlan:
    """Before a run: batch 1 at three lengths, larger batches at the middle one. The lengths are the middles of short,
    median and long texts of this workload."""
    prompts = spread(prompt_tokens)
    contexts = tuple(length + config.max_new_tokens // 2 for length in prompts)
    middle = (contexts[len(contexts) // 2],)
    # Without batch 1 nothing of the run could be predicted.
    batch_sizes = tuple(sorted({1, config.batch_size, *config.probe_batch_sizes}))
    return ProbePlan(contexts, middle, prompts, (), config.gamma, batch_sizes)


def spread(prompt_tokens: Sequence[int]) -> tuple[int, ...]:
    """A short, a median and a long prompt's length, ascending; fewer where they are the same."""
    lengths = sorted(prompt_tokens)
    return tuple(sorted({lengths[int(share * (len(lengths) - 1))] for share in (0.1, 0.5, 0.9)}))
