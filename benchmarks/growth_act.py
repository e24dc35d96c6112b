"""One thing that the tool does, timed in a process of its own: `python -m benchmarks.growth_act ACT FOLDER PROMPTS
GAMMAS DRAFTS`. Prints CPU seconds, and the MB that the act added to what was resident when its libraries were loaded.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil

from benchmarks.fake_engine import FakeEngine
from benchmarks.fake_folder import TOKENS
from benchmarks.spent import PEAK_UNIT
from specbench.acceptance.positions import PositionWriter, read_positions
from specbench.analysis import summarise
from specbench.analysis.replayed import replayed
from specbench.api import load_run
from specbench.backends.base import Item
from specbench.backends.local.session import LocalSession
from specbench.config import RunConfig
from specbench.records import Arm, Message, Prompt, Trial
from specbench.report import brief, figures
from specbench.run.losses import Losses
from specbench.run.plan import units_of
from specbench.run.session import Measurement
from specbench.store import RunWriter, StoredRun, read_record, read_run
from specbench.workload import load_workload, profile

LOADED = figures, summarise, brief  # what the commands load while they run belongs to no act


class Silent:
    """An observer that shows nothing."""

    def say(self, line: str) -> None: ...

    def begin(self, total: int, done: int) -> None: ...

    def left(self, trials: Mapping[Arm, int], units: int) -> None: ...

    def trial(self, trial: Trial) -> None: ...

    def advance(self, texts: int) -> None: ...


def bookkeeping(folder: Path, prompts: int, gammas: int, drafts: int) -> None:
    """Every trial of a sweep, and the positions of every text, of an engine that answers at once."""
    specs = tuple(f"fake-draft-{number}" for number in range(1, drafts + 1))
    config = RunConfig(draft=specs, gamma=tuple(range(1, gammas + 1)), max_new_tokens=TOKENS, slice_tokens=0)
    prompts_ = [Prompt(f"p{n}", (Message("user", f"{n}"),), f"{n:064}", "all") for n in range(prompts)]
    to = folder / "written"
    to.mkdir()
    # Nothing is timed alone and no gamma is stopped: what is left is a trial after another.
    record = replace(read_record(folder / "run"), command="measure", trials_planned=0)
    with RunWriter(to, record) as writer, PositionWriter(to) as positions:
        session = LocalSession(cast(Any, FakeEngine()), config, to)
        stored, losses = StoredRun(to, record, (), torn=False), Losses(writer, (), None)
        measurement = Measurement(session, config, writer, positions, stored, losses, Silent())
        measurement.run(units_of([Item(prompt, [1, 2]) for prompt in prompts_], 1), config.gamma, None)
    shutil.rmtree(to)


def main() -> None:
    """The named act on the folder `run`, or on the file `prompts.jsonl`, of the folder named."""
    act, name, *sizes = sys.argv[1:]
    folder = Path(name)
    prompts, gammas, drafts = map(int, sizes)
    acts: dict[str, Callable[[], object]] = {
        "workload": lambda: profile(load_workload(str(folder / "prompts.jsonl"))),
        "read": lambda: read_run(folder / "run"),
        "brief": lambda: load_run(folder / "run").write_brief(folder / "to"),
        "replay": lambda: replayed("run", read_positions(folder / "run"), range(1, 9), 0.0, 0.95),
        "bookkeeping": lambda: bookkeeping(folder, prompts, gammas, drafts),
    }
    resident_mb, begun_s = psutil.Process().memory_info().rss / 1e6, time.process_time()
    acts[act]()
    cpu_s = time.process_time() - begun_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT / 1e6
    print(json.dumps({"cpu_s": cpu_s, "mb": peak_mb - resident_mb}))


if __name__ == "__main__":
    main()
