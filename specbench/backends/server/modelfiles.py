"""A model's name to what an engine's command line takes: a GGUF file, a Hugging Face directory, or the name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from specbench.errors import ModelError
from specbench.models.directory import require_config
from specbench.models.embedded import PREFIX, gguf_path, prepare


def model_file(name: str, kind: Literal["gguf", "directory", "name"]) -> str:
    """What {target} and {draft} of a launch file become. Embedded models are fetched and converted on first use.

    gguf: the path of a .gguf file. directory: a local directory, or a hub id as it is. name: as written. Raises
    ModelError where `name` is no such thing."""
    if kind == "name":
        return name
    if name.startswith(PREFIX):
        return str(gguf_path(name) if kind == "gguf" else prepare(name))
    path = Path(name).expanduser()
    return _gguf(path, name) if kind == "gguf" else _directory(path, name)


def _gguf(path: Path, name: str) -> str:
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name} is no GGUF file", cure="This engine reads files that end in .gguf.")
        return str(path.absolute())
    if not path.is_dir():
        raise ModelError(
            f"{name} is no file here, and this engine reads GGUF files", cure="Download the model's .gguf and name it."
        )
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if not found:
        raise ModelError(
            f"{name} has no .gguf file, and this engine reads nothing else",
            cure="Convert it with llama.cpp's convert_hf_to_gguf.py and name the file.",
        )
    if len(found) > 1:
        raise ModelError(f"{name} has {len(found)} .gguf files", cure=f"Name one of them, such as {found[0]}.")
    return str(found[0].absolute())


def _directory(path: Path, name: str) -> str:
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"{name} is a GGUF file, and this engine reads directories", cure="Name the original model.")
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        require_config(path, name)
        return str(path.absolute())
    if "@" in name:
        raise ModelError(
            f"{name}: a server takes no revision with the name",
            cure="Leave it out, and pass the engine's own flag in the launch file.",
        )
    return name
