"""run.json, as it is read from the disk and written to it: the same checks for both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from specbench.config import POLICY_SETTINGS, RUN_SETTINGS
from specbench.errors import StoreError
from specbench.kinds import MAX_GAMMA
from specbench.run_record import SCHEMA, RunRecord
from specbench.validation import read_json, strict_json, why_not

RUN_FILE = "run.json"

# Beyond anything that was ever written, and below what would not fit into memory.
LARGEST_RECORD = 64 << 20

# How the reason begins of a prompt that was left out because memory ran out on it.
OUT_OF_MEMORY = "out of memory"

# Without these a verdict would be read from defaults. Newer settings may be missing: their default is what was done.
_NEEDED = ("target", "draft", "gamma", "temperature", "repeats", "batch_size", "policy")
# An environment variable need not be here, and a probe may have no draft.
_UNCHECKED = ("api_key_env", "draft")


def read_record(folder: Path) -> RunRecord:
    """run.json, of a schema that this version knows. Raises StoreError."""
    try:
        if not (folder / RUN_FILE).is_file():
            raise StoreError(
                "Not a run folder: it has no run.json", where=str(folder), hint="Name a folder that specbench made."
            )
        if (folder / RUN_FILE).stat().st_size > LARGEST_RECORD:
            raise ValueError(f"larger than {LARGEST_RECORD >> 20} MiB")
        data = (folder / RUN_FILE).read_bytes()
        plain = strict_json(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"run.json is not JSON: {why_not(error)}", where=str(folder), hint="Run again.") from None
    except OSError as error:
        raise StoreError(
            f"Cannot read run.json: {error.strerror}", where=str(folder), hint="Check the path and its permissions."
        ) from None
    found = plain.get("schema") if isinstance(plain, dict) else None
    if isinstance(found, bool) or found != SCHEMA:
        raise StoreError(
            f"run.json has {f'schema {found}' if isinstance(found, int) else 'no schema'}, this version reads {SCHEMA}",
            where=str(folder),
            hint="Use the specbench that wrote it, or run again.",
        )
    try:
        return _checked(data, plain)
    except ValueError as error:
        raise StoreError(
            f"run.json is not one that specbench wrote: {error}",
            where=str(folder),
            hint="Undo the change, use the specbench that wrote it, or run again.",
        ) from None


def record_json(record: RunRecord) -> bytes:
    """What run.json holds. Raises ValueError where it could not be read again."""
    data = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, indent=1).encode()
    _checked(data, strict_json(data))
    return data


def _checked(data: bytes, plain: Mapping[str, Any]) -> RunRecord:
    """The record that `data`, parsed as `plain`, holds. ValueError: `config.gamma is text, not a list`."""
    record = read_json(RunRecord, data, "it")
    missing = [key for key in _NEEDED if key not in plain["config"]]
    if missing:
        raise ValueError(f"it lacks config.{missing[0]}")
    for settings, values, place, what in (
        (RUN_SETTINGS, plain["config"], "config", "configuration"),
        (POLICY_SETTINGS, plain["config"]["policy"], "config.policy", "policy"),
    ):
        for key, value in values.items():
            try:
                if key in settings and key not in _UNCHECKED:
                    settings[key].read(value)
            except ValueError:  # its words quote the value
                raise ValueError(f"{place}.{key} is not what a {what} may hold") from None
    for number, warning in enumerate(record.warnings):
        if not isinstance(warning.values.get("said"), str):
            raise ValueError(f"warnings[{number}] says nothing")
    for point in record.probe or ():
        if min(point.median_s, point.low_s, point.high_s, point.tokens, point.batch) <= 0:
            raise ValueError("probe has a time, width or batch that is not above 0")
        if point.context and point.tokens > 2 * MAX_GAMMA:
            raise ValueError("probe has a width that no round has")
    encoded = record.workload.encoded
    try:
        datetime.fromisoformat((encoded and encoded.now) or "2026-01-01")
    except ValueError:
        raise ValueError("workload.encoded.now is not a time") from None
    return record


def left_out(run: RunRecord) -> set[str]:
    """Ids of the prompts on which memory ran out."""
    return {one.id for one in run.workload.skipped if one.reason.startswith(OUT_OF_MEMORY)}
