"""One trial after another on one engine, each on disk before the next begins."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from specbench.acceptance.replay import Blocks, Positions, Text
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, load_average
from specbench.positions import PositionWriter
from specbench.records import Arm, Divergence, Prompt, Trial
from specbench.store import RunWriter, TrialKey

if TYPE_CHECKING:
    from specbench.acceptance.loop import Generation
    from specbench.acceptance.score import BlockScores, Scores
    from specbench.engines.local import LocalEngine

MAX_ATTEMPTS = 3
WARMUP_TOKENS = 8


class Observer(Protocol):
    """Whoever shows the progress of a run."""

    def say(self, line: str) -> None:
        """Something worth a line."""

    def begin(self, total: int, done: int) -> None:
        """Trials planned, and how many of them an earlier session finished."""

    def trial(self, trial: Trial) -> None:
        """A trial is on disk."""

    def advance(self, texts: int) -> None:
        """Texts were scored, in a run without trials."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and its token ids."""

    prompt: Prompt
    ids: list[int]


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
        self._texts: dict[TrialKey, list[int]] = {}

    def warm_up(self, item: Encoded, arms: Sequence[Arm]) -> None:
        """Every shape once and every arm briefly; kept in the folder, marked, and counted nowhere."""
        widest = max((arm.gamma or 0) for arm in arms) + 1
        self.engine.warm(item.ids, range(1, widest + 1))
        for arm in arms:
            trial, _ = self._run(item, arm, 0, WARMUP_TOKENS)
            self.writer.append(replace(trial, warmup=True))

    def trial(self, item: Encoded, arm: Arm, repeat: int) -> None:
        """One trial on disk, and again while it was disturbed and repeats are left."""
        key = (item.prompt.id, arm, repeat)
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

    def close_prompt(self, item: Encoded, arms: Sequence[Arm], scored: Container[TrialKey]) -> None:
        """After the last arm of a prompt, untimed: where texts differ, and what the drafts would have said at every
        position of the target's own. Scores come last: a prompt whose texts are all `scored` was closed before."""
        greedy = self.config.sampling.greedy
        todo = [(draft, r) for r in range(1 if greedy else self.config.repeats) for draft in self.config.draft]
        todo = [(draft, r) for draft, r in todo if (item.prompt.id, Arm("baseline", draft), r) not in scored]
        if greedy and todo:
            self._note_divergences(item, arms)
        for draft, repeat in todo:
            scores = self.engine.score(item.ids, self._text(item, arms[0], repeat), draft)
            self.positions.append(text_of(item.prompt, draft, repeat, self.config, scores))
        self._texts.clear()

    def _note_divergences(self, item: Encoded, arms: Sequence[Arm]) -> None:
        """Where greedy text differs from the target alone: at which token, and how near a tie it was there."""
        alone = self._text(item, arms[0], 0)
        for arm in arms[1:]:
            text = self._text(item, arm, 0)
            if text != alone:
                at = next(
                    (i for i, (a, b) in enumerate(zip(alone, text, strict=False)) if a != b), min(len(alone), len(text))
                )
                margin = self.engine.margin([*item.ids, *alone[:at]])
                self.writer.append_divergence((item.prompt.id, arm, 0), Divergence(at, margin))

    def _text(self, item: Encoded, arm: Arm, repeat: int) -> list[int]:
        """The arm's output ids; generated again, untimed, where an earlier session produced them."""
        key = (item.prompt.id, arm, repeat)
        if key not in self._texts:
            self._texts[key] = self._generate(item, arm, repeat, self.config.max_new_tokens).tokens
        return self._texts[key]

    def _generate(self, item: Encoded, arm: Arm, repeat: int, max_new_tokens: int) -> Generation:
        return self.engine.generate(
            item.ids, arm, max_new_tokens=max_new_tokens, seed_text=f"{item.prompt.id}/{repeat}"
        )

    def _run(self, item: Encoded, arm: Arm, repeat: int, max_new_tokens: int) -> tuple[Trial, list[int]]:
        meter = OthersMeter()
        load_before = load_average()
        meter.start()
        generation = self._generate(item, arm, repeat, max_new_tokens)
        others = meter.stop()
        kept = self.config.keep_text
        trial = Trial(
            prompt_id=item.prompt.id,
            prompt_sha256=item.prompt.sha256,
            category=item.prompt.category,
            arm=arm,
            repeat=repeat,
            prompt_tokens=len(item.ids),
            output_tokens=len(generation.tokens),
            output_sha256=hashlib.sha256(",".join(map(str, generation.tokens)).encode()).hexdigest(),
            finish=generation.finish,
            drafted=tuple(r.drafted for r in generation.rounds) if arm.draft else (),
            accepted=tuple(r.accepted for r in generation.rounds) if arm.draft else (),
            times=generation.times,
            load_before=load_before,
            load_after=load_average(),
            other_cores=others,
            disturbed=others is not None and others > self.config.max_other_cores,
            prompt_text="\n".join(message.content for message in item.prompt.messages) if kept else None,
            output_text=self.engine.decode(generation.tokens) if kept else None,
        )
        return trial, generation.tokens


def text_of(prompt: Prompt, draft: str, repeat: int, config: RunConfig, scores: Scores | BlockScores) -> Text:
    """The scores of one text with what it takes to replay them."""
    from specbench.acceptance.score import BlockScores

    origin = prompt.id, prompt.category, draft, repeat, config.max_new_tokens
    found = scores if isinstance(scores, BlockScores) else scores.blocks
    blocks = None if found is None else Blocks(*origin, found.proposed, found.matched)
    if isinstance(scores, BlockScores):
        assert blocks is not None
        return blocks
    numbers = scores.accept, scores.overlap, scores.confidence, scores.log_p, scores.log_q
    return Positions(*origin, *numbers, scores.ends, blocks)
