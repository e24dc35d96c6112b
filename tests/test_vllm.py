"""A real vLLM server on this machine's CPU. `make test-vllm`; SPECBENCH_VLLM_PYTHON names the Python that has vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_cli import call
from test_schedule import lookup

from specbench.backends.server.adapter import Ask, Completion
from specbench.backends.server.client import Client
from specbench.backends.server.preflight import detect
from specbench.backends.server.vllm import VLLM
from specbench.models import embedded
from specbench.records import Message, Sampling

pytestmark = pytest.mark.skipif("SPECBENCH_TEST_VLLM" not in os.environ, reason="set SPECBENCH_TEST_VLLM=1")

PYTHON = os.environ.get("SPECBENCH_VLLM_PYTHON", sys.executable)
READY_S = 300.0
LOOK_UP = '{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":2,"prompt_lookup_max":4}'
FLAGS = {
    "none": [],
    "ngram": ["--speculative-config", LOOK_UP, "--per-request-spec-decode-metrics", "detailed"],
}
QUESTIONS = (
    "Repeat exactly: one two three four five six seven eight nine ten.",
    "Write the alphabet three times, in capital letters.",
    "What is the capital of France?",
)
# 5 ends in the middle of a round of the first question.
ASKS = [Ask((Message("user", text),), tokens, Sampling(), 1) for text in QUESTIONS for tokens in (1, 5, 48)]


@dataclass(frozen=True)
class Seen:
    """One server's life: which adapter was found for it, what it said at its start, its answers to ASKS, what its
    counters added meanwhile, and the token ids of ASKS[2] with its answer, and their places scored."""

    engine: object
    before: Any
    answers: list[Completion]
    added: Any
    scored: tuple[list[int], list[Any]]


@contextlib.contextmanager
def running(flags: list[str], log: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    model = str(embedded.prepare("demo:target"))
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "m"]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", "--host", "127.0.0.1"]
    command += ["--port", port, "--no-enable-prefix-caching", "--enable-per-request-metrics", *flags]
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=os.environ | cpu | {"VLLM_NO_USAGE_STATS": "1"}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.5)
    pytest.fail(f"vLLM does not answer: {log.read_text()[-2000:]}")


async def look(url: str) -> Seen:
    adapter = VLLM()
    async with Client(url, key=None, timeout_s=120.0) as client:
        engine, before = await detect(client.get), await adapter.state(client.get)
        start = adapter.counters(await client.get(adapter.metrics) or "")
        answers = [adapter.read(await client.send(adapter.path, adapter.body(ask, "m"))) for ask in ASKS]
        added = adapter.counters(await client.get(adapter.metrics) or "").since(start)
        whole = await client.post(adapter.path, asked_for_ids(adapter.body(ASKS[2], "m")))
        ids = [*whole["prompt_token_ids"], *whole["choices"][0]["token_ids"]]  # type: ignore[misc, index]
        tops = adapter.read_scores(await client.post(*adapter.score_request(ids, "m")), ids)
    return Seen(engine, before, answers, added, (ids, tops))


def asked_for_ids(body: dict[str, Any]) -> dict[str, Any]:
    return {key: body[key] for key in body if key != "stream_options"} | {"stream": False, "return_token_ids": True}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    found = {}
    for name, flags in FLAGS.items():
        with running(flags, tmp_path_factory.mktemp(name) / "log") as url:
            found[name] = asyncio.run(look(url))
    return found


@pytest.mark.parametrize(("name", "speculating", "gamma"), [("none", False, None), ("ngram", True, 4)])
def test_it_says_at_its_start_whether_it_speculates(seen, name, speculating, gamma):
    state = seen[name].before
    assert isinstance(seen[name].engine, VLLM)
    assert (state.speculating, state.gamma) == (speculating, gamma)
    assert (state.model, state.context, state.busy, state.prefix_cache) == ("m", 2048, 0, False)


def test_its_counters_are_the_sums_over_its_answers(seen):
    told, added = [answer.told for answer in seen["ngram"].answers], seen["ngram"].added
    for name in ("rounds", "drafted", "accepted"):
        assert getattr(added, name) == sum(getattr(each, name) for each in told), name
    assert added.survived == tuple(sum(at) for at in zip(*(each.survived for each in told), strict=True))
    assert added.tokens == sum(answer.output_tokens for answer in seen["ngram"].answers)
    assert added.rounds > 0
    assert seen["none"].added.rounds is None
    assert seen["none"].added.tokens == sum(answer.output_tokens for answer in seen["none"].answers)


def test_its_rounds_are_listed_and_explain_the_tokens(seen):
    for answer in seen["ngram"].answers:
        told = answer.told
        assert (len(answer.drafted), sum(answer.drafted), sum(answer.accepted)) == (
            told.rounds,
            told.drafted,
            told.accepted,
        )
        assert told.survived == tuple(sum(a >= j for a in answer.accepted) for j in (1, 2, 3, 4))
    # The answer that the limit cut in the middle of a round counts more than it sent.
    cut = seen["ngram"].answers[1]
    assert 1 + cut.told.rounds + cut.told.accepted > cut.output_tokens == 5


def test_it_writes_the_same_with_and_without_speculation(seen):
    for with_it, without in zip(seen["ngram"].answers, seen["none"].answers, strict=True):
        assert (with_it.text, with_it.output_tokens, with_it.finish) == (
            without.text,
            without.output_tokens,
            without.finish,
        )
        assert without.told.rounds is None


def test_its_times_lie_within_ours(seen):
    for answer in seen["none"].answers:
        assert 0 < answer.told.prefill_s < answer.first_s
        assert answer.told.decode_s == pytest.approx(answer.last_s - answer.first_s, abs=0.05)


@pytest.mark.parametrize("name", FLAGS)
def test_its_scores_of_a_greedy_answer_are_the_answer(seen, name):
    ids, tops = seen[name].scored
    assert [top.token for top in tops] == ids[1:]
    answered = tops[-seen[name].answers[2].output_tokens :]
    assert [top.top for top in answered] == [top.token for top in answered]
    assert any(top.top != top.token for top in tops)


# Through the command line, as a user with vLLM in an environment of its own.

DRAFTS = ("demo:draft", "demo:eagle3", "ngram:n=3")
FEW = ("--limit", "4", "--max-new-tokens", "24", "--quiet")
ON_A_CPU = ("--launch", "vllm-cpu", "--threads", "1")


@pytest.fixture(scope="module")
def on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def drafts_of_both(on_path, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What each draft got on vLLM, and in process by replay, in the same precision."""
    drafts, runs = [part for name in DRAFTS for part in ("--draft", name)], tmp_path_factory.mktemp("runs")
    found = {}
    for name, how in (("served", ON_A_CPU), ("ours", ("--replay-only", "--dtype", "float32"))):
        result = call("sweep", *how, *drafts, *FEW, "--gamma", "3", "--out", runs / name, "--json")
        assert result.exit_code == 0, result.output
        found[name] = {draft["draft"]: draft["gammas"][0] for draft in json.loads(result.stdout)["drafts"]}
    return found


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_model_a_head_and_a_look_up_are_accepted_as_in_process(drafts_of_both, draft):
    served, ours = (drafts_of_both[where][draft] for where in ("served", "ours"))
    assert served["identical_prompts"] == served["prompts"] == 4
    if draft.startswith("ngram"):  # what its last round accepted beyond a text's end is not known
        assert served["tokens_per_round"] == pytest.approx(ours["tokens_per_round"], rel=0.1)
    else:
        assert (served["rounds"], served["accepted"]) == (ours["rounds"], ours["accepted"])


def test_rounds_are_probed_as_they_come(on_path, tmp_path):
    few = ("--draft", "demo:draft", "--gamma", "2", "--passes", "5", *FEW, "--out", tmp_path, "--json")
    result = call("probe", *ON_A_CPU, *few)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rounds"]
    assert row["gamma"] == 2 and 0 < row["round_low_s"] <= row["round_s"]


def test_it_takes_our_schedule_and_reads_it_as_we_do():
    schedule = [[1, 3, 4], [4, 15, 1], [16, 16, 0]]
    code = f"""
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup
print(build_dynamic_sd_schedule_lookup({schedule}, 99, 4)[1:])
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=READY_S, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [lookup(schedule, size) for size in range(1, 100)]
