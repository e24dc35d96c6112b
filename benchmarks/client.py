"""What the client of servers adds to the times that it measures, beside bare sockets on the same machine.

A fake server answers at planted times and writes down when it sent what. Closed loops and an open one; the control
(client_control.py) looks at nothing but whether a token came, and takes turns with ours in the same run, so that a busy
machine meets both. Errors are the client's time less the server's own. Then `specbench measure` compares two such
servers, which are equal: every speedup should be 1.00 within its interval.

SPECBENCH_BEFORE=DIR also drives the client of another checkout (it takes turns as well).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

HERE = Path(__file__).parent
TTFT_S, TPOT_S, TOKENS = 0.05, 0.02, 64
LOADS = {"1": 12, "8": 64, "64": 320, "50/s": 320}  # and requests of each turn
TURNS = 3


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    truth: Path

    def sent(self) -> dict[str, tuple[int, float, float]]:
        """By prompt: tokens, and when the first and the last of them were sent."""
        rows = (json.loads(line) for line in self.truth.read_text(encoding="utf-8").splitlines())
        return {prompt: (tokens, first_s, last_s) for prompt, tokens, first_s, last_s in rows}


@dataclass(frozen=True, slots=True)
class Turn:
    """One client under one load: errors of each request's time to first token in seconds, and of its time per token as
    a share; seconds of CPU a request, and how late its event loop says it was."""

    ttft_s: list[float]
    tpot: list[float]
    cpu_s: float
    late_s: float | None


@contextmanager
def serving(truth: Path) -> Iterator[Server]:
    planted = [str(value) for value in (TTFT_S, TPOT_S, TOKENS)]
    command = [sys.executable, str(HERE / "fake_times.py"), "0", *planted, str(truth)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(int(process.stdout.readline()), truth)
        finally:
            process.terminate()


def turn(server: Server, program: str, code: Path, load: str, requests: int, name: str) -> Turn:
    """Drive one client, and compare what it saw with what was sent."""
    command = [sys.executable, str(HERE / program), str(server.port), load, str(requests), str(TOKENS), name]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(code)}, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(done.stdout)
    sent = server.sent()
    ttft_s, tpot = [], []
    for prompt, first_s, last_s in found["rows"]:
        _, sent_s, ended_s = sent[prompt]
        ttft_s.append(first_s - sent_s)
        tpot.append((last_s - first_s) / (ended_s - sent_s) - 1)
    return Turn(ttft_s, tpot, found["cpu_s"] / requests, found.get("late_s"))


def clients() -> dict[str, tuple[str, Path]]:
    """Name: program, and where its specbench is."""
    here = HERE.parent
    found = {"control": ("client_control.py", here), "specbench": ("client_ours.py", here)}
    before = os.environ.get("SPECBENCH_BEFORE")
    return found | ({"before": ("client_ours.py", Path(before))} if before else {})


def row(load: str, name: str, turns: list[Turn]) -> str:
    ttft_ms = sorted(1e3 * error for each in turns for error in each.ttft_s)
    tpot = [abs(error) for each in turns for error in each.tpot]
    late_ms = [1e3 * each.late_s for each in turns if each.late_s is not None]
    return (
        f"| {load} | {name} | {median(ttft_ms):+.2f} | {mean(ttft_ms):+.2f} | {ttft_ms[int(0.99 * len(ttft_ms))]:+.1f} "
        f"| {median(tpot):.2%} | {max(tpot):.2%} | {1e3 * mean(each.cpu_s for each in turns):.1f} "
        f"| {f'{mean(late_ms):.2f}' if late_ms else '-'} |"
    )


def errors(folder: Path, loads: dict[str, int], turns: int) -> None:
    head = (
        "TTFT error, median ms | mean ms | p99 ms | time per token, median error | largest | CPU ms a request | late ms"
    )
    print(f"| requests at once | client | {head} |\n|{'---|' * 9}")
    for load, requests in loads.items():
        found: defaultdict[str, list[Turn]] = defaultdict(list)
        with serving(folder / f"{load.replace('/', '-')}.jsonl") as server:
            for number in range(turns):
                for name, (program, code) in clients().items():
                    found[name].append(turn(server, program, code, load, requests, f"{name} {number}"))
        for name, each in found.items():
            print(row(load, name, each), flush=True)


def equal_servers(folder: Path, loads: dict[str, int]) -> None:
    """`specbench measure` on two servers that are one and the same program."""
    print("\n| requests at once | prompts | decode | end to end | client late |\n|---|---|---|---|---|")
    for load, requests in loads.items():
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(f'{{"prompt": "Please say {n}."}}\n' for n in range(requests)))
        # A run with a rate has a closed loop of one client as well, which takes its time: shorter answers.
        how, tokens = ["--concurrency", load], TOKENS
        if load.endswith("/s"):
            how, tokens = ["--rate", load.removesuffix("/s")], TOKENS // 4
        with serving(folder / "alone.jsonl") as alone, serving(folder / "drafting.jsonl") as drafting:
            urls = [f"http://127.0.0.1:{server.port}" for server in (alone, drafting)]
            command = [sys.executable, "-m", "specbench", "measure", "--server", urls[0], "--spec-server", urls[1]]
            command += ["--engine", "openai", "--gamma", "2", "--workload", str(prompts), *how, "--json", "--quiet"]
            command += [
                "--limit",
                str(requests),
                "--max-new-tokens",
                str(tokens),
                "--out",
                str(folder / "runs"),
                "--fresh",
            ]
            done = subprocess.run(
                command, check=True, capture_output=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(HERE.parent)}
            )
        told = json.loads(done.stdout)
        for each in told["loads"]:
            decode, whole = (
                f"{each[key]:.3f} [{each[f'{key}_low']:.3f}, {each[f'{key}_high']:.3f}]"
                for key in ("speedup", "speedup_e2e")
            )
            late = "yes" if any(warning["code"] == "client-late" for warning in told["warnings"]) else "no"
            print(f"| {each['load']} | {each['prompts']} | {decode} | {whole} | {late} |", flush=True)


def main(*, quick: bool = False) -> None:
    """Two tables. They take about eight minutes."""
    with tempfile.TemporaryDirectory() as scratch:
        loads = {"8": 16, "50/s": 50} if quick else LOADS
        errors(Path(scratch), loads, 1 if quick else TURNS)
        equal_servers(Path(scratch), {"8": 16} if quick else {**LOADS, "64": 128, "50/s": 64})
