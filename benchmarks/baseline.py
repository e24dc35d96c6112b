"""Our loop against transformers' own generation: what our Python costs, with and without a draft.

A speedup is worth as much as its baseline: a slow target-alone loop would make every draft look good, a slow
speculative loop every draft look bad. So both are held against `generate`, with and without `assistant_model`, and
against our own loop over transformers' layers, which is what we had before the lean ones (backends/local/lean.py).

Regime: the embedded pair in bfloat16 on the CPU, batch 1, one thread (two collapse when anything else runs), greedy,
default prompts of all categories, fixed gamma. No token ends a text, so that both emit the same count; acceptance past
a text's natural end is not typical, so read the ratios and not the speeds.

A ratio is the other's over ours in seconds per token: above 1 ours is faster. The sides of an arm run one after the
other, and the ratio is the median over such turns, with the range that holds the median in 95 % of cases: a shared
machine is slow for seconds at a time, which totals would not forgive. "Whole" is one call, prefill included.
"Decode" starts at the first emitted token: ours by the loop's spans, theirs from the first call of a streamer, which
in assisted generation ends a whole round, so that round's tokens are left out. Each side has its own copy of the
weights, because our engine changes its own. Overhead is the share of decoding outside the passes of both models.

On a GPU (`python -m benchmarks gpu`, `make bench-gpu`) the same table comes from CUDA events and recorded graphs.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final
from unittest.mock import patch

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from specbench.backends.local import local
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.lean import make_lean
from specbench.backends.local.local import LocalEngine
from specbench.config import Device, RunConfig
from specbench.cost.load import load_average
from specbench.cost.probe import median_interval
from specbench.models import load_model
from specbench.models.hub import quiet_transformers
from specbench.records import Arm
from specbench.shipped import shipped
from specbench.workload import load_workload, select

TARGET, DRAFT = "demo:target", "demo:draft"
DTYPE: Final = "bfloat16"
# What is asked: transformers' seconds over ours, and the share of decoding outside the models.
ALONE, DRAFTING, OVERHEAD = 1.8, 2.0, 0.03
ARMS = (Arm("baseline"), *(Arm("speculative", DRAFT, gamma) for gamma in (1, 2, 4)))


@dataclass(frozen=True, slots=True)
class Run:
    """One call: the tokens it emitted, seconds in all, seconds and tokens of decoding alone, and of these seconds those
    within the models, None where nobody looked."""

    tokens: list[int]
    whole_s: float
    decode_s: float
    decode_tokens: int
    models_s: float | None = None


Side = Callable[[list[int], Arm, int], Run]


class Ours:
    """specbench's engine as a run uses it, or over transformers' own layers."""

    def __init__(self, device: Device, *, lean: bool = True) -> None:
        config = RunConfig(target=TARGET, draft=(DRAFT,), dtype=DTYPE, device=device, gamma=(1, 2, 4))
        with patch.object(local, "make_lean", make_lean if lean else lambda _: None):
            self.engine = LocalEngine(config, threads=1)
        self.engine.eos = frozenset()

    def reserve(self, capacity: int) -> None:
        self.engine.reserve(capacity)
        self.engine.settle([])

    def __call__(self, ids: list[int], arm: Arm, n: int) -> Run:
        start_s = time.perf_counter()
        with passes(self.engine.device) as models_s:
            found = self.engine.generate(ids, arm, max_new_tokens=n, seed_text="")
        whole_s = time.perf_counter() - start_s
        read = 1 if arm.draft is None else 2  # prompts, which are not decoding
        return Run(found.tokens, whole_s, found.times.decode_s, len(found.tokens) - 1, sum(models_s[read:]))


@contextmanager
def passes(device: str = "cpu") -> Iterator[list[float]]:
    """Seconds of every pass of every model inside the block; complete when it ends. On CUDA they are those of the
    device, which runs behind, between marks in its queue."""
    spent: list[float] = []
    marks: list[tuple[Any, Any]] = []
    inner = CachedModel._forward

    def timed(self: CachedModel, ids: Any, keep: int) -> Any:
        start_s = time.perf_counter()
        logits = inner(self, ids, keep)
        spent.append(time.perf_counter() - start_s)
        return logits

    def marked(self: CachedModel, ids: Any, keep: int) -> Any:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        logits = inner(self, ids, keep)
        end.record()
        marks.append((begin, end))
        return logits

    with patch.object(CachedModel, "_forward", marked if device.startswith("cuda") else timed):
        yield spent
    if marks:
        torch.cuda.synchronize()
        spent += [begin.elapsed_time(end) / 1e3 for begin, end in marks]


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

    def __init__(self, device: str) -> None:
        self.target, self.draft = (load_model(name, dtype=DTYPE, device=device).model for name in (TARGET, DRAFT))
        for model in (self.target, self.draft):
            model.generation_config.eos_token_id = None
        self.draft.generation_config.num_assistant_tokens_schedule = "constant"
        self.draft.generation_config.assistant_confidence_threshold = 0.0

    def __call__(self, ids: list[int], arm: Arm, n: int) -> Run:
        settings = GenerationConfig(max_new_tokens=n, do_sample=False, pad_token_id=0)
        self.draft.generation_config.num_assistant_tokens = arm.gamma
        assistant = {} if arm.gamma is None else {"assistant_model": self.draft}
        prompt, first = torch.tensor([ids], device=self.target.device), FirstPut()
        inputs = {"inputs": prompt, "attention_mask": torch.ones_like(prompt)}
        start_s = time.perf_counter()
        with torch.inference_mode():
            out = self.target.generate(**inputs, generation_config=settings, streamer=first, **assistant)
        end_s = time.perf_counter()
        tokens = out[0, len(ids) :].tolist()
        return Run(tokens, end_s - start_s, end_s - first.at_s, len(tokens) - first.tokens)


def main(*, quick: bool = False, device: Device = "cpu") -> None:
    """Measure, print, and say what is met. Full: 10 prompts of all lengths twice, 16 tokens, six minutes on two quiet
    cores. Quick: 3 prompts once."""
    limit, repeats, n = (3, 1, 16) if quick else (10, 2, 16)
    ours = Ours(device)
    sides: dict[str, Side] = {"ours": ours, "theirs": Theirs(device)}
    if device == "cpu":  # without recorded passes it is no loop that was ever used on a GPU
        sides["before"] = Ours(device, lean=False)
    prompts = select(load_workload(str(shipped("workloads/mixed.jsonl"))).prompts, limit, seed=0)
    encoded = [ours.engine.encode(prompt) for prompt in prompts]
    for side in sides.values():
        if isinstance(side, Ours):
            side.reserve(max(map(len, encoded)) + n + max(arm.gamma or 0 for arm in ARMS) + 1)
    with quiet_transformers():
        measure(sides, encoded[:1], 8)  # warm-up, thrown away
        runs = measure(sides, encoded * repeats, n)
    regime = f"{n} tokens, {DTYPE}, {device}, one thread; load average {load_average()}"
    print(f"{len(prompts)} prompts x {repeats}, {regime}; medians over turns")
    print(f"{'':12} {'tokens/s':26} ours over ...")
    header = f"{'arm':12} {'ours':>8} {'theirs':>8} {'before':>8}"
    print(f"{header}  {'theirs, whole':22} {'theirs, decoding':22} {'before, decoding':22} overhead  same text")
    print("\n".join(_line(arm, runs[arm]) for arm in ARMS))
    if not quick:
        print("\n".join(_judged(arm, runs[arm]) for arm in ARMS))


def measure(sides: Mapping[str, Side], encoded: list[list[int]], n: int) -> dict[Arm, list[dict[str, Run]]]:
    """Every arm of every side on every prompt: arms in an order drawn anew, and the sides of each one after the other,
    in an order drawn anew."""
    order = random.Random(0)
    runs: dict[Arm, list[dict[str, Run]]] = defaultdict(list)
    for ids in encoded:
        for side in sides.values() if torch.cuda.is_available() else ():
            for arm in ARMS[:2]:  # a device plans its kernels at the first prompt of a length
                side(ids, arm, 2)
        turns = [
            (arm, name) for arm in order.sample(ARMS, len(ARMS)) for name in order.sample(sorted(sides), len(sides))
        ]
        found = {(arm, name): sides[name](ids, arm, n) for arm, name in turns}
        if {len(run.tokens) for run in found.values()} != {n}:
            raise RuntimeError(f"an arm emitted more or fewer than {n} tokens: per-token times do not compare")
        for arm in ARMS:
            runs[arm].append({name: found[arm, name] for name in sides})
    return runs


def _line(arm: Arm, runs: list[dict[str, Run]]) -> str:
    """Median tokens per second while decoding, and the ratios of turns."""
    rates = {name: median(r[name].decode_tokens / r[name].decode_s for r in runs) for name in runs[0]}
    before = _ratio(runs, "before") if "before" in rates else "-"
    cells = (_ratio(runs, "theirs", whole=True), _ratio(runs, "theirs"), before)
    same = sum(r["ours"].tokens == r["theirs"].tokens for r in runs)
    label = arm.kind if arm.gamma is None else f"gamma {arm.gamma}"
    sides = (f"{rates[name]:8.1f}" if name in rates else f"{'-':>8}" for name in ("ours", "theirs", "before"))
    shown = f"{' '.join(sides)}  {' '.join(f'{cell:22}' for cell in cells)}"
    return f"{label:12} {shown} {_overhead(runs):8.1%}  {same}/{len(runs)}"


def _judged(arm: Arm, runs: list[dict[str, Run]]) -> str:
    """Whole calls and overhead against what is asked of them, by the median."""
    asked = ALONE if arm.draft is None else DRAFTING
    found = median(r["theirs"].whole_s / r["ours"].whole_s for r in runs)
    spent = _overhead(runs)
    verdict = "met" if found >= asked and spent <= OVERHEAD else "MISSED"
    label = arm.kind if arm.gamma is None else f"gamma {arm.gamma}"
    return f"{label}: {verdict}, {found:.2f}x of {asked:g}x and {spent:.1%} of {OVERHEAD:.0%} overhead"


def _overhead(runs: list[dict[str, Run]]) -> float:
    return median(1 - (r["ours"].models_s or 0.0) / r["ours"].decode_s for r in runs)


def _ratio(runs: list[dict[str, Run]], other: str, *, whole: bool = False) -> str:
    def per_token(run: Run) -> float:
        return run.whole_s / len(run.tokens) if whole else run.decode_s / run.decode_tokens

    return ratio([per_token(r[other]) / per_token(r["ours"]) for r in runs])


def ratio(turns: Sequence[float]) -> str:
    """The median of ratios, and the range that holds it in 95 % of cases."""
    low, middle, high = median_interval(turns)
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"
