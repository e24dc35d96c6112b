"""Is the tool ever the slow part? What its commands take beside the floor that Python and the libraries set.

Regime: each command in a fresh process, as typed, with warm disk caches; the commands take turns in an order drawn anew
each time. CPU seconds are those of all threads, which other work on the machine disturbs least; memory is the peak of
what is resident. Floors are measured in the same turns: an empty program, a loop that only parses the same file, and
the import of the libraries that draw a brief. The run has 10,000 trials and the workload 100,000 prompts, all made up
(benchmarks/fake_folder.py). That no command here loads torch is held by tests/test_imports.py.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.spent import SPECBENCH, Spent, child

ROUNDS = 7
PROMPTS, TRIALS, GAMMAS = 100_000, 10_000, 8
# What is asked: CPU seconds, and MB at the peak.
TARGETS = {"--help": (0.3, None), "workload": (10.0, 500.0), "brief": (3.0, None)}
FLOORS = {"--version": "pass", "--help": "pass", "workload": "json.loads", "brief": "pandas, matplotlib"}


def main(*, quick: bool = False) -> None:
    """Measure and print a table, what is met, and the medians as JSON in the last line. Quick: a hundredth of the
    prompts, a tenth of the trials, and no targets."""
    prompts, trials = (PROMPTS // 100, TRIALS // 10) if quick else (PROMPTS, TRIALS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder, prompts, trials // (GAMMAS + 2))
        found = _measured(_commands(folder), rounds=2 if quick else ROUNDS)
    print(
        f"{prompts:,} prompts to profile, a run of {trials:,} trials; medians of {len(found['pass'])} [least, most]\n"
    )
    print(f"{'command':>20}  {'CPU, s':22} {'wall, s':22} {'peak, MB':>8}  CPU in floors")
    for what, times in found.items():
        cells = f"{_range(times, lambda t: t.cpu_s):22} {_range(times, lambda t: t.wall_s):22}"
        peak = median(time.peak_mb for time in times)
        print(f"{what:>20}  {cells} {peak:8.0f}  {_in_floors(what, found)}")
    if not quick:
        print("\n" + "\n".join(_judged(what, found[what]) for what in TARGETS))
    print(json.dumps({what: asdict(_middle(times)) for what, times in found.items()}))


def _make(folder: Path, prompts: int, run_prompts: int) -> None:
    """In a process of its own, so that this one stays small."""
    code = (
        "from pathlib import Path; from benchmarks.fake_folder import fake_folder, fake_prompts;"
        f"fake_prompts(Path({str(folder)!r}) / 'prompts.jsonl', {prompts});"
        f"fake_folder(Path({str(folder)!r}) / 'run', {run_prompts}, range(1, {GAMMAS + 1}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _commands(folder: Path) -> dict[str, list[str]]:
    prompts, run, to = (str(folder / name) for name in ("prompts.jsonl", "run", "to"))
    python = [sys.executable, "-c"]
    return {
        "pass": [*python, "pass"],
        "json.loads": [*python, f"import json\nfor line in open({prompts!r}, 'rb'): json.loads(line)"],
        "pandas, matplotlib": [*python, "import pandas, matplotlib.figure"],
        "--version": [*SPECBENCH, "--version"],
        "--help": [*SPECBENCH, "--help"],
        "workload": [*SPECBENCH, "workload", prompts],
        "brief": [*SPECBENCH, "brief", run, "--to", to],
    }


def _measured(commands: dict[str, list[str]], rounds: int) -> dict[str, list[Spent]]:
    found: dict[str, list[Spent]] = {what: [] for what in commands}
    order = random.Random(0)
    for command in commands.values():  # once for the caches of the disk and of Python
        child(command)
    for _ in range(rounds):
        for what in order.sample(list(commands), len(commands)):
            found[what].append(child(commands[what]))
    return found


def _range(times: Sequence[Spent], part: Callable[[Spent], float]) -> str:
    values = sorted(map(part, times))
    return f"{median(values):.2f} [{values[0]:.2f}, {values[-1]:.2f}]"


def _in_floors(what: str, found: dict[str, list[Spent]]) -> str:
    """CPU over that of the floor of the same turn: both were disturbed alike."""
    if what not in FLOORS:
        return "a floor"
    ratios = sorted(own.cpu_s / floor.cpu_s for own, floor in zip(found[what], found[FLOORS[what]], strict=True))
    return f"{median(ratios):.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}] x {FLOORS[what]}"


def _judged(what: str, times: Sequence[Spent]) -> str:
    cpu_s, peak_mb = TARGETS[what]
    middle = _middle(times)
    asked = f"{cpu_s:g} s of CPU" + (f" and {peak_mb:g} MB" if peak_mb else "")
    met = middle.cpu_s < cpu_s and (peak_mb is None or middle.peak_mb < peak_mb)
    return f"{what}: {'met' if met else 'MISSED'}, {middle.cpu_s:.2f} s and {middle.peak_mb:.0f} MB of {asked}"


def _middle(times: Sequence[Spent]) -> Spent:
    return Spent(*(median(getattr(time, part) for time in times) for part in ("cpu_s", "wall_s", "peak_mb")))
