"""Bad prompt files and configurations that are no short text: name, file, how it is made, what is said of it."""

# A case is a line here.
# ruff: noqa: E501

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from bad_inputs.judging import CANARY

GOOD = b'{"prompt": "good"}\n'
BAD = f'{{"prompt": "{CANARY}"}}\n'.encode()


def packed(table: pa.Table, path: Path) -> bytes:
    parquet.write_table(table, path)
    return path.read_bytes()


def parquet_bytes(**columns: Any) -> Callable[[Path], bytes]:
    return lambda path: packed(pa.table(columns), path)


def twice(path: Path) -> bytes:
    return packed(pa.Table.from_arrays([pa.array(["a"]), pa.array([CANARY])], names=["prompt", "prompt"]), path)


Recipe = bytes | Callable[[Path], bytes]
# Name, file, recipe, what is said.
BINARY: list[tuple[str, str, Recipe, str]] = [
    (
        "UTF-16",
        "a.jsonl",
        BAD.decode().encode("utf-16"),
        "the file is UTF-16, not UTF-8 (a.jsonl). Convert it: iconv -f UTF-16 -t UTF-8.",
    ),
    (
        "UTF-16 without a mark",
        "a.jsonl",
        BAD.decode().encode("utf-16-le"),
        "the file is binary: byte 1 is NUL (a.jsonl, line 1). Give a text file in UTF-8",
    ),
    (
        "Latin-1",
        "a.txt",
        f"{CANARY} caf\xe9".encode("latin-1"),
        "byte 20 is not UTF-8 (a.txt, line 1). Save the file as UTF-8",
    ),
    ("invalid UTF-8", "a.jsonl", GOOD + BAD[:20] + b"\xff" + BAD[20:], "byte 39 is not UTF-8 (a.jsonl, line 2)."),
    ("NUL bytes", "a.jsonl", GOOD + BAD[:20] + b"\0" + BAD[20:], "the file is binary: byte 39 is NUL (a.jsonl, line 2)."),
    ("cut gzip", "a.jsonl.gz", gzip.compress(BAD * 999)[:-9], "the gzip file is damaged or cut short (a.jsonl.gz)."),
    ("garbled gzip", "a.jsonl.gz", gzip.compress(BAD * 9)[:20] + b"x" * 30, "the gzip file is damaged or cut short"),
    ("100,000 brackets", "a.jsonl", b'{"prompt": ' + b"[" * 100_000, "the JSON is nested too deeply (a.jsonl, line 1)."),
    ("100,000 objects", "a.json", b'{"a":' * 100_000, "the JSON is nested too deeply (a.json)."),
    ("5,000 digits", "a.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", "the JSON holds a number of too many digits"),
    (
        "cut Parquet",
        "a.parquet",
        lambda path: parquet_bytes(prompt=[CANARY] * 50)(path)[:-20],
        "not a Parquet file, or damaged or cut short (a.parquet). Copy or write it again.",
    ),
    (
        "Parquet with a garbled page",
        "a.parquet",
        lambda path: (data := parquet_bytes(prompt=[CANARY * 9] * 50)(path))[:8] + b"\xff" * 60 + data[68:],
        "not a Parquet file, or damaged or cut short (a.parquet). Copy or write it again.",
    ),
    (
        "Parquet of bytes",
        "a.parquet",
        parquet_bytes(prompt=[CANARY.encode()]),
        "prompt is of type bytes, not a list of messages (a.parquet, row 1).",
    ),
    ("Parquet with a column twice", "a.parquet", twice, "two columns of the header share a name (a.parquet)."),
]  # fmt: skip


CONFIG_BYTES: list[tuple[str, bytes, str]] = [
    ("UTF-16", "gamma: 1".encode("utf-16"), "Not UTF-8: byte 0 (bad.yaml). Save the file as UTF-8"),
    ("100,000 brackets", b"gamma: " + b"[" * 100_000, "Not readable as YAML: nested too deeply (bad.yaml)."),
    ("a megabyte", b"#" * (1 << 20), "A configuration is no larger than 256 KiB (bad.yaml). Check the path."),
    ("NUL", b"gamma: 1\n\0", "Not readable as YAML: a control character (bad.yaml, line 2). Mend that line."),
    ("5,000 digits", b"limit: " + b"1" * 5000, "Not readable as YAML: a number or a date that does not exist (bad.yaml)"),
]  # fmt: skip
