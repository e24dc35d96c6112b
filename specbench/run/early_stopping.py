"""Which gammas a sweep still measures, and whether it goes on: after 10, 20, 40, .. prompts it looks at its own run
folder, as a report would, and stops what decision/ruling.py rules out. What it finds is in run.json before the next
trial begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from specbench import text
from specbench.acceptance.positions import read_positions
from specbench.acceptance.replay import Text
from specbench.analysis.frame import DraftView, Steady, a_a, by_arm, kept_arms
from specbench.analysis.predict import Predictor
from specbench.analysis.summarise import summarise
from specbench.decision.interval import excess_variance
from specbench.decision.ruling import STAY, Standing, look_sizes, rule, settled
from specbench.records import Arm, Policy, RuledOut
from specbench.run_record import EndedEarly
from specbench.store import RunWriter, StoredRun, read_run


class Looked:
    """The run as it is stored, read once at each look."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self._last: tuple[int, StoredRun] | None = None

    def at(self, units: int) -> StoredRun:
        """After so many units, with what was noted in run.json since it was read."""
        if self._last is None or self._last[0] != units:
            self._last = units, read_run(self._writer.folder)
        return replace(self._last[1], run=self._writer.run)


class EarlyStopping:
    """The looks of one run. `units` are its prompts, or batches; those of earlier sessions are read from run.json, and
    not taken again: a run that was cut anywhere comes to the same. Nothing is ruled out but by measurement and
    prediction together: `predicted` says that the engine's costs can be had."""

    def __init__(self, writer: RunWriter, looked: Looked, arms: Sequence[Arm], units: int, *, predicted: bool) -> None:
        self._writer, self._looked = writer, looked
        self._arms = arms
        self._units = units
        config = writer.run.config
        off = not predicted or writer.run.command != "sweep" or config.all_gammas or len(config.gamma) <= STAY
        self._sizes = () if off else look_sizes(units)

    @property
    def arms(self) -> list[Arm]:
        """What is still measured, in the order of the plan."""
        stopped = {(one.draft, one.gamma) for one in self._writer.run.ruled_out}
        return [arm for arm in self._arms if (arm.draft, arm.gamma) not in stopped]

    def after(self, units: int) -> tuple[RuledOut, ...]:
        """To be called when so many units are measured in every arm; what was ruled out, if this was a look."""
        run = self._writer.run
        if units not in self._sizes or units in run.looks:
            return ()
        found = look(self._looked.at(units), read_positions(self._writer.folder), self._units)
        # Both at once: a kill before loses the look, which is then taken again on the same trials.
        self._writer.update(looks=(*run.looks, units), ruled_out=(*run.ruled_out, *found))
        return found


def look(stored: StoredRun, texts: Sequence[Text], planned: int) -> tuple[RuledOut, ...]:
    """What is ruled out by the prompts measured so far, of `planned`. Nothing hangs on the policy, which may change
    when all is measured: decoding alone is judged, within a draft, where both metrics have one order."""
    trials = stored.main
    arms = kept_arms(by_arm(trials), stored.run)
    config = stored.run.config
    again = a_a(arms, "decode")
    found: list[RuledOut] = []
    for spec in config.draft:
        view = DraftView(arms, spec, trials, texts, stored, Policy())
        drafting = [gamma for gamma in view.arms if view.counts(gamma).drafted]
        predictor = Predictor(view, Policy().confidence)
        predicted = {gamma: predictor.paired(gamma) for gamma in drafting}
        standing = Standing(
            draft=spec,
            measured={gamma: view.paired(gamma, "decode") for gamma in drafting},
            predicted={gamma: pair for gamma, pair in predicted.items() if pair is not None},
            category=view.base.category,
            categories=_categories(stored),
            excess=0.0 if again is None else excess_variance(again),
            planned=planned,
            gammas=len(config.gamma),
            drafts=len(config.draft),
        )
        found += rule(standing)
    return tuple(found)


def _categories(stored: StoredRun) -> set[str]:
    if stored.run.config.batch_size > 1:
        return {"all"}
    counts = stored.run.workload.categories
    return {name for name, count in counts.items() if count.used}


class TimeBudget:
    """When a run ends before its last prompt: at a verdict that is sure though it was looked for often, or when the
    time is up, counted from here. Without a budget in its configuration it never ends."""

    def __init__(
        self, writer: RunWriter, looked: Looked, units: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer, self._looked = writer, looked
        self._units = units
        self._clock = clock
        self._begun_s = clock()
        self._seen = 0
        if writer.run.ended_early is not None:
            writer.update(ended_early=None)  # of an earlier session

    def ends(self, units: int) -> EndedEarly | None:
        """To be called when so many units are measured in every arm; where the run ends here, why. It is then in
        run.json: finished at a verdict, interrupted where the time was up, so that the same command goes on."""
        budget_s = self._writer.run.config.time_budget_s
        if budget_s is None or units >= self._units:
            return None
        # Where servers get prompts block by block, the first end of a block from such a size on.
        due = any(self._seen < size <= units for size in look_sizes(self._units))
        self._seen = units
        call = self._verdict(units) if due else None
        if call is None and self._clock() - self._begun_s < budget_s:
            return None
        found = EndedEarly(call or "time", units, self._units)
        self._writer.update(ended_early=found, **({} if call else {"status": "interrupted"}))
        return found

    def _verdict(self, units: int) -> Literal["GO", "NO-GO"] | None:
        """A verdict that is sure, and that a report of the run as it is now gives too, gates and all."""
        stored = self._looked.at(units)
        policy = stored.run.config.policy
        trials = stored.main
        arms = kept_arms(by_arm(trials), stored.run)
        views = [DraftView(arms, spec, trials, (), stored, policy) for spec in stored.run.config.draft]
        pairs = [view.paired(gamma, policy.metric) for view in views if view.complete for gamma in view.arms]
        call = settled(pairs, policy, len(look_sizes(self._units)), Steady(arms, policy).excess) if pairs else None
        return call if call is not None and summarise(stored).verdict == call else None


def ruled_out_line(one: RuledOut) -> str:
    ratio = text.estimate(one.ratio, one.ratio_low, one.ratio_high)
    return (
        f"{one.draft} gamma {one.gamma} is stopped after {one.prompts:,} of {one.planned:,}: {ratio} of "
        f"gamma {one.against}, predicted {text.speedup(one.predicted_ratio)}"
    )


def ended_line(end: EndedEarly) -> str:
    why = "the time is up" if end.why == "time" else f"{end.why} is sure"
    return f"Stopped after {end.prompts:,} of {end.planned:,}: {why}"
