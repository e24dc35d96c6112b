"""The backend in process: it loads the models and sees which prompts fit them, by memory too before anything is loaded.

What is said of memory is the least that a run takes, so what is refused surely does not fit; what is let through may
still run out of memory later, and then loses a prompt and not the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from specbench.backends.base import Admitted, Item
from specbench.backends.local.batch import REPLAY_BATCH
from specbench.backends.local.local import LocalEngine
from specbench.backends.local.precision import with_precision
from specbench.backends.local.ragged import WIDEST
from specbench.backends.local.session import LocalScoring, LocalSession
from specbench.config import RunConfig
from specbench.drafters import DraftSpec, parse_draft
from specbench.errors import ModelError, WorkloadError
from specbench.models import LoadedModel, load_tokenizer, resolve_device
from specbench.models.defaults import own_cautions
from specbench.models.heads import heads_of
from specbench.models.memory import available_bytes, cache_bytes, memory_errors, pass_bytes
from specbench.models.prompts import encode_all
from specbench.models.shapes import ELEMENT_BYTES, ModelSize, head_size, size_of
from specbench.records import Omitted, Prompt
from specbench.run_record import RunRecord
from specbench.store import RunWriter
from specbench.text import gigabytes


class LocalBackend:
    """Transformers models in this process. `earlier` is run.json of the session that began the run."""

    def __init__(
        self,
        config: RunConfig,
        *,
        replay_only: bool,
        threads: Callable[[], int],
        earlier: RunRecord | None,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._replay_only = replay_only
        self._threads = threads
        self._earlier = earlier
        self._say = say
        self._engine: LocalEngine

    def admit(self, prompts: Sequence[Prompt]) -> Admitted:
        was = None if self._earlier is None else self._earlier.precision
        (config, cautions), replay_only = with_precision(self._config, was), self._replay_only
        self._config, threads = config, self._threads()
        require_memory(config, prompts, resolve_device(config.device), replay_only=replay_only)
        self._say(f"Loading {', '.join((config.target, *config.draft))} in {config.dtype}")
        engine = self._engine = LocalEngine(config, threads, earlier=self._earlier)
        if engine.today.at.date() != datetime.now().date():
            self._say(f"The chat template writes the date: prompts keep that of the run, {engine.today.at:%Y-%m-%d}")
        items, skipped = _fit(engine, prompts, config, batched=replay_only or config.batch_size > 1)
        ids = [item.tokens for item in items]
        engine.cautions += cautions
        engine.cautions += own_cautions(engine.target, config, ids, engine.eos, engine.today)
        engine.settle(ids)
        if replay_only and not engine.writes_together:
            self._say("Writing texts one by one: the target would see padding")
        self._say("Comparing with transformers' generate")
        reference = engine.check_reference(ids, config.max_new_tokens, padded=replay_only)
        return engine.admitted(items, skipped, reference, hashes=True)

    @contextmanager
    def session(self, writer: RunWriter) -> Iterator[LocalSession]:
        with memory_errors():
            yield LocalSession(self._engine, self._config, writer.folder)

    @contextmanager
    def scoring(self, writer: RunWriter) -> Iterator[LocalScoring]:
        with memory_errors():
            yield LocalScoring(self._engine, self._config)


def _fit(
    engine: LocalEngine, prompts: Sequence[Prompt], config: RunConfig, *, batched: bool
) -> tuple[list[Item], list[Omitted]]:
    """Encode the prompts; those that the chat template refuses or that would not fit the context are skipped and
    listed, never changed."""
    found = engine.encode_all(prompts)
    items: list[Item] = []
    skipped = found.refused
    for prompt, ids in found.encoded:
        need = len(ids) + config.max_new_tokens
        if engine.max_context is not None and need > engine.max_context:
            reason = f"{len(ids)} + {config.max_new_tokens} new tokens exceed the context of {engine.max_context}"
            skipped.append(Omitted(prompt.id, reason))
        else:
            items.append(Item(prompt, ids))
    if not items:
        raise WorkloadError(
            "No prompt fits the models' context", where=config.workload, hint="Use shorter prompts or fewer new tokens."
        )
    if engine.frequency_limit is not None:
        items, crossing = _on_one_side(items, engine.frequency_limit, config, batched)
        skipped += crossing
    engine.reserve(max(len(item.tokens) for item in items) + config.max_new_tokens + max(config.gamma) + 1)
    return items, skipped


def _on_one_side(
    items: Sequence[Item], limit: int, config: RunConfig, batched: bool
) -> tuple[list[Item], list[Omitted]]:
    """Texts that stay below the length at which a model changes its frequencies, or begin above it: a text that crosses
    it would go on with keys of the other frequencies. In a batch all rows are turned alike, so there the side with more
    prompts is taken."""
    room = config.max_new_tokens + (WIDEST if batched else 0)
    below = [item for item in items if len(item.tokens) + room <= limit]
    above = [item for item in items if len(item.tokens) > limit]
    kept = [max(below, above, key=len)] if batched else [below, above]
    ids = {item.prompt.id for side in kept for item in side}
    if not ids:
        raise WorkloadError(
            f"Every text would cross {limit} tokens, where the model changes its rotary frequencies (LongRoPE)",
            where=config.workload,
            hint="Use shorter prompts, or --max-new-tokens that end below it.",
        )
    why = "and a batch holds texts of one side" if batched else "which a cached text cannot follow"
    reason = f"the model changes its rotary frequencies at {limit} tokens (LongRoPE), {why}"
    left_out = [Omitted(item.prompt.id, reason) for item in items if item.prompt.id not in ids]
    return [item for item in items if item.prompt.id in ids], left_out


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
    limit = _context(specs, sizes)
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
    fitting = [n for n in lengths if n + config.max_new_tokens <= _context(specs, sizes)]
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


def _context(specs: Iterable[DraftSpec], sizes: dict[str, ModelSize]) -> int:
    """Of all models that read whole texts."""
    ends = {spec.model for spec in specs if not spec.reads_all}
    limits = [size.max_context for name, size in sizes.items() if name not in ends]
    return min((limit for limit in limits if limit is not None), default=2**62)


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
    tokenizer = load_tokenizer(config.target, trust_remote_code=trusted)
    unloaded = LoadedModel(config.target, None, tokenizer, None, 0, 0, None)
    return [len(ids) for _, ids in encode_all(unloaded, prompts, config.chat_template_kwargs).encoded]


def _hint(config: RunConfig, needed: Space) -> str:
    smaller = "smaller models" if config.draft else "a smaller model"
    hints = [smaller, *(["--dtype bfloat16"] if config.dtype == "float32" else []), "a device with more memory"]
    if needed.caches + needed.work > needed.weights:
        hints = [*(["a smaller --batch-size"] if config.batch_size > 1 else []), "shorter prompts", *hints]
    return f"Use {', '.join(hints[:-1])} or {hints[-1]}."
