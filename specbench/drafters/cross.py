"""A draft model with another tokenizer: the text goes over in words and comes back in the target's tokens.

Each round the sequence is decoded, encoded for the draft, continued greedily by as many draft tokens as the round may
draft, and what they say is encoded for the target. Such drafts are not drawn from a known q over the target's
vocabulary, so they count as one-hot. This is what transformers calls universal assisted decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from specbench.acceptance.loop import Proposal, Target

# Target tokens encoded again together with what is new, so that the seam is cut as the target would cut it.
SEAM = 8


class CrossDrafter:
    """`draft_tokenizer` and `target_tokenizer` are transformers tokenizers; `eos` are the target's ends of sequence,
    of which `end` is the one to propose where the draft ends its text, `draft_eos` those of the draft."""

    def __init__(
        self,
        model: Target,
        draft_tokenizer: Any,
        target_tokenizer: Any,
        *,
        eos: Collection[int],
        end: int,
        draft_eos: Collection[int],
    ) -> None:
        self._model = model
        self._draft, self._target = draft_tokenizer, target_tokenizer
        self._eos, self._end, self._draft_eos = frozenset(eos), end, frozenset(draft_eos)
        self._special = frozenset(target_tokenizer.all_special_ids)
        self._read: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self._model.rewind(0)
        self._read = []
        self._catch_up(self._encoded(prompt))

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        ids = self._encoded(x)
        return Proposal(self._translated(x, ids, self._decoded(ids), self._continue(ids, k), k))

    def blocks(self, x: Sequence[int], longest: int) -> list[list[int]]:
        """What a round allowed k tokens would propose, for k = 1 .. `longest`; the same draft tokens serve them all."""
        ids = self._encoded(x)
        drafts = self._continue(ids, longest)
        before = self._decoded(ids)
        return [self._translated(x, ids, before, drafts[:k], k) for k in range(1, longest + 1)]

    def _continue(self, ids: list[int], k: int) -> list[int]:
        """At most `k` greedy draft tokens after `ids`, ending with an end of sequence."""
        logits = self._catch_up(ids)
        drafts = [int(logits.argmax(-1))]
        while len(drafts) < k and drafts[-1] not in self._draft_eos:
            self._read.append(drafts[-1])
            drafts.append(int(self._model.forward(drafts[-1:], keep=1).argmax(-1)))
        return drafts

    def _catch_up(self, ids: list[int]) -> torch.Tensor:
        """Read `ids`, of which what is read already is kept; logits [1, V] after them. Encoding a longer text may
        change its last tokens, so what agrees is found anew."""
        keep = 0
        limit = min(len(self._read), len(ids) - 1)
        while keep < limit and self._read[keep] == ids[keep]:
            keep += 1
        self._model.rewind(keep)
        self._read = list(ids)
        return self._model.forward(ids[keep:], keep=1)

    def _translated(self, x: Sequence[int], ids: list[int], before: str, drafts: list[int], k: int) -> list[int]:
        """What the draft tokens say after `before`, in at most `k` tokens of the target."""
        ended = drafts[-1] in self._draft_eos
        spoken = drafts[:-1] if ended else drafts
        whole = self._decoded([*ids, *spoken])
        # Half a character decodes to a replacement character, which no text of the target continues with.
        new = whole[len(before) :].rstrip("\ufffd") if whole.startswith(before) else ""
        tokens = self._cut(x, new) if new else []
        if ended and len(tokens) < k:
            tokens.append(self._end)
        tokens = tokens[:k]
        stop = next((i + 1 for i, token in enumerate(tokens) if token in self._eos), len(tokens))
        return tokens[:stop]

    def _cut(self, x: Sequence[int], new: str) -> list[int]:
        """`new` in tokens of the target, cut as they would be after the end of `x`."""
        seam = list(x[-SEAM:])
        while seam and any(token in self._special for token in seam):
            seam.pop(0)
        again = self._target(self._target.decode(seam) + new, add_special_tokens=False)["input_ids"]
        if seam and list(again[: len(seam)]) == seam:
            return list(again[len(seam) :])
        return list(self._target(new, add_special_tokens=False)["input_ids"])

    def _encoded(self, x: Sequence[int]) -> list[int]:
        return list(self._draft(self._target.decode(x, skip_special_tokens=True))["input_ids"]) or [
            next(iter(self._draft_eos))
        ]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._draft.decode(ids, skip_special_tokens=True))
