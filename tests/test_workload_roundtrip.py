"""The same prompts through every format are the same workload."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from specbench.workload import load_workload

Rows = list[dict[str, str | None]]

# No lone surrogates, which are no text, and no NUL, which only JSON and Parquet can carry.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
label = st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), min_size=1, max_size=9)


@st.composite
def row(draw: st.DrawFn) -> dict[str, str | None]:
    prompt = draw(text.filter(str.strip))
    turns = [{"role": "user", "content": turn} for turn in draw(st.lists(text.filter(str.strip), max_size=3))]
    messages = json.dumps(turns) if turns else None
    return {"id": draw(label), "category": draw(label), "prompt": prompt, "messages": messages}


def as_jsonl(rows: Rows, path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="\n")


def as_json(rows: Rows, path: Path) -> None:
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")


def as_csv(rows: Rows, path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(rows: Rows, path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workloads")


@examples(40)
@given(rows=st.lists(row(), min_size=1, max_size=6))
def test_formats_agree_on_the_hash(folder: Path, rows: Rows) -> None:
    writers: dict[str, Callable[[Rows, Path], None]] = {
        ".jsonl": as_jsonl,
        ".json": as_json,
        ".csv": as_csv,
        ".parquet": as_parquet,
    }
    found = []
    for suffix, write in writers.items():
        write(rows, folder / f"w{suffix}")
        found.append(load_workload(str(folder / f"w{suffix}")))
    assert len({workload.sha256 for workload in found}) == 1
    assert len({workload.prompts for workload in found}) == 1
    expected = [json.loads(row["messages"])[-1]["content"] if row["messages"] else row["prompt"] for row in rows]
    assert [prompt.messages[-1].content for prompt in found[0].prompts] == expected
    assert len({prompt.id for prompt in found[0].prompts}) == len(rows)
