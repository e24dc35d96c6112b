"""The engine on a CUDA device: recorded graphs, spans by CUDA events, and several sequences at once.

The table of benchmarks.baseline with `--device cuda`; then the target alone at several batch sizes, ours against
transformers' `generate` on the same prompts. Nothing here runs without a CUDA device.
"""

from __future__ import annotations

import random
import sys
import time
from statistics import median

import torch
from transformers import GenerationConfig

from benchmarks import baseline
from benchmarks.baseline import ARMS, DTYPE, TARGET
from specbench.config import RunConfig
from specbench.engines.local import LocalEngine
from specbench.models import load_model
from specbench.models.convert import quiet_transformers
from specbench.shipped import shipped
from specbench.workload import load_workload, select

BATCHES, TOKENS, REPEATS = (1, 4, 16), 64, 5


def main(*, quick: bool = False) -> None:
    """Measure and print; exit 2 where there is no CUDA device."""
    if not torch.cuda.is_available():
        print("No CUDA device here (torch.cuda.is_available() is False). Run this where there is one.", file=sys.stderr)
        raise SystemExit(2)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    baseline.main(quick=quick, device="cuda")
    print("\nThe target alone in batches, tokens/s in all (median of the runs)")
    print(f"{'batch':>5} {'ours':>9} {'theirs':>9}  ratio")
    for batch in BATCHES[:2] if quick else BATCHES:
        print(_batch(batch, 1 if quick else REPEATS), flush=True)


def _batch(batch: int, repeats: int) -> str:
    config = RunConfig(target=TARGET, draft=(), dtype=DTYPE, device="cuda", batch_size=batch, gamma=(1,))
    engine, theirs = LocalEngine(config, threads=1), load_model(TARGET, dtype=DTYPE, device="cuda").model
    engine.eos, theirs.generation_config.eos_token_id = frozenset(), None
    prompts = select(load_workload(str(shipped("workloads/mixed.jsonl"))).prompts, batch, seed=0)
    encoded = [engine.encode(prompt) for prompt in prompts]
    engine.reserve(max(map(len, encoded)) + TOKENS + 2)
    engine.settle([], {})

    def ours() -> None:
        seeds = [prompt.id for prompt in prompts]
        if batch == 1:
            engine.generate(encoded[0], ARMS[0], max_new_tokens=TOKENS, seed_text=seeds[0])
        else:
            engine.generate_many(encoded, ARMS[0], max_new_tokens=TOKENS, seed_texts=seeds)

    longest = max(map(len, encoded))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in encoded], device="cuda")
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device="cuda")
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)

    def generate() -> None:
        with torch.inference_mode(), quiet_transformers():
            theirs.generate(ids, attention_mask=mask, generation_config=settings)

    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    jobs = {"ours": ours, "theirs": generate}
    order = random.Random(0)
    for turn in range(repeats + 1):
        for name in order.sample(sorted(jobs), 2):
            torch.cuda.synchronize()
            start_s = time.perf_counter()
            jobs[name]()
            torch.cuda.synchronize()
            if turn:  # the first warms every shape
                spent[name].append(time.perf_counter() - start_s)
    rates = {name: batch * TOKENS / median(seconds) for name, seconds in spent.items()}
    return f"{batch:5} {rates['ours']:9.1f} {rates['theirs']:9.1f}  {rates['ours'] / rates['theirs']:.2f}x"
