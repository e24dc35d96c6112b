"""Do the clocks of a run contradict each other? The target is timed three times: alone before the run, without a draft
in it, and with one. What cannot be explained by the machine being slower throughout is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specbench.cost.model import RoundCosts, round_costs
from specbench.decision.interval import Floats, Paired, speedup_interval
from specbench.records import Arm, Caution, CostPoint, Interval, Trial
from specbench.report import text
from specbench.store import StoredRun

# How much slower the target may be without a draft than everything else says. Two kept runs are between 0.91 and 1.01.
TOLERATED = 1.15

# A pass of the target in less than half the time that it takes alone, and more than half of all time outside it.
IMPOSSIBLE, OUTSIDE = 0.5, 0.5

CONFIDENCE = 0.99

# Costs are looked up at every so many tokens of context.
STRIDE = 16


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one prompt in one arm, repeats added up: seconds measured, the seconds that the target's passes take by the
    probe, and passes."""

    verify_s: float = 0.0
    probed_s: float = 0.0
    other_s: float = 0.0
    decode_s: float = 0.0
    prefill_s: float = 0.0
    passes: int = 0

    def __add__(self, more: Spent) -> Spent:
        names = ("verify_s", "probed_s", "other_s", "decode_s", "prefill_s", "passes")
        return Spent(*(getattr(self, name) + getattr(more, name) for name in names))


def timing_cautions(stored: StoredRun, trials: Sequence[Trial]) -> list[Caution]:
    """`slow-baseline` and `unsynchronised-clock`. `trials` are the counted ones, of one load. Nothing is said of a run
    on a server, which does not tell where its time went; of batches only whether reading the prompts took as long."""
    if any(trial.times.verify_s is None for trial in trials):
        return []
    batch = int(stored.run["config"]["batch_size"])
    points = [CostPoint(**point) for point in stored.run.get("probe") or [] if point["model"] is None]
    # The tail of a batch runs at smaller batches, which the trial does not tell.
    found = _by_arm(trials, points if batch == 1 else [])
    alone = next((prompts for arm, prompts in found.items() if arm.kind == "baseline"), None)
    drafting = {arm: prompts for arm, prompts in found.items() if arm.kind == "speculative"}
    if not alone or not drafting:
        return []
    cautions = [_slow_baseline(alone, drafting), _unsynchronised([alone, *drafting.values()])]
    return [caution for caution in cautions if caution is not None]


def _slow_baseline(alone: dict[str, Spent], drafting: dict[Arm, dict[str, Spent]]) -> Caution | None:
    """The target alone is held against itself: reading the same prompt in the arms with a draft, its passes there in
    terms of the probe, and the program around them, which has less to do without a draft."""
    said = []
    arms = drafting.values()
    prefill = _surely([_ratio(alone, own, "prefill_s", None) for own in arms])
    if prefill is not None:
        said.append(f"reading the same prompts took {prefill:.2f} times as long")
    steps = _surely([_ratio(alone, own, "verify_s", "probed_s") for own in arms])
    if steps is not None:
        said.append(f"a step took {steps:.2f} times what the passes with a draft and the probe of both make of it")
    whole = _total(alone)
    needed_s = min(_total(own).other_s / max(_total(own).passes, 1) for own in arms)
    beyond_s = whole.other_s - needed_s * whole.passes
    if beyond_s > (1 - 1 / TOLERATED) * whole.decode_s:
        said.append(f"{beyond_s / whole.decode_s:.0%} of its time went into more than a round with a draft does")
    if not said:
        return None
    return Caution(
        "slow-baseline",
        f"the target alone was slower than it should be: {text.join(said)}. Every speedup here is too high",
        "Look for what slows the target alone and not the drafts: threads, another library path, work in the loop.",
    )


def _unsynchronised(arms: Iterable[dict[str, Spent]]) -> Caution | None:
    whole = sum(map(_total, arms), Spent())
    if not whole.probed_s or not whole.decode_s:
        return None
    share, outside = whole.verify_s / whole.probed_s, whole.other_s / whole.decode_s
    if share > IMPOSSIBLE or outside < OUTSIDE:
        return None
    return Caution(
        "unsynchronised-clock",
        f"passes of the target took {share:.0%} of what they take alone, and {outside:.0%} of decoding lies outside "
        "the models: the clock did not wait for the device. Totals hold, their parts and the predictions do not",
        "Report it, with the device and the version of torch.",
    )


def _ratio(alone: dict[str, Spent], own: dict[str, Spent], spent: str, due: str | None) -> Interval | None:
    """Seconds `spent` without a draft over those with one, each over what was `due` (None: the same in both), paired by
    prompt; None where the probe does not say what was due."""
    prompts = [prompt for prompt in alone if prompt in own]

    def column(side: dict[str, Spent], name: str | None) -> Floats:
        return np.array([1.0 if name is None else getattr(side[prompt], name) for prompt in prompts])

    paired = Paired(*(column(side, name) for side in (alone, own) for name in (spent, due)))
    if not all(each.sum() for each in (paired.base_s, paired.base_tokens, paired.spec_s, paired.spec_tokens)):
        return None
    return speedup_interval(paired, CONFIDENCE)


def _surely(ratios: Sequence[Interval | None]) -> float | None:
    """The least of these ratios where each is above what is tolerated, its interval included; None otherwise."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known or any(ratio.low is None or ratio.low <= TOLERATED for ratio in known):
        return None
    return min(ratio.value for ratio in known)


def _total(prompts: dict[str, Spent]) -> Spent:
    return sum(prompts.values(), Spent())


def _by_arm(trials: Iterable[Trial], points: Sequence[CostPoint]) -> dict[Arm, dict[str, Spent]]:
    """By arm and prompt. Both ends of the probe's intervals are taken against us: a single step for as dear, wider
    passes for as cheap as they may be."""
    dear = [replace(point, median_s=point.high_s) for point in points]
    cheap = [replace(point, median_s=point.low_s) for point in points]
    found: defaultdict[Arm, defaultdict[str, Spent]] = defaultdict(lambda: defaultdict(Spent))
    known: dict[tuple[bool, int], RoundCosts | None] = {}
    for trial in trials:
        speculative = trial.arm.kind == "speculative"
        context = (trial.prompt_tokens + trial.output_tokens // 2) // STRIDE * STRIDE
        if (key := (speculative, context)) not in known:
            known[key] = round_costs(cheap if speculative else dear, None, context, 0.0)
        drafted = trial.drafted if speculative else (0,) * trial.decode_tokens
        times = trial.times
        found[trial.arm][trial.prompt_id] += Spent(
            verify_s=times.verify_s or 0.0,
            probed_s=_probed_s(known[key], drafted),
            other_s=times.other_s or 0.0,
            decode_s=times.decode_s,
            prefill_s=times.prefill_s,
            passes=len(drafted),
        )
    return {arm: dict(prompts) for arm, prompts in found.items()}


def _probed_s(costs: RoundCosts | None, drafted: Sequence[int]) -> float:
    if costs is None or max(drafted, default=0) >= len(costs.verify_s):
        return 0.0
    return sum(costs.verify_s[tokens] for tokens in drafted)
