"""The page on the Python interface: its examples run, and its tables are those of the frames."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
from test_api import EXAMPLE, ROOT

import specbench
from specbench.errors import ConfigError
from specbench.run.task import task_of

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CONTRACT = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")


def types(*headings):
    """{key: type} of the tables under these headings of the contract."""
    found = {}
    for heading in headings:
        _, there, rest = CONTRACT.partition(f"# {heading}\n")
        assert there, heading
        body = re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]
        found |= dict(re.findall(r"^\| `(\w+)` \| ([\w ]+?) \|", body, re.MULTILINE))
    return found


def nested(outer, **inner):
    return outer | {f"{name}_{key}": kind for name, part in inner.items() for key, kind in part.items()}


GAMMA, ROUND = "`drafts[].gammas[]`", "`drafts[].gammas[].round_time`"
TIME = types("`loads[].ttft` and the like")
KEYS = {
    "trials": nested(
        types("A line of `trials.jsonl`", "`times`", "`arm`"),
        told=types("`told`"),
        diverged=types("A line of `divergences.jsonl`"),
    ),
    "gammas": nested(
        types(GAMMA),
        round_time=types(ROUND),
        predicted_round_time=types(ROUND),
        break_even=types("`drafts[].gammas[].break_even`"),
    ),
    "categories": types("`drafts[].categories[]`"),
    "loads": nested(types("`loads[]`"), ttft=TIME, tpot=TIME, baseline_ttft=TIME, baseline_tpot=TIME),
    "costs": types("Probe: a point"),
    "replay()": types("Replay: `drafts[].gammas[]`"),
    "rounds": {},
}
# Records and texts have no column of their own; what a trial has in full is in `rounds`.
SPELT_OUT = {"object", "object or null", "list of objects"}
LEFT_OUT = {"trials": {"warmup", "prompt_text", "output_text", "slices"}}
DTYPES = {
    "integer": "int64",
    "integer or null": "Int64",
    "number": "float64",
    "number or null": "float64",
    "string": "string",
    "string or null": "string",
    "boolean": "bool",
    "boolean or null": "boolean",
}


@pytest.mark.parametrize("name", KEYS)
def test_a_frame_has_the_keys_and_types_of_the_contract_and_what_the_page_adds(name):
    example = specbench.load_run(EXAMPLE)
    frame = example.replay([1]) if name == "replay()" else getattr(example, name)
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \| (?:[^|]*\|){{2}} ?(.*?) ?\|$", PAGE, re.MULTILINE)
    added = set(re.findall(r"`(\w+)`", row))
    found = {key: str(kind) for key, kind in frame.dtypes.items()}
    told = {key: DTYPES.get(kind, "object") for key, kind in KEYS[name].items() if kind not in SPELT_OUT}
    assert {key: kind for key, kind in found.items() if key not in added and told.get(key) != kind} == {}
    assert added <= set(found) and set(told) - set(found) - LEFT_OUT.get(name, set()) == set()


BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def needs_models(block):
    return re.search(r"specbench\.(sweep|measure)\((?!gama)", block) is not None


def test_the_pages_examples_run(tmp_path, monkeypatch, capsys):
    shutil.copytree(EXAMPLE, tmp_path / "reports" / "example")
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in BLOCKS if not needs_models(block)]
    assert len(blocks) >= 7 and len(BLOCKS) - len(blocks) == 2
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
    assert len(calls) == 2
    for node in calls:
        keys = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg != "quiet"}
        config = keys.pop("config", None)
        task = task_of("sweep", keys, config=config and Path(config))
        assert task.config.target == keys["target"]
        with pytest.raises(ConfigError):
            task_of("sweep", keys | {"gama": 1})
