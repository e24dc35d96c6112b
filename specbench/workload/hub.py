"""`hub:ID[:CONFIG][@SPLIT]` -> rows, through the `datasets` library. Data sets that need code of their own are
refused: `datasets` 4 dropped that feature, and specbench does not bring it back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from specbench.errors import WorkloadError
from specbench.workload.arrow import table_rows

PREFIX = "hub:"

# The id is held to the hub's alphabet so that it cannot be a path.
_SOURCE = re.compile(r"hub:(?P<id>\w[\w.\-]*(/\w[\w.\-]*)?)(:(?P<config>[^:@]+))?(@(?P<split>.+))?", re.ASCII)

# What `datasets` says when the name of a configuration or a split is wrong; these list the names to choose from.
_CHOICE = re.compile(r"Config name is missing|BuilderConfig .* not found|Unknown split|Bad split", re.DOTALL)


def read_hub(source: str) -> Iterator[tuple[str, object]]:
    """Rows of a hub data set as ("row 12", dict). Without a split, a data set of one split is read.

    Raises WorkloadError for a malformed source, no network, and unknown names.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise WorkloadError(
            "not a hub source", where=source, hint="Write hub:ID, hub:ID:CONFIG or hub:ID:CONFIG@SPLIT."
        )
    table = _load(source, match["id"], match["config"], match["split"])
    # The Arrow form leaves images and audio undecoded: only text is wanted.
    yield from table_rows(table.with_format("arrow").iter(batch_size=1000))


def _load(source: str, name: str, config: str | None, split: str | None) -> Any:
    import datasets

    try:
        if split is None:
            splits = datasets.get_dataset_split_names(name, config)
            if len(splits) != 1:
                raise WorkloadError(
                    f"the data set has several splits: {', '.join(splits)}",
                    where=source,
                    hint=f"Name one: {source}@{splits[0] if splits else 'SPLIT'}.",
                )
            split = splits[0]
        return datasets.load_dataset(name, config, split=split)
    except WorkloadError:
        raise
    except Exception as error:
        raise _explained(error, source) from None


def _explained(error: Exception, source: str) -> WorkloadError:
    """The library's error in one line. Only messages known to hold names alone are passed on: others may quote
    the data."""
    if isinstance(error, FileNotFoundError):
        return WorkloadError(
            "no such data set on the hub, or it is private or gated",
            where=source,
            hint="Check the id; log in with `hf auth login` if it is gated.",
        )
    if isinstance(error, ConnectionError) or "offline" in type(error).__name__.lower():
        return WorkloadError(
            "the hub cannot be reached",
            where=source,
            hint="Check the network and HF_HUB_OFFLINE, or download the data set and give the file.",
        )
    if isinstance(error, ValueError) and _CHOICE.match(str(error)):
        return WorkloadError(str(error), where=source, hint="Write hub:ID:CONFIG@SPLIT with names that exist.")
    return WorkloadError(
        f"the data set could not be loaded ({type(error).__name__})",
        where=source,
        hint="Try datasets.load_dataset in Python for the details, or download it and give the file.",
    )
