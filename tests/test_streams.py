"""Standard streams that are full, closed or no longer read, and an interrupt before anything is loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import full

ROOT = Path(__file__).parent.parent


def shell(line: str) -> subprocess.CompletedProcess[str]:
    command = f'specbench() {{ "{sys.executable}" -m specbench "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("specbench --version > /dev/full", 1, "specbench: cannot write to stdout: No space left on device\n"),
        *full(
            ("specbench show --json reports/example > /dev/full", 1, "specbench: cannot write to stdout: "),
            ("specbench show reports/example | true; exit ${PIPESTATUS[0]}", 1, ""),
            ("specbench show nothing 2> /dev/full", 2, ""),
            ("specbench show nothing 2>&-", 2, ""),
            ("specbench show reports/example >&-", 0, "For the decision brief"),
            ("specbench show nothing 2> >(true)", 2, ""),
            ("specbench show nothing <&- 2>&- >&-", 2, ""),
        ),
    ],
)
def test_a_stream_that_takes_nothing_is_one_quiet_line(line, code, said):
    done = shell(line)
    assert done.returncode == code
    assert done.stderr.startswith(said) and done.stderr.count("\n") == (said != "")
    assert "Traceback" not in done.stderr and "a bug" not in done.stderr


@pytest.mark.full
def test_an_interrupt_while_libraries_load_is_no_traceback():
    for wait_s in (0.15, 0.3, 0.6, 1.2):
        command = [sys.executable, "-m", "specbench", "show", "reports/example"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            time.sleep(wait_s)
            process.send_signal(signal.SIGINT)
            assert b"Traceback" not in process.communicate()[1]
            assert process.returncode in (0, 130, -signal.SIGINT)
