"""Which trials count, and what an arm's rows are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specbench.analysis.frame import by_arm, shared_prompts
from specbench.records import Arm, Times, Trial
from specbench.store import StoredRun

FIRST = Trial(
    "p", "0", None, Arm("baseline"), 0, 9, 5, "0", "length", (), (), Times(0.5, 0.0, 0.0, 1.0, 0.25, 1.75)
)  # fmt: skip


@pytest.mark.parametrize(
    ("disturbed", "kept"),
    [((True, True), 1), ((True, False), 1), ((False, True), 0), ((False, False), 1), ((True, False, True), 1)],
)
def test_of_several_attempts_the_last_undisturbed_counts_or_the_last(disturbed, kept):
    attempts = [replace(FIRST, attempt=number, disturbed=was) for number, was in enumerate(disturbed)]
    warm = replace(FIRST, warmup=True)
    assert StoredRun(Path(), None, (warm, *attempts), torn=False).counted == (attempts[kept],)


def test_repeats_are_added_and_what_one_was_not_told_is_missing():
    untold = replace(FIRST, repeat=1, times=Times(0.5, None, None, None, None, 2.0))
    rows = by_arm([FIRST, untold])[FIRST.arm]
    assert (rows.total_s.tolist(), rows.output_tokens.tolist(), rows.decode_tokens.tolist()) == ([3.75], [10.0], [8.0])
    assert rows.decode_s.tolist() == [1.25 + 1.5]
    assert np.isnan([rows.draft_s[0], rows.verify_s[0], rows.other_s[0]]).all()
    assert rows.trials[0] == [FIRST, untold]


def test_rows_come_in_the_order_asked_for():
    trials = [replace(FIRST, prompt_id=name, output_tokens=n) for n, name in enumerate("cab", 5)]
    again = [replace(trial, arm=Arm("baseline-again")) for trial in trials[:2]]
    arms = by_arm([*trials, *again])
    base = arms[Arm("baseline")]
    assert base.of(["b", "c"]).output_tokens.tolist() == [7.0, 5.0]
    assert base.of(["b", "c"]).prompt_id.tolist() == ["b", "c"]
    assert shared_prompts(arms.values()) == ["a", "c"]
    with pytest.raises(KeyError):
        base.of(["d"])
