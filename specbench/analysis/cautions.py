"""What the reader of a run should know before trusting it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from specbench.analysis.contract import DraftResult
from specbench.analysis.frame import loads_of
from specbench.analysis.predict import EXPLAINED
from specbench.analysis.timing import timing_cautions
from specbench.analysis.views import DraftView
from specbench.decision.interval import MIN_PROMPTS, Paired, speedup_interval
from specbench.drafters import parse_draft
from specbench.records import Arm, Caution, Interval, Policy, Trial
from specbench.store import StoredRun

DOMINANT_SHARE = 0.25

# Rounds of equal texts may differ by so much where the draft's own arg-max is subject to rounding: 0.3 % was seen in
# bfloat16 at gamma 4.
ROUNDING_SHARE = 0.02

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
) -> list[Caution]:
    """Everything the numbers themselves give away. `trials` are the counted ones, at every load."""
    found = [
        _unfinished(stored, len(trials)),
        _torn(stored),
        _disturbed(trials),
        _few(drafts),
        _floor(drafts, floor, policy),
        _unjudged(stored, drafts, floor),
    ]
    found += [_broken(draft) for draft in drafts]
    first = loads_of(stored)[0]
    main = [trial for trial in trials if trial.arm.load == first]
    found += [_dominant(main), _replay(stored, gaps), _gamma(stored, main)]
    return [*(caution for caution in found if caution is not None), *timing_cautions(stored, main)]


def _unfinished(stored: StoredRun, done: int) -> Caution | None:
    end = stored.run.ended_early
    if end is not None:
        why = "the time budget was up" if end.why == "time" else f"{end.why} was sure by then"
        again = "Run the same command again: it continues where it stopped."
        return Caution(
            "time-budget",
            f"the run ended after {end.prompts:,} of {end.planned:,} prompts, since {why}",
            again if end.why == "time" else "Run without --time-budget for the others, and for narrower intervals.",
        )
    if stored.status == "finished":
        return None
    planned, out = stored.run.trials_planned, stored.run.spared
    without = f", {out} of which were ruled out" if out else ""
    return Caution(
        "unfinished-run",
        f"the run is {stored.status}: {done} trials of {planned} planned{without}",
        "Run the same command again: it continues where it stopped.",
    )


def _torn(stored: StoredRun) -> Caution | None:
    if not stored.torn:
        return None
    return Caution(
        "torn-line", "the last line of trials.jsonl was incomplete and was dropped", "Run the same command again."
    )


def _disturbed(trials: Sequence[Trial]) -> Caution | None:
    disturbed = [t for t in trials if t.disturbed]
    if not disturbed:
        return None
    worst = max(t.other_cores or 0.0 for t in disturbed)
    return Caution(
        "busy-machine",
        f"{len(disturbed)} of {len(trials)} trials shared the machine with other processes (up to {worst:.1f} cores "
        "busy), also when repeated",
        "Stop other work on this machine and run again with --fresh.",
    )


def _few(drafts: Sequence[DraftResult]) -> Caution | None:
    n = min((draft.gammas[0].prompts for draft in drafts), default=0)
    if n >= MIN_PROMPTS:
        return None
    return Caution("few-prompts", f"{n} prompts are too few for an interval", f"Measure {MIN_PROMPTS} or more.")


def _floor(drafts: Sequence[DraftResult], floor: Interval | None, policy: Policy) -> Caution | None:
    if floor is None or floor.low is None or floor.high is None:
        return None
    if not floor.low <= 1.0 <= floor.high:
        return Caution(
            "noise-floor",
            f"the target alone, measured twice, differs from itself by {abs(floor.value - 1):.1%} "
            f"(interval {floor.low:.3f} to {floor.high:.3f})",
            "Quiet the machine, or take more repeats; differences of that size mean nothing here.",
        )
    width = max(1 - floor.low, floor.high - 1)
    near = [draft.draft for draft in drafts if abs(draft.speedup - policy.min_speedup) < width]
    if not near:
        return None
    return Caution(
        "below-noise-floor",
        f"the distance of {', '.join(near)} from the minimum asked for is within the noise floor of {width:.1%}",
        "Quiet the machine, or take more repeats.",
    )


def _unjudged(stored: StoredRun, drafts: Sequence[DraftResult], floor: Interval | None) -> Caution | None:
    """Where the machine was too restless for a prediction to be held against the measurement."""
    if floor is None or floor.low is None or floor.high is None or not any(draft.predicted for draft in drafts):
        return None
    measured = max(1 - floor.low, floor.high - 1)
    steps = [p for p in stored.run.probe or () if p.model is None and p.context and p.phase == "read"]
    probed = median((p.high_s - p.low_s) / 2 / p.median_s for p in steps) if steps else 0.0
    if max(measured, probed) <= EXPLAINED:
        return None
    return Caution(
        "prediction-unjudged",
        f"the machine was too restless to judge a prediction: the noise floor is {measured:.1%}, and the models timed "
        f"alone are known to {probed:.1%}",
        "Read the measured speedups; judge predictions on a quiet machine.",
    )


def _broken(draft: DraftResult) -> Caution | None:
    last = draft.gammas[-1]
    if last.drafted and last.accepted == 0:
        return Caution(
            "nothing-accepted",
            f"none of the {last.drafted} tokens that {draft.draft} drafted was accepted: a broken set-up, "
            "not a poor draft",
            "Check the draft's tokenizer and chat template, and that no server runs with synthetic acceptance.",
        )
    rounds, first = last.rounds or 0, last.survival[0] if last.survival else None
    told = rounds >= 5 * ROUNDS_TO_TELL and parse_draft(draft.draft).model is not None
    if told and first is not None and first < CHANCE:
        return Caution(
            "draft-at-chance",
            f"of the first tokens that {draft.draft} drafted in {rounds} rounds {first:.1%} were accepted, no more "
            "than common tokens give by chance",
            "Check that the draft or head was made for this target; some engines read a head's layers one off.",
        )
    return None


def _replay(stored: StoredRun, gaps: Sequence[ReplayGap]) -> Caution | None:
    """Greedy texts that are equal must have equal rounds, up to the draft's own rounding below float32; sampled ones
    must agree within sampling error."""
    config = stored.run.config
    if not config.sampling.greedy:
        wrong = [gap for gap in gaps if gap.ratio.low is not None and gap.ratio.high is not None]
        wrong = [gap for gap in wrong if not (gap.ratio.low or 0) <= 1.0 <= (gap.ratio.high or 0)]
    elif config.dtype == "float32":
        wrong = [gap for gap in gaps if gap.unequal]
    else:
        wrong = [gap for gap in gaps if abs(gap.ratio.value - 1) > ROUNDING_SHARE]
    if not wrong:
        return None
    what = ", ".join(f"{abs(gap.ratio.value - 1):.1%} at gamma {gap.gamma} ({gap.unequal} prompts)" for gap in wrong)
    return Caution(
        "replay-disagrees",
        f"rounds of the loop and of the replay differ by more than chance and rounding allow: {what}",
        "Run once with --dtype float32 and temperature 0, where the two must agree exactly; if they do not, report it.",
    )


def _gamma(stored: StoredRun, trials: Sequence[Trial]) -> Caution | None:
    """A draft model proposes as many tokens as it is asked for, but where it ends the text. Look-up and what stops
    early by design are only held to the most."""
    if stored.run.on_server:
        return None
    wrong = []
    arms: defaultdict[Arm, list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.arm.kind == "speculative":
            arms[trial.arm].append(trial)
    for arm, own in sorted(arms.items(), key=lambda item: item[0].label):
        gamma, spec = arm.gamma or 0, parse_draft(arm.draft or "")
        widest = max((max(trial.drafted, default=0) for trial in own), default=0)
        steady = spec.kind in ("model", "skip", "mtp") and not spec.look_up and not spec.cutoff
        if widest > gamma:
            wrong.append(f"{arm.label}: rounds drafted up to {widest}")
        elif widest < gamma and steady and sum(_roomy(trial, gamma) for trial in own) >= ROUNDS_TO_TELL:
            wrong.append(f"{arm.label}: no round drafted more than {widest}")
    if not wrong:
        return None
    return Caution(
        "gamma-not-honoured",
        f"rounds did not draft as many tokens as they should ({'; '.join(wrong)})",
        "A fault of specbench: report it, and do not use these rows.",
    )


def _roomy(trial: Trial, gamma: int) -> int:
    """Rounds after which the text went on for as long as a full draft and its bonus; none known in a batch, whose
    rounds do not say which sequence they are of."""
    out, found = 1, 0
    for accepted in () if trial.members else trial.accepted:
        found += out + gamma + 1 <= trial.output_tokens
        out += accepted + 1
    return found


def _dominant(trials: Sequence[Trial]) -> Caution | None:
    spent: dict[str, float] = {}
    for trial in trials:
        if trial.arm.kind == "baseline":
            spent[trial.prompt_id] = spent.get(trial.prompt_id, 0.0) + trial.times.decode_s
    if len(spent) < MIN_PROMPTS:
        return None
    prompt, longest = max(spent.items(), key=lambda item: item[1])
    share = longest / sum(spent.values())
    if share < DOMINANT_SHARE:
        return None
    return Caution(
        "dominant-prompt",
        f"prompt {prompt} alone is {share:.0%} of the target's decoding time",
        "Take it out, or add prompts until no single one decides.",
    )


# Several gammas are compared at once; only a gap that sampling could hardly make is worth a warning.
GAP_CONFIDENCE = 0.999


def replay_gap(view: DraftView, gamma: int) -> ReplayGap | None:
    """Live against replayed rounds per token at one gamma, prompt by prompt; None where nothing can be compared."""
    found, rows = view.replayed(gamma), view.arms[gamma]
    if found is None:
        return None
    replayed = view.by_prompt(found.rounds)
    live = np.array([sum(len(trial.drafted) for trial in trials) for trials in rows.trials], dtype=float)
    tokens = view.by_prompt(np.array([text.tokens - 1.0 for text in view.texts]))
    same_text = np.array([value is True for value in rows.identical])
    unequal = int((live[same_text] != replayed[same_text]).sum())
    paired = Paired(replayed, tokens, live, rows.decode_tokens)
    if view.greedy:
        # A text that left the target's own at a near-tie is another text, with other rounds.
        paired = paired.take(same_text)
        if not paired.base_s.sum():
            return None
    return ReplayGap(view.spec, gamma, speedup_interval(paired, GAP_CONFIDENCE), unequal, int(same_text.sum()))
