"""Arguments of a chat template, such as enable_thinking: what may be given, and what is ours to give."""

from __future__ import annotations

import re
from typing import Any

from specbench.records import LARGEST
from specbench.validation import strict_json

# Of the call that renders: all else goes to the template.
RESERVED = frozenset(
    {"conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"}
    | {"tokenize", "tokenizer_kwargs", "processor_kwargs", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask"}
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_EXAMPLE = '{"enable_thinking": false}'  # YAML as well


def check_template_kwargs(value: Any) -> dict[str, Any] | None:
    """A mapping, or its JSON text, of plain names to plain values or lists of them; an empty one is None. No message
    quotes a value, which may be a text of one's own."""
    if isinstance(value, str):
        try:
            value = strict_json(value.encode())
        except (ValueError, RecursionError):
            raise ValueError(f"the text is no JSON; write {_EXAMPLE}") from None
    if value is None or value == {}:
        return None
    if not isinstance(value, dict) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in value):
        raise ValueError(f"not a mapping of plain names to values; write {_EXAMPLE}")
    for name, given in value.items():
        if name in RESERVED:
            raise ValueError(f"{name} is not for the template; leave it out")
        if not all(map(_is_plain, given if isinstance(given, list) else [given])):
            raise ValueError(f"{name} is neither a text, a number, true, false or null, nor a list of these")
    return value


def _is_plain(item: object) -> bool:
    """Whether JSON and UTF-8 can hold it."""
    if isinstance(item, str):
        return not any("\ud800" <= char <= "\udfff" for char in item)
    return item is None or (isinstance(item, bool | int | float) and abs(item) <= LARGEST)
