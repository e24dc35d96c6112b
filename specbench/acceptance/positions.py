"""positions-N.arrow in a run folder: the replay's per-position numbers, compact, appended text by text.

An Arrow stream is readable up to wherever writing stopped; each session of a run writes a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from specbench.acceptance.replay import BLOCK_NUMBERS, Blocks, Positions, Text, as_text
from specbench.acceptance.scores import BlockScores
from specbench.errors import EngineError, StoreError
from specbench.store import unwritable

_START = b"\xff" * 4  # of every Arrow stream
_NUMBERED = re.compile(r"positions-[0-9]{1,9}\.arrow")

COMMON = ("prompt_id", "category", "draft", "repeat", "limit")
RECORDED = ("prompt_tokens", "conversation")
NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q")
# Texts that are read together, and their bytes.
_JOINED, _JOINED_BYTES = 256, 16 << 20
BY_DEPTH = ("accept", "confidence", "ends")

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("draft", pa.string()),
        ("repeat", pa.int32()),
        ("limit", pa.int32()),
        # of a recorded answer; null of texts that a run wrote
        ("prompt_tokens", pa.int32()),
        ("conversation", pa.string()),
        *((name, pa.list_(pa.float32())) for name in NUMBERS),
        ("ends", pa.list_(pa.bool_())),
        # block drafters have these instead, and an n-gram look-up before a draft model beside them
        *((name, pa.list_(pa.int32())) for name in BLOCK_NUMBERS),
        ("block_gammas", pa.int32()),  # columns of the two, which are flattened; null: one, for every gamma
        ("least", pa.int32()),  # the least gamma at which blocks are proposed; null: 1
        ("depths", pa.int32()),  # columns of accept, confidence and ends of a head, which are flattened; null: one
    ]
)


class PositionWriter:
    """Appends texts to the next free positions-N.arrow of a run folder, which it makes with the first text."""

    def __init__(self, folder: Path) -> None:
        number = max(map(_number, _files(folder)), default=-1) + 1
        self._path = folder / f"positions-{number}.arrow"
        self._sink: pa.OSFile | None = None
        self._stream: ipc.RecordBatchStreamWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """The end of the stream. Raises StoreError where it cannot be written, unless something failed before."""
        try:
            for file in (self._stream, self._sink):
                if file is not None:
                    file.close()
        except OSError as failed:
            if error is None:
                raise unwritable(failed, self._path) from None

    def append(self, text: Text) -> None:
        """Put one text on disk. Raises StoreError where it cannot be written, EngineError for what could not be read
        again."""
        try:
            _check(text)
        except ValueError as error:
            raise EngineError(f"What was scored is no text of a run: {error}", where=str(self._path)) from None
        try:
            if self._stream is None:
                self._sink = pa.OSFile(str(self._path), "wb")
                self._stream = ipc.new_stream(self._sink, SCHEMA)
            row = _row(text)
            self._stream.write_batch(
                pa.record_batch([pa.array([row.get(field.name)], field.type) for field in SCHEMA], schema=SCHEMA)
            )
        except OSError as error:
            raise unwritable(error, self._path) from None


def read_positions(folder: Path) -> list[Text]:
    """Every text of a run, the last one where a text was scored twice; [] where nothing was scored. What follows a
    torn end is dropped. Raises StoreError for what no run writes: other columns, or numbers that do not fit."""
    return list({(text.prompt_id, text.draft, text.repeat): text for text in iterate_positions(folder)}.values())


def read_keys(folder: Path) -> Iterator[tuple[str, str, int]]:
    """The prompt, draft and repeat of every text of a run."""
    return ((text.prompt_id, text.draft, text.repeat) for text in iterate_positions(folder))


def iterate_positions(folder: Path) -> Iterator[Text]:
    """Every text of a run as it was scored, one in memory. Raises StoreError as `read_positions` does."""
    for path in _files(folder):
        try:
            for row in _rows(path):
                text = _text(row)
                _check(text)
                yield text
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = str(error) if type(error) is ValueError else "columns or values of another kind"
            raise StoreError(
                f"Not positions that specbench wrote: {what}",
                where=str(path),
                hint="Copy the folder again, or remove that file: acceptance is then that of the rounds alone.",
            ) from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows up to wherever a session was killed. ValueError where a batch is there and holds nonsense."""
    with path.open("rb") as file:
        if not _START.startswith(file.read(len(_START))):
            raise ValueError("no Arrow stream")
    with suppress(pa.ArrowException, OSError), pa.OSFile(str(path)) as source, ipc.open_stream(source) as stream:
        if any(field.type != SCHEMA.field(field.name).type for field in stream.schema if field.name in SCHEMA.names):
            raise ValueError("a column is of another type")
        for batch in _joined(stream):
            yield from _plain_rows(batch)


def _joined(stream: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Texts were written one by one; read so, each costs more than its numbers."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    with suppress(pa.ArrowException, OSError):  # a stream that a killed session left open ends here
        for batch in stream:
            try:
                # Offsets that point outside a damaged file would be followed.
                batch.validate(full=True)
            except pa.ArrowException:
                raise ValueError("damaged") from None
            waiting.append(batch)
            size += batch.get_total_buffer_size()
            if len(waiting) == _JOINED or size > _JOINED_BYTES:
                yield pa.concat_batches(waiting)
                waiting, size = [], 0
    if waiting:
        yield pa.concat_batches(waiting)


def _plain_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dicts, lists of numbers as arrays: a text may have as many as it has tokens."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_list(column.type):
            numbers = _numbers(column.values)
            if column.values.null_count:
                raise ValueError("a number is missing")
            ends, valid = column.offsets.to_pylist(), [each.is_valid for each in column]
            columns[name] = [
                numbers[begin:end] if there else None for begin, end, there in zip(ends, ends[1:], valid, strict=False)
            ]
        else:
            columns[name] = column.to_pylist()
    for row in range(batch.num_rows):
        yield {name: column[row] for name, column in columns.items()}


def _numbers(values: pa.Array) -> NDArray[Any]:
    """Not pyarrow's own `to_numpy`, which loads pandas."""
    raw = values.buffers()[1] or b""
    begin, end = values.offset, values.offset + len(values)
    if pa.types.is_boolean(values.type):
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")[begin:end].astype(bool)
    kind = np.float32 if pa.types.is_float32(values.type) else np.int32
    return np.frombuffer(raw, dtype=kind)[begin:end]


def _check(text: Text) -> None:
    """Raises ValueError where the numbers of a text cannot be."""
    blocks = text if isinstance(text, Blocks) else text.blocks
    if blocks is not None:
        if blocks.proposed.shape != blocks.matched.shape:
            raise ValueError("its arrays are not of one length")
        if (blocks.matched < 0).any() or (blocks.matched > blocks.proposed).any():
            raise ValueError("more is matched than proposed")
    if isinstance(text, Positions):
        numbers = [getattr(text, name) for name in (*NUMBERS, "ends")]
        lengths = {len(each) for each in numbers} | (set() if blocks is None else {len(blocks.matched)})
        if len(lengths) > 1:
            raise ValueError("its arrays are not of one length")
        if len({getattr(text, name).shape for name in BY_DEPTH}) > 1:
            raise ValueError("its arrays are not of one depth")
        silent = np.isnan(text.confidence)
        for name in ("accept", "overlap", "confidence"):
            # Sums of rounded probabilities exceed 1 by a little; a NaN is outside, but for a confidence.
            numbers_in = np.where(silent, 0, getattr(text, name)) if name == "confidence" else getattr(text, name)
            if not ((numbers_in >= 0) & (numbers_in <= 1 + 1e-3)).all():
                raise ValueError(f"{name} is no probability")
    if text.prompt_id is None or text.draft is None or text.repeat < 0 or text.limit < 1:
        raise ValueError("a text lacks its prompt, draft, repeat or limit")


def _row(text: Text) -> dict[str, Any]:
    row = {name: getattr(text, name) for name in (*COMMON, *RECORDED)}
    blocks = text if isinstance(text, Blocks) else text.blocks
    if blocks is not None:
        row |= {name: getattr(blocks, name).ravel() for name in BLOCK_NUMBERS}
        row["block_gammas"] = blocks.proposed.shape[1] if blocks.proposed.ndim == 2 else None
        row["least"] = blocks.least
    if isinstance(text, Positions):
        row |= {name: getattr(text, name).ravel() for name in (*NUMBERS, "ends")}
        row["depths"] = text.longest
    return row


def _text(row: dict[str, Any]) -> Text:
    common: dict[str, Any] = {name: row[name] for name in COMMON}
    common |= {name: row.get(name) for name in RECORDED}
    blocks = None
    if row["matched"] is not None:
        columns = row.get("block_gammas")
        shape = (-1,) if columns is None else (-1, columns)
        proposed, matched = (np.array(row[name], dtype=np.int32).reshape(shape) for name in BLOCK_NUMBERS)
        blocks = BlockScores(proposed, matched, row.get("least") or 1)
        if row["accept"] is None:
            return as_text(blocks, **common)
    numbers: dict[str, Any] = {name: np.array(row[name], dtype=np.float32) for name in NUMBERS}
    numbers["ends"] = np.array(row["ends"], dtype=bool)
    if (depths := row.get("depths")) is not None:
        numbers |= {name: numbers[name].reshape(-1, depths) for name in BY_DEPTH}
    return Positions(**numbers, blocks=blocks, **common)


def _files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("positions-*.arrow") if _NUMBERED.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])
