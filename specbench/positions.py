"""positions-N.arrow in a run folder: the replay's per-position numbers, compact, appended text by text.

An Arrow stream is readable up to wherever writing stopped; each session of a run writes a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from specbench.acceptance.replay import Blocks, Positions, Text
from specbench.errors import StoreError

COMMON = ("prompt_id", "category", "draft", "repeat", "limit")
NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q")
BLOCK_NUMBERS = ("proposed", "matched")

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("draft", pa.string()),
        ("repeat", pa.int32()),
        ("limit", pa.int32()),
        *((name, pa.list_(pa.float32())) for name in NUMBERS),
        ("ends", pa.list_(pa.bool_())),
        # block drafters have these instead, and an n-gram look-up before a draft model beside them
        *((name, pa.list_(pa.int32())) for name in BLOCK_NUMBERS),
        ("block_gammas", pa.int32()),  # columns of the two, which are flattened; null: one, for every gamma
    ]
)


class PositionWriter:
    """Appends texts to the next free positions-N.arrow of a run folder, which it makes with the first text."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"positions-{len(_files(folder))}.arrow"
        self._sink: pa.OSFile | None = None
        self._stream: ipc.RecordBatchStreamWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._stream is not None and self._sink is not None:
            self._stream.close()
            self._sink.close()

    def append(self, text: Text) -> None:
        """Put one text on disk. Raises StoreError where it cannot be written."""
        try:
            if self._stream is None:
                self._sink = pa.OSFile(str(self._path), "wb")
                self._stream = ipc.new_stream(self._sink, SCHEMA)
            row = _row(text)
            self._stream.write_batch(
                pa.record_batch([pa.array([row.get(field.name)], field.type) for field in SCHEMA], schema=SCHEMA)
            )
        except OSError as error:
            raise StoreError(
                f"Cannot write to the run folder: {error.strerror}", where=str(self._path), cure="Free some space."
            ) from None


def read_positions(folder: Path) -> list[Text]:
    """Every text of a run, the last one where a text was scored twice; [] where nothing was scored. What follows a
    torn end is dropped."""
    found: dict[tuple[str, str, int], Text] = {}
    for path in _files(folder):
        try:
            with pa.memory_map(str(path)) as source, ipc.open_stream(source) as stream:
                for batch in stream:
                    for row in batch.to_pylist():
                        text = _text(row)
                        found[text.prompt_id, text.draft, text.repeat] = text
        except (pa.ArrowInvalid, OSError):
            continue  # a stream that a killed session left open ends here
    return list(found.values())


def _row(text: Text) -> dict[str, Any]:
    row = {name: getattr(text, name) for name in COMMON}
    blocks = text if isinstance(text, Blocks) else text.blocks
    if blocks is not None:
        row |= {name: getattr(blocks, name).ravel() for name in BLOCK_NUMBERS}
        row["block_gammas"] = blocks.proposed.shape[1] if blocks.proposed.ndim == 2 else None
    if isinstance(text, Positions):
        row |= {name: getattr(text, name) for name in (*NUMBERS, "ends")}
    return row


def _text(row: dict[str, Any]) -> Text:
    common: dict[str, Any] = {name: row[name] for name in COMMON}
    blocks = None
    if row["matched"] is not None:
        columns = row.get("block_gammas")
        shape = (-1,) if columns is None else (-1, columns)
        proposed, matched = (np.array(row[name], dtype=np.int32).reshape(shape) for name in BLOCK_NUMBERS)
        blocks = Blocks(**common, proposed=proposed, matched=matched)
        if row["accept"] is None:
            return blocks
    numbers: dict[str, Any] = {name: np.array(row[name], dtype=np.float32) for name in NUMBERS}
    return Positions(**common, **numbers, ends=np.array(row["ends"], dtype=bool), blocks=blocks)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("positions-*.arrow"), key=lambda path: int(path.stem.partition("-")[2]))
