"""Whole runs with a head, as a user starts them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_cli import call
from test_run import FakeObserver, config_for
from tiny import save_with_byte_tokenizer
from tiny_heads import markov_llama, save_head

from specbench.acceptance.positions import read_positions
from specbench.analysis.summarise import summarise
from specbench.run.session import run
from specbench.store import read_run


@pytest.fixture(scope="module")
def pair(lab, tmp_path_factory):
    """The lab's prompts with a target that a head can follow, and that head."""
    folder, target = tmp_path_factory.mktemp("heads"), markov_llama(context=0.06, vocab_size=257)
    head = save_head(folder / "head", target, 0.05)
    return {"target": str(save_with_byte_tokenizer(target, folder / "target")), "draft": [str(head)]}


@pytest.fixture(scope="module")
def stored(lab, pair, tmp_path_factory):
    config = config_for(lab, tmp_path_factory.mktemp("runs"), limit=6, **pair)
    return read_run(run(config, "sweep", (1, 3), FakeObserver()))


def test_rounds_live_and_replayed_are_equal(stored):
    assert {t.identical for t in stored.trials if t.arm.gamma and not t.warmup} == {True}
    (draft,) = summarise(stored).drafts
    for row in draft.gammas:
        assert row.replay_rounds == row.rounds
        assert 0 < row.accepted < row.drafted
        assert row.predicted_speedup > 0


def test_what_it_is_and_what_it_costs_are_on_record(stored, pair):
    (facts,) = stored.run.drafts.values()
    assert (facts.head, facts.layer_ids, facts.reader) == ("eagle3", (1, 2, 3), pair["draft"][0])
    assert facts.revision.startswith("content:")
    points = stored.run.probe
    mine = {(p.phase, p.tokens) for p in points if p.model is not None and p.context}
    assert mine == {
        *(("read", n) for n in range(1, 5)),
        *(("states", n) for n in range(1, 5)),
        ("step", 1),
        ("draft", 1),
        ("draft", 3),
    }


@pytest.mark.full
def test_replay_only_finds_the_same_acceptance(lab, pair, stored, tmp_path):
    folder = run(config_for(lab, tmp_path, limit=6, **pair), "sweep", (1, 3), FakeObserver(), replay_only=True)
    live = {text.prompt_id: text for text in read_positions(stored.folder)}
    texts = read_positions(folder)
    assert {text.prompt_id for text in texts} == set(live)
    for text in texts:
        np.testing.assert_array_equal(text.accept, live[text.prompt_id].accept)


def test_replay_answers_other_gammas_and_finds_the_best_cut_off(stored):
    found = call("replay", str(stored.folder), "--gamma", "1..8", "--json")
    assert found.exit_code == 0, found.output
    (draft,) = json.loads(found.stdout)["drafts"]
    taus = [row["tokens_per_round"] for row in draft["gammas"]]
    assert taus == sorted(taus)
    assert len(taus) == 8
    best = call("replay", str(stored.folder), "--gamma", "1..3", "--best", "--json")
    assert json.loads(best.stdout)["drafts"][0]["best"]["gamma"] in (1, 2, 3)
    beyond = call("replay", str(stored.folder), "--gamma", "9")
    assert beyond.exit_code == 2
    assert "was scored up to gamma 8 alone" in beyond.stderr


@pytest.mark.full
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_look_up_goes_first(lab, pair, tmp_path, temperature):
    draft = [f"ngram:n=2+{pair['draft'][0]}"]
    config = config_for(lab, tmp_path, limit=2, target=pair["target"], draft=draft, temperature=temperature)
    summary = summarise(read_run(run(config, "sweep", (2,), FakeObserver())))
    assert summary.drafts[0].gammas[0].replay_tokens_per_round > 1
    assert "replay-disagrees" not in [caution.code for caution in summary.warnings]


def test_another_targets_head_is_one_line(lab, pair, tmp_path):
    """Before weights are read: the target has none."""
    found = call("sweep", *lab.args("--out", str(tmp_path), draft=pair["draft"][0]))
    assert found.exit_code == 2
    assert "reads the state before layer 2" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.full
def test_batches(lab, pair, tmp_path):
    config = config_for(lab, tmp_path, limit=4, batch_size=2, probe_batch_sizes="1,2", **pair)
    stored = read_run(run(config, "sweep", (2,), FakeObserver()))
    assert {t.identical for t in stored.trials if t.arm.gamma and not t.warmup} == {True}
    (row,) = summarise(stored).drafts[0].gammas
    assert row.replay_rounds == row.rounds
    assert row.predicted_speedup > 0
    mine = {p.phase for p in stored.run.probe if p.model is not None and p.batch == 2 and p.context}
    assert mine == {"read", "step", "states"}


def test_its_cost_is_in_the_summary_and_beside_the_table(stored):
    (draft,) = summarise(stored).drafts
    points = stored.run.probe
    firsts = [p.median_s for p in points if (p.phase, p.tokens) == ("read", 1) and p.model and p.context]
    assert min(firsts) <= draft.head.first_s <= max(firsts)
    assert draft.head.step_s > 0
    shown = call("show", str(stored.folder))
    assert "keeping the states that the head reads" in " ".join(shown.stdout.split())


@pytest.mark.full
def test_engines_are_told_of_a_head(stored, pair, tmp_path):
    brief = call("brief", str(stored.folder), "--to", str(tmp_path))
    assert brief.exit_code in (0, 3, 4), brief.output
    words = (tmp_path / "brief.md").read_text()
    assert "assistant_model" not in words
    checked = call("check", str(stored.folder))
    assert "drives no EAGLE-3 head" in " ".join(checked.output.split())


@pytest.mark.full
def test_a_probe_times_a_head(lab, pair, tmp_path):
    options = ["--out", tmp_path, "--device", "cpu", "--gamma", "1,3", "--context", "40", "--batch-size", "1"]
    found = call("probe", "--target", pair["target"], "--draft", pair["draft"][0], *options, "--json")
    assert found.exit_code == 0, found.output
    target, head = json.loads(found.stdout)["models"]
    assert head["model"] == pair["draft"][0]
    assert [step["batch"] for step in head["steps"]] == [1]
    assert {phase["gamma"] for phase in head["phases"]} == {1, 3}
    assert head["step_bytes"] == head["weight_bytes"] < target["step_bytes"]


def test_a_head_is_counted_before_anything_is_loaded(pair):
    from specbench.models.heads import find_head
    from specbench.models.shapes import head_size

    size = head_size(find_head(pair["draft"][0]), "float32")
    assert size.weight_bytes > 4 * 257 * 16
    assert (size.states, size.max_context) == (3 * 16, None)


@pytest.mark.full
def test_the_doctor_examines_a_head(lab, tmp_path):
    model = markov_llama(context=0.01, vocab_size=257)
    head, target = save_head(tmp_path / "head", model, 0.02), save_with_byte_tokenizer(model, tmp_path / "target")
    options = ["--dtype", "bfloat16", "--temperature", "0.7", "--limit", "8", "--max-new-tokens", "16", "--json"]
    found = call("doctor", *lab.args(*options, draft=head), "--target", target)
    findings = {one["code"]: one for one in json.loads(found.stdout)["findings"]}
    assert {"head-agreement", "head-depth", "head-config", "loop-replay", "draft-sampling"} <= findings.keys()
    assert [one for one in findings.values() if one["severity"] == "broken"] == []
    assert "float32" in findings["loop-replay"]["message"]
    greedily = call("doctor", *lab.args(*options, draft=f"{head},sample=greedy"), "--target", target)
    findings = {one["code"]: one for one in json.loads(greedily.stdout)["findings"]}
    assert "one-hot" in findings["draft-sampling"]["message"]
