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


def rows_of(heading, page):
    _, found, rest = page.partition(f"# {heading}\n")
    assert found, heading
    body = re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `.*$", body, re.M)]


def units(*headings):
    return {row[0].strip("`"): row[2] for heading in headings for row in rows_of(heading, CONTRACT)}


def nested(outer, **inner):
    return outer | {f"{name}_{key}": unit for name, part in inner.items() for key, unit in part.items()}


GAMMA, ROUND = "`drafts[].gammas[]`", "`drafts[].gammas[].round_time`"
TIME = units("`loads[].ttft` and the like")
UNITS = {
    "trials": nested(
        units("A line of `trials.jsonl`", "`times`", "`arm`"),
        told=units("`told`"),
        diverged=units("A line of `divergences.jsonl`"),
    ),
    "gammas": nested(
        units(GAMMA),
        round_time=units(ROUND),
        predicted_round_time=units(ROUND),
        break_even=units("`drafts[].gammas[].break_even`"),
    ),
    "categories": units("`drafts[].categories[]`"),
    "loads": nested(units("`loads[]`"), ttft=TIME, tpot=TIME, baseline_ttft=TIME, baseline_tpot=TIME),
    "costs": units("Probe: a point"),
    "replay()": units("Replay: `drafts[].gammas[]`"),
    "rounds": {},
}


@pytest.mark.parametrize("name", UNITS)
def test_the_page_has_every_column_with_its_type_and_the_contracts_unit(name):
    example = specbench.load_run(EXAMPLE)
    frame = example.replay([1]) if name == "replay()" else getattr(example, name)
    rows = rows_of(f"`{name}`", PAGE)
    assert [(row[0].strip("`"), row[1]) for row in rows] == [(key, str(kind)) for key, kind in frame.dtypes.items()]
    known = {row[0].strip("`"): row[2] for row in rows}
    wrong = {key: unit for key, unit in known.items() if key in UNITS[name] and unit != UNITS[name][key]}
    assert wrong == {}


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
