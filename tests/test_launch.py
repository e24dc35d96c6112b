"""Launch files, the command lines that they make, and the model files that go into them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFWriter
from test_launched import written

from specbench.backends.server import launch
from specbench.backends.server.backend import ServerBackend
from specbench.backends.server.launch import (
    Setting,
    command,
    engine_version,
    environment,
    find_launch,
    read_launch,
    require_draft,
)
from specbench.backends.server.provider import Starting
from specbench.config import RunConfig
from specbench.drafters.spec import parse_draft
from specbench.errors import ConfigError, ModelError
from specbench.models.load import model_file

ENGINES = Path(__file__).parents[1] / "configs" / "engines"


@pytest.mark.parametrize("name", [name for name in launch.SHIPPED if name != "lmdeploy"])  # it has heads alone
def test_shipped_files_make_whole_command_lines(name):
    file = read_launch(ENGINES / f"{name}.yaml")
    alone = command(file, Setting("the/target", concurrency=4, threads=2), 4711)
    drafting = command(file, Setting("the/target", parse_draft("d"), "the/draft", 3), 4711)
    assert "the/target" in alone and "4711" in alone and not any("{" in part for part in alone)
    assert drafting[: len(alone)] == command(file, Setting("the/target"), 4711)
    added = " ".join(drafting[len(alone) :])
    assert "the/draft" in added and "3" in added and "{draft}" not in added and "{gamma}" not in added
    if name.endswith("llamacpp"):
        assert alone[alone.index("--ctx-size") + 1] == str(4 * 4096)
        assert alone[alone.index("--parallel") + 1] == "4"


def test_the_braces_of_json_stay():
    file = read_launch(ENGINES / "vllm.yaml")
    line = command(file, Setting("t", parse_draft("ngram:n=4,min=2"), None, 5), 1)
    given = json.loads(line[line.index("--speculative-config") + 1])
    assert given == {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }
    assert "--per-request-spec-decode-metrics" in line
    # Without speculation that flag is an error at the start.
    assert "--per-request-spec-decode-metrics" not in command(file, Setting("t"), 1)


def test_a_path_with_a_quote_stays_one_path_in_json_and_out_of_it():
    odd = 'my "best"\\draft'
    line = command(read_launch(ENGINES / "vllm.yaml"), Setting("t", parse_draft("d"), odd, 5), 1)
    assert json.loads(line[line.index("--speculative-config") + 1])["model"] == odd
    line = command(read_launch(ENGINES / "llamacpp.yaml"), Setting("t", parse_draft("d"), odd, 5), 1)
    assert line[line.index("--spec-draft-model") + 1] == odd


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"comand": ["x"]}, "Unknown key `comand`.*Did you mean `command`"),
        ({"command": ["x", "{target}", "{prot}"]}, "no placeholder `{prot}`.*Did you mean `{port}`"),
        ({"command": ["x", "{target}"]}, "does not use `{port}`"),
        ({"command": ["x", "{target}", "{port}", "{draft}"]}, "`command` has no placeholder `{draft}`"),
        ({"drafts": {"model": ["--draft", "{draft}"]}}, "`drafts.model` does not use `{gamma}`"),
        (
            {"drafts": {"ngram": ["-n", "{n}", "-m", "{gamma}", "{cutoff}"]}},
            "`drafts.ngram` has no placeholder `{cutoff}`",
        ),
        ({"drafts": {"eagle9": ["{draft}", "{gamma}"]}}, "unknown way to draft, `eagle9`.*Did you mean"),
        ({"drafts": {"mtp": ["--spec-synth-rates", "{gamma}"]}}, "accept drafts by chance"),
        ({"env": {"SGLANG_SIMULATE_ACC_LEN": "2"}}, "accept drafts by chance"),
        ({"command": ["x", {"port": None}]}, "command\\[1\\] is an object, not text.*placeholders in quotes"),
        ({"command": "x --port {port}"}, "command is text, not a list.*Write a list"),
        ({"command": "drop"}, "lacks command.*Copy it"),
        ({"engine": "lama"}, "engine is none of llamacpp, vllm, sglang, tensorrt, lmdeploy, openai"),
        ({"env": {"A": True}}, "env\\[\\] is true or false, not text.*mapping of names"),
        ({"env": {"A": "{gamma}"}}, "`env` has no placeholder"),
        ({"ready_s": 0}, "ready_s is not above 0.*seconds above 0"),
        ({"prompts_per_start": 0}, "prompts_per_start is below 1.*whole number from 1"),
        ({"prompts_per_start": 10**401}, "prompts_per_start is not a number up to 1e\\+07"),
        ({"ready_s": float("nan")}, "ready_s is not"),
        ({"ready_s": float("inf")}, "ready_s is not"),
        ({"ready_s": "60"}, "ready_s is text, not a number"),
        ({"context": True}, "context is true or false, not a whole number"),
        ({"context": 4096.0}, "context is a number, not a whole number"),
        ({"at_once": 1}, "at_once is a number, not true or false"),
        ({"command": []}, "command is empty"),
        ({"env": {"": "a"}}, "env"),
        ({"needs": " "}, "needs is not what may be there"),
    ],
)
def test_a_wrong_launch_file_is_refused_by_its_key(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        read_launch(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("engine", "draft", "says"),
    [
        ("xllamacpp", "skip:layers=4", "own first layers"),
        ("xllamacpp", "cross:a/b", "another tokenizer"),
        ("vllm", "ngram:n=3+a/b", "together"),
        ("xllamacpp", "suffix", "has no `suffix`"),
        ("vllm", "ngram-mod:n=16", "has no `ngram-mod`"),
        ("xllamacpp", "ngram:n=3,min=2", "no fewer.*Write ngram:n=3"),
        ("xllamacpp", "ngram:n=3,min=1", "no fewer"),
        ("xllamacpp", "ngram:n=3,max=4", "Leave max out"),
        ("vllm", "a/b,cutoff=0.3", "no cut-off"),
        ("sglang", "ngram:n=3", "no `ngram`, only model"),
    ],
)
def test_a_draft_that_the_engine_cannot_do_is_refused(engine, draft, says):
    file = read_launch(ENGINES / f"{engine}.yaml")
    with pytest.raises(ConfigError, match=says):
        require_draft(file, parse_draft(draft))
    with pytest.raises(ConfigError, match=says):
        command(file, Setting("t", parse_draft(draft), "d", 2), 1)


def test_drafts_that_the_engine_can_do_are_passed_on():
    file = read_launch(ENGINES / "xllamacpp.yaml")
    line = command(file, Setting("t", parse_draft("a/b,cutoff=0.3"), "d.gguf", 2), 1)
    assert line[line.index("--spec-draft-p-min") + 1] == "0.3"
    line = command(file, Setting("t", parse_draft("ngram:n=5"), None, 7), 1)
    assert line[line.index("--spec-ngram-simple-size-n") :][:4] == [
        "--spec-ngram-simple-size-n", "5", "--spec-ngram-simple-size-m", "7",
    ]  # fmt: skip
    require_draft(read_launch(ENGINES / "vllm.yaml"), parse_draft("ngram:n=3,min=1"))


def test_llamacpp_is_what_is_installed(monkeypatch):
    monkeypatch.setattr(launch, "_present", lambda needed: needed == "xllamacpp")
    assert find_launch("llamacpp").path.name == "xllamacpp.yaml"
    monkeypatch.setattr(launch, "_present", lambda needed: needed == "llama-server")
    assert find_launch("llamacpp").path.name == "llamacpp.yaml"
    with pytest.raises(ConfigError, match=r"xllamacpp is not installed.*specbench-cli\[llamacpp\]"):
        find_launch("xllamacpp")
    monkeypatch.setattr(launch, "_present", lambda _: False)
    with pytest.raises(ConfigError, match="llama-server is not installed"):
        find_launch("llamacpp")
    with pytest.raises(ConfigError, match="Did you mean llamacpp"):
        find_launch("lamacpp")


def test_an_engine_in_an_environment_of_its_own_runs_with_the_python_beside_its_program(tmp_path, monkeypatch):
    """vLLM pins other versions than ours, so it is never in our environment. `bin` may be a link to where it is."""
    home, linked = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    linked.mkdir()
    for name in ("python", "vllm"):
        (home / name).write_text("#!/bin/sh\necho 9.9\n")
        (home / name).chmod(0o755)
    (linked / "vllm").symlink_to(home / "vllm")
    monkeypatch.setenv("PATH", f"{linked}{os.pathsep}{os.environ['PATH']}")
    file = find_launch("vllm-cpu")
    assert command(file, Setting("t"), 1)[0] == str(home / "python") and engine_version(file) == "9.9"
    # A package that we have is run with our own.
    (linked / "json").symlink_to(home / "vllm")
    mine = read_launch(written(tmp_path, needs="json"))
    assert command(mine, Setting("t"), 1)[0] == sys.executable
    # As is a program that has no Python beside it.
    (home / "python").unlink()
    assert command(file, Setting("t"), 1)[0] == sys.executable


def test_an_engine_that_drafts_right_at_temperature_0_alone_is_refused_above(tmp_path):
    path = written(tmp_path, greedy_only=True, drafts={"ngram": ["{n}", "{gamma}"]})
    config = RunConfig(target="t", draft=("ngram:n=2",), launch=str(path), temperature=0.7)
    specs = {draft: parse_draft(draft) for draft in config.draft}
    with pytest.raises(ConfigError, match=r"greedy_only.*--temperature 0"):
        Starting(config, specs, (2,), 1)
    Starting(replace(config, temperature=0.0), specs, (2,), 1)
    Starting(config, specs, (), 1)  # the target alone samples as it should
    assert read_launch(ENGINES / "vllm-cpu.yaml").greedy_only


def test_a_time_budget_takes_servers_that_come_in_turn(tmp_path):
    def asked(**changes):
        path = written(tmp_path, drafts={"ngram": ["{n}", "{gamma}"]}, **changes)
        config = RunConfig(target="t", draft=("ngram:n=2",), gamma=(2,), launch=str(path), time_budget_s=60.0)
        return ServerBackend(config, replay_only=False, threads=lambda: 1, say=print)

    with pytest.raises(ConfigError, match=r"one block.*--time-budget.*`prompts_per_start`"):
        asked(prompts_per_start=None)
    asked(prompts_per_start=4)


def test_the_embedded_head_is_a_folder_and_no_gguf_file():
    folder = model_file("demo:eagle3", "directory")
    assert (Path(folder) / "config.json").is_file()
    line = command(read_launch(ENGINES / "vllm-cpu.yaml"), Setting("t", parse_draft("demo:eagle3"), folder, 2), 1)
    given = json.loads(line[line.index("--speculative-config") + 1])
    assert given == {"method": "eagle3", "model": folder, "num_speculative_tokens": 2}
    with pytest.raises(ModelError, match=r"neither a model nor a GGUF file.*on vLLM"):
        model_file("demo:eagle3", "gguf")


def test_a_path_is_a_launch_file(tmp_path):
    path = written(tmp_path, needs="json", version=["{python}", "-c", "print('one\\ntwo')"])
    assert engine_version(find_launch(str(path))) == "one"
    # As llama-server says it where it loads its backends from files.
    loads = "print('load_backend: loaded CUDA backend from /app/libggml-cuda.so\\nversion: 6327 (abc)\\nbuilt with')"
    assert engine_version(replace(find_launch(str(path)), version=("{python}", "-c", loads))) == "version: 6327 (abc)"
    assert engine_version(replace(find_launch(str(path)), version=("no-such-program",))) is None
    with pytest.raises(ConfigError, match="Cannot read the launch file"):
        find_launch(str(tmp_path / "other.yaml"))
    with pytest.raises(ConfigError, match="no-such-thing is not installed"):
        find_launch(str(written(tmp_path, needs="no-such-thing")))


def test_model_names_become_files(tmp_path):
    assert model_file("any thing", "name") == "any thing"
    assert model_file("org/model", "directory") == "org/model"
    assert Path(model_file("demo:draft", "gguf")).suffix == ".gguf"
    with pytest.raises(ModelError, match=r"reads GGUF files.*Download"):
        model_file("org/model", "gguf")
    with pytest.raises(ModelError, match=r"no \.gguf file"):
        model_file(str(tmp_path), "gguf")
    with pytest.raises(ModelError, match=r"no config\.json"):
        model_file(str(tmp_path), "directory")
    (tmp_path / "a.gguf").touch()
    assert model_file(str(tmp_path), "gguf") == str(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"2 \.gguf files"):
        model_file(str(tmp_path), "gguf")
    with pytest.raises(ModelError, match="reads directories"):
        model_file(str(tmp_path / "a.gguf"), "directory")
    (tmp_path / "config.json").touch()
    assert model_file(str(tmp_path), "directory") == str(tmp_path)


HEADS = {kind: {"speculators_model_type": kind} for kind in ("eagle3", "peagle", "dflash")}
# What each engine calls it, by how we call it; the numbers say that gamma is 4.
NAMED = [
    ("vllm", "a/b", {"method": "draft_model", "model": "a/b", "num_speculative_tokens": 4}),
    ("vllm", "eagle3", {"method": "eagle3", "num_speculative_tokens": 4}),
    ("vllm", "peagle", {"method": "eagle3", "num_speculative_tokens": 4, "parallel_drafting": True}),
    ("vllm", "dflash", {"method": "dflash", "num_speculative_tokens": 4}),
    ("vllm", "mtp", {"method": "mtp", "num_speculative_tokens": 4}),
    ("vllm", "suffix", {"method": "suffix", "num_speculative_tokens": 4}),
    ("sglang", "a/b", ["STANDALONE", "--speculative-draft-model-path", "a/b"]),
    ("sglang", "eagle3", ["EAGLE3", "--speculative-num-draft-tokens", "5"]),
    ("sglang", "dflash", ["DFLASH", "--speculative-num-draft-tokens", "5"]),
    ("sglang", "mtp", ["NEXTN", "--speculative-num-steps", "4"]),
    ("sglang", "suffix", ["NGRAM", "--speculative-num-draft-tokens", "5"]),
    *(
        ("tensorrt", draft, [f"speculative_config.decoding_type={way}", "speculative_config.max_draft_len=4"])
        for draft, way in (
            ("a/b", "DraftTarget"),
            ("eagle3", "Eagle3"),
            ("dflash", "DFlash"),
            ("mtp", "MTP"),
            ("suffix", "SA"),
            ("ngram:n=3", "NGram"),
        )
    ),
    ("lmdeploy", "eagle3", ["--speculative-algorithm eagle3", "--speculative-num-draft-tokens 4"]),
    ("lmdeploy", "mtp", ["--speculative-algorithm deepseek_mtp", "--speculative-num-draft-tokens 4"]),
    *(
        (engine, draft, [f"--spec-type {way}", *([] if "cache" in way else ["4"])])
        for engine in ("llamacpp", "xllamacpp")
        for draft, way in (
            ("a/b", "draft-simple"),
            ("eagle3", "draft-eagle3"),
            ("dflash", "draft-dflash"),
            ("mtp", "draft-mtp"),
            ("ngram:n=3", "ngram-simple"),
            ("ngram-map-k:n=3", "ngram-map-k"),
            ("ngram-map-k4v:n=3", "ngram-map-k4v"),
            ("ngram-mod:n=16", "ngram-mod"),
            ("ngram-cache", "ngram-cache"),
            ("ngram:n=3+a/b", "ngram-simple,draft-simple"),
            ("ngram-mod:n=16+eagle3", "ngram-mod,draft-eagle3"),
        )
    ),
]


@pytest.mark.parametrize(("engine", "draft", "says"), NAMED)
def test_one_draft_is_each_engines_own_setting(tmp_path, engine, draft, says):
    """What a head is, its checkpoint says; the user names it like any model."""
    for kind, config in HEADS.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps(config))
    named = draft.rpartition("+")[2]
    spec = parse_draft(draft.replace(named, str(tmp_path / named)) if named in HEADS else draft)
    line = command(read_launch(ENGINES / f"{engine}.yaml"), Setting("t", spec, spec.model, 4), 1)
    if isinstance(says, dict):
        assert says.items() <= json.loads(line[line.index("--speculative-config") + 1]).items()
    else:
        assert all(f" {each} " in f"{' '.join(line)} " for each in says)
    assert len([part for part in line if part == "--spec-type"]) == (engine.endswith("llamacpp"))


def test_a_probes_server_rejects_every_draft_and_a_measured_one_never_does(monkeypatch):
    spec = parse_draft("a/b")
    for engine, says in (("xllamacpp", "0,0,0"), ("vllm", '"synthetic_acceptance_length": 1.0'), ("sglang", "1.0")):
        file = read_launch(ENGINES / f"{engine}.yaml")
        probed, measured = (Setting("t", spec, "a/b", 3, synthetic=each) for each in (True, False))
        shown = [
            " ".join(command(file, one, 1)) + str({**environment(file, one, 1)}.get("SGLANG_SIMULATE_ACC_LEN"))
            for one in (probed, measured)
        ]
        assert says in shown[0] and says not in shown[1]
    monkeypatch.setenv("SGLANG_SIMULATE_ACC_LEN", "3")
    with pytest.raises(ConfigError, match=r"SGLANG_SIMULATE_ACC_LEN makes servers accept drafts by chance.*Unset it"):
        environment(file, measured, 1)


def test_a_head_is_asked_in_no_replay_and_that_is_said_before_anything_is_started(tmp_path):
    writer = GGUFWriter(tmp_path / "head.gguf", "eagle3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "target.gguf").touch()
    config = RunConfig(target=str(tmp_path / "target.gguf"), draft=(str(tmp_path / "head.gguf"),), engine="xllamacpp")
    specs = {draft: parse_draft(draft) for draft in config.draft}
    Starting(config, specs, (2,), 1)
    with pytest.raises(ConfigError, match=r"A head \(eagle3\) cannot be asked alone.*without --costs"):
        Starting(config, specs, (), 1)
