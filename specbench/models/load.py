"""From a name to a model ready to measure: evaluation mode, no gradients, one precision, safetensors only."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from specbench.errors import ConfigError, ModelError
from specbench.models.convert import quiet_transformers
from specbench.models.directory import (
    content_revision,
    generation_settings,
    is_local,
    require_config,
    require_indexed_safetensors,
    require_safetensors,
    require_tokenizer,
)
from specbench.models.embedded import PREFIX, find, folder_of, prepare
from specbench.models.failures import explain
from specbench.models.family import attention_of, loader_of, require_family
from specbench.models.hub import HubState, described, look_up, no_conversion_service

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a name stands for. `location` is a directory or a hub id; `revision` what the user asked for after an @,
    or what identifies the content, or None where only the hub knows."""

    name: str
    location: str
    revision: str | None
    kind: Literal["embedded", "directory", "hub"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model and its tokenizer. `parameters` and `weight_bytes` count tied weights once.

    `revision` identifies the weights: a hub commit, `sha256:` of the embedded GGUF, or `content:` of a directory; None
    for a hub model that was loaded offline without one. `max_context` is in tokens, None where the model states none.
    """

    name: str
    model: Any
    tokenizer: Any
    revision: str | None
    parameters: int
    weight_bytes: int
    max_context: int | None


def resolve(name: str) -> ModelSource:
    """Say what `name` stands for: an embedded model, a local directory, or a hub id (`org/model`, `org/model@rev`).

    Fetches and loads nothing. Raises ModelError for an unknown `demo:` name, and for a path that is no model.
    """
    if not name.strip():
        raise ModelError("the model has no name", hint="Name a directory, a hub id, or demo:target.")
    if name.startswith(PREFIX):
        return ModelSource(name, str(folder_of(name)), f"sha256:{find(name).sha256}", "embedded")
    path = Path(name).expanduser()
    if is_local(name):
        require_config(path, name)
        return ModelSource(name, str(path), content_revision(path), "directory")
    repo, _, revision = name.partition("@")
    return ModelSource(name, repo, revision or None, "hub")


def resolve_device(device: str) -> str:
    """`auto` is the first of cuda, mps and cpu that this machine has; another name is returned if it can be used.

    Raises ConfigError for an unknown device and for one that this torch or machine does not have.
    """
    import torch

    kind, _, index = device.partition(":")
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, present in has.items() if present)
    if kind not in has or (index and not (kind == "cuda" and index.isdecimal())):
        raise ConfigError(f"there is no device {device}", hint="Use auto, cpu, cuda, cuda:N or mps.")
    if not has[kind]:
        raise ConfigError(f"this machine, or this build of torch, has no {kind}", hint="Use --device auto or cpu.")
    if index and int(index) >= torch.cuda.device_count():
        raise ConfigError(f"there is no {device}: {torch.cuda.device_count()} GPU(s) found", hint="Use --device cuda.")
    return device


def load_tokenizer(name: str, *, trust_remote_code: Collection[str] = ()) -> Any:
    """The tokenizer alone, without reading weights. Raises ModelError as `load_model` does."""
    source = resolve(name)
    location, state = locate(source)
    return _tokenizer(source, location, state, name in trust_remote_code)


def load_model(name: str, *, dtype: str, device: str, trust_remote_code: Collection[str] = ()) -> LoadedModel:
    """Load `name` in `dtype` (one of DTYPES) on `device` (see `resolve_device`).

    A model's own Python code runs only if `name` is in `trust_remote_code`. Raises ConfigError for a wrong dtype or
    device, and ModelError, with one line, for everything that can be wrong with the model.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"there is no dtype {dtype}", hint=f"Use {', '.join(DTYPES)}.")
    device = resolve_device(device)
    source = resolve(name)
    location, state = locate(source)
    if source.kind == "directory":
        require_safetensors([path.name for path in Path(location).iterdir()], name)
        generation_settings(Path(location), name)
    require_indexed_safetensors(described(location, state) if source.kind == "hub" else Path(location), name)
    trusted = name in trust_remote_code
    config = _config(source, location, state, trusted)
    require_family(config, name)
    tokenizer = _tokenizer(source, location, state, trusted)
    model = _weights(source, location, state, trusted, dtype, device, config)
    parameters = list(model.parameters())
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        revision=state.revision,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        max_context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )


@dataclass(frozen=True, slots=True)
class Files:
    """A model without its weights: what its files say of it."""

    config: Any
    generation_config: Any


def load_files(name: str, *, trust_remote_code: Collection[str] = ()) -> LoadedModel:
    """The tokenizer of a model and what its files say, without reading weights: its `model` is Files. Raises
    ModelError as `load_model` does."""
    from transformers import GenerationConfig

    source = resolve(name)
    location, state = locate(source)
    trusted = name in trust_remote_code
    config = _config(source, location, state, trusted)
    try:
        generation = GenerationConfig.from_pretrained(location, **arguments(source, state, trusted))
    except OSError:  # it has none; transformers makes one from the configuration
        generation = GenerationConfig.from_model_config(config)
    tokenizer = _tokenizer(source, location, state, trusted)
    return LoadedModel(name, Files(config, generation), tokenizer, state.revision, 0, 0, None)


def locate(source: ModelSource) -> tuple[str, HubState]:
    """The place to load from, made or checked first, and the revision there."""
    if source.kind == "hub":
        return source.location, look_up(source.location, source.revision)
    if source.kind == "embedded":
        prepare(source.name)
    require_tokenizer(Path(source.location))
    return source.location, HubState(source.revision, local_only=True)


def arguments(source: ModelSource, state: HubState, trusted: bool) -> dict[str, Any]:
    # Always a bool: with None transformers would ask on the terminal.
    revision = {"revision": state.revision} if source.kind == "hub" and state.revision else {}
    return {"trust_remote_code": trusted, "local_files_only": state.local_only, **revision}


def _tokenizer(source: ModelSource, location: str, state: HubState, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers(show_downloads=sys.stderr.isatty()):
            return AutoTokenizer.from_pretrained(location, **arguments(source, state, trusted))
    except Exception as error:
        raise explain(error, source.name) from error


def read_config(name: str, *, trust_remote_code: Collection[str] = ()) -> Any:
    """The transformers configuration of a model, without its weights. Raises ModelError as `load_model` does."""
    source = resolve(name)
    location, state = locate(source)
    return _config(source, location, state, name in trust_remote_code)


def _config(source: ModelSource, location: str, state: HubState, trusted: bool) -> Any:
    from transformers import AutoConfig

    try:
        with quiet_transformers(show_downloads=sys.stderr.isatty()):
            return AutoConfig.from_pretrained(location, **arguments(source, state, trusted))
    except Exception as error:
        raise explain(error, source.name) from error


def _weights(
    source: ModelSource, location: str, state: HubState, trusted: bool, dtype: str, device: str, config: Any
) -> Any:
    import torch

    try:
        with quiet_transformers(show_downloads=sys.stderr.isatty()), no_conversion_service():
            model, info = loader_of(config).from_pretrained(
                location,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                attn_implementation=attention_of(config),
                # Straight onto the device: a copy in main memory first may not fit.
                device_map=None if device == "cpu" else {"": device},
                output_loading_info=True,
                **arguments(source, state, trusted),
            )
    except Exception as error:
        raise explain(error, source.name) from error
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers fills them with random numbers and only warns: the acceptance would be of another model.
        raise ModelError(
            f"{len(missing)} of the weights of {source.name} are missing, {missing[0]} first",
            hint="Copy or download the model again, with weights and config.json of the same model.",
        )
    return model.eval().requires_grad_(False)
