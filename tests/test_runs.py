"""Runs by number, a list of them, and what would be run: `runs`, `@1`, `--dry-run`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import CANARY, files_in
from test_cli import call

from specbench.store import read_record


@pytest.fixture
def out(typed, tmp_path, monkeypatch):
    """Two runs, and a folder that cannot be read between them."""
    for name in ("20260101T000000Z-older", "20260103T000000Z-newer"):
        shutil.copytree(typed.folder, tmp_path / name)
    (tmp_path / "20260102T000000Z-broken").mkdir()
    (tmp_path / "20260102T000000Z-broken" / "run.json").write_text("{")
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path


def test_every_run_is_a_line_newest_first(out, typed):
    found = json.loads(call("runs", "--out", out, "--json").stdout)["runs"]
    assert [(run["number"], Path(run["folder"]).name) for run in found] == [
        (1, "20260103T000000Z-newer"),
        (2, "20260102T000000Z-broken"),
        (3, "20260101T000000Z-older"),
    ]
    whole = json.loads(typed.stdout)
    assert found[0]["verdict"] == whole["choice"]["verdict"]
    assert (found[0]["speedup"], found[0]["gamma"]) == (whole["choice"]["speedup"], whole["choice"]["gamma"])
    assert found[0]["noise_floor"] == whole["noise_floor"]
    assert found[1]["problem"].startswith("run.json is not JSON") and found[1]["verdict"] is None
    table = call("runs", "--out", out)
    assert table.exit_code == 0 and CANARY not in table.stdout
    assert [line.split()[0] for line in table.stdout.splitlines() if line.startswith("@")] == ["@1", "@2", "@3"]
    assert "unreadable" in table.stdout
    few = call("runs", "--out", out, "--last", 1)
    assert "@2" not in few.stdout and few.stderr == "2 older are not shown: --last 3\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("runs",), "No run yet"),
        (("show", "@1"), "No @1 among 0 runs"),
        (("brief", "@2"), "No @2 among 0 runs"),
        (("runs", "--last", "0"), "0 runs are none (--last)"),
    ],
)
def test_without_runs_one_line_says_so(args, says, tmp_path):
    result = call(*args, "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"specbench: {says}") and result.stderr.count("\n") == 1


def test_a_folder_that_the_system_does_not_look_at(tmp_path):
    out = tmp_path / ("a" * 300)
    for args in (("runs",), ("sweep", "--draft", "ngram:n=3")):
        result = call(*args, "--out", out)
        assert result.exit_code == 2
        assert result.stderr.startswith("specbench: Cannot look for run folders: File name too long (")


def test_a_number_names_a_run_wherever_one_is_asked_for(out):
    first, third = out / "20260103T000000Z-newer", out / "20260101T000000Z-older"
    for command in (["show"], ["replay"], ["plan"], ["explain"]):
        assert call(*command, "@3", "--out", out).stdout == call(*command, third, "--out", out).stdout
    assert call("show", "--out", out).stdout == call("show", first).stdout
    by_number = json.loads(call("compare", "@3", "@1", "--out", out, "--json").stdout)
    assert (by_number["a"]["run"], by_number["b"]["run"]) == (str(third), str(first))


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(lab, typed, tmp_path, monkeypatch):
    def unloaded(*_, **__):
        raise AssertionError("a dry run loads no model")

    monkeypatch.setattr("specbench.run.session.backend_of", unloaded)
    plain = call("sweep", *lab.args("--out", tmp_path, "--dry-run"))
    assert plain.exit_code == 0, plain.output
    assert plain.stdout.splitlines()[0] == "12 of 12 prompts in 4 arms: 48 trials, answers of up to 12 tokens"
    assert "known when the models have warmed up" in plain.stdout
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / typed.folder.name
    shutil.copytree(typed.folder, folder)
    before = files_in(folder)
    found = json.loads(call("sweep", *lab.args("--out", tmp_path, "--limit", 6, "--dry-run", "--json")).stdout)
    assert (found["trials"], found["continues"], found["pace_of"]) == (24, None, str(folder))
    assert 0 < found["seconds"] < 600
    # an unfinished run of the same configuration would go on
    run = json.loads((folder / "run.json").read_text()) | {"status": "interrupted"}
    (folder / "run.json").write_text(json.dumps(run))
    again = json.loads(call("sweep", *lab.args("--out", tmp_path, "--dry-run", "--json")).stdout)
    assert again["continues"] == str(folder) and again["trials_done"] == again["trials"] == 48
    (folder / "run.json").write_bytes(before[next(name for name in before if name.endswith("run.json"))])
    assert read_record(folder).status == "finished"
    assert files_in(folder) == before


def test_a_time_budget_is_typed_as_one_says_it(lab, tmp_path):
    found = call("sweep", *lab.args("--out", tmp_path, "--time-budget", "1h30m", "--limit", 2, "--gamma", 1, "--json"))
    assert found.exit_code == 0, found.output
    (folder,) = tmp_path.iterdir()
    assert read_record(folder).config.time_budget_s == 5400
