"""Random two-layer Llamas, and models that almost agree, so that drafts are accepted now and then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specbench.acceptance.loop import Drafter, Generation, generate
from specbench.acceptance.replay import Text, as_text
from specbench.acceptance.scores import BlockScores, Scores
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.lean import forward_of, make_lean
from specbench.clock import Stopwatch
from specbench.drafters.model import ModelDrafter
from specbench.records import Sampling

GREEDY = Sampling()


def tiny_llama(vocab_size: int, seed: int, *, sharpness: float = 1.0, **overrides: Any) -> LlamaForCausalLM:
    """A two-layer Llama with random weights in float32. `sharpness` scales the logits: larger is more certain."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,  # tests name their own ends; the default, 2, would stop transformers' texts
    }
    config = LlamaConfig(vocab_size=vocab_size, **(shape | overrides))
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight.mul_(sharpness)
    return model


def near_copy(model: LlamaForCausalLM, noise: float, seed: int = 0) -> LlamaForCausalLM:
    """The same model with noise on every weight: agrees with the original often, not always."""
    assert forward_of(model) == "transformers", "lean layers keep copies of their weights"
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for weight in other.parameters():
        weight.add_(torch.randn_like(weight) * noise * weight.std())
    return other


def lean(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model with the layers that a run gives it: what users measure, in a third of the time of transformers'
    own. Those stay where transformers is the judge."""
    twin = copy.deepcopy(model)
    make_lean(twin)
    assert forward_of(twin).startswith("lean")
    return twin


def model_drafter(
    model: Any, *, vocab_size: int, sampling: Sampling, eos: set[int], capacity: int = 512
) -> ModelDrafter:
    return ModelDrafter(CachedModel(model, capacity), vocab_size=vocab_size, sampling=sampling, eos=eos)


def text_of(scores: Scores | BlockScores, limit: int, name: str = "p") -> Text:
    """Scores as those of a text, for the replay."""
    return as_text(scores, prompt_id=name, category=None, draft="d", repeat=0, limit=limit)


def run(
    target: Any,
    drafter: Drafter | None,
    prompt: list[int],
    *,
    gamma: int = 4,
    sampling: Sampling = GREEDY,
    eos: set[int] | None = None,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> Generation:
    """One trial on tiny models."""
    return generate(
        CachedModel(target, 512) if isinstance(target, torch.nn.Module) else target,
        drafter,
        prompt,
        gamma=gamma,
        sampling=sampling,
        eos=eos if eos is not None else set(),
        max_new_tokens=max_new_tokens,
        generator=torch.Generator().manual_seed(seed),
        clock=Stopwatch(),
    )


def save_with_byte_tokenizer(model: LlamaForCausalLM, folder: Path) -> Path:
    """A model directory as a user would have it: weights, and a tokenizer of 256 bytes and <|end|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", model_max_length=512)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
