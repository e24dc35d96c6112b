"""Does the tool stay linear? CPU time and memory of what it does around the models, against prompts, gammas and drafts.

Regime: made-up runs and prompts (benchmarks/fake_folder.py); each act in a process of its own, timed from when its
libraries are loaded, so that what is left grows with the run. CPU seconds are of all threads; memory is the peak beyond
what the libraries take. One size changes at a time, the others stay at 1,000 prompts, 4 gammas and 1 draft. The
bookkeeping of a sweep is every trial and text of an engine that answers at once, over a tenth of the prompts, since it
waits for the disk after each trial. The turns are repeated, and intervals are Student's over the turns.

    python -m benchmarks growth [--quick]
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ACTS = ("workload", "read", "replay", "brief", "bookkeeping")
PROMPTS, GAMMAS, DRAFTS = (100, 1000, 10_000), (1, 2, 4, 8), (1, 2, 3)
ROUNDS = 4


class Size(NamedTuple):
    """What a run has. Each prompt has a trial for two baselines and for every gamma of every draft."""

    prompts: int = 1000
    gammas: int = 4
    drafts: int = 1

    @property
    def trials(self) -> int:
        return self.prompts * (2 + self.gammas * self.drafts)


class Taken(NamedTuple):
    """CPU seconds, and MB of 10^6 bytes beyond those of the libraries."""

    cpu_s: float
    mb: float


Found = dict[tuple[str, Size], list[Taken]]


def sizes() -> list[Size]:
    """Every size that is measured, once."""
    every = [*(Size(prompts=n) for n in PROMPTS), *(Size(gammas=n) for n in GAMMAS), *(Size(drafts=n) for n in DRAFTS)]
    return list(dict.fromkeys(every))


def of_act(act: str, size: Size) -> Size:
    """The bookkeeping is over a tenth of the prompts."""
    return size._replace(prompts=size.prompts // 10) if act == "bookkeeping" else size


def main(*, quick: bool = False) -> None:
    """Measure, and write docs/growth.md with its figure. Quick: once, up to 1,000 prompts, and nothing is written."""
    from benchmarks.growth_page import tables, write_page

    todo = [size for size in sizes() if not quick or size.prompts <= 1000]
    found = measured(todo, 1 if quick else ROUNDS)
    print(tables(found))
    if not quick:
        write_page(found)
    print(json.dumps([[act, *size, *map(list, taken)] for (act, size), taken in found.items()]))


def measured(todo: list[Size], rounds: int) -> Found:
    """Every act at every size, in an order drawn anew for each turn."""
    found: defaultdict[tuple[str, Size], list[Taken]] = defaultdict(list)
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folders = {size: Path(name) / str(number) for number, size in enumerate(todo)}
        for size, folder in folders.items():
            _make(folder, size)
        for _ in range(rounds):
            turns = [(act, size) for act in ACTS for size in todo if act != "workload" or size[1:] == Size()[1:]]
            for act, size in order.sample(turns, len(turns)):
                found[act, of_act(act, size)].append(_act(act, of_act(act, size), folders[size]))
    return dict(sorted(found.items(), key=lambda item: (ACTS.index(item[0][0]), item[0][1])))


def _make(folder: Path, size: Size) -> None:
    """In a process of its own: a child begins with the peak memory of its parent."""
    code = (
        "from pathlib import Path; from benchmarks.fake_folder import fake_folder, fake_prompts;"
        f"fake_folder(Path({str(folder)!r}) / 'run', {size.prompts}, range(1, {size.gammas + 1}), {size.drafts});"
        f"fake_prompts(Path({str(folder)!r}) / 'prompts.jsonl', {size.prompts})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _act(act: str, size: Size, folder: Path) -> Taken:
    command = [sys.executable, "-m", "benchmarks.growth_act", act, str(folder), *map(str, size)]
    # As `specbench brief` has it.
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    )
    return Taken(**json.loads(done.stdout))
