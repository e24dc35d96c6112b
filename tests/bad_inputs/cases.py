"""cases.yaml, and the command line of each of its cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CASES: dict[str, list[dict[str, Any]]] = yaml.safe_load((Path(__file__).parent / "cases.yaml").read_text())
MARKS = {"{nl}": "\n", "{zeros}": "0" * 400, "{long}": "x" * 200, "{esc}": "\x1b"}


def filled(words: str) -> str:
    """A case's text with what YAML cannot hold, or not in one line."""
    for mark, meant in MARKS.items():
        words = words.replace(mark, meant)
    return words


def arguments(kind: str, case: dict[str, Any], folder: Path) -> list[str]:
    """The command line of a case of the YAML file, whose file is written to `folder`."""
    if kind == "flags":
        return list(case["args"])
    path = folder / case.get("file", "bad.yaml")
    path.write_text(filled(case["text"]))
    command = ["workload"] if kind == "prompts" else ["sweep", "--config"]
    return [*command, str(path), *case.get("args", [])]
