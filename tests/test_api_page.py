"""The page on the Python interface: its examples run, and its tables are those of the frames."""

from __future__ import annotations

import ast
import re
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
from test_api import EXAMPLE, ROOT

import specbench
from specbench import records
from specbench.analysis import contract, replayed
from specbench.errors import ConfigError
from specbench.run.task import task_of

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def dtype(hint):
    """What a column of such values is. Literals are texts; lists stay what they are."""
    plain = (
        [part for part in get_args(hint) if part is not NoneType] if get_origin(hint) in (Union, UnionType) else [hint]
    )
    if get_origin(plain[0]) is Literal:
        plain = [str]
    null = NoneType in get_args(hint)
    return {
        int: "Int64" if null else "int64",
        float: "float64",
        str: "string",
        bool: "boolean" if null else "bool",
    }.get(plain[0], "object")


def columns(record, prefix="", within=()):
    """{column: dtype} of a record; records within it are spelt out, those named in `within` without a prefix."""
    found = {}
    for key, hint in get_type_hints(record).items():
        inner = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        if not inner:
            found[prefix + key] = dtype(hint)
        elif get_origin(hint) is not tuple:
            own = columns(inner[0], "" if key in within else f"{prefix}{key}_", within)
            absent = NoneType in get_args(hint)
            found |= {name: "Int64" if absent and kind == "int64" else kind for name, kind in own.items()}
        elif records.Reason in get_args(hint):
            found[prefix + key] = "object"
    return found


KEYS = {
    "trials": columns(records.Trial, within=("arm", "times")),
    "rounds": {},
    "gammas": columns(contract.GammaResult),
    "categories": columns(contract.CategoryResult),
    "loads": columns(contract.LoadResult),
    "costs": columns(records.CostPoint),
    "replay()": columns(replayed.ReplayGamma),
}
# Texts have no column, nor has what does not count.
LEFT_OUT = {"trials": {"warmup", "prompt_text", "output_text", "slices", "load_concurrency", "load_rate"}}


@pytest.mark.parametrize("name", KEYS)
def test_a_frame_has_the_keys_and_types_of_its_record_and_what_the_page_adds(name):
    example = specbench.load_run(EXAMPLE)
    frame = example.replay([1]) if name == "replay()" else getattr(example, name)
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \| (?:[^|]*\|){{2}} ?(.*?) ?\|$", PAGE, re.MULTILINE)
    added = set(re.findall(r"`(\w+)`", row))
    found = {key: str(kind) for key, kind in frame.dtypes.items()}
    told = KEYS[name]
    assert {key: kind for key, kind in found.items() if key not in added and told.get(key) != kind} == {}
    assert added <= set(found) and set(told) - set(found) - LEFT_OUT.get(name, set()) == set()


BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def needs_models(block):
    return re.search(r"specbench\.(sweep|measure)\((?!gama)", block) is not None


def test_the_pages_examples_run(tmp_path, monkeypatch, capsys):
    for kept in (EXAMPLE, EXAMPLE.parent / "drafters", EXAMPLE.parent / "llamacpp"):
        shutil.copytree(kept, tmp_path / "reports" / kept.name)
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in BLOCKS if not needs_models(block)]
    assert len(blocks) >= 7 and len(BLOCKS) - len(blocks) == 3
    names, shown = {}, 0
    for block in blocks:
        lines = block.splitlines()
        for node in ast.parse(block).body:
            code = ast.get_source_segment(block, node)
            _, _, says = lines[node.end_lineno - 1].partition("  # ")
            if isinstance(node, ast.Expr) and says:
                assert repr(eval(code, names)) == says, code
                shown += 1
            else:
                exec(code, names)
    assert shown >= 4
    assert "Did you mean `gamma`?" in capsys.readouterr().out
    assert (tmp_path / "speedup.pdf").stat().st_size > 1000


def test_the_pages_calls_are_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    calls = [
        node
        for block in BLOCKS
        if needs_models(block)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("specbench.sweep", "specbench.measure")
    ]
    assert len(calls) == 3
    for node in calls:
        keys = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg != "quiet"}
        config = keys.pop("config", None)
        task = task_of("sweep", keys, config=config and Path(config))
        assert task.config.target == keys["target"]
        with pytest.raises(ConfigError):
            task_of("sweep", keys | {"gama": 1})
