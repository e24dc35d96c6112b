"""Tiny real models for every test: no downloads, milliseconds each."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_llama


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def target_model() -> torch.nn.Module:
    return tiny_llama(vocab_size=64, seed=1)


@pytest.fixture(scope="session")
def draft_model() -> torch.nn.Module:
    return tiny_llama(vocab_size=64, seed=2)
