"""Do target and draft mean the same token by the same id?

Drafted ids go to the target as they are, so a shifted vocabulary is not an error that anything reports: it only looks
like a poor draft.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specbench.errors import VocabularyError
from specbench.records import Finding, warned
from specbench.text import count

_SHOWN = 4
_CURE = "Use a draft trained with the target's tokenizer, or ngram:n=3, which needs none."
# Names that vocabularies give to ids kept free for later: no text was ever trained on them.
_PLACEHOLDER = re.compile(
    r"[<\[]\|?_?(reserved|unused|extra|placeholder|dummy|pad(?=_?\d)|special_(?=\d))[\w -]*\d\|?[>\]]", re.I
)


@dataclass(frozen=True, slots=True)
class VocabularyReport:
    """How two vocabularies that fit differ.

    Drafting happens on the ids below `shared`; logits beyond are cut before sampling. `padding` is the draft's number
    of logits less the target's. `target_only` and `draft_only` count the ids to which only one side gives a
    token. `same_eos` and `same_merges` are None where one side states none.
    """

    shared: int
    padding: int
    target_only: int
    draft_only: int
    same_eos: bool | None
    same_merges: bool | None
    cautions: tuple[Finding, ...]


def check_vocabularies(
    target_tokenizer: Any, draft_tokenizer: Any, target_vocab_size: int, draft_vocab_size: int
) -> VocabularyReport:
    """Compare two transformers tokenizers id by id; the sizes are those of the models' logits, padding included.

    Raises VocabularyError where an id has two meanings. Ids without a token, and placeholder tokens that no text uses,
    may differ, and the target may have tokens beyond the draft's ids: it does not draft after them.
    """
    target, draft = _tokens(target_tokenizer), _tokens(draft_tokenizer)
    shared = min(target_vocab_size, draft_vocab_size)
    _refuse_differences(target, draft)
    ends = target_tokenizer.eos_token_id, draft_tokenizer.eos_token_id
    same_eos = None if None in ends else ends[0] == ends[1]
    same_merges = _same_merges(target_tokenizer, draft_tokenizer)
    beyond = sorted(index for index in target if draft_vocab_size <= index < target_vocab_size)
    target_only, draft_only = len(target.keys() - draft.keys()), len(draft.keys() - target.keys())
    return VocabularyReport(
        shared=shared,
        padding=draft_vocab_size - target_vocab_size,
        target_only=target_only,
        draft_only=draft_only,
        same_eos=same_eos,
        same_merges=same_merges,
        cautions=(
            *_cautions(target_tokenizer, draft_tokenizer, same_eos, same_merges, target_only - len(beyond)),
            *_beyond_draft(target, beyond, draft_vocab_size),
        ),
    )


def _tokens(tokenizer: Any) -> dict[int, str]:
    """Token by id, without the placeholders: an id that no text uses means nothing."""
    return {index: token for token, index in tokenizer.get_vocab().items() if _PLACEHOLDER.fullmatch(token) is None}


def _refuse_differences(target: dict[int, str], draft: dict[int, str]) -> None:
    common = target.keys() & draft.keys()
    different = sorted(index for index in common if target[index] != draft[index])
    if not different:
        return
    examples = [f"id {index} is {_short(target[index])} and {_short(draft[index])}" for index in different[:_SHOWN]]
    raise VocabularyError(
        f"target and draft differ in {len(different):,} of {len(common):,} tokens: {'; '.join(examples)}",
        hint=_CURE,
    )


def _cautions(
    target: Any, draft: Any, same_eos: bool | None, same_merges: bool | None, target_only: int
) -> Iterator[Finding]:
    if same_eos is False:
        ids = f"{target.eos_token_id} and {draft.eos_token_id}"
        yield warned(
            "eos-differs",
            f"target and draft end a sequence with different tokens (ids {ids}); the target's decides",
            "A draft tuned for the same chat format as the target is accepted more often near the end.",
        )
    if same_merges is False:
        yield warned(
            "merges-differ",
            "target and draft have the same tokens but split text by different rules",
            "Results are valid; a draft trained with the target's tokenizer is accepted more often.",
        )
    if target_only > 0:
        yield warned(
            "target-only-tokens",
            f"the target has {target_only:,} tokens that the draft was not trained on, and will never propose",
            "If the workload uses them (tool calls, thinking), use a draft trained with them.",
        )


def _beyond_draft(target: dict[int, str], beyond: list[int], draft_vocab_size: int) -> Iterator[Finding]:
    if beyond:
        first = f"id {beyond[0]} is {_short(target[beyond[0]])}"
        yield warned(
            "tokens-beyond-draft",
            f"the target has {count(len(beyond), 'token')} beyond the draft's {draft_vocab_size:,} ids ({first}): "
            "where it writes one, the draft cannot read on and drafts nothing for the rest of that text",
            "If answers hold such tokens (images, tool calls), use a draft with the target's whole vocabulary.",
        )


def _same_merges(*tokenizers: Any) -> bool | None:
    merges = []
    for tokenizer in tokenizers:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        merges.append(None if backend is None else json.loads(backend.to_str())["model"].get("merges"))
    return None if None in merges else merges[0] == merges[1]


def _short(token: str) -> str:
    return repr(token if len(token) <= 20 else f"{token[:19]}…")
