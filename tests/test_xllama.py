"""llama.cpp's real server on the embedded pair, started and stopped as a measurement does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from specbench.backends.server import xllama
from specbench.backends.server.launch import Setting, engine_version, read_launch
from specbench.backends.server.launched import Launched
from specbench.drafters.spec import parse_draft
from specbench.errors import EngineError
from specbench.models.load import model_file

pytestmark = pytest.mark.slow
pytest.importorskip("xllamacpp")

FILE = read_launch(Path(__file__).parents[1] / "configs" / "engines" / "xllamacpp.yaml")
HEAD = Path(__file__).parents[2] / "shared" / "demo-eagle3"
COPIED = "Repeat this text exactly: " + "The quick brown fox jumps over the lazy dog near the river bank. " * 2


def setting(draft: str | None = None, gamma: int | None = None, concurrency: int = 1) -> Setting:
    spec = None if draft is None else parse_draft(draft)
    model = spec.model if spec is not None else None
    return Setting(
        target=model_file("demo:target", "gguf"),
        spec=spec,
        draft=None if model is None else model_file(model, "gguf"),
        gamma=gamma,
        concurrency=concurrency,
    )


def get(server: Launched, path: str) -> str:
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return answer.read().decode()


def ask(server: Launched, text: str, tokens: int) -> list[dict]:
    """The timings of a greedy text, token by token."""
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "timings_per_token": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        server.url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: {")]
    return [event["timings"] for event in events if "timings" in event]


@pytest.mark.full
@pytest.mark.parametrize(
    ("draft", "gamma", "speculative"),
    [
        (None, None, False),
        ("demo:draft", 2, True),
        (str(HEAD), 2, True),
        ("ngram:n=3", 4, True),
        ("ngram-map-k:n=3", 4, True),
        ("ngram-map-k4v:n=3", 4, True),
        ("ngram-mod:n=3", 4, True),
        ("ngram-cache", 8, True),
        ("ngram:n=3+demo:draft", 3, True),
        (f"ngram-mod:n=3+{HEAD}", 3, True),
    ],
)
def test_the_embedded_pair_is_served(tmp_path, draft, gamma, speculative):
    """Every way to draft that llama.cpp has and these models can."""
    if draft is not None and str(HEAD) in draft and not HEAD.is_dir():
        pytest.skip("../shared/demo-eagle3 is not beside this checkout")
    with Launched(FILE, setting(draft, gamma), log=tmp_path / "log") as server:
        assert json.loads(get(server, "/health")) == {"status": "ok"}
        slots = json.loads(get(server, "/slots"))
        assert [(slot["n_ctx"], slot["speculative"]) for slot in slots] == [(FILE.context, speculative)]
        timings = ask(server, COPIED, 40)
        drafted = [each.get("draft_n", 0) for each in timings]
        steps = {new - old for old, new in zip([0, *drafted], drafted, strict=False)}
        assert max(steps) == (gamma or 0), "a full round drafts gamma tokens"
        assert "llamacpp:tokens_predicted_total" in get(server, "/metrics")
    assert not psutil.pid_exists(server.pid)


@pytest.mark.full
def test_sequences_run_side_by_side_each_with_its_context(tmp_path):
    with Launched(FILE, setting(concurrency=4), log=tmp_path / "log") as server:
        assert [slot["n_ctx"] for slot in json.loads(get(server, "/slots"))] == [FILE.context] * 4
        clients = [threading.Thread(target=ask, args=(server, f"Tell me of {n}.", 24)) for n in range(4)]
        for client in clients:
            client.start()
        busiest = 0
        while any(client.is_alive() for client in clients):
            busiest = max(busiest, sum(slot["is_processing"] for slot in json.loads(get(server, "/slots"))))
            time.sleep(0.02)
    assert busiest == 4


def test_a_killed_measurement_leaves_no_server(tmp_path):
    code = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom test_xllama import FILE, Launched, setting\n"
        "with Launched(FILE, setting(), log=Path(sys.argv[2])) as server:\n"
        "    print(server.pid, flush=True)\n    time.sleep(60)\n"
    )
    line = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "log")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        server = psutil.Process(int(process.stdout.readline()))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 5
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_what_it_cannot_read_is_named(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"no model")
    for target, names in ((str(damaged), "a model that it cannot read"), ("/none.gguf", "a missing file")):
        with (
            pytest.raises(EngineError, match=f"exit code 1; its log tells of {names}"),
            Launched(FILE, Setting(target), log=tmp_path / "log"),
        ):
            pass


def test_flags_are_those_of_llama_server(capsys):
    assert engine_version(FILE).startswith("xllamacpp 20")
    with pytest.raises(SystemExit):
        xllama.main(["--model", "x", "--draft-max", "3"])
    assert "unrecognized arguments: --draft-max 3" in capsys.readouterr().err
