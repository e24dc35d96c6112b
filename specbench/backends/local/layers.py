"""`skip:auto`: how many of the target's first layers make the best draft, found by replay before the run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch

from specbench.acceptance.loop import generate
from specbench.acceptance.replay import Text, replay
from specbench.acceptance.score import score
from specbench.acceptance.scores import as_text
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Setting
from specbench.clock import Stopwatch
from specbench.cost.model import RoundCosts, predicted_speedup
from specbench.drafters.skip import fewest_layers, first_layers

# Texts to look at, how much of a prompt and how many tokens of each, and how many depths are tried.
TEXTS, CONTEXT, TOKENS, DEPTHS, PASSES = 4, 512, 32, 7, 5


def choose_layers(setting: Setting, prompts: Sequence[Sequence[int]], gammas: Sequence[int]) -> int:
    """Layers of the skip draft with the best predicted speedup at its best gamma, over a few texts of the target. A
    rough choice, and only that: what the draft then gives is measured like any other."""
    text = setting.target.model.config.get_text_config()
    whole, fewest = int(text.num_hidden_layers), fewest_layers(text)
    depths = sorted({min(whole - 1, max(fewest, round(whole * i / (DEPTHS + 1)))) for i in range(1, DEPTHS + 1)})
    texts = [list(prompt[-CONTEXT:]) for prompt in prompts[:TEXTS]]
    capacity = CONTEXT + TOKENS + max(gammas) + 1
    readers = {depth: CachedModel(first_layers(setting.target.model, depth), capacity) for depth in depths}
    setting = replace(setting, reader=CachedModel(setting.target.model, capacity))
    outputs = [_text(setting, prompt) for prompt in texts]
    step_s = _steps(setting, readers, texts[0], max(gammas))
    best: tuple[float, int] | None = None
    for depth, reader in readers.items():
        scores = [_scored(setting, reader, p, o) for p, o in zip(texts, outputs, strict=True)]
        tokens = sum(len(output) - 1 for output in outputs)
        costs = RoundCosts(step_s[None], step_s[depth][0], step_s[depth][0], 0.0)
        for gamma in gammas:
            found = predicted_speedup(replay(scores, gamma), tokens, costs)
            if found is not None and (best is None or found > best[0]):
                best = found, depth
    return depths[len(depths) // 2] if best is None else best[1]


def _text(setting: Setting, prompt: Sequence[int]) -> list[int]:
    out = generate(
        setting.read,
        None,
        prompt,
        gamma=0,
        sampling=setting.sampling,
        eos=setting.eos,
        max_new_tokens=TOKENS,
        generator=torch.Generator(setting.read.device).manual_seed(0),
        clock=Stopwatch(),
    )
    return out.tokens


def _scored(setting: Setting, reader: CachedModel, prompt: Sequence[int], output: Sequence[int]) -> Text:
    found = score(
        setting.read,
        reader,
        prompt,
        output,
        vocab_size=setting.vocab_size,
        sampling=setting.sampling,
        eos=setting.eos,
    )
    return as_text(found, prompt_id="", category=None, draft="", repeat=0, limit=TOKENS)


@torch.inference_mode()
def _steps(
    setting: Setting, readers: Mapping[int, CachedModel], prompt: Sequence[int], gamma: int
) -> dict[int | None, tuple[float, ...]]:
    """Median seconds of the target over 1 to gamma + 1 tokens (under None), and of each depth over one."""
    spent: dict[tuple[int | None, int], list[float]] = {}
    models = [(None, setting.read), *readers.items()]
    for _, model in models:
        model.rewind(0)
        model.forward(prompt, keep=1)
    for _ in range(PASSES):
        for depth, model in models:
            for width in range(1, gamma + 2) if depth is None else (1,):
                start_s = time.perf_counter()
                model.forward([prompt[-1]] * width, keep=width)
                spent.setdefault((depth, width), []).append(time.perf_counter() - start_s)
                model.rewind(len(prompt))
    return {depth: tuple(median(s) for (d, _), s in spent.items() if d == depth) for depth, _ in models}
