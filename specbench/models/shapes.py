"""Models that are not loaded: how large one is, told from its configuration and the headers of its weight files; and a
model of which only the config.json is at hand, of the right shape and precision, with random weights and nothing
fetched. That costs what the real one costs, as far as a cost does not depend on what the weights are. It writes noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import ModelError, SpecbenchError
from specbench.models.family import attention_of, loader_of, require_family
from specbench.models.headconfig import Head
from specbench.models.hub import cached_folder, loading, quiet_transformers
from specbench.models.load import DTYPES, LoadedModel, Place, locate, resolve_device
from specbench.models.memory import available_bytes, cache_bytes, expert_count, weight_bytes
from specbench.records import Finding, warned
from specbench.text import gigabytes

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

# Weights in these are converted to the precision that is asked for; others, such as packed integers, stay as they are.
_CONVERTED = {"F64", *_NAMES}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model or draft head that is not loaded: its transformers configuration, and the bytes of its weights in the
    precision that was asked for. `states` are the numbers that the target keeps of each token for a head."""

    config: Any
    weight_bytes: int
    states: int = 0

    @property
    def max_context(self) -> int | None:
        """Tokens that it can read; None where it does not say, and of a head, which can be driven beyond."""
        if self.states:
            return None
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)


def size_of(name: str, *, dtype: str, trust_remote_code: Collection[str] = ()) -> ModelSize | None:
    """The size of `name` in `dtype`; None where that cannot be told. What is wrong with such a model is for
    `load_model` to say, but for a name that stands for nothing, which raises ModelError here already."""
    from transformers import AutoConfig

    place = locate(name, trust_remote_code)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(place.source.location, **place.arguments)
        counted = _stored(place)
        if not counted:
            return None
        return ModelSize(config, int(sum(count * _bytes(kind, dtype) for kind, count in counted)))
    except SpecbenchError:
        raise
    except Exception:  # transformers, the hub and safetensors raise what they like
        return None


def own_format(name: str, *, trust_remote_code: Collection[str] = ()) -> str | None:
    """The one of DTYPES that a model's configuration names, as transformers' `dtype="auto"` has it, else that of most
    of its weights; None where neither can be had, and where the model cannot: that is for `load_model` to say."""
    from transformers import AutoConfig

    counted: Counter[str] = Counter()
    try:
        place = locate(name, trust_remote_code)
        if (said := named_format(place.read(AutoConfig).to_dict())) is not None:
            return said
        for kind, count in _stored(place):
            counted[_NAMES.get(kind, "")] += count
    except Exception:  # transformers, the hub and safetensors raise what they like
        return None
    del counted[""]
    return max(counted, key=counted.__getitem__, default=None)


def named_format(config: Mapping[str, Any]) -> str | None:
    """The one of DTYPES that a config.json names, of the language model where it has several; None where none is."""
    for part in (config.get("text_config"), config):
        for key in ("dtype", "torch_dtype"):
            said = str(part.get(key)).removeprefix("torch.") if isinstance(part, Mapping) else ""
            if said in DTYPES:
                return said
    return None


def head_size(head: Head, dtype: str) -> ModelSize | None:
    """The size of a draft head in `dtype`, without the target's weights that it uses; None where that cannot be
    told: its files are not here yet, or are damaged."""
    try:
        counted = [_counted(file) for file in sorted(head.location.glob("*.safetensors"))]
    except Exception:  # safetensors raises what it likes, and the loader says what is wrong
        return None
    total = sum(count * _bytes(kind, dtype) for file in counted for kind, count in file)
    states = len(head.layer_ids or (0, 0, 0)) * head.target_hidden
    return ModelSize(head.layer, int(total), states) if counted else None


def _stored(place: Place) -> list[tuple[str, int]]:
    """Kind and number of elements, for each weight or all of a kind."""
    location, state = place.source.location, place.state
    if place.source.kind != "hub":
        return list(_headers(Path(location)))
    from huggingface_hub import HfApi

    kept = cached_folder(location, state.revision)
    found = list(_headers(kept)) if kept is not None else []
    if found or state.local_only:
        return found
    # The headers alone, before gigabytes are fetched.
    return list(HfApi().get_safetensors_metadata(location, revision=state.revision).parameter_count.items())


def _headers(folder: Path) -> Iterator[tuple[str, int]]:
    """Of the files that transformers would load: those that the index names, else the one file."""
    index, one = folder / "model.safetensors.index.json", folder / "model.safetensors"
    names = [one.name] if one.is_file() else []
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        yield from _counted(folder / name)


def _counted(file: Path) -> list[tuple[str, int]]:
    from safetensors import safe_open

    with safe_open(str(file), framework="numpy") as weights:
        parts = [weights.get_slice(key) for key in weights.keys()]  # noqa: SIM118  # it is no mapping
        return [(part.get_dtype(), math.prod(part.get_shape())) for part in parts]


def _bytes(kind: str, dtype: str) -> float:
    """Of one element: the name of a kind ends in its bits, or has them before what else it says (F8_E4M3)."""
    if kind in _CONVERTED:
        return ELEMENT_BYTES[dtype]
    bits = re.match(r"[A-Z]+(\d+)", kind)
    return int(bits[1]) / 8 if bits else 1


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


def shape_cautions(loaded: LoadedModel) -> Iterator[Finding]:
    config = loaded.model.config
    yield warned(
        "random-weights",
        f"{loaded.name} was built from its configuration with random weights: costs are those of its shape, acceptance "
        "is not known",
        "Measure acceptance with the real weights: specbench sweep --replay-only.",
    )
    if expert_count(config.get_text_config()):
        yield warned(
            "random-experts",
            f"{loaded.name} routes tokens between experts, and random weights route nearly uniformly: real text "
            "touches fewer experts at once, so reading several tokens may cost less than measured here",
            "Probe the real weights before trusting v(n) or larger batches.",
        )
    if getattr(config, "quantization_config", None):
        yield warned(
            "not-quantized",
            f"the configuration of {loaded.name} asks for quantized weights; the probe timed it unquantized",
            "Probe the real model with the engine that serves it.",
        )


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

    with loading(str(file)):
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
