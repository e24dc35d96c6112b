"""Damaged run folders, through every command that reads one: one line that says what, where and hint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from bad_inputs.folders import EXAMPLE, POSITIONS, RUNS, SCORES, changed, small
from bad_inputs.judging import generic, outcome, refusal

from specbench.errors import StoreError
from specbench.store import new_folder, read_run, record


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of which 12 prompts are left, so that reading it is quick."""
    return small(tmp_path_factory.mktemp("kept") / "run")


COMMANDS = ("show", "brief", "explain", "replay", "plan", "check", "compare")


def on(command: str, folder: Path) -> list[str]:
    return [command, str(folder), *([str(EXAMPLE)] if command == "compare" else [])]


@pytest.mark.parametrize(("mutate", "says"), [case[1:] for case in RUNS], ids=[case[0] for case in RUNS])
def test_run_folders(mutate: Callable[[Path], None], says: str, kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    mutate(folder)
    for command in COMMANDS:
        line = generic(refusal(on(command, folder)), tmp_path)
        assert line.startswith(says), command
    assert not (folder / "brief.md").exists()


@pytest.mark.parametrize(("mutate", "says"), [case[1:] for case in POSITIONS], ids=[case[0] for case in POSITIONS])
def test_positions(mutate: Callable[[Path], None], says: str, kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    mutate(folder)
    for command in ("replay", "show", "brief", "explain"):
        line = generic(refusal(on(command, folder)), tmp_path)
        assert line.startswith(f"{SCORES}{says} (run/positions-0.arrow). Copy the folder again, or remove that file")


def test_positions_that_were_cut_short_are_used_up_to_there(kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    data = (folder / "positions-0.arrow").read_bytes()
    (folder / "positions-0.arrow").write_bytes(data[: len(data) // 2])
    (folder / "positions-1.arrow").write_bytes(b"")
    (folder / "positions-mine.arrow").write_bytes(data)
    code, out, _ = outcome(["replay", str(folder), "--json"])
    assert code == 0 and 0 < json.loads(out)["drafts"][0]["texts"] < 115
    (folder / "positions-0.arrow").write_bytes(b"xylophone" * 99)
    assert f"{SCORES}no Arrow stream" in refusal(["replay", str(folder)])


def test_a_torn_last_line_is_dropped_and_said(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, folder := tmp_path / "run")
    whole = len(read_run(folder).trials)
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"prompt_id": "q')
    code, out, _ = outcome(["show", str(folder), "--json"])
    assert code == 0 and "torn-line" in [warning["code"] for warning in json.loads(out)["warnings"]]
    stored = read_run(folder)
    assert stored.torn and len(stored.trials) == whole


def test_a_last_line_without_its_end_is_torn_however_whole_it_looks(kept: Path, tmp_path: Path) -> None:
    # Whoever goes on with the run cuts it off: counted here, its trial would never be measured again.
    shutil.copytree(kept, folder := tmp_path / "run")
    data = (folder / "trials.jsonl").read_bytes()
    (folder / "trials.jsonl").write_bytes(data.removesuffix(b"\n"))
    stored = read_run(folder)
    assert stored.torn and len(stored.trials) == data.count(b"\n") - 1


def test_a_policy_of_an_older_version_has_the_defaults_of_newer_keys(kept: Path) -> None:
    stored = json.loads((kept / "run.json").read_text())["config"]["policy"]
    policy = read_run(kept).run.config.policy
    assert "mix" not in stored and policy.mix is None and stored.items() <= asdict(policy).items()


def test_a_line_of_a_run_that_never_ends(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(kept, folder := tmp_path / "run")
    monkeypatch.setattr(record, "LONGEST_LINE", 1 << 20)
    with (folder / "trials.jsonl").open("wb") as file:
        file.truncate(1 << 30)
    assert "longer than 1 MiB" in refusal(["show", str(folder)])
    with (folder / "run.json").open("wb") as file:
        file.truncate(1 << 30)
    assert "run.json is not JSON: larger than 64 MiB" in refusal(["show", str(folder)])


def test_the_newest_run_is_found_past_others_whatever_their_trials(kept: Path, tmp_path: Path) -> None:
    older = tmp_path / "20260101T000000Z-sweep"
    shutil.copytree(kept, older)
    for number, command in enumerate(("replay", "probe"), start=1):
        newer = tmp_path / f"2026010{number + 1}T000000Z-{command}"
        shutil.copytree(kept, newer)
        changed("command", command)(newer)
        (newer / "trials.jsonl").write_text("broken\n")
    code, out, _ = outcome(["show", "--out", str(tmp_path), "--json"])
    assert code == 0 and Path(json.loads(out)["run"]) == older
    # A replay is one for who asks for no wall clock, and what is wrong with it is said.
    assert "Not a line that specbench wrote" in refusal(["replay", "--out", str(tmp_path)])


def test_where_no_run_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError) as caught:
            new_folder(out, "name")
        line = generic(caught.value.line(), tmp_path)
        assert line.startswith(("The output path is not a folder", "Cannot make a run folder: Not a directory"))
        assert "Choose another --out." in line
