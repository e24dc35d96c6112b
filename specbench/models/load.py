"""From a name to a model ready to measure: evaluation mode, no gradients, one precision, safetensors only."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from specbench.errors import ConfigError, ModelError
from specbench.models.directory import (
    content_revision,
    generation_settings,
    is_local,
    require_config,
    require_indexed_safetensors,
    require_safetensors,
    require_tokenizer,
)
from specbench.models.embedded import PREFIX, find, folder_of, gguf_path, packaged_head, prepare
from specbench.models.family import attention_of, loader_of, require_family
from specbench.models.hub import HubState, described, loading, look_up, no_conversion_service
from specbench.validation import expanded

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

    @property
    def vocab_size(self) -> int:
        """Tokens that it gives logits of, padding included."""
        return int(self.model.config.get_text_config(decoder=True).vocab_size)


def resolve(name: str) -> ModelSource:
    """Say what `name` stands for: an embedded model, a local directory, or a hub id (`org/model`, `org/model@rev`).

    Fetches and loads nothing. Raises ModelError for an unknown `demo:` name, and for a path that is no model.
    """
    if not name.strip():
        raise ModelError("the model has no name", hint="Name a directory, a hub id, or demo:target.")
    if name.startswith(PREFIX):
        return ModelSource(name, str(folder_of(name)), f"sha256:{find(name).sha256}", "embedded")
    if is_local(name):
        path = expanded(name, ModelError)
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is loaded from, made or checked. Its own Python code runs only if it is `trusted`."""

    source: ModelSource
    state: HubState
    trusted: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """Of any from_pretrained of transformers."""
        revision = {"revision": self.state.revision} if self.source.kind == "hub" and self.state.revision else {}
        # Always a bool: with None transformers would ask on the terminal.
        return {"trust_remote_code": self.trusted, "local_files_only": self.state.local_only, **revision}

    def read(self, kind: Any, **more: Any) -> Any:
        """What an auto class of transformers makes of it. Raises ModelError."""
        with loading(self.source.name, show_downloads=sys.stderr.isatty()):
            return kind.from_pretrained(self.source.location, **self.arguments, **more)


def locate(name: str, trust_remote_code: Collection[str] = ()) -> Place:
    """Raises ModelError as `resolve`, and for what is no model or cannot be had."""
    source, trusted = resolve(name), name in trust_remote_code
    if source.kind == "hub":
        return Place(source, look_up(source.location, source.revision), trusted)
    if source.kind == "embedded":
        prepare(source.name)
    require_tokenizer(Path(source.location))
    return Place(source, HubState(source.revision, local_only=True), trusted)


def load_tokenizer(name: str, *, trust_remote_code: Collection[str] = ()) -> Any:
    """The tokenizer alone, without reading weights. Raises ModelError as `load_model` does."""
    from transformers import AutoTokenizer

    return locate(name, trust_remote_code).read(AutoTokenizer)


def read_config(name: str, *, trust_remote_code: Collection[str] = ()) -> Any:
    """The transformers configuration of a model, without its weights. Raises ModelError as `load_model` does."""
    from transformers import AutoConfig

    return locate(name, trust_remote_code).read(AutoConfig)


def load_model(name: str, *, dtype: str, device: str, trust_remote_code: Collection[str] = ()) -> LoadedModel:
    """Load `name` in `dtype` (one of DTYPES) on `device` (see `resolve_device`).

    A model's own Python code runs only if `name` is in `trust_remote_code`. Raises ConfigError for a wrong dtype or
    device, and ModelError, with one line, for everything that can be wrong with the model.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"there is no dtype {dtype}", hint=f"Use {', '.join(DTYPES)}.")
    device = resolve_device(device)
    from transformers import AutoConfig, AutoTokenizer

    place = locate(name, trust_remote_code)
    folder = Path(place.source.location)
    if place.source.kind == "directory":
        require_safetensors([path.name for path in folder.iterdir()], name)
        generation_settings(folder, name)
    elif place.source.kind == "hub":
        folder = described(place.source.location, place.state)
    require_indexed_safetensors(folder, name)
    config = place.read(AutoConfig)
    require_family(config, name)
    tokenizer = place.read(AutoTokenizer)
    model = _weights(place, dtype, device, config)
    parameters = list(model.parameters())
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        revision=place.state.revision,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        max_context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )


def load_files(name: str, *, trust_remote_code: Collection[str] = ()) -> LoadedModel:
    """The tokenizer of a model and what its files say, without reading weights: its `model` has `config` and
    `generation_config` alone. Raises ModelError as `load_model` does."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    place = locate(name, trust_remote_code)
    config = place.read(AutoConfig)
    try:
        generation = GenerationConfig.from_pretrained(place.source.location, **place.arguments)
    except OSError:  # it has none; transformers makes one from the configuration
        generation = GenerationConfig.from_model_config(config)
    files = SimpleNamespace(config=config, generation_config=generation)
    return LoadedModel(name, files, place.read(AutoTokenizer), place.state.revision, 0, 0, None)


def _weights(place: Place, dtype: str, device: str, config: Any) -> Any:
    import torch

    with no_conversion_service():
        model, info = place.read(
            loader_of(config),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            attn_implementation=attention_of(config),
            # Straight onto the device: a copy in main memory first may not fit.
            device_map=None if device == "cpu" else {"": device},
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers fills them with random numbers and only warns: the acceptance would be of another model.
        raise ModelError(
            f"{len(missing)} of the weights of {place.source.name} are missing, {missing[0]} first",
            hint="Copy or download the model again, with weights and config.json of the same model.",
        )
    return model.eval().requires_grad_(False)


# How an engine takes models: files of one kind, directories, or names that it looks up itself.
Form = Literal["gguf", "directory", "name"]


def model_file(name: str, form: Form) -> str:
    """What {target} and {draft} of a launch file become. Embedded models are fetched and converted on first use.

    gguf: the path of a .gguf file. directory: a local directory, or a hub id as it is. name: as written. Raises
    ModelError where `name` is no such thing."""
    if form == "name":
        return name
    if name.startswith(PREFIX):
        head = packaged_head(name) if form == "directory" else None
        return str(gguf_path(name) if form == "gguf" else prepare(name) if head is None else head.folder)
    path = expanded(name, ModelError)
    return _gguf(path, name) if form == "gguf" else _directory(path, name)


def _gguf(path: Path, name: str) -> str:
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name} is no GGUF file", hint="This engine reads files that end in .gguf.")
        return str(path.absolute())
    if not path.is_dir():
        raise ModelError(
            f"{name} is no file here, and this engine reads GGUF files", hint="Download the model's .gguf and name it."
        )
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if not found:
        raise ModelError(
            f"{name} has no .gguf file, and this engine reads nothing else",
            hint="Convert it with llama.cpp's convert_hf_to_gguf.py and name the file.",
        )
    if len(found) > 1:
        raise ModelError(f"{name} has {len(found)} .gguf files", hint=f"Name one of them, such as {found[0]}.")
    return str(found[0].absolute())


def _directory(path: Path, name: str) -> str:
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"{name} is a GGUF file, and this engine reads directories", hint="Name the original model.")
    if is_local(name):
        require_config(path, name)
        return str(path.absolute())
    if "@" in name:
        raise ModelError(
            f"{name}: a server takes no revision with the name",
            hint="Leave it out, and pass the engine's own flag in the launch file.",
        )
    return name
