"""A fake language model with a known truth: the next token's logits are a table over the last two tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from specbench.acceptance.rules import distribution
from specbench.records import Sampling


class FakeMarkov:
    """Second-order Markov chain over `vocab` tokens with logits table [V, V, V], behind the loop's Target."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.vocab_size = table.shape[0]
        self.ids: list[int] = []

    @classmethod
    def random(cls, vocab: int, seed: int, spread: float = 1.5) -> FakeMarkov:
        return cls(torch.randn(vocab, vocab, vocab, generator=torch.Generator().manual_seed(seed)) * spread)

    def forward(self, ids: Sequence[int], keep: int) -> Tensor:
        start = len(self.ids)
        self.ids += ids
        ends = range(start + len(ids) - keep, start + len(ids))
        return torch.stack([self.after(self.ids[: end + 1]) for end in ends])

    def rewind(self, length: int) -> None:
        assert length <= len(self.ids)
        del self.ids[length:]

    def after(self, context: Sequence[int]) -> Tensor:
        """Logits [V] after a context."""
        previous = context[-2] if len(context) > 1 else 0
        return self.table[previous, context[-1]]


def text_probabilities(
    model: FakeMarkov, prompt: list[int], length: int, sampling: Sampling, eos: set[int]
) -> dict[tuple[int, ...], float]:
    """The exact probability of every text of `length` tokens, or shorter ones that end in `eos`."""
    exact: dict[tuple[int, ...], float] = {}
    for text in itertools.product(range(model.vocab_size), repeat=length):
        ended = next((i + 1 for i, token in enumerate(text) if token in eos), length)
        if text[:ended] in exact:
            continue
        probability = 1.0
        for i in range(ended):
            so_far = [*prompt, *text[:i]]
            penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
            p = distribution(penalty(torch.tensor([so_far]), model.after(so_far)[None]), sampling)[0]
            probability *= float(p[text[i]])
        exact[text[:ended]] = probability
    return exact
