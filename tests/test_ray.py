"""Recorded answers scored by workers of Ray. `make test-ray`; SPECBENCH_RAY_PYTHON names the Python that has Ray."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec

import psutil
import pytest
from answer_logs import ANSWER, QUESTION, lines
from canaries import heard_in, leaks
from fake_ray import FakeRay
from test_cli import call

from specbench.acceptance.positions import iterate_positions, read_keys
from specbench.run import recorded, workers
from specbench.store import read_run
from specbench.workload import answers

PYTHON = os.environ.get("SPECBENCH_RAY_PYTHON", sys.executable)
needs_ray = pytest.mark.skipif("SPECBENCH_TEST_RAY" not in os.environ, reason="set SPECBENCH_TEST_RAY=1")


def log_in(folder, answers):
    """Turns of conversations, which differ in length and in what they repeat."""
    rows = []
    for number in range(answers // 2):
        told = f"{QUESTION} {'abc ' * (number % 7)}{number}"
        turns = [("user", told), ("assistant", ANSWER * (1 + number % 3)), ("user", "again"), ("assistant", ANSWER)]
        row = {"messages": [{"role": role, "content": text} for role, text in turns]}
        rows.append(row | {"category": "ab"[number % 2], "session_id": str(number)})
    path = folder / "log.jsonl"
    path.write_text(lines(*rows))
    return path


def words(lab, log, out, *more):
    models = ["--target", "none", "--tokenizer", lab.target, "--draft", "ngram:n=2", "--draft", lab.near]
    models += ["--dtype", "float32", "--device", "cpu", "--threads", "1", "--gamma", "1,3", "--out", out]
    return [str(one) for one in ("sweep", "--answers", "recorded", "--workload", log, *models, *more)]


def started(given, **more):
    command = [PYTHON, "-m", "specbench", *given]
    env = {**os.environ, **more}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ended(process):
    said = process.communicate(timeout=1500)
    assert process.returncode == 0, said[1]
    return said


def found_in(out):
    (folder,) = (path for path in out.iterdir() if not path.name.startswith("."))
    facts = read_run(folder).run
    assert facts.status == "finished"
    rows = list(iterate_positions(folder))
    arrays = [[value.tolist() if hasattr(value, "tolist") else value for value in fields_of(row)] for row in rows]
    tables = json.loads(call("replay", folder, "--json").stdout)
    # As text, in which no number is unequal to itself as NaN is.
    return repr(arrays), facts.answers, {key: tables[key] for key in ("drafts", "answers")}


def fields_of(row):
    return [getattr(row, name) for name in row.__dataclass_fields__ if name != "blocks"]


@pytest.fixture(scope="module")
def alone(lab, tmp_path_factory):
    """A log, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    log = log_in(folder, 600)
    ended(started(words(lab, log, folder / "runs")))
    return log, found_in(folder / "runs")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_line_says_how_to_get_it(lab, tmp_path):
    log = log_in(tmp_path, 2)
    said = call(*words(lab, log, tmp_path / "runs", "--ray", "local"))
    assert said.exit_code == 2 and "pip install 'specbench-cli[ray]'" in said.stderr
    assert not (tmp_path / "runs").exists()


def test_workers_are_for_recorded_answers(lab):
    said = call("sweep", *lab.args("--ray", "local"))
    assert said.exit_code == 2 and "--answers recorded" in said.stderr


@pytest.fixture
def few(lab, tmp_path, monkeypatch):
    """A log of three blocks, and how to score it by Ray in this process, or without."""
    log = log_in(tmp_path, 20)
    for module in (workers, recorded, answers):
        monkeypatch.setattr(module, "BLOCK", 8)

    def scored(out, *more, ray=None):
        if ray is not None:
            ray.install(monkeypatch)
        said = call(*words(lab, log, tmp_path / out, *more, *(("--ray", "local") if ray else ())))
        return said, tmp_path / out

    return scored


def test_blocks_in_any_order_are_what_one_process_reads(few):
    assert few("alone")[0].exit_code == 0
    for number, order in enumerate((list, lambda rows: rows[::-1])):
        said, out = few(f"ray{number}", ray=FakeRay(order))
        assert said.exit_code == 0, said.output
        rows, facts, tables = found_in(out)
        alone, counted, shown = found_in(out.parent / "alone")
        assert (facts, facts.answers) == (counted, 20)
        if order is list:
            assert (rows, tables) == (alone, shown)


def test_a_block_that_ray_gives_twice_or_not_at_all_is_refused(few):
    said, out = few("twice", ray=FakeRay(lambda rows: [*rows, rows[1]]))
    assert said.exit_code == 1 and "Ray gave block 1 twice" in said.stderr.splitlines()[-1]
    keys = list(read_keys(next(out.iterdir())))
    assert len(keys) == len({*keys}) == 40
    # The same again finds all of it scored, and counts each answer once.
    said, out = few("twice", ray=FakeRay())
    assert said.exit_code == 0, said.output
    assert found_in(out)[1].answers == 20 and [*read_keys(next(out.iterdir()))] == keys
    said, _ = few("lost", ray=FakeRay(lambda rows: rows[:-1]))
    assert said.exit_code == 1 and "Ray lost 1 blocks" in said.stderr.splitlines()[-1]


def test_two_blocks_with_the_same_answer_count_it_once(few, monkeypatch):
    """The planted fault: blocks begin one answer too early."""
    honest = workers.Worker._block
    monkeypatch.setattr(
        workers.Worker, "_block", lambda self, n: [*(honest(self, n - 1)[-1:] if n else ()), *honest(self, n)]
    )
    _, out = few("overlapping", ray=FakeRay())
    keys = list(read_keys(next(out.iterdir())))
    assert len(keys) == len({*keys}) == 40


def test_nothing_that_passes_through_ray_holds_a_text(few):
    ray = FakeRay()
    assert few("runs", ray=ray)[0].exit_code == 0
    assert len(ray.passed) > 6 and heard_in(b"".join(ray.passed)) == set()
    assert heard_in(pickle.dumps(QUESTION))  # a text would be seen


@pytest.mark.parametrize("there", [True, False])
def test_ray_gets_a_token_where_there_is_none_and_writes_none(few, tmp_path, monkeypatch, there):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    if there:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("made-up")
    ray = FakeRay()
    assert few("runs", ray=ray)[0].exit_code == 0
    assert ray.tokens == [None if there else workers._TOKEN] and "RAY_AUTH_TOKEN" not in os.environ


def test_an_error_of_a_worker_comes_without_its_message():
    def fails():
        raise ValueError(QUESTION)

    assert heard_in(workers._guarded(fails)) == set()


@needs_ray
def test_two_workers_find_what_one_process_finds_and_no_text_is_in_what_ray_writes(alone, lab, tmp_path):
    log, expected = alone
    out, seen, heard, over = tmp_path / "runs", set(), set(), threading.Event()

    def watch():
        while not over.is_set():
            with suppress(OSError):
                found = list(out.glob(".ray-*/**/*"))
            for path in found:
                with suppress(OSError):  # it may be gone by now
                    if path.is_file():
                        heard.update(heard_in(path.read_bytes()))
                        seen.add(path.name)
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    home = tmp_path / "home"
    home.mkdir()
    try:
        said = ended(started(words(lab, log, out, "--ray", "local"), HOME=str(home)))
    finally:
        over.set()
        watcher.join()
    assert found_in(out) == expected
    assert any(name.startswith("worker-") for name in seen) and "raylet.out" in seen
    assert heard == set() and heard_in("".join(said).encode()) == set()
    assert leaks(out) == {} and not list(out.glob(".ray-*"))
    assert not (home / ".ray").exists()  # no token of ours stays


@needs_ray
def test_a_killed_worker_loses_nothing(alone, lab, tmp_path):
    log, expected = alone
    process = started(words(lab, log, tmp_path / "runs", "--ray", "local"))
    killed = None
    while process.poll() is None and killed is None:
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                if "Map(Worker)" in " ".join(child.cmdline()):
                    time.sleep(1)
                    child.kill()
                    killed = child
                    break
        time.sleep(0.05)
    ended(process)
    assert killed is not None
    assert found_in(tmp_path / "runs") == expected


@needs_ray
def test_a_run_that_was_killed_goes_on_and_counts_every_answer_once(alone, lab, tmp_path):
    log, expected = alone
    given = words(lab, log, tmp_path / "runs", "--ray", "local")
    process = started(given)
    while process.poll() is None and not list((tmp_path / "runs").glob("*/positions-0.arrow")):
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode != 0
    ended(started(given))
    rows, facts, tables = found_in(tmp_path / "runs")
    assert (sorted(rows), facts, tables) == (sorted(expected[0]), *expected[1:])


@needs_ray
def test_what_is_wrong_in_a_worker_is_one_line(alone, lab, tmp_path):
    log, _ = alone
    process = started(words(lab, log, tmp_path / "runs", "--ray", "local", "--draft", lab.target / "nowhere"))
    _, said = process.communicate(timeout=1500)
    assert process.returncode == 2 and "Traceback" not in said and "nowhere" in said.splitlines()[-1]


@needs_ray
def test_no_cluster_at_the_address_is_one_line(alone, lab, tmp_path):
    log, _ = alone
    process = started(words(lab, log, tmp_path / "runs", "--ray", "127.0.0.1:1"))
    _, said = process.communicate(timeout=1500)
    assert process.returncode == 2 and "Traceback" not in said and "--ray 127.0.0.1:1" in said.splitlines()[-1]


@pytest.mark.parametrize("place", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "home", None])
def test_a_token_that_ray_would_find_is_found(place, tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    if place is not None:
        token.write_text("made-up")
    if place not in ("home", None):
        token = token.rename(tmp_path / "elsewhere")
        monkeypatch.setenv(place, str(token))
    assert workers._has_token() is (place is not None)
