"""Going on with a run: which one, after what failure, beside which other process, and in which other setting."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from conftest import full
from test_cli import call
from test_run import FakeObserver, config_for, sweep

from specbench.analysis.summarise import summarise
from specbench.errors import StoreError
from specbench.run import record
from specbench.run.record import stored_config
from specbench.run.resume import differences, same_setting, unfinished
from specbench.store import RunWriter, find_runs, folders, in_use, new_folder, read_run, trial_key

ROOT = Path(__file__).parent.parent
SMALL = {"limit": 2, "gammas": (1,), "max_new_tokens": 4}
TRIALS = 6


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    """Timing the models alone takes most of so small a run, and is tested elsewhere."""
    from specbench.backends.local.local import LocalEngine
    from specbench.cost.plan import Costs

    monkeypatch.setattr(LocalEngine, "probe", lambda *_: Costs(()))


@cache
def begun(lab):
    """A run that was interrupted after two trials."""
    out = lab.workload.parent / "begun"
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, out, observer=FakeObserver(interrupt_after=2), **SMALL)
    return find_runs(out)[0]


def interrupted(lab, out):
    """Its folder, as if it had been begun in `out`."""
    return shutil.copytree(begun(lab), out / begun(lab).name)


def edited(folder, change):
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


def measured(stored):
    return Counter(trial_key(t) for t in stored.trials if not t.warmup)


# Another configuration


def test_resume_with_another_configuration_shows_how_it_differs(lab, tmp_path):
    folder = interrupted(lab, tmp_path)
    with pytest.raises(StoreError) as refused:
        sweep(lab, tmp_path, mode="resume", **SMALL | {"max_new_tokens": 7, "gammas": (1, 2), "seed": 3})
    says = refused.value.line()
    assert f"{folder} has max_new_tokens: 4 -> 7, seed: 0 -> 3, gamma: 1 -> 1,2 ({tmp_path})" in says
    assert find_runs(tmp_path) == [folder]


@pytest.mark.full
def test_a_new_run_says_which_unfinished_one_it_leaves_and_why(lab, tmp_path):
    folder = interrupted(lab, tmp_path)
    observer = FakeObserver()
    stored = sweep(lab, tmp_path, observer=observer, **SMALL | {"max_new_tokens": 5})
    assert stored.folder != folder
    (said,) = [line for line in observer.lines if "unfinished" in line]
    assert said == (f"Starting anew. {folder} is unfinished too, with another configuration (max_new_tokens: 4 -> 5)")
    # the one left behind is still continued, and nothing is said where nothing else is unfinished
    observer = FakeObserver()
    assert sweep(lab, tmp_path, observer=observer, **SMALL).folder == folder
    assert f"Continuing {folder}" in observer.lines
    observer = FakeObserver()
    sweep(lab, tmp_path, observer=observer, mode="fresh", **SMALL)
    assert not [line for line in observer.lines if "unfinished" in line]


def test_a_system_prompt_is_not_shown_where_it_differs(lab, tmp_path):
    config = config_for(lab, tmp_path, system_prompt="be a pirate-canary")
    for kept in (False, True):
        was = json.loads(json.dumps(stored_config(replace(config, keep_text=kept)).as_dict()))
        now = replace(config, keep_text=True)
        assert differences(was | {"command": "sweep"}, now, "sweep") == []
        now = replace(now, system_prompt="be another-canary")
        assert differences(was | {"command": "sweep"}, now, "sweep") == ["system_prompt: another text"]


def test_a_run_that_cannot_be_read_is_not_left_silently(lab, tmp_path):
    folder = interrupted(lab, tmp_path)
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join([lines[0], "{broken\n", *lines[1:]]))
    with pytest.raises(StoreError, match=r"trials\.jsonl, line 2"):
        sweep(lab, tmp_path, **SMALL)


# Other processes


def test_the_second_process_is_refused_and_a_killed_one_does_not_block(lab, tmp_path):
    folder = interrupted(lab, tmp_path)
    holds = (
        "import sys, time; from pathlib import Path; from specbench.store import RunWriter, read_record\n"
        "folder = Path(sys.argv[1]); run = read_record(folder)\n"
        "writer = RunWriter(folder, run); writer.update(status='started'); print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", holds, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert in_use(folder)
        flags = lab.args("--out", tmp_path, "--limit", "2", "--gamma", "1", "--max-new-tokens", "4")
        for more in ([], ["--fresh"]):
            refused = call("sweep", *flags, "--quiet", *more)
            assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
            assert f"Another specbench is writing to this run folder ({folder})" in refused.stderr
        assert find_runs(tmp_path) == [folder]
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # nothing was begun
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert (folder / ".lock").exists() and not in_use(folder)
    stored = sweep(lab, tmp_path, **SMALL)
    assert stored.folder == folder and stored.status == "finished"
    assert set(measured(stored).values()) == {1} and len(measured(stored)) == TRIALS
    assert not (folder / ".lock").exists()


TWICE = """
import multiprocessing, sys
from importlib import import_module
from benchmarks.kills import LIBRARIES
for name in LIBRARIES:
    import_module(name)
from specbench.run import record

def start(barrier):
    begin = record._begin
    def together(writer):  # when both have loaded their models and have made their folders
        barrier.wait(60)
        begin(writer)
    record._begin = together
    sys.argv[0] = "specbench"
    import_module("specbench.cli").main()

context = multiprocessing.get_context("fork")
barrier = context.Barrier(2)
both = [context.Process(target=start, args=(barrier,)) for _ in range(2)]
for one in both:
    one.start()
for one in both:
    one.join()
print(sorted(one.exitcode for one in both))
"""


@pytest.mark.full
def test_of_two_that_start_at_once_one_is_refused(lab, tmp_path):
    flags = lab.args("--out", str(tmp_path), "--limit", "4", "--gamma", "1,2", "--probe-batch-sizes", "1", "--quiet")
    command = [sys.executable, "-c", TWICE, "sweep", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[0, 2]", done.stdout + done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("specbench:")]
    (folder,) = find_runs(tmp_path)
    assert f"Another specbench is writing to this run folder ({folder})" in said
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert len(measured(read_run(folder))) == 4 * 4 and set(measured(read_run(folder)).values()) == {1}


def test_what_another_process_wrote_meanwhile_is_not_overwritten(lab, tmp_path):
    folder = interrupted(lab, tmp_path)
    read = read_run(folder)
    with RunWriter(folder, read.run) as writer:
        writer.update(status="finished")
    with pytest.raises(StoreError, match="went on with this run meanwhile; it is finished now"):
        RunWriter(folder, read.run)
    assert not in_use(folder)
    assert read_run(folder).status == "finished"


# Failures of the disk


def failing(monkeypatch, name, code, nth, holding=b""):
    """The nth write to `name`, of those that hold that, gets through by half and then fails, as do all after it."""
    write, left = os.write, iter(range(nth - 1, 0, -1))
    full = []

    def half(descriptor, data):
        here = Path(f"/proc/self/fd/{descriptor}").readlink().name == name
        if here and not full and holding in bytes(data) and next(left, None) is None:
            full.append(True)
        if here and full:
            if len(data) > 1:
                return write(descriptor, data[: len(data) // 2])
            raise OSError(code, os.strerror(code))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", half)


@pytest.mark.parametrize(
    ("name", "holding", "nth", "kept", "status"),
    [
        ("trials.jsonl", b"", 1, 0, "failed"),
        ("trials.jsonl", b"", 7, 3, "failed"),
        ("run.json.tmp", b'"probe": []', 1, 0, "started"),
        ("run.json.tmp", b'"status": "finished"', 1, TRIALS, "started"),
    ],
)
@pytest.mark.parametrize("code", [errno.ENOSPC, *full(errno.EIO)])
def test_a_full_or_broken_disk_loses_nothing_that_was_finished(
    lab, tmp_path, monkeypatch, name, holding, nth, kept, status, code
):
    with monkeypatch.context() as patch:
        failing(patch, name, code, nth, holding)
        with pytest.raises(StoreError) as failed:
            sweep(lab, tmp_path, **SMALL)
    says = failed.value.line()
    assert says.startswith(f"Cannot write to the run folder: {os.strerror(code)} (")
    assert name.removesuffix(".tmp") in says and "continues where it stopped" in says
    assert ("Free some space" in says) == (code == errno.ENOSPC)
    (folder,) = find_runs(tmp_path)
    before = read_run(folder)
    assert (before.status, before.torn, sum(measured(before).values())) == (status, False, kept)
    assert not (folder / "run.json.tmp").exists()
    after = sweep(lab, tmp_path, **SMALL)
    assert (after.folder, after.status) == (folder, "finished")
    assert set(measured(after).values()) == {1} and len(measured(after)) == TRIALS
    assert [t for t in after.trials if not t.warmup][:kept] == [t for t in before.trials if not t.warmup]
    assert after.run.failure is None


def test_a_disk_that_fills_up_with_positions(lab, tmp_path):
    class Filler(FakeObserver):
        def trial(self, trial):
            super().trial(trial)
            if len(self.trials) == 1:  # before the first positions
                (folder,) = find_runs(tmp_path)
                (folder / "positions-0.arrow").symlink_to("/dev/full")

    with pytest.raises(StoreError, match="No space left on device") as failed:
        sweep(lab, tmp_path, observer=Filler(), **SMALL)
    assert "positions-0.arrow" in failed.value.line()
    (folder,) = find_runs(tmp_path)
    assert sum(measured(read_run(folder)).values()) == 3
    (folder / "positions-0.arrow").unlink()
    after = sweep(lab, tmp_path, **SMALL)
    assert set(measured(after).values()) == {1} and len(measured(after)) == TRIALS
    assert all(row.replay_rounds is not None for row in summarise(after).drafts[0].gammas)


def test_a_folder_that_cannot_be_begun_is_not_left_behind(lab, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, "run.json.tmp", errno.ENOSPC, 1)
        with pytest.raises(StoreError, match="No space left"):
            sweep(lab, tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_read_only_folder_is_one_line(lab, tmp_path, monkeypatch):
    folder = interrupted(lab, tmp_path)
    opened = os.open

    def read_only(path, flags, *more, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(StoreError, match=r"Read-only file system.*Make the folder writable"):
            sweep(lab, tmp_path, **SMALL)
    assert sweep(lab, tmp_path, **SMALL).folder == folder


@pytest.mark.parametrize("gone", ["folder", *full("trials.jsonl")])
def test_what_is_removed_during_the_run_is_noticed(lab, tmp_path, gone):
    class Remover(FakeObserver):
        def trial(self, trial):
            super().trial(trial)
            if len(self.trials) == 3:
                (folder,) = find_runs(tmp_path)
                shutil.rmtree(folder) if gone == "folder" else (folder / gone).unlink()

    with pytest.raises(StoreError) as failed:
        sweep(lab, tmp_path, observer=Remover(), **SMALL)
    says = "No such file or directory" if gone == "folder" else "changed or removed while the run went on"
    assert says in failed.value.line()
    after = sweep(lab, tmp_path, **SMALL)
    assert len(find_runs(tmp_path)) == 1
    assert after.status == "finished" and len(measured(after)) == TRIALS


def test_an_interrupt_stays_one_where_it_cannot_be_noted(lab, tmp_path, monkeypatch):
    class Both(FakeObserver):
        def trial(self, trial):
            failing(monkeypatch, "run.json.tmp", errno.ENOSPC, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, observer=Both(), **SMALL)
    monkeypatch.undo()
    (folder,) = find_runs(tmp_path)
    assert read_run(folder).status == "started"
    assert unfinished(config_for(lab, tmp_path, gamma=(1,), limit=2, max_new_tokens=4), "sweep", "auto") is not None


# The clock


@pytest.mark.full
def test_a_clock_that_goes_backwards_changes_neither_order_nor_durations(lab, tmp_path, monkeypatch):
    ticks = iter(range(10**6))

    class Backwards(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, 1, 12, tzinfo=tz) - timedelta(minutes=next(ticks))

    for module in (folders, record):
        monkeypatch.setattr(module, "datetime", Backwards)
    names = []
    for number in range(3):
        stored = sweep(lab, tmp_path, mode="fresh", **SMALL | {"name": "cba"[number], "limit": 1})
        names.append(stored.folder.name)
        assert stored.status == "finished"
        assert min(t.times.decode_s for t in stored.trials) > 0
        assert find_runs(tmp_path)[0] == stored.folder
        origin = stored.run.provenance
        assert origin.finished < origin.started  # as the clock said
    assert names == sorted(names)


def test_folders_of_one_second_sort_as_they_were_made(tmp_path, monkeypatch):
    (tmp_path / "20269999T999999Z-no-date").mkdir()
    made = [new_folder(tmp_path, name) for name in "zyx" + "a" * 12]
    assert made == sorted(made)
    assert len(set(made)) == 15


# Another setting


@pytest.mark.full
def test_a_run_measured_in_two_settings_says_so(lab, tmp_path):
    folder = interrupted(lab, tmp_path)
    edited(folder, lambda run: run["provenance"].update(commit="v0.1-3-gabc", platform="Linux-5.4"))
    edited(folder, lambda run: run["provenance"]["hardware"].update(memory_bytes=_nearly(run)))
    stored = sweep(lab, tmp_path, **SMALL)
    assert stored.folder == folder
    first, second = stored.run.sessions
    assert (first.commit, first.platform) == ("v0.1-3-gabc", "Linux-5.4")
    assert second.commit != first.commit
    (caution,) = [c for c in summarise(stored).warnings if c.code == "mixed-sessions"]
    assert "in 2 sessions" in caution.message
    assert "commit of specbench (v0.1-3-gabc, " in caution.message and "system (Linux-5.4, " in caution.message
    shown = call("show", folder).stdout
    assert "mixed-sessions" in shown or "2 sessions" in shown


def _nearly(run):
    return int(run["provenance"]["hardware"]["memory_bytes"] * 0.999)  # as after an update of the kernel


@pytest.mark.full
def test_a_run_continued_in_one_setting_says_nothing(lab, tmp_path):
    interrupted(lab, tmp_path)
    stored = sweep(lab, tmp_path, **SMALL)
    assert "mixed-sessions" not in [c.code for c in summarise(stored).warnings]
    assert len(stored.run.sessions) == 2


def test_other_versions_are_refused_and_named(lab, tmp_path):
    folder = interrupted(lab, tmp_path)
    edited(folder, lambda run: run["provenance"]["versions"].update(torch="1.0"))
    edited(folder, lambda run: run["provenance"].update(threads=3))
    edited(folder, lambda run: run["workload"].update(sha256="f" * 64))
    with pytest.raises(StoreError) as refused:
        sweep(lab, tmp_path, **SMALL)
    says = refused.value.line()
    assert says.startswith("The workload and the number of threads and a library version changed since this run began")
    assert "sha256: ffffffffffff -> " in says and "threads: 3 -> 1" in says and "torch: 1.0 -> 2." in says


def test_every_part_of_the_setting_is_compared(lab, tmp_path):
    run = read_run(interrupted(lab, tmp_path)).run
    same_setting(run, run, tmp_path)
    near, was = str(lab.near), run.provenance
    machine = was.hardware
    for key, value, other in (
        ("parameters", "9", replace(run, target=replace(run.target, parameters=9))),
        ("parameters", "9", replace(run, drafts={near: replace(run.drafts[near], parameters=9)})),
        ("cpu", "Z80", with_origin(run, hardware=replace(machine, cpu="Z80"))),
        ("accelerator", "A", with_origin(run, hardware=replace(machine, accelerator="A"))),
        ("transformers", "1", with_origin(run, versions={**was.versions, "transformers": "1"})),
        ("specbench", "1", with_origin(run, versions={**was.versions, "specbench": "1"})),
    ):
        with pytest.raises(StoreError, match=f"{key}: {value} -> "):
            same_setting(other, run, tmp_path)


def with_origin(run, **origin):
    return replace(run, provenance=replace(run.provenance, **origin))
