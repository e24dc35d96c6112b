"""What a sweep saves by stopping gammas that are surely not the best, and whether it still says the same.

The embedded pair is swept on part of the default workload, once with --all-gammas: that run is the one to be saved
from, and it is one interleaved measurement. Its trials are then walked in their stored order, the looks are taken where
the sweep would have taken them, and the trials of stopped gammas are struck out: both sweeps share every other trial,
so that nothing but the rule tells them apart. A sweep that really stops must rule out in the same way, which tests hold
it to. The kept runs under reports/ are walked in the same way.

    python -m benchmarks saving [--quick]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specbench.acceptance.positions import read_positions
from specbench.acceptance.replay import Text
from specbench.analysis.summarise import summarise
from specbench.config import load_config
from specbench.decision.ruling import look_sizes
from specbench.records import Arm, RuledOut
from specbench.run.early_stopping import look, ruled_out_line
from specbench.run.progress import RunProgress
from specbench.store import StoredRun, read_run

KEPT = ("tests/runs/example", "tests/runs/drafters")


def as_swept(stored: StoredRun, texts: Sequence[Text], order: Sequence[str] | None = None) -> StoredRun:
    """A run of every gamma as it would be had it been swept: `order` are its prompts as they were measured (None: as
    they are stored), and the rule sees what it would have seen."""
    order = order or list(dict.fromkeys(trial.prompt_id for trial in stored.trials if not trial.warmup))
    found: list[RuledOut] = []
    for size in look_sizes(len(order)):
        seen = set(order[:size])
        trials = tuple(trial for trial in stored.trials if trial.warmup or trial.prompt_id in seen)
        run = replace(stored.run, ruled_out=tuple(found))
        found += look(replace(stored, run=run, trials=trials), texts, len(order))
    stopped = {Arm("speculative", one.draft, one.gamma): set(order[one.prompts :]) for one in found}
    trials = tuple(t for t in stored.trials if t.warmup or t.prompt_id not in stopped.get(t.arm, ()))
    return replace(stored, run=replace(stored.run, ruled_out=tuple(found)), trials=trials)


def compare(name: str, whole: StoredRun) -> None:
    """Print both sweeps of one run."""
    swept = as_swept(whole, read_positions(whole.folder))
    print(f"\n{name}")
    for what, stored in (("every gamma", whole), ("swept", swept)):
        trials, choice = stored.counted, summarise(stored).choice
        spent = sum(trial.times.total_s for trial in trials)
        said = "no choice"
        if choice is not None:
            said = f"{choice.verdict}, {choice.draft} at gamma {choice.gamma}, {choice.speedup:.3f}x"
            said += "" if choice.speedup_low is None else f" [{choice.speedup_low:.3f}, {choice.speedup_high:.3f}]"
        print(f"  {what:12} {len(trials):6,} trials {spent:8.1f} s   {said}")
    seconds = [sum(trial.times.total_s for trial in stored.counted) for stored in (swept, whole)]
    print(f"  saved {1 - len(swept.counted) / len(whole.counted):.1%} of the trials", end="")
    print(f", {1 - seconds[0] / seconds[1]:.1%} of their seconds")
    for one in swept.run.ruled_out:
        print(f"  {ruled_out_line(one)}")


def main(quick: bool = False) -> None:
    """Sweep, walk, print. A run of its own on 40 prompts at five gammas, or on 12 at three if `quick`."""
    from specbench.run.session import run

    size = {"limit": 40, "gamma": (1, 2, 4, 8, 16), "max_new_tokens": 32}
    if quick:
        size = {"limit": 12, "gamma": (1, 2, 8), "max_new_tokens": 8}
    with tempfile.TemporaryDirectory() as out:
        flags = {"threads": 1, "all_gammas": True, "probe_batch_sizes": "1", "out": out} | size
        config = load_config(Path("configs/default.yaml"), flags)
        with RunProgress(quiet=False) as progress:
            folder = run(config, "sweep", config.gamma, progress)
        whole = read_run(folder)
        compare(f"embedded pair, {config.limit} prompts, gamma {', '.join(map(str, config.gamma))}", whole)
    for kept in KEPT:
        compare(kept, read_run(Path(kept)))
