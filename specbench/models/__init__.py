"""Names to loaded models and tokenizers: the embedded demo pair, local directories and hub ids."""

from __future__ import annotations

from specbench.models.load import LoadedModel, ModelSource, load_model, load_tokenizer, resolve, resolve_device
from specbench.models.vocabulary import VocabularyReport, check_vocabularies

__all__ = [
    "LoadedModel",
    "ModelSource",
    "VocabularyReport",
    "check_vocabularies",
    "load_model",
    "load_tokenizer",
    "resolve",
    "resolve_device",
]
