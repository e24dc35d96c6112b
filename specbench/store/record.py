"""run.json: what was run, as it is read from the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from specbench.checks.stored import check_run
from specbench.errors import StoreError
from specbench.records import Caution, Policy
from specbench.validation import strict_json

SCHEMA = 1
RUN_FILE = "run.json"

# Beyond anything that was ever written, and below what would not fit into memory.
LARGEST_RECORD = 64 << 20

# How the reason begins of a prompt that was left out because memory ran out on it.
OUT_OF_MEMORY = "out of memory"


def read_record(folder: Path) -> dict[str, Any]:
    """run.json, of a schema that this version knows and with what every command reads; keys that an older policy lacks
    have their defaults. Raises StoreError."""
    try:
        if not (folder / RUN_FILE).is_file():
            raise StoreError(
                "Not a run folder: it has no run.json", where=str(folder), cure="Name a folder that specbench made."
            )
        if (folder / RUN_FILE).stat().st_size > LARGEST_RECORD:
            raise ValueError(f"larger than {LARGEST_RECORD >> 20} MiB")
        run = strict_json((folder / RUN_FILE).read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"run.json is not JSON: {why_not(error)}", where=str(folder), cure="Run again.") from None
    except OSError as error:
        raise StoreError(
            f"Cannot read run.json: {error.strerror}", where=str(folder), cure="Check the path and its permissions."
        ) from None
    found = run.get("schema") if isinstance(run, dict) else None
    if isinstance(found, bool) or found != SCHEMA:
        raise StoreError(
            f"run.json has {f'schema {found}' if isinstance(found, int) else 'no schema'}, this version reads {SCHEMA}",
            where=str(folder),
            cure="Use the specbench that wrote it, or run again.",
        )
    try:
        check_run(run)
    except ValueError as error:
        raise StoreError(
            f"run.json is not one that specbench wrote: {error}",
            where=str(folder),
            cure="Undo the change, use the specbench that wrote it, or run again.",
        ) from None
    run["config"]["policy"] = asdict(Policy()) | run["config"]["policy"]
    return cast(dict[str, Any], run)


def why_not(error: Exception) -> str:
    """What is wrong with a text that should be JSON, without quoting it: it may be private."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def left_out(run: Mapping[str, Any]) -> set[str]:
    """Ids of the prompts on which memory ran out, by run.json."""
    skipped = (run.get("workload") or {}).get("skipped", ())
    return {one["id"] for one in skipped if one["reason"].startswith(OUT_OF_MEMORY)}


def cautions_of(run: Mapping[str, Any]) -> list[Caution]:
    """The warnings that the run itself noticed, as stored."""
    return [Caution(**caution) for caution in run.get("warnings", [])]
