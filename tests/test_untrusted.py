"""Files and servers of others are read and never obeyed: traps are planted, and none may spring. SECURITY.md says what
this holds for."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jinja2
import pytest
from test_cli import call

import specbench
from specbench.backends.server.launch import read_launch
from specbench.config import load_config
from specbench.errors import ConfigError, ModelError
from specbench.models import load_model, load_tokenizer

ROOT = Path(specbench.__file__).parent.parent


@pytest.fixture
def trap(tmp_path):
    """The file that a trap makes when it springs."""
    return tmp_path / "sprung"


@pytest.fixture
def model(lab, tmp_path):
    """A model directory to plant traps in."""
    return Path(shutil.copytree(lab.near, tmp_path / "model"))


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where transformers would copy the code of a model, and what it adds to the path."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


class Trap:
    """A pickle of this touches a file when it is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def code_of(trap):
    return f"from pathlib import Path\nPath({str(trap)!r}).touch()\n"


def changed(path, **keys):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | keys))


def load(folder, trusted=()):
    return load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=frozenset(map(str, trusted)))


def test_the_traps_spring_where_they_are_obeyed(trap, tmp_path):
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()
    trap.unlink()
    exec(code_of(trap))
    assert trap.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_weights_that_are_a_pickle_are_refused_in_one_line(model, trap, lab, tmp_path, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Trap(trap)))
    for flags in (("--target", model), ("--draft", model)):
        result = call("sweep", *lab.args("--out", tmp_path / "runs", "--quiet"), *flags)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"specbench: {model} has its weights in {name} only, and a pickle can run code")
        assert result.stderr.count("\n") == 1
    assert not trap.exists()
    assert not list((tmp_path / "runs").glob("*/trials.jsonl"))


PICKLED = ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "adapter_model.bin", "vocab.bin"]


def test_a_pickle_beside_safetensors_is_not_opened(model, trap):
    for name in PICKLED:
        (model / name).write_bytes(pickle.dumps(Trap(trap)))
    load(model)
    assert not trap.exists()


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"],
)
def test_a_pickle_under_the_name_of_something_else_is_not_opened(model, trap, name):
    (model / name).write_bytes(pickle.dumps(Trap(trap)))
    try:
        load(model)
    except ModelError as error:
        assert error.line().count("\n") == 0
    assert not trap.exists()


def plant_model(folder, trap, kind):
    (folder / "modeling_x.py").write_text(
        code_of(trap)
        + "from transformers import LlamaConfig, LlamaForCausalLM\n"
        + f"class X(LlamaConfig):\n    model_type = {kind!r}\nclass XModel(LlamaForCausalLM):\n    config_class = X\n"
    )
    classes = {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.XModel"}
    changed(folder / "config.json", model_type=kind, auto_map=classes)


def plant_tokenizer(folder, trap):
    (folder / "tokenization_x.py").write_text(
        code_of(trap)
        + "from transformers import PreTrainedTokenizerFast\nclass X(PreTrainedTokenizerFast):\n    pass\n"
    )
    classes = {"AutoTokenizer": [None, "tokenization_x.X"]}
    changed(folder / "tokenizer_config.json", tokenizer_class="X", auto_map=classes)


def plant_generate(folder, trap):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code_of(trap) + "def generate(*a, **k):\n    pass\n")


PLANTED = {
    "a model of its own kind": lambda folder, trap: plant_model(folder, trap, "x"),
    "a model of a known kind": lambda folder, trap: plant_model(folder, trap, "llama"),
    "a tokenizer": plant_tokenizer,
    "a way to generate": plant_generate,
}


@pytest.mark.parametrize("planted", PLANTED)
def test_code_of_a_model_does_not_run_unless_that_model_is_named(model, trap, lab, tmp_path, planted):
    PLANTED[planted](model, trap)
    for trusted in ((), (lab.near,), (model.name,), (f"{model}/",)):
        named = frozenset(map(str, trusted))
        for read in (load_tokenizer, partial(load_model, dtype="float32", device="cpu")):
            try:
                read(str(model), trust_remote_code=named)
            except ModelError as error:
                assert f"--trust-remote-code {model}" in error.line()
    assert not trap.exists()


@pytest.mark.parametrize("planted", ["a model of its own kind", "a tokenizer"])
def test_code_of_a_model_runs_where_it_is_named(model, trap, planted):
    PLANTED[planted](model, trap)
    load(model, (model,))
    assert trap.exists()


def test_trust_in_the_target_is_none_in_the_draft(model, trap, lab, tmp_path):
    plant_model(model, trap, "x")
    own = ("--trust-remote-code", lab.target, "--draft", model, "--quiet")
    result = call("sweep", *lab.args("--out", tmp_path / "runs"), *own)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"specbench: {model} runs its own Python code when it is loaded. Read that code")
    assert not trap.exists()


def test_a_chat_template_is_held_in_its_sandbox(model, trap, lab, tmp_path):
    code = f"cycler.__init__.__globals__.os.mkdir({str(trap)!r})"
    jinja2.Template("{{ " + code + " }}").render()
    trap.rmdir()
    for template in (model / "chat_template.jinja", model / "tokenizer_config.json"):
        if template.suffix == ".jinja":
            template.write_text("{{ " + code + " }}")
        else:
            changed(template, chat_template="{{ " + code + " }}")
    flags = ("--target", model, "--limit", 1, "--quiet")
    result = call("sweep", *lab.args("--out", tmp_path / "runs", draft=lab.near), *flags)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"specbench: the chat template of {model} fails (SecurityError). ")
    assert result.stderr.count("\n") == 1
    assert not trap.exists()


@pytest.mark.parametrize("read", [lambda path: load_config(path, {}), read_launch])
def test_yaml_makes_no_objects(trap, tmp_path, read):
    file = tmp_path / "x.yaml"
    file.write_text(f"target: !!python/object/apply:os.mkdir [{str(trap)!r}]\n")
    with pytest.raises(ConfigError, match="Not readable as YAML"):
        read(file)
    assert not trap.exists()


def test_a_redirect_takes_neither_key_nor_prompt_elsewhere(lab, tmp_path, monkeypatch):
    asked = {"first": [], "second": []}

    def listen(name, location=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked[name].append(self.headers.get("Authorization"))
                self.send_response(307 if location else 200)
                if location:
                    self.send_header("Location", f"{location}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server, f"http://127.0.0.1:{server.server_address[1]}"

    second, elsewhere = listen("second")
    first, url = listen("first", elsewhere)
    monkeypatch.setenv("SPECBENCH_API_KEY", "s3cret-key")
    flags = ("--server", url, "--spec-server", url, "--engine", "vllm", "--gamma", 3, "--limit", 1)
    result = call("sweep", *lab.args("--out", tmp_path / "runs", "--quiet"), *flags)
    for server in (first, second):
        server.shutdown()
        server.server_close()
    assert result.exit_code in (1, 2)
    assert set(asked["first"]) == {"Bearer s3cret-key"}
    assert asked["second"] == []


# What runs what it reads, by the name under which it is called or imported.
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "input"}
METHODS = {
    "os": {"system", "popen", "startfile", "execv", "execve", "execvp", "execvpe", "spawnv", "spawnvp", "posix_spawn"},
    "subprocess": {"getoutput", "getstatusoutput", "call", "check_call", "check_output"},
    "torch": {"load"},
    "numpy": {"load"},
    "np": {"load"},
    "pandas": {"read_pickle"},
    "pd": {"read_pickle"},
    "asyncio": {"create_subprocess_shell"},
    "tempfile": {"mktemp"},
    "yaml": {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}
    | {f"{c}{kind}Loader" for c in ("", "C") for kind in ("", "Full", "Unsafe")},
}
# A keyword, and what it may not say.
KEYWORDS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "verify": False, "weights_only": False}


def dangerous(source):
    """(line, what) of everything in a Python source that could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names, home = {name.name for name in node.names}, (node.module or "").split(".")[0]
            found += [(node.lineno, f"{home}.{name}") for name in names & METHODS.get(home, set())]
            found += [(node.lineno, home)] * (home in MODULES)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in METHODS.get(node.value.id, ()):
                found.append((node.lineno, f"{node.value.id}.{node.attr}"))
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                found.append((node.lineno, node.func.id))
            found += [
                (node.lineno, f"{word.arg}={word.value.value}")
                for word in node.keywords
                if word.arg in KEYWORDS
                and isinstance(word.value, ast.Constant)
                and word.value.value is KEYWORDS[word.arg]
            ]
    return found


def started(source):
    """Lines that start a program; None for one whose command is a text, which a shell would have to cut."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("run", "Popen"):
            home = node.func.value
            if isinstance(home, ast.Name) and home.id == "subprocess":
                lines.append(None if isinstance(node.args[0], ast.Constant | ast.JoinedStr) else node.lineno)
    return lines


SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("specbench", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def test_no_source_runs_what_it_reads():
    assert len(SOURCES) > 100
    found = {name: lines for name, source in SOURCES.items() if (lines := dangerous(source))}
    # What Ray hands over between our own workers, which it pickles as well.
    assert [what for _, what in found.pop("specbench/run/workers.py")] == ["pickle"]
    assert found == {}


def test_programs_are_started_here_and_nowhere_else_from_lists_of_words():
    places = {name: lines for name, source in SOURCES.items() if (lines := started(source))}
    assert all(None not in lines for lines in places.values())
    # Benchmarks, which are not installed, time whole commands.
    assert {name for name in places if name.startswith("specbench/")} == {
        "specbench/models/wheel.py",  # pip, for the embedded models
        "specbench/run/record.py",  # git, nvidia-smi
        "specbench/backends/server/keeper.py",  # the command of a launch file
        "specbench/backends/server/launch.py",  # its version command
        "specbench/backends/server/launched.py",  # the keeper
    }


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "from os import system",
        "subprocess.run(words, shell=True)",
        "subprocess.check_output(words)",
        "yaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load",
        "class Loader(yaml.CLoader): pass",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "httpx.Client(verify=False)",
    ],
)
def test_a_planted_line_is_found(line):
    assert [number for number, _ in dangerous(f"import os\n{line}\n")][:1] == [2]
    assert (
        dangerous("yaml.SafeLoader(text)\nsubprocess.run(words)\njson.load(file)\nmodel.eval()\nf(verify=True)") == []
    )
    assert started("subprocess.run('rm -r x')\nsubprocess.Popen(f'{x}')\nsubprocess.run([x])") == [None, None, 3]
