"""Names to loaded models and tokenizers: the embedded demo pair, local directories and hub ids."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench.models.embedded import gguf_path as gguf_path
    from specbench.models.load import LoadedModel as LoadedModel
    from specbench.models.load import ModelSource as ModelSource
    from specbench.models.load import load_model as load_model
    from specbench.models.load import load_tokenizer as load_tokenizer
    from specbench.models.load import resolve as resolve
    from specbench.models.load import resolve_device as resolve_device
    from specbench.models.vocabulary import VocabularyReport as VocabularyReport
    from specbench.models.vocabulary import check_vocabularies as check_vocabularies

_HOME = {
    **dict.fromkeys(
        ("LoadedModel", "ModelSource", "load_model", "load_tokenizer", "resolve", "resolve_device"), "load"
    ),
    **dict.fromkeys(("VocabularyReport", "check_vocabularies"), "vocabulary"),
    "gguf_path": "embedded",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line's help must not pay for what it does not call."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
