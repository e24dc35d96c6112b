"""What a run says of itself while it runs."""

from __future__ import annotations

import io
import re
from dataclasses import replace

from rich.console import Console
from test_metrics import served_trial

from specbench.backends.base import Answer, Item, Job, Unit
from specbench.records import Arm, Load, Prompt, Times
from specbench.run.progress import RunProgress, TimeLeft, forecast_s


def shown(arms: dict[Arm, float]) -> str:
    """The hint after one trial of 11 tokens in each arm, which took so many seconds to decode."""
    progress = RunProgress(quiet=True)
    for arm, decode_s in arms.items():
        times = Times(0.0, None, None, None, None, decode_s)
        progress.trial(replace(served_trial(11), arm=arm, times=times))
    return progress._so_far.line()


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


class FakeClock:
    """Stands still unless told."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


FAST, SLOW = Arm("speculative", "d", 1), Arm("speculative", "d", 8)


def unit(left, clock, spent, scoring_s=0.5, again=False):
    """One prompt through arms that take so many seconds, and its scoring."""
    for arm, seconds in spent.items():
        clock.now_s += seconds
        left.trial(arm, again=again)
    clock.now_s += scoring_s


def test_time_left_is_by_arm_and_with_scoring():
    clock = FakeClock()
    left = TimeLeft(clock)
    left.plan({FAST: 10, SLOW: 10}, 10)
    clock.now_s += 1
    left.trial(FAST, again=False)
    assert left.seconds() is None  # the other arm has not run yet
    clock.now_s += 4
    left.trial(SLOW, again=False)
    assert left.seconds() is None  # and nothing was scored
    clock.now_s += 0.5
    left.plan({FAST: 9, SLOW: 9}, 9)
    assert left.seconds() == 9 * 1 + 9 * 4 + 9 * 0.5
    clock.now_s += 4
    left.trial(SLOW, again=False)
    assert left.seconds() == 9 * 1 + 8 * 4 + 9 * 0.5


def test_a_load_that_has_not_come_is_taken_to_be_as_slow_as_the_one_before():
    clock = FakeClock()
    left = TimeLeft(clock)
    left.plan({FAST: 10, replace(FAST, load=Load(4)): 10}, 10)
    unit(left, clock, {FAST: 1})
    left.plan({FAST: 9, replace(FAST, load=Load(4)): 10}, 10)
    assert left.seconds() == 9 * 1 + 10 * 1 + 10 * 0.5
    left.plan({FAST: 9, replace(SLOW, load=Load(4)): 10}, 10)
    assert left.seconds() is None


def test_a_line_ends_where_nothing_is_known():
    progress = RunProgress(quiet=False, clock=(clock := FakeClock()))
    progress.console = Console(file=(said := io.StringIO()))
    progress.begin(20, 0)
    progress.left({FAST: 10, SLOW: 10}, 10)
    clock.now_s += 100
    progress.trial(replace(served_trial(11), arm=FAST))
    assert said.getvalue().splitlines()[-1] == "1/20"


def test_what_is_stopped_takes_no_time():
    clock = FakeClock()
    left = TimeLeft(clock)
    left.plan({FAST: 10, SLOW: 10}, 10)
    unit(left, clock, {FAST: 1, SLOW: 4})
    left.plan({FAST: 9}, 9)
    assert left.seconds() == 9 * 1 + 9 * 0.5


def test_an_arm_that_is_disturbed_is_expected_to_be_so_again():
    clock = FakeClock()
    left = TimeLeft(clock)
    left.plan({FAST: 10}, 10)
    unit(left, clock, {FAST: 1}, scoring_s=0)
    clock.now_s += 0  # the repeat comes before the scoring
    left.trial(FAST, again=True)
    clock.now_s += 0.5
    left.plan({FAST: 9}, 9)
    assert left.seconds() == 9 * 1 + 9 * 0.5
    clock.now_s += 1
    left.trial(FAST, again=False)
    clock.now_s += 2
    left.trial(FAST, again=True)
    assert left.seconds() == 8 * 2 + 9 * 0.5


def test_a_continued_run_says_nothing_of_arms_it_has_not_seen():
    clock = FakeClock()
    progress = RunProgress(quiet=True, clock=clock)
    progress.begin(20, 8)
    progress.left({FAST: 6, SLOW: 6}, 6)
    trial = replace(served_trial(11), times=Times(0.0, None, None, None, None, 1.0))
    clock.now_s += 1
    progress.trial(replace(trial, arm=FAST))
    assert progress._time_left() == ""
    clock.now_s += 59
    progress.trial(replace(trial, arm=SLOW))
    progress.left({FAST: 5, SLOW: 5}, 5)
    assert progress._time_left() == "5 min left"
    progress.left({FAST: 5}, 5)  # the slow one is stopped
    assert progress._time_left() == "5 s left"
    assert (progress._done, progress._total) == (10, 15)


def test_a_trial_that_an_earlier_session_tried_counts_once():
    progress = RunProgress(quiet=True, clock=FakeClock())
    progress.begin(4, 2)
    trial = replace(served_trial(11), arm=FAST, attempt=1, times=Times(0.0, None, None, None, None, 1.0))
    progress.trial(trial)
    progress.trial(replace(trial, attempt=2))
    assert progress._done == 3


def test_without_a_plan_all_trials_have_one_pace():
    clock = FakeClock()
    progress = RunProgress(quiet=True, clock=clock)
    progress.begin(10, 0)
    clock.now_s += 3
    progress.trial(replace(served_trial(11), times=Times(0.0, None, None, None, None, 1.0)))
    assert progress._time_left() == "27 s left"


def answered(seconds, tokens, prompts=1):
    unit = Unit("u", "", None, tuple(Item(Prompt(str(i), "", "p"), [1] * 20) for i in range(prompts)))
    times = Times(2.0, 1.0, None, None, None, 3.0 + seconds)
    return Answer(Job(unit, 0), [], "", 20 * prompts, tokens + prompts, "length", (), (), times)


def test_how_long_it_takes_is_known_when_every_arm_has_warmed_up():
    warmed = {FAST: answered(8.0, 8), SLOW: answered(16.0, 8)}
    units = [answered(0, 0).job.unit]
    # 3 s of prefills and 1 or 2 s a token
    assert forecast_s(warmed, {FAST: 10, SLOW: 5}, units, 33) == 10 * (3 + 32 * 1) + 5 * (3 + 32 * 2)
    assert forecast_s({FAST: warmed[FAST]}, {FAST: 10, SLOW: 5}, units, 33) is None
    assert forecast_s({FAST: answered(0.0, 0)}, {FAST: 10}, units, 33) is None
    four = answered(8.0, 8, prompts=4)
    assert forecast_s({FAST: four}, {FAST: 10}, [four.job.unit], 33) == 10 * (3 + 4 * 32 * 1)


def lines_of(progress):
    console = Console(width=80, file=io.StringIO())
    console.print(progress._view())
    return console.file.getvalue().splitlines()


def test_a_terminal_shows_the_arms_with_intervals_that_narrow():
    clock = FakeClock()
    progress = RunProgress(quiet=True, clock=clock)
    clock.now_s += 12
    assert lines_of(progress) == ["12 s so far"]
    widths = []
    for count in (12, 48):
        for number in range(count):
            for arm, seconds in ((ALONE, 2.0), (FAST, 1.0 + 0.1 * (number % 3))):
                times = Times(0.0, None, None, None, None, seconds)
                progress.trial(replace(served_trial(11), prompt_id=f"{count}/{number}", arm=arm, times=times))
        found = re.search(r"d gamma 1 +(\d+) +([\d.]+)x \[([\d.]+), ([\d.]+)\]", "\n".join(lines_of(progress)))
        assert found is not None
        widths.append(float(found[4]) - float(found[3]))
    assert int(found[1]) == 60 and 1.7 < float(found[2]) < 1.9
    assert widths[1] < widths[0]


def test_a_terminal_has_one_live_view_from_the_first_moment(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        "specbench.run.progress.Console", lambda **_: Console(file=screen, force_terminal=True, width=80)
    )
    with RunProgress(quiet=False) as progress:
        progress.say("Loading the target")
        progress.begin(4, 0)
        progress.trial(replace(served_trial(11), arm=ALONE))
        progress.trial(replace(served_trial(11), arm=FAST))
    assert "Loading the target" in screen.getvalue()
    assert "0 s so far" in screen.getvalue() and "d gamma 1" in screen.getvalue()
