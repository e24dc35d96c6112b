"""Logs are the most private input: no text of any source gets into a file or onto the terminal, and a log of any length
is streamed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from answer_logs import ANSWER, JOINED, QUESTION, REFUSED, SAMPLES, lines
from canaries import everything_said, heard_in, leaks
from conftest import full
from test_cli import call

EVERY = {**{name: (*sample[:2], None) for name, sample in SAMPLES.items()}}
EVERY |= {name: ("asked.jsonl", asked, answers) for name, (asked, answers, _) in JOINED.items()}
EVERY |= {name: (*sample[:2], None) for name, sample in REFUSED.items()}


@pytest.mark.parametrize("source", ["chat rows", "vLLM log", *full(*sorted({*EVERY} - {"chat rows", "vLLM log"}))])
def test_no_text_of_a_source_gets_out(lab, tmp_path, source):
    name, text, answers = EVERY[source]
    assert heard_in(text.encode())  # the canaries are there to be found
    (tmp_path / name).write_text(text)
    (tmp_path / "said.jsonl").write_text(answers or "")
    recorded = "recorded" if answers is None else tmp_path / "said.jsonl"
    words = ["--answers", recorded, "--workload", tmp_path / name, "--target", "none", "--tokenizer", lab.target]
    out = tmp_path / "runs"
    with everything_said() as heard:
        said = [call("sweep", *words, "--draft", "ngram:n=2", "--gamma", "1,2", "--out", out)]
        said += [call(command, "--out", out) for command in ("brief", "show", "runs")]
        said += [call("replay", "--out", out, "--json")]
    assert (said[0].exit_code == 2) == (source in REFUSED)
    assert heard_in(heard[0] + "".join(one.stdout + one.stderr for one in said).encode()) == set()
    if out.exists():
        assert leaks(out) == {}


def test_a_planted_leak_is_found(tmp_path):
    (tmp_path / "a.txt").write_text(f"the answer was {ANSWER}")
    assert leaks(tmp_path) == {"a.txt": {"output"}}


MEASURE = """
import resource, sys
from pathlib import Path
from specbench.cli import app
try:
    app([*sys.argv[1:]])
except SystemExit as end:
    assert not end.code, end.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak_kib(lab, folder, number):
    """The most memory that a look-up over so many answers takes."""
    turn = [{"role": "user", "content": f"{QUESTION} {'x' * 50}"}, {"role": "assistant", "content": ANSWER * 2}]
    log = folder / f"{number}.jsonl"
    log.write_text(lines(*({"session_id": n, "messages": turn} for n in range(number))))
    words = ["sweep", "--answers", "recorded", "--workload", log, "--target", "none", "--tokenizer", lab.target]
    words += ["--draft", "ngram:n=2", "--gamma", "1,4", "--out", folder / f"runs{number}", "--quiet", "--json"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, words)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["drafts"][0]["answers"] == number
    return int(done.stderr.splitlines()[-1])


@pytest.mark.full
def test_memory_does_not_grow_with_the_log(lab, tmp_path):
    few, many = (peak_kib(lab, tmp_path, number) for number in (1_000, 5_000))
    assert many - few < 40 << 10  # caches fill up; a log held in memory takes as much for each thousand
