"""A run over answers that are there already: the log is surveyed, then streamed through the drafts, block by block."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from specbench.acceptance.positions import PositionWriter
from specbench.backends.base import Admitted, Noticed, Observer
from specbench.config import RunConfig
from specbench.cost.plan import Costs
from specbench.cost.stored import replay_costs
from specbench.errors import StoreError
from specbench.records import Finding, warned
from specbench.run.losses import Losses
from specbench.run.record import marked, run_record
from specbench.run.replay import ScoreKey, replay_texts, scored_texts
from specbench.run.resume import opened, threads_of
from specbench.run.workers import require_ray, with_counts, workers
from specbench.run_record import AnswerFacts, AnswersVerified, CategoryCount, RunRecord
from specbench.store import RunWriter, StoredRun
from specbench.workload import Workload
from specbench.workload.answers import BLOCK, SAMPLE, AnswerLog, Survey, survey_cautions
from specbench.workload.profile import chosen
from specbench.workload.replies import Recorded


def run_recorded(
    config: RunConfig, earlier: StoredRun | None, observer: Observer, costs: Path | None, argv: Sequence[str]
) -> Path:
    """Score the drafts on the answers of a log; returns the run folder. What an earlier session scored is skipped.
    `costs` is the folder of a probe, from which speedups are predicted."""
    if config.ray is not None:
        require_ray()
    log, survey, categories = surveyed(config)
    total = categories.total()
    named = ", ".join(f"{name} ({count:,})" for name, count in survey.sources.most_common())
    observer.say(f"{total:,} of {survey.answers:,} answers: {named}")
    before = None if earlier is None else earlier.run
    here = nullcontext(_Here(config, log, earlier, observer.say)) if config.ray is None else None
    with here or workers(config, log, before, observer.say) as backend:
        admitted = backend.admit()
        record = _record(
            config,
            log,
            survey,
            categories,
            total,
            run_record(
                config,
                "replay",
                Workload((), log.source, survey.sha256, tuple(survey.skipped), tuple(survey_cautions(survey))),
                replace(admitted, items=[]),
                [],
                trials_planned=0,
                argv=argv,
            ),
        )
        found = None if costs is None else replay_costs(costs, record)
        folder, record = opened(config, record, earlier, observer)
        known = [one.id for one in record.workload.skipped]
        with RunWriter(folder, record) as writer, marked(writer), PositionWriter(folder) as positions:
            if found is not None:
                _note_costs(writer, found)
            losses, scored = Losses(writer, known, None), scored_texts(folder)
            if config.verify_answers and (writer.run.answers is None or writer.run.answers.verified is None):
                few = random.Random(config.seed).sample(range(total), min(config.verify_answers, total))
                observer.say(f"Holding {len(few)} answers against the target")
                _note_verified(writer, backend.verify(few))
            blocks = _blocks(log, config.draft, scored)
            with losses.noting(backend.noticed):
                try:
                    backend.score(blocks, writer, total, scored, positions, losses, observer)
                finally:
                    with suppress(StoreError):
                        _note(writer, backend.facts)
    return folder


class _Here:
    def __init__(
        self, config: RunConfig, log: AnswerLog, earlier: StoredRun | None, say: Callable[[str], None]
    ) -> None:
        from specbench.backends.local.recorded import RecordedBackend

        before = None if earlier is None else earlier.run
        self._config = config
        self._log = log
        self._backend = RecordedBackend(config, threads=partial(threads_of, config, earlier), earlier=before, say=say)

    @property
    def noticed(self) -> Noticed:
        return self._backend.noticed

    @property
    def facts(self) -> AnswerFacts:
        return self._backend.facts

    def admit(self) -> Admitted:
        return self._backend.admit(list(islice(self._log, SAMPLE)))

    def verify(self, numbers: Sequence[int]) -> AnswersVerified:
        return self._backend.verify(self._log.numbered(numbers))

    def score(
        self,
        blocks: Iterable[tuple[int, list[Recorded], bool]],
        writer: RunWriter,
        total: int,
        scored: set[ScoreKey],
        positions: PositionWriter,
        losses: Losses,
        observer: Observer,
    ) -> None:
        items = (self._backend.read(block, number * BLOCK) for number, block, _ in blocks)
        with self._backend.scoring(writer) as scoring:
            replay_texts(scoring, items, total, self._config, scored, positions, losses, observer)


def surveyed(config: RunConfig) -> tuple[AnswerLog, Survey, Counter[str]]:
    log = AnswerLog.of(config)
    survey, labels = log.survey()
    return log, survey, _choose(log, labels, config)


def _choose(log: AnswerLog, labels: Sequence[str | None], config: RunConfig) -> Counter[str]:
    """Take as many as the limit allows, spread over the categories."""
    if config.limit is not None and config.limit < len(labels):
        log.chosen = frozenset(chosen(labels, config.limit, config.seed))
    return Counter(label or "all" for n, label in enumerate(labels) if log.chosen is None or n in log.chosen)


def _record(
    config: RunConfig, log: AnswerLog, survey: Survey, categories: Counter[str], total: int, record: RunRecord
) -> RunRecord:
    counts = {name: CategoryCount(there, categories[name]) for name, there in survey.categories.items()}
    facts = AnswerFacts(
        sources=dict(survey.sources),
        models=dict(survey.models.most_common(20)),
        temperatures={f"{value:g}": count for value, count in survey.temperatures.most_common(20)},
        conversations=survey.conversations,
    )
    workload = replace(record.workload, prompts_available=survey.answers, prompts_used=total, categories=counts)
    return replace(record, workload=workload, answers=facts)


def _blocks(log: AnswerLog, drafts: Sequence[str], scored: set[ScoreKey]) -> Iterator[tuple[int, list[Recorded], bool]]:
    """Every block with its number, and whether anything of it is left to score. Those that an earlier session scored
    are read again: what it had counted when it was stopped is not what it had scored."""
    for number, block in enumerate(log.blocks()):
        yield number, block, any((one.prompt.id, draft, 0) not in scored for one in block for draft in drafts)


def _note_costs(writer: RunWriter, found: Costs) -> None:
    kept = [one for one in writer.run.warnings if one.code not in {each.code for each in found.cautions}]
    writer.update(probe=found.points, probe_from=found.source, warnings=(*kept, *found.cautions))


def _note_verified(writer: RunWriter, found: AnswersVerified) -> None:
    warnings = writer.run.warnings
    if found.foreign:
        if found.excess_nats is None:
            share = (found.likeliest or 0) / max(1, found.tokens)
            how = f"of {found.tokens:,} tokens {share:.0%} are those that it finds likeliest, of its own nearly all are"
        else:
            how = f"their tokens are {found.excess_nats:.2f} nats less likely, each, than its own would be"
            if found.logged_gap_nats is not None:
                how += f", and {found.logged_gap_nats:.2f} nats from what the log says of them"
        caution = warned(
            "foreign-answers",
            f"{found.answers} recorded answers are not what {writer.run.config.target} writes: {how}",
            "Name the target, and the sampling, that wrote them: what is here holds for whatever did.",
        )
        warnings = (*warnings, caution)
    facts = replace(writer.run.answers or AnswerFacts(), verified=found)
    writer.update(answers=facts, warnings=warnings)


def _note(writer: RunWriter, found: AnswerFacts) -> None:
    """What was counted while answers were read, in this session."""
    facts = with_counts(writer.run.answers or AnswerFacts(), found)
    cautions = {caution.code: caution for caution in answer_cautions(facts, writer.run.config)}
    kept = [one for one in writer.run.warnings if one.code not in cautions]
    writer.update(answers=facts, warnings=(*kept, *cautions.values()))


def answer_cautions(facts: AnswerFacts, config: RunConfig) -> list[Finding]:
    """What these answers rest on, each with how much of it is known."""
    found = []
    if facts.from_log < facts.answers:
        changed = facts.changed_tokens / facts.round_trip_tokens if facts.round_trip_tokens else 0.0
        found.append(
            warned(
                "answers-tokenized",
                f"{facts.answers - facts.from_log:,} of {facts.answers:,} answers are text that was tokenized again: "
                "where the model had cut a word otherwise, drafts are held against other tokens. Decoding and encoding "
                f"changes {100 * changed:.2g}% of {facts.round_trip_tokens:,} tokens",
                "Log token ids (vLLM: return_token_ids).",
            )
        )
    if facts.unended:
        found.append(
            warned(
                "answers-unended",
                f"the log does not say how {facts.unended:,} of {facts.answers:,} answers ended: each is taken to have "
                "ended by itself, with an end of sequence",
                "Log the finish reason; answers cut at their limit count one token too many.",
            )
        )
    told = {float(value) for value in facts.temperatures}
    if told and told != {config.temperature}:
        listed = ", ".join(facts.temperatures)
        found.append(
            warned(
                "answers-sampled-otherwise",
                f"the log asked for temperature {listed}, the run takes {config.temperature:g}: of no matter to drafts "
                "that take their likeliest token, and wrong for those that sample",
                "Give the run the temperature of the log.",
            )
        )
    if len(facts.models) > 1:
        found.append(
            warned(
                "answers-of-several",
                f"the log names {len(facts.models)} models: what is here is about no single one of them",
                "Score the answers of each by themselves.",
            )
        )
    return found
