"""How many tokens to draft at which load, in words and as each engine takes it.

- vLLM: `num_speculative_tokens_per_batch_size`, ranges of batch sizes from 1 on with a K for each, which goes on where
  no range begins, and none is above `num_speculative_tokens` (docs.vllm.ai, dynamic speculative decoding;
  vllm/v1/spec_decode/dynamic/utils.py)
- TensorRT-LLM: `draft_len_schedule`, the largest batch size for each length, none beyond the last (its pull request
  10860); `max_draft_len` is the longest
- SGLang: `--speculative-adaptive-config`, which lengths it may choose from; it follows acceptance and not a table
  (docs.sglang.io, adaptive speculative decoding; EAGLE kinds alone)
"""

from __future__ import annotations

import json
from itertools import groupby

from specbench import text
from specbench.analysis.contract import Schedule

# From a concurrency, to another (None: from there on), so many tokens.
Range = tuple[int, int | None, int]


def ranges(schedule: Schedule) -> list[Range]:
    """A gamma holds from where it was best up to the next concurrency that was looked at."""
    runs = [(gamma, [step.concurrency for step in run]) for gamma, run in groupby(schedule.steps, lambda s: s.gamma)]
    starts = [counts[0] for _, counts in runs] + [None]
    return [
        (1 if not n else starts[n] or 1, None if end is None else end - 1, gamma)
        for n, ((gamma, _), end) in enumerate(zip(runs, starts[1:], strict=True))
    ]


def vllm_schedule(schedule: Schedule) -> str:
    """Keys of --speculative-config. The last range ends at the largest concurrency that was looked at."""
    last = schedule.steps[-1].concurrency
    keys = {
        "num_speculative_tokens": max(step.gamma for step in schedule.steps),
        "num_speculative_tokens_per_batch_size": [[low, high or last, gamma] for low, high, gamma in ranges(schedule)],
    }
    return json.dumps(keys, separators=(",", ":"))[1:-1]


def tensorrt_schedule(schedule: Schedule) -> str:
    """A field of the speculative config. What is off from some load on needs no entry."""
    last = schedule.steps[-1].concurrency
    entries = [(high or last, gamma) for _, high, gamma in ranges(schedule)]
    while entries and entries[-1][1] == 0:
        entries.pop()
    return "{" + ", ".join(f"{upto}: {gamma}" for upto, gamma in entries) + "}"


def sglang_schedule(schedule: Schedule) -> str:
    """The file of --speculative-adaptive-config; it knows no loads."""
    return json.dumps({"candidate_steps": sorted({step.gamma for step in schedule.steps} - {0})})


def schedule_words(schedule: Schedule | None) -> str:
    """The schedule, its gain, and the engines' settings; empty where there is none or where it is one gamma."""
    if schedule is None:
        return ""
    fixed = f"gamma {schedule.fixed_gamma}" if schedule.fixed_gamma else "no draft"
    guess = not all(step.measured for step in schedule.steps)
    if len({step.gamma for step in schedule.steps}) == 1:
        return f"One setting is best at every load looked at: {fixed}{' (predicted, not measured)' if guess else ''}."
    gain = f"{schedule.gain:+.1%} [{schedule.gain_low:+.1%}, {schedule.gain_high:+.1%}]"
    predicted = [str(step.concurrency) for step in schedule.steps if not step.measured]
    how = f" (at {text.join(predicted)} predicted, not measured)" if predicted else ""
    listed = "; ".join(_range(*each) for each in ranges(schedule))
    said = f"By load: {listed}{how}. Over {fixed} throughout that gains {gain}, each load with as much to do."
    if schedule.gain_low <= 0:
        return f"{said} The interval holds none, so nothing speaks against {fixed} at every load."
    return (
        f"{said} vLLM: `{vllm_schedule(schedule)}`; TensorRT-LLM: `draft_len_schedule={tensorrt_schedule(schedule)}`; "
        f"SGLang knows no table, only what to choose from: `--speculative-adaptive` with `{sglang_schedule(schedule)}`."
    )


def _range(low: int, high: int | None, gamma: int) -> str:
    what = f"gamma {gamma}" if gamma else "no draft"
    return f"{what} from {low} at a time on" if high is None else f"{what} for {low}" + (f" to {high}" * (high > low))
