"""A P-EAGLE head that is trained a little for a tiny target, as `speculators` 0.9.0 trains one: every place of a text
at every depth in one flat pass, whose mask is that of its models/peagle/attention.py. It shares nothing with the
product but transformers' modules."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_heads import HIDDEN, READS, head_config, save_head
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama as llama

MASK = 2  # the token that is read where nothing is drafted yet
DEPTHS = 3


class Module(nn.Module):
    """The modules of a head under the names of its file."""

    def __init__(self, config: Any, vocabulary: int, layers: int) -> None:
        super().__init__()
        self.fc = nn.Linear(len(READS) * HIDDEN, HIDDEN, bias=False)
        self.layers = nn.ModuleList(llama.LlamaDecoderLayer(config, i) for i in range(layers))
        first = self.layers[0]
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(first.self_attn, name, nn.Linear(2 * HIDDEN, HIDDEN, bias=False))
        first.hidden_norm = llama.LlamaRMSNorm(HIDDEN, eps=1e-6)
        self.norm = llama.LlamaRMSNorm(HIDDEN, eps=1e-6)
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False)
        self.mask_hidden = nn.Parameter(torch.randn(1, 1, len(READS) * HIDDEN))

    def forward(self, embedded: torch.Tensor, states: torch.Tensor, rotary: Any, mask: torch.Tensor) -> torch.Tensor:
        first, *rest = self.layers
        normed = first.hidden_norm(self.fc(states))
        read = torch.cat((first.input_layernorm(embedded), normed), -1)
        x = normed + first.self_attn(read, position_embeddings=rotary, attention_mask=mask)[0]
        x = x + first.mlp(first.post_attention_layernorm(x))
        for layer in rest:
            x = layer(x, position_embeddings=rotary, attention_mask=mask)
        return self.lm_head(self.norm(x))


@cache
@torch.enable_grad()
def trained(target: LlamaForCausalLM, text: tuple[int, ...], layers: int = 2, steps: int = 50) -> dict[str, Any]:
    """Weights after so many steps on `text`, whose own next tokens are what is to be drafted."""
    config = AutoConfig.for_model(**head_config(target)["transformer_layer_config"] | {"num_hidden_layers": layers})
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    net = Module(config, target.config.vocab_size, layers)
    x = torch.tensor(text)
    with torch.no_grad():
        states = target(x[None], output_hidden_states=True).hidden_states
        states = torch.cat([states[layer][0] for layer in READS], -1)
    pairs = len(x) - 1 - DEPTHS
    anchor = torch.arange(pairs).repeat(DEPTHS)
    depth = torch.arange(DEPTHS).repeat_interleave(pairs)
    at = anchor + depth
    tokens = torch.where(depth == 0, x[at + 1], MASK)
    before, same = anchor[:, None] >= anchor, anchor[:, None] == anchor
    mask = ((depth == 0) & before) | (same & (depth[:, None] >= depth))
    with torch.no_grad():
        embedded = target.model.embed_tokens(tokens)[None]
        rotary = llama.LlamaRotaryEmbedding(config)(embedded, at[None])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        given = torch.where((depth == 0)[:, None], states[at], net.mask_hidden[0])[None]
        logits = net(embedded, given, rotary, mask[None, None])[0]
        loss = functional.cross_entropy(logits, x[at + 2])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = {name: weight.detach().clone() for name, weight in net.state_dict().items()}
    right = (logits.argmax(-1) == x[at + 2]).view(DEPTHS, pairs).float().mean(1)
    return {"tensors": found, "right": right}


def save_peagle(folder: Path, target: LlamaForCausalLM, text: tuple[int, ...], layers: int = 2, **more: Any) -> Path:
    """A trained head's directory as a user would have it."""
    config = head_config(target)
    config["transformer_layer_config"]["num_hidden_layers"] = layers
    config |= {"speculators_model_type": "peagle", "architectures": ["PEagleSpeculator"], "mask_token_id": MASK}
    tensors = more.pop("tensors", None) or trained(target, text, layers)["tensors"]
    return save_head(folder, target, tensors=tensors, **config | more)
