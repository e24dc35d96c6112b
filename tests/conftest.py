"""Tiny real models for every test: no downloads, milliseconds each.

torch is loaded where it is used: with `-n` the process that hands out the tests reads this file and runs none.
"""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before numpy is loaded, here and in the processes that tests start: its BLAS waits busily for threads that the other
# worker's tests keep off the cores, which more than doubles what small matrix products take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Whoever starts the tests in the background has them ignore Ctrl-C, and so would every process that they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

CANARY = "xylophone-canary"

# How many in a hundred of the examples that a test asks for are tried: a tenth unless `--hypothesis-profile=full` is
# given, as `make test-all` does. The tenth is the same each time.
settings.register_profile("few", max_examples=10, deadline=None, derandomize=True, database=None)
settings.register_profile("full", max_examples=100, deadline=None)
settings.load_profile("few")


def examples(most: int) -> settings:
    """Of a test that wants `most` examples when all tests run."""
    return settings(max_examples=max(1, most * settings().max_examples // 100))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def full(*cases: Any) -> list[Any]:
    """Cases of a parametrised test, each its values or its one value, that run in `make test-all` alone."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full) for case in cases]


# Names of all tests, and of those that are marked full throughout: tests/test_tiers.py looks at both.
ALL, FULL = pytest.StashKey[set[str]](), pytest.StashKey[set[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with real models and servers lie apart, and none is last: two at once wait for the same memory, and one
    that begins last leaves the other worker idle."""
    names = {item.nodeid.partition("[")[0] for item in items}
    quick = {item.nodeid.partition("[")[0] for item in items if not item.get_closest_marker("full")}
    config.stash[ALL], config.stash[FULL] = names, names - quick
    slow = sorted({item.path for item in items if item.get_closest_marker("slow")})
    order = [path for path in dict.fromkeys(item.path for item in items) if path not in slow]
    apart = 1 + len(order) // (1 + len(slow))
    for number, path in enumerate(slow):
        order.insert(number * apart, path)
    places = {path: place for place, path in enumerate(order)}
    items.sort(key=lambda item: places[item.path])


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


@dataclass(frozen=True)
class Typed:
    """A run folder, and what the command printed."""

    folder: Path
    stdout: str
    stderr: str


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


# -- runs that many tests read. Who changes one copies its folder first. --


@pytest.fixture(scope="session")
def typed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """A whole sweep of the lab, as a user types it: 12 prompts at gamma 1 and 3."""
    from test_cli import call

    out = tmp_path_factory.mktemp("typed")
    result = call("sweep", *lab.args("--out", str(out), "--json"))
    assert result.exit_code == 0, result.output
    (folder,) = out.iterdir()
    before = files_in(folder)
    yield Typed(folder, result.stdout, result.stderr)
    assert files_in(folder) == before, "a test changed the run that others read"


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
