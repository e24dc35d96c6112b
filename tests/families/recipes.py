"""Every family of causal language models in transformers, tiny and random: the shapes, and what a family needs beside
them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from specbench.backends.local.batch import NO_PADDING, written
from specbench.models.family import attention_of, loader_of
from specbench.records import Sampling

VOCABULARY = 64
S, F, L, CHUNKED = "sliding_attention", "full_attention", "linear_attention", "chunked_attention"

_SIZES: dict[int | None, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input mamba_d_ssm",
    32: "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim lru_width embed_dim out_hidden_size",
    48: "intermediate_size ffn_hidden_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff intermediate_size_mlp",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_key_value_heads swa_num_key_value_heads multi_query_group_num num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts expand mamba_expand",
    4: "num_attention_heads swa_num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads linear_num_value_heads linear_num_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts mamba_num_heads mamba_n_heads mamba_d_conv conv_kernel time_step_rank mamba_dt_rank",
    8: "head_dim swa_head_dim kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim attention_head_dim "
    "attn_head_dim global_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim "
    "mamba_head_dim mamba_d_head mamba_d_state state_size ssm_state_size hidden_size_per_layer_input laurel_rank "
    "attention_chunk_size",
    16: "qk_head_dim q_lora_rank kv_lora_rank o_lora_rank moe_intermediate_size expert_ffn_hidden_size "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size shared_intermediate_size chunk_size "
    "mamba_chunk_size index_n_heads",
    6: "sliding_window attention_window_size window_size local_attention",
    # With few heads of an index the scores of whole texts are 0, and nobody knows which keys it picks.
    12: "index_topk",
    1: "depth n_shared_experts num_shared_experts n_group topk_group num_expert_group first_k_dense_replace "
    "num_dense_layers moe_layer_start_index decoder_sparse_step n_groups mamba_n_groups",
    256: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_sequence_length seq_length",
    0: "hidden_dropout_prob layerdrop dropout num_nextn_predict_layers num_mtp_layers num_mtp_modules "
    "mtp_num_hidden_layers pad_token_id bos_token_id",
    None: "eos_token_id",
}
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
SMALL |= {"tie_word_embeddings": False}  # else many repeat what they read

_MIXED = (
    "gemma2 gemma3_text gpt_oss cohere2 olmo3 exaone4 smollm3 cohere2_moe mimo_v2_flash vaultgemma afmoe exaone_moe "
    "ministral cwm laguna mellum granite_swa granitemoe_swa"
)
SHARED = {"layer_types": [S, F, S, F], "num_kv_shared_layers": 2}
ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
# Beside that; the part before a colon is the model type.
OWN: dict[str, dict[str, Any]] = {
    **{name: {"layer_types": [S, F]} for name in _MIXED.split()},
    **dict.fromkeys(("gemma3n_text", "gemma4_text", "gemma4_unified_text"), SHARED),
    **{name: {"head_dim": 8, "rope_parameters": ROTARY} for name in ("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text")},
    "cohere_compass_text": {
        "rope_parameters": {S: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}, F: None}
    },
    "qwen2:window": {"use_sliding_window": True, "max_window_layers": 1, "layer_types": [F, S]},
    "llama4_text": {
        "layer_types": [CHUNKED, F],
        "no_rope_layers": [1, 0],
        "moe_layers": [0],
        "interleave_moe_layer_step": 1,
        "num_experts_per_tok": 1,
    },
    "mamba2": {"num_heads": 8},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": [L, F]},
    "granitemoehybrid:attention": {"mamba_n_heads": 8, "layer_types": [F, F]},
    "falcon_h1": {"mamba_n_heads": 8},
    "nemotron_h": {"layers_block_type": [L, "moe", F, "mlp"], "time_step_min": 1e-6},
    "nemotron_h:floor": {"layers_block_type": [L, "moe", F, "mlp"], "time_step_min": 0.001},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"time_step_min": 1e-6},
    "zamba2:floor": {"time_step_min": 0.001},
    "lfm2": {"layer_types": ["conv", F]},
    "lfm2_moe": {"layer_types": ["conv", F]},
    "lfm3": {"layer_types": ["conv", F]},
    "bailing_hybrid": {"layer_types": [L, F]},
    "deepseek_v4": {
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
        "compress_rates": {"heavily_compressed_attention": 8, "compressed_sparse_attention": 4},
        "mlp_layer_types": ["moe", "moe"],
        "o_groups": 4,
    },
    "minimax_m3_vl_text:sparse": {
        "layer_types": [F, "minimax_m3_sparse"],
        "index_n_heads": 2,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "mistral4": {"head_dim": 16},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "falcon:alibi": {"alibi": True, "new_decoder_architecture": False, "multi_query": True},
    "bert:decoder": {"is_decoder": True},
    "roberta:decoder": {"is_decoder": True},
    "electra:decoder": {"is_decoder": True},
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    },
}
_KINDS = ("layer_types", "layers_block_type")
_TOO_LARGE = 30_000_000


class UnbuiltError(Exception):
    """A family that transformers does not build, or not tiny."""


def config(family: str, **more: Any) -> Any:
    """A configuration of a few layers. Parts of a model that reads more than text are small too.
    Raises UnbuiltError."""
    try:
        return _config(family, more)
    except Exception as error:
        raise UnbuiltError(f"{family}: {error}") from error


def _config(family: str, more: dict[str, Any]) -> Any:
    kind, own = CONFIG_MAPPING[family.partition(":")[0]], OWN.get(family, {}) | more
    default = kind()
    parts = {name: value for name, value in vars(default).items() if name.endswith("_config") and _is_part(value)}
    if "text_config" not in parts:
        return kind(**(_shrunk(default, own) | own))
    small: dict[str, Any] = {"tie_word_embeddings": False}
    for name, part in parts.items():
        theirs = OWN.get(part.model_type, {}) if name == "text_config" else {}
        sizes = _shrunk(part, theirs) | theirs
        if name != "text_config":
            sizes = {key: size for key, size in sizes.items() if size is not None and "vocab" not in key}
        small[name] = type(part)(**sizes)
    return kind(**(small | own))


def _is_part(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "model_type")


def _shrunk(default: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Of SMALL what a configuration has; every kind of its layers once."""
    annotated = [vars(each).get("__annotations__", {}) for each in type(default).__mro__]
    other_names = getattr(type(default), "attribute_map", None) or {}
    known = set(vars(default)).union(*annotated) - set(other_names)
    found: dict[str, Any] = {name: size for name, size in SMALL.items() if name in known}
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        found["num_key_value_heads"] = found["num_attention_heads"]  # latent attention: keys for each head
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    named = other_names.get("layer_types", "layer_types")
    if len(kinds) > 1 and not isinstance(getattr(type(default), named, None), property):
        found[named] = kinds
    layers = next((each[name] for each in (own, found) for name in _KINDS if name in each), None)
    if layers:
        counted = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
        found |= {name: len(layers) for name in counted if name in found}
    return found


def _built(asked: Any) -> Any:
    try:
        with torch.device("meta"):
            parameters = loader_of(asked).from_config(asked).parameters()
        if sum(weight.numel() for weight in parameters) > _TOO_LARGE:
            raise UnbuiltError(f"{asked.model_type} is not tiny")
        torch.manual_seed(0)
        return loader_of(asked).from_config(asked, attn_implementation=attention_of(asked), dtype=torch.float32)
    except Exception as error:
        raise UnbuiltError(f"{asked.model_type}: {error}") from error


@torch.no_grad()
def model(family: str, **more: Any) -> Any:
    """Random weights in float32 that write varied text. Raises UnbuiltError."""
    made = _built(config(family, **more))
    draw = torch.Generator().manual_seed(1)
    for name, weight in made.named_parameters():
        if weight.dim() >= 2 and "A_log" not in name:
            weight.copy_(torch.randn(weight.shape, generator=draw) * 1.3 / weight.shape[-1] ** 0.5)
        elif not torch.isfinite(weight).all():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    return made.eval().requires_grad_(False)


@torch.no_grad()
def near(made: Any, noise: float = 0.05) -> Any:
    """The same with noise on its matrices: agrees often, not always."""
    other, draw = copy.deepcopy(made), torch.Generator().manual_seed(2)
    for weight in other.parameters():
        if weight.dim() >= 2:
            weight.add_(torch.randn(weight.shape, generator=draw) * noise * weight.std())
    return other


def theirs(made: Any, prompt: list[int], new: int) -> list[int]:
    """What transformers' own `generate` writes."""
    out = written(made, [prompt], Sampling(), {"max_new_tokens": new, "pad_token_id": NO_PADDING})
    return out[0, len(prompt) :].tolist()
