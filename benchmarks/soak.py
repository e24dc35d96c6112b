"""Does a long run stay as small as it begins? Thousands of prompts through the real run, with its memory on record.

Regime: a random two-layer Llama and a noisy copy of it in float32 on the CPU, one thread, gamma 2, 8 tokens a text, so
that what is left of each trial in memory shows, and not the models. Everything a run does is done: trials on disk,
scores, positions. Resident memory is read after every 50 trials; KV caches that are alive are counted ten times in all.

The slope is the mean change from one tenth of the run to the next, over the last eight of them, by 1,000 trials; its
interval is Student's over those changes. What a run keeps on purpose is a count for each trial, well below 1 MB by
1,000.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import psutil
import torch
from scipy.stats import t as student
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.ragged import RaggedCache
from specbench.config import RunConfig
from specbench.models.hub import quiet_transformers
from specbench.records import Arm, Trial
from specbench.run.session import run

GAMMA, TOKENS, PARTS, SKIPPED, EVERY = 2, 8, 10, 2, 50
END = "<|end|>"
ARMS = 3  # the target alone, the same again, and the draft


class Watcher:
    """An observer of a run that reads its memory. `resident` are pairs of trials and bytes, `caches` of trials and live
    caches."""

    def __init__(self, total: int) -> None:
        self._process, self._look = psutil.Process(), max(1, total // PARTS)
        self.trials = 0
        self.resident: list[tuple[int, int]] = []
        self.caches: list[tuple[int, int]] = []

    def say(self, line: str) -> None: ...

    def begin(self, total: int, done: int) -> None: ...

    def left(self, trials: Mapping[Arm, int], units: int) -> None: ...

    def advance(self, texts: int) -> None: ...

    def trial(self, trial: Trial) -> None:
        self.trials += 1
        if self.trials % EVERY == 0:
            self.resident.append((self.trials, self._process.memory_info().rss))
        if self.trials % self._look == 0:
            alive = sum(type(each) in (RewindableCache, RaggedCache) for each in gc.get_objects())
            self.caches.append((self.trials, alive))


def main(*, quick: bool = False) -> None:
    """Run and print. Full: 2,000 prompts, one at a time. Quick: 100."""
    prompts = 100 if quick else 2000
    watcher = Watcher(prompts * ARMS)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        target, draft = _models(Path(folder))
        workload = Path(folder) / "prompts.jsonl"
        rows = [{"id": f"p{n}", "prompt": f"say something of {n}" + " and more" * (n % 5)} for n in range(prompts)]
        workload.write_text("\n".join(map(json.dumps, rows)))
        config = RunConfig(
            target=str(target), draft=(str(draft),), workload=str(workload), max_new_tokens=TOKENS, dtype="float32",
            device="cpu", threads=1, probe_batch_sizes=(1,), max_other_cores=1000, out=str(Path(folder) / "runs"),
        )  # fmt: skip
        begun_s = time.perf_counter()
        run(config, "measure", (GAMMA,), watcher)
        spent_s = time.perf_counter() - begun_s
    print(f"{prompts:,} prompts, {watcher.trials:,} trials in {spent_s:.0f} s; torch {torch.__version__}")
    resident = [size / 1e6 for _, size in watcher.resident]
    names = ("first", "middle", "last")
    shown = (resident[0], resident[len(resident) // 2], resident[-1])
    print("resident memory: " + ", ".join(f"{name} {size:.1f} MB" for name, size in zip(names, shown, strict=True)))
    if not quick:
        slope, low, high = slope_by_thousand(watcher.resident)
        print(f"slope: {slope / 1e6:+.2f} MB by 1,000 trials (95 % interval {low / 1e6:+.2f} to {high / 1e6:+.2f})")
    print("live KV caches: " + ", ".join(str(alive) for _, alive in watcher.caches))
    if len({alive for _, alive in watcher.caches}) > 1:
        raise SystemExit("the number of live KV caches changes from trial to trial")


def slope_by_thousand(resident: list[tuple[int, int]]) -> tuple[float, float, float]:
    """Bytes by 1,000 trials, and the ends of its interval: changes between means over tenths of the run, the first
    tenths left out, in which libraries take what they keep."""
    size = len(resident) // PARTS
    tenths = [mean(b for _, b in resident[part * size : (part + 1) * size]) for part in range(PARTS)]
    by_thousand = 1000 / (size * EVERY)
    changes = [(after - before) * by_thousand for before, after in pairwise(tenths)][SKIPPED - 1 :]
    reach = float(student.ppf(0.975, len(changes) - 1)) * stdev(changes) / math.sqrt(len(changes))
    return mean(changes), mean(changes) - reach, mean(changes) + reach


def _models(folder: Path) -> tuple[Path, Path]:
    """A target and a draft that often agrees, each a directory as a user would have it."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257, initializer_range=0.5, **shape, **heads))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * weight.std() * torch.randn_like(weight))
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, model_max_length=512)
    paths = folder / "target", folder / "draft"
    for path, each in zip(paths, (model, other), strict=True):
        each.generation_config.eos_token_id = tokenizer.eos_token_id
        each.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return paths
