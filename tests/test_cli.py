"""The commands as a user types them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import typer
from conftest import CANARY
from fake_summary import summary_of
from fake_worlds import GO
from typer.testing import CliRunner

from specbench import __version__
from specbench.analysis.contract import Choice
from specbench.cli import app
from specbench.cli.show import exit_on

runner = CliRunner()


def call(*args):
    return runner.invoke(app, [str(a) for a in args])


def test_sweep_json_is_one_object_with_the_contract_keys(typed):
    found = json.loads(typed.stdout)
    assert list(found) == [
        "run",
        "schema",
        "target",
        "engine",
        "hardware",
        "noise_floor",
        "drafts",
        "warnings",
        "policy",
        "facts",
        "choice",
        "batch_size",
        "server",
        "loads",
        "trials_run",
        "trials_spared",
        "trials_disturbed",
        "baseline_texts",
        "pace",
    ]
    (draft,) = found["drafts"]
    expected = "draft verdict reasons best_gamma baseline_tokens_per_s alpha alpha_low alpha_high gammas categories"
    assert set(expected.split()) <= set(draft)
    assert [g["gamma"] for g in draft["gammas"]] == [1, 3]
    expected = (
        "gamma rounds drafted accepted emitted acceptance_rate tokens_per_round replay_tokens_per_round replay_rounds "
        "survival speedup speedup_low speedup_high speedup_e2e tokens_per_s predicted_speedup identical_prompts prompts"
    )
    assert set(expected.split()) <= set(draft["gammas"][0])
    assert {"category", "verdict", "best_gamma", "speedup", "speedup_low", "speedup_high", "prompts"} <= set(
        draft["categories"][0]
    )
    three = draft["gammas"][1]
    assert len(three["survival"]) == 3
    assert three["survival"] == sorted(three["survival"], reverse=True)
    assert three["acceptance_rate"] == pytest.approx(three["accepted"] / three["drafted"])
    assert draft["categories"][0]["speedup_low"] is None  # six prompts


def test_progress_goes_to_stderr_and_quiet_silences_it(typed, lab, tmp_path):
    assert "48/48" in typed.stderr
    quiet = call("sweep", *lab.args("--out", tmp_path, "--json", "--quiet", "--limit", 1, "--gamma", 1))
    assert quiet.stderr == ""


def test_measure_takes_one_gamma(lab, tmp_path):
    result = call("measure", *lab.args("--out", tmp_path, "--gamma", 2, "--limit", 2, "--json"))
    assert [g["gamma"] for g in json.loads(result.stdout)["drafts"][0]["gammas"]] == [2]
    result = call("measure", *lab.args("--out", tmp_path, "--gamma", "1..3"))
    assert result.exit_code == 2
    assert result.stderr == "specbench: measure takes one gamma, not 3 (--gamma). Use specbench sweep.\n"


@pytest.mark.full
def test_tables_fit_80_columns_and_hold_the_verdict(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = call("sweep", *lab.args("--out", tmp_path, "--limit", 3))
    assert "UNCLEAR" in result.stdout
    table = [line for line in result.stdout.splitlines() if "Run folder" not in line and str(lab.near) not in line]
    assert max(map(len, table)) <= 80


@pytest.mark.full
def test_brief_of_the_newest_run(typed, tmp_path):
    out = tmp_path
    shutil.copytree(typed.folder, out / typed.folder.name)
    result = call("brief", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# ")
    (written,) = out.glob("*/brief.md")
    assert result.stdout.strip() == written.read_text().strip()
    assert (written.parent / "figures" / "speedup.png").stat().st_size > 5000
    assert CANARY not in written.read_text()
    found = json.loads(call("brief", "--out", out, "--json").stdout)
    assert found["policy"]["min_speedup"] == 1.10


def test_the_warnings_of_a_prompt_file_are_told_in_words(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "One word."}\n' * 2, encoding="utf-8")
    found = json.loads(call("workload", tmp_path / "p.jsonl", "--json").stdout)
    assert found["profile"]["prompts"] == 2
    assert all(warning["message"] and warning["code"] for warning in found["warnings"]) and found["warnings"]


@pytest.mark.full
def test_strict_turns_the_verdict_into_an_exit_code(lab, tmp_path):
    assert call("sweep", *lab.args("--out", tmp_path, "--limit", 2, "--gamma", 1, "--strict")).exit_code == 4


@pytest.mark.parametrize(
    ("verdict", "code"),
    [("GO", 0), ("NO-GO", 3), ("UNCLEAR", 4), (None, 4)],
)
def test_the_verdict_on_the_whole_run_decides_the_exit_code(verdict, code):
    choice = None if verdict is None else Choice("d", 1, verdict, (), 1.0, None, None, None, 1)
    summary = replace(summary_of(GO), choice=choice)
    with pytest.raises(typer.Exit) as caught:
        exit_on(summary.verdict)
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--gamma", "0"), "`gamma`: '0' is outside 1..64: a draft has between 1 and 64 tokens (flags)."),
        (("--gamma", "100"), "`gamma`: '100' is outside 1..64"),
        (("--config", "nowhere.yaml"), "No such configuration file (nowhere.yaml). Check the path given to --config."),
        (("--top-p", "nan"), "`top_p`: nan is not a number above 0 to 1 (flags)."),
        (("--dtype", "int8"), "`dtype`: 'int8' is none of auto, float32, bfloat16, float16"),
        (("--resume",), "No unfinished run with this configuration"),
        (("--draft", "ngram:n=x"), "'n=x' is no option of an n-gram draft (ngram:n=x). Write ngram:n=3"),
        (
            ("--time-budget", "1m", "--replay-only"),
            "Only what is timed ends early (--time-budget). Leave it out, or use --limit.",
        ),
        (("--strict", "--replay-only"), "There is no verdict without a wall clock (--strict). Leave it out."),
    ],
)
def test_bad_flags(args, says, lab, tmp_path):
    result = call("sweep", *lab.args("--out", tmp_path, *args))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"specbench: {says}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_workloads(lab, tmp_path):
    def complaint(text, *args):
        path = tmp_path / "w.jsonl"
        if text is not None:
            path.write_text(text)
        result = call("sweep", *lab.args("--out", tmp_path / "runs", "--workload", path, *args))
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert CANARY not in result.stderr
        return result.stderr.replace(str(path), "W")

    assert "No such workload file (W)" in complaint(None)
    assert "W" in complaint("")
    assert "line 2" in complaint(f'\n{{"prompt": "{CANARY}"\n')
    assert "nope" in complaint(f'{{"prompt": "{CANARY}"}}\n', "--column", "nope")
    assert "topic" in complaint(f'{{"prompt": "{CANARY}"}}\n', "--category-column", "topic")


def test_an_unknown_model(lab, tmp_path):
    result = call("sweep", *lab.args("--out", tmp_path, "--target", tmp_path))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("specbench: ")
    assert "config.json" in result.stderr


def test_brief_without_a_run(tmp_path):
    result = call("brief", "--out", tmp_path)
    assert (result.exit_code, result.stderr) == (
        2,
        f"specbench: No run yet ({tmp_path}). Run `specbench sweep` first.\n",
    )
    result = call("brief", tmp_path)
    assert result.exit_code == 2
    assert "Not a run folder" in result.stderr


def test_interrupt_is_130_and_says_how_to_go_on(lab, tmp_path, monkeypatch):
    from specbench.run import progress

    def interrupt(self, trial):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.RunProgress, "trial", interrupt)
    result = call("sweep", *lab.args("--out", tmp_path, "--limit", 2))
    assert result.exit_code == 130
    assert result.stderr.endswith(
        "specbench: interrupted. Run the same command again: a run continues where it stopped.\n"
    )


def test_a_bug_is_one_line_without_text(lab, tmp_path, monkeypatch):
    from specbench.backends.local.local import LocalEngine

    def buggy(self, *args, **kwargs):
        raise ValueError(f"oops: {CANARY}")

    monkeypatch.setattr(LocalEngine, "start", buggy)
    result = call("sweep", *lab.args("--out", tmp_path, "--limit", 2, "--quiet"))
    assert result.exit_code == 1
    assert result.stderr.startswith("specbench: a bug of specbench or of a library: ValueError in test_cli.py:")
    assert result.stderr.count("\n") == 1
    (run,) = tmp_path.glob("*/run.json")
    assert CANARY not in result.stderr + run.read_text()
    assert json.loads(run.read_text())["status"] == "failed"


def test_version_and_help():
    assert call("--version").stdout == f"specbench {__version__}\n"
    for command in ("measure", "sweep", "brief", "workload"):
        assert call(command, "--help").exit_code == 0
