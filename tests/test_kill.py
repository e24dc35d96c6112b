"""Runs that are killed at any byte: nothing finished is lost, nothing is there twice, and the end is the same.

SPECBENCH_TEST_KILLS says how often the real run is killed (6 times in `make test-all`); `-s` shows the table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import full
from test_run import FakeObserver, config_for, sweep

from specbench.acceptance.positions import PositionWriter, read_positions
from specbench.records import Divergence
from specbench.run.session import run
from specbench.store import DIVERGENCES_FILE, TRIALS_FILE, RunWriter, read_run, trial_key

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def stored(lab, tmp_path_factory):
    return sweep(lab, tmp_path_factory.mktemp("runs"), gammas=(1,), limit=2, max_new_tokens=6)


def test_a_run_that_is_killed_again_and_again_ends_as_one_left_alone(lab, tmp_path):
    """Real processes, real SIGKILL, the real command line; drafts are accepted wrongly now and then, so that there are
    divergences to lose."""
    kills = os.environ.get("SPECBENCH_TEST_KILLS", "1")
    flags = lab.args("--gamma", "1,3", "--limit", "4", "--probe-batch-sizes", "1")
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", kills, "--seed", "1", "--", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout and "0 things wrong" in done.stdout
    assert "as left alone" in done.stdout and " 0 divergences" not in done.stdout


@pytest.mark.parametrize("name", [DIVERGENCES_FILE, *full(TRIALS_FILE)])
def test_a_line_torn_at_any_byte_is_dropped_and_measured_again(stored, tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a dying machine loses is no question here
    folder = tmp_path / "run"
    shutil.copytree(stored.folder, folder)
    changed = [t for t in stored.trials if t.arm.kind == "speculative" and not t.warmup]
    with RunWriter(folder, stored.run) as writer:
        for number, trial in enumerate(changed):
            writer.append(replace(trial, attempt=7, output_sha256="0" * 64))  # texts that left the target's own
            writer.append_divergence(trial_key(trial), Divergence(number, 0.5))
    whole = (folder / name).read_bytes()
    before = whole.rstrip(b"\n").rfind(b"\n") + 1
    expected = read_run(folder)
    assert [t.diverged.index for t in expected.trials if t.attempt == 7] == [0, 1]
    for end in range(before, len(whole)):
        (folder / name).write_bytes(whole[:end])
        found = read_run(folder)
        if name == TRIALS_FILE:
            assert found.trials == expected.trials[:-1]
            assert found.torn == (end > before)
        else:
            assert [t.diverged and t.diverged.index for t in found.trials if t.attempt == 7] == [0, None]
        with RunWriter(folder, stored.run) as writer:
            if name == TRIALS_FILE:
                writer.append(replace(changed[-1], attempt=7, output_sha256="0" * 64))
            else:
                writer.append_divergence(trial_key(changed[-1]), Divergence(1, 0.5))
        assert (folder / name).read_bytes() == whole


@pytest.mark.full
def test_positions_torn_at_any_byte_are_a_beginning_of_them(stored, tmp_path):
    whole = (stored.folder / "positions-0.arrow").read_bytes()
    texts = read_positions(stored.folder)
    assert len(texts) == 2
    lengths = set()
    for end in (*range(0, len(whole) // 2, 5), *range(len(whole) // 2, len(whole))):
        (tmp_path / "positions-0.arrow").write_bytes(whole[:end])
        found = read_positions(tmp_path)
        assert list(map(repr, found)) == list(map(repr, texts[: len(found)]))
        lengths.add(len(found))
    assert lengths == {0, 1, 2}
    # the next session writes beside what is torn, and the two together are whole
    (tmp_path / "positions-0.arrow").write_bytes(whole[: len(whole) // 2])
    with PositionWriter(tmp_path) as writer:
        for text in texts:
            writer.append(text)
    assert len(read_positions(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["positions-0.arrow", "positions-1.arrow"]


def test_positions_are_never_written_over_others(stored, tmp_path):
    (text, other) = read_positions(stored.folder)
    for number in (0, 3):
        shutil.copy(stored.folder / "positions-0.arrow", tmp_path / f"positions-{number}.arrow")
    (tmp_path / "positions-0.arrow").unlink()
    (tmp_path / "positions-of-mine.arrow").write_bytes(b"")
    with PositionWriter(tmp_path) as writer:
        writer.append(text)
    assert (tmp_path / "positions-4.arrow").is_file()
    assert {one.prompt_id for one in read_positions(tmp_path)} == {text.prompt_id, other.prompt_id}


@pytest.mark.full
def test_lost_positions_are_made_again_without_a_trial(lab, tmp_path):
    """A kill between a unit's last trial and its positions: divergences and positions are what is missing."""
    config = config_for(lab, tmp_path, limit=2, max_new_tokens=6)
    folder = run(config, "sweep", (1,), FakeObserver())
    before = read_run(folder)
    texts = read_positions(folder)
    (folder / "positions-0.arrow").unlink()
    with RunWriter(folder, before.run) as writer:
        writer.update(status="started")
    assert run(config, "sweep", (1,), FakeObserver()) == folder
    after = read_run(folder)
    assert [t for t in after.trials if not t.warmup] == [t for t in before.trials if not t.warmup]
    assert list(map(repr, read_positions(folder))) == list(map(repr, texts))
