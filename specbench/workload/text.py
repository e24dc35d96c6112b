"""Bytes on disk -> numbered lines, and JSON text -> rows, with every way in which a text file can disappoint. Values
are those of Python's own reader in every format, so that the same rows have the same hash; a document is read row by
row, so that its size is no matter.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias

from specbench.errors import WorkloadError
from specbench.validation import kind_of
from specbench.workload.conversation import looks_like_turns
from specbench.workload.faults import MalformedRowError, list_names

# A prompt of a million tokens is some 4 MiB. Beyond these a file is broken, or would not fit into memory.
LONGEST_LINE = 64 << 20  # bytes of one line, of one cell of a CSV file, and of one row of a .json file
LARGEST_FILE = 4 << 30  # bytes of text, unpacked

PACKED = (".gz", ".zst")
PIECE = 64 << 10  # bytes

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, line end kept, one line in memory at a time.

    Only "\\n" ends a line: a prompt may hold U+2028 and its like. A byte-order mark is dropped; `.gz` and `.zst` are
    unpacked. Byte offsets in errors count from 0 in the unpacked file. Refused are a line of more than LONGEST_LINE,
    before it is read further, and a file of more than LARGEST_FILE.
    """
    with _opened(path) as stream:
        offset = number = 0
        while raw := stream.readline(LONGEST_LINE + 1):
            number += 1
            yield number, _decoded(raw, offset, path, number)
            offset += len(raw)


def text_pieces(path: Path) -> Iterator[str]:
    """The same text in pieces of at most PIECE bytes, for a document whose lines may be of any length."""
    with _opened(path) as stream:
        offset, number, kept = 0, 1, b""
        while raw := stream.readline(PIECE):
            whole = kept + raw
            # The last character may go on in the next piece, which ends at a line's end or at the file's.
            cut = codecs.utf_8_decode(whole, "replace", len(raw) < PIECE)[1]
            yield _decoded(whole[:cut], offset - len(kept), path, number)
            offset, kept = offset + len(raw), whole[cut:]
            number += raw.endswith(b"\n")
        if kept:
            yield _decoded(kept, offset - len(kept), path, number)


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


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() == ".zst":
        import pyarrow  # says where a file was cut short, which the usual library for this reads as its end

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _decoded(raw: bytes, offset: int, path: Path, number: int) -> str:
    """A line or a piece as text. `offset` is that of its first byte in the file."""
    where = f"{path}, line {number}"
    if offset == 0 and raw.startswith(_UTF16):
        raise WorkloadError(
            "the file is UTF-16, not UTF-8", where=str(path), hint="Convert it: iconv -f UTF-16 -t UTF-8."
        )
    if (nul := raw.find(b"\0")) >= 0:
        raise WorkloadError(
            f"the file is binary: byte {offset + nul} is NUL",
            where=where,
            hint="Give a text file in UTF-8, or name a Parquet file .parquet.",
        )
    if len(raw) > LONGEST_LINE:
        raise WorkloadError(
            f"the line is longer than {LONGEST_LINE >> 20} MiB",
            where=where,
            hint="One prompt a line; cut or drop what is longer.",
        )
    if offset + len(raw) > LARGEST_FILE:
        raise WorkloadError(
            f"the file holds more than {LARGEST_FILE >> 20:,} MiB of text",
            where=str(path),
            hint="Cut it into smaller files.",
        )
    start = len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0
    try:
        return raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise WorkloadError(
            f"byte {offset + start + error.start} is not UTF-8",
            where=where,
            hint="Save the file as UTF-8, for example with iconv -t UTF-8.",
        ) from None


Row: TypeAlias = tuple[str, object]  # "line 12" or "row 12", and the parsed value or why it cannot be read

_LINES = "One JSON object a line; a JSON document over several lines belongs in a .json file."
_DOCUMENT = "Mend the JSON, or use .jsonl for one object a line."
# What a row has and no list of rows stands under, or beside.
_TURNS, _TEXTS = ("messages", "conversations", "turns"), ("prompt", "instruction")


def jsonl_rows(path: Path) -> Iterator[Row]:
    """A line that is not JSON is one row less; only a document over several lines is none of our files."""
    first = True
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            row = _Decoder(_LINES).decode(line)
        except json.JSONDecodeError as error:
            what = f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
            row = MalformedRowError(what, _LINES)
        except RecursionError:
            row = MalformedRowError("the JSON is nested too deeply", _LINES)
        if isinstance(row, MalformedRowError) and first and (line.lstrip()[0] == "[" or line.strip() == "{"):
            raise WorkloadError(row.what, where=f"{path}, line {number}", hint=row.hint)
        yield f"line {number}", row
        first = False


def json_rows(path: Path) -> Iterator[Row]:
    """Rows of an array, or of the one list in an object."""
    document = _Document(path)
    opening = document.peek()
    if opening == "[":
        yield from document.array("")
        document.end()
        return
    if opening != "{":
        value = document.value()
        document.end()
        if isinstance(value, MalformedRowError):
            raise WorkloadError(value.what, where=str(path), hint=value.hint)
        raise WorkloadError(
            f"the JSON document is {kind_of(value)}, not rows", where=str(path), hint="Give an array of rows."
        )
    keys: list[str] = []
    lists, asked = 0, False
    lone = WorkloadError(
        "the JSON document is one row, not rows", where=str(path), hint="Put it in [ ], an array of one row."
    )
    for key in document.members():
        if key in keys:
            raise WorkloadError("a key is there twice in one object", where=str(path), hint=_DOCUMENT)
        keys.append(key)
        if document.peek() == "[":
            lists += 1
            if asked:
                raise lone
            for place, row in document.array(f" of {list_names([key])}"):
                if key in _TURNS and (looks_like_turns([row]) or (key == "turns" and isinstance(row, str))):
                    raise lone
                yield place, row
        else:
            asked |= isinstance(document.value(), str) and key in _TEXTS
    document.end()
    if asked:
        raise lone
    if lists != 1:
        raise WorkloadError(
            f"the JSON object holds {lists or 'no'} lists, so which one is the rows? Its keys: {list_names(keys)}",
            where=str(path),
            hint='Give an array of rows, or an object with one list such as {"data": [...]}.',
        )


class _Decoder(json.JSONDecoder):
    """Reads a MalformedRowError where what is wrong with a value still leaves its end known: Python keeps the last of
    several equal keys, and which one was meant is not ours to guess."""

    def __init__(self, hint: str) -> None:
        super().__init__(object_pairs_hook=self._once, parse_int=self._int)
        self._hint = hint
        self._fault: str | None = None

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        self._fault = None
        value, end = super().raw_decode(s, idx)
        return value if self._fault is None else MalformedRowError(self._fault, self._hint), end

    def _once(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._fault = "a key is there twice in one object"
        return found

    def _int(self, digits: str) -> int:
        with suppress(ValueError):  # Python refuses integers of more than 4,300 digits
            return int(digits)
        self._fault = "the JSON holds a number of too many digits"
        return 0


class _Document:
    """A JSON document of which only the value being read is in memory. Raises WorkloadError with line and column."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = text_pieces(path)
        self._decoder = _Decoder(_DOCUMENT)
        self._text, self._at = "", 0  # what was read and not yet dropped, and how far it is used
        self._lines, self._column = 0, 0  # line ends dropped, and characters after the last of them

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\n\r":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def array(self, name: str) -> Iterator[Row]:
        for number, _ in enumerate(self._items("[", "]"), start=1):
            yield f"row {number}{name}", self.value()

    def members(self) -> Iterator[str]:
        for _ in self._items("{", "}"):
            if self.peek() != '"':
                self._fail("Expecting property name enclosed in double quotes", self._at)
            key = self.value()
            assert isinstance(key, str)
            if self.peek() != ":":
                self._fail("Expecting ':' delimiter", self._at)
            self._at += 1
            yield key

    def value(self) -> object:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # Whatever follows could belong to a number: of `1.5` a cut may leave `1.`
                number = self._text[end - 1].isdigit() and self._text[end : end + 1] in "0123456789.eE+-"
                whole = end < len(self._text) and not (number and end >= len(self._text) - 4)
                if whole or not self._more():
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                # Whether this is wrong or only cut shows where there is more.
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                if not (cut and self._more()):
                    self._fail(error.msg, error.pos)
            except RecursionError:
                raise WorkloadError("the JSON is nested too deeply", where=str(self._path), hint=_DOCUMENT) from None
            if len(self._text) - self._at > LONGEST_LINE:
                raise WorkloadError(
                    f"a row is longer than {LONGEST_LINE >> 20} MiB",
                    where=f"{self._path}, line {self._place(self._at)[0]}",
                    hint="Cut or drop what is longer.",
                )

    def end(self) -> None:
        """Raises WorkloadError where anything follows."""
        if self.peek():
            self._fail("Extra data", self._at)

    def _items(self, opening: str, closing: str) -> Iterable[None]:
        """Once before each item between brackets; the caller reads it."""
        assert self.peek() == opening
        self._at += 1
        if self.peek() == closing:
            self._at += 1
            return
        while True:
            yield None
            after = self.peek()
            if after not in (closing, ","):
                self._fail("Expecting ',' delimiter", self._at)
            self._at += 1
            if after == closing:
                return

    def _more(self) -> bool:
        """As much again as is there and unused, and the used part dropped, which moves all positions; at the end False,
        and nothing has moved."""
        unused = self._text[self._at :]
        wanted, added = max(len(unused), PIECE), ""
        while len(added) < wanted and (piece := next(self._pieces, None)) is not None:
            added += piece
        if not added:
            return False
        used = self._text[: self._at]
        ends = used.count("\n")
        self._lines += ends
        self._column = len(used) - used.rfind("\n") - 1 if ends else self._column + len(used)
        self._text, self._at = unused + added, 0
        return True

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column, from 1, of a position in the text that is held."""
        before = self._text[:position]
        ends = before.count("\n")
        column = len(before) - before.rfind("\n") if ends else self._column + len(before) + 1
        return self._lines + ends + 1, column

    def _fail(self, what: str, position: int) -> NoReturn:
        line, column = self._place(position)
        what = f"not JSON: {what.removesuffix(' at')} at line {line} column {column}"
        # Not chained: the reader's own error holds the text.
        raise WorkloadError(what, where=str(self._path), hint=_DOCUMENT) from None
