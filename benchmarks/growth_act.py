"""One thing that the tool does, timed in a process of its own: `python -m benchmarks.growth_act ACT FOLDER PROMPTS
GAMMAS DRAFTS`. Prints CPU seconds, and the MB that the act added to what was resident when its libraries were loaded.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import psutil

from benchmarks.fake_engine import FakeEngine
from benchmarks.fake_folder import TOKENS
from benchmarks.spent import PEAK_UNIT
from specbench.acceptance.positions import PositionWriter
from specbench.analysis import summarise
from specbench.analysis.replayed import replayed
from specbench.api import load_run, texts_of
from specbench.config import RunConfig
from specbench.records import Arm, Message, Prompt, Trial
from specbench.report import figures
from specbench.report.brief import brief
from specbench.run.bench import Bench, Encoded, units
from specbench.run_record import Provenance, RunRecord
from specbench.store import RunWriter, read_run
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
    config = RunConfig(draft=specs, gamma=tuple(range(1, gammas + 1)), max_new_tokens=TOKENS, temperature=0.0)
    arms = [Arm("baseline"), Arm("baseline-again")]
    arms += [Arm("speculative", spec, gamma) for spec in specs for gamma in config.gamma]
    encoded = [Encoded(Prompt(f"p{n}", (Message("user", f"{n}"),), f"{n:064}", "all"), [1, 2]) for n in range(prompts)]
    to = folder / "written"
    to.mkdir()
    with (
        RunWriter(
            to, RunRecord(status="started", command="sweep", config=config, provenance=Provenance("fake engine"))
        ) as writer,
        PositionWriter(to) as positions,
    ):
        engine = cast(Any, FakeEngine())
        bench = Bench(engine, config, writer, positions, Silent(), Counter(), repeats_left=0)
        for unit in units(encoded, 1):
            for arm in arms:
                bench.trial(unit, arm, 0)
            bench.close(unit, arms, ())
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
        "replay": lambda: replayed("run", texts_of(load_run(folder / "run").stored, [1]), range(1, 9), 0.0, 0.95),
        "bookkeeping": lambda: bookkeeping(folder, prompts, gammas, drafts),
    }
    resident_mb, begun_s = psutil.Process().memory_info().rss / 1e6, time.process_time()
    acts[act]()
    cpu_s = time.process_time() - begun_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT / 1e6
    print(json.dumps({"cpu_s": cpu_s, "mb": peak_mb - resident_mb}))


if __name__ == "__main__":
    main()
