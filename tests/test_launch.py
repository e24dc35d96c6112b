"""Starting servers: launch files, command lines, and a process that is gone when we are, with small servers of ours."""

from __future__ import annotations

import json
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

from specbench.drafters.spec import parse_draft
from specbench.errors import ConfigError, EngineError, ModelError, StoreError
from specbench.servers import launch
from specbench.servers.launch import (
    Setting,
    command,
    engine_version,
    find_launch,
    require_draft,
)
from specbench.servers.launched import Launched
from specbench.servers.launchfile import LaunchFile, read_launch
from specbench.servers.modelfiles import model_file

ENGINES = Path(__file__).parents[1] / "configs" / "engines"
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


# --- launch files


@pytest.mark.parametrize("name", ["llamacpp", "xllamacpp", "vllm", "sglang"])
def test_shipped_files_make_whole_command_lines(name):
    file = read_launch(ENGINES / f"{name}.yaml")
    alone = command(file, Setting("the/target", concurrency=4, threads=2), 4711)
    drafting = command(file, Setting("the/target", parse_draft("d"), "the/draft", 3), 4711)
    assert "the/target" in alone and "4711" in alone and not any("{" in part for part in alone)
    assert drafting[: len(file.command)] == command(file, Setting("the/target"), 4711)
    added = " ".join(drafting[len(file.command) :])
    assert "the/draft" in added and "3" in added and "{draft}" not in added and "{gamma}" not in added
    if name.endswith("llamacpp"):
        assert alone[alone.index("--ctx-size") + 1] == str(4 * 4096)
        assert alone[alone.index("--parallel") + 1] == "4"


def test_the_braces_of_json_stay():
    file = read_launch(ENGINES / "vllm.yaml")
    line = command(file, Setting("t", parse_draft("ngram:n=4,min=2"), None, 5), 1)
    given = json.loads(line[line.index("--speculative-config") + 1])
    assert given == {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }
    assert "--per-request-spec-decode-metrics" in line
    # Without speculation that flag is an error at the start.
    assert "--per-request-spec-decode-metrics" not in command(file, Setting("t"), 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"comand": ["x"]}, "Unknown key `comand`.*Did you mean `command`"),
        ({"command": ["x", "{target}", "{prot}"]}, "no placeholder `{prot}`.*Did you mean `{port}`"),
        ({"command": ["x", "{target}"]}, "does not use `{port}`"),
        ({"command": ["x", "{target}", "{port}", "{draft}"]}, "`command` has no placeholder `{draft}`"),
        ({"model": ["--draft", "{draft}"]}, "`model` does not use `{gamma}`"),
        ({"ngram": ["-n", "{n}", "-m", "{gamma}", "{cutoff}"]}, "`ngram` has no placeholder `{cutoff}`"),
        ({"command": ["x", {"port": None}]}, "write placeholders in quotes"),
        ({"command": "x --port {port}"}, "write a list"),
        ({"command": "drop"}, "`command` is missing"),
        ({"engine": "lama"}, "'lama' is none of"),
        ({"env": {"A": True}}, "True is not a text"),
        ({"env": {"A": "{gamma}"}}, "`env` has no placeholder"),
        ({"ready_s": 0}, "seconds above 0"),
        ({"prompts_per_start": 0}, "whole number from 1"),
    ],
)
def test_a_wrong_launch_file_is_refused_by_its_key(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        read_launch(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("engine", "draft", "says"),
    [
        ("xllamacpp", "skip:layers=4", "own first layers"),
        ("xllamacpp", "cross:a/b", "another tokenizer"),
        ("xllamacpp", "ngram:n=3+a/b", "together"),
        ("xllamacpp", "ngram:n=3,min=2", "no fewer.*Write ngram:n=3"),
        ("xllamacpp", "ngram:n=3,min=1", "no fewer"),
        ("xllamacpp", "ngram:n=3,max=4", "Leave max out"),
        ("vllm", "a/b,cutoff=0.3", "no cut-off"),
        ("sglang", "ngram:n=3", "no `ngram`"),
    ],
)
def test_a_draft_that_the_engine_cannot_do_is_refused(engine, draft, says):
    file = read_launch(ENGINES / f"{engine}.yaml")
    with pytest.raises(ConfigError, match=says):
        require_draft(file, parse_draft(draft))
    with pytest.raises(ConfigError, match=says):
        command(file, Setting("t", parse_draft(draft), "d", 2), 1)


def test_drafts_that_the_engine_can_do_are_passed_on():
    file = read_launch(ENGINES / "xllamacpp.yaml")
    line = command(file, Setting("t", parse_draft("a/b,cutoff=0.3"), "d.gguf", 2), 1)
    assert line[line.index("--spec-draft-p-min") + 1] == "0.3"
    line = command(file, Setting("t", parse_draft("ngram:n=5"), None, 7), 1)
    assert line[-4:] == ["--spec-ngram-simple-size-n", "5", "--spec-ngram-simple-size-m", "7"]
    require_draft(read_launch(ENGINES / "vllm.yaml"), parse_draft("ngram:n=3,min=1"))


def test_llamacpp_is_what_is_installed(monkeypatch):
    monkeypatch.setattr(launch, "_present", lambda needed: needed == "xllamacpp")
    assert find_launch("llamacpp").path.name == "xllamacpp.yaml"
    monkeypatch.setattr(launch, "_present", lambda needed: needed == "llama-server")
    assert find_launch("llamacpp").path.name == "llamacpp.yaml"
    with pytest.raises(ConfigError, match=r"xllamacpp is not installed.*specbench-cli\[llamacpp\]"):
        find_launch("xllamacpp")
    monkeypatch.setattr(launch, "_present", lambda _: False)
    with pytest.raises(ConfigError, match="llama-server is not installed"):
        find_launch("llamacpp")
    with pytest.raises(ConfigError, match="Did you mean llamacpp"):
        find_launch("lamacpp")


def test_a_path_is_a_launch_file(tmp_path):
    path = written(tmp_path, needs="json", version=["{python}", "-c", "print('one\\ntwo')"])
    assert engine_version(find_launch(str(path))) == "one"
    assert engine_version(replace(find_launch(str(path)), version=("no-such-program",))) is None
    with pytest.raises(ConfigError, match="Cannot read the launch file"):
        find_launch(str(tmp_path / "other.yaml"))
    with pytest.raises(ConfigError, match="no-such-thing is not installed"):
        find_launch(str(written(tmp_path, needs="no-such-thing")))


def test_model_names_become_files(tmp_path):
    assert model_file("any thing", "name") == "any thing"
    assert model_file("org/model", "directory") == "org/model"
    assert Path(model_file("demo:draft", "gguf")).suffix == ".gguf"
    with pytest.raises(ModelError, match=r"reads GGUF files.*Download"):
        model_file("org/model", "gguf")
    with pytest.raises(ModelError, match=r"no \.gguf file"):
        model_file(str(tmp_path), "gguf")
    with pytest.raises(ModelError, match=r"no config\.json"):
        model_file(str(tmp_path), "directory")
    (tmp_path / "a.gguf").touch()
    assert model_file(str(tmp_path), "gguf") == str(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"2 \.gguf files"):
        model_file(str(tmp_path), "gguf")
    with pytest.raises(ModelError, match="reads directories"):
        model_file(str(tmp_path / "a.gguf"), "directory")
    (tmp_path / "config.json").touch()
    assert model_file(str(tmp_path), "directory") == str(tmp_path)


# --- one server


@pytest.mark.parametrize("page", ["/health", "/v1/models"])
def test_a_server_runs_and_is_gone(tmp_path, page):
    file = serving(tmp_path, page=page, env={"PLANTED": "port {port}"})
    with start(file, tmp_path) as server:
        assert server.alive() and server.exit_code is None
        assert "server.py" in " ".join(psutil.Process(server.pid).cmdline())
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
from specbench.servers.launch import Setting, find_launch
from specbench.servers.launched import Launched
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


def test_a_keeper_that_was_killed_leaves_no_server(tmp_path):
    with start(serving(tmp_path), tmp_path) as server:
        os.kill(psutil.Process(server.pid).ppid(), signal.SIGKILL)
    assert gone(server.pid)


def test_the_keeper_is_light():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, specbench.servers.keeper; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {name for name in done.stdout.split() if name.startswith("specbench")}
    assert ours == {"specbench", "specbench.servers", "specbench.servers.keeper"}
    assert not {"asyncio", "logging", "psutil", "yaml"} & set(done.stdout.split())
