"""The table of all bad inputs, tab-separated: name, command, message. `PYTHONPATH=tests python -m bad_inputs.table`"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bad_inputs.binary import BINARY, CONFIG_BYTES
from bad_inputs.cases import CASES, arguments
from bad_inputs.folders import POSITIONS, RUNS, small
from bad_inputs.judging import generic, refusal


def table() -> Iterable[tuple[str, str, str]]:
    """Name, command and message of every case that is refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        for kind in CASES:
            for case in CASES[kind]:
                args = arguments(kind, case, folder)
                told = f"left out: {case['left_out']}" if "left_out" in case else refusal(args)
                yield case["name"], args[0], generic(told, folder)
        for title, file, recipe, _ in BINARY:
            (folder / file).write_bytes(recipe if isinstance(recipe, bytes) else recipe(folder / file))
            yield title, "workload", generic(refusal(["workload", str(folder / file)]), folder)
        for title, data, _ in CONFIG_BYTES:
            (folder / "bad.yaml").write_bytes(data)
            yield title, "sweep", generic(refusal(["sweep", "--config", str(folder / "bad.yaml")]), folder)
        kept = small(folder / "kept")
        for title, mutate, _ in (*RUNS, *POSITIONS):
            shutil.copytree(kept, folder / "run")
            mutate(folder / "run")
            yield title, "show", generic(refusal(["show", str(folder / "run")]), folder)
            shutil.rmtree(folder / "run")


if __name__ == "__main__":
    for cells in table():
        print("\t".join(cells))
