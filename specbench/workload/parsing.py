"""JSON text -> rows. Values are those of Python's own reader in every format, so that the same rows have the same hash;
a document is read row by row, so that its size is no matter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypeAlias

from specbench.errors import WorkloadError
from specbench.validation import kind_of
from specbench.workload import text
from specbench.workload.faults import MalformedRowError
from specbench.workload.naming import list_names

Row: TypeAlias = tuple[str, object]  # "line 12" or "row 12", and the parsed value or why it cannot be read

_LINES = "One JSON object a line; a JSON document over several lines belongs in a .json file."
_DOCUMENT = "Mend the JSON, or use .jsonl for one object a line."
_DIGITS = 4300  # Python refuses integers of more


def jsonl_rows(path: Path) -> Iterator[Row]:
    """A line that is not JSON is one row less; only a document over several lines is none of our files."""
    first = True
    for number, line in text.text_lines(path):
        if not line.strip():
            continue
        try:
            yield f"line {number}", _one(line)
        except MalformedRowError as fault:
            if first and (line.lstrip()[0] == "[" or line.strip() == "{"):
                raise WorkloadError(fault.what, where=f"{path}, line {number}", hint=fault.hint) from None
            yield f"line {number}", fault
        first = False


def _one(line: str) -> object:
    decoder = _Decoder()
    try:
        return decoder.checked(decoder.decode(line), _LINES)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except RecursionError:
        what = "the JSON is nested too deeply"
    raise MalformedRowError(what, _LINES)


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
    lists = 0
    for key in document.members():
        if key in keys:
            raise WorkloadError("a key is there twice in one object", where=str(path), hint=_DOCUMENT)
        keys.append(key)
        if document.peek() == "[":
            lists += 1
            yield from document.array(f" of {list_names([key])}")
        else:
            document.value()
    document.end()
    if lists != 1:
        raise WorkloadError(
            f"the JSON object holds {lists or 'no'} lists, so which one is the rows? Its keys: {list_names(keys)}",
            where=str(path),
            hint='Give an array of rows, or an object with one list such as {"data": [...]}.',
        )


class _Decoder(json.JSONDecoder):
    """Notes what is wrong with a value whose end can still be told: Python keeps the last of several equal keys, and
    which one was meant is not ours to guess."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._once, parse_int=self._int)
        self._fault: str | None = None

    def checked(self, value: object, hint: str) -> object:
        """The value. Raises MalformedRowError for one with a fault."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise MalformedRowError(fault, hint)
        return value

    def forget(self) -> None:
        self._fault = None

    def _once(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._fault = "a key is there twice in one object"
        return found

    def _int(self, digits: str) -> int:
        if len(digits) > _DIGITS:
            self._fault = "the JSON holds a number of too many digits"
            return 0
        return int(digits)


class _Document:
    """A JSON document of which only the value being read is in memory. Raises WorkloadError with line and column."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces: Iterator[str] = text.text_pieces(path)
        self._decoder = _Decoder()
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
        """The rows of the array that begins here."""
        for number, _ in enumerate(self._items("[", "]"), start=1):
            yield f"row {number}{name}", self.value()

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; whoever takes one reads its value."""
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
        """The value that begins here, or the MalformedRowError of one whose end is known all the same."""
        self.peek()
        longest = text.LONGEST_LINE
        while True:
            ended = False
            try:
                self._decoder.forget()
                value, end = self._decoder.raw_decode(self._text, self._at)
                ended = self._complete(value, end) or not self._more()
            except json.JSONDecodeError as error:
                # Whether this is wrong or only cut shows where there is more.
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                if not (cut and self._more()):
                    self._fail(error.msg, error.pos)
            except RecursionError:
                raise WorkloadError("the JSON is nested too deeply", where=str(self._path), hint=_DOCUMENT) from None
            if ended:
                self._at = end
                try:
                    return self._decoder.checked(value, _DOCUMENT)
                except MalformedRowError as fault:
                    return fault
            if len(self._text) - self._at > longest:
                line = self._place(self._at)[0]
                raise WorkloadError(
                    f"a row is longer than {text.size(longest)}",
                    where=f"{self._path}, line {line}",
                    hint="Cut or drop what is longer.",
                )

    def _complete(self, value: object, end: int) -> bool:
        """Whether nothing that follows could belong to the value: of `1.5` a cut may leave `1.`"""
        number = isinstance(value, int | float) and self._text[end : end + 1] in "0123456789.eE+-"
        return end < len(self._text) and not (number and end >= len(self._text) - 4)

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
        parts: list[str] = []
        wanted = max(len(unused), text.PIECE)
        for piece in self._pieces:
            parts.append(piece)
            wanted -= len(piece)
            if wanted <= 0:
                break
        if not parts:
            return False
        used = self._text[: self._at]
        ends = used.count("\n")
        self._lines += ends
        self._column = len(used) - used.rfind("\n") - 1 if ends else self._column + len(used)
        self._text, self._at = "".join((unused, *parts)), 0
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
