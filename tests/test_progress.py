"""What a run says of itself while it runs."""

from __future__ import annotations

from dataclasses import replace

from test_metrics import served_trial

from specbench.progress import RunProgress
from specbench.records import Arm, Load, Times


def shown(arms: dict[Arm, float]) -> str:
    """The hint after one trial of 11 tokens in each arm, which took so many seconds to decode."""
    progress = RunProgress(quiet=True)
    for arm, decode_s in arms.items():
        times = Times(0.0, None, None, None, None, decode_s)
        progress.trial(replace(served_trial(11), arm=arm, times=times))
    return progress._speedups()


ALONE = Arm("baseline")


def test_one_draft_is_named_by_its_gamma():
    found = shown({ALONE: 2.0, Arm("speculative", "d", 4): 4.0, Arm("speculative", "d", 1): 1.0})
    assert found == ", so far 2.00x at 1, 0.50x at 4"


def test_several_drafts_are_named():
    found = shown({ALONE: 2.0, Arm("speculative", "d", 1): 1.0, Arm("speculative", "e", 1): 4.0})
    assert found == ", so far 2.00x at d gamma 1, 0.50x at e gamma 1"


def test_every_load_has_its_own_target_alone():
    busy = Load(4)
    found = shown(
        {
            ALONE: 2.0,
            Arm("baseline", load=busy): 8.0,
            Arm("speculative", "d", 1): 1.0,
            Arm("speculative", "d", 1, busy): 16.0,
        }
    )
    assert found == ", so far 2.00x at d gamma 1, 0.50x at d gamma 1, 4 at a time"


def test_without_the_target_alone_nothing_is_said():
    assert shown({Arm("speculative", "d", 1): 1.0}) == ""
