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
        # block drafters have these two instead
        *((name, pa.list_(pa.int32())) for name in BLOCK_NUMBERS),
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
            row = [[getattr(text, name, None)] for name in SCHEMA.names]
            self._stream.write_batch(
                pa.record_batch([pa.array(v, t.type) for v, t in zip(row, SCHEMA, strict=True)], schema=SCHEMA)
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


def _text(row: dict[str, Any]) -> Text:
    values: dict[str, Any] = {name: row[name] for name in ("prompt_id", "category", "draft", "repeat", "limit")}
    if row["matched"] is not None:
        values |= {name: np.array(row[name], dtype=np.int32) for name in BLOCK_NUMBERS}
        return Blocks(**values)
    values |= {name: np.array(row[name], dtype=np.float32) for name in NUMBERS}
    return Positions(**values, ends=np.array(row["ends"], dtype=bool))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("positions-*.arrow"), key=lambda path: int(path.stem.partition("-")[2]))
