"""The backend in process: it loads the models and sees which prompts fit them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from specbench.backends.base import Admitted, Conditions, Item
from specbench.backends.local.precision import with_precision
from specbench.backends.local.room import WIDEST, require_memory
from specbench.backends.local.session import LocalScoring, LocalSession
from specbench.config import RunConfig
from specbench.errors import WorkloadError
from specbench.models import resolve_device
from specbench.models.defaults import own_cautions
from specbench.models.encoding import encoded_record, today_of
from specbench.models.memory import memory_errors
from specbench.records import Omitted, Prompt
from specbench.run_record import RunRecord
from specbench.store import RunWriter

if TYPE_CHECKING:
    from specbench.backends.local.local import LocalEngine


def in_process(device: str) -> str:
    """How the engine of this process is called."""
    return f"transformers models in process, specbench loop ({device})"


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
        from specbench.backends.local.local import LocalEngine

        self._say(f"Loading {', '.join((config.target, *config.draft))} in {config.dtype}")
        engine = self._engine = LocalEngine(config, threads)
        engine.today = today_of(None if self._earlier is None else self._earlier.workload.encoded)
        if engine.today.at.date() != datetime.now().date():
            self._say(f"The chat template writes the date: prompts keep that of the run, {engine.today.at:%Y-%m-%d}")
        items, skipped = _fit(engine, prompts, config, batched=replay_only or config.batch_size > 1)
        ids = [item.tokens for item in items]
        engine.cautions += cautions
        engine.cautions += own_cautions(engine.target, config, ids, engine.eos, engine.today)
        engine.settle(ids, {} if self._earlier is None else _layers(self._earlier))
        if replay_only and not engine.writes_together:
            self._say("Writing texts one by one: the target would see padding")
        self._say("Comparing with transformers' generate")
        reference = engine.check_reference(ids, config.max_new_tokens, padded=replay_only)
        return Admitted(
            items,
            skipped,
            Conditions(in_process(engine.device), engine.device, config.dtype, threads),
            *engine.describe(),
            cautions=engine.cautions,
            encoded=encoded_record(engine.target, [(item.prompt.sha256, item.tokens) for item in items], engine.today),
            reference=tuple(reference),
        )

    @contextmanager
    def session(self, writer: RunWriter) -> Iterator[LocalSession]:
        with memory_errors():
            yield LocalSession(self._engine, self._config, writer.folder)

    @contextmanager
    def scoring(self, writer: RunWriter) -> Iterator[LocalScoring]:
        with memory_errors():
            yield LocalScoring(self._engine, self._config)


def _layers(earlier: RunRecord) -> dict[str, int]:
    """Layers that an earlier session chose for its skip drafts."""
    return {spec: facts.layers for spec, facts in earlier.drafts.items() if facts.layers is not None}


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
