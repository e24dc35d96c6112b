"""What the whole acceptance curve costs: one text of the target and its replay, against re-running every gamma.

Per prompt, in an order drawn anew: the target alone (ours, one text); scoring that text under three drafters and
replaying gamma 1 to 8 of each; and, as people do today, transformers' assisted generation and prompt lookup once for
each of those 24 settings. Then the texts of BATCH_PROMPTS prompts, of BATCH_TOKENS tokens each, one by one and in
batches as `--replay-only` makes them.

Regime: as benchmarks.baseline. Scoring three drafters includes one draft model and two n-gram look-ups.
"""

from __future__ import annotations

import random
import time
from statistics import median

import torch
from transformers import GenerationConfig

from benchmarks.baseline import ARMS, DRAFT, DTYPE, TARGET, Theirs
from specbench.acceptance.replay import replay
from specbench.backends.base import Item
from specbench.backends.local.batch import REPLAY_BATCH
from specbench.backends.local.local import LocalEngine
from specbench.config import RunConfig
from specbench.cost.load import load_average
from specbench.drafters import parse_draft
from specbench.models.hub import quiet_transformers
from specbench.records import Arm, Prompt
from specbench.run.replay import text_of
from specbench.shipped import shipped
from specbench.workload import load_workload, select

DRAFTS = (DRAFT, "ngram:n=3", "ngram:n=2")
GAMMAS = range(1, 9)
BATCH_PROMPTS, BATCH_TOKENS = 48, 48


def main(*, quick: bool = False) -> None:
    """Measure and print. Full: 16 prompts, 32 tokens, of which re-running is timed on 2. Quick: 2 and 24."""
    prompts_n, rerun_n, n = (2, 1, 24) if quick else (16, 2, 32)
    config = RunConfig(target=TARGET, draft=DRAFTS, dtype=DTYPE, device="cpu", max_new_tokens=n, gamma=tuple(GAMMAS))
    engine, theirs = LocalEngine(config, threads=1), Theirs("cpu")
    engine.eos = frozenset()
    prompts = select(load_workload(str(shipped("workloads/mixed.jsonl"))).prompts, prompts_n, seed=0)
    encoded = [engine.encode(prompt) for prompt in prompts]
    engine.reserve(max(map(len, encoded)) + n + max(GAMMAS) + 1)
    engine.generate(encoded[0], ARMS[0], max_new_tokens=4, seed_text="")  # warm-up, thrown away

    alone_s, replay_s, rerun_s = [], [], []
    order = list(zip(prompts, encoded, strict=True))
    random.Random(0).shuffle(order)
    with quiet_transformers():
        for index, (prompt, ids) in enumerate(order):
            start_s = time.perf_counter()
            tokens = engine.generate(ids, ARMS[0], max_new_tokens=n, seed_text="").tokens
            middle_s = time.perf_counter()
            score_and_replay(engine, config, prompt, ids, tokens)
            alone_s.append(middle_s - start_s)
            replay_s.append(time.perf_counter() - middle_s)
            if index < rerun_n:
                rerun_s.append(rerun(theirs, ids, n))
        alone, batched = side_by_side(engine, 2 if quick else BATCH_PROMPTS, BATCH_TOKENS)

    curve = [(a + r) / a for a, r in zip(alone_s, replay_s, strict=True)]
    cheaper = [o / (a + r) for a, r, o in zip(alone_s, replay_s, rerun_s, strict=False)]
    print(f"{prompts_n} prompts, {n} tokens, {DTYPE}, one thread; load average {load_average()}")
    print(f"target alone                       {median(alone_s):7.2f} s a prompt (median)")
    print(f"replay, 3 drafters x gamma 1..8    {median(replay_s):7.2f} s")
    print(f"whole curve / target alone         {median(curve):7.2f} x   [{min(curve):.2f} to {max(curve):.2f}]")
    print(f"24 re-runs of transformers         {median(rerun_s):7.2f} s   ({len(rerun_s)} prompts)")
    print(f"re-runs / whole curve              {median(cheaper):7.1f} x   [{min(cheaper):.1f} to {max(cheaper):.1f}]")
    rates = f"({batched:.1f} / {alone:.1f} tokens per s)"
    print(f"batches of {REPLAY_BATCH} / one by one         {batched / alone:7.2f} x   {rates}")


def side_by_side(engine: LocalEngine, prompts_n: int, n: int) -> tuple[float, float]:
    """Tokens per second of the target alone, text by text and in batches, over the same prompts; the two take turns
    batch by batch."""
    prompts = select(load_workload(str(shipped("workloads/mixed.jsonl"))).prompts, prompts_n, seed=0)
    encoded = sorted((engine.encode(prompt) for prompt in prompts), key=len, reverse=True)
    engine.reserve(len(encoded[0]) + n + 1)
    alone_s = batched_s = 0.0
    for begin in range(0, len(encoded), REPLAY_BATCH):
        batch = encoded[begin : begin + REPLAY_BATCH]
        start_s = time.perf_counter()
        engine.texts(batch, n, "")
        middle_s = time.perf_counter()
        for ids in batch:
            engine.generate(ids, ARMS[0], max_new_tokens=n, seed_text="")
        batched_s += middle_s - start_s
        alone_s += time.perf_counter() - middle_s
    return len(encoded) * n / alone_s, len(encoded) * n / batched_s


def score_and_replay(engine: LocalEngine, config: RunConfig, prompt: Prompt, ids: list[int], tokens: list[int]) -> None:
    """What `sweep` adds to the target's text to know every gamma of every drafter."""
    for draft in DRAFTS:
        text = text_of(Item(prompt, ids), draft, 0, config, engine.drafts[draft].score(ids, tokens))
        for gamma in GAMMAS:
            replay([text], gamma)


def rerun(theirs: Theirs, ids: list[int], n: int) -> float:
    """Seconds for all 24 settings, one after the other."""
    start_s = time.perf_counter()
    for draft in DRAFTS:
        ngram = parse_draft(draft).ngram
        for gamma in GAMMAS:
            if ngram is not None:
                lookup(theirs, ids, n, gamma, ngram.n)
            else:
                theirs(ids, Arm("speculative", draft, gamma), n)
    return time.perf_counter() - start_s


def lookup(theirs: Theirs, ids: list[int], n: int, gamma: int, longest: int) -> None:
    """transformers' prompt lookup."""
    settings = GenerationConfig(
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        prompt_lookup_num_tokens=gamma,
        max_matching_ngram_size=longest,
    )
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        theirs.target.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
