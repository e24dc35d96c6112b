"""`specbench compare` as CI would call it, on runs whose difference is planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_server import FakeServer
from test_cli import call
from test_serving import served, speculating

STEP_S = 0.004
KEPT = Path(__file__).parent / "runs"


@pytest.fixture(scope="module")
def runs(lab, tmp_path_factory):
    """The same speculating server three times: as it is, as it is again, and half as fast."""
    folders = []
    for step_s in (STEP_S, STEP_S, 2 * STEP_S):
        with FakeServer(step_s=STEP_S) as alone, speculating(step_s=step_s) as drafting:
            folders.append(served(lab, tmp_path_factory.mktemp("runs"), alone, drafting, limit=12).folder)
    return folders


@pytest.mark.full
def test_a_planted_slowdown_is_found_and_fails_the_build(runs):
    result = call("compare", runs[0], runs[2], "--json", "--fail-if-slower", "10%")
    assert result.exit_code == 5, result.output
    found = json.loads(result.stdout)
    assert found["slower"]["low"] > 0.2
    assert "surely slower by more than 10.0%." in result.stderr
    assert 0.3 < found["slower"]["by"] < 0.6
    (row,) = found["drafts"][0]["gammas"]
    assert row["ratio_high"] < 0.8
    assert row["difference"] == "slower"


@pytest.mark.full
def test_the_same_again_passes_and_is_called_the_same(runs):
    result = call("compare", runs[0], runs[1], "--fail-if-slower", "0.1")
    assert result.exit_code == 0, result.output
    assert "12 prompts that both runs have" in result.stdout
    assert "sure" in result.stderr and "slower by more than 10.0%." in result.stderr


@pytest.mark.full
def test_a_limit_that_is_held_against_nothing_is_no_pass():
    """The first run chose a draft that the second has not measured: green would say what nobody looked at."""
    kept = [KEPT / name for name in ("drafters", "llamacpp")]
    result = call("compare", *kept, "--fail-if-slower", "10%")
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1 and "the first run's chosen draft and gamma were not" in result.stderr
    assert call("compare", *kept).exit_code == 0


@pytest.mark.full
def test_markdown_names_both_runs(runs):
    result = call("compare", runs[0], runs[2], "--markdown")
    assert result.exit_code == 0, result.output
    assert runs[0].name in result.stdout
    assert runs[2].name in result.stdout


@pytest.mark.parametrize("limit", ["much", "-3%", "120%", "3%%"])
def test_a_limit_that_is_no_share_is_refused(limit):
    result = call("compare", KEPT / "drafters", KEPT / "llamacpp", "--fail-if-slower", limit)
    assert result.exit_code == 2
    assert "Write 3% or 0.03" in result.stderr
