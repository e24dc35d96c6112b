"""A server's process, with small servers of ours: up, ended, failed, and gone when we are."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from specbench.backends.server import launched
from specbench.backends.server.launch import LaunchFile, Setting, read_launch
from specbench.backends.server.launched import Launched
from specbench.errors import ConfigError, EngineError, StoreError

SECRET = "a-prompt-of-the-user"

# A server of few lines: argv is the port, then what it is to do.
SERVER = """
import http.server, os, pathlib, signal, subprocess, sys, time
port, page, *does = sys.argv[1:]
print("a-prompt-of-the-user", flush=True)
for name, _, value in (each.partition("=") for each in does):
    if name == "exit":
        print("error: unknown argument: --gamma", flush=True)
        sys.exit(int(value))
    if name == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if name == "worker":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pathlib.Path(value).write_text(str(child.pid))
    if name == "taken_once" and not pathlib.Path(value).exists():
        pathlib.Path(value).write_text(port)
        print("OSError: [Errno 98] Address already in use", flush=True)
        sys.exit(1)
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ.get("PLANTED", "").encode()
        self.send_response(200 if self.path == page else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.server.socket.close()
        print("AssertionError: Synthetic acceptance not supported with CPU sampling", flush=True)
        time.sleep(0.5)
        os._exit(1)
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Pages).serve_forever()
"""


def written(folder: Path, **changes: object) -> Path:
    """A launch file that starts the server above."""
    script = folder / "server.py"
    script.write_text(SERVER)
    values = {
        "engine": "openai",
        "command": ["{python}", "-S", str(script), "{port}", "/health", "target={target}"],
        "models": "name",
        "ready_s": 20,
        "stop_s": 5,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (values | changes).items() if value != "drop"}))
    return path


def serving(folder: Path, *does: str, page: str = "/health", **changes: object) -> LaunchFile:
    file = read_launch(written(folder, **changes))
    return replace(file, command=(*file.command[:4], page, *does))


def start(file: LaunchFile, folder: Path, port: int | None = None) -> Launched:
    return Launched(file, Setting("t"), log=folder / "server.log", port=port)


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process that is not our child ends; a zombie of a container without an init counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# Last lines of vLLM 0.32 that ended, as it wrote them.
ENDS = {
    "ImportError: Arctic Inference is required. Install via `pip install arctic-inference==0.1.1`.": (
        "a missing package",
        "that its log names",
    ),
    "ValueError: Target and draft model should have the same vocabulary size. Target model vocab_size=49152. Draft": (
        "a draft with another vocabulary",
        "target's tokenizer",
    ),
    "AssertionError: Synthetic acceptance not supported with CPU sampling": ("synthetic acceptance", "vllm-cpu"),
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig": (
        "settings that it refuses",
        "documentation",
    ),
}


@pytest.mark.parametrize("line", ENDS)
def test_why_an_engine_ended_is_told_in_words_and_never_in_its_own(tmp_path, line):
    (tmp_path / "said").write_text(f"{SECRET}\n{line}\n")
    code = f"import sys; print(open({str(tmp_path / 'said')!r}).read()); sys.exit(1)"
    file = serving(tmp_path, command=["{python}", "-S", "-c", code, "{port}", "{target}"])
    with pytest.raises(EngineError) as caught, start(file, tmp_path):
        pass
    assert all(word in caught.value.line() for word in ("its log tells of", *ENDS[line]))
    assert SECRET not in caught.value.line()


def test_a_server_whose_engine_died_is_waited_for_and_says_why(tmp_path):
    """vLLM's API goes on for seconds when its worker is dead, and answers nothing."""
    with start(serving(tmp_path), tmp_path) as server:
        assert not server.ended() and server.reason() == (None, None)
        with pytest.raises((OSError, http.client.HTTPException)):
            urllib.request.urlopen(server.url + "/ask", data=b"{}", timeout=0.2)
        assert server.alive()  # still
        assert server.ended() and server.exit_code == 1
        reason, hint = server.reason()
        assert "synthetic acceptance" in reason and "--launch vllm-cpu" in hint


@pytest.mark.parametrize("page", ["/health", "/v1/models"])
def test_a_server_runs_and_is_gone(tmp_path, page):
    file = serving(tmp_path, page=page, env={"PLANTED": "port {port}"})
    with start(file, tmp_path) as server:
        assert server.alive() and server.exit_code is None
        process = psutil.Process(server.pid)
        assert "server.py" in " ".join(process.cmdline())
        # Ctrl-C reaches everything of our terminal's session, and must not reach these.
        assert os.getsid(0) not in {os.getsid(server.pid), os.getsid(process.ppid())}
        body = urllib.request.urlopen(server.url + page).read().decode()
        assert body == f"port {server.url.rpartition(':')[2]}"
    assert not server.alive() and server.exit_code == -signal.SIGTERM
    assert not psutil.pid_exists(server.pid)
    server.stop()
    assert SECRET in (tmp_path / "server.log").read_text()


def test_a_server_that_is_deaf_and_one_that_leaves_a_worker(tmp_path):
    worker = tmp_path / "worker"
    began = time.monotonic()
    with start(serving(tmp_path, "deaf=1", stop_s=0.3), tmp_path) as server:
        pass
    assert server.exit_code == -signal.SIGKILL and not psutil.pid_exists(server.pid)
    assert time.monotonic() - began < 5
    with start(serving(tmp_path, f"worker={worker}"), tmp_path) as server:
        # Killed from outside, it cannot end its worker itself.
        os.kill(server.pid, signal.SIGKILL)
        while server.alive():
            time.sleep(0.02)
        assert server.exit_code == -signal.SIGKILL
        assert gone(int(worker.read_text()))


def test_an_early_end_is_named_and_the_log_is_not_quoted(tmp_path):
    began = time.monotonic()
    with pytest.raises(EngineError) as caught, start(serving(tmp_path, "exit=3"), tmp_path):
        pass
    line = caught.value.line()
    assert "exit code 3" in line and "an argument that it does not know" in line and "server.log" in line
    assert SECRET not in line and "--gamma" not in line
    assert time.monotonic() - began < 5
    # What an earlier server left in the same log is not taken for the reason of this one.
    with pytest.raises(EngineError) as caught, start(serving(tmp_path, "silent=1", command=quiet()), tmp_path):
        pass
    assert "exit code 4" in caught.value.line() and "argument" not in caught.value.line()


def quiet() -> list[str]:
    return ["{python}", "-S", "-c", "import sys; sys.exit(4)", "{port}", "{target}"]


@pytest.mark.parametrize(
    ("log", "names"),
    [
        ("RuntimeError: CUDA out of memory. Tried to allocate", "too little memory"),
        ("srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1", "a port that is taken"),
        ("api_server.py: error: unrecognized arguments: --x", "an argument that it does not know"),
        ("/x/t.gguf: No such file or directory", "a missing file"),
        ("llama_model_load: error loading model: bad magic", "a model that it cannot read"),
        ("x is not a local folder and is not a valid model identifier", "a model that is not there"),
        ("ModuleNotFoundError: No module named 'vllm'", "a missing package"),
    ],
)
def test_well_known_failures_are_named(tmp_path, log, names):
    code = f"import sys; sys.exit({log!r})"
    file = serving(tmp_path, command=["{python}", "-S", "-c", code, "{port}", "{target}"])
    with pytest.raises(EngineError, match=f"its log tells of {names}"), start(file, tmp_path, free_port()):
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_never_answers(tmp_path):
    page = "/not-ours"
    began = time.monotonic()
    server = start(serving(tmp_path, page=page, ready_s=0.7), tmp_path)
    with pytest.raises(EngineError, match=r"did not answer within 0.7 s.*server\.log"), server:
        pass
    assert 0.7 <= time.monotonic() - began < 5
    assert not psutil.pid_exists(server.pid)


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"Port {port} is taken"), start(serving(tmp_path), tmp_path, port):
            pass
    with start(serving(tmp_path), tmp_path, port) as server:
        assert server.url == f"http://127.0.0.1:{port}"


def test_a_port_that_another_took_meanwhile_is_not_the_end(tmp_path):
    first = tmp_path / "first"
    with start(serving(tmp_path, f"taken_once={first}"), tmp_path) as server:
        assert server.url != f"http://127.0.0.1:{first.read_text()}"


def test_what_is_not_there_is_said(tmp_path):
    file = serving(tmp_path, command=["no-such-server", "{port}", "{target}"], install="get it")
    with pytest.raises(ConfigError, match=r"no program no-such-server.*get it"), start(file, tmp_path):
        pass
    with pytest.raises(StoreError, match="Cannot write the server's log"), start(serving(tmp_path), tmp_path / "no"):
        pass


# --- nothing stays behind

PARENT = """
import sys, time
from pathlib import Path
from specbench.backends.server.launch import Setting, find_launch
from specbench.backends.server.launched import Launched
file, log, says = sys.argv[1:]
server = Launched(find_launch(file), Setting("t"), log=Path(log))
if says == "starting":
    print("starting", flush=True)
with server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def parent(folder: Path, file: Path, says: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", PARENT, str(file), str(folder / "server.log"), says]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_does_not_outlive_us(tmp_path, number):
    with parent(tmp_path, written(tmp_path), "up") as process:
        pid = int(process.stdout.readline())
        keeper = psutil.Process(pid).ppid()
        assert psutil.pid_exists(pid)
        process.send_signal(number)
        process.wait(10)
        assert gone(pid) and gone(keeper)


def test_ctrl_c_while_it_starts(tmp_path):
    file = written(tmp_path, command=["{python}", "-S", "-c", "import time; time.sleep(60)", "{port}", "{target}"])
    with parent(tmp_path, file, "starting") as process:
        process.stdout.readline()
        started: list[psutil.Process] = []
        while len(started) < 2:
            started = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert all(gone(each.pid) for each in started)


def test_an_interrupted_start_ends_at_once(tmp_path, monkeypatch):
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(launched, "_answers", interrupted)
    server = start(serving(tmp_path), tmp_path)
    with pytest.raises(KeyboardInterrupt), server:
        pass
    assert server.pid and not psutil.pid_exists(server.pid)


def test_a_keeper_that_was_killed_leaves_no_server(tmp_path):
    with start(serving(tmp_path), tmp_path) as server:
        os.kill(psutil.Process(server.pid).ppid(), signal.SIGKILL)
    assert gone(server.pid)


def test_the_keeper_is_light():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, specbench.backends.server.keeper; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {name for name in done.stdout.split() if name.startswith("specbench")}
    assert ours <= {"specbench", "specbench.backends", "specbench.backends.server", "specbench.backends.server.keeper"}
    assert not {"asyncio", "logging", "psutil", "yaml"} & set(done.stdout.split())
