"""docs/contract.md: the keys of every object that is printed or stored, read from the records, with the prose of
tools/contract.md around them. `{{room.module:Record}}` there stands for what a record's docstring says and its keys."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from specbench.report.dialect import codes

SOURCE = Path("tools/contract.md")
CODE = Path("specbench")

_NAMES = {NoneType: "null", str: "text", int: "integer", float: "number", bool: "boolean", Any: "any"}


def page() -> str:
    """Raises AttributeError for a record that is not there."""
    text = SOURCE.read_text(encoding="utf-8")
    text = text.replace("{{codes}}", _listed("Codes", sorted({*codes("warnings"), *_noticed()} - {""})))
    text = text.replace("{{reasons}}", _listed("Codes", codes("reasons")))
    return re.sub(r"\{\{([\w.]+):(\w+)\}\}", lambda found: keys(found[1], found[2]), text)


def keys(module: str, name: str) -> str:
    """What a record says of itself, then its keys, those of one type together."""
    record = getattr(import_module(f"specbench.{module}"), name)
    hints = get_type_hints(record, include_extras=True)
    said = re.sub(r"\bNone\b", "null", " ".join((record.__doc__ or "").split()))
    kinds = {each.name: kind(hints[each.name]) for each in fields(record)}
    ends = {re.sub(r"((?:_s)?)$", rf"_{end}\1", key): key for key in kinds for end in ("low", "high")}
    ended = {key for end, key in ends.items() if end in kinds}
    alike: dict[str, list[str]] = {}
    for key in (key for key in kinds if key not in ends):
        alike.setdefault(kinds[key], []).append(f"`{key}`{'±' if key in ended else ''}")
    named = [f"{', '.join(keys)} {name}" for name, keys in alike.items()]
    return f"{said}\n\n{'; '.join(named)}."


def kind(hint: Any) -> str:
    """`number?`, `texts`, `object`: a type as JSON has it, in the plural for a list, with `?` where it may be null."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return kind(parts[0])
    if origin is Literal:
        return "|".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        named = list(dict.fromkeys(kind(part) for part in parts if part is not NoneType))
        return "|".join(named) + ("?" if NoneType in parts else "")
    if origin is tuple:
        return f"{kind(parts[0])}s".replace("?s", "s?")
    return _NAMES.get(hint, "object")


def _noticed() -> set[str]:
    """Codes of warnings that are said in the words of the place that notices them."""
    found = set()
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "warned" and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
    return found


def _listed(what: str, names: Any) -> str:
    return f"{what}: {', '.join(f'`{name}`' for name in names)}."
