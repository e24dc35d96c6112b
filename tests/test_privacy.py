"""Canaries are planted in prompts, system prompts, outputs and keys, and every file and every printed line of every
command is searched for them: as text, in other encodings, and as token ids."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.ipc
import pytest
from canaries import CANARIES, KEY, WRITTEN, everything_said, heard_in, ids_of, leaks, parrot
from conftest import CANARY, full
from fake_server import FakeServer
from PIL import Image
from test_cli import call
from test_serving import ROUNDS

import specbench
from specbench.backends.local.local import LocalEngine
from specbench.config import load_config
from specbench.cost import probe as cost_probe
from specbench.errors import ConfigError, EngineError
from specbench.run import progress
from specbench.store import find_runs, read_run
from specbench.verify import machine, sampled

SHOWN = ("visible-id", "visible-kind")


def prompts(path):
    rows = [
        {
            "id": f"{SHOWN[0]}-{number}",
            "category": f"{SHOWN[1]}-{number % 2}",
            "messages": [
                *([{"role": "system", "content": "Mind the marzipan."}] if number % 2 == 0 else []),
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": "A walrus."},
                {"role": "user", "content": f"{CANARY}: why is {number}?"},
            ],
        }
        for number in range(10)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@dataclass
class Session:
    """Folder of the runs, and what every command printed, by the words that were typed."""

    folder: Path
    args: list[str]
    everything: bool
    said: dict[str, bytes] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def runs(self):
        return self.folder / "runs"

    def type(self, *words):
        """Type a command; returns what stood on stdout."""
        with everything_said() as heard:
            result = call(*words)
        label = " ".join(map(str, words)).replace(str(self.folder), "")
        assert label not in self.said
        self.codes[label] = result.exit_code
        self.said[label] = (result.stdout + result.stderr).encode() + heard[0]
        return result.stdout

    def sweep(self, *words):
        """The folder of a new run."""
        before = set(find_runs(self.runs))
        self.type("sweep", *self.args, *words)
        (folder,) = set(find_runs(self.runs)) - before
        return folder


def interrupt_after(count):
    left = iter(range(count - 1, -1, -1))

    def trial(*_):
        if next(left) == 0:
            raise KeyboardInterrupt

    return trial


@pytest.fixture(scope="module", params=["some", *full("everything")])
def session(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPECBENCH_DEBUG", raising=False)
        for name in ("HF_TOKEN", "SPECBENCH_API_KEY"):
            patch.setenv(name, KEY)
        # What is measured is not looked at.
        patch.setattr(cost_probe, "LARGEST_BYTES", 1 << 16)
        patch.setattr(machine.quiet_cores, "__defaults__", (0.01,))
        patch.setattr(sampled, "DRAWS", 20)
        patch.setattr(sampled, "TEXTS", 20)
        yield played(folder, patch, everything=request.param == "everything")


def played(folder, patch, *, everything):
    """A session in which everything is done once, or a run is made, continued and reported."""
    letters = dict(zip("Ġ" + WRITTEN, WRITTEN + "Ġ", strict=True))
    target, draft = parrot(folder / "target", letters), parrot(folder / "draft", letters | {"d": "d", "o": "o"})
    (folder / "own.yaml").write_text("max_other_cores: 1000\nprobe_batch_sizes: 1,2\ndtype: float32\nthreads: 1\n")
    models = ["--config", folder / "own.yaml", "--target", target, "--device", "cpu"]
    ask = ["--workload", prompts(folder / "prompts.jsonl"), "--max-new-tokens", len(WRITTEN)]
    run = [*models, "--draft", draft, *ask, "--gamma", "1,3", "--out", folder / "runs"]
    run += ["--system-prompt", "You are a zeppelin."]
    done = Session(folder, list(map(str, run)), everything)
    with patch.context() as stop:
        stop.setattr(progress.RunProgress, "trial", interrupt_after(9))
        done.type("sweep", *run, "--draft", "ngram:n=2")
    done.type("sweep", *run, "--draft", "ngram:n=2", "--resume")
    (greedy,) = find_runs(done.runs)
    done.type("brief", greedy)
    for mode in ((), ("--json",)):
        for command in ("show", "explain", "plan", "replay"):
            done.type(command, greedy, *mode)
        done.type("workload", folder / "prompts.jsonl", *mode)
    if not everything:
        return done
    with patch.context() as terminal:
        terminal.setenv("FORCE_COLOR", "1")
        sampled = done.sweep("--temperature", "0.8", "--json", "--limit", "2")
    batch = done.sweep("--batch-size", "2", "--limit", "2")
    replay = done.sweep("--replay-only", "--limit", "3")
    examined = ["doctor", *models, "--draft", draft, *ask, "--limit", 1]
    done.type(*examined, "--temperature", 0.8)
    done.type(*examined, "--json")
    shape = ["--context", 32, "--batch-size", 1, "--gamma", 2, "--passes", 5, "--out", folder / "runs"]
    done.type("probe", *models, "--draft", draft, *shape)
    system = ("--system-prompt", "You are a zeppelin.")
    for mode in ((), ("--json",)):
        done.type("check", greedy, "--limit", 1, *system, *mode)
        done.type("compare", greedy, greedy, *mode)
    done.type("brief", greedy, batch, "--to", folder / "runs" / "several")
    with patch.context() as drawn:
        drawn.setattr("specbench.report.figures.write_figures", lambda *_: None)
        done.type("brief", greedy, "--format", "html")
        done.type("brief", greedy, "--json")
    done.type("explain", greedy, "--level", "engineer")
    done.type("plan", greedy, "--markdown", "--write", folder / "runs" / "plan.md")
    done.type("replay", greedy, "--best")
    done.type("replay", replay)
    done.type("check", sampled, *system)
    done.type("compare", greedy, greedy, "--markdown")
    for more in (("--anonymise",), ("--anonymise", "--out", folder / "runs" / "outline.jsonl")):
        done.type("workload", folder / "prompts.jsonl", *more)
    return done


def test_everything_was_done(session):
    assert {label: code for label, code in session.codes.items() if code not in (0, 130)} == {}
    assert list(session.codes.values()).count(130) == 1
    names = {path.name for path in session.runs.rglob("*")}
    assert {"run.json", "trials.jsonl", "positions-1.arrow", "speedup.svg", "speedup.png"} <= names
    assert {"brief.md", "brief.html"} <= names
    assert {"plan.md", "outline.jsonl"} <= names or not session.everything
    assert len(list(session.runs.glob("*/run.json"))) == (5 if session.everything else 1)
    assert {read_run(run).status for run in find_runs(session.runs)} == {"finished"}
    printed = b"".join(session.said.values())
    assert b"60/60" in printed  # progress was shown in lines
    assert b"8/8" in printed or not session.everything  # and as a bar


def test_no_text_and_no_key_in_any_file(session):
    assert leaks(session.runs) == {}


def test_no_text_and_no_key_in_anything_printed(session):
    assert {label: found for label, text in session.said.items() if (found := heard_in(text))} == {}


def test_ids_and_categories_are_stored_and_shown(session):
    stored = b"".join(path.read_bytes() for path in session.runs.glob("*/trials.jsonl"))
    assert all(name.encode() in stored for name in SHOWN)
    assert SHOWN[1].encode() in session.said[next(label for label in session.said if label.startswith("brief"))]


@pytest.mark.full
def test_with_keep_text_it_is_there_and_only_in_the_trials(session):
    kept = session.sweep("--keep-text", "--limit", 2, "--quiet", "--gamma", 1, "--name", "kept")
    session.type("brief", kept)
    try:
        everything = {"prompt", "system message", "earlier answer", "output"}
        found = leaks(kept)
        assert {name: names - {"system prompt"} for name, names in found.items() if name != "run.json"} == {
            "trials.jsonl": everything
        }
        assert {trial.output_text for trial in read_run(kept).trials if not trial.warmup} == {WRITTEN}
        # Who asks for texts gets that of the system prompt, too.
        assert found["run.json"] == {"system prompt"}
        label = next(label for label in session.said if label.startswith("brief") and "kept" in label)
        assert heard_in(session.said[label]) == set()
    finally:
        for path in sorted(kept.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        kept.rmdir()


@pytest.mark.parametrize(
    "hidden",
    [
        b"%s",
        b'{"ids": [%d, %d, %d, %d, %d, %d, %d]}',
        b"data:image/svg+xml;base64,%b",
    ],
)
def test_the_search_finds_what_is_planted(tmp_path, hidden):
    text = WRITTEN[:7].encode()
    filled = {b"%s": text, b"%b": base64.b64encode(b"<text>" + text)}
    for mark, value in filled.items():
        hidden = hidden.replace(mark, value)
    (tmp_path / "x.html").write_bytes(hidden % tuple(ids_of(WRITTEN[:7])) if b"%d" in hidden else hidden)
    assert leaks(tmp_path) == {"x.html": {"output"}}


def test_the_search_opens_figures_and_arrow_files(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    words.add_text("Title", f"{CANARY} " * 50, zip=True)
    Image.new("1", (1, 1)).save(tmp_path / "x.png", pnginfo=words)
    batch = pyarrow.record_batch({"ids": pyarrow.array([ids_of(CANARIES["system prompt"])])})
    with pyarrow.ipc.new_stream(
        tmp_path / "x.arrow", batch.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        stream.write_batch(batch)
    assert leaks(tmp_path) == {"x.png": {"prompt"}, "x.arrow": {"system prompt"}}


BROKEN = {
    "torn.jsonl": f'{{"prompt": "{CANARY}\n{{"prompt": "{CANARY}\n',
    "torn.json": f'["ok", "fine",\n"{CANARY}',
    "role.jsonl": json.dumps({"messages": [{"role": CANARY, "content": CANARY}]}),
    "key.jsonl": json.dumps({f"{CANARY} is what I ask": 1}),
    "kind.jsonl": json.dumps({"conversations": CANARY}),
    "category.jsonl": json.dumps({"prompt": CANARY, "category": [CANARY]}),
    "header.csv": f"{CANARY} is what I ask,and so is this\nfirst,second\n",
    "row.csv": f"prompt,category\n{CANARY},{CANARY},{CANARY}\n",
    "quote.csv": f'prompt\n"{CANARY}" {CANARY}\n',
    "list.json": json.dumps({CANARY + " a": [CANARY], CANARY + " b": [CANARY]}),
    "bytes.txt": CANARY.encode() + b"\xff\xfe" + CANARY.encode(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_workload_that_breaks_off_half_way_is_not_quoted(session, tmp_path, name):
    text = BROKEN[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    columns = ("--category-column", "category") if name.startswith("category") else ()
    for command in (("workload", tmp_path / name), ("sweep", *session.args, "--workload", tmp_path / name)):
        result = call(*command, *columns)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert heard_in(result.output.encode()) == set()


def test_rows_that_are_left_out_are_not_quoted(session, tmp_path):
    rows = [BROKEN[name] for name in ("role.jsonl", "key.jsonl", "kind.jsonl", "category.jsonl", "torn.jsonl")]
    (tmp_path / "a.jsonl").write_text("\n".join(['{"prompt": "ok"}', *rows]))
    result = call("workload", tmp_path / "a.jsonl", "--category-column", "category")
    assert result.exit_code == 0 and result.output.count("left out: line ") == 6
    assert heard_in(result.output.encode()) == set()


def test_a_failure_half_way_is_not_quoted(session, tmp_path, monkeypatch):
    start, left = LocalEngine.start, iter(range(100))

    def failing(self, prompts, *args, **kwargs):
        if next(left) == 12:
            raise ValueError(self.decode(prompts[0]))
        return start(self, prompts, *args, **kwargs)

    monkeypatch.setattr(LocalEngine, "start", failing)
    with everything_said() as heard:
        result = call("sweep", *session.args, "--out", tmp_path)
    (run,) = find_runs(tmp_path)
    assert (result.exit_code, read_run(run).status) == (1, "failed")
    assert "ValueError in test_privacy.py" in read_run(run).run.failure
    assert heard_in(result.output.encode() + heard[0]) == set()
    assert leaks(tmp_path) == {}


def test_what_a_chat_template_complains_of_is_not_quoted(session, tmp_path):
    target = parrot(tmp_path / "target", {})
    (target / "chat_template.jinja").write_text("{{ raise_exception('No: ' + messages[-1]['content']) }}")
    for command in ("sweep", "doctor"):
        models = ["--target", target, "--draft", session.folder / "draft", "--dtype", "float32", "--device", "cpu"]
        models += ["--threads", "1"]  # not counted, which takes a second
        result = call(command, *models, "--workload", session.folder / "prompts.jsonl")
        assert result.exit_code == 2, result.output
        assert result.stderr.splitlines()[-1].startswith(
            f"specbench: the chat template of {target} fails (TemplateError). Some take no system message"
        )
        assert heard_in(result.output.encode()) == set()


def test_an_argument_of_python_is_not_quoted():
    for key in ("system_prompt", "workload"):
        with pytest.raises(ConfigError) as caught:
            specbench.sweep(**{key: [CANARY]})
        assert heard_in(str(caught.value).encode()) == set()


@pytest.mark.parametrize(
    "key", [KEY, *full(f"sk-{KEY}", f"hf_{KEY.replace('-', '_')}", "S3CRETKEY", f" {KEY}", f"KEY={KEY}")]
)
def test_a_key_in_the_place_of_its_name_is_neither_stored_nor_shown(lab, tmp_path, key):
    (tmp_path / "own.yaml").write_text(json.dumps({"api_key_env": key}))
    why = (
        "no environment variable of that name is set"
        if key.isidentifier()
        else "not the name of an environment variable"
    )
    runs = tmp_path / "runs"
    for words in (("--api-key-env", key), (f"--api-key-env={key}",), ("--config", tmp_path / "own.yaml")):
        for command in ("sweep", "measure"):
            typed = [command, *lab.args("--out", runs), "--gamma", 1, *words]
            result = call(*typed)
            assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
            assert f"`api_key_env`: {why}; " in result.stderr
            assert key.strip() not in result.output and heard_in(result.output.encode()) == set()
    with pytest.raises(ConfigError) as caught:
        specbench.sweep(api_key_env=key, out=str(runs))
    assert key.strip() not in str(caught.value)
    assert not runs.exists()


def test_a_name_that_is_set_is_taken(lab, monkeypatch):
    monkeypatch.setenv("_MY_KEY2", "")
    assert load_config(None, {"api_key_env": "_MY_KEY2"}).api_key_env == "_MY_KEY2"
    monkeypatch.delenv("SPECBENCH_API_KEY", raising=False)
    assert load_config(None, {"api_key_env": "SPECBENCH_API_KEY"}).api_key_env == "SPECBENCH_API_KEY"


@pytest.mark.full
def test_a_key_is_sent_and_neither_stored_nor_shown(session, lab, tmp_path, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", KEY)
    said = []
    with FakeServer(key=KEY) as alone, FakeServer(key=KEY, rounds=ROUNDS, faults={5: 500}) as drafting:
        served = ["--engine", "llamacpp", "--server", alone.url, "--spec-server", drafting.url, "--gamma", "3"]
        ask = ["--workload", session.folder / "prompts.jsonl", "--limit", 2, "--out", tmp_path]
        config = ["--config", lab.workload.parent / "lab.yaml", "--api-key-env", "OTHER_KEY"]
        with everything_said() as heard:
            said.append(call("sweep", *config, *served, *ask))
            (run,) = find_runs(tmp_path)
            said += [call(command, run) for command in ("show", "brief", "explain")]
            said.append(call("show", run, "--json"))
            monkeypatch.setenv("OTHER_KEY", "wrong-" + KEY)
            said.append(call("sweep", *config, *served, *ask, "--fresh"))
    assert [result.exit_code for result in said] == [0] * 5 + [EngineError.exit_code]
    assert "OTHER_KEY" in (run / "run.json").read_text()
    assert heard_in(b"".join(result.output.encode() for result in said) + heard[0]) == set()
    assert leaks(tmp_path) == {}
