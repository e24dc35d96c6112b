"""Bytes on disk -> numbered lines or pieces of text, with every way in which a text file can disappoint."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from specbench.errors import WorkloadError

# A prompt of a million tokens is some 4 MiB. Beyond these a file is broken, or would not fit into memory.
LONGEST_LINE = 64 << 20  # bytes of one line, of one cell of a CSV file, and of one row of a .json file
LARGEST_FILE = 4 << 30  # bytes of text, unpacked

PACKED = (".gz", ".zst")
PIECE = 64 << 10  # bytes

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def text_lines(path: Path, *, longest: int | None = None, largest: int | None = None) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, line end kept, one line in memory at a time.

    Only "\\n" ends a line: a prompt may hold U+2028 and its like. A byte-order mark is dropped; `.gz` and `.zst` are
    unpacked. Byte offsets in errors count from 0 in the unpacked file. Refused are a line of more than `longest` bytes
    (None: LONGEST_LINE), before it is read further, and a file of more than `largest` (None: LARGEST_FILE).
    """
    longest, largest = longest or LONGEST_LINE, largest or LARGEST_FILE
    with _opened(path) as stream:
        offset = number = 0
        while raw := stream.readline(longest + 1):
            number += 1
            _check_size(raw, offset, path, number, longest, largest)
            yield number, _decode(raw, offset, path, number)
            offset += len(raw)


def text_pieces(path: Path, *, largest: int | None = None) -> Iterator[str]:
    """The same text in pieces of at most PIECE bytes, for a document whose lines may be of any length."""
    largest = largest or LARGEST_FILE
    with _opened(path) as stream:
        offset, number, kept = 0, 1, b""
        while raw := stream.readline(PIECE):
            _check_size(raw, offset, path, number, largest, largest)
            whole = kept + raw
            # The last character may go on in the next piece, which ends at a line's end or at the file's.
            cut = _whole_characters(whole) if len(raw) == PIECE else len(whole)
            yield _decode(whole[:cut], offset - len(kept), path, number)
            offset, kept = offset + len(raw), whole[cut:]
            number += raw.endswith(b"\n")
        if kept:
            yield _decode(kept, offset - len(kept), path, number)


def _whole_characters(raw: bytes) -> int:
    """Bytes up to the start of a UTF-8 character that the end cuts."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte >= 0xC0:  # the first of two, three or four
            return len(raw) - back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else len(raw)
        if byte < 0x80:
            break
    return len(raw)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The unpacked bytes; what goes wrong while they are read is a WorkloadError."""
    kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    damaged = WorkloadError(
        f"the {kind} file is damaged or cut short", where=str(path), hint="Copy or compress it again."
    )
    try:
        with _open(path) as stream:
            yield stream
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise damaged from None
    except OSError as error:
        if kind == "zstd" and error.errno is None:  # of the unpacking library, not of the system
            raise damaged from None
        raise WorkloadError(
            f"cannot read the file: {error.strerror or type(error).__name__}",
            where=str(path),
            hint="Check the disk and the permissions.",
        ) from None


def _check_size(raw: bytes, offset: int, path: Path, number: int, longest: int, largest: int) -> None:
    # A UTF-16 file has few line ends that are bytes; what it is says more than how long its lines are.
    if len(raw) > longest and not (offset == 0 and raw.startswith(_UTF16)) and raw.find(b"\0") < 0:
        raise WorkloadError(
            f"the line is longer than {size(longest)}",
            where=f"{path}, line {number}",
            hint="One prompt a line; cut or drop what is longer.",
        )
    if offset + len(raw) > largest:
        raise WorkloadError(
            f"the file holds more than {size(largest)} of text", where=str(path), hint="Cut it into smaller files."
        )


def size(count: int) -> str:
    """`64 MiB`, or bytes below one."""
    return f"{count >> 20:,} MiB" if count >= 1 << 20 else f"{count:,} bytes"


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() == ".zst":
        import pyarrow  # says where a file was cut short, which the usual library for this reads as its end

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _decode(raw: bytes, offset: int, path: Path, number: int) -> str:
    """One line as text. `offset` is that of its first byte in the file."""
    where = f"{path}, line {number}"
    start = 0
    if offset == 0:
        if raw.startswith(_UTF16):
            raise WorkloadError(
                "the file is UTF-16, not UTF-8", where=str(path), hint="Convert it: iconv -f UTF-16 -t UTF-8."
            )
        start = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    if (nul := raw.find(b"\0")) >= 0:
        raise WorkloadError(
            f"the file is binary: byte {offset + nul} is NUL",
            where=where,
            hint="Give a text file in UTF-8, or name a Parquet file .parquet.",
        )
    try:
        return raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise WorkloadError(
            f"byte {offset + start + error.start} is not UTF-8",
            where=where,
            hint="Save the file as UTF-8, for example with iconv -t UTF-8.",
        ) from None
