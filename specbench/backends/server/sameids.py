"""Whether two servers mean the same texts by the same token ids, as far as a few texts can tell."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.backends.server.writing import Post, Tokenizing
from specbench.errors import VocabularyError

# Texts that tokenizers of different families cut differently, and what their special tokens are called.
PROBES = (
    "The quick brown fox, 1234567890 times.",
    "def f(x):\n\treturn [x  **  2]\r\n\n",
    "naïve café, Straße, 漢字かな, Привет 👍🏽",
    "<|im_start|><|im_end|><|endoftext|><|eot_id|><s></s><bos><eos><start_of_turn>[INST]",
)

Ids = list[tuple[int, ...]]


async def probed(adapter: Tokenizing, post: Post, model: str | None) -> Ids:
    """The token ids of every probe."""
    return [await adapter.token_ids(post, text, model) for text in PROBES]


def require_same(target: Sequence[tuple[int, ...]], draft: Sequence[tuple[int, ...]], name: str) -> None:
    """Raises VocabularyError where the two cut a probe differently; `name` is the draft's."""
    others = sum(own != other for own, other in zip(target, draft, strict=True))
    if others:
        raise VocabularyError(
            f"Target and draft do not share their token ids: {others} of {len(PROBES)} texts differ",
            where=name,
            cure="Serve a draft with the target's tokenizer.",
        )
