"""What a real sweep spends outside the models: from its first trial to its last, scoring included.

The embedded pair in bfloat16 on the CPU, one thread, 16 prompts of the default workload, 48 tokens, gamma 1, 2 and 4.
Every pass of every model is timed where it is called; what is left is the loop, hashes, files, the look at other
processes and the positions of the replay. Loading, warm-up and the probe come before and are not in it; the probe is
said beside.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping

from benchmarks.baseline import DRAFT, DTYPE, TARGET, passes
from specbench.config import RunConfig
from specbench.cost.load import load_average
from specbench.models.hub import quiet_transformers
from specbench.records import Arm, Trial
from specbench.run.session import run


class Timer:
    """An observer that notes when trials began and how many passes had been then."""

    def __init__(self, spent: list[float]) -> None:
        self._spent = spent
        self.trials = self.before = 0
        self.asked_s = self.begun_s = time.perf_counter()

    def say(self, line: str) -> None:
        if line.startswith("Timing"):
            self.asked_s = time.perf_counter()

    def begin(self, total: int, done: int) -> None:
        self.begun_s, self.before = time.perf_counter(), len(self._spent)

    def left(self, trials: Mapping[Arm, int], units: int) -> None: ...

    def advance(self, texts: int) -> None: ...

    def trial(self, trial: Trial) -> None:
        self.trials += 1


def main(*, quick: bool = False) -> None:
    """Run and print. Quick: 3 prompts of 16 tokens."""
    limit, tokens = (3, 16) if quick else (16, 48)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers(), passes() as spent:
        timer = Timer(spent)
        config = RunConfig(
            target=TARGET,
            draft=(DRAFT,),
            dtype=DTYPE,
            device="cpu",
            threads=1,
            limit=limit,
            max_new_tokens=tokens,
            out=folder,
        )
        run(config, "sweep", config.gamma, timer)
        whole_s = time.perf_counter() - timer.begun_s
    models_s = sum(spent[timer.before :])
    print(f"{timer.trials} trials of {tokens} tokens in {whole_s:.1f} s; load average {load_average()}")
    print(
        f"outside the models: {1 - models_s / whole_s:.1%}, {(whole_s - models_s) / timer.trials * 1e3:.1f} ms a trial"
    )
    print(f"timing the models alone, before the first trial: {timer.begun_s - timer.asked_s:.1f} s")
