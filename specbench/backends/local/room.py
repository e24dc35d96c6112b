"""Is there room? Memory for models, caches and a pass, before anything is loaded.

Everything here is the least that a run takes, so what is refused surely does not fit; what is let through may still
run out of memory later, and then loses a prompt and not the run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from specbench.config import RunConfig
from specbench.drafters import DraftSpec, parse_draft
from specbench.errors import ModelError
from specbench.kinds import MAX_GAMMA
from specbench.models.heads import heads_of
from specbench.models.memory import available_bytes, cache_bytes, pass_bytes
from specbench.models.size import ELEMENT_BYTES, ModelSize, head_size, size_of
from specbench.records import Prompt
from specbench.text import gigabytes

# Tokens that a pass of a batch may be wider than the last room of a row: drafts, and what a draft model has missed.
WIDEST = 2 * (MAX_GAMMA + 1)

# Texts side by side when nothing is timed.
REPLAY_BATCH = 16

# A chat template's own tokens, beside at most one for each byte of a prompt.
_TEMPLATE_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of memory: all weights, all KV caches, and the hidden states of one layer in the longest pass."""

    weights: int
    caches: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.caches + self.work


def require_memory(config: RunConfig, prompts: Sequence[Prompt], device: str, *, replay_only: bool) -> None:
    """Raise ModelError, with the numbers, where target and drafts do not fit what is free on `device` together with the
    KV caches of the longest prompt. Models whose size cannot be told are left to the loader."""
    specs = [parse_draft(text) for text in config.draft]
    names = dict.fromkeys([config.target, *(spec.model for spec in specs if spec.model is not None)])
    trusted = frozenset(config.trust_remote_code)
    sizes: dict[str, ModelSize] = {}
    heads = heads_of(names)
    for name in names:
        if name in heads:
            size = head_size(heads[name], config.dtype)
        else:
            size = size_of(name, dtype=config.dtype, trust_remote_code=trusted)
        if size is not None:
            sizes[name] = size
    if config.target not in sizes:
        return
    limit = min(
        [size.max_context for size in sizes.values() if size.max_context is not None],
        default=2**62,
    )
    at_most = [min(length + _TEMPLATE_TOKENS, limit - config.max_new_tokens) for length in _byte_lengths(prompts)]
    longest, needed = _largest(config, specs, sizes, at_most, replay_only)
    free = available_bytes(device)
    if needed.total > free:
        # Worth a tokenizer only here: a prompt may have far fewer tokens than bytes.
        longest, needed = _largest(config, specs, sizes, _token_lengths(config, prompts, trusted), replay_only)
    if needed.total <= free:
        return
    rows = _rows(config, len(prompts), replay_only)
    raise ModelError(
        f"{' and '.join(names)} need {gigabytes(needed.total)}, {gigabytes(free)} are free on {device}",
        where=f"weights in {config.dtype} {gigabytes(needed.weights)}, KV caches of {longest:,} tokens"
        f"{f' x {rows}' if rows > 1 else ''} {gigabytes(needed.caches)}, a pass {gigabytes(needed.work)}",
        hint=_hint(config, needed),
    )


def _largest(
    config: RunConfig, specs: Iterable[DraftSpec], sizes: dict[str, ModelSize], lengths: list[int], replay_only: bool
) -> tuple[int, Space]:
    """The most at any one time, and the tokens of the longest sequence. Prompts that no context takes are left out of a
    run, and make it no longer."""
    limits = [size.max_context for size in sizes.values() if size.max_context is not None]
    fitting = [n for n in lengths if n + config.max_new_tokens <= min(limits, default=2**62)]
    new = config.max_new_tokens + max(config.gamma) + 1
    capacity = max(fitting, default=1) + new
    rows = _rows(config, len(lengths), replay_only)
    target, element = sizes[config.target], ELEMENT_BYTES[config.dtype]

    def cache(size: ModelSize, tokens: int = capacity) -> int:
        # A run of batches also has a cache for one sequence, which the target's margins and all scores are read with.
        one = cache_bytes(size.config, tokens, 1, element)
        both = one if rows == 1 else one + cache_bytes(size.config, tokens + WIDEST, rows, element)
        return both + size.states * tokens * element * rows

    if replay_only:
        # All texts of a batch are written before the first is scored, and that cache is gone by then.
        caches = cache_bytes(target.config, capacity - max(config.gamma) - 1, rows, element)
    else:
        read = [sizes[spec.model] for spec in specs if spec.kind == "model" and spec.model in sizes]
        caches = cache(target) + sum(map(cache, read))
    return capacity, Space(
        weights=sum(size.weight_bytes for size in sizes.values()),
        caches=caches,
        work=pass_bytes(target.config, capacity - new, rows, element),
    )


def _rows(config: RunConfig, prompts: int, replay_only: bool) -> int:
    return min(REPLAY_BATCH, prompts) if replay_only else config.batch_size


def _byte_lengths(prompts: Iterable[Prompt]) -> list[int]:
    """Of all that a template may write, tools as the widest of them do."""
    return [
        sum(len(message.content.encode()) + _json_bytes(message.fields) for message in prompt.messages)
        + _json_bytes(prompt.tools)
        + _json_bytes(prompt.template_kwargs)
        for prompt in prompts
    ]


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, indent=4)) if value else 0


def _token_lengths(config: RunConfig, prompts: Sequence[Prompt], trusted: Collection[str]) -> list[int]:
    from specbench.models import LoadedModel, load_tokenizer
    from specbench.models.prompts import encode_all

    tokenizer = load_tokenizer(config.target, trust_remote_code=trusted)
    unloaded = LoadedModel(config.target, None, tokenizer, None, 0, 0, None)
    return [len(ids) for _, ids in encode_all(unloaded, prompts, config.chat_template_kwargs).encoded]


def _hint(config: RunConfig, needed: Space) -> str:
    smaller = "smaller models" if config.draft else "a smaller model"
    hints = [smaller, *(["--dtype bfloat16"] if config.dtype == "float32" else []), "a device with more memory"]
    if needed.caches + needed.work > needed.weights:
        hints = [*(["a smaller --batch-size"] if config.batch_size > 1 else []), "shorter prompts", *hints]
    return f"Use {', '.join(hints[:-1])} or {hints[-1]}."
