"""A tiny target that all but depends on its last token alone, and EAGLE-3 heads for it whose drafts are right always,
often, or never."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import tiny_llama
from transformers import LlamaForCausalLM

VOCAB = 24
LAYERS = 4
READS = (1, 2, 3)
HIDDEN = 16


def markov_llama(seed: int = 5, *, context: float = 0.0, vocab_size: int = VOCAB, **more: Any) -> LlamaForCausalLM:
    """A Llama whose layers add nothing to the stream but a `context` share of what they would: at 0 its next token
    follows from the last one."""
    model = tiny_llama(vocab_size, seed, num_hidden_layers=LAYERS, **more)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(context)
        layer.mlp.down_proj.weight.mul_(context)
    return model


def head_tensors(
    target: LlamaForCausalLM, noise: float = 0.0, drafted: list[int] | None = None, sharp: float = 5
) -> dict[str, torch.Tensor]:
    """The weights of a head that drafts what `markov_llama` writes: attention finds the token itself, whose embedding
    goes through the target's norm and head. `noise`, as a share of each weight's own spread, makes it err, and a
    small `sharp` makes it see all of the text."""
    vocabulary = target.config.vocab_size
    torch.manual_seed(0)
    ids = drafted or list(range(vocabulary))
    one, none = torch.eye(HIDDEN), torch.zeros(HIDDEN, HIDDEN)
    sees = torch.cat((one, none), 1)  # the half that is the token's embedding
    layer = "layers.0."
    tensors = {
        "fc.weight": torch.cat([one / len(READS)] * len(READS), 1),
        layer + "input_layernorm.weight": torch.ones(HIDDEN),
        layer + "hidden_norm.weight": torch.zeros(HIDDEN),
        layer + "post_attention_layernorm.weight": torch.ones(HIDDEN),
        layer + "self_attn.q_proj.weight": sharp * sees,
        layer + "self_attn.k_proj.weight": sharp * sees,
        layer + "self_attn.v_proj.weight": sees,
        layer + "self_attn.o_proj.weight": one,
        layer + "mlp.gate_proj.weight": torch.zeros(8, HIDDEN),
        layer + "mlp.up_proj.weight": torch.zeros(8, HIDDEN),
        layer + "mlp.down_proj.weight": torch.zeros(HIDDEN, 8),
        "norm.weight": target.model.norm.weight.clone(),
        "lm_head.weight": target.lm_head.weight.to_dense()[ids].clone(),
    }
    if noise:  # of the states most: what is drafted then depends on where a round began
        for name, weight in tensors.items():
            spread = 2.0 if "hidden_norm" in name else 0.1 if "proj" in name else 0.3 * float(weight.std())
            weight += noise * spread * torch.randn_like(weight)
    t2d = torch.zeros(vocabulary, dtype=torch.bool)
    t2d[ids] = True
    return tensors | {"d2t": torch.tensor(ids) - torch.arange(len(ids)), "t2d": t2d}


def head_config(target: LlamaForCausalLM, drafted: int | None = None, **changes: Any) -> dict[str, Any]:
    """Its config.json, as `speculators` writes it."""
    vocabulary = target.config.vocab_size
    config: dict[str, Any] = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "draft_vocab_size": drafted or vocabulary,
        "target_hidden_size": HIDDEN,
        "eagle_aux_hidden_state_layer_ids": list(READS),
        "norm_before_residual": True,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "transformer_layer_config": {
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": HIDDEN,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": HIDDEN,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 4}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": "tiny", "architectures": ["LlamaForCausalLM"]},
        },
    }
    return config | changes


def save_head(
    folder: Path,
    target: LlamaForCausalLM,
    noise: float = 0.0,
    drafted: list[int] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    **changes: Any,
) -> Path:
    """A head's directory as a user would have it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = head_config(target, None if drafted is None else len(drafted), **changes)
    (folder / "config.json").write_text(json.dumps(config))
    found = head_tensors(target, noise, drafted) if tensors is None else tensors
    save_file({name: weight.contiguous() for name, weight in found.items()}, folder / "model.safetensors")
    return folder


def marked_llama(seed: int = 5, *, vocab_size: int = 64) -> LlamaForCausalLM:
    """`markov_llama` whose stream has a mark in its first number before the last layer and nowhere else."""
    model = markov_llama(seed, vocab_size=vocab_size, mlp_bias=True)
    mark = 20 * torch.eye(HIDDEN)[0]
    for layer in model.model.layers:
        layer.mlp.down_proj.bias.zero_()
    model.model.layers[-2].mlp.down_proj.bias.add_(mark)
    model.model.layers[-1].mlp.down_proj.bias.sub_(mark)
    model.lm_head.weight[:, 0] = 0
    return model


def marked_head(target: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """A head that is right for `marked_llama` where it sees the mark in the last of its states, and wrong elsewhere:
    attention gives the negative of what is wanted, and the feed-forward turns it round where the mark is."""
    tensors, one = head_tensors(target), torch.eye(HIDDEN)
    none, only = torch.zeros(HIDDEN, HIDDEN), torch.eye(HIDDEN)[0]
    rest = one - torch.outer(only, only)
    gate = 5 * only.repeat(HIDDEN, 1)  # open where the mark is
    layer = "layers.0."
    return tensors | {
        "fc.weight": torch.cat([none, none, one], 1),
        layer + "hidden_norm.weight": only,
        layer + "self_attn.o_proj.weight": -rest,
        layer + "mlp.gate_proj.weight": gate,
        layer + "mlp.up_proj.weight": rest,
        layer + "mlp.down_proj.weight": -rest,
    }
