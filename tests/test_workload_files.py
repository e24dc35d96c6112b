"""Packed files, documents that are streamed, Arrow's formats and folders that `datasets` saved."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from specbench.errors import WorkloadError
from specbench.workload import load_workload, text
from specbench.workload.faults import MalformedRowError
from specbench.workload.files import read_rows
from specbench.workload.text import json_rows

SECRET = "zanzibar"
CALL = {"id": "x", "type": "function", "function": {"name": "track", "arguments": '{"number": "7"}'}}
ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}],
        # Other keys than below, which a column of one type has as nulls.
        "tools": [
            {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object", "required": ["kg"]}}}
        ],
    },
    {
        "id": "b",
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "x", "content": "Leeds"},
        ],
        "tools": [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}],
    },
]


def zst(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data).to_pybytes()
    return packed


def failure(path: Path | str) -> str:
    with pytest.raises(WorkloadError) as caught:
        load_workload(str(path))
    line = caught.value.line()
    assert caught.value.hint and SECRET not in line and "\n" not in line
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return line


FORMATS = {
    "a.jsonl": b'{"prompt": "hi"}\n{"prompt": "two"}',
    "a.ndjson": b'{"prompt": "hi"}\n{"prompt": "two"}',
    "a.json": b'["hi", "two"]',
    "a.csv": b"id,prompt\n,hi\n,two\n",
    "a.tsv": b"id\tprompt\n\thi\n\ttwo\n",
    "a.txt": b"hi\ntwo",
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("suffix", "pack"), [(".zst", zst), (".ZST", zst), (".gz", gzip.compress)])
def test_packed_files(tmp_path: Path, name: str, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(pack(FORMATS[name]))
    assert [prompt.messages[-1].content for prompt in load_workload(str(path)).prompts] == ["hi", "two"]
    path.write_bytes(pack(FORMATS[name]) + pack(b"\n" + FORMATS[name] if name != "a.json" else b" "))
    assert len(load_workload(str(path)).prompts) >= 2  # frames one after another are one file


@pytest.mark.parametrize("spoil", [lambda d: d[:-9], lambda d: d[:9] + b"xx" + d[11:], lambda d: d[:1]])
def test_a_zstd_file_cut_short_is_refused_and_not_read_in_part(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(spoil(zst(b"".join(b'{"prompt": "zanzibar %d"}\n' % n for n in range(5_000)))))
    assert "the zstd file is damaged or cut short" in failure(path)


@pytest.mark.full
def test_a_zstd_file_that_unpacks_to_too_much_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zst(b"x" * (16 << 20)))
    monkeypatch.setattr(text, "LONGEST_LINE", 1 << 20)
    tracemalloc.start()
    assert "the line is longer than 1 MiB" in failure(tmp_path / "a.txt.zst")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    (tmp_path / "b.txt.zst").write_bytes(zst(b"\n" * (4 << 20)))
    monkeypatch.setattr(text, "LARGEST_FILE", 1 << 20)
    assert "the file holds more than 1 MiB of text" in failure(tmp_path / "b.txt.zst")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@examples(80)
@given(
    rows=st.lists(values, max_size=5),
    indent=st.none() | st.integers(0, 3),
    ascii_only=st.booleans(),
    wrapped=st.booleans(),
)
def test_a_document_read_in_pieces_has_its_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, ascii_only: bool, wrapped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    document = {"version": 1.5, "more": {"a": 12}, "data": rows, "end": -12e3} if wrapped else rows
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for piece in (1, 2, 7, 1000):
            patch.setattr(text, "PIECE", piece)
            assert repr([row for _, row in json_rows(path)]) == repr(rows)


@pytest.mark.parametrize("piece", [1, 5, 64 << 10])
@pytest.mark.parametrize(
    ("document", "what"),
    [
        ('[{"prompt": "zanzibar"},\n {"prompt": "b', "Unterminated string starting at line 2 column 13"),
        ('[{"prompt": "zanzibar"},\n {"prompt" "b"}]', "Expecting ':' delimiter at line 2 column 12"),
        ('[{"prompt": "zanzibar"}\n, {"prompt": zanzibar}]', "Expecting value at line 2 column 14"),
        ('["zanzibar",\n"b"', "Expecting ',' delimiter at line 2 column 4"),
        ('["zanzibar", "b"]\n\n x', "Extra data at line 3 column 2"),
        ('{"a": 1.5.2, "data": ["zanzibar"]}', "Expecting ',' delimiter at line 1 column 10"),
        ("[1, tru]", "Expecting value at line 1 column 5"),
        ("", "Expecting value at line 1 column 2"),
    ],
)
def test_where_a_document_is_broken_is_said_whatever_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, document: str, what: str
) -> None:
    monkeypatch.setattr(text, "PIECE", piece)
    (tmp_path / "a.json").write_text(document or " ")
    assert f"not JSON: {what} ({tmp_path}/a.json)." in failure(tmp_path / "a.json")


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 1000])
def test_bytes_that_are_no_text_are_found_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(text, "PIECE", piece)
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + '["ä€😀"]'.encode())
    assert [row for _, row in read_rows(path)] == ["ä€😀"]
    for bad, what in ((b"\xff", "byte 6 is not UTF-8"), (b"\xe2\x82", "byte 6 is not UTF-8"), (b"\0", "byte 6 is NUL")):
        path.write_bytes('["ä",'.encode() + bad + b'"zanzibar"]')
        assert what in failure(path) and "line 1" in failure(path)
    path.write_bytes('["ä", "€'.encode()[:-1])
    assert "is not UTF-8" in failure(path)


def test_a_row_of_an_array_that_cannot_be_read_is_one_row_less(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1, "a": 2}, "b", ' + "1" * 5000 + ', {"a": 1}]')
    rows = dict(json_rows(tmp_path / "a.json"))
    assert rows["row 2"] == "b" and rows["row 4"] == {"a": 1}
    faults = [row.what for row in rows.values() if isinstance(row, MalformedRowError)]
    assert faults == ["a key is there twice in one object", "the JSON holds a number of too many digits"]


def test_a_large_array_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" + ",".join([json.dumps({"prompt": "a" * 1000})] * 5_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / "a.json")) == 5_000
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def as_parquet(table: pa.Table, path: Path) -> str:
    parquet.write_table(table, path / "a.parquet")
    return str(path / "a.parquet")


def as_arrow_file(table: pa.Table, path: Path) -> str:
    with pa.OSFile(str(path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return str(path / "a.arrow")


def as_arrow_stream(table: pa.Table, path: Path) -> str:
    with pa.OSFile(str(path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return str(path / "b.arrow")


def as_folder(table: pa.Table, path: Path) -> str:
    datasets.Dataset(table).save_to_disk(path / "saved")
    return str(path / "saved")


def as_split(table: pa.Table, path: Path) -> str:
    data = datasets.Dataset(table)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(path / "splits")
    return f"{path}/splits@train"


@pytest.mark.parametrize("write", [as_parquet, as_arrow_file, as_arrow_stream, as_folder, as_split])
def test_arrow_formats_give_the_same_prompts_as_lines(write: Callable[[pa.Table, Path], str], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    lines = load_workload(str(tmp_path / "a.jsonl"))
    found = load_workload(write(pa.Table.from_pylist(ROWS), tmp_path))
    assert found.prompts == lines.prompts and found.sha256 == lines.sha256


def test_splits_of_a_saved_data_set_are_named(tmp_path: Path) -> None:
    as_split(pa.Table.from_pylist(ROWS), tmp_path)
    folder = tmp_path / "splits"
    assert f"has several splits: train, test ({folder}). Name one: {folder}@train." in failure(folder)
    assert f"no such split; it has: train, test ({folder}). Name one: {folder}@train." in failure(f"{folder}@dev")
    assert len(load_workload(f"{folder}@test").prompts) == 1
    single = as_folder(pa.Table.from_pylist(ROWS), tmp_path)
    assert "has no splits" in failure(f"{single}@train")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "one")
    assert len(load_workload(str(tmp_path / "one")).prompts) == 2
    (folder / "dataset_dict.json").write_text('{"splits": "zanzibar"')
    assert "dataset_dict.json names no splits" in failure(folder)


def test_a_damaged_saved_data_set(tmp_path: Path) -> None:
    folder = Path(as_folder(pa.Table.from_pylist([{"prompt": SECRET}] * 99), tmp_path))
    (data,) = folder.glob("*.arrow")
    data.write_bytes(data.read_bytes()[:-200])
    assert "not a folder of datasets.save_to_disk, or damaged or cut short" in failure(folder)
    (folder / "state.json").write_text("[]")
    assert "not a folder of datasets.save_to_disk, or damaged or cut short" in failure(folder)


@pytest.mark.parametrize("write", [as_arrow_file, as_arrow_stream])
def test_an_arrow_file_cut_short(write: Callable[[pa.Table, Path], str], tmp_path: Path) -> None:
    path = Path(write(pa.Table.from_pylist([{"prompt": SECRET}] * 99), tmp_path))
    path.write_bytes(path.read_bytes()[:-150])
    assert "not an Arrow file, or damaged or cut short" in failure(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"id,prompt,,\n1,hi,,\n2,two,,\n"),
        ("a.csv", b",prompt\n0,hi\n1,two\n"),
        ("a.csv", b",,prompt\n0,a,hi\n1,b,two\n"),
        ("a.json", b'{"prompt": ["hi", "two"]}'),
        ("a.json", b'{"model": "m", "conversations": [{"prompt": "hi"}, {"prompt": "two"}]}'),
    ],
)
def test_columns_without_a_name_and_lists_of_rows_are_known(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert [prompt.messages[-1].content for prompt in load_workload(str(tmp_path / name)).prompts] == ["hi", "two"]


def test_a_file_whose_name_has_an_at_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a@b.txt").write_text("hi")
    assert len(load_workload(str(tmp_path / "a@b.txt")).prompts) == 1
    assert "No such workload file" in failure(tmp_path / "c@b.txt")
