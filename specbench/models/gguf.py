"""What the head of a GGUF file says of its model. The library reads the vocabulary with it, which takes seconds."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: the types of a value by number, and how they are packed.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
# Writers put what is said of the model first. Its tokenizer follows.
_HEAD_BYTES = 1 << 20
_TOKENIZER = "tokenizer."
# How llama.cpp calls the parts of a model.
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
# Keys and values are kept in 16 bits where nothing else is said, and a server holds so much beside them.
_ELEMENT_BYTES = 2
_BESIDE_BYTES = 256 << 20


def fields_of(path: Path) -> dict[str, Any]:
    """The keys of a GGUF file up to its tokenizer: numbers, texts and lists of them. Empty for what is no such file."""
    found: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            head = _Head(file.read(_HEAD_BYTES))
        magic, _, _, keys = head.numbers("4sIQQ")
        for _ in range(keys if magic == b"GGUF" else 0):
            key = head.text()
            if key.startswith(_TOKENIZER):
                break
            found[key] = head.value(head.number("I"))
    except (OSError, struct.error, KeyError, UnicodeDecodeError, RecursionError):
        pass  # what was read before that stands
    return found


class _Head:
    """The bytes at the beginning of a file, and how far they were read. Raises struct.error at their end, KeyError for
    a type that does not exist."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def numbers(self, packed: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{packed}", self._data, self._at)
        self._at += struct.calcsize(f"<{packed}")
        return found

    def number(self, packed: str) -> Any:
        return self.numbers(packed)[0]

    def text(self) -> str:
        return bytes(self.number(f"{self.number('Q')}s")).decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            kind, length = self.numbers("IQ")
            return [self.value(kind) for _ in range(length)]
        return self.number(_NUMBERS[kind])


def server_bytes(path: Path, tokens: int) -> int | None:
    """About what a server of this model takes with a cache of so many tokens: weights, keys and values. None for a file
    that does not tell, or is a part of a model, of which its head says nothing before the tokenizer."""
    if _PART.search(path.name):
        return None
    found = fields_of(path)
    own = f"{found.get('general.architecture')}."
    said = {key.removeprefix(own): value for key, value in found.items() if key.startswith(own)}
    try:
        layers, heads = said["block_count"], said["attention.head_count"]
        cached = said.get("attention.head_count_kv", heads)
        kept = sum(cached) if isinstance(cached, list) else cached * layers
        width = said.get("embedding_length", 0) // (max(heads) if isinstance(heads, list) else heads)
        each = sum(said.get(f"attention.{name}_length", width) for name in ("key", "value"))
        return int(path.stat().st_size + _BESIDE_BYTES + tokens * kept * each * _ELEMENT_BYTES)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OSError):
        return None
