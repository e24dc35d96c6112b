"""One trial after another on one engine, each on disk before the next begins."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from specbench.acceptance.positions import PositionWriter
from specbench.acceptance.replay import Text
from specbench.acceptance.scores import BlockScores, Scores, as_text
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, load_average
from specbench.errors import EngineError
from specbench.records import Arm, Caution, Divergence, Omitted, Prompt, Trial
from specbench.store import OUT_OF_MEMORY, RunWriter, TrialKey, left_out

if TYPE_CHECKING:
    from specbench.acceptance.loop import Generation
    from specbench.backends.local.local import LocalEngine

MAX_ATTEMPTS = 3
WARMUP_TOKENS = 8

# So many prompts in a row on which memory ran out end a run whose prompts come in no order: then it is not the prompts.
MOST_IN_A_ROW = 5


class Observer(Protocol):
    """Whoever shows the progress of a run."""

    def say(self, line: str) -> None:
        """Something worth a line."""

    def begin(self, total: int, done: int) -> None:
        """Trials planned, and how many of them an earlier session finished."""

    def left(self, trials: Mapping[Arm, int], units: int) -> None:
        """What a run in process has to do from here on, told before every prompt: trials of each arm, and prompts (or
        batches) whose positions are scored after their trials."""

    def trial(self, trial: Trial) -> None:
        """A trial is on disk."""

    def advance(self, texts: int) -> None:
        """Texts were scored, in a run without trials."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and its token ids."""

    prompt: Prompt
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Unit:
    """What one trial generates: one prompt, or a batch of them. It is also the unit of every interval."""

    id: str
    sha256: str
    category: str | None
    items: tuple[Encoded, ...]


def units(encoded: Sequence[Encoded], batch_size: int) -> list[Unit]:
    """One unit for each prompt, or whole batches in the order given, whatever their categories, as a server mixes them.
    Prompts that fill no batch are left out."""
    if batch_size == 1:
        return [Unit(item.prompt.id, item.prompt.sha256, item.prompt.category, (item,)) for item in encoded]
    found = []
    for number in range(len(encoded) // batch_size):
        items = tuple(encoded[number * batch_size : (number + 1) * batch_size])
        together = hashlib.sha256(",".join(item.prompt.sha256 for item in items).encode()).hexdigest()
        found.append(Unit(f"batch-{number + 1}", together, None, items))
    return found


class Bench:
    """Runs trials of one engine and stores them; repeats, visibly, those that other processes disturbed."""

    def __init__(
        self,
        engine: LocalEngine,
        config: RunConfig,
        writer: RunWriter,
        positions: PositionWriter,
        observer: Observer,
        attempts: dict[TrialKey, int],
        repeats_left: int,
    ) -> None:
        self.engine = engine
        self.config = config
        self.writer = writer
        self.positions = positions
        self.observer = observer
        self.attempts = attempts
        self.repeats_left = repeats_left
        self._texts: dict[TrialKey, list[list[int]]] = {}

    def warm_up(self, item: Unit, arms: Sequence[Arm]) -> None:
        """Every shape once and every arm briefly; kept in the folder, marked, and counted nowhere."""
        # Caches have room for as many tokens as a trial has.
        tokens = min(WARMUP_TOKENS, self.config.max_new_tokens)
        widest = max((arm.gamma or 0) for arm in arms) + 1
        self.engine.warm(item.items[0].ids, range(1, widest + 1))
        self._first_calls(item, arms, tokens)
        for arm in arms:
            trial, _ = self._run(item, arm, 0, tokens)
            self.writer.append(replace(trial, warmup=True))

    def meet(self, item: Unit, arms: Sequence[Arm]) -> None:
        """Before the arms of a unit: every model reads its prompts, untimed, so that no arm pays for a new length."""
        self._first_calls(item, {arm.draft: arm for arm in arms}.values(), 1)

    def _first_calls(self, item: Unit, arms: Iterable[Arm], tokens: int) -> None:
        """A device loads a kernel when it is first called for, and plans attention anew for every length of a prompt,
        which takes longer than reading it."""
        if not self.engine.device.startswith("cpu"):
            for arm in arms:
                self._generate(item, arm, 0, tokens)

    def trial(self, item: Unit, arm: Arm, repeat: int) -> None:
        """One trial on disk, and again while it was disturbed and repeats are left."""
        key = (item.id, arm, repeat)
        while True:
            trial, tokens = self._run(item, arm, repeat, self.config.max_new_tokens)
            trial = replace(trial, attempt=self.attempts[key])
            self.writer.append(trial)
            self.attempts[key] += 1
            self._texts[key] = tokens
            self.observer.trial(trial)
            if not trial.disturbed or self.attempts[key] >= MAX_ATTEMPTS or self.repeats_left <= 0:
                return
            self.repeats_left -= 1

    def close(self, item: Unit, arms: Sequence[Arm], scored: Container[TrialKey]) -> None:
        """After the last arm of a unit, untimed: where texts differ, and what the drafts would have said at every
        position of the target's own. Scores come last: a unit whose texts are all `scored` was closed before."""
        greedy = self.config.sampling.greedy
        todo = [
            (row, draft, repeat)
            for repeat in range(1 if greedy else self.config.repeats)
            for draft in self.config.draft
            for row, one in enumerate(item.items)
            if (one.prompt.id, Arm("baseline", draft), repeat) not in scored
        ]
        if greedy and todo:
            self._note_divergences(item, arms)
        for row, draft, repeat in todo:
            one = item.items[row]
            scores = self.engine.score(one.ids, self._rows(item, arms[0], repeat)[row], draft)
            self.positions.append(text_of(one.prompt, draft, repeat, self.config, scores))
        self._texts.clear()

    def drop(self) -> None:
        """Forget the texts of a unit that is not finished."""
        self._texts.clear()

    def _note_divergences(self, item: Unit, arms: Sequence[Arm]) -> None:
        """Where greedy text differs from the target alone: at which token, and how near a tie it was there; in a batch
        the first row that does."""
        alone = self._rows(item, arms[0], 0)
        for arm in arms[1:]:
            for one, own, text in zip(item.items, alone, self._rows(item, arm, 0), strict=True):
                if text != own:
                    pairs = enumerate(zip(own, text, strict=False))
                    at = next((i for i, (a, b) in pairs if a != b), min(len(own), len(text)))
                    margin = self.engine.margin([*one.ids, *own[:at]])
                    self.writer.append_divergence((item.id, arm, 0), Divergence(at, margin))
                    break

    def _rows(self, item: Unit, arm: Arm, repeat: int) -> list[list[int]]:
        """The arm's output ids for each prompt; generated again, untimed, where an earlier session produced them."""
        key = (item.id, arm, repeat)
        if key not in self._texts:
            found = self._generate(item, arm, repeat, self.config.max_new_tokens)
            self._texts[key] = [generation.tokens for generation in found]
        return self._texts[key]

    def _generate(self, item: Unit, arm: Arm, repeat: int, max_new_tokens: int) -> list[Generation]:
        seeds = [f"{one.prompt.id}/{repeat}" for one in item.items]
        if len(item.items) == 1:
            ids = item.items[0].ids
            return [self.engine.generate(ids, arm, max_new_tokens=max_new_tokens, seed_text=seeds[0])]
        prompts = [one.ids for one in item.items]
        return self.engine.generate_many(prompts, arm, max_new_tokens=max_new_tokens, seed_texts=seeds)

    def _run(self, item: Unit, arm: Arm, repeat: int, max_new_tokens: int) -> tuple[Trial, list[list[int]]]:
        meter = OthersMeter()
        load_before = load_average()
        meter.start()
        found = self._generate(item, arm, repeat, max_new_tokens)
        others = meter.stop()
        kept = self.config.keep_text
        rounds = [r for generation in found for r in generation.rounds] if arm.draft else []
        rows = [generation.tokens for generation in found]
        trial = Trial(
            prompt_id=item.id,
            prompt_sha256=item.sha256,
            category=item.category,
            arm=arm,
            repeat=repeat,
            prompt_tokens=sum(len(one.ids) for one in item.items) // len(item.items),
            output_tokens=sum(map(len, rows)),
            output_sha256=hashlib.sha256(";".join(",".join(map(str, row)) for row in rows).encode()).hexdigest(),
            finish="eos" if all(generation.finish == "eos" for generation in found) else "length",
            drafted=tuple(r.drafted for r in rounds),
            accepted=tuple(r.accepted for r in rounds),
            times=found[0].times,
            load_before=load_before,
            load_after=load_average(),
            other_cores=others,
            disturbed=others is not None and others > self.config.max_other_cores,
            prompt_text="\n\n".join(joined(one.prompt) for one in item.items) if kept else None,
            output_text="\n\n".join(self.engine.decode(row) for row in rows) if kept else None,
            members=tuple(one.prompt.id for one in item.items) if len(item.items) > 1 else (),
        )
        return trial, rows


class LeftOut:
    """Prompts that count in no arm because memory ran out on them: `ids`, as stored in run.json, so that a session that
    resumes the run leaves them out too. They are stored when a later prompt has fitted: where none does, memory is
    short for another reason, and they are tried again."""

    def __init__(self, writer: RunWriter, most_in_a_row: int | None = MOST_IN_A_ROW) -> None:
        self._writer = writer
        self._most = most_in_a_row
        self._waiting: list[Omitted] = []
        self._any_fitted = False
        self.ids = left_out(writer.run)

    def fitted(self) -> None:
        """A prompt was measured in every arm."""
        self._any_fitted = True
        self._store()

    def add(self, prompt_id: str, tokens: int) -> None:
        """Memory ran out on a prompt of `tokens` tokens, those to be generated included. Raises EngineError where it
        did on the ones before as well."""
        self._waiting.append(Omitted(prompt_id, f"{OUT_OF_MEMORY} at {tokens:,} tokens, its answer included"))
        if len(self._waiting) == self._most:
            raise self._error(f"Out of memory on {self._most} prompts in a row")

    def end(self) -> None:
        """After the last prompt. Raises EngineError where not one fitted."""
        if self._waiting and not self._any_fitted:
            raise self._error("Out of memory on every prompt")
        self._store()

    def _error(self, what: str) -> EngineError:
        lengths = _lengths(self._waiting)
        return EngineError(
            what,
            where=f"at {min(lengths):,} to {max(lengths):,} tokens",
            cure="What was measured is kept. Free memory and run the same command again, or use shorter prompts or a "
            "smaller model.",
        )

    def _store(self) -> None:
        if not self._waiting:
            return
        workload = self._writer.run.workload
        skipped = (*workload.skipped, *self._waiting)
        self.ids |= {one.id for one in self._waiting}
        self._waiting.clear()
        lengths = _lengths(skipped)
        warning = Caution(
            "out-of-memory",
            f"{len(lengths)} prompt{'s were' if len(lengths) > 1 else ' was'} left out of every arm because memory ran "
            f"out, at {min(lengths):,} tokens and more, answers included: no number here is about prompts as long",
            "Free memory, or use a smaller model or --dtype bfloat16, and run again with --fresh.",
        )
        others = [one for one in self._writer.run.warnings if one.code != warning.code]
        self._writer.update(workload=replace(workload, skipped=skipped), warnings=(*others, warning))


def _lengths(skipped: Iterable[Omitted]) -> list[int]:
    """Tokens at which memory ran out, of the prompts that were left out for that."""
    found = (re.match(rf"{OUT_OF_MEMORY} at ([\d,]+) tokens", one.reason) for one in skipped)
    return [int(at[1].replace(",", "")) for at in found if at is not None]


def batch_too_large(batch_size: int, folder: Path) -> EngineError:
    """A batch is not left out as a prompt is: every cache has room for the longest prompt, so the next one would not
    fit either. And it is not made smaller on the way: a step of a smaller batch takes another time, and the run would
    be two measurements under one name."""
    half = batch_size // 2
    return EngineError(
        f"Out of memory in a batch of {batch_size}",
        where=str(folder),
        cure=f"Run the same command with --batch-size {half}. That is a run of its own; what was measured is kept.",
    )


def joined(prompt: Prompt) -> str:
    """All that is asked, as one text."""
    return "\n".join(message.content for message in prompt.messages)


def text_of(prompt: Prompt, draft: str, repeat: int, config: RunConfig, scores: Scores | BlockScores) -> Text:
    """The scores of one text with what it takes to replay them."""
    limit = config.max_new_tokens
    return as_text(scores, prompt_id=prompt.id, category=prompt.category, draft=draft, repeat=repeat, limit=limit)
