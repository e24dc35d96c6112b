"""A model of which only the config.json is at hand: the right shape and precision, random weights, nothing fetched.

It costs what the real one costs, as far as a cost does not depend on what the weights are. It writes noise.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from specbench.errors import ModelError
from specbench.models.convert import quiet_transformers
from specbench.models.failures import explain
from specbench.models.family import attention_of, loader_of, require_family
from specbench.models.load import DTYPES, LoadedModel, resolve_device
from specbench.models.memory import available_bytes, cache_bytes, expert_count, weight_bytes
from specbench.models.size import named_format
from specbench.records import Finding, warned
from specbench.text import gigabytes

# A step reads weights in this many bytes at a time while they are filled: small enough for a cache.
_TILE = 1 << 20


def load_shape(path: Path, *, dtype: str, device: str, context: int) -> LoadedModel:
    """Build the model of a config.json (or of the folder that holds it) in `dtype` on `device`, without a tokenizer.

    Raises ModelError, with the numbers, where weights and a KV cache of `context` tokens do not fit the memory that is
    free. The peak is one copy of the weights.
    """
    if dtype not in DTYPES:
        raise ModelError(f"there is no dtype {dtype}", hint=f"Use {', '.join(DTYPES)}.")
    device = resolve_device(device)
    file = _config_file(path)
    model = _skeleton(file, dtype)
    require_memory(model, str(path), context, device)
    _fill(model, device)
    return LoadedModel(
        name=str(path),
        model=model.eval().requires_grad_(False),
        tokenizer=None,
        revision=f"config:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}",
        parameters=sum(weight.numel() for weight in model.parameters()),
        weight_bytes=weight_bytes(model),
        max_context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )


def shape_format(path: Path) -> str:
    """The precision that a config.json (or that of a folder) names; float32 where it names none, as transformers has
    it. Raises ModelError where there is no configuration."""
    return named_format(json.loads(_config_file(path).read_text(encoding="utf-8"))) or "float32"


def require_memory(model: Any, name: str, context: int, device: str) -> None:
    """Raise ModelError where the weights of `model` and one KV cache of `context` tokens exceed what is free."""
    element = next(model.parameters()).element_size()
    weights, cache = weight_bytes(model), cache_bytes(model.config, context, 1, element)
    free = available_bytes(device)
    if weights + cache > free:
        raise ModelError(
            f"{name} needs {gigabytes(weights + cache)}, {gigabytes(free)} are free",
            where=f"weights {gigabytes(weights)}, KV cache of {context} tokens {gigabytes(cache)}",
            hint="Use a smaller model, a narrower --dtype, or a device with more memory.",
        )


def shape_cautions(loaded: LoadedModel) -> list[Finding]:
    """What the costs of random weights do not say."""
    config = loaded.model.config
    found = [
        warned(
            "random-weights",
            f"{loaded.name} was built from its configuration with random weights: costs are those of its shape, "
            "acceptance is not known",
            "Measure acceptance with the real weights: specbench sweep --replay-only.",
        )
    ]
    if expert_count(config.get_text_config()):
        found.append(
            warned(
                "random-experts",
                f"{loaded.name} routes tokens between experts, and random weights route nearly uniformly: real text "
                "touches fewer experts at once, so reading several tokens may cost less than measured here",
                "Probe the real weights before trusting v(n) or larger batches.",
            )
        )
    if getattr(config, "quantization_config", None):
        found.append(
            warned(
                "not-quantized",
                f"the configuration of {loaded.name} asks for quantized weights; the probe timed it unquantized",
                "Probe the real model with the engine that serves it.",
            )
        )
    return found


def _config_file(path: Path) -> Path:
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(
            "there is no model configuration", where=str(file), hint="Name a config.json, or the folder that holds one."
        ) from None
    except ValueError:
        raise ModelError("the model configuration is not valid JSON", where=str(file), hint="Copy it again.") from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelError(
            "the model configuration names no model_type", where=str(file), hint="Name the config.json of a model."
        )
    return file


def _skeleton(file: Path, dtype: str) -> Any:
    """The model with its weights on the meta device; buffers, such as rotary frequencies, are real."""
    import torch
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(file), local_files_only=True, trust_remote_code=False)
            require_family(config, str(file))
            with init_empty_weights(include_buffers=False):
                model = loader_of(config).from_config(
                    config,
                    dtype=getattr(torch, dtype),
                    attn_implementation=attention_of(config),
                    trust_remote_code=False,
                )
            model.tie_weights()  # inside the block every assignment makes a weight of its own
    except Exception as error:
        raise explain(error, str(file)) from error
    return model


def _fill(model: Any, device: str) -> None:
    """Allocate every weight once, in place: noise for matrices, ones for scales, zeros for biases."""
    import torch

    noise = torch.randn(_TILE, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    made: dict[int, Any] = {}  # tied weights stay one tensor
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in made:
                # Keep a reference to the meta weight: its id must not be given to another.
                made[id(weight)] = (weight, torch.nn.Parameter(_filled(weight, name, noise, device), False))
            setattr(module, name, made[id(weight)][1])
    model.to(device)


def _filled(weight: Any, name: str, noise: Any, device: str) -> Any:
    import torch

    filled = torch.empty(weight.shape, dtype=weight.dtype, device=device)
    if weight.dim() < 2:
        return filled.fill_(0.0 if "bias" in name else 1.0)
    flat, tile = filled.view(-1), noise.to(device, weight.dtype)
    for start in range(0, flat.numel(), _TILE):
        part = flat[start : start + _TILE]
        part.copy_(tile[: part.numel()])
    return filled
