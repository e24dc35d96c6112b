"""Tiny targets that carry a multi-token-prediction layer of their own, as their checkpoints do: DeepSeek-V3's after its
last layer, Qwen3-Next's and Qwen3.5's as `mtp.*`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 24
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "moe_intermediate_size": 8,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_SHAPES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "glm4_moe": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
    },
    "qwen3_next": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 8,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "qwen3_5_text": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 0],
            "mrope_interleaved": True,
        },
    },
}


def save_own(folder: Path, kind: str, noise: float = 0.2, seed: int = 2, count: int = 1) -> Path:
    """A target whose next token hardly depends on more than its last, and whose `count` layers each draft what follows
    from the token that it reads, but for `noise` on its way there."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, num_hidden_layers=2, **(_COMMON | _SHAPES[kind]))
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    # The last layer is also what its own layer is made of: one of full attention over experts.
    block = {name: torch.randn_like(weight) * 0.3 for name, weight in model.model.layers[-1].state_dict().items()}
    for layer in model.model.layers:
        for name, weight in layer.named_parameters():
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj")):
                weight.mul_(0.05)
    model.save_pretrained(folder / "whole")
    model.model.layers[-1].load_state_dict(block)
    model.save_pretrained(folder / "block")
    tensors = load_file(folder / "whole" / "model.safetensors")
    prefix, own = "model.layers.1.", load_file(folder / "block" / "model.safetensors")
    hidden, eye = _COMMON["hidden_size"], torch.eye(_COMMON["hidden_size"])
    one = torch.zeros(hidden) if "qwen" in kind else torch.ones(hidden)  # theirs is added to 1
    small = ("o_proj.weight", "down_proj.weight", "down_proj")
    layer = {
        name.removeprefix(prefix): (weight * 0.3 * noise if name.endswith(small) else weight)
        for name, weight in own.items()
        if name.startswith(prefix)
    }
    join = torch.cat((eye + noise * 0.3 * torch.randn(hidden, hidden), 0.7 * noise * torch.randn(hidden, hidden)), 1)
    norms = {"enorm": one, "hnorm": one + 0.3 * torch.randn(hidden), "norm": model.model.norm.weight.clone()}
    if kind.startswith("qwen"):
        extra = {f"mtp.layers.0.{name}": weight for name, weight in layer.items()}
        extra |= {"mtp.fc.weight": join, "mtp.pre_fc_norm_embedding.weight": norms["enorm"]}
        extra |= {"mtp.pre_fc_norm_hidden.weight": norms["hnorm"], "mtp.norm.weight": norms["norm"]}
    else:
        extra = {}
        for at in range(2, 2 + count):
            extra |= {f"model.layers.{at}.{name}": weight for name, weight in layer.items()}
            extra |= {f"model.layers.{at}.eh_proj.weight": join, f"model.layers.{at}.enorm.weight": norms["enorm"]}
            extra |= {f"model.layers.{at}.hnorm.weight": norms["hnorm"]}
            extra |= {f"model.layers.{at}.shared_head.norm.weight": norms["norm"]}
            extra |= {f"model.layers.{at}.shared_head.head.weight": tensors["lm_head.weight"].clone()}
            layer = {name: weight.clone() + 0.3 * noise * torch.randn_like(weight) for name, weight in layer.items()}
            join = join + 0.2 * noise * torch.randn_like(join)
    out = folder / "target"
    out.mkdir()
    config = json.loads((folder / "whole" / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | ({"num_nextn_predict_layers": count} if count > 1 else {})))
    every = {name: weight.clone().contiguous() for name, weight in (tensors | extra).items()}
    save_file(every, out / "model.safetensors", metadata={"format": "pt"})
    return out


def without(folder: Path, *beginnings: str) -> None:
    """Take the tensors of these names out of a checkpoint."""
    file = folder / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if not name.startswith(beginnings)}
    save_file(kept, file, metadata={"format": "pt"})


def configured(folder: Path, **changes: Any) -> None:
    """Change a checkpoint's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def save_written(folder: Path, own: Path, **changes: Any) -> Path:
    """The layer `mtp.*` of a target's folder as `speculators` writes it, in a checkpoint of its own."""
    folder.mkdir()
    config = json.loads((own / "config.json").read_text())
    written = {
        "architectures": ["MTPDraftModel"],
        "speculators_model_type": "mtp",
        "num_nextn_predict_layers": 1,
        "transformer_layer_config": config,
        "speculators_config": {
            "algorithm": "mtp",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 1}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": str(own), "architectures": config["architectures"]},
        },
    }
    (folder / "config.json").write_text(json.dumps(written | changes))
    names = {"fc.": "input_proj.", "norm.": "final_layernorm.", "pre_fc_norm_hidden.": "hidden_layernorm."}
    names |= {"pre_fc_norm_embedding.": "token_layernorm.", "layers.0.": ""}
    found: dict[str, torch.Tensor] = {}
    for name, weight in load_file(own / "model.safetensors").items():
        part = name.removeprefix("mtp.")
        if part != name:
            old = next(old for old in names if part.startswith(old))
            found["mtp_layers.0." + names[old] + part.removeprefix(old)] = weight
    experts = "mtp_layers.0.mlp.experts."
    if f"{experts}0.gate_proj.weight" in found:  # one tensor for all of them, as transformers' modules have it
        each = {
            part: [found.pop(f"{experts}{number}.{part}_proj.weight") for number in range(config["num_experts"])]
            for part in ("gate", "up", "down")
        }
        pairs = zip(each["gate"], each["up"], strict=True)
        found[f"{experts}gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        found[f"{experts}down_proj"] = torch.stack(each["down"])
    save_file({name: weight.contiguous() for name, weight in found.items()}, folder / "model.safetensors")
    return folder
