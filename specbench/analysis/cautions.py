"""What the reader of a run should know before trusting it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from statistics import median

import numpy as np

from specbench.analysis.contract import DraftResult
from specbench.analysis.frame import DraftView
from specbench.analysis.predict import EXPLAINED
from specbench.cost.model import RoundCosts, round_costs
from specbench.decision.interval import MIN_PROMPTS, Floats, Paired, speedup_interval
from specbench.drafters import parse_draft
from specbench.records import Arm, CostPoint, Finding, Interval, Policy, Trial
from specbench.store import StoredRun

DOMINANT_SHARE = 0.25

# Several gammas are compared at once; only a gap that sampling could hardly make is worth a warning.
GAP_CONFIDENCE = 0.999

# Rounds of equal texts may differ by so much where the draft's own arg-max is subject to rounding: 0.3 % was seen in
# bfloat16 at gamma 4.
ROUNDING_SHARE = 0.02

# Many prompts show a difference of the target alone from itself that is too small to mislead anyone.
STEADY = 0.02

# Rounds in which a draft might have ended the text and did not: in so many it would not always have done so.
ROUNDS_TO_TELL = 20

# Below this share of first drafts kept, a draft knows nothing of the text: the commonest token alone gives as much.
CHANCE = 0.03


@dataclass(frozen=True, slots=True)
class ReplayGap:
    """Live against replay for one draft and gamma: `ratio` is replayed over live rounds per token (1.0 if they agree),
    under greedy over the prompts with equal text, `same` in number, of which `unequal` had other rounds."""

    draft: str
    gamma: int
    ratio: Interval
    unequal: int
    same: int


def run_cautions(
    stored: StoredRun,
    trials: Sequence[Trial],
    drafts: Sequence[DraftResult],
    floor: Interval | None,
    policy: Policy,
    gaps: Sequence[ReplayGap] = (),
) -> list[Finding]:
    """Everything the numbers themselves give away. `trials` are the counted ones, at every load."""
    main = stored.main
    # What a server never drafted is said by itself.
    silent = {(draft.draft, row.gamma) for draft in drafts for row in draft.gammas if row.drafted == 0}
    return [
        *_unfinished(stored, len(trials)),
        *_left_out(stored, drafts, policy),
        *_of_trials(trials),
        *_floor(stored, drafts, floor, policy),
        *(caution for draft in drafts for caution in _broken(draft)),
        *_dominant(main),
        *_replay(stored, [gap for gap in gaps if (gap.draft, gap.gamma) not in silent]),
        *_gamma(stored, main),
        *timing_cautions(stored, main),
    ]


def warning(code: str, hint: str, **values: object) -> Finding:
    return Finding(code, "warning", values, hint)


def _unfinished(stored: StoredRun, done: int) -> Iterator[Finding]:
    again = "Run the same command again: it continues where it stopped."
    if (end := stored.run.ended_early) is not None:
        hint = again if end.why == "time" else "Run without --time-budget for the others, and for narrower intervals."
        yield warning("time-budget", hint, why=end.why, prompts=end.prompts, planned=end.planned)
    elif stored.status != "finished":
        run = stored.run
        numbers = {"done": done, "planned": run.trials_planned, "spared": run.spared}
        yield warning("unfinished-run", again, status=stored.status, **numbers)
    if stored.torn:
        yield warning("torn-line", "Run the same command again.")


def _left_out(stored: StoredRun, drafts: Sequence[DraftResult], policy: Policy) -> Iterator[Finding]:
    """Drafts without a verdict, and parts of the prompts without a speedup."""
    if lacking := [spec for spec in stored.run.config.draft if spec not in {draft.draft for draft in drafts}]:
        hint = "Continue the run, or measure more prompts of every category."
        yield warning("draft-left-out", hint, drafts=lacking)
    tokens: defaultdict[tuple[str, Arm], int] = defaultdict(int)
    for trial in stored.main:
        tokens[trial.category or "all", trial.arm] += trial.decode_tokens
    judged = set.intersection(*({each.category for each in draft.categories} for draft in drafts))
    mute = {category for (category, _), decoded in tokens.items() if not decoded} - judged
    categories = sorted(mute & set(policy.mix) if policy.mix else mute)
    lengths = list(dict.fromkeys((r.low, r.high) for d in drafts for r in d.lengths if r.prompts and r.speedup is None))
    if categories or lengths:
        yield warning("no-decode", "Use prompts that get longer answers.", categories=categories, lengths=lengths)


def _of_trials(trials: Sequence[Trial]) -> Iterator[Finding]:
    if disturbed := [t for t in trials if t.disturbed]:
        hint = "Stop other work on this machine and run again with --fresh."
        cores = max(t.other_cores or 0.0 for t in disturbed)
        yield warning("busy-machine", hint, disturbed=len(disturbed), trials=len(trials), cores=cores)


def _floor(
    stored: StoredRun, drafts: Sequence[DraftResult], floor: Interval | None, policy: Policy
) -> Iterator[Finding]:
    """What the machine leaves open: too few prompts, a target that differs from itself, and predictions that cannot be
    held against the measurement."""
    if (n := min((draft.gammas[0].prompts for draft in drafts), default=0)) < MIN_PROMPTS:
        batch = stored.run.config.batch_size
        yield warning("few-prompts", f"Measure {MIN_PROMPTS} or more.", prompts=n, batch=batch)
    if floor is None or floor.low is None or floor.high is None:
        return
    width = max(1 - floor.low, floor.high - 1)
    near = [draft.draft for draft in drafts if abs(draft.speedup - policy.min_speedup) < width]
    if width > STEADY and not floor.low <= 1.0 <= floor.high:
        hint = "Quiet the machine, or take more repeats; differences of that size mean nothing here."
        yield warning("noise-floor", hint, value=floor.value, low=floor.low, high=floor.high)
    elif near:
        yield warning("below-noise-floor", "Quiet the machine, or take more repeats.", drafts=near, floor=width)
    points = stored.run.probe or ()
    # On a server a round is known by its ratio to a step of the same pass, whatever all of it took.
    alone = [p for p in points if p.phase == "round" and p.tokens > 1] or [
        p for p in points if p.model is None and p.context and p.phase == "read"
    ]
    probed = median((p.high_s - p.low_s) / 2 / p.median_s for p in alone) if alone else 0.0
    if any(draft.predicted for draft in drafts) and max(width, probed) > EXPLAINED:
        hint = "Read the measured speedups; judge predictions on a quiet machine."
        yield warning("prediction-unjudged", hint, measured=width, probed=probed)


def _broken(draft: DraftResult) -> Iterator[Finding]:
    last = draft.gammas[-1]
    rounds, first = last.rounds or 0, last.survival[0] if last.survival else None
    if last.drafted and last.accepted == 0:
        hint = "Check the draft's tokenizer and chat template, and that no server runs with synthetic acceptance."
        yield warning("nothing-accepted", hint, draft=draft.draft, drafted=last.drafted)
    elif rounds >= 5 * ROUNDS_TO_TELL and parse_draft(draft.draft).model and first is not None and first < CHANCE:
        hint = "Check that the draft or head was made for this target; some engines read a head's layers one off."
        yield warning("draft-at-chance", hint, draft=draft.draft, rounds=rounds, share=first)


def _replay(stored: StoredRun, gaps: Sequence[ReplayGap]) -> Iterator[Finding]:
    """Greedy texts that are equal must have equal rounds, up to the draft's own rounding below float32; sampled ones
    must agree within sampling error."""
    config = stored.run.config

    def disagrees(gap: ReplayGap) -> bool:
        low, high = gap.ratio.low, gap.ratio.high
        if not config.sampling.greedy:
            return low is not None and high is not None and not low <= 1.0 <= high
        return gap.unequal > 0 if stored.run.precision == "float32" else abs(gap.ratio.value - 1) > ROUNDING_SHARE

    wrong = [
        {"draft": gap.draft, "gamma": gap.gamma, "off": abs(gap.ratio.value - 1), "prompts": gap.unequal}
        for gap in gaps
        if disagrees(gap)
    ]
    hint = (
        "Run once with --dtype float32 and temperature 0, where the two must agree exactly; if they do not, report it."
    )
    if wrong:
        yield warning("replay-disagrees", hint, gaps=wrong)


def drafting(trials: Iterable[Trial]) -> dict[Arm, list[Trial]]:
    """The trials with a draft, by arm."""
    arms: defaultdict[Arm, list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.arm.kind == "speculative":
            arms[trial.arm].append(trial)
    return arms


def _gamma(stored: StoredRun, trials: Sequence[Trial]) -> Iterator[Finding]:
    """A draft model proposes as many tokens as it is asked for, but where it ends the text. Look-up and what stops
    early by design are only held to the most."""
    wrong = []
    arms = {} if stored.run.on_server else drafting(trials)
    for arm, own in sorted(arms.items(), key=lambda item: item[0].label):
        gamma, spec = arm.gamma or 0, parse_draft(arm.draft or "")
        widest = max((max(trial.drafted, default=0) for trial in own), default=0)
        steady = spec.kind in ("model", "skip", "mtp") and not spec.look_up and not spec.cutoff
        if widest > gamma:
            wrong.append({"arm": arm.label, "widest": widest, "more": True})
        elif widest < gamma and steady and sum(_roomy(trial, gamma) for trial in own) >= ROUNDS_TO_TELL:
            wrong.append({"arm": arm.label, "widest": widest, "more": False})
    if wrong:
        hint = "A fault of specbench: report it, and do not use these rows."
        yield warning("gamma-not-honoured", hint, arms=wrong, by="rounds")


def _roomy(trial: Trial, gamma: int) -> int:
    """Rounds after which the text went on for as long as a full draft and its bonus; none known in a batch, whose
    rounds do not say which sequence they are of."""
    out, found = 1, 0
    for accepted in () if trial.members else trial.accepted:
        found += out + gamma + 1 <= trial.output_tokens
        out += accepted + 1
    return found


def _dominant(trials: Sequence[Trial]) -> Iterator[Finding]:
    spent: defaultdict[str, float] = defaultdict(float)
    for trial in trials:
        if trial.arm.kind == "baseline":
            spent[trial.prompt_id] += trial.times.decode_s
    if len(spent) < MIN_PROMPTS:
        return
    prompt, longest = max(spent.items(), key=lambda item: item[1])
    if (share := longest / sum(spent.values())) >= DOMINANT_SHARE:
        hint = "Take it out, or add prompts until no single one decides."
        yield warning("dominant-prompt", hint, prompt=prompt, share=share)


def replay_gap(view: DraftView, gamma: int) -> ReplayGap | None:
    """Live against replayed rounds per token at one gamma, over the prompts whose rounds are known; None where nothing
    can be compared."""
    found, rows = view.replayed(gamma), view.arms[gamma]
    if found is None:
        return None
    replayed = view.by_prompt(found.rounds)
    live = view.rounds(gamma)
    tokens = view.by_prompt(np.array([text.tokens - 1.0 for text in view.texts]))
    known = ~np.isnan(live)
    same_text = np.array([value is True for value in rows.identical]) & known
    unequal = int((live[same_text] != replayed[same_text]).sum())
    # A greedy text that left the target's own at a near-tie is another text, with other rounds.
    paired = Paired(replayed, tokens, live, rows.decode_tokens).take(same_text if view.greedy else known)
    if not paired.decoded:
        return None
    return ReplayGap(view.spec, gamma, speedup_interval(paired, GAP_CONFIDENCE), unequal, int(same_text.sum()))


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


def timing_cautions(stored: StoredRun, trials: Sequence[Trial]) -> list[Finding]:
    """`slow-baseline` and `unsynchronised-clock`. `trials` are the counted ones, of one load. Nothing is said of a run
    on a server, which does not tell where its time went; of batches only whether reading the prompts took as long."""
    if any(trial.times.verify_s is None for trial in trials):
        return []
    batch = stored.run.config.batch_size
    points = [point for point in stored.run.probe or () if point.model is None]
    # The tail of a batch runs at smaller batches, which the trial does not tell.
    found = _by_arm(trials, points if batch == 1 else [])
    alone = next((prompts for arm, prompts in found.items() if arm.kind == "baseline"), None)
    drafted = [prompts for arm, prompts in found.items() if arm.kind == "speculative"]
    if not alone or not drafted:
        return []
    totals = [_added(prompts.values()) for prompts in (alone, *drafted)]
    return [*_slow_baseline(alone, drafted, totals), *_unsynchronised(_added(totals))]


def _slow_baseline(
    alone: dict[str, Spent], drafted: Sequence[dict[str, Spent]], totals: Sequence[Spent]
) -> Iterator[Finding]:
    """The target alone is held against itself: reading the same prompt in the arms with a draft, its passes there in
    terms of the probe, and the program around them, which has less to do without a draft. `totals` are of the target
    alone and of the others in their order."""
    prefill = _surely(_ratio(alone, own, "prefill_s", None) for own in drafted)
    steps = _surely(_ratio(alone, own, "verify_s", "probed_s") for own in drafted)
    whole, *rest = totals
    needed_s = min(each.other_s / max(each.passes, 1) for each in rest)
    beyond_s = whole.other_s - needed_s * whole.passes
    outside = beyond_s / whole.decode_s if beyond_s > (1 - 1 / TOLERATED) * whole.decode_s else None
    if (prefill, steps, outside) != (None, None, None):
        hint = (
            "Look for what slows the target alone and not the drafts: threads, another library path, work in the loop."
        )
        yield warning("slow-baseline", hint, prefill=prefill, steps=steps, outside=outside)


def _unsynchronised(whole: Spent) -> Iterator[Finding]:
    if whole.probed_s and whole.decode_s:
        share, outside = whole.verify_s / whole.probed_s, whole.other_s / whole.decode_s
        if share <= IMPOSSIBLE and outside >= OUTSIDE:
            hint = "Report it, with the device and the version of torch."
            yield warning("unsynchronised-clock", hint, share=share, outside=outside)


def _ratio(alone: dict[str, Spent], own: dict[str, Spent], spent: str, due: str | None) -> Interval | None:
    """Seconds `spent` without a draft over those with one, each over what was `due` (None: the same in both), paired by
    prompt; None where the probe does not say what was due."""
    prompts = [prompt for prompt in alone if prompt in own]

    def column(side: dict[str, Spent], name: str | None) -> Floats:
        return np.array([1.0 if name is None else getattr(side[prompt], name) for prompt in prompts])

    paired = Paired(*(column(side, name) for side in (alone, own) for name in (spent, due)))
    return speedup_interval(paired, CONFIDENCE) if paired.decoded else None


def _surely(ratios: Iterable[Interval | None]) -> float | None:
    """The least of these ratios where each is above what is tolerated, its interval included; None otherwise. Nearly
    always the first is not, and the others are not computed."""
    known = []
    for ratio in filter(None, ratios):
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
