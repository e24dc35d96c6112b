"""Which gammas a sweep still measures: after 10, 20, 40, .. prompts it looks at its own run folder, as a report would,
and stops what decision/ruling.py rules out. What it finds is in run.json before the next trial begins.
"""

from __future__ import annotations

from collections.abc import Sequence

from specbench.acceptance.positions import read_positions
from specbench.acceptance.replay import Text
from specbench.analysis.frame import by_arm, main_trials
from specbench.analysis.predict import Predictor
from specbench.analysis.stopped import kept_arms
from specbench.analysis.views import DraftView, a_a
from specbench.decision.interval import excess_variance
from specbench.decision.ruling import STAY, Standing, look_sizes, rule
from specbench import text
from specbench.records import Arm, Policy, RuledOut
from specbench.store import RunWriter, StoredRun, read_run


class EarlyStopping:
    """The looks of one run. `units` are its prompts, or batches; those of earlier sessions are read from run.json, and
    not taken again: a run that was cut anywhere comes to the same. Nothing is ruled out but by measurement and
    prediction together: `predicted` says that the engine's costs can be had."""

    def __init__(self, writer: RunWriter, arms: Sequence[Arm], units: int, *, predicted: bool) -> None:
        self._writer = writer
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
        found = look(read_run(self._writer.folder), read_positions(self._writer.folder), self._units)
        # Both at once: a kill before loses the look, which is then taken again on the same trials.
        self._writer.update(looks=(*run.looks, units), ruled_out=(*run.ruled_out, *found))
        return found


def look(stored: StoredRun, texts: Sequence[Text], planned: int) -> tuple[RuledOut, ...]:
    """What is ruled out by the prompts measured so far, of `planned`. Nothing hangs on the policy, which may change
    when all is measured: decoding alone is judged, within a draft, where both metrics have one order."""
    trials = main_trials(stored)
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
    """Of the prompts that are measured; a batch mixes them."""
    if stored.run.config.batch_size > 1:
        return {"all"}
    counts = stored.run.workload.categories
    return {name for name, count in counts.items() if count.used}


def ruled_out_line(one: RuledOut) -> str:
    """Said while the sweep runs."""
    ratio = text.estimate(one.ratio, one.ratio_low, one.ratio_high)
    return (
        f"{one.draft} gamma {one.gamma} is stopped after {one.prompts:,} of {one.planned:,}: {ratio} of "
        f"gamma {one.against}, predicted {text.speedup(one.predicted_ratio)}"
    )
