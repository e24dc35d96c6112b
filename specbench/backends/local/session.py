"""Models in this process: one trial after another, and texts that are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from specbench.acceptance.loop import Generation
from specbench.acceptance.scores import BlockScores, Scores
from specbench.backends.base import (
    WARMUP_TOKENS,
    Answer,
    Answers,
    DoesNotFitError,
    Item,
    Job,
    Noticed,
    Output,
    Scored,
    TargetText,
    Texts,
    Unit,
    trial_of,
)
from specbench.backends.local.batch import REPLAY_BATCH
from specbench.backends.local.lanes import Lane, Lanes, Underway, take_turns
from specbench.backends.local.local import LocalEngine
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, load_average
from specbench.cost.plan import Costs, ProbePlan
from specbench.errors import EngineError
from specbench.models.memory import available_bytes, is_out_of_memory
from specbench.records import Arm, Divergence, Load, warned

T = TypeVar("T")

# Of free memory, what caches of the arms beside each other may take: a pass needs some as well.
SHARE = 0.8


class LocalSession:
    """Arms that take turns within a unit, or one trial after another: a generation that is not alone on the machine is
    not worth its time."""

    block_size: int | None = 1

    def __init__(self, engine: LocalEngine, config: RunConfig, folder: Path) -> None:
        self.engine = engine
        self.config = config
        self.noticed = Noticed()
        self._folder = folder
        self._lanes: Lanes | None = None

    def turn(self, load: Load) -> int | None:
        return 1

    def warm(self, units: Sequence[Unit], arms: Sequence[Arm]) -> Iterator[Answer]:
        """Every shape once and every arm briefly, over the first unit."""
        job = Job(units[0], 0)
        # Caches have room for as many tokens as a trial has.
        tokens = min(WARMUP_TOKENS, self.config.max_new_tokens)
        widest = max((arm.gamma or 0) for arm in arms) + 1
        self.engine.warm(job.unit.items[0].tokens, range(1, widest + 1))
        self._first_calls(job, arms, tokens)
        if self.config.slice_tokens:
            found: Iterable[Answer] = self._sliced(job, arms, tokens)
        else:
            found = (self._answer(job, arm, tokens) for arm in arms)
        yield from (replace(one, trial=replace(one.trial, warmup=True)) for one in found)

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

    def slices(self, job: Job, arms: Sequence[Arm]) -> Answers:
        return self._sliced(job, arms, self.config.max_new_tokens)

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
        return self._fitting(unit, partial(self.engine.drafts[draft].score, item.tokens, output))

    def probe(self, ids: Sequence[int], plan: ProbePlan) -> Costs:
        return self.engine.probe(ids, plan)

    def _first_calls(self, job: Job, arms: Iterable[Arm], tokens: int) -> None:
        """A device loads a kernel when it is first called for, and plans attention anew for every length of a prompt,
        which takes longer than reading it."""
        if not self.engine.device.startswith("cpu"):
            for arm in arms:
                self._generated(job, arm, tokens)

    def _sliced(self, job: Job, arms: Sequence[Arm], max_new_tokens: int) -> Answers:
        """The job in each of `arms`, as many of them side by side as memory takes. Where memory runs out they are fewer
        from then on, unless the unit does not fit alone either."""
        if self._lanes is None:
            self._lanes = Lanes(self.engine.new_lane, self._room(arms))
        before, left = self._lanes.most, list(arms)
        while left:
            group = left[: self._lanes.most]
            if len(group) > 1:
                found = self._together(job, group, max_new_tokens)
            else:
                try:
                    found = [self._fitting(job.unit, partial(self._answer, job, group[0], max_new_tokens))]
                except DoesNotFitError:
                    self._lanes.most = before
                    raise
            if found is not None:
                yield from found
                left = left[len(group) :]
        if self._lanes.most < len(arms):
            self._say_fewer(self._lanes.most, len(arms))

    def _room(self, arms: Sequence[Arm]) -> int:
        """How many of these arms find room for their caches. Where passes are recorded all or none: caches that make
        room for others would have theirs recorded anew each time."""
        free, fitting = SHARE * available_bytes(self.engine.device), 0
        for arm in arms:
            free -= self.engine.lane_bytes(arm.draft)
            fitting += free >= 0
        return max(1, fitting) if fitting == len(arms) or self.engine.device == "cpu" else 1

    def _together(self, job: Job, arms: Sequence[Arm], max_new_tokens: int) -> list[Answer] | None:
        """The job in all of these arms, which take turns; None where that has no room, and fewer are to try."""
        assert self._lanes is not None
        fewer = 1
        try:
            lanes = self._lanes.of(arms)
            if lanes is not None:
                meter, load_before = OthersMeter(), load_average()
                meter.start()
                started = [self._start(job, arm, max_new_tokens, lane) for arm, lane in zip(arms, lanes, strict=True)]
                order = Random(f"{self.config.seed}/{job.unit.id}/{job.repeat}/slices")
                take_turns(started, self.config.slice_tokens * len(job.unit.items), order)
                others = meter.stop()
                return [self._answered(job, one.arm, one.found, load_before, others, one.slices) for one in started]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fewer = len(arms) // 2
        # Frames of the error held what filled the memory.
        self._lanes.close(fewer if self.engine.device == "cpu" else 1)
        self.engine.release()
        return None

    def _say_fewer(self, most: int, arms: int) -> None:
        how = f"{most} took turns at a time" if most > 1 else "each ran whole trials, one after the other"
        caution = warned(
            "few-slices",
            f"memory has no room for the caches of {arms} arms beside each other: {how}. More of the machine's noise "
            "is in every speedup",
            "Read the noise floor. Fewer gammas, shorter prompts or a smaller batch take less memory.",
        )
        self.noticed.cautions[:] = [one for one in self.noticed.cautions if one.code != caution.code]
        self.noticed.cautions.append(caution)

    def _answer(self, job: Job, arm: Arm, max_new_tokens: int) -> Answer:
        meter, load_before = OthersMeter(), load_average()
        meter.start()
        found = self._generated(job, arm, max_new_tokens)
        return self._answered(job, arm, found, load_before, meter.stop(), None)

    def _answered(
        self,
        job: Job,
        arm: Arm,
        found: Sequence[Generation],
        load_before: float | None,
        others: float | None,
        slices: int | None,
    ) -> Answer:
        rows = [generation.tokens for generation in found]
        rounds = [r for generation in found for r in generation.rounds] if arm.draft else []
        items = job.unit.items
        trial = trial_of(
            job,
            arm,
            prompt_tokens=sum(len(item.tokens) for item in items) // len(items),
            output_tokens=sum(map(len, rows)),
            output_sha256=hashlib.sha256(";".join(",".join(map(str, row)) for row in rows).encode()).hexdigest(),
            finish="eos" if all(generation.finish == "eos" for generation in found) else "length",
            drafted=tuple(r.drafted for r in rounds),
            accepted=tuple(r.accepted for r in rounds),
            times=found[0].times,
            load_before=load_before,
            load_after=load_average(),
            other_cores=others,
            slices=slices,
            output_text="\n\n".join(map(self.engine.decode, rows)) if self.config.keep_text else None,
        )
        return Answer(job, rows, trial)

    def _generated(self, job: Job, arm: Arm, max_new_tokens: int) -> list[Generation]:
        return self._start(job, arm, max_new_tokens, None).finish()

    def _start(self, job: Job, arm: Arm, max_new_tokens: int, lane: Lane | None) -> Underway:
        items = job.unit.items
        seeds = [f"{item.prompt.id}/{job.repeat}" for item in items]
        prompts = [item.tokens for item in items]
        return self.engine.start(prompts, arm, max_new_tokens=max_new_tokens, seed_texts=seeds, lane=lane)

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
        hint=f"Run the same command with --batch-size {half}. That is a run of its own; what was measured is kept.",
    )


def answered(item: Item) -> int:
    """Tokens of an answer that is there already, 0 where it is not."""
    return 0 if item.answer is None else len(item.answer.text.output)


class LocalScoring:
    """Texts in batches of prompts of like length; the longest first, so that what does not fit in memory fails at once
    and later batches use what earlier ones freed."""

    def __init__(self, engine: LocalEngine, config: RunConfig) -> None:
        self.engine = engine
        self.config = config
        self.noticed = Noticed()

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        order = sorted(items, key=lambda item: len(item.tokens) + answered(item), reverse=True)
        return (order[begin : begin + REPLAY_BATCH] for begin in range(0, len(order), REPLAY_BATCH))

    def prepare(self, drafts: Sequence[str]) -> None:
        """They are loaded."""

    def write(self, batch: Sequence[Item], missing: Sequence[Item], repeat: int) -> Texts:
        """The whole batch: its rows draw from one stream of random numbers. Answers that are there are taken."""
        if all(item.answer is not None for item in batch):
            return ((item, item.answer.text) for item in missing if item.answer is not None)

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
            prompts, outputs = [text.prompt for text in found], [text.output for text in found]
            return self.engine.drafts[draft].score_texts(prompts, outputs)

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
            room = answered(items[0]) or self.config.max_new_tokens
            self.noticed.too_long[items[0].prompt.id] = len(items[0].tokens) + room
            return
        half = len(items) // 2
        for part in (items[:half], items[half:]):
            yield from self._halved(part, call)
