"""Tiny real models for every test: no downloads, milliseconds each.

torch is loaded where it is used: with `-n` the process that hands out the tests reads this file and runs none.
"""

from __future__ import annotations

import gc
import json
import os
from dataclasses import dataclass
from pathlib import Path

# Before numpy is loaded, here and in the processes that tests start: its BLAS waits busily for threads that the other
# worker's tests keep off the cores, which more than doubles what small matrix products take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

CANARY = "xylophone-canary"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with real models and servers lie apart, and none is last: two at once wait for the same memory, and one
    that begins last leaves the other worker idle."""
    slow = sorted({item.path for item in items if item.get_closest_marker("slow")})
    order = [path for path in dict.fromkeys(item.path for item in items) if path not in slow]
    apart = 1 + len(order) // (1 + len(slow))
    for number, path in enumerate(slow):
        order.insert(number * apart, path)
    items.sort(key=lambda item: order.index(item.path))


def pytest_collection_finish() -> None:
    """What the libraries and the collected tests hold is never garbage: Python need not walk it again and again."""
    import torch

    torch.set_num_threads(1)  # also for fixtures of a module, which are made before `one_thread`
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Lab:
    """Model directories and a prompt file, as a user would have them."""

    target: Path
    near: Path
    far: Path
    workload: Path

    def args(self, *more: str, draft: Path | None = None) -> list[str]:
        """Command-line flags of a run on these; float32, one thread, and blind to other load."""
        paths = ["--target", str(self.target), "--draft", str(draft or self.near), "--workload", str(self.workload)]
        config = self.workload.parent / "lab.yaml"
        return ["--config", str(config), *paths, "--dtype", "float32", "--threads", "1", "--device", "cpu", *more]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    from tiny import near_copy, save_with_byte_tokenizer, tiny_llama

    folder = tmp_path_factory.mktemp("lab")
    target = tiny_llama(257, seed=1)
    save_with_byte_tokenizer(target, folder / "target")
    save_with_byte_tokenizer(near_copy(target, noise=0.05), folder / "near")
    save_with_byte_tokenizer(tiny_llama(257, seed=9), folder / "far")
    subjects = [
        "tides",
        "bread",
        "glaciers",
        "chess",
        "bees",
        "rust",
        "maps",
        "violins",
        "yeast",
        "kites",
        "salt",
        "moss",
    ]
    workload = folder / "prompts.jsonl"
    rows = [
        {"id": f"q{i}", "category": ("chat", "code")[i % 2], "prompt": f"{CANARY}: tell me about {subject}."}
        for i, subject in enumerate(subjects)
    ]
    workload.write_text("\n".join(map(json.dumps, rows)) + "\n")
    # The models are timed alone at a batch of 1; tests of larger batches ask for them.
    own = "max_other_cores: 1000\nlimit: null\nmax_new_tokens: 12\ngamma: 1,3\nprobe_batch_sizes: 1\n"
    (folder / "lab.yaml").write_text(own)
    return Lab(folder / "target", folder / "near", folder / "far", workload)
