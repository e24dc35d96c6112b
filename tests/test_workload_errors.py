"""Every error of reading a workload: what, where and hint on one line, and never the prompts themselves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from specbench.errors import WorkloadError
from specbench.workload import load_workload

SECRET = "zanzibar"


def failure(path: Path | str, **options: str) -> str:
    """The error's line, after what holds for every one of them."""
    with pytest.raises(WorkloadError) as caught:
        load_workload(str(path), **options)
    error = caught.value
    assert error.exit_code == 2
    assert error.where is not None and str(path) in error.where
    assert error.hint and error.hint in error.line()
    assert "\n" not in error.line() and SECRET not in error.line()
    # A chained exception would carry the text into a traceback or a log.
    assert error.__suppress_context__ or error.__context__ is None
    return error.line()


CONTENT: list[tuple[str, bytes, str, str]] = [
    ("a.jsonl", b"", "the workload file is empty", "Put at least one prompt"),
    ("a.jsonl", b"\n \n", "the workload holds no prompts", "30 or more"),
    ("a.json", b"[]", "the workload holds no prompts", "30 or more"),
    ("a.jsonl", b'{"prompt": ""}\n{"prompt": " "}', "every row was skipped (2), line 1 because: empty prompt", "Give"),
    ("a.jsonl", b'{"prompt": "zanzibar', "not JSON: Unterminated string", ".json file"),
    ("a.jsonl", b'[{"prompt": "zanzibar"},\n{"prompt": "b"}]', "not JSON: Expecting value", ".json file"),
    ("a.jsonl", b'{\n"prompt": "zanzibar"\n}\n"b"', "not JSON: Expecting property name", ".json file"),
    ("a.jsonl", b"\n\nzanzibar", "Expecting value at column 1 (PATH, line 3)", "One JSON object a line"),
    ("a.jsonl", b'{"prompt": "ok"} zanzibar', "not JSON: Extra data at column 18 (PATH, line 1)", "One JSON object"),
    ("a.jsonl", b'{"prompt": ' + b"[" * 100_000, "nested too deeply (PATH, line 1)", "One JSON object"),
    ("a.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", "a number of too many digits (PATH, line 1)", "One JSON object"),
    ("a.jsonl", b'{"prompt": 42}\n3', "prompt is a number, not a list of messages (PATH, line 1)", "--c"),
    ("a.jsonl", b"\n3", "the row is a number, not an object (PATH, line 2)", "Give one object"),
    ("a.jsonl", b'{"q": "zanzibar"}', "its columns: q (PATH, line 1)", "--column NAME"),
    ("a.json", b'{"prompt": \n "zanzibar"', "at line 2 column 12 (PATH)", "Mend the JSON"),
    ("a.json", b'"zanzibar"', "the JSON document is text, not rows (PATH)", "Give an array"),
    ("a.json", b'{"a": [], "b": ["zanzibar"]}', "holds 2 lists, so which one is the rows? Its keys: a, b", '{"data": '),
    ("a.json", b'{"a": {"0": "zanzibar"}}', "holds no lists", '{"data": '),
    ("a.json", b'{"data": [1, ["zanzibar"]]}', "the row is a number, not an object (PATH, row 1 of data)", "Give one"),
    ("a.json", b'{"prompt": "zanzibar", "stop": ["###"]}', "the JSON document is one row, not rows (PATH)", "in [ ]"),
    ("a.json", b'{"stop": ["###"], "instruction": "zanzibar"}', "the JSON document is one row, not rows", "in [ ]"),
    ("a.json", b'{"prompt": "zanzibar"}', "the JSON document is one row, not rows", "in [ ]"),
    ("a.json", b'{"messages": [{"role": "user", "content": "zanzibar"}]}', "is one row, not rows", "in [ ]"),
    ("a.json", b'{"conversations": [{"from": "human", "value": "zanzibar"}]}', "is one row, not rows", "in [ ]"),
    ("a.json", b'{"turns": ["zanzibar", "b"]}', "is one row, not rows", "in [ ]"),
    ("a.csv", b"id;prompt\n1;zanzibar, b\n", "one column and holds a semicolon (PATH, line 1)", ".tsv with tabs"),
    ("a.csv", b"id\tprompt\n1\tzanzibar\n", "one column and holds a tab (PATH, line 1)", ".tsv with tabs"),
    ("a.tsv", b"id,prompt\n1,zanzibar\n", "one column and holds a comma (PATH, line 1)", ".csv with commas"),
    ("a.csv", b"id,prompt,,\n1,zanzibar, b,\n", "a cell stands under a column without a name (PATH, line 2)", "quote"),
    ("a.csv", b"id,prompt,\n1,zanzibar, b\n", "a cell stands under a column without a name (PATH, line 2)", "quote"),
    ("a.csv", b"id,prompt\n1,zanzibar,x\n", "the row has 3 cells, the header 2 (PATH, line 2)", "Quote cells"),
    ("a.csv", b'id,prompt\n,"\n"\n2\n', "the row has 1 cells, the header 2 (PATH, line 4)", "Quote cells"),
    ("a.csv", b'id,prompt\n1,"zanzibar', "not readable as CSV: unexpected end of data (PATH, line 2)", "quotes"),
    ("a.csv", b"prompt,prompt\na,zanzibar\n", "two columns of the header share a name (PATH, line 1)", "Name each"),
    (
        "a.csv",
        b"Tell me of zanzibar,x y\na,b\n",
        "columns: 2 not shown because they may be prompt text",
        "--column NAME",
    ),
    ("a.csv", b"id,prompt\n", "the workload holds no prompts", "30 or more"),
    ("a.txt", b"ok\nzanzi\xffbar\n", "byte 8 is not UTF-8 (PATH, line 2)", "iconv"),
    ("a.txt", b"\xef\xbb\xbfzan\xe9\n", "byte 6 is not UTF-8 (PATH, line 1)", "iconv"),
    ("a.txt", b"ok\nzanzi\0bar\n", "the file is binary: byte 8 is NUL (PATH, line 2)", ".parquet"),
    ("a.txt", "zanzibar".encode("utf-16"), "the file is UTF-16, not UTF-8", "iconv"),
    ("a.csv", b"PAR1\0\0zanzibar", "the file is binary: byte 4 is NUL", ".parquet"),
    ("a.parquet", b"zanzibar", "not a Parquet file, or damaged or cut short (PATH)", "write it again"),
    ("a.jsonl.gz", b"zanzibar", "the gzip file is damaged or cut short", "compress it again"),
    ("a.txt.gz", gzip.compress(b"zanzibar " * 999)[:-9], "the gzip file is damaged or cut short", "compress it again"),
    (
        "a.docx",
        b"zanzibar",
        "unknown workload format .docx (PATH)",
        ".jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet, .arrow",
    ),
    ("prompts", b"zanzibar", "unknown workload format (no extension)", "Known extensions"),
    ("a.parquet.gz", b"zanzibar", "unknown workload format .parquet.gz", "all but .parquet"),
]


# The usual ids would put the data into tmp_path, and so into `where`.
@pytest.mark.parametrize(
    ("name", "data", "what", "hint"), CONTENT, ids=[f"{case[0]}{n}" for n, case in enumerate(CONTENT)]
)
def test_content(tmp_path: Path, name: str, data: bytes, what: str, hint: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    line = failure(path)
    assert what.replace("PATH", str(path)) in line
    assert hint in line


def test_missing_file(tmp_path: Path) -> None:
    assert "No such workload file" in failure(tmp_path / "none.jsonl")


def test_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot read the file: Not a directory" in failure(tmp_path / "file" / "a.txt")


@pytest.mark.parametrize("name", ["folder", "folder.jsonl"])
def test_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "the workload is a directory" in failure(tmp_path / name)


def test_truncated_parquet(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"prompt": [SECRET] * 50}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a Parquet file, or damaged or cut short" in failure(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_unknown_columns_list_those_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(f"id,prompt\n1,{SECRET}\n" if name == "a.csv" else json.dumps({"id": 1, "prompt": SECRET}))
    assert "no column text; found: id, prompt" in failure(path, column="text")
    assert "no column topic; found: id, prompt" in failure(path, category_column="topic")


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SECRET)
    assert "plain text without columns" in failure(tmp_path / "a.txt", column="prompt")
    assert "no column topic; found: none" in failure(tmp_path / "a.txt", category_column="topic")


def test_category_of_the_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": SECRET, "tags": [SECRET]}))
    assert f"the category is a list, not text ({path}, line 1)" in failure(path, category_column="tags")


def test_a_category_column_that_some_rows_lack_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "topic": "t"}\n')
    assert [prompt.category for prompt in load_workload(str(path), category_column="topic").prompts] == [None, "t"]
