"""The backend in process: which prompts fit its models, one trial after another, and texts that are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from specbench.acceptance.scores import BlockScores, Scores
from specbench.backends.base import (
    WARMUP_TOKENS,
    Admitted,
    Answer,
    Answers,
    DoesNotFitError,
    Item,
    Job,
    Noticed,
    Output,
    Scored,
    Setting,
    TargetText,
    Texts,
    Unit,
    WarmUp,
)
from specbench.backends.local.room import REPLAY_BATCH, WIDEST, require_memory
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, load_average
from specbench.cost.plan import Costs, ProbePlan
from specbench.errors import EngineError, WorkloadError
from specbench.models import resolve_device
from specbench.models.defaults import own_cautions
from specbench.models.encoding import encoded_record, today_of
from specbench.models.memory import is_out_of_memory, memory_errors
from specbench.records import Arm, Divergence, Prompt
from specbench.store import RunWriter

if TYPE_CHECKING:
    from specbench.acceptance.loop import Generation
    from specbench.backends.local.local import LocalEngine

T = TypeVar("T")


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
        earlier: Mapping[str, Any] | None,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._replay_only = replay_only
        self._threads = threads
        self._earlier = earlier or {}
        self._say = say
        self._engine: LocalEngine

    def admit(self, prompts: Sequence[Prompt]) -> Admitted:
        config, replay_only = self._config, self._replay_only
        threads = self._threads()
        require_memory(config, prompts, resolve_device(config.device), replay_only=replay_only)
        from specbench.backends.local.local import LocalEngine

        self._say(f"Loading {', '.join((config.target, *config.draft))}")
        engine = self._engine = LocalEngine(config, threads)
        engine.today = today_of((self._earlier.get("workload") or {}).get("encoded"))
        if engine.today.at.date() != datetime.now().date():
            self._say(f"The chat template writes the date: prompts keep that of the run, {engine.today.at:%Y-%m-%d}")
        items, skipped = _fit(engine, prompts, config, batched=replay_only or config.batch_size > 1)
        ids = [item.tokens for item in items]
        engine.cautions += own_cautions(engine.target, config, ids, engine.eos, engine.today)
        engine.settle(ids, _layers(self._earlier))
        self._say("Comparing with transformers' generate")
        reference = engine.check_reference(ids, config.max_new_tokens, padded=replay_only)
        return Admitted(
            items,
            skipped,
            Setting(in_process(engine.device), engine.device, config.dtype, threads),
            facts=engine.describe() | {"reference_check": [asdict(one) for one in reference]},
            cautions=engine.cautions,
            encoded=encoded_record(engine.target, [(item.prompt.sha256, item.tokens) for item in items], engine.today),
        )

    @contextmanager
    def session(self, writer: RunWriter) -> Iterator[LocalSession]:
        with memory_errors():
            yield LocalSession(self._engine, self._config, writer.folder)

    @contextmanager
    def scoring(self, writer: RunWriter) -> Iterator[LocalScoring]:
        with memory_errors():
            yield LocalScoring(self._engine, self._config)


def _layers(earlier: Mapping[str, Any]) -> dict[str, int]:
    """Layers that an earlier session chose for its skip drafts."""
    drafts = earlier.get("drafts", {})
    return {spec: facts["layers"] for spec, facts in drafts.items() if "layers" in facts}


class LocalSession:
    """One trial after another: a generation that is not alone on the machine is not worth its time."""

    block_size: int | None = 1
    by_job = True

    def __init__(self, engine: LocalEngine, config: RunConfig, folder: Path) -> None:
        self.engine = engine
        self.config = config
        self.noticed = Noticed()
        self._folder = folder

    def warm(self, units: Sequence[Unit], arms: Sequence[Arm]) -> Iterator[WarmUp]:
        """Every shape once and every arm briefly, over the first unit."""
        job = Job(units[0], 0)
        # Caches have room for as many tokens as a trial has.
        tokens = min(WARMUP_TOKENS, self.config.max_new_tokens)
        widest = max((arm.gamma or 0) for arm in arms) + 1
        self.engine.warm(job.unit.items[0].tokens, range(1, widest + 1))
        self._first_calls(job, arms, tokens)
        for arm in arms:
            yield WarmUp(arm, self._answer(job, arm, tokens))

    @contextmanager
    def block(self, units: Sequence[Unit], arms: Sequence[Arm]) -> Iterator[None]:
        """Before the arms of a unit every model reads its prompts, untimed, so that no arm pays for a new length."""
        for unit in units:
            readers = {arm.draft: arm for arm in arms}.values()
            self._fitting(unit, partial(self._first_calls, Job(unit, 0), readers, 1))
        yield

    def generate(self, jobs: Sequence[Job], arm: Arm) -> Answers:
        for job in jobs:
            yield self._fitting(job.unit, partial(self._answer, job, arm, self.config.max_new_tokens))

    recall = generate

    def divergence(self, unit: Unit, own: Output, other: Output) -> Divergence | None:
        """In a batch that of the first row that differs. Its margin is that of the target's two best logits."""
        assert isinstance(own, list) and isinstance(other, list)
        for item, mine, text in zip(unit.items, own, other, strict=True):
            if mine != text:
                pairs = enumerate(zip(mine, text, strict=False))
                at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(text)))
                ids = [*item.tokens, *mine[:at]]
                return Divergence(at, self._fitting(unit, partial(self.engine.margin, ids)))
        return None

    def score(self, item: Item, output: Sequence[int], draft: str) -> Scores | BlockScores:
        unit = Unit(item.prompt.id, item.prompt.sha256, None, (item,))
        return self._fitting(unit, partial(self.engine.score, item.tokens, output, draft))

    def probe(self, ids: Sequence[int], plan: ProbePlan) -> Costs:
        return self.engine.probe(ids, plan)

    def _first_calls(self, job: Job, arms: Iterable[Arm], tokens: int) -> None:
        """A device loads a kernel when it is first called for, and plans attention anew for every length of a prompt,
        which takes longer than reading it."""
        if not self.engine.device.startswith("cpu"):
            for arm in arms:
                self._generated(job, arm, tokens)

    def _answer(self, job: Job, arm: Arm, max_new_tokens: int) -> Answer:
        meter = OthersMeter()
        load_before = load_average()
        meter.start()
        found = self._generated(job, arm, max_new_tokens)
        others = meter.stop()
        rows = [generation.tokens for generation in found]
        rounds = [r for generation in found for r in generation.rounds] if arm.draft else []
        items = job.unit.items
        return Answer(
            job,
            rows,
            sha256=hashlib.sha256(";".join(",".join(map(str, row)) for row in rows).encode()).hexdigest(),
            prompt_tokens=sum(len(item.tokens) for item in items) // len(items),
            output_tokens=sum(map(len, rows)),
            finish="eos" if all(generation.finish == "eos" for generation in found) else "length",
            drafted=tuple(r.drafted for r in rounds),
            accepted=tuple(r.accepted for r in rounds),
            times=found[0].times,
            load_before=load_before,
            load_after=load_average(),
            other_cores=others,
            text="\n\n".join(map(self.engine.decode, rows)) if self.config.keep_text else None,
        )

    def _generated(self, job: Job, arm: Arm, max_new_tokens: int) -> list[Generation]:
        items = job.unit.items
        seeds = [f"{item.prompt.id}/{job.repeat}" for item in items]
        if len(items) == 1:
            ids = items[0].tokens
            return [self.engine.generate(ids, arm, max_new_tokens=max_new_tokens, seed_text=seeds[0])]
        prompts = [item.tokens for item in items]
        return self.engine.generate_many(prompts, arm, max_new_tokens=max_new_tokens, seed_texts=seeds)

    def _fitting(self, unit: Unit, call: Callable[[], T]) -> T:
        """What `call` gives. Where memory runs out in it, what filled it is let go before anything is raised: frames of
        an error hold its tensors."""
        try:
            return call()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self.engine.release()
        if self.config.batch_size > 1:
            raise _batch_too_large(self.config.batch_size, self._folder)
        raise DoesNotFitError(unit.id, len(unit.items[0].tokens) + self.config.max_new_tokens)


def _batch_too_large(batch_size: int, folder: Path) -> EngineError:
    """A batch is not left out as a prompt is: every cache has room for the longest prompt, so the next one would not
    fit either. And it is not made smaller on the way: a step of a smaller batch takes another time, and the run would
    be two measurements under one name."""
    half = batch_size // 2
    return EngineError(
        f"Out of memory in a batch of {batch_size}",
        where=str(folder),
        cure=f"Run the same command with --batch-size {half}. That is a run of its own; what was measured is kept.",
    )


class LocalScoring:
    """Texts in batches of prompts of like length; the longest first, so that what does not fit in memory fails at once
    and later batches use what earlier ones freed."""

    def __init__(self, engine: LocalEngine, config: RunConfig) -> None:
        self.engine = engine
        self.config = config
        self.noticed = Noticed()

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        order = sorted(items, key=lambda item: len(item.tokens), reverse=True)
        return (order[begin : begin + REPLAY_BATCH] for begin in range(0, len(order), REPLAY_BATCH))

    def prepare(self, drafts: Sequence[str]) -> None:
        """They are loaded."""

    def write(self, batch: Sequence[Item], missing: Sequence[Item], repeat: int) -> Texts:
        """The whole batch: its rows draw from one stream of random numbers."""

        def texts(part: Sequence[Item]) -> list[TargetText]:
            prompts = [item.tokens for item in part]
            seed_text = f"{repeat}/{part[0].prompt.id}"
            outputs = self.engine.texts(prompts, self.config.max_new_tokens, seed_text)
            return [
                TargetText(prompt, output, "eos" if output[-1] in self.engine.eos else "length")
                for prompt, output in zip(prompts, outputs, strict=True)
            ]

        return self._halved(batch, texts)

    def score(self, texts: Sequence[tuple[Item, TargetText]], draft: str) -> Scored:
        known = {item.prompt.id: text for item, text in texts}

        def scores(part: Sequence[Item]) -> Sequence[Scores | BlockScores]:
            found = [known[item.prompt.id] for item in part]
            return self.engine.score_texts([text.prompt for text in found], [text.output for text in found], draft)

        return self._halved([item for item, _ in texts], scores)

    def _halved(
        self, items: Sequence[Item], call: Callable[[Sequence[Item]], Sequence[T]]
    ) -> Generator[tuple[Item, T], None, None]:
        """What `call` gives for each item. A batch that does not fit is halved: nothing is timed here, so its size is
        free. A prompt that does not fit alone is left out."""
        try:
            found = call(items)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found = None
        if found is not None:
            yield from zip(items, found, strict=True)
            return
        self.engine.release()
        if len(items) == 1:
            self.noticed.too_long[items[0].prompt.id] = len(items[0].tokens) + self.config.max_new_tokens
            return
        half = len(items) // 2
        for part in (items[:half], items[half:]):
            yield from self._halved(part, call)


def _fit(
    engine: LocalEngine, prompts: Sequence[Prompt], config: RunConfig, *, batched: bool
) -> tuple[list[Item], list[dict[str, str]]]:
    """Encode the prompts; those that the chat template refuses or that would not fit the context are skipped and
    listed, never changed."""
    found = engine.encode_all(prompts)
    items: list[Item] = []
    skipped = found.refused
    for prompt, ids in found.encoded:
        need = len(ids) + config.max_new_tokens
        if engine.max_context is not None and need > engine.max_context:
            reason = f"{len(ids)} + {config.max_new_tokens} new tokens exceed the context of {engine.max_context}"
            skipped.append({"id": prompt.id, "reason": reason})
        else:
            items.append(Item(prompt, ids))
    if not items:
        raise WorkloadError(
            "No prompt fits the models' context", where=config.workload, cure="Use shorter prompts or fewer new tokens."
        )
    if engine.frequency_limit is not None:
        items, crossing = _on_one_side(items, engine.frequency_limit, config, batched)
        skipped += crossing
    engine.reserve(max(len(item.tokens) for item in items) + config.max_new_tokens + max(config.gamma) + 1)
    return items, skipped


def _on_one_side(
    items: Sequence[Item], limit: int, config: RunConfig, batched: bool
) -> tuple[list[Item], list[dict[str, str]]]:
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
            cure="Use shorter prompts, or --max-new-tokens that end below it.",
        )
    why = "and a batch holds texts of one side" if batched else "which a cached text cannot follow"
    reason = f"the model changes its rotary frequencies at {limit} tokens (LongRoPE), {why}"
    left_out = [{"id": item.prompt.id, "reason": reason} for item in items if item.prompt.id not in ids]
    return [item for item in items if item.prompt.id in ids], left_out
