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
_HINT = "Use a draft trained with the target's tokenizer, or ngram:n=3, which needs none."
# Names that vocabularies give to ids kept free for later: no text was ever trained on them.
_PLACEHOLDER = re.compile(
    r"[<\[]\|?_?(reserved|unused|extra|placeholder|dummy|pad(?=_?\d)|special_(?=\d))[\w -]*\d\|?[>\]]", re.I
)


@dataclass(frozen=True, slots=True)
class VocabularyReport:
    """How two vocabularies that fit differ. Drafting happens on the ids below `shared`; logits beyond are cut before
    sampling. `padding` is the draft's number of logits less the target's."""

    shared: int
    padding: int
    cautions: tuple[Finding, ...]


def check_vocabularies(
    target_tokenizer: Any, draft_tokenizer: Any, target_vocab_size: int, draft_vocab_size: int
) -> VocabularyReport:
    """Compare two transformers tokenizers id by id; the sizes are those of the models' logits, padding included.

    Raises VocabularyError where an id has two meanings. Ids without a token, and placeholder tokens that no text uses,
    may differ, and the target may have tokens beyond the draft's ids: it does not draft after them.
    """
    target, draft = _tokens(target_tokenizer), _tokens(draft_tokenizer)
    _refuse_differences(target, draft)
    return VocabularyReport(
        shared=min(target_vocab_size, draft_vocab_size),
        padding=draft_vocab_size - target_vocab_size,
        cautions=(
            *_of_tokenizers(target_tokenizer, draft_tokenizer),
            *_of_tokens(target, draft, target_vocab_size, draft_vocab_size),
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
        hint=_HINT,
    )


def _of_tokenizers(target: Any, draft: Any) -> Iterator[Finding]:
    ends = target.eos_token_id, draft.eos_token_id
    if None not in ends and ends[0] != ends[1]:
        yield warned(
            "eos-differs",
            f"target and draft end a sequence with different tokens (ids {ends[0]} and {ends[1]}); the target's "
            "decides",
            "A draft tuned for the same chat format as the target is accepted more often near the end.",
        )
    merges = _merges(target), _merges(draft)
    if None not in merges and merges[0] != merges[1]:
        yield warned(
            "merges-differ",
            "target and draft have the same tokens but split text by different rules",
            "Results are valid; a draft trained with the target's tokenizer is accepted more often.",
        )


def _of_tokens(
    target: dict[int, str], draft: dict[int, str], target_vocab_size: int, draft_vocab_size: int
) -> Iterator[Finding]:
    beyond = sorted(index for index in target if draft_vocab_size <= index < target_vocab_size)
    untrained = len(target.keys() - draft.keys()) - len(beyond)
    if untrained > 0:
        yield warned(
            "target-only-tokens",
            f"the target has {count(untrained, 'token')} that the draft was not trained on, and will never propose",
            "If the workload uses them (tool calls, thinking), use a draft trained with them.",
        )
    if beyond:
        first = f"id {beyond[0]} is {_short(target[beyond[0]])}"
        yield warned(
            "tokens-beyond-draft",
            f"the target has {count(len(beyond), 'token')} beyond the draft's {draft_vocab_size:,} ids ({first}): "
            "where it writes one, the draft cannot read on and drafts nothing for the rest of that text",
            "If answers hold such tokens (images, tool calls), use a draft with the target's whole vocabulary.",
        )


def _merges(tokenizer: Any) -> Any:
    """The rules by which text is split; None where a tokenizer states none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())["model"].get("merges")


def _short(token: str) -> str:
    return repr(token if len(token) <= 20 else f"{token[:19]}…")
