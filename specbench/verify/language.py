"""Does the draft mean the same tokens by the same ids, and are its numbers numbers at all?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from specbench.acceptance.rules import align
from specbench.backends.local.drafting import Draft
from specbench.records import Finding
from specbench.verify.findings import noticed
from specbench.verify.setup import Setup, bare_logits

# Shares of chance, ln V. Language models lie at 0.2 to 0.5 on plain text; one whose ids mean other tokens is as sure as
# ever, and wrong, so it lies near 1 or above.
LANGUAGE = 0.65
CHANCE = 0.8
LONGEST_SAMPLE = 256
FEW_TOKENS = 20


def finite_logits(bed: Setup) -> Finding:
    """No NaN and no infinity in what the models say, in the precision that was asked for."""
    models = {"target": bed.loaded.model}
    models |= {d.loaded.name: d.loaded.model for d in bed.drafts if d.loaded is not None and d.spec.kind == "model"}
    bad = []
    for name, model in models.items():
        vocabulary = int(model.config.get_text_config().vocab_size)
        ids = [token % vocabulary for token in bed.prompts[0]]
        if not bare_logits(model, ids, len(ids)).isfinite().all():
            bad.append(name)
    if not bad:
        return noticed("finite-logits", "ok", f"every logit of {len(models)} models is a number in {bed.dtype}")
    hint = "This precision overflows for this model: use --dtype bfloat16 or float32."
    return noticed("finite-logits", "broken", f"logits of {', '.join(bad)} are not finite in {bed.dtype}", hint)


def vocabulary_meaning(bed: Setup, draft: Draft, samples: Sequence[Sequence[int]]) -> Finding | None:
    """The draft must read plain text better than chance where the target does. `samples` are the words of the prompts
    alone, which no model wrote. None for drafts that cannot mean other tokens."""
    if draft.loaded is None or draft.spec.kind != "model":
        return None
    name, vocabulary = draft.spec.text, bed.vocab_size
    tokens = sum(len(ids) - 1 for ids in samples)
    if tokens < FEW_TOKENS:
        return noticed("vocabulary-meaning", "not checked", f"only {tokens} tokens of text to judge by", draft=name)
    chance = math.log(vocabulary)
    target = _loss(bed.loaded.model, [([], ids) for ids in samples], vocabulary)
    plain = _loss(draft.loaded.model, [([], ids) for ids in samples], vocabulary)
    own = _loss(draft.loaded.model, list(zip(bed.prompts, bed.alone, strict=True)), vocabulary)
    evidence = (
        f"loss per token on the prompts' text: draft {plain:.1f}, target {target:.1f}, chance {chance:.1f} nats; on "
        f"the target's own text the draft has {own:.1f}"
    )
    if target > LANGUAGE * chance:
        return noticed("vocabulary-meaning", "not checked", f"{evidence}: no language to judge by", draft=name)
    if min(plain, own) > CHANCE * chance:
        hint = "The draft reads these ids as other tokens, or has no trained weights. Use one of the target's family."
        return noticed("vocabulary-meaning", "broken", evidence, hint, name)
    if plain > LANGUAGE * chance:
        hint = "The draft predicts this kind of text poorly by itself. A sweep says how much is accepted all the same."
        return noticed("vocabulary-meaning", "note", evidence, hint, name)
    return noticed("vocabulary-meaning", "ok", evidence, draft=name)


def _loss(model: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]], vocabulary: int) -> float:
    """Mean of -ln P(token) in nats over the tokens of each text (after its prompt), a text's very first left out."""
    total, count = 0.0, 0
    for prompt, text in texts:
        ids = [*prompt, *text]
        scored = len(text) if prompt else len(text) - 1
        if scored < 1:
            continue
        logits = align(bare_logits(model, ids, scored + 1)[:-1], vocabulary)
        wanted = torch.tensor(ids[-scored:], device=logits.device)[:, None]
        # A token that the draft has not counts as chance, not as infinity.
        logs = torch.log_softmax(logits, -1).gather(1, wanted).clamp_min(-2 * math.log(vocabulary))
        total, count = total - float(logs.sum()), count + scored
    return total / count if count else float("nan")
