"""Predicted speedups beside measured ones: gamma 1 to 6, a draft model, a head and a look-up, one sequence and batches
of four, in runs whose noise floor is said.

Two real sweeps of the embedded pair in the weights' own format, greedy, one thread, on short prompts of the default
workload, every gamma on every prompt. A prediction is made of the models timed alone, of the replay of the target's own
texts and of the warm-up; nothing of the timed trials enters. Its error is predicted over measured, less one: it holds
the measurement's own error as well, of which the noise floor is the least.

    python -m benchmarks predictions [--quick]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from specbench.analysis.summarise import summarise
from specbench.config import RunConfig
from specbench.run.progress import RunProgress
from specbench.run.session import run
from specbench.shipped import shipped
from specbench.store import read_run
from specbench.workload import load_workload

DRAFTS = ("demo:draft", "demo:eagle3", "ngram:n=3")
GAMMAS = (1, 2, 3, 4, 5, 6)
UNITS = 10  # prompts or batches: fewer have no interval
BATCHES = (1, 4)
TOKENS = 16

Row = tuple[str, int, int, float | None, float]  # draft, gamma, batch, predicted, measured


def main(*, quick: bool = False) -> None:
    """Run, print, and say all of it as JSON in the last line. Full: 10 prompts and 10 batches, eight minutes. Quick: 2
    prompts at two gammas."""
    gammas, units, batches = ((1, 2), 2, (1,)) if quick else (GAMMAS, UNITS, BATCHES)
    rows: list[Row] = []
    floors: dict[int, float | None] = {}
    with tempfile.TemporaryDirectory() as out:
        config = RunConfig(
            draft=DRAFTS,
            gamma=gammas,
            max_new_tokens=8 if quick else TOKENS,
            threads=1,
            all_gammas=True,
            workload=str(_shortest(units * max(batches), Path(out) / "prompts.jsonl")),
            out=out,
        )
        for batch in batches:
            with RunProgress(quiet=False) as progress:
                folder = run(
                    replace(config, batch_size=batch, probe_batch_sizes=(batch,), limit=units * batch),
                    "sweep",
                    gammas,
                    progress,
                    mode="fresh",
                )
            summary = summarise(read_run(folder))
            floors[batch] = summary.noise_floor
            rows += [
                (draft.draft, row.gamma, batch, row.predicted_speedup, row.speedup)
                for draft in summary.drafts
                for row in draft.gammas
            ]
    print(f"{'draft':14} {'batch':>5}  " + " ".join(f"{f'gamma {gamma}':>20}" for gamma in gammas))
    for draft in DRAFTS:
        for batch in batches:
            mine = [row for row in rows if (row[0], row[2]) == (draft, batch)]
            print(f"{draft:14} {batch:5}  " + " ".join(f"{_cell(row):>20}" for row in mine))
    print("predicted / measured (error)\n")
    found = {str(batch): _errors([row for row in rows if row[2] == batch]) for batch in batches}
    for batch in batches:
        middle, worst = found[str(batch)]
        floor = "not known" if (known := floors[batch]) is None else f"{known:.1%}"
        print(f"batch {batch}: median error {middle:.1%}, worst {worst:.1%}; noise floor {floor}")
    print(json.dumps({"errors": found, "noise_floor": floors, "rows": rows}))


def _shortest(count: int, to: Path) -> Path:
    """So many of the default prompts, the shortest: a prefill is no part of a prediction of decoding."""
    source = Path(str(shipped("workloads/mixed.jsonl")))
    lengths = {prompt.id: sum(len(m.content) for m in prompt.messages) for prompt in load_workload(str(source)).prompts}
    lines = source.read_text(encoding="utf-8").splitlines()
    lines.sort(key=lambda line: lengths[json.loads(line)["id"]])
    to.write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")
    return to


def _cell(row: Row) -> str:
    predicted, measured = row[3:]
    return f"- / {measured:.3f}" if predicted is None else f"{predicted:.3f} / {measured:.3f} ({_error(row):+.1%})"


def _error(row: Row) -> float:
    return (row[3] or 0.0) / row[4] - 1


def _errors(rows: Sequence[Row]) -> tuple[float, float]:
    """Median and worst, without a sign."""
    errors = [abs(_error(row)) for row in rows if row[3] is not None]
    return median(errors), max(errors)
