"""Do the clocks of a run contradict each other? The target is timed three times: alone before the run, without a draft
in it, and with one. What cannot be explained by the machine being slower throughout is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

import numpy as np

from specbench import text
from specbench.cost.model import RoundCosts, round_costs
from specbench.decision.interval import Floats, Paired, speedup_interval
from specbench.records import Arm, Caution, CostPoint, Interval, Trial
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


_VALUES = attrgetter(*(field.name for field in fields(Spent)))


def timing_cautions(stored: StoredRun, trials: Sequence[Trial]) -> list[Caution]:
    """`slow-baseline` and `unsynchronised-clock`. `trials` are the counted ones, of one load. Nothing is said of a run
    on a server, which does not tell where its time went; of batches only whether reading the prompts took as long."""
    if any(trial.times.verify_s is None for trial in trials):
        return []
    batch = stored.run.config.batch_size
    points = [point for point in stored.run.probe or () if point.model is None]
    # The tail of a batch runs at smaller batches, which the trial does not tell.
    found = _by_arm(trials, points if batch == 1 else [])
    alone = next((prompts for arm, prompts in found.items() if arm.kind == "baseline"), None)
    drafting = {arm: prompts for arm, prompts in found.items() if arm.kind == "speculative"}
    if not alone or not drafting:
        return []
    totals = [_added(prompts.values()) for prompts in (alone, *drafting.values())]
    cautions = [_slow_baseline(alone, drafting, totals), _unsynchronised(_added(totals))]
    return [caution for caution in cautions if caution is not None]


def _slow_baseline(
    alone: dict[str, Spent], drafting: dict[Arm, dict[str, Spent]], totals: Sequence[Spent]
) -> Caution | None:
    """The target alone is held against itself: reading the same prompt in the arms with a draft, its passes there in
    terms of the probe, and the program around them, which has less to do without a draft. `totals` are of the target
    alone and of the others in their order."""
    said = []
    arms = drafting.values()
    prefill = _surely(_ratio(alone, own, "prefill_s", None) for own in arms)
    if prefill is not None:
        said.append(f"reading the same prompts took {prefill:.2f} times as long")
    steps = _surely(_ratio(alone, own, "verify_s", "probed_s") for own in arms)
    if steps is not None:
        said.append(f"a step took {steps:.2f} times what the passes with a draft and the probe of both make of it")
    whole, *rest = totals
    needed_s = min(each.other_s / max(each.passes, 1) for each in rest)
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


def _unsynchronised(whole: Spent) -> Caution | None:
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


def _surely(ratios: Iterable[Interval | None]) -> float | None:
    """The least of these ratios where each is above what is tolerated, its interval included; None otherwise. Nearly
    always the first is not, and the others are not computed."""
    known = []
    for ratio in ratios:
        if ratio is not None:
            if ratio.low is None or ratio.low <= TOLERATED:
                return None
            known.append(ratio.value)
    return min(known, default=None)


def _added(parts: Iterable[Spent]) -> Spent:
    return Spent(*map(sum, zip(*map(_VALUES, parts), strict=True)))


def _by_arm(trials: Iterable[Trial], points: Sequence[CostPoint]) -> dict[Arm, dict[str, Spent]]:
    """By arm and prompt. Both ends of the probe's intervals are taken against us: a single step for as dear, wider
    passes for as cheap as they may be."""
    dear = [replace(point, median_s=point.high_s) for point in points]
    cheap = [replace(point, median_s=point.low_s) for point in points]
    found: dict[Arm, dict[str, Spent]] = {}
    known: dict[tuple[bool, int], RoundCosts | None] = {}
    for trial in trials:
        speculative = trial.arm.kind == "speculative"
        context = (trial.prompt_tokens + trial.output_tokens // 2) // STRIDE * STRIDE
        if (key := (speculative, context)) not in known:
            known[key] = round_costs(cheap if speculative else dear, None, context, 0.0)
        costs, times = known[key], trial.times
        if speculative:
            probed_s = _probed_s(costs, trial.drafted, trial.accepted)
        else:  # a pass for each token
            probed_s = 0.0 if costs is None else trial.decode_tokens * costs.verify_s[0]
        spent = Spent(
            times.verify_s or 0.0,
            probed_s,
            times.other_s or 0.0,
            times.decode_s,
            times.prefill_s,
            len(trial.drafted) if speculative else trial.decode_tokens,
        )
        prompts = found.setdefault(trial.arm, {})
        before = prompts.setdefault(trial.prompt_id, spent)
        if before is not spent:
            prompts[trial.prompt_id] = _added((before, spent))
    return found


def _probed_s(costs: RoundCosts | None, drafted: Sequence[int], accepted: Sequence[int]) -> float:
    if costs is None or max(drafted, default=0) >= len(costs.verify_s):
        return 0.0
    again = (costs.reread_s[a] for d, a in zip(drafted, accepted, strict=True) if a < d) if costs.reread_s else ()
    return sum(map(costs.verify_s.__getitem__, drafted)) + sum(again)
