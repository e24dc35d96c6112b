"""Names to loaded models and tokenizers: the embedded demo pair, local directories and hub ids."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench.models.embedded import gguf_path
    from specbench.models.load import LoadedModel, ModelSource, load_model, load_tokenizer, resolve, resolve_device
    from specbench.models.vocabulary import VocabularyReport, check_vocabularies

_HOME = {
    "LoadedModel": "load",
    "ModelSource": "load",
    "VocabularyReport": "vocabulary",
    "check_vocabularies": "vocabulary",
    "gguf_path": "embedded",
    "load_model": "load",
    "load_tokenizer": "load",
    "resolve": "load",
    "resolve_device": "load",
}

__all__ = [
    "LoadedModel",
    "ModelSource",
    "VocabularyReport",
    "check_vocabularies",
    "gguf_path",
    "load_model",
    "load_tokenizer",
    "resolve",
    "resolve_device",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line's help must not pay for what it does not call."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
