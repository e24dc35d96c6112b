"""Bad input, through the command line: one line that says what, where and hint, and never a prompt.

Short texts are in bad_inputs/cases.yaml, what is binary in bad_inputs/binary.py; what is huge or no file at all is made
here. `PYTHONPATH=tests python -m bad_inputs.table` prints all of them with what is said.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.binary import BAD, BINARY, CONFIG_BYTES, GOOD, Recipe
from bad_inputs.cases import CASES, arguments
from bad_inputs.judging import CANARY, generic, outcome, refusal

from specbench.workload import files, load_workload, text


def named(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in CASES[kind]]


@pytest.mark.parametrize("case", named("prompts"))
def test_prompts(case: dict[str, Any], tmp_path: Path) -> None:
    args = arguments("prompts", case, tmp_path)
    if "left_out" in case:
        code, out, _ = outcome(args)
        assert code == 0 and f"left out: {case['left_out']}" in out
        assert len(load_workload(args[1]).prompts) == 1
    else:
        assert generic(refusal(args), tmp_path).startswith(case["says"])


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is let through by mistake is not measured."""
    for name in ("local.backend.LocalBackend", "server.backend.ServerBackend"):
        monkeypatch.setattr(f"specbench.backends.{name}.admit", lambda *_: pytest.fail("not refused"))


@pytest.mark.parametrize("case", named("configs"))
def test_configurations(case: dict[str, Any], tmp_path: Path) -> None:
    assert generic(refusal(arguments("configs", case, tmp_path)), tmp_path).startswith(case["says"])


@pytest.mark.parametrize("case", named("flags"))
def test_flags(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(arguments("flags", case, tmp_path)).startswith(case["says"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "recipe", "says"), [case[1:] for case in BINARY], ids=[case[0] for case in BINARY])
def test_binary_prompts(name: str, recipe: Recipe, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(recipe if isinstance(recipe, bytes) else recipe(path))
    assert generic(refusal(["workload", str(path)]), tmp_path).startswith(says)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD)
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfprompt,id\ngood,1\n")
    for name in ("a.jsonl", "b.csv"):
        assert load_workload(str(tmp_path / name)).prompts[0].messages[0].content == "good"
        assert outcome(["workload", str(tmp_path / name)])[0] == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_line_of_a_gigabyte_is_refused_before_it_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hole in the file: a gigabyte that takes no room on the disk, and would take some in memory.
    limit = 1 << 20
    monkeypatch.setattr(text, "LONGEST_LINE", limit)
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b'{"prompt": "' + CANARY.encode() + b"x" * (2 * limit))
        file.truncate(1 << 30)
    tracemalloc.start()
    line = generic(refusal(["workload", str(path)]), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"longer than 1 MiB ({name}, line 1)" in line
    assert peak < 20 * limit


def test_many_lines_are_refused_at_the_limit_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LARGEST_FILE", 3 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((CANARY.encode() + b" " * 9999 + b"\n") * 1000, 1))
    line = refusal(["workload", str(tmp_path / "a.txt.gz")])
    assert "the file holds more than 3 MiB of text" in line and "Cut it into smaller files." in line


def test_a_cell_over_many_lines_is_refused_at_the_limit_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 20)
    (tmp_path / "a.csv").write_text('prompt\n"' + f"{CANARY}\n" * 100_000)
    assert "field larger than field limit" in refusal(["workload", str(tmp_path / "a.csv")])


def test_the_limits_leave_room_for_a_million_tokens() -> None:
    assert text.LONGEST_LINE >= 16 * 1_000_000


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path)


PLACES: list[tuple[Callable[[Path], None], str]] = [
    (pipe, "the workload is a pipe or a device (a.jsonl). Write it to a file first."),
    (device, "the workload is a pipe or a device (a.jsonl). Write it to a file first."),
    (loop, "cannot read the file: Too many levels of symbolic links (a.jsonl). Check the path and its permissions."),
    (Path.mkdir, "the workload is a directory (a.jsonl). Name a file in it."),
]


@pytest.mark.parametrize(("make", "says"), PLACES, ids=["pipe", "device", "loop", "folder"])
def test_what_is_no_file(make: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    make(tmp_path / "a.jsonl")
    assert generic(refusal(["workload", str(tmp_path / "a.jsonl")]), tmp_path) == says


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(BAD)
    (tmp_path / "a.jsonl").chmod(0)
    assert "cannot read the file: Permission denied" in refusal(["workload", str(tmp_path / "a.jsonl")])


def test_strange_ids_and_categories_are_shown_without_commanding_the_terminal(tmp_path: Path) -> None:
    strange = "a\x1b[2J\u202eb\x07"
    rows = [{"id": strange, "category": strange, "prompt": "good"}, {"id": strange, "prompt": "better"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = outcome(["workload", str(tmp_path / "a.jsonl")])
    assert code == 0 and "1 of 2 prompts had the id of another prompt" in out
    assert "a [2J b" in out and all(c.isprintable() or c == "\n" for c in out)


def test_an_id_or_a_task_that_is_a_prompt_is_not_taken_for_a_name(tmp_path: Path) -> None:
    long = f"{CANARY} and so on " * 40
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": long, "task": long, "prompt": "good"}))
    (prompt,) = load_workload(str(tmp_path / "a.jsonl")).prompts
    assert prompt.id.startswith("p-") and prompt.category is None


def test_a_category_that_a_data_frame_left_out_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "tag": NaN}\n{"prompt": "b", "tag": 2.5}')
    prompts = load_workload(str(tmp_path / "a.jsonl"), category_column="tag").prompts
    assert [prompt.category for prompt in prompts] == [None, "2.5"]


@pytest.mark.parametrize(("data", "says"), [case[1:] for case in CONFIG_BYTES], ids=[case[0] for case in CONFIG_BYTES])
def test_binary_configurations(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(data)
    assert generic(refusal(["sweep", "--config", str(tmp_path / "bad.yaml")]), tmp_path).startswith(says)


def test_a_byte_order_mark_in_a_configuration_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xef\xbb\xbfgamma: 0")
    assert "`gamma`: '0' is outside 1..64" in refusal(["sweep", "--config", str(tmp_path / "bad.yaml")])


def test_the_program_itself(tmp_path: Path) -> None:
    """One of each kind outside this process: what a shell sees."""
    (tmp_path / "a.jsonl").write_bytes(BAD[:-4])
    (tmp_path / "bad.yaml").write_text("gamma: 8..1")
    calls = [["workload", "a.jsonl"], ["sweep", "--config", "bad.yaml"]]
    for call in calls:
        done = subprocess.run(
            [Path(sys.executable).parent / "specbench", *call], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
        assert done.stderr.startswith("specbench: ") and CANARY not in done.stderr
