"""The Python interface does what the command line does, also in a notebook, and importing it costs nothing."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import typer.main
from conftest import CANARY
from fake_server import FakeServer
from test_imports import FILES, command, loaded
from typer.testing import CliRunner

import specbench
from specbench.api import recorded_acceptance
from specbench.backends.server import traffic
from specbench.cli import app
from specbench.config import SETTINGS
from specbench.errors import ConfigError, ModelError, StoreError
from specbench.records import Round
from specbench.report.canvas import save
from specbench.report.dialect import json_of
from specbench.run.progress import RunProgress
from specbench.run.task import command_line, task_of
from specbench.store import find_runs, read_run, trial_key

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests/runs/example"


def call(*args):
    """The command line."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def keys_for(lab, out, **keys):
    """What `lab.args()` are on the command line."""
    base = {"config": lab.workload.parent / "lab.yaml", "target": lab.target, "draft": lab.near}
    return base | {"workload": lab.workload, "dtype": "float32", "threads": 1, "device": "cpu", "out": out} | keys


@pytest.fixture(scope="module")
def swept(lab, tmp_path_factory):
    return specbench.sweep(**keys_for(lab, tmp_path_factory.mktemp("api")), quiet=True)


@pytest.fixture(scope="module")
def example():
    return specbench.load_run(EXAMPLE)


# --- what importing costs


def test_importing_is_cheap():
    assert loaded("import specbench; dir(specbench); specbench.load_run; specbench.sweep") == set()
    assert loaded(command("--help")) == set()


@pytest.mark.full
def test_a_stored_run_is_read_without_a_model_library():
    code = f"import specbench; run = specbench.load_run({str(EXAMPLE)!r})\n"
    code += "run.gammas; run.trials; run.rounds; run.replay([1]); run._repr_markdown_()"
    assert not loaded(code) & {"torch", "transformers", "datasets", "matplotlib"}


def test_the_public_names_are_there_and_no_others():
    assert set(specbench.__all__) <= set(dir(specbench))
    assert all(callable(getattr(specbench, name)) for name in specbench.__all__)
    with pytest.raises(AttributeError, match="'specbench' has no attribute 'swep'"):
        specbench.swep  # noqa: B018


def test_no_module_reaches_for_them_from_below():
    taken = set()
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "specbench":
                taken |= {(str(name), alias.name) for alias in node.names}
    assert not {found for found in taken if found[1] in specbench.__all__}


# --- running


def test_sweep_counts_what_the_command_counts(swept, typed):
    found = json.loads(typed.stdout)["drafts"][0]["gammas"]
    typed = read_run(typed.folder)

    def counts(stored):
        return {trial_key(t): (t.drafted, t.accepted, t.output_sha256, t.identical) for t in stored.trials}

    assert counts(swept.stored) == counts(typed) and len(swept.trials) == 12 * 4
    same = ("command", "fingerprint", "trials_planned", "target", "drafts", "workload", "warnings", "status")
    assert {key: getattr(swept.stored.run, key) for key in same} == {key: getattr(typed.run, key) for key in same}
    columns = ["gamma", "rounds", "drafted", "accepted", "emitted"]
    assert swept.gammas[columns].to_dict("records") == [{key: row[key] for key in columns} for row in found]


def test_measure_takes_one_gamma(lab, tmp_path):
    run = specbench.measure(**keys_for(lab, tmp_path, gamma=2, limit=1), quiet=True)
    assert list(run.gammas["gamma"]) == [2] and run.stored.run.command == "measure"
    with pytest.raises(ConfigError, match="measure takes one gamma, not 3"):
        specbench.measure(**keys_for(lab, tmp_path, gamma=range(1, 4)), quiet=True)


@pytest.mark.full
def test_progress_is_on_stderr_and_quiet_silences_it(lab, tmp_path, capsys):
    specbench.sweep(**keys_for(lab, tmp_path, limit=1, gamma=[1]))
    shown = capsys.readouterr()
    assert "3/3" in shown.err and shown.out == ""
    specbench.sweep(**keys_for(lab, tmp_path, limit=1, gamma=[1]), resume=False, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_call_keeps_what_is_finished_and_goes_on(lab, tmp_path, monkeypatch):
    done = []

    def interrupt(self, trial):
        done.append(trial)
        if len(done) == 5:
            raise KeyboardInterrupt

    keys = keys_for(lab, tmp_path, limit=3)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as stopped:
        patched.setattr(RunProgress, "trial", interrupt)
        specbench.sweep(**keys, quiet=True)
    assert "the same call continues" in stopped.value.__notes__[0]
    (folder,) = find_runs(tmp_path)
    cut = specbench.load_run(folder)
    assert cut.status == "interrupted" and len(cut.trials) == 5
    assert "This run is incomplete" in cut._repr_markdown_()
    whole = specbench.sweep(**keys, quiet=True)
    assert whole.folder == folder and whole.status == "finished" and len(whole.trials) == 3 * 4
    assert set(cut.trials["output_sha256"]) <= set(whole.trials["output_sha256"])


def test_replay_only_has_acceptance_and_no_verdict(swept, lab, tmp_path):
    run = specbench.sweep(**keys_for(lab, tmp_path), replay_only=True, quiet=True)
    timed = swept.replay([1, 3])
    assert timed["predicted_speedup"].notna().all()  # that run has timed its models
    pd.testing.assert_frame_equal(run.replay([1, 3]), timed.assign(predicted_speedup=float("nan")))
    assert run.trials.empty and list(run.trials) == list(swept.trials)
    with pytest.raises(StoreError, match="no verdict without a measurement"):
        _ = run.verdict
    assert "no verdict without a measurement" in run._repr_markdown_()


@pytest.mark.full
def test_what_runs_is_recorded_as_one_would_type_it(swept, lab, tmp_path, monkeypatch):
    argv = swept.stored.run.provenance.argv
    assert argv[:2] == ("specbench", "sweep") and not {"-q", "tests"} & set(argv)
    assert f"--target {lab.target} --draft {lab.near} --workload {lab.workload}" in " ".join(argv)
    assert argv[argv.index("--config") + 1] == str(lab.workload.parent / "lab.yaml")
    # typed, it continues or repeats this very run
    typed = call(*argv[1:], "--limit", 1, "--gamma", 1, "--json", "--out", tmp_path)
    assert json.loads(typed.stdout)["target"] == str(lab.target)
    before = ["ipykernel_launcher", "-f", "/home/somebody/ipykernel.json"]  # a brief may speak of kernels
    monkeypatch.setattr(sys, "argv", before)
    run = specbench.sweep(**keys_for(lab, tmp_path, limit=1, gamma=1, system_prompt=CANARY), quiet=True)
    assert "ipykernel" not in (run.folder / "run.json").read_text() + run.brief()
    assert CANARY not in (run.folder / "run.json").read_text()


def test_the_typed_command_is_read_as_the_same_task(tmp_path):
    keys = {
        "target": "a/b",
        "draft": ["c", "ngram:n=3"],
        "gamma": [1, 2, 4],
        "temperature": 0.7,
        "mix": {"code": 0.6, "chat": 0.4},
        "probe_batch_sizes": [1, 8],
        "trust_remote_code": ["a/b"],
        "keep_text": True,
        "limit": 5,
        "system_prompt": "x y",
        "chat_template_kwargs": {"enable_thinking": False, "words": ["a b"]},
        "metric": "e2e",
    }
    task = task_of("sweep", keys, costs=tmp_path)
    words = list(task.argv)
    sweep = typer.main.get_command(app).commands["sweep"]
    read = sweep.make_context("sweep", words[2:]).params
    own = {key: read.pop(key) for key in ("config", "resume", "replay_only", "costs", "as_json", "quiet", "strict")}
    assert read["system_prompt"] == "..."  # the words are stored, and it may be private
    again = task_of("sweep", {key: value for key, value in read.items() if value} | {"system_prompt": "x y"})
    assert replace(again, costs=own["costs"], argv=task.argv) == task
    assert task_of("measure", {"measure_gamma": 3}).argv == ("specbench", "measure", "--gamma", "3")
    assert task_of("sweep", {"p_min": 0.2}).argv == task_of("sweep", {"cutoff": 0.2}).argv


def test_what_has_no_flag_and_what_is_not_given_is_not_typed():
    given = {"limit": None, "keep_text": False, "slower_than": 0.9, "all_gammas": True, "draft": ["a", "b"]}
    assert command_line("sweep", given) == ("specbench", "sweep", "--all-gammas", "--draft", "a", "--draft", "b")
    flags = {opt for param in typer.main.get_command(app).commands["sweep"].params for opt in param.opts}
    without = {key for key, each in SETTINGS.items() if not set(each.flags) <= flags}
    assert without == {key for key, each in SETTINGS.items() if not each.declared.on}
    assert without == {"measure_gamma", "max_other_cores", "slower_than", "max_slower_share"}


# --- what goes wrong


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"gama": 3}, "Unknown key `gama` (flags). Did you mean `gamma`?"),
        ({"min_speedupp": 1}, "Unknown key `min_speedupp` (flags). Did you mean `min_speedup`?"),
        ({"gamma": "0..2"}, "`gamma`: '0..2' is outside 1..64"),
        ({"min_speedup": "fast"}, "`min_speedup`: 'fast' is not a number above 0 to 100 (flags)."),
        ({"concurrency": [1, 2]}, "Only a server takes several requests at once"),
        ({"config": "nowhere.yaml"}, "No such configuration file (nowhere.yaml)"),
        ({"server": "http://a", "costs": "b"}, "A running server is not predicted from a probe of another"),
    ],
)
def test_bad_arguments_are_errors_of_the_command_line(keys, says, tmp_path):
    with pytest.raises(ConfigError) as caught:
        specbench.sweep(**keys, out=tmp_path, quiet=True)
    assert str(caught.value).startswith(says)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_reads_as_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("temprature: 1\n")
    in_file = call("sweep", "--config", tmp_path / "c.yaml").stderr
    with pytest.raises(ConfigError) as caught:
        specbench.sweep(temprature=1, quiet=True)
    assert str(caught.value) == in_file.strip().removeprefix("specbench: ").replace(str(tmp_path / "c.yaml"), "flags")


@pytest.mark.parametrize("prompts", [[{"prompt": CANARY}], [CANARY], pd.DataFrame({"prompt": [CANARY]})])
def test_prompts_themselves_are_refused_and_not_quoted(prompts, tmp_path):
    for key in ("workload", "system_prompt"):
        with pytest.raises(ConfigError) as caught:
            specbench.sweep(**{key: prompts}, out=tmp_path, quiet=True)
        assert f"`{key}` is a" in str(caught.value) and CANARY not in str(caught.value)


def test_a_model_and_a_folder_that_are_not_there(lab, tmp_path):
    with pytest.raises(ModelError):
        specbench.sweep(**keys_for(lab, tmp_path, target=tmp_path / "none"), quiet=True)
    with pytest.raises(StoreError, match="Not a run folder"):
        specbench.load_run(tmp_path / "none")
    with pytest.raises(ConfigError, match="Did you mean `min_speedup`"):
        specbench.load_run(EXAMPLE, min_speadup=2)


def test_recorded_answers_are_replayed_as_far_as_they_were_scored():
    log = specbench.load_run(ROOT / "reports/recorded")
    with pytest.raises(StoreError, match=r"was scored up to gamma \d+ alone .* Name gammas up to"):
        recorded_acceptance(log.stored, range(1, 17))


# --- servers, and the event loop of a notebook


def in_a_notebook(work):
    """Call `work` as a cell does: plainly, in a thread whose event loop is running."""
    loop = asyncio.new_event_loop()

    async def cell():
        return work()

    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


def keys_of(lab, out, alone, drafting, **keys):
    urls = {"server": alone.url, "spec_server": drafting.url, "engine": "llamacpp"}
    run = {"workload": lab.workload, "gamma": 3, "limit": 3, "max_new_tokens": 12, "out": out}
    return {"config": lab.workload.parent / "lab.yaml"} | urls | run | keys


def test_servers_are_measured_from_a_notebook(lab, tmp_path):
    with FakeServer() as alone, FakeServer(rounds=(Round(3, 2), Round(3, 0))) as drafting:
        run = in_a_notebook(lambda: specbench.sweep(**keys_of(lab, tmp_path, alone, drafting), quiet=True))
    assert run.status == "finished" and len(run.trials) == 3 * 3
    assert list(run.rounds["accepted"][:2]) == [2, 0]
    assert run.stored.run.config.target == "served"
    with pytest.raises(ConfigError, match="gamma"):  # an error comes through as itself
        in_a_notebook(lambda: specbench.sweep(**keys_of(lab, tmp_path, alone, drafting, gamma=[1, 2]), quiet=True))


def test_an_interrupt_stops_a_run_on_servers_in_a_notebook(lab, tmp_path, monkeypatch):
    shown, seen = RunProgress.trial, []

    def interrupt(self, trial):
        seen.append(trial)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)  # as a notebook sends it: to the process, not to a thread
        return shown(self, trial)

    with FakeServer() as alone, FakeServer(rounds=(Round(3, 2),)) as drafting:
        keys = keys_of(lab, tmp_path, alone, drafting)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(RunProgress, "trial", interrupt)
            in_a_notebook(lambda: specbench.sweep(**keys, quiet=True))
        (folder,) = find_runs(tmp_path)
        cut = specbench.load_run(folder)
        assert cut.status == "interrupted" and 4 <= len(cut.trials) < 9
        whole = in_a_notebook(lambda: specbench.sweep(**keys, quiet=True))
    assert whole.folder == folder and whole.status == "finished" and len(whole.trials) == 9


def test_the_loop_of_a_notebook_goes_on_afterwards():
    async def cell():
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        for fails in (False, True):
            with suppress(KeyError):
                assert traffic.call(partial(asyncio.sleep, 0, "inner")) == "inner"
                if fails:
                    raise KeyError
            assert (asyncio.get_running_loop(), asyncio.current_task(), asyncio.get_event_loop()) == (loop, task, loop)
        return await asyncio.sleep(0.001, "outer")

    assert asyncio.run(cell()) == "outer"
    assert traffic.call(partial(asyncio.sleep, 0, "plain")) == "plain"


# --- policy, brief, figures, and what a cell shows


def test_a_policy_goes_over_that_of_the_run(example):
    mix = {"code": 0.7, "chat": 0.3}
    strict = specbench.load_run(EXAMPLE, min_speedup=3, mix=mix)
    assert strict.verdict == "NO-GO" and strict.policy.mix == strict.summary.policy.mix == mix
    assert strict.summary.drafts[0].speedup != example.summary.drafts[0].speedup
    assert (example.policy.min_speedup, example.policy.mix) == (1.1, None)
    assert read_run(EXAMPLE).run.config.policy.min_speedup == 1.1


@pytest.mark.full
def test_the_brief_is_that_of_the_command_and_figures_are_its_files(swept, tmp_path):
    folder = Path(shutil.copytree(swept.folder, tmp_path / "run"))
    asked = (folder, "--min-speedup", 1.5, "--mix", "code=0.7,chat=0.3")
    call("brief", *asked)
    typed = call("brief", *asked, "--json")
    run = specbench.load_run(folder, min_speedup=1.5, mix={"code": 0.7, "chat": 0.3})
    assert run.brief() == (folder / "brief.md").read_text(encoding="utf-8")
    found = json.loads(json.dumps(json_of(run.summary)))
    assert found == {key: value for key, value in json.loads(typed.stdout).items() if key in found}
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in run.figures for kind in ("svg", "png")}
    for name in run.figures[:2]:
        save(run.figure(name), tmp_path / "drawn", name)
        for kind in ("svg", "png"):
            drawn, written = (path / f"{name}.{kind}" for path in (tmp_path / "drawn", folder / "figures"))
            assert drawn.read_bytes() == written.read_bytes(), name


@pytest.mark.full
def test_a_brief_can_go_elsewhere(swept, tmp_path):
    before = {path.name for path in swept.folder.iterdir()}
    path = swept.write_brief(tmp_path / "other")
    assert path.parent == tmp_path / "other" and path.read_text(encoding="utf-8") == swept.brief()
    assert {path.name for path in swept.folder.iterdir()} == before
    with pytest.raises(StoreError, match="Cannot write the brief"):
        swept.write_brief(path)


def test_a_figure_shows_the_numbers_of_the_frame(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (axes,) = example.figure("speedup").axes
    (line,) = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]
    assert list(line.get_ydata()) == list(example.gammas["speedup"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"no figure 'sped'.*Did you mean 'speedup'\?"):
        example.figure("sped")
    with pytest.raises(ConfigError, match=r"no figure 'loads'.*It has speedup, survival"):
        example.figure("loads")
