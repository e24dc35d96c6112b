"""Recorded answers scored by workers of Ray. `make test-ray`; SPECBENCH_RAY_PYTHON names the Python that has Ray."""

from __future__ import annotations

import json
import os
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
from test_cli import call

from specbench.acceptance.positions import iterate_positions
from specbench.run import workers
from specbench.store import read_run

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


def started(given):
    return subprocess.Popen(
        [PYTHON, "-m", "specbench", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


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
    try:
        said = ended(started(words(lab, log, out, "--ray", "local")))
    finally:
        over.set()
        watcher.join()
    assert found_in(out) == expected
    assert any(name.startswith("worker-") for name in seen) and "raylet.out" in seen
    assert heard == set() and heard_in("".join(said).encode()) == set()
    assert leaks(out) == {} and not list(out.glob(".ray-*"))


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
