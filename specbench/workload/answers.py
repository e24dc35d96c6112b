"""Earlier answers, as production wrote them, from a file of JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specbench.errors import WorkloadError

# Where a line may have its answer, when it is no string itself.
_KEYS = ("answer", "response", "output", "completion", "text")

_HINT = 'Write one JSON string a line, or an object with "answer" or with "messages" that the assistant wrote.'


def read_answers(file: str) -> list[str]:
    """The answers in a file, in order: every line is a string, or an object that has one. Raises WorkloadError."""
    path, found = Path(file).expanduser(), list[str]()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise WorkloadError(f"The corpus {file} {why}", hint=_HINT) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            answers = _answers(json.loads(line))
        except (ValueError, RecursionError):
            raise WorkloadError("This line is no JSON", where=f"{file}, line {number}", hint=_HINT) from None
        if answers is None:
            raise WorkloadError("This line has no answer", where=f"{file}, line {number}", hint=_HINT)
        found += answers
    if not any(found):
        raise WorkloadError(f"The corpus {file} holds no answer", hint=_HINT)
    return found


def _answers(line: Any) -> list[str] | None:
    if isinstance(line, str):
        return [line]
    if not isinstance(line, dict):
        return None
    said = next((line[key] for key in _KEYS if isinstance(line.get(key), str)), None)
    if said is not None:
        return [said]
    messages = line.get("messages")
    if not isinstance(messages, list):
        return None
    turns = [one for one in messages if isinstance(one, dict) and one.get("role") == "assistant"]
    return [one["content"] for one in turns if isinstance(one.get("content"), str)]
