"""Our loop against transformers' own generation: what our Python costs, with and without a draft.

A speedup is worth as much as its baseline: a slow target-alone loop would make every draft look good, a slow
speculative loop every draft look bad. So both are held against `generate`, with and without `assistant_model`.

Regime: the embedded pair in bfloat16 on the CPU, batch 1, one thread (two collapse when anything else runs), greedy,
default prompts of all categories, fixed gamma. No token ends a text, so that both emit the same count; acceptance past
a text's natural end is not typical, so read the ratios and not the speeds.

A ratio is theirs over ours in seconds per token: above 1 ours is faster. "Whole" is one call, prefill included.
"Decode" starts at the first emitted token: ours by the loop's spans, theirs from the first call of a streamer, which
in assisted generation ends a whole round, so that round's tokens are left out. Each side has its own copy of the
weights, because our engine puts a hook on the head that would speed theirs up as well.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from specbench.config import RunConfig
from specbench.cost.load import load_average
from specbench.decision.interval import Paired, speedup_interval
from specbench.engines.local import LocalEngine
from specbench.models import load_model
from specbench.models.convert import quiet_transformers
from specbench.records import Arm
from specbench.report.text import estimate
from specbench.shipped import shipped
from specbench.workload import load_workload, select

TARGET, DRAFT, DTYPE, DEVICE = "demo:target", "demo:draft", "bfloat16", "cpu"
ARMS = (Arm("baseline"), *(Arm("speculative", DRAFT, gamma) for gamma in (1, 2, 4)))


@dataclass(frozen=True, slots=True)
class Run:
    """One call: the tokens it emitted, seconds in all, and seconds and tokens of decoding alone."""

    tokens: list[int]
    whole_s: float
    decode_s: float
    decode_tokens: int


Pair = tuple[Run, Run]  # ours, theirs


class Ours:
    """specbench's engine as a run uses it."""

    def __init__(self) -> None:
        self.engine = LocalEngine(RunConfig(target=TARGET, draft=(DRAFT,), dtype=DTYPE, device=DEVICE), threads=1)
        self.engine.eos = frozenset()

    def __call__(self, ids: list[int], arm: Arm, n: int) -> Run:
        start_s = time.perf_counter()
        found = self.engine.generate(ids, arm, max_new_tokens=n, seed_text="")
        return Run(found.tokens, time.perf_counter() - start_s, found.times.decode_s, len(found.tokens) - 1)


class FirstPut(BaseStreamer):  # type: ignore[misc]  # transformers has no types
    """Notes when the first new tokens came, and how many they were. The very first call hands over the prompt."""

    calls, at_s, tokens = 0, 0.0, 0

    def put(self, value: Any) -> None:
        if self.calls == 1:
            self.at_s, self.tokens = time.perf_counter(), value.numel()
        self.calls += 1

    def end(self) -> None: ...


class Theirs:
    """`generate` of transformers. Gamma is read from the assistant's own generation config, and from nowhere else."""

    def __init__(self) -> None:
        self.target, self.draft = (load_model(name, dtype=DTYPE, device=DEVICE).model for name in (TARGET, DRAFT))
        for model in (self.target, self.draft):
            model.generation_config.eos_token_id = None
        self.draft.generation_config.num_assistant_tokens_schedule = "constant"
        self.draft.generation_config.assistant_confidence_threshold = 0.0

    def __call__(self, ids: list[int], arm: Arm, n: int) -> Run:
        settings = GenerationConfig(max_new_tokens=n, do_sample=False, pad_token_id=0)
        self.draft.generation_config.num_assistant_tokens = arm.gamma
        assistant = {} if arm.gamma is None else {"assistant_model": self.draft}
        prompt, first = torch.tensor([ids]), FirstPut()
        inputs = {"inputs": prompt, "attention_mask": torch.ones_like(prompt)}
        start_s = time.perf_counter()
        with torch.inference_mode():
            out = self.target.generate(**inputs, generation_config=settings, streamer=first, **assistant)
        end_s = time.perf_counter()
        tokens = out[0, len(ids) :].tolist()
        return Run(tokens, end_s - start_s, end_s - first.at_s, len(tokens) - first.tokens)


def main(*, quick: bool = False) -> None:
    """Measure and print. Full: 12 prompts, 48 tokens, twice. Quick: 3 prompts, 24 tokens, once."""
    limit, n, repeats = (3, 24, 1) if quick else (12, 48, 2)
    ours, theirs = Ours(), Theirs()
    prompts = select(load_workload(str(shipped("workloads/mixed.jsonl"))).prompts, limit, seed=0)
    encoded = [ours.engine.encode(prompt) for prompt in prompts]
    ours.engine.reserve(max(map(len, encoded)) + n + max(arm.gamma or 0 for arm in ARMS) + 1)
    with quiet_transformers():
        measure((ours, theirs), encoded[:1], 8, 1)  # warm-up, thrown away
        runs = measure((ours, theirs), encoded, n, repeats)
    print(f"{len(prompts)} prompts x {repeats}, {n} tokens, {DTYPE}, one thread; load average {load_average()}")
    print(f"{'arm':22} {'ours/s':>7} {'theirs/s':>9}  {'whole':24} {'decode':24} same text")
    print("\n".join(_line(arm, runs[arm], repeats) for arm in ARMS))


def measure(sides: tuple[Ours, Theirs], encoded: list[list[int]], n: int, repeats: int) -> dict[Arm, list[Pair]]:
    """Every arm of both sides on every prompt, in an order drawn anew each time; a prompt's repeats lie together."""
    order = random.Random(0)
    runs: dict[Arm, list[Pair]] = defaultdict(list)
    for ids in encoded:
        for _ in range(repeats):
            turns = [(arm, which) for arm in ARMS for which in (0, 1)]
            order.shuffle(turns)
            found = {(arm, which): sides[which](ids, arm, n) for arm, which in turns}
            if {len(run.tokens) for run in found.values()} != {n}:
                raise RuntimeError(f"an arm emitted more or fewer than {n} tokens: per-token times do not compare")
            for arm in ARMS:
                runs[arm].append((found[arm, 0], found[arm, 1]))
    return runs


def _line(arm: Arm, runs: list[Pair], repeats: int) -> str:
    """Tokens per second of both, and the two ratios with intervals over prompts."""
    rows = [[(r.whole_s, len(r.tokens), r.decode_s, r.decode_tokens) for r in pair] for pair in runs]
    ours, theirs = (
        np.array(rows, dtype=np.float64).reshape(-1, repeats, 2, 4).sum(1).transpose(1, 2, 0)
    )  # each [4, prompts]
    pairs = (Paired(theirs[s], theirs[tokens], ours[s], ours[tokens]) for s, tokens in ((0, 1), (2, 3)))
    ratios = (speedup_interval(pair, 0.95) for pair in pairs)
    cells = (f"{estimate(ratio.value, ratio.low, ratio.high):24}" for ratio in ratios)
    rates = (side[1].sum() / side[0].sum() for side in (ours, theirs))
    same = sum(a.tokens == b.tokens for a, b in runs)
    return " ".join((f"{arm.label:22}", *(f"{rate:7.1f} " for rate in rates), *cells, f"{same}/{len(runs)}"))
