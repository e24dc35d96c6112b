"""Files of Apache Arrow's formats -> rows: Parquet, Arrow, and folders that `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from specbench.errors import WorkloadError
from specbench.workload.naming import list_names, two_alike
from specbench.workload.parsing import Row

_BATCH = 1024  # rows in memory
_SAVED = ("state.json", "dataset_info.json")
_SPLITS = "dataset_dict.json"


def table_rows(batches: Iterable[Any]) -> Iterator[Row]:
    """Rows of Arrow tables or record batches, numbered from 1."""
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", {key: _without_nulls(value) for key, value in row.items()}


def _without_nulls(value: object) -> object:
    """A column has one type, so an object has the keys of all others, as nulls: what was never there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def parquet_rows(path: Path) -> Iterator[Row]:
    def batches() -> Iterator[Any]:
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(path) as file:
            two_alike(file.schema_arrow.names, str(path))
            yield from file.iter_batches(batch_size=_BATCH)

    return _sound(batches, path, "a Parquet file")


def arrow_rows(path: Path) -> Iterator[Row]:
    """Both forms of a .arrow file: with an index at its end, and as a stream."""

    def batches() -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(path)) as file:
            whole = file.read(6) == b"ARROW1"
            file.seek(0)
            with pa.ipc.open_file(file) if whole else pa.ipc.open_stream(file) as reader:
                two_alike(reader.schema.names, str(path))
                found = (reader.get_batch(n) for n in range(reader.num_record_batches)) if whole else reader
                for batch in found:
                    yield from (batch.slice(at, _BATCH) for at in range(0, batch.num_rows, _BATCH))

    return _sound(batches, path, "an Arrow file")


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return all((folder / name).is_file() for name in _SAVED) or (folder / _SPLITS).is_file()


def saved_rows(folder: Path, split: str | None) -> Iterator[Row]:
    """Rows of a folder that `save_to_disk` wrote. Of several splits one is named: PATH@SPLIT."""
    if (folder / _SPLITS).is_file():
        folder = folder / _split_of(folder, split)
    elif split is not None:
        raise WorkloadError("the saved data set has no splits", where=str(folder), hint="Leave out what follows the @.")

    def batches() -> Iterator[Any]:
        import datasets

        # The Arrow form leaves images and audio undecoded: only text is wanted.
        yield from datasets.load_from_disk(str(folder)).with_format("arrow").iter(batch_size=_BATCH)

    return _sound(batches, folder, "a folder of datasets.save_to_disk")


def _split_of(folder: Path, split: str | None) -> str:
    try:
        names = json.loads((folder / _SPLITS).read_bytes())["splits"]
        named: list[str] = [name for name in names if list_names([name]) == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        named = []
    if not named:
        raise WorkloadError(f"{_SPLITS} names no splits", where=str(folder), hint="Save the data set again.")
    if split is None and len(named) == 1:
        return named[0]
    if split is None or split not in named:
        what = "the saved data set has several splits" if split is None else "no such split; it has"
        raise WorkloadError(f"{what}: {', '.join(named)}", where=str(folder), hint=f"Name one: {folder}@{named[0]}.")
    return split


def _sound(batches: Callable[[], Iterator[Any]], path: Path, kind: str) -> Iterator[Row]:
    """The rows; what a library says of a damaged file may quote it, and is not passed on."""
    import pyarrow as pa

    place = str(path)
    try:
        for where, row in table_rows(batches()):
            yield where, row
            place = f"{path}, after {where}"
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, AttributeError):
        # Among them dates beyond Python's, text that is not UTF-8, and metadata that is not the library's.
        raise WorkloadError(
            f"not {kind}, or damaged or cut short", where=place, hint="Copy or write it again."
        ) from None
