"""Tiny DFlash heads, in each of the three layouts, and a target for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_heads import HIDDEN, READS, VOCAB
from transformers import LlamaForCausalLM, MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel

BLOCK, MASK = 5, 2


def assistant(
    target: LlamaForCausalLM, seed: int = 0, noise: float = 0.4, layers: int = 2, window: int | None = None
) -> Any:
    """transformers' own assistant, whose first layer finds the last token and whose drafts beyond the first come from
    where they stand: right at times."""
    torch.manual_seed(seed)
    config = MuseGlimmerAssistantConfig(
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        layer_types=["full_attention"] * layers if window is None else ["sliding_attention", "full_attention"][:layers],
        sliding_window=window or 2048,
        block_size=BLOCK,
        mask_token_id=MASK,
        target_layer_ids=[layer - 1 for layer in READS],
    )
    model = MuseGlimmerAssistantModel(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.copy_(torch.ones_like(weight) if "norm" in name else noise * torch.randn_like(weight))
    model.norm.weight.copy_(target.model.norm.weight)
    return model


def save_dflash(folder: Path, model: Any, layout: str = "transformers", **changes: Any) -> Path:
    """Its directory as a user would have it: as transformers, the authors or `speculators` write it."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = model.config.to_dict(), dict(model.state_dict())
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    keys += ("head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "layer_types", "sliding_window")
    layer = {key: config[key] for key in keys} | {"model_type": "qwen3", "vocab_size": VOCAB}
    if layout != "transformers":
        names = {"encoder.fc.": "fc.", "encoder.output_norm_enc.": "hidden_norm."}
        tensors = {next((new + n.removeprefix(old) for old, new in names.items() if n.startswith(old)), n): t
                   for n, t in tensors.items()}  # fmt: skip
    ids = model.config.target_layer_ids
    if layout == "authors":
        nested = {"mask_token_id": MASK, "target_layer_ids": ids}
        config = layer | {"architectures": ["DFlashDraftModel"], "block_size": BLOCK, "dflash_config": nested}
    if layout == "speculators":
        config = {
            "architectures": ["DFlashSpeculator"],
            "speculators_model_type": "dflash",
            "transformer_layer_config": layer,
            "draft_vocab_size": VOCAB,
            "block_size": BLOCK,
            "aux_hidden_state_layer_ids": [one + 1 for one in ids],
            "mask_token_id": MASK,
        }
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, folder / "model.safetensors")
    return folder
