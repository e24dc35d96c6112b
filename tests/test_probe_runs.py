"""`specbench probe` as a user has it: shapes from a configuration, its folder, its tables, and `--costs`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from answer_logs import lines
from conftest import full
from test_cli import call
from test_run import FakeObserver, config_for

from specbench.acceptance.positions import read_positions
from specbench.acceptance.replay import replay
from specbench.analysis.replayed import middle_costs
from specbench.analysis.summarise import summarise
from specbench.cost import probe as cost_probe
from specbench.cost.model import predicted_speedup
from specbench.errors import ModelError, StoreError
from specbench.models import shapes
from specbench.run.session import run
from specbench.store import find_runs, read_run

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to connect fails."""
    import socket

    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def quick(monkeypatch):
    """Bandwidth of a megabyte: what is measured here is not looked at."""
    monkeypatch.setattr(cost_probe, "LARGEST_BYTES", 1 << 20)


def shape_file(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return folder / "config.json"


def test_a_shape_is_the_model_that_its_configuration_describes(tmp_path, offline):
    loaded = shapes.load_shape(shape_file(tmp_path / "m"), dtype="bfloat16", device="cpu", context=64)
    assert {w.dtype for w in loaded.model.parameters()} == {torch.bfloat16}
    assert {str(t.device) for t in (*loaded.model.parameters(), *loaded.model.buffers())} == {"cpu"}
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    own = type(loaded.model)(loaded.model.config)
    assert loaded.parameters == sum(weight.numel() for weight in own.parameters())
    torch.testing.assert_close(loaded.model.model.rotary_emb.inv_freq, own.model.rotary_emb.inv_freq)
    logits = loaded.model(torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all() and logits.float().std() > 0


@pytest.mark.full
def test_a_configuration_alone_is_enough(tmp_path, offline, quick):
    target = shape_file(tmp_path / "t")
    draft = shape_file(tmp_path / "d", num_hidden_layers=1, model_type="mixtral", num_local_experts=4)
    args = ("--device", "cpu", "--threads", 1, "--gamma", "1,2", "--context", "16,32", "--passes", 5)
    shapes_ = ("--target-config", target, "--draft-config", draft.parent, "--batch-size", "1,3")
    result = call("probe", *shapes_, *args, "--out", tmp_path / "runs", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert [(m["role"], m["model"]) for m in found["models"]] == [("target", str(target)), ("draft", str(draft.parent))]
    assert {(s["batch"], s["context"]) for s in found["models"][1]["steps"]} == {
        (b, c) for b in (1, 3) for c in (16, 32)
    }
    assert {w["code"] for w in found["warnings"]} - {"busy-machine"} == {"random-weights", "random-experts"}
    for row in found["models"][0]["steps"]:
        assert row["step_low_s"] <= row["step_s"] <= row["step_high_s"]
        assert row["tokens_per_s"] == pytest.approx(row["batch"] / row["step_s"])
    (folder,) = find_runs(tmp_path / "runs")
    assert read_run(folder).run.command == "probe"
    # a probe is no run
    result = call("brief", "--out", tmp_path / "runs")
    assert (result.exit_code, "No run yet" in result.stderr) == (2, True)
    for command in ("brief", "replay"):
        result = call(command, folder)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


@pytest.mark.full
def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path, monkeypatch, quick):
    huge = shape_file(
        tmp_path / "m", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, vocab_size=128256,
        num_attention_heads=64, num_key_value_heads=8,
    )  # fmt: skip
    monkeypatch.setattr(shapes, "available_bytes", lambda _: 22 * 10**9)
    with pytest.raises(
        ModelError, match=r"needs 139 GB, 22 GB are free \(weights 139 GB, KV cache of 64 tokens 0.02 GB"
    ):
        shapes.load_shape(huge, dtype="bfloat16", device="cpu", context=64)
    flags = ("--dtype", "bfloat16", "--device", "cpu", "--threads", 1)
    result = call("probe", "--target-config", huge, *flags, "--out", tmp_path / "runs")
    assert result.exit_code == 2
    assert "needs 139 GB, 22 GB are free" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not valid JSON"), ("{}", "names no model_type"), ('{"model_type": "nope"}', "does not know the kind")],
)
def test_bad_configurations(text, says, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=says):
        shapes.load_shape(tmp_path, dtype="float32", device="cpu", context=8)
    with pytest.raises(ModelError, match="there is no model configuration"):
        shapes.load_shape(tmp_path / "gone", dtype="float32", device="cpu", context=8)


@pytest.fixture(scope="module")
def probed_lab(lab, tmp_path_factory):
    out = tmp_path_factory.mktemp("probes")
    before, cost_probe.LARGEST_BYTES = cost_probe.LARGEST_BYTES, 1 << 20
    args = [*lab.args("--out", out, "--passes", 5, "--batch-size", "1,2", "--gamma", "1..3", "--name", "p")]
    at = args.index("--workload")
    result = call("probe", *args[:at], *args[at + 2 :])
    cost_probe.LARGEST_BYTES = before
    assert result.exit_code == 0, result.output
    return next(iter(find_runs(out))), result


def test_the_tables_say_what_was_timed(probed_lab, lab):
    _, result = probed_lab
    for words in ("one step, ms", "c = t_draft / t_dec", "v(n)", "draft phase", "prefill", "Memory: ", "Run folder"):
        assert words in result.stdout
    names = (str(lab.target.parent), "Run folder")
    assert max(len(line) for line in result.stdout.splitlines() if not any(name in line for name in names)) <= 80


@pytest.mark.full
def test_a_run_with_stored_costs_predicts_the_same(probed_lab, lab, tmp_path):
    folder, _ = probed_lab
    stored = read_run(run(config_for(lab, tmp_path), "sweep", (1, 3), FakeObserver(), costs=folder))
    assert stored.run.probe_from == str(folder)
    assert stored.run.probe == read_run(folder).run.probe
    view_costs = read_run(folder).run.probe
    assert {p.batch for p in view_costs} == {1, 2}
    first = summarise(stored).drafts[0].gammas
    twin = replace(stored, run=replace(stored.run, probe=view_costs))
    assert [g.predicted_speedup for g in summarise(twin).drafts[0].gammas] == [g.predicted_speedup for g in first]
    assert all(g.predicted_speedup for g in first)
    assert replay(read_positions(stored.folder), 1).rounds.sum() > 0


@pytest.mark.full
def test_stored_costs_of_another_setting_are_refused(probed_lab, lab, tmp_path):
    folder, _ = probed_lab
    copy = tmp_path / "copy"

    def refused(change, says, **flags):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        record = json.loads((copy / "run.json").read_text())
        change(record)
        (copy / "run.json").write_text(json.dumps(record))
        with pytest.raises(StoreError, match=says):
            run(config_for(lab, tmp_path / "runs", **flags), "sweep", (1, 3), FakeObserver(), costs=copy)
        assert not (tmp_path / "runs").exists()

    refused(lambda r: r["provenance"].update(threads=7), "made with threads 7, not 1")
    refused(lambda r: r["provenance"]["versions"].update(torch="1.0"), r"made with torch 1\.0, not ")
    refused(lambda r: r["provenance"]["hardware"].update(line="Other", cpu="Z80"), r"another machine \(Other\)")
    refused(lambda _: None, r"made with precision float32, not bfloat16 \(", dtype="bfloat16")
    refused(lambda _: None, "no draft ", draft=[str(lab.far)])
    refused(lambda _: None, "another target", target=str(lab.far))
    refused(lambda r: r.update(command="sweep"), "This folder holds no probe")
    narrow = [2, 3, 4]
    refused(
        lambda r: r.update(probe=[p for p in r["probe"] if p["tokens"] not in narrow or p["model"]]),
        r"did not time the target over 2 tokens at batch 1.*--gamma 1\.\.3",
    )


@pytest.mark.full
def test_a_run_probes_larger_batches_at_the_middle_length(lab, tmp_path):
    config = config_for(lab, tmp_path, limit=2, probe_batch_sizes="2")
    stored = read_run(run(config, "sweep", (1, 2), FakeObserver()))
    points = stored.run.probe
    assert stored.run.probe_from is None
    assert {p.batch for p in points} == {1, 2}
    assert len({p.context for p in points if p.batch == 2}) == 1
    assert {(p.model is None, p.tokens) for p in points if p.phase == "draft"} == {(False, 1), (False, 2)}
    prefills = {p.tokens for p in points if not p.context}
    assert prefills <= {t.prompt_tokens for t in stored.trials}


@pytest.mark.parametrize("times", [1, *full(4)])
def test_an_interrupted_probe_leaves_nothing_behind(lab, tmp_path, quick, monkeypatch, times):
    left = iter(range(times - 1, -1, -1))
    real = cost_probe.median_interval

    def timed(values):
        if next(left) == 0:
            raise KeyboardInterrupt
        return real(values)

    monkeypatch.setattr(cost_probe, "median_interval", timed)
    args = [*lab.args("--out", tmp_path, "--passes", 5, "--gamma", "1..2", "--quiet")]
    at = args.index("--workload")
    result = call("probe", *args[:at], *args[at + 2 :])
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith(
        "specbench: interrupted. Run the same command again: a run continues where it stopped.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_recorded_answers_are_priced_by_a_real_probe(probed_lab, lab, tmp_path):
    """What the sweep says, the brief and the replay say; the best gamma is that of the speedups by hand."""
    costs, _ = probed_lab
    log, out = tmp_path / "log.jsonl", tmp_path / "runs"
    rows = [{"instruction": f"{n} ab{n % 5}", "output": f"{n % 7} is {n % 7} is {n % 5} or so " * 2} for n in range(16)]
    log.write_text(lines(*rows))
    words = ["sweep", "--answers", "recorded", "--workload", log, "--target", "none", "--tokenizer", lab.target]
    words += ["--draft", lab.near, "--draft", "ngram:n=2", "--dtype", "float32", "--threads", 1, "--out", out]
    said = call(*words, "--gamma", "1..5", "--costs", costs, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["costs"] == str(costs) and found["verdict"] is None
    (folder,) = find_runs(out)
    stored = read_run(folder)
    assert {(p.model, p.tokens, p.median_s) for p in stored.run.probe} == {
        (p.model, p.tokens, p.median_s) for p in read_run(costs).run.probe
    }
    texts = read_positions(folder)
    for draft, reader in zip(found["drafts"], (str(lab.near), "ngram:n=2"), strict=True):
        mine = [text for text in texts if text.draft == draft["draft"]]
        prices = middle_costs(stored.run.probe, reader)
        assert (prices.draft_s == 0) == (reader == "ngram:n=2")
        decoded = sum(text.tokens - 1 for text in mine)
        by_hand = {gamma: predicted_speedup(replay(mine, gamma, 0.0), decoded, prices) for gamma in (1, 2, 3)}
        rows = {row["gamma"]: row["predicted_speedup"] for row in draft["gammas"]}
        assert [rows[gamma]["value"] for gamma in by_hand] == pytest.approx([*by_hand.values()])
        assert all(rows[gamma]["low"] < rows[gamma]["value"] < rows[gamma]["high"] for gamma in by_hand)
        assert draft["best_gamma"] == max(by_hand, key=by_hand.get)
        assert (rows[4]["value"], rows[5]["value"]) == (None, None)  # the probe ends at gamma 3
        assert (draft["best"] is None) == (reader == "ngram:n=2")
    assert "passes-not-probed" in {warning["code"] for warning in found["warnings"]}
    assert json.loads(call("brief", folder, "--json").stdout) == found
    assert json.loads(call("replay", folder, "--gamma", "1..5", "--costs", costs, "--json").stdout) == found
    page = call("brief", folder).stdout
    assert "predicted speedup" in page and "Best by the costs given: gamma" in page and "by the costs of" in page
    # A draft that the probe did not time would look as if it cost nothing.
    said = call(*words, "--draft", lab.far, "--gamma", "1..3", "--costs", costs, "--fresh")
    assert said.exit_code == 2 and f"did not time {lab.far}" in said.stderr.splitlines()[-1]
    assert find_runs(out) == [folder]
