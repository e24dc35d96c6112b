"""Bytes on disk -> numbered lines of text, with every way in which a text file can disappoint."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from specbench.errors import WorkloadError

# A prompt of a million tokens is some 4 MiB. Beyond these a file is broken, or would not fit into memory.
LONGEST_LINE = 64 << 20  # bytes of one line, and of one cell of a CSV file
LARGEST_FILE = 4 << 30  # bytes of text, unpacked

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def text_lines(path: Path, *, longest: int | None = None, largest: int | None = None) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, line end kept, one line in memory at a time.

    Only "\\n" ends a line: a prompt may hold U+2028 and its like. A byte-order mark is dropped; `.gz` is
    unpacked. Byte offsets in errors count from 0 in the unpacked file. Refused are a line of more than `longest` bytes
    (None: LONGEST_LINE), before it is read further, and a file of more than `largest` (None: LARGEST_FILE).
    """
    longest, largest = longest or LONGEST_LINE, largest or LARGEST_FILE
    try:
        with _open(path) as stream:
            offset = number = 0
            while raw := stream.readline(longest + 1):
                number += 1
                _check_size(raw, offset, path, number, longest, largest)
                yield number, _decode(raw, offset, path, number)
                offset += len(raw)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise WorkloadError(
            "the gzip file is damaged or cut short", where=str(path), cure="Copy or compress it again."
        ) from None
    except OSError as error:
        raise WorkloadError(
            f"cannot read the file: {error.strerror or type(error).__name__}",
            where=str(path),
            cure="Check the disk and the permissions.",
        ) from None


def _check_size(raw: bytes, offset: int, path: Path, number: int, longest: int, largest: int) -> None:
    # A UTF-16 file has few line ends that are bytes; what it is says more than how long its lines are.
    if len(raw) > longest and not (offset == 0 and raw.startswith(_UTF16)) and raw.find(b"\0") < 0:
        raise WorkloadError(
            f"the line is longer than {_size(longest)}",
            where=f"{path}, line {number}",
            cure="One prompt a line; cut or drop what is longer.",
        )
    if offset + len(raw) > largest:
        raise WorkloadError(
            f"the file holds more than {_size(largest)} of text", where=str(path), cure="Cut it into smaller files."
        )


def _size(count: int) -> str:
    return f"{count >> 20:,} MiB" if count >= 1 << 20 else f"{count:,} bytes"


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    return path.open("rb")


def _decode(raw: bytes, offset: int, path: Path, number: int) -> str:
    """One line as text. `offset` is that of its first byte in the file."""
    where = f"{path}, line {number}"
    start = 0
    if offset == 0:
        if raw.startswith(_UTF16):
            raise WorkloadError(
                "the file is UTF-16, not UTF-8", where=str(path), cure="Convert it: iconv -f UTF-16 -t UTF-8."
            )
        start = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    if (nul := raw.find(b"\0")) >= 0:
        raise WorkloadError(
            f"the file is binary: byte {offset + nul} is NUL",
            where=where,
            cure="Give a text file in UTF-8, or name a Parquet file .parquet.",
        )
    try:
        return raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise WorkloadError(
            f"byte {offset + start + error.start} is not UTF-8",
            where=where,
            cure="Save the file as UTF-8, for example with iconv -t UTF-8.",
        ) from None
