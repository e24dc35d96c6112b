"""Targets that remember otherwise: layers with states, an index or a compressor, tiny and random. Under the loop their
texts are transformers' own, what transformers cannot read in pieces is refused, and what a rejection costs is known."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import full
from tiny import GREEDY, lean, run, save_with_byte_tokenizer, tiny_llama
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from typer.testing import CliRunner

from specbench.acceptance.replay import Expected, replay
from specbench.acceptance.score import score
from specbench.acceptance.scores import as_text
from specbench.backends.local import memories, snapshots
from specbench.backends.local.batch import NO_PADDING, generate_batch
from specbench.backends.local.cache import StateLayer
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.memories import require_rollback
from specbench.backends.local.prober import Prober
from specbench.backends.local.ragged import RaggedModel
from specbench.backends.local.snapshots import Snapshots
from specbench.cli import app
from specbench.cost.model import RoundCosts, predicted_rounds, round_costs
from specbench.cost.plan import ProbePlan
from specbench.drafters.model import ModelDrafter
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.family import shares_layers
from specbench.models.memory import cache_bytes

L, F = "linear_attention", "full_attention"
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
DELTA = {
    "layer_types": [L, F],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1}
MAMBA |= {"mamba_chunk_size": 16}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
# With few heads of an index the scores of whole texts are 0, and nobody knows which keys it picks.
INDEX = {"index_n_heads": 16, "index_head_dim": 8, "index_topk": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_next": DELTA | EXPERTS,
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | EXPERTS,
    "olmo_hybrid": DELTA,
    "granitemoehybrid": MAMBA
    | {"layer_types": [L, F], "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "nemotron_h": {
        "layers_block_type": [L, "moe", F, "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "time_step_min": 1e-6,  # see the test of its floor
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "lfm2": {"layer_types": ["conv", F]},
    "lfm3": {
        "layer_types": ["conv", F],
        "num_dense_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "bailing_hybrid": LATENT
    | {"layer_types": [L, F], "num_expert_group": 1, "num_local_experts": 4, "head_dim": 8, "num_mtp_layers": 0},
    "lfm2_moe": {
        "layer_types": ["conv", F],
        "num_dense_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "deepseek_v32": LATENT | INDEX,
    "glm_moe_dsa": LATENT | INDEX,
    "axk2": LATENT | INDEX,
    "hy_v4": LATENT | INDEX,
    "deepseek_v4": INDEX
    | {
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
        "compress_rates": {"heavily_compressed_attention": 8, "compressed_sparse_attention": 4},
        "mlp_layer_types": ["moe", "moe"],
        "sliding_window": 8,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "o_lora_rank": 16,
        "o_groups": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "num_nextn_predict_layers": 0,
    },
}
# One of each kind: a recurrent state, states alone, beside keys in a layer, of convolutions, an index, a compressor.
QUICK = ("qwen3_next", "qwen3_5_text", "granitemoehybrid", "falcon_h1", "nemotron_h", "mamba2", "lfm2", "deepseek_v32")
# Of these a rejection costs no pass.
FREE = ("lfm2", "lfm2_moe", "lfm3", "deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4")
# In transformers several tokens after others are read wrongly by these.
WRONG: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8, "expand": 2},
    "falcon_mamba": {"state_size": 8, "expand": 2},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 16},
}
PROMPT = [5, 9, 33, 2, 41, 17, 8, 8, 3]


@torch.no_grad()
def model(family: str) -> Any:
    """Random weights that write varied text."""
    own = (FAMILIES | WRONG)[family]
    known = CONFIG_MAPPING[family]().to_dict()
    asked = CONFIG_MAPPING[family](**{name: value for name, value in SMALL.items() if name in known} | own)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(asked, dtype=torch.float32)
    draw = torch.Generator().manual_seed(1)
    for name, weight in made.named_parameters():
        if weight.dim() >= 2 and "A_log" not in name:
            weight.copy_(torch.randn(weight.shape, generator=draw) * 1.3 / weight.shape[-1] ** 0.5)
        elif not torch.isfinite(weight).all():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    return made.eval().requires_grad_(False)


@torch.no_grad()
def near(made: Any, noise: float = 0.05) -> Any:
    other, draw = copy.deepcopy(made), torch.Generator().manual_seed(2)
    for weight in other.parameters():
        if weight.dim() >= 2:
            weight.add_(torch.randn(weight.shape, generator=draw) * noise * weight.std())
    return other


def loaded(made: Any) -> LoadedModel:
    return LoadedModel("m", made, None, None, 0, 0, None)


def theirs(made: Any, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = made.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=NO_PADDING
    )
    return [int(token) for token in out[0, len(prompt) :]]


@pytest.mark.parametrize("family", [*QUICK, *full(*(name for name in FAMILIES if name not in QUICK))])
def test_a_family_is_lossless_and_replayed_exactly(family: str) -> None:
    target = model(family)
    draft = near(target)
    assert require_rollback(loaded(target)) == (family not in FREE)
    drafter = ModelDrafter(CachedModel(draft, 128), vocab_size=64, sampling=GREEDY, eos=())
    live = run(target, drafter, PROMPT, gamma=3, max_new_tokens=32)
    assert live.tokens == theirs(target, PROMPT, 32) == run(target, None, PROMPT, max_new_tokens=32).tokens
    drafted, accepted = (sum(getattr(r, name) for r in live.rounds) for name in ("drafted", "accepted"))
    assert 0 < accepted < drafted
    found = score(None, CachedModel(draft, 128), PROMPT, live.tokens, vocab_size=64, sampling=GREEDY, eos=())
    text = as_text(found, prompt_id="p", category=None, draft="d", repeat=0, limit=32)
    again = replay([text], 3)
    assert (again.rounds.sum(), again.accepted.sum(), again.drafted.sum()) == (len(live.rounds), accepted, drafted)


@pytest.mark.parametrize("family", [*("mamba", "jamba"), *full("falcon_mamba", "recurrent_gemma")])
def test_what_transformers_reads_wrongly_in_pieces_is_refused_with_its_kind(family: str) -> None:
    with pytest.raises(
        ModelError, match=rf"^m \({family}\) cannot be rolled back: .* {L} .*several tokens after others"
    ):
        require_rollback(loaded(model(family)))


def test_a_floor_of_time_steps_that_single_tokens_do_not_have_is_found() -> None:
    target = model("nemotron_h")
    target.model.layers[0].mixer.time_step_limit = (0.001, float("inf"))  # as it is by default
    with pytest.raises(ModelError, match="one token after another"):
        require_rollback(loaded(target))


def test_the_documented_families_are_the_tested_ones() -> None:
    section = (Path(__file__).parent.parent / "docs/measuring.md").read_text().split("## 13. ")[1]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "Families" not in line]
    named = {name for row in rows[2:] for name in row.split("|")[5].strip().split(", ")} - {".."}
    assert named - {"llama", "mistral", "gemma", "llama4_text"} == set(FAMILIES)
    assert all(name in section for name in WRONG)


def test_a_model_of_keys_and_values_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "_read", None)
    llama = tiny_llama(64, seed=1)
    assert not require_rollback(loaded(llama))
    assert CachedModel(llama, 8).cache.states == []


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", *full("mamba2")])
def test_planted_a_snapshot_that_is_written_over_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = model(family)
    honest = snapshots._copied

    def shallow(value: Any) -> Any:
        return value if isinstance(value, torch.Tensor) else honest(value)

    monkeypatch.setattr(snapshots, "_copied", shallow)
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
    assert not shares_layers(made.config)


def test_texts_for_replay_are_written_one_by_one_where_padding_would_enter_a_state() -> None:
    made, prompts = model("falcon_h1"), [PROMPT, PROMPT[:4], [*PROMPT, 7, 7]]
    together = generate_batch(made, prompts, sampling=GREEDY, eos=(), max_new_tokens=12, seed=0)
    assert together == [theirs(made, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", "nemotron_h", "lfm2", "mamba2"])
def test_a_cache_is_counted_without_its_states(family: str) -> None:
    made = model(family)
    reader = CachedModel(made, 16)
    reader.forward(PROMPT, keep=1)
    kept = [layer for layer in reader.cache.layers if hasattr(layer, "capacity")]
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in kept) == cache_bytes(made.config, 16, 1, 4)


# -- what it costs ----------------------------------------------------------------------------------------------------

PLAN = ProbePlan((24,), (24,), (16,), (), (1, 3), (1,), passes=3, prefill_passes=1)


def _probed(target: Any) -> set[tuple[str | None, int]]:
    models = {None: target, "d": near(target)}
    costs = Prober(models, PLAN, PROMPT, device="cpu", seed=0, sampling=GREEDY).run()
    again = [point for point in costs.points if point.phase == "reread"]
    found = round_costs(costs.points, "d", 24, 0.0)
    assert found is not None and len(found.reread_s) == 3 * bool(again) and len(found.draft_reread_s) == 2 * bool(again)
    return {(point.model, point.tokens) for point in again}


def test_a_probe_times_what_is_read_again() -> None:
    assert _probed(model("qwen3_next")) == {(None, 1), (None, 2), (None, 3), ("d", 1), ("d", 2)}
    assert _probed(model("lfm2")) == _probed(lean(tiny_llama(64, seed=1))) == set()


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
