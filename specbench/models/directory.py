"""A model in a local directory: what must be there, and a fingerprint of what is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from specbench.errors import ModelError
from specbench.text import shown

# Any one of these is enough for transformers to build a tokenizer.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"),
    *("tiktoken.model", "sentencepiece.bpe.model"),
)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = ".safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
GENERATION_FILE = "generation_config.json"
_SAVE_AGAIN = "Save the model again with save_pretrained(DIR), and name DIR."
_SAMPLE_BYTES = 1 << 20


def require_config(folder: Path, name: str) -> None:
    """Raise ModelError, naming what is wrong, unless `folder` is a directory with a config.json."""
    if not folder.is_dir():
        state = "is a file, not a model directory" if folder.exists() else "does not exist"
        raise ModelError(
            f"{name} {state}", hint="Name a directory written by save_pretrained, a hub id, or demo:target."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} has no config.json, so it is not a transformers model",
            hint="Name the directory that save_pretrained wrote, not one above or below it.",
        )


def is_local(name: str) -> bool:
    """Whether a model's name is a path, of something that is there or not. A revision of the hub may have slashes:
    `org/model@refs/pr/1`."""
    path = name.startswith(("/", ".", "~")) or name.partition("@")[0].count("/") > 1 or "\\" in name
    with suppress(OSError):  # the name is too long for a file
        path = path or Path(name).exists()
    return path


def generation_settings(folder: Path, name: str) -> tuple[str, dict[str, Any]] | None:
    """generation_config.json, or, where there is none, config.json, which transformers takes then, and what it holds;
    None without either. Raises ModelError for a file that cannot be read: engines go on without it, silently."""
    for file in (GENERATION_FILE, "config.json"):
        if not (folder / file).is_file():
            continue
        try:
            values = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            if file != GENERATION_FILE:
                return None  # nothing loads such a model, and what is wrong with it is said then
            raise ModelError(
                f"{file} of {name} is not readable as JSON, and engines go on without it: with other sampling, and "
                "perhaps without the ends of texts",
                hint="Copy it again from where the model came from, or delete it.",
            )
        return file, values
    return None


def require_tokenizer(folder: Path) -> None:
    """Raise ModelError unless `folder` holds a file from which a tokenizer can be built."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer: none of {', '.join(_TOKENIZER_FILES[:3])}",
            hint="Copy the tokenizer files of the model it was trained from, or call tokenizer.save_pretrained on it.",
        )


def require_safetensors(names: list[str], model: str) -> None:
    """Raise ModelError unless one of the file `names` is a safetensors file; say what there is instead."""
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = [name for name in names if any(Path(name).match(pattern) for pattern in _PICKLED)]
    gguf = [name for name in names if name.endswith(".gguf")]
    if pickled:
        what = f"{model} has its weights in {pickled[0]} only, and a pickle can run code when it is opened"
        hint = "Save it again with model.save_pretrained(DIR), which writes safetensors, and name DIR."
    elif gguf:
        what = f"{model} has its weights in GGUF only"
        hint = "Name the safetensors model that the GGUF was made from."
    else:
        what = f"{model} has no weights: no *.safetensors file"
        hint = "Copy or download the model again."
    raise ModelError(what, hint=hint)


def require_indexed_safetensors(folder: Path, name: str) -> None:
    """Raise ModelError where a file of `folder` leads transformers to other weights than safetensors files of it: an
    index of shards, `transformers_weights` in config.json, or an adapter. transformers opens what they name, pickles
    and files outside included. `name` is what the user calls the model."""
    if (folder / ADAPTER_FILE).exists():
        raise ModelError(
            f"{name} has an adapter ({ADAPTER_FILE}), which would be used only where peft is installed",
            hint="Merge it into the model with merge_and_unload, and save that with save_pretrained.",
        )
    named = _named_weights(folder)
    _refuse_foreign(named, f"config.json of {name}", ".safetensors", INDEX)
    indexes = {*folder.glob(f"*{INDEX}"), *(folder / weights for weights in named if weights.endswith(INDEX))}
    for index in sorted(path for path in indexes if path.exists()):
        _refuse_foreign(_shards(index, name), f"{index.name} of {name}", ".safetensors")


def _refuse_foreign(weights: Iterable[Any], named_by: str, *endings: str) -> None:
    """Raise ModelError unless all have one of these endings and stay in their folder, on any system."""
    for path in weights:
        parts = PureWindowsPath(path if isinstance(path, str) else "..")
        if not str(path).endswith(endings) or parts.anchor or ".." in parts.parts:
            raise ModelError(
                f"{named_by} names {shown(path)}, which is no safetensors file of its folder", hint=_SAVE_AGAIN
            )


def _named_weights(folder: Path) -> list[Any]:
    """What config.json names as weights, at any depth: of a model of several parts the text's configuration counts."""
    found: list[Any] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(value for key, value in pairs if key == "transformers_weights" and value is not None)
        return dict(pairs)

    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"), object_pairs_hook=note)
    except (OSError, ValueError, RecursionError):
        return []  # transformers cannot read it either, and what is wrong with it is said then
    return found


def _shards(index: Path, name: str) -> list[Any]:
    """The files that an index of weights names."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted(set(shards), key=str)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ModelError(f"{index.name} of {name} is no index of weights", hint=_SAVE_AGAIN) from None


def content_revision(folder: Path) -> str:
    """`content:` and 16 hex digits that change when the model is trained on or replaced, in milliseconds.

    Hashes config.json, and of each weight file its name, size, first and last MiB: training moves every tensor, so
    reading all of a large model would tell no more. Raises ModelError where one cannot be read.
    """
    digest = hashlib.sha256()
    try:
        digest.update((folder / "config.json").read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                file.seek(max(0, size - _SAMPLE_BYTES))
                digest.update(file.read())
    except OSError as error:
        raise ModelError(
            f"a file of the model cannot be read: {error.strerror or type(error).__name__}",
            where=str(error.filename or folder),
            hint="A link may lead nowhere, or permissions be missing: copy the model again.",
        ) from None
    return f"content:{digest.hexdigest()[:16]}"
