"""Many texts at once, for acceptance without a wall clock: generation through transformers' own `generate` on
left-padded prompts, and teacher-forced scoring of right-padded texts.

Nothing here is timed. In bfloat16 a padded batch rounds differently from single steps, so a greedy text may leave that
of the single-sequence engine at a near-tie; the text is the target's either way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from specbench.acceptance.rules import align, distribution, penalised
from specbench.acceptance.score import as_scores, reduce
from specbench.acceptance.scores import Scores, until_end
from specbench.backends.local.cache import RewindableCache, rewindable
from specbench.backends.local.cached import pass_of
from specbench.backends.local.lean import agree
from specbench.models.family import frequency_limit, takes, unlike_keys
from specbench.models.hub import quiet_transformers
from specbench.records import Sampling

CHUNK = 32

# Texts side by side when nothing is timed.
REPLAY_BATCH = 16

# Of two prompts to see whether padding is ignored, and what is written after them.
_SHORT, _LONG, _NEW = 5, 12, 4

# With the id of a real token as padding, transformers would not attend to it in the prompt.
NO_PADDING = -1


def generation_settings(sampling: Sampling) -> dict[str, Any]:
    """What transformers' GenerationConfig calls these settings. It cuts to the best 50 tokens where nothing is said."""
    penalty = {"repetition_penalty": sampling.repetition_penalty} if sampling.penalised else {}
    if sampling.greedy:
        return {"do_sample": False, **penalty}
    warpers = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return {"do_sample": True, **warpers, **({"min_p": sampling.min_p} if sampling.min_p else {}), **penalty}


@torch.inference_mode()
def written(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, settings: Mapping[str, Any], **more: Any
) -> Any:
    """What transformers' `generate` returns under `settings` of its GenerationConfig, for prompts that are padded on
    the left. The model's own generation settings are put aside: what a GenerationConfig leaves open is filled from
    them, and a penalty or suppressed tokens of theirs would make another text than our loop."""
    longest, pad = max(map(len, prompts)), settings["pad_token_id"]
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with quiet_transformers():
            config = GenerationConfig(**settings, **generation_settings(sampling))
            return model.generate(ids, attention_mask=mask, generation_config=config, **more)
    finally:
        model.generation_config = own


@torch.inference_mode()
def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    eos: Collection[int],
    max_new_tokens: int,
    seed: int,
    together: bool = True,
) -> list[list[int]]:
    """Output token ids for each prompt, ending with the first end of sequence or at the limit. Texts are written one by
    one where prompts would have to be padded and may not be written `together` (`ignores_padding`), and over
    transformers' own cache where the model keeps states."""
    longest = max(map(len, prompts))
    cache = rewindable(model.config, longest + max_new_tokens)
    if len(prompts) > 1 and not (together or all(len(p) == longest for p in prompts)):
        asked: dict[str, Any] = {"sampling": sampling, "eos": eos, "max_new_tokens": max_new_tokens}
        return [generate_batch(model, [p], **asked, seed=seed + i)[0] for i, p in enumerate(prompts)]
    settings = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(eos) or None,
        "pad_token_id": min(eos, default=0),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ours = {} if cache.states else {"past_key_values": cache}
        out = written(model, prompts, sampling, settings, **ours)
    return [until_end(row, eos) for row in out[:, longest:].tolist()]


@torch.inference_mode()
def ignores_padding(model: Any) -> bool:
    """Whether transformers writes the same after padded prompts as after prompts alone. A mask hides keys of padding;
    a state has read it, unless the model takes care, and a model that is told no positions counts it: both shows in a
    few tokens. Blocks of keys begin elsewhere, which shows in long texts alone: with an index or a compressor no prompt
    is padded."""
    text = model.config.get_text_config(decoder=True)
    if unlike_keys(text, but=("states", "both")):
        return False
    if not unlike_keys(text) and takes(type(model).forward, "position_ids"):
        return True
    vocabulary = int(text.vocab_size)
    long = torch.randint(0, vocabulary, (_LONG,), generator=torch.Generator().manual_seed(0)).tolist()
    short = long[:_SHORT]
    settings = {"max_new_tokens": _NEW, "eos_token_id": None, "pad_token_id": 0}
    told = {"output_logits": True, "return_dict_in_generate": True}
    alone, padded = (
        written(model, prompts, Sampling(), settings | told).logits for prompts in ([short], [short, long])
    )
    return all(agree(one[0], other[0], one[0]) for one, other in zip(padded, alone, strict=True))


@torch.inference_mode()
def score_batch(
    target: Any | None,
    draft: Any,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    sampling: Sampling,
    eos: Collection[int],
) -> list[Scores]:
    """What `acceptance.score.score` computes, for several texts side by side. Rows are padded on the right, where
    causal attention never looks, so no mask is needed; logits of one chunk of positions exist at a time. A text that is
    longer than the length at which a model changes its frequencies is read by itself, beyond that length at once."""
    rows = [[*p, *o] for p, o in zip(prompts, outputs, strict=True)]
    width = max(map(len, rows)) - 1
    models = [draft] if sampling.greedy else [draft, target]
    turns = [limit for m in models if (limit := frequency_limit(m.config)) is not None and limit < width]
    if turns and len(rows) > 1:
        told: dict[str, Any] = {"vocab_size": vocab_size, "sampling": sampling, "eos": eos}
        each = (score_batch(target, draft, [p], [o], **told) for p, o in zip(prompts, outputs, strict=True))
        return [one for (one,) in each]
    ids = torch.tensor([row + [0] * (width + 1 - len(row)) for row in rows], device=draft.device)
    # Having read token t, a model predicts t + 1; wanted are the predictions of every output token but the first.
    at = torch.arange(width)
    wanted = torch.stack([(at >= len(p)) & (at < len(r) - 1) for p, r in zip(prompts, rows, strict=True)])
    columns, owners = [], []
    caches = [rewindable(m.config, width) for m in models]
    first = max([CHUNK, *(limit + 1 for limit in turns)])
    for begin, end in pairwise(sorted({0, *range(first, width, CHUNK), width})):
        chosen = wanted[:, begin:end]
        logits = [_read(m, c, ids[:, begin:end], begin, chosen) for m, c in zip(models, caches, strict=True)]
        if chosen.any():
            x = ids[:, begin + 1 : end + 1][chosen]
            logits[0] = align(logits[0], vocab_size)
            if sampling.penalised:
                read_ids = ids[:, :end]
                logits = [_penalised(each, read_ids, chosen, sampling.repetition_penalty) for each in logits]
            p = None if sampling.greedy else distribution(logits[1], sampling)
            columns.append(reduce(logits[0], p, x, sampling, eos))
            owners.append(chosen.nonzero()[:, 0])
    parts = list(zip(columns, owners, strict=True))
    return [as_scores([part[:, owner == index] for part, owner in parts]) for index in range(len(rows))]


def _penalised(logits: Tensor, ids: Tensor, chosen: Tensor, penalty: float) -> Tensor:
    """Logits [n, V] at the `chosen` places of the last of `ids` [rows, read], each after what its row has up to there;
    those of a row lie side by side."""
    ahead, parts = chosen.shape[1], []
    for row, places, part in zip(ids, chosen, torch.split(logits, chosen.sum(1).tolist()), strict=True):
        if len(part):
            last = int(places.nonzero()[-1, 0])
            parts.append(penalised(part, row[: len(row) - ahead + last + 1], penalty))
    return torch.cat(parts)


def _read(model: Any, cache: RewindableCache, ids: Tensor, past: int, chosen: Tensor) -> Tensor:
    """Logits [n, V] at the `chosen` positions of a chunk [rows, chunk]; the head runs only where they are wanted. The
    last token of a text may be one that a draft does not know: what follows it is not wanted."""
    ids = ids.clamp_max(int(model.config.get_text_config(decoder=True).vocab_size) - 1)
    if not chosen.any():
        return pass_of(model).read(model, ids, cache, 1, past)[:0, 0]
    return pass_of(model).read(model, ids, cache, 0, past)[chosen]
