"""Is what was taken back really forgotten? Caches of both models, and the memory of the drafter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specbench.acceptance.loop import Target
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Draft
from specbench.models import LoadedModel
from specbench.records import Finding
from specbench.verify.findings import noticed
from specbench.verify.setup import Setup, Turn, bare_logits, drafter_of

# Largest difference of logits, over the largest logit. The same passes in the same widths must agree to the last bit on
# most devices; a pass without a cache adds up in another order.
SAME_PASSES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.03}
OTHER_PASSES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}

TOOK_BACK = 3
ROUNDS_TRIED = 4
PROMPTS_TRIED = 2


def target_cache(bed: Setup) -> Finding:
    """The target after tokens were read and taken back, against reading straight on, and against no cache at all."""
    return _cache("target-cache", bed, bed.loaded, bed.reader)


def draft_cache(bed: Setup, draft: Draft) -> Finding | None:
    """The same of a draft model; None where there is none, or where it lives in the target's cache."""
    if draft.loaded is None or draft.spec.kind == "skip":
        return None
    return _cache("draft-cache", bed, draft.loaded, CachedModel(draft.loaded.model, bed.capacity), draft.spec.text)


@torch.inference_mode()
def _cache(code: str, bed: Setup, loaded: LoadedModel, reader: Target, draft: str | None = None) -> Finding:
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    worst_same = worst_other = 0.0
    for prompt in bed.prompts[:PROMPTS_TRIED]:
        ids = [token % vocabulary for token in prompt]
        first, *rest = (ids * 5)[:5]
        wrong = [(token + 1) % vocabulary for token in rest[:TOOK_BACK]]
        straight = _read(reader, ids, first, [], rest)
        rewound = _read(reader, ids, first, wrong, rest)
        whole = bare_logits(loaded.model, [*ids, first, *rest], len(rest))
        scale = float(whole.abs().max().clamp_min(1e-9))
        worst_same = max(worst_same, float((straight - rewound).abs().max()) / scale)
        worst_other = max(worst_other, float((straight - whole).abs().max()) / scale)
    evidence = (
        f"after {TOOK_BACK} tokens read and taken back, logits differ by {worst_same:.1g} of the largest; from a pass "
        f"without a cache by {worst_other:.1g} ({bed.dtype})"
    )
    if worst_same <= SAME_PASSES[bed.dtype] and worst_other <= OTHER_PASSES[bed.dtype]:
        return noticed(code, "ok", evidence, draft=draft)
    hint = "Rejected tokens are not forgotten: use another version of transformers, or another model."
    return noticed(code, "broken", evidence, hint, draft)


def _read(
    reader: Target, prompt: Sequence[int], first: int, taken_back: Sequence[int], rest: Sequence[int]
) -> torch.Tensor:
    """Logits after each of `rest`; widths are the same with and without `taken_back`."""
    reader.rewind(0)
    reader.forward(prompt, keep=1)
    reader.forward([first], keep=1)
    if taken_back:
        reader.forward(taken_back, keep=1)
        reader.rewind(len(prompt) + 1)
    return reader.forward(rest, keep=len(rest)).float()


@torch.inference_mode()
def draft_history(bed: Setup, draft: Draft) -> Finding:
    """What the drafter proposed in the middle of a text, against what it proposes when it reads that text anew: they
    differ if it kept refused tokens, or lost emitted ones."""
    turns = [turn for _, turns in bed.with_draft(draft) for turn in turns[1 : 1 + ROUNDS_TRIED]]
    other = sum(_anew(bed, draft, turn) != turn.tokens for turn in turns)
    evidence = f"{other} of {len(turns)} proposals change when the text so far is read anew ({bed.dtype})"
    if not turns:
        return noticed(
            "draft-history", "not checked", "the texts are too short for a second round", draft=draft.spec.text
        )
    limit = 1 if bed.exact else len(turns) // 4  # a near tie may fall either way
    if other <= limit and other < len(turns):
        return noticed("draft-history", "ok", evidence, draft=draft.spec.text)
    hint = "The draft's memory is out of step with the text (cache not advanced, or not rolled back): mend the drafter."
    return noticed("draft-history", "broken", evidence, hint, draft.spec.text)


@torch.inference_mode()
def _anew(bed: Setup, draft: Draft, turn: Turn) -> list[int]:
    bed.settle(draft, turn.x)
    return drafter_of(draft).propose(turn.x, turn.k, bed.generator()).numbers
