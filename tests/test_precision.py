"""The number format: as asked, else the weights' own, else float32 on a CPU that is slow in it; a run keeps its own."""

from __future__ import annotations

import itertools
import json

import pytest
from safetensors.torch import save_file
from tiny import save_with_byte_tokenizer, tiny_llama
from typer.testing import CliRunner

from specbench.analysis.summarise import summarise
from specbench.backends.local import precision
from specbench.backends.local.precision import times_float32, with_precision
from specbench.cli import app
from specbench.config import RunConfig
from specbench.models.shapes import named_format, own_format, shape_format
from specbench.report.brief import render_brief
from specbench.store import read_run


@pytest.fixture
def slow(monkeypatch):
    """Sets how many times as slowly as float32 this CPU multiplies in anything else."""

    def set_to(times):
        monkeypatch.setattr(precision, "times_float32", lambda dtype, _: 1.0 if dtype == "float32" else times)

    set_to(0.5)
    return set_to


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A target whose weights are in bfloat16."""
    import torch

    folder = tmp_path_factory.mktemp("bf16") / "target"
    save_with_byte_tokenizer(tiny_llama(257, seed=1).to(torch.bfloat16), folder)
    return folder


@pytest.mark.parametrize(("times", "measured"), [(8.0, 8.0), (0.5, 0.5)])
def test_how_slowly_a_cpu_multiplies(times, measured):
    seconds = itertools.accumulate(itertools.cycle([0.0, 1.0, 0.0, times]))
    assert times_float32("bfloat16", "cpu", lambda: next(seconds)) == pytest.approx(measured)
    assert times_float32("float32", "cpu") == times_float32("bfloat16", "cuda:0") == 1.0


# asked, times, the session before -> taken, what is said
CASES = [
    ("auto", 0.5, None, "bfloat16", []),
    ("auto", 8.0, None, "float32", ["other-precision"]),
    ("auto", 0.5, "float32", "float32", ["other-precision"]),
    ("auto", 8.0, "bfloat16", "bfloat16", ["slow-precision"]),
    ("auto", 8.0, "float32", "float32", ["other-precision"]),
    ("bfloat16", 8.0, None, "bfloat16", ["slow-precision"]),
    ("float16", 0.5, None, "float16", []),
    ("float32", 8.0, None, "float32", []),
]


@pytest.mark.parametrize(("asked", "times", "was", "taken", "codes"), CASES)
def test_what_is_taken_and_said(slow, saved, asked, times, was, taken, codes):
    slow(times)
    config = RunConfig(target=str(saved), draft=("ngram:n=3",), dtype=asked, device="cpu")
    found, said = with_precision(config, was)
    assert found.dtype == taken and [one.code for one in said] == codes
    assert with_precision(found)[0].dtype == taken
    if codes == ["other-precision"] and times > 1:
        assert (
            "measured in float32, not in the weights' own bfloat16, in which this CPU multiplies 8 times as slowly"
            in (said[0].message)
        )


def test_the_weights_own_format(saved, lab, tmp_path):
    assert own_format(str(saved)) == "bfloat16" and own_format(str(lab.target)) == "float32"
    assert own_format("demo:target") == "bfloat16"
    assert own_format(str(tmp_path / "no")) is None
    assert shape_format(saved) == "bfloat16"
    config = json.loads((saved / "config.json").read_text())
    assert named_format({"dtype": "float8_e4m3fn", "text_config": {"torch_dtype": "torch.float16"}}) == "float16"
    # A configuration that names none: that of most weights.
    bare = tmp_path / "bare"
    save_with_byte_tokenizer(tiny_llama(257, seed=1), bare)
    (bare / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    import torch

    for dtype in (torch.float16, torch.float32):
        save_file({"a": torch.ones(9, dtype=dtype), "b": torch.ones(2)}, bare / "model.safetensors")
        assert own_format(str(bare)) == str(dtype).removeprefix("torch.")
    assert shape_format(bare) == "float32"


def test_a_run_says_its_precision_and_keeps_it(slow, saved, lab, tmp_path, monkeypatch):
    slow(8.0)
    out = tmp_path / "runs"
    words = ["--target", str(saved), "--draft", "ngram:n=2", "--workload", str(lab.workload), "--limit", "2"]
    words += ["--max-new-tokens", "8", "--threads", "1", "--device", "cpu", "--gamma", "2", "--probe-batch-sizes", "1"]
    command = ["sweep", *words, "--out", str(out)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0 and "in float32" in first.output, first.output
    (folder,) = out.iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["dtype"] == "auto" and record["provenance"]["precision"] == "float32"
    assert record["target"]["weight_bytes"] == 4 * record["target"]["parameters"]
    assert "other-precision" in [one["code"] for one in record["warnings"]]
    stored = read_run(folder)
    page = render_brief(summarise(stored))
    assert "not in the weights' own bfloat16" in page and "; float32" in page
    # Another session, in which the CPU seems fast: it goes on in the run's own precision.
    (folder / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    slow(0.5)
    again = CliRunner().invoke(app, [*command, "--resume"])
    assert again.exit_code == 0 and "in float32" in again.output, again.output
    assert [one.name for one in out.iterdir()] == [folder.name]
    assert read_run(folder).run.precision == "float32"
    # An explicit one wins, and is another run.
    given = CliRunner().invoke(app, [*command, "--dtype", "bfloat16"])
    assert given.exit_code == 0 and "in bfloat16" in " ".join(given.output.split()), given.output
    assert len(list(out.iterdir())) == 2


def test_the_memory_asked_for_is_that_of_the_format_taken(slow, saved, lab, monkeypatch):
    from specbench.backends.local import backend

    slow(8.0)
    monkeypatch.setattr(backend, "available_bytes", lambda _: 1000)
    words = [
        "sweep",
        "--target",
        str(saved),
        "--draft",
        "ngram:n=2",
        "--workload",
        str(lab.workload),
        "--device",
        "cpu",
    ]
    found = CliRunner().invoke(app, words)
    assert found.exit_code != 0 and "weights in float32" in found.output and "--dtype bfloat16" in found.output
