"""Targets that remember otherwise: layers with states, an index or a compressor, tiny and random. Under the loop their
texts are transformers' own, what transformers cannot read in pieces is refused, and what a rejection costs is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import full
from families.recipes import F, L, model, near, theirs
from tiny import GREEDY, lean, run, save_with_byte_tokenizer, tiny_llama
from typer.testing import CliRunner

from specbench.acceptance.replay import Expected, as_text, replay
from specbench.acceptance.score import score
from specbench.backends.local import cache, reference
from specbench.backends.local.batch import generate_batch, ignores_padding
from specbench.backends.local.cache import Snapshots, StateLayer
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.probing import Prober
from specbench.backends.local.ragged import RaggedModel
from specbench.backends.local.reference import require_rollback
from specbench.cli import app
from specbench.cost.model import RoundCosts, predicted_rounds, round_costs
from specbench.cost.plan import ProbePlan
from specbench.drafters.model import ModelDrafter
from specbench.drafters.skip import SkipDrafter, first_layers
from specbench.errors import ConfigError, ModelError
from specbench.models import LoadedModel
from specbench.models.family import shares_layers
from specbench.models.memory import cache_bytes, cache_bytes_per_token

PROMPT = [5, 9, 33, 2, 41, 17, 8, 8, 3]


def loaded(made: Any) -> LoadedModel:
    return LoadedModel("m", made, None, None, 0, 0, None)


@pytest.mark.parametrize("family", [*("mamba", "jamba"), *full("falcon_mamba", "recurrent_gemma")])
def test_what_transformers_reads_wrongly_in_pieces_is_refused_with_its_kind(family: str) -> None:
    with pytest.raises(
        ModelError, match=rf"^m \({family}\) cannot be rolled back: .* {L} .*several tokens after others"
    ):
        require_rollback(loaded(model(family)))


def test_a_floor_of_time_steps_that_single_tokens_do_not_have_is_found() -> None:
    with pytest.raises(ModelError, match="one token after another"):
        require_rollback(loaded(model("nemotron_h:floor")))  # as it is by default


def test_a_model_of_keys_and_values_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_read", None)
    llama = tiny_llama(64, seed=1)
    assert not require_rollback(loaded(llama))
    assert CachedModel(llama, 8).cache.states == []


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", *full("mamba2")])
def test_planted_a_snapshot_that_is_written_over_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = model(family)
    honest = cache._copied

    def shallow(value: Any) -> Any:
        return value if isinstance(value, torch.Tensor) else honest(value)

    monkeypatch.setattr(cache, "_copied", shallow)
    with pytest.raises(ModelError, match="taken back"):
        require_rollback(loaded(target))


def test_planted_kept_tokens_that_are_not_read_again_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapshots, "owed", lambda self: None)
    with pytest.raises(ModelError, match="taken back"):
        require_rollback(loaded(model("qwen3_next")))


def test_planted_a_convolution_cut_by_one_too_few_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = StateLayer.cut
    monkeypatch.setattr(StateLayer, "cut", lambda self, tokens: honest(self, tokens - 1) if tokens > 1 else None)
    with pytest.raises(ModelError, match=r"kind conv .*taken back"):
        require_rollback(loaded(model("lfm2")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_bits_are_verified_in_float32_and_left_as_they_were(dtype: torch.dtype) -> None:
    target = model("mamba2").to(dtype)
    before = {name: (value.dtype, value.clone()) for name, value in target.state_dict().items()}
    assert require_rollback(loaded(target))
    after = target.state_dict()
    assert all(after[name].dtype == kind and torch.equal(after[name], value) for name, (kind, value) in before.items())
    with pytest.raises(ModelError, match="cannot be rolled back"):
        require_rollback(loaded(model("mamba").to(dtype)))


def _passes(monkeypatch: pytest.MonkeyPatch, target: Any, **options: Any) -> tuple[list[int], int, Any]:
    """Widths of the target's passes over a text, how often its states were copied, and what came of it."""
    reader, widths, taken = CachedModel(target, 128), [], []
    honest, take = reader._read, Snapshots._take
    monkeypatch.setattr(reader, "_read", lambda ids, keep: widths.append(ids.shape[1]) or honest(ids, keep))
    monkeypatch.setattr(Snapshots, "_take", lambda self: taken.append(1) or take(self))
    live = run(reader, options.pop("drafter", None), PROMPT, max_new_tokens=24, **options)
    return widths, len(taken), live


def test_the_target_alone_pays_for_one_snapshot_in_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    widths, taken, _ = _passes(monkeypatch, model("qwen3_next"))
    assert (widths, taken) == ([len(PROMPT), *[1] * 23], 1)


def test_how_much_was_read_is_not_counted_anew_at_every_token() -> None:
    """The target alone would pay for it, more with every token."""

    class Unwalked(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError

    reader = CachedModel(model("qwen3_next"), 64)
    assert reader._snapshots is not None
    reader._snapshots._since = Unwalked()
    with torch.inference_mode():
        for token in PROMPT:
            reader.forward([token], keep=1)
    assert reader._snapshots.length == len(PROMPT)


@pytest.mark.parametrize(("family", "again"), [("qwen3_next", True), ("lfm2", False), ("deepseek_v32", False)])
def test_a_rejection_costs_a_pass_over_what_is_kept_only_where_states_recur(
    family: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = model(family)
    ngram = ModelDrafter(CachedModel(near(target), 128), vocab_size=64, sampling=GREEDY, eos=())
    widths, _, live = _passes(monkeypatch, target, drafter=ngram, gamma=3)
    expected_widths = [len(PROMPT)]
    for number, each in enumerate(live.rounds):
        expected_widths.append(each.drafted + 1)
        if again and each.accepted < each.drafted and number < len(live.rounds) - 1:
            expected_widths.append(each.accepted + 1)
    assert widths == expected_widths
    assert any(each.accepted < each.drafted for each in live.rounds[:-1])


def test_rewinding_anywhere_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in a row, into the prompt, and to the start."""
    target, ids = model("granitemoehybrid"), list(range(3, 43))
    reader = CachedModel(target, 64)
    with torch.inference_mode():
        whole = target(torch.tensor([ids])).logits[0]
        reader.forward(ids[:20], keep=1)
        reader.forward([*ids[20:24], 1, 1], keep=1)
        reader.rewind(24)
        reader.rewind(22)
        assert torch.allclose(reader.forward(ids[22:30], keep=8), whole[22:30], atol=1e-4)
        reader.rewind(11)
        assert torch.allclose(reader.forward(ids[11:14], keep=3), whole[11:14], atol=1e-4)
        reader.rewind(0)
        assert torch.allclose(reader.forward(ids[:9], keep=9), whole[:9], atol=1e-4)


def test_batches_and_first_layers_are_refused_by_the_kind_of_layer() -> None:
    made = model("qwen3_next")
    with pytest.raises(ModelError, match=rf"one length for all texts side by side: {L}\. Use --batch-size 1"):
        RaggedModel(made, 32, 2)
    assert not shares_layers(model("deepseek_v4").config)


# -- the target's own first layers as draft ---------------------------------------------------------------------------


def _skipping(target: Any) -> tuple[CachedModel, SkipDrafter]:
    reader = CachedModel(target, 128)
    first = reader.sharing(first_layers(target, len(target.model.layers) - 1))
    return reader, SkipDrafter(first, vocab_size=64, sampling=GREEDY, eos=())


def _deep(family: str) -> Any:
    """With one more layer at the end, so that a draft of all but that one has both kinds."""
    kinds = {"qwen3_next": [L, F, L], "falcon_h1": None, "lfm2": ["conv", F, "conv"]}[family]
    return model(family, num_hidden_layers=3, **({"layer_types": kinds} if kinds else {}))


@pytest.mark.parametrize("family", ["qwen3_next", *full("falcon_h1", "lfm2")])
def test_first_layers_with_states_draft_and_put_them_back(family: str) -> None:
    target = _deep(family)
    reader, drafter = _skipping(target)
    live = run(reader, drafter, PROMPT, gamma=3, max_new_tokens=32)
    assert live.tokens == theirs(target, PROMPT, 32)
    alone = CachedModel(first_layers(target, 2), 128)
    scores = score(None, alone, PROMPT, live.tokens, vocab_size=64, sampling=GREEDY, eos=())
    again = replay([as_text(scores, prompt_id="p", category=None, draft="d", repeat=0, limit=32)], 3)
    accepted = sum(each.accepted for each in live.rounds)
    assert (again.rounds.sum(), again.accepted.sum()) == (len(live.rounds), accepted)
    assert accepted < sum(each.drafted for each in live.rounds)


def test_first_layers_that_keep_states_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^The target's layers before its layer 2 keep states alone"):
        first_layers(_deep("qwen3_next"), 1)


@pytest.mark.parametrize("lost", ["begin", "_settle"])
def test_planted_first_layers_that_start_from_other_states_are_seen(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From those of an earlier round, or without what is owed."""
    target = _deep("qwen3_next")
    expected = theirs(target, PROMPT, 32)
    reader, drafter = _skipping(target)
    if lost == "begin":
        monkeypatch.setattr(Snapshots, "begin", lambda self, at: setattr(self, "at", at))
    else:
        monkeypatch.setattr(reader, "_settle", lambda: None)
    assert run(reader, drafter, PROMPT, gamma=3, max_new_tokens=32).tokens != expected


# -- texts side by side -----------------------------------------------------------------------------------------------

PROMPTS = [PROMPT, PROMPT[:4], [*PROMPT, 7, 7]]


@pytest.mark.parametrize("family", ["falcon_h1", *full("qwen3_next", "lfm2", "mamba2", "nemotron_h")])
def test_texts_are_written_together_where_padding_does_not_enter_a_state(family: str) -> None:
    made = model(family)
    assert ignores_padding(made)
    together = generate_batch(made, PROMPTS, sampling=GREEDY, eos=(), max_new_tokens=12, seed=0)
    assert together == [theirs(made, prompt, 12) for prompt in PROMPTS]


def test_planted_padding_that_enters_a_state_is_seen_and_texts_are_written_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = model("falcon_h1")
    expected = [theirs(made, prompt, 12) for prompt in PROMPTS]
    monkeypatch.setattr(
        "transformers.models.falcon_h1.modeling_falcon_h1.create_recurrent_attention_mask", lambda **_: None
    )
    assert not ignores_padding(made)
    asked: dict[str, Any] = {"sampling": GREEDY, "eos": (), "max_new_tokens": 12, "seed": 0}
    assert generate_batch(made, PROMPTS, **asked) != expected
    assert generate_batch(made, PROMPTS, **asked, together=False) == expected


# -- memory -----------------------------------------------------------------------------------------------------------


def test_states_are_counted_once_for_a_sequence_however_long() -> None:
    text = model("qwen3_next").config
    one, longer, more = (cache_bytes(text, *size, 4) for size in ((16, 1), (32, 1), (32, 3)))
    keys, states = 2 * 2 * 8 * 4, (2 * 2 * 8 + 4 * 8) * 4 * 4 + 4 * 8 * 8 * 4
    assert (one, longer, more) == (16 * keys + states, 32 * keys + states, 3 * (32 * keys + states))
    assert cache_bytes_per_token(text, 4) == keys


# -- what it costs ----------------------------------------------------------------------------------------------------

PLAN = ProbePlan((24,), (24,), (16,), (), (1, 3), (1,), passes=3, prefill_passes=1)


def _probed(made: Any, as_run: Callable[[Any], Any] = lambda made: made) -> set[tuple[str | None, int]]:
    models = {None: as_run(made), "d": as_run(near(made))}
    costs = Prober(models, PLAN, PROMPT, device="cpu", seed=0, sampling=GREEDY).run()
    again = [point for point in costs.points if point.phase == "reread"]
    found = round_costs(costs.points, "d", 24, 0.0)
    assert found is not None and len(found.reread_s) == 3 * bool(again) and len(found.draft_reread_s) == 2 * bool(again)
    return {(point.model, point.tokens) for point in again}


def test_a_probe_times_what_is_read_again() -> None:
    assert _probed(model("qwen3_next")) == {(None, 1), (None, 2), (None, 3), ("d", 1), ("d", 2)}
    assert _probed(model("lfm2")) == _probed(tiny_llama(64, seed=1), lean) == set()


def test_rounds_that_reject_are_predicted_with_what_is_read_again() -> None:
    """Of 10 rounds of 3 drafts: 4 reject the first, 1 the second, 2 the third, 3 none."""
    none, one = np.zeros(1), np.ones(1)
    found = Expected(
        gamma=3,
        rounds=10 * one,
        accepted=14 * one,
        rejections=7 * one,
        reached=np.array([[10.0, 10.0, 10.0]]),
        survived=np.array([[6.0, 5.0, 3.0]]),
        drafted_low=none,
        catch_ups=none,
        copied=none,
        cut_offs=none,
        started=none,
    )
    plain = RoundCosts((1.0, 1.1, 1.2, 1.3), 0.2, 0.3, 0.1)
    again = replace(plain, reread_s=(1.0, 1.5, 2.0), draft_reread_s=(0.2, 0.4))
    without, spent = predicted_rounds(found, plain), predicted_rounds(found, again)
    assert spent.verify_s - without.verify_s == pytest.approx(4 * 1.0 + 1 * 1.5 + 2 * 2.0)
    assert spent.draft_s - without.draft_s == pytest.approx(4 * 0.2 + 1 * 0.4)
    assert spent.other_s == without.other_s


def _sweep(lab: Any, tmp_path: Any, *more: str) -> tuple[Any, dict[str, Any]]:
    target = model("qwen3_next")
    target.resize_token_embeddings(257)
    for name, made in (("t", target), ("d", near(target, 0.02))):
        save_with_byte_tokenizer(made, tmp_path / name)
    flags = ["--target", str(tmp_path / "t"), "--draft", str(tmp_path / "d"), "--workload", str(lab.workload)]
    flags += [
        "--dtype",
        "float32",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--config",
        str(lab.workload.parent / "lab.yaml"),
    ]
    found = CliRunner().invoke(app, ["sweep", *flags, "--out", str(tmp_path / "out"), "--json", *more])
    assert found.exit_code == 0, found.output
    (folder,) = (tmp_path / "out").iterdir()
    return json.loads(found.stdout), json.loads((folder / "run.json").read_text())


@pytest.mark.full
def test_a_sweep_of_a_hybrid_is_lossless_and_says_what_a_rejection_costs(lab: Any, tmp_path: Any) -> None:
    summary, record = _sweep(lab, tmp_path, "--gamma", "3")
    (gamma,) = summary["drafts"][0]["gammas"]
    assert gamma["identical_prompts"] == gamma["prompts"] > 0
    assert gamma["rounds"] == gamma["replay_rounds"]
    assert "rereads" in [each["code"] for each in record["warnings"]]


def test_a_hybrid_is_replayed_without_the_wall_clock(lab: Any, tmp_path: Any) -> None:
    summary, record = _sweep(lab, tmp_path, "--replay-only")
    assert record["reference_check"][0]["near_ties"] == 0
    assert summary["drafts"]


def test_planted_a_model_that_cannot_be_rolled_back_is_one_line(lab: Any, tmp_path: Any) -> None:
    made = model("mamba")
    made.resize_token_embeddings(257)
    save_with_byte_tokenizer(made, tmp_path / "t")
    flags = [
        "--target",
        str(tmp_path / "t"),
        "--draft",
        "ngram:n=2",
        "--workload",
        str(lab.workload),
        "--device",
        "cpu",
    ]
    found = CliRunner().invoke(app, ["sweep", *flags, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2
    assert f"layers of the kind {L}" in found.stderr and "Traceback" not in found.output
