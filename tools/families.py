"""docs/families.md: which families run, from the table that tests/test_matrix.py holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

TABLE = Path("tests/families/table.yaml")

_HEAD = """\
# Which families run in process

Every family of causal language models in transformers {version}, built tiny and random in float32. One that runs writes
the texts of transformers' own `generate`, is lossless with a draft model and replays as it ran (`{table}`, which
`make test-all` holds row by row). What stands after a colon is another configuration of the same family. Others are
tried when they are [loaded](measuring.md#12-models-that-remember-otherwise).

| rolled back by | a rejection costs | `--batch-size` above 1 | families |
|---|---|---|---|
"""
_WAYS = {
    "length": ("the length of keys and values", "nothing"),
    "crop": ("cropping keys and values, and those of an index", "nothing"),
    "cut": ("cutting the state of a convolution out of what the last pass saw", "nothing"),
    "reread": ("a snapshot, and reading what is kept again", "a pass over the kept tokens"),
}
_REFUSED = """
Refused in one line, before anything is measured:

| because it | families |
|---|---|
"""
_UNBUILT = "\nNot looked at, since transformers does not build them tiny: {names}.\n"


def page() -> str:
    """The page."""
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    rows, because = table["families"], table["refusals"]
    runs = _grouped({name: tuple(row) for name, row in rows.items() if row[0] in _WAYS})
    refused = _grouped({name: row[0] for name, row in rows.items() if row[0] in because})
    lines = [_HEAD.format(version=table["transformers"], table=TABLE)]
    for (way, batches), names in sorted(runs.items(), key=lambda found: list(_WAYS).index(found[0][0])):
        batched = "yes" if batches == "together" else f"no: {because[batches]['says']}"
        lines.append(f"| {' | '.join(_WAYS[way])} | {batched} | {_listed(names)} |\n")
    lines.append(_REFUSED)
    lines += [f"| {because[code]['says']} | {_listed(names)} |\n" for code, names in refused.items()]
    lines.append(_UNBUILT.format(names=_listed(name for name, row in rows.items() if row[0] == "unbuilt")))
    return "".join(lines)


def _grouped(rows: Mapping[str, Any]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for name, row in rows.items():
        found.setdefault(row, []).append(name)
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
