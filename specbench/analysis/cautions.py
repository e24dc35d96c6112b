"""What the reader of a run should know before trusting it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import numpy as np

from specbench.analysis.contract import DraftResult
from specbench.analysis.frame import ArmRows, DraftView, arm_of
from specbench.analysis.predict import EXPLAINED
from specbench.cost.model import RoundCosts, at_end, round_costs
from specbench.decision.interval import MIN_PROMPTS, Floats, Paired, speedup_interval
from specbench.drafters import parse_draft
from specbench.records import Arm, Finding, Interval, Trial
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


def run_cautions(
    stored: StoredRun,
    arms: Mapping[Arm, ArmRows],
    views: Sequence[DraftView],
    drafts: Sequence[DraftResult],
    floor: Interval | None,
) -> list[Finding]:
    """Everything the numbers themselves give away. `arms` are all at the first load, `views` and `drafts` those that
    could be judged."""
    return [
        *_unfinished(stored),
        *_left_out(stored, arms, drafts),
        *_of_trials(stored.counted),
        *_floor(stored, drafts, floor),
        *(caution for draft in drafts for caution in _broken(draft)),
        *_dominant(arm_of(arms, "baseline")),
        *_replay(stored, views),
        *_gamma(stored, arms),
        *timing_cautions(stored, arms),
    ]


def warning(code: str, hint: str, **values: object) -> Finding:
    return Finding(code, "warning", values, hint)


def note(code: str, hint: str = "", **values: object) -> Finding:
    return Finding(code, "note", values, hint)


def _unfinished(stored: StoredRun) -> Iterator[Finding]:
    again = "Run the same command again: it continues where it stopped."
    if (end := stored.run.ended_early) is not None:
        hint = again if end.why == "time" else "Run without --time-budget for the others, and for narrower intervals."
        yield warning("time-budget", hint, why=end.why, prompts=end.prompts, planned=end.planned)
    elif stored.status != "finished":
        run = stored.run
        numbers = {"done": len(stored.counted), "planned": run.trials_planned, "spared": run.spared}
        yield warning("unfinished-run", again, status=stored.status, **numbers)
    if stored.torn:
        yield warning("torn-line", "Run the same command again.")


def _left_out(stored: StoredRun, arms: Mapping[Arm, ArmRows], drafts: Sequence[DraftResult]) -> Iterator[Finding]:
    """Drafts without a verdict, and parts of the prompts without a speedup."""
    if lacking := [spec for spec in stored.run.config.draft if spec not in {draft.draft for draft in drafts}]:
        hint = "Continue the run, or measure more prompts of every category."
        yield warning("draft-left-out", hint, drafts=lacking)
    judged = set.intersection(*({each.category for each in draft.categories} for draft in drafts))
    silent = (set(rows.category) - set(rows.category[rows.decode_tokens > 0]) for rows in arms.values())
    mute, mix = set().union(*silent) - judged, stored.run.config.policy.mix
    categories = sorted(mute & set(mix) if mix else mute)
    lengths = list(dict.fromkeys((r.low, r.high) for d in drafts for r in d.lengths if r.prompts and r.speedup is None))
    if categories or lengths:
        yield warning("no-decode", "Use prompts that get longer answers.", categories=categories, lengths=lengths)


def _of_trials(trials: Sequence[Trial]) -> Iterator[Finding]:
    if disturbed := [t for t in trials if t.disturbed]:
        hint = "Stop other work on this machine and run again with --fresh."
        cores = max(t.other_cores or 0.0 for t in disturbed)
        yield warning("busy-machine", hint, disturbed=len(disturbed), trials=len(trials), cores=cores)


def _floor(stored: StoredRun, drafts: Sequence[DraftResult], floor: Interval | None) -> Iterator[Finding]:
    """What the machine leaves open: too few prompts, a target that differs from itself, and predictions that cannot be
    held against the measurement."""
    if (n := min((draft.gammas[0].prompts for draft in drafts), default=0)) < MIN_PROMPTS:
        batch = stored.run.config.batch_size
        yield warning("few-prompts", f"Measure {MIN_PROMPTS} or more.", prompts=n, batch=batch)
    if floor is None or floor.low is None or floor.high is None:
        return
    width, minimum = max(1 - floor.low, floor.high - 1), stored.run.config.policy.min_speedup
    near = [draft.draft for draft in drafts if abs(draft.speedup - minimum) < width]
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


def _replay(stored: StoredRun, views: Sequence[DraftView]) -> Iterator[Finding]:
    """Greedy texts that are equal must have equal rounds, up to the draft's own rounding below float32; sampled ones
    must agree within sampling error."""

    def disagrees(ratio: Interval, unequal: int) -> bool:
        if not stored.run.config.sampling.greedy:
            return ratio.low is not None and ratio.high is not None and not ratio.low <= 1.0 <= ratio.high
        return unequal > 0 if stored.run.precision == "float32" else abs(ratio.value - 1) > ROUNDING_SHARE

    # What a server never drafted is said by itself.
    rows = ((view, gamma) for view in views for gamma in view.arms if view.counts(gamma).drafted != 0)
    gaps = ((view.spec, gamma, *gap) for view, gamma in rows if (gap := _replay_gap(view, gamma)) is not None)
    wrong = [
        {"draft": draft, "gamma": gamma, "off": abs(ratio.value - 1), "prompts": unequal}
        for draft, gamma, ratio, unequal in gaps
        if disagrees(ratio, unequal)
    ]
    hint = (
        "Run once with --dtype float32 and temperature 0, where the two must agree exactly; if they do not, report it."
    )
    if wrong:
        yield warning("replay-disagrees", hint, gaps=wrong)


def _replay_gap(view: DraftView, gamma: int) -> tuple[Interval, int] | None:
    """Replayed over live rounds per token at one gamma (1.0 if they agree), under greedy over the prompts with equal
    text, and how many of these had other rounds. None where no rounds are known, or nothing can be compared."""
    found, rows = view.replayed(gamma), view.arms[gamma]
    if found is None:
        return None
    replayed = view.by_prompt(found.rounds)
    live = view.rounds(gamma)
    tokens = view.by_prompt(np.array([text.tokens - 1.0 for text in view.texts]))
    known = ~np.isnan(live)
    same_text = np.array([value is True for value in rows.identical]) & known
    # A greedy text that left the target's own at a near-tie is another text, with other rounds.
    paired = Paired(replayed, tokens, live, rows.decode_tokens).take(same_text if view.greedy else known)
    if not paired.decoded:
        return None
    return speedup_interval(paired, GAP_CONFIDENCE), int((live[same_text] != replayed[same_text]).sum())


def _gamma(stored: StoredRun, arms: Mapping[Arm, ArmRows]) -> Iterator[Finding]:
    """A draft model proposes as many tokens as it is asked for, but where it ends the text. Look-up and what stops
    early by design are only held to the most."""
    wrong = []
    drafting = {} if stored.run.on_server else {arm: rows for arm, rows in arms.items() if arm.kind == "speculative"}
    for arm, rows in sorted(drafting.items(), key=lambda item: item[0].label):
        own = [trial for trials in rows.trials for trial in trials]
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


def _dominant(base: ArmRows) -> Iterator[Finding]:
    if len(base) < MIN_PROMPTS:
        return
    longest = int(base.decode_s.argmax())
    if (share := float(base.decode_s[longest] / base.decode_s.sum())) >= DOMINANT_SHARE:
        hint = "Take it out, or add prompts until no single one decides."
        yield warning("dominant-prompt", hint, prompt=base.prompt_id[longest], share=share)


# How much slower the target may be without a draft than everything else says. Two kept runs are between 0.91 and 1.01.
TOLERATED = 1.15

# A pass of the target in less than half the time that it takes alone, and more than half of all time outside it.
IMPOSSIBLE, OUTSIDE = 0.5, 0.5

CONFIDENCE = 0.99

# Costs are looked up at every so many tokens of context.
STRIDE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Spent:
    """One arm's `rows`, and beside them what reading the prompts took, the seconds that the target's passes take by the
    probe (0: not known), and how many passes there were."""

    rows: ArmRows
    prefill_s: Floats
    probed_s: Floats
    passes: Floats


def timing_cautions(stored: StoredRun, arms: Mapping[Arm, ArmRows]) -> list[Finding]:
    """`slow-baseline` and `unsynchronised-clock`. `arms` are the counted ones, of one load. Nothing is said of a run on
    a server, which does not tell where its time went; of batches only whether reading the prompts took as long."""
    if any(np.isnan(rows.verify_s).any() for rows in arms.values()):
        return []
    points = [point for point in stored.run.probe or () if point.model is None]
    # The tail of a batch runs at smaller batches, which the trial does not tell.
    points = points if stored.run.config.batch_size == 1 else []
    # Both ends of the probe's intervals are taken against us: a single step for as dear, wider passes for as cheap as
    # they may be.
    dear, cheap = at_end(points, "high", lambda _: True), at_end(points, "low", lambda _: True)
    steps = cache(lambda context: round_costs(dear, None, context, 0.0))
    passes = cache(lambda context: round_costs(cheap, None, context, 0.0))
    alone = next((_spent(rows, steps) for arm, rows in arms.items() if arm.kind == "baseline"), None)
    drafted = [_spent(rows, passes) for arm, rows in arms.items() if arm.kind == "speculative"]
    return [*_slow_baseline(alone, drafted), *_unsynchronised([alone, *drafted])] if alone and drafted else []


def _spent(rows: ArmRows, costs: Callable[[int], RoundCosts | None]) -> Spent:
    """`costs` by the tokens before a pass."""
    trials = list(rows.trials)
    prefill_s = np.array([sum(trial.times.prefill_s for trial in each) for each in trials])
    probed_s = np.array([sum(_probed_s(trial, costs) for trial in each) for each in trials])
    passes = np.array([sum(_passes(trial) for trial in each) for each in trials])
    return Spent(rows, prefill_s, probed_s, passes)


def _passes(trial: Trial) -> int:
    """Of the target: one for each round, without a draft one for each token."""
    return len(trial.drafted) if trial.arm.kind == "speculative" else trial.decode_tokens


def _probed_s(trial: Trial, costs: Callable[[int], RoundCosts | None]) -> float:
    found = costs((trial.prompt_tokens + trial.output_tokens // 2) // STRIDE * STRIDE)
    if found is None or max(trial.drafted, default=0) >= len(found.verify_s):
        return 0.0
    if trial.arm.kind != "speculative":
        return trial.decode_tokens * found.verify_s[0]
    rejected = [accepted for drafted, accepted in zip(trial.drafted, trial.accepted, strict=True) if accepted < drafted]
    again_s = sum(found.reread_s[accepted] for accepted in rejected) if found.reread_s else 0.0
    return sum(found.verify_s[drafted] for drafted in trial.drafted) + again_s


def _slow_baseline(alone: Spent, drafted: Sequence[Spent]) -> Iterator[Finding]:
    """The target alone is held against itself: reading the same prompt in the arms with a draft, its passes there in
    terms of the probe, and the program around them, which has less to do without a draft."""
    prefill = _surely(_ratio(alone, own, lambda one: (one.prefill_s, np.ones(len(one.rows)))) for own in drafted)
    steps = _surely(_ratio(alone, own, lambda one: (one.rows.verify_s, one.probed_s)) for own in drafted)
    needed_s = min(float(each.rows.other_s.sum() / max(each.passes.sum(), 1)) for each in drafted)
    decode_s = float(alone.rows.decode_s.sum())
    beyond_s = float(alone.rows.other_s.sum() - needed_s * alone.passes.sum())
    outside = beyond_s / decode_s if beyond_s > (1 - 1 / TOLERATED) * decode_s else None
    if (prefill, steps, outside) != (None, None, None):
        hint = (
            "Look for what slows the target alone and not the drafts: threads, another library path, work in the loop."
        )
        yield warning("slow-baseline", hint, prefill=prefill, steps=steps, outside=outside)


def _unsynchronised(every: Sequence[Spent]) -> Iterator[Finding]:
    verify_s, other_s, decode_s = (
        sum(float(getattr(one.rows, name).sum()) for one in every) for name in ("verify_s", "other_s", "decode_s")
    )
    probed_s = sum(float(one.probed_s.sum()) for one in every)
    if probed_s and decode_s:
        share, outside = verify_s / probed_s, other_s / decode_s
        if share <= IMPOSSIBLE and outside >= OUTSIDE:
            hint = "Report it, with the device and the version of torch."
            yield warning("unsynchronised-clock", hint, share=share, outside=outside)


def _ratio(alone: Spent, own: Spent, of: Callable[[Spent], tuple[Floats, Floats]]) -> Interval | None:
    """Seconds without a draft over those with one, each over what was due, prompt by prompt (`of`: both of an arm);
    None where the probe does not say what was due."""
    places = {prompt: row for row, prompt in enumerate(own.rows.prompt_id)}
    shared = [(row, places[prompt]) for row, prompt in enumerate(alone.rows.prompt_id) if prompt in places]
    rows = np.array(shared, dtype=np.int64).reshape(-1, 2).T
    paired = Paired(*(column[chosen] for side, chosen in zip((alone, own), rows, strict=True) for column in of(side)))
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
