"""How many tokens to draft at which load, as each engine takes it.

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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specbench.analysis.served import Schedule

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
