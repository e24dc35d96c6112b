"""By prompt length: what is planted in short and long prompts is told apart, and no word is said of others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_served import FakeServer, fake_served

from specbench.analysis.summarise import summarise
from specbench.api import load_run
from specbench.config import load_config
from specbench.errors import ConfigError
from specbench.records import Policy, Trial
from specbench.store import StoredRun

GAMMA = 4


def planted(folder, **policy) -> StoredRun:
    """Prompts p0.. of 100, 200, .. tokens; with the draft those from 1,300 tokens on take three times as long."""
    stored = fake_served(folder, FakeServer(alpha=0.8), gammas=(2, GAMMA), policy=Policy(**policy))

    def changed(trial: Trial) -> Trial:
        number = int(trial.prompt_id[1:])
        times = trial.times
        if trial.arm.kind == "speculative" and number >= 12:
            times = replace(times, total_s=times.prefill_s + 3 * times.decode_s)
        return replace(trial, prompt_tokens=100 * (number + 1), times=times)

    return replace(stored, trials=[changed(trial) for trial in stored.trials])


def test_short_and_long_prompts_have_verdicts_of_their_own(tmp_path):
    summary = summarise(planted(tmp_path / "run", by_length=(1300, 16384)))
    short, long, none = summary.drafts[0].lengths
    assert [(row.low, row.high, row.prompts) for row in (short, long, none)] == [
        (0, 1300, 12), (1300, 16384, 12), (16384, None, 0),
    ]  # fmt: skip
    assert (short.shortest, short.longest, long.shortest, long.longest) == (100, 1200, 1300, 2400)
    assert (short.verdict, long.verdict, none.verdict) == ("GO", "NO-GO", None)
    assert short.speedup == pytest.approx(3 * long.speedup, rel=0.2)
    # The costs differ, not acceptance: a round takes three times as many steps.
    assert long.round_steps == pytest.approx(3 * short.round_steps, rel=0.2)
    assert none.speedup is None and none.tokens_per_round is None


def test_quantiles_are_thirds_and_nothing_is_asked_for_by_default(tmp_path):
    thirds = summarise(planted(tmp_path / "run", by_length=(0,))).drafts[0].lengths
    assert [row.prompts for row in thirds] == [8, 8, 8]
    assert summarise(planted(tmp_path / "plain")).drafts[0].lengths == ()
    same = fake_served(tmp_path / "same", FakeServer(), policy=Policy(by_length=(0,)))
    assert [row.prompts for row in summarise(same).drafts[0].lengths] == [24]


def test_the_brief_says_what_it_holds_for_and_what_was_not_measured(tmp_path):
    stored = fake_served(tmp_path / "run", FakeServer(alpha=0.8))
    page = load_run(stored.folder, by_length="40,1k").brief()
    assert "prompts: 24 of 24 in `w.jsonl`" in page and ", of 50 tokens" in page
    assert "## By prompt length" in page
    assert "| 40 to 1,023 (measured: 50 to 50) | GO |" in page
    assert "| 1,024 and more | not measured |" in page and "| below 40 | not measured |" in page
    assert "## By prompt length" not in load_run(stored.folder).brief()


@pytest.mark.parametrize(
    ("given", "edges"),
    [("1k,4k,16k", (1024, 4096, 16384)), ("300,100", (100, 300)), ("quantiles", (0,)), ([512], (512,))],
)
def test_lengths_as_people_write_them(given, edges):
    policy = load_config(None, {"by_length": given}).policy
    assert policy.by_length == edges


@pytest.mark.parametrize("given", ["1m", "-4", "1k5", "0", [True], "x"])
def test_other_lengths_are_refused(given):
    with pytest.raises(ConfigError, match="write 1k,4k,16k or quantiles"):
        load_config(None, {"by_length": given})
