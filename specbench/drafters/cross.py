"""A draft model with another tokenizer: the text goes over in words and comes back in the target's tokens.

Each round the sequence is decoded, encoded for the draft, continued greedily by as many draft tokens as the round may
draft, and what they say is encoded for the target. Such drafts are not drawn from a known q over the target's
vocabulary, so they count as one-hot. This is what transformers calls universal assisted decoding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from specbench.acceptance.loop import Proposal, Target
from specbench.acceptance.rules import best, penalised, queued
from specbench.acceptance.scores import BlockScores, agreed, until_end
from specbench.drafters.model import agreeing

# Tokens encoded or decoded again together with what is new, so that the seam is cut as the model would cut it.
SEAM = 8
# A character of which the last bytes are not there yet decodes to this.
HALF = "\ufffd"
# Text put before what stands alone: it joins with nothing, and keeps a tokenizer from adding a space of its own.
ANCHOR = "0"


class CrossDrafter:
    """`draft_tokenizer` and `target_tokenizer` are transformers tokenizers; `eos` are the target's ends of sequence,
    of which `end` is the one to propose where the draft ends its text, `draft_eos` those of the draft.

    A text may take more tokens of the draft than of the target. Where it outgrows the draft's memory (the model's
    `capacity`, if it states one) the draft reads only the end of it.
    """

    def __init__(
        self,
        model: Target,
        draft_tokenizer: Any,
        target_tokenizer: Any,
        *,
        eos: Collection[int],
        end: int,
        draft_eos: Collection[int],
        repetition_penalty: float = 1.0,
    ) -> None:
        self._model = model
        self._penalty = repetition_penalty
        self._room: float = getattr(model, "capacity", math.inf)
        self._draft, self._target = draft_tokenizer, target_tokenizer
        self._eos, self._end, self._draft_eos = frozenset(eos), end, frozenset(draft_eos)
        self._special = frozenset(target_tokenizer.all_special_ids)
        self._anchor = self._cut(ANCHOR)
        self._read: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self._model.rewind(0)
        self._read = []
        self._catch_up(self._encoded(prompt))

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        ids = self._encoded(x)
        return Proposal(self._translated(x, ids, self._continue(ids, k), k))

    def blocks(self, x: Sequence[int], longest: int) -> list[list[int]]:
        """What a round allowed k tokens would propose, for k = 1 .. `longest`; the same draft tokens serve them all."""
        ids = self._encoded(x)
        drafts = self._continue(ids, longest)
        return [self._translated(x, ids, drafts[:k], k) for k in range(1, longest + 1)]

    def _continue(self, ids: list[int], k: int) -> list[int]:
        """At most `k` greedy draft tokens after `ids`, ending with an end of sequence."""
        drafts = self._best(self._catch_up(ids))
        while len(drafts) < k and drafts[-1] not in self._draft_eos and len(self._read) < self._room:
            self._read.append(drafts[-1])
            drafts += self._best(self._model.forward(drafts[-1:], keep=1))
        return drafts

    def _best(self, logits: torch.Tensor) -> list[int]:
        """The likeliest token from logits [1, V] after what is read. A penalty counts that in the draft's own tokens,
        as the target's counts the text in its."""
        if self._penalty != 1.0:
            logits = penalised(logits, queued(self._read, logits.device), self._penalty)
        return best(logits)

    def _catch_up(self, ids: list[int]) -> torch.Tensor:
        """Read `ids`, of which what is read already is kept; logits [1, V] after them. Encoding a longer text may
        change its last tokens, so what agrees is found anew."""
        keep = agreeing(self._read, ids)
        self._model.rewind(keep)
        self._read = list(ids)
        return self._model.forward(ids[keep:], keep=1)

    def _translated(self, x: Sequence[int], ids: list[int], drafts: list[int], k: int) -> list[int]:
        """What the draft tokens say after `ids`, in at most `k` tokens of the target."""
        ended = drafts[-1] in self._draft_eos
        tail = ids[-SEAM:]
        before = _text(self._draft, tail)
        whole = _text(self._draft, [*tail, *(drafts[:-1] if ended else drafts)])
        new = whole[len(before) :].partition(HALF)[0] if whole.startswith(before) else ""
        tokens = self._following(x, new) if new else []
        if ended and len(tokens) < k:
            tokens.append(self._end)
        return until_end(tokens[:k], self._eos)

    def _following(self, x: Sequence[int], new: str) -> list[int]:
        """`new` in tokens of the target, cut as they would be after the end of `x`; none where `x` ends within a
        character and `new` does not complete it."""
        seam = list(x[-SEAM:])
        while seam and any(token in self._special for token in seam):
            seam.pop(0)
        ending = _text(self._target, seam)
        # A seam that begins within a word or a character is cut differently there: then a shorter one may agree.
        while seam:
            again = self._cut(_text(self._target, seam).rstrip(HALF) + new)
            if again[: len(seam)] == seam:
                return again[len(seam) :]
            seam = seam[(len(seam) + 1) // 2 :]
        if ending.endswith(HALF):
            return []
        alone = self._cut(ANCHOR + new)
        return alone[len(self._anchor) :] if alone[: len(self._anchor)] == self._anchor else self._cut(new)

    def _cut(self, text: str) -> list[int]:
        return list(self._target(text, add_special_tokens=False)["input_ids"])

    def _encoded(self, x: Sequence[int]) -> list[int]:
        """The text of `x` in tokens of the draft, without a last character that is not whole yet."""
        ids = list(self._draft(_text(self._target, x).rstrip(HALF))["input_ids"])
        while ids and ids[-1] in self._draft_eos:  # some tokenizers close what they encode
            ids.pop()
        return self._window(ids) if ids else [min(self._draft_eos)]

    def _window(self, ids: list[int]) -> list[int]:
        """The last of `ids` for which there is room, after the token that begins every text. The start moves on in
        steps of a quarter of the room, since all is read anew when it moves."""
        if len(ids) <= self._room:
            return ids
        step = max(1, int(self._room) // 4)
        start = math.ceil((len(ids) - self._room) / step) * step
        first = ids[:1] if ids[0] == self._draft.bos_token_id else []
        return [*first, *ids[start + len(first) :]]


@torch.inference_mode()
def match_each_block(drafter: CrossDrafter, prompt: Sequence[int], output: Sequence[int], longest: int) -> BlockScores:
    """`scores.match_blocks` for a draft whose shorter blocks need not begin its longer ones: arrays [n, longest]."""
    drafter.begin(prompt)
    proposed, matched = (np.zeros((max(0, len(output) - 1), longest), dtype=np.int32) for _ in range(2))
    for i in range(1, len(output)):
        for column, tokens in enumerate(drafter.blocks([*prompt, *output[:i]], longest)):
            proposed[i - 1, column] = len(tokens)
            matched[i - 1, column] = agreed(tokens, output, i)
    return BlockScores(proposed, matched)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
