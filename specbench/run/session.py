"""The only orchestrator: plan -> skip what is done -> run -> store. It does not know which engine it talks to.

For each prompt, every arm runs in an order drawn anew, so that drift of the machine falls on all arms alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from specbench.acceptance.positions import PositionWriter
from specbench.backends import backend_of
from specbench.backends.base import (
    Answer,
    Backend,
    CanProbe,
    CanScore,
    CanSlice,
    CanWarm,
    DoesNotFitError,
    Item,
    Job,
    Observer,
    Output,
    Session,
    Unit,
)
from specbench.config import RunConfig
from specbench.cost.plan import Costs, run_plan
from specbench.cost.stored import require_probe, served_costs, stored_costs
from specbench.drafters import with_cutoff
from specbench.records import Arm, Prompt, Trial, Window
from specbench.run.early_stopping import EarlyStopping, Looked, TimeBudget, ended_line, ruled_out_line
from specbench.run.losses import MOST_IN_A_ROW, Losses
from specbench.run.plan import by_server, parts, plan_arms, plan_units, shuffled
from specbench.run.progress import forecast_s
from specbench.run.record import marked, prompts_of, run_record
from specbench.run.recorded import run_recorded
from specbench.run.replay import replay_texts, scored_texts, text_of
from specbench.run.resume import MAX_ATTEMPTS, opened, progress_of, threads_of, unfinished
from specbench.run_record import Command, RunRecord
from specbench.store import RunWriter, StoredRun, TrialKey, read_run, require_disk, trial_key
from specbench.text import count, duration

# From so many on it is not a passing disturbance, which a repeat would miss.
DISTURBED_IN_A_ROW = 6


def run(
    config: RunConfig,
    command: Command,
    gammas: Sequence[int],
    observer: Observer,
    *,
    mode: str = "auto",
    replay_only: bool = False,
    costs: Path | None = None,
    argv: Sequence[str] = (),
) -> Path:
    """Run or continue; returns the run folder, in which every finished trial already lies.

    `replay_only` measures acceptance and no wall clock. `costs`: the folder of a probe in this very setting, whose
    points are taken instead of timing the models alone. `mode`: "fresh" starts a new folder, "resume" demands an
    unfinished one, "auto" takes an unfinished one if there is one with the same configuration; `argv` is kept as the
    command. KeyboardInterrupt passes through after the folder is marked interrupted.
    """
    # What cannot be drafted with is refused here, before anything is loaded.
    drafts = tuple(with_cutoff(draft, config.cutoff) for draft in config.draft)
    config = replace(config, gamma=tuple(gammas), draft=drafts)
    if costs is not None:
        require_probe(costs)
    kind: Command = "replay" if replay_only else command
    earlier = unfinished(config, kind, mode)
    if config.recorded:
        return run_recorded(config, earlier, observer, costs, argv)
    asked = partial(backend_of, threads=partial(threads_of, config, earlier), say=observer.say)
    # A server's rounds are probed as a whole; what its drafts would get is asked of it without speculation.
    replaying = None
    if costs is not None and config.served:
        replaying = asked(replace(config, concurrency=(1,), rate=()), replay_only=True, earlier=None)
    backend = asked(config, replay_only=replay_only, earlier=None if earlier is None else earlier.run)
    workload, chosen = prompts_of(config)
    observer.say(f"{len(chosen):,} of {len(workload.prompts):,} prompts")
    admitted = backend.admit(chosen)
    units, skipped = ([], []) if replay_only else plan_units(admitted.items, config)
    planned = len(units) * len(plan_arms(config, gammas)) * config.repeats
    record = run_record(config, kind, workload, admitted, skipped, trials_planned=planned, argv=argv)
    _require_disk(config, chosen, planned, earlier)
    reused = None if costs is None else _reused(costs, record, units, config)
    at_load = [one.id for one in record.workload.skipped]
    folder, record = opened(config, record, earlier, observer)
    with RunWriter(folder, record) as writer, marked(writer), PositionWriter(folder) as positions:
        # The longest texts of a replay come first.
        losses = Losses(writer, at_load, None if replay_only else MOST_IN_A_ROW)
        scored = partial(_scored, config=config, writer=writer, positions=positions, losses=losses, observer=observer)
        if replay_only:
            scored(backend, shuffled(admitted.items, config.seed))
            return folder
        if replaying is not None and reused is not None:
            said = [one for one in reused.cautions if one not in writer.run.warnings]  # of an earlier session
            writer.update(probe=reused.points, probe_from=reused.source, warnings=(*writer.run.warnings, *said))
        with backend.session(writer) as session, losses.noting(session.noticed):
            measurement = Measurement(session, config, writer, positions, read_run(folder), losses, observer)
            measurement.run(units, gammas, reused)
        if replaying is not None:
            observer.say("Asking what the drafts would have said of the target's own texts")
            scored(replaying, admitted.items)
    return folder


def _scored(
    backend: Backend,
    items: Sequence[Item],
    *,
    config: RunConfig,
    writer: RunWriter,
    positions: PositionWriter,
    losses: Losses,
    observer: Observer,
) -> None:
    """What the drafts would have said at every position of the target's own texts, untimed."""
    with backend.scoring(writer) as scoring, losses.noting(scoring.noticed):
        replay_texts(scoring, [items], len(items), config, scored_texts(writer.folder), positions, losses, observer)


def _require_disk(config: RunConfig, prompts: Sequence[Prompt], planned: int, earlier: StoredRun | None) -> None:
    asked = None
    if config.keep_text:
        asked = sum(len(_asked(prompt).encode()) for prompt in prompts) / max(len(prompts), 1) * config.batch_size
    require_disk(Path(config.out), planned - (len(earlier.trials) if earlier else 0), asked)


def _reused(costs: Path, record: RunRecord, units: Sequence[Unit], config: RunConfig) -> Costs:
    if config.served:
        return served_costs(costs, record)
    return stored_costs(costs, record, run_plan(_lengths(units), config))


def _lengths(units: Sequence[Unit]) -> list[int]:
    return [len(item.tokens) for unit in units for item in unit.items]


class Measurement:
    """One session of a timed run: every unit through every arm, then its positions; what an earlier session finished is
    skipped."""

    def __init__(
        self,
        session: Session,
        config: RunConfig,
        writer: RunWriter,
        positions: PositionWriter,
        stored: StoredRun,
        losses: Losses,
        observer: Observer,
    ) -> None:
        self._session = session
        self._config = config
        self._writer = writer
        self._positions = positions
        self._losses = losses
        self._observer = observer
        self._attempts, self._done = progress_of(stored.trials)
        self._hashes = {trial_key(trial): trial.output_sha256 for trial in stored.trials if not trial.warmup}
        self._noted = {trial_key(trial) for trial in stored.trials if trial.diverged is not None}
        used = [trial.stretch for trial in stored.trials if trial.stretch is not None]
        self._scored = scored_texts(writer.folder)
        self._next_window = max([*used, *(stretch.number for stretch in stored.stretches)], default=-1) + 1
        self._outputs: dict[TrialKey, Output] = {}  # of the block
        self._repeats_left = 3 + (writer.run.trials_planned or 0) // 10
        self._disturbed_in_a_row = 0

    def run(self, units: Sequence[Unit], gammas: Sequence[int], reused: Costs | None) -> None:
        session, observer, losses = self._session, self._observer, self._losses
        looked, arms = Looked(self._writer), plan_arms(self._config, gammas)
        early = EarlyStopping(self._writer, looked, arms, len(units), predicted=isinstance(session, CanProbe))
        asked = [unit for unit in units if unit.id not in losses.ids]
        budget = TimeBudget(self._writer, looked, len(units))
        warmed: dict[Arm, Trial] = {}
        if asked and isinstance(session, CanWarm):
            for warm_up in session.warm(asked, early.arms):
                warmed[warm_up.trial.arm] = trial = self._trial_of(warm_up)
                self._writer.append(trial)
        if isinstance(session, CanProbe):
            self._probe(session, units, reused)
        left = self._trials_left(asked, early.arms)
        observer.begin(len(self._done) + left.total(), len(self._done))
        if warmed and (most_s := forecast_s(warmed, left, asked, self._config.max_new_tokens)):
            answers = f"answers of up to {self._config.max_new_tokens:,} tokens"
            observer.say(f"About {duration(most_s)}: {count(left.total(), 'trial')}, {answers}")
        measured = begun = 0
        for block in parts(asked, session.block_size or max(1, len(asked))):
            arms = early.arms
            observer.left(left, len(asked) - begun)
            begun += len(block)
            left -= self._trials_left(block, arms)
            try:
                self._block(block, arms)
            except DoesNotFitError as error:
                losses.too_long(error.prompt_id, error.tokens)
                continue
            finally:
                self._outputs.clear()
            losses.fitted()
            measured += len(block)
            for one in early.after(measured):
                observer.say(ruled_out_line(one))
                left = Counter({a: n for a, n in left.items() if (a.draft, a.gamma) != (one.draft, one.gamma)})
            if (end := budget.ends(measured)) is not None:
                observer.say(ended_line(end))
                break
        losses.end()
        refused = session.noticed.refused
        any_measured = any(count and key[0] not in refused for key, count in self._attempts.items())
        losses.require_any(any_measured, [unit.id for unit in asked], session.noticed)

    def _probe(self, session: CanProbe, units: Sequence[Unit], reused: Costs | None) -> None:
        if self._writer.run.probe is not None:
            return
        if reused is None:
            self._observer.say("Timing the models alone")
        plan = run_plan(_lengths(units), self._config)
        costs = session.probe(units[0].items[0].tokens, plan) if reused is None else reused
        # At once: a kill in between would leave the costs without what is wrong with them.
        self._writer.update(
            probe=costs.points,
            probe_from=costs.source,
            warnings=(*self._writer.run.warnings, *costs.cautions),
        )

    def _block(self, block: Sequence[Unit], arms: Sequence[Arm]) -> None:
        todo = [arm for arm in arms if self._trials_left(block, [arm])]
        with self._session.block(block, todo):
            for turn, own in self._turns(block, arms):
                seed = f"{self._config.seed}/{turn[0].unit.id}/{turn[0].repeat}"
                groups = shuffled(by_server(own), seed)
                if self._config.slice_tokens and isinstance(self._session, CanSlice):
                    (job,) = turn
                    own = [arm for group in groups for arm in group if job.key(arm) not in self._done]
                    self._slices(self._session, job, own)
                    continue
                for group in groups:
                    for arm in group:
                        self._trials([job for job in turn if job.key(arm) not in self._done], arm)
            if self._config.sampling.greedy:
                self._divergences(block, arms)
            # Scores come last: a unit whose texts are all scored was closed before.
            if isinstance(self._session, CanScore):
                self._scores(self._session, block)

    def _turns(self, block: Sequence[Unit], arms: Sequence[Arm]) -> Iterator[tuple[Sequence[Job], Sequence[Arm]]]:
        """What each arm does before the next has its turn. Arms under one load are compared with each other, so that
        they come together where they can."""
        jobs = [Job(unit, repeat) for repeat in range(self._config.repeats) for unit in block]
        loads = list(dict.fromkeys(arm.load for arm in arms))
        if any(self._session.turn(load) is None for load in loads):
            yield jobs, arms
            return
        for load in loads:
            own = [arm for arm in arms if arm.load == load]
            yield from ((part, own) for part in parts(jobs, self._session.turn(load) or 1))

    def _slices(self, session: CanSlice, job: Job, arms: Sequence[Arm]) -> None:
        """The job's trials in all these arms on disk, and all again while they were disturbed: they share what the
        machine did, and one repeated alone would not."""
        while arms:
            with closing(session.slices(job, arms)) as answers:
                trials = [self._stored(answer, None) for answer in answers]
            disturbed = [trial for trial in trials if trial.disturbed]
            arms = [trial.arm for trial in disturbed] if self._again(disturbed) else []

    def _trials(self, jobs: Sequence[Job], arm: Arm) -> None:
        """Every job's trial on disk, and again while it was disturbed and repeats are left."""
        while jobs := [job for job in jobs if job.unit.id not in self._session.noticed.refused]:
            number, disturbed = self._next_window, []
            self._next_window += 1
            with closing(self._session.generate(jobs, arm)) as events:
                for event in events:
                    if isinstance(event, Window):
                        self._writer.append_stretch(replace(event, number=number))
                    elif event.trial.warmup:
                        self._writer.append(self._trial_of(event))
                    elif self._trial(event, number):
                        disturbed.append(event.job)
            jobs = disturbed

    def _trial(self, answer: Answer, window: int) -> bool:
        """Store an answer; whether it is to be measured again."""
        trial = self._stored(answer, None if answer.trial.begun_s is None else window)
        return self._again([trial] if trial.disturbed else [])

    def _stored(self, answer: Answer, stretch: int | None) -> Trial:
        key = trial_key(answer.trial)
        trial = replace(self._trial_of(answer), attempt=self._attempts[key], stretch=stretch)
        self._writer.append(trial)
        self._attempts[key] += 1
        self._outputs[key], self._hashes[key] = answer.output, trial.output_sha256
        self._observer.trial(trial)
        return trial

    def _again(self, disturbed: Sequence[Trial]) -> bool:
        """Whether these trials, which were measured side by side or of which there is one, are measured again. On a
        machine that stays busy nothing is."""
        if not disturbed:
            self._disturbed_in_a_row = 0
            return False
        self._disturbed_in_a_row += 1
        if self._disturbed_in_a_row == DISTURBED_IN_A_ROW and self._repeats_left > 0:
            self._repeats_left = 0
            self._observer.say(
                f"The machine is busy: {DISTURBED_IN_A_ROW} trials in a row were disturbed, so none is repeated now"
            )
        if disturbed[0].attempt + 1 >= MAX_ATTEMPTS or self._repeats_left <= 0:
            return False
        self._repeats_left -= len(disturbed)
        return True

    def _trial_of(self, answer: Answer) -> Trial:
        """With what the engine does not know of it."""
        trial, prompts = answer.trial, (item.prompt for item in answer.job.unit.items)
        return replace(
            trial,
            drafted=trial.drafted if trial.arm.draft else (),
            accepted=trial.accepted if trial.arm.draft else (),
            disturbed=trial.other_cores is not None and trial.other_cores > self._config.max_other_cores,
            prompt_text="\n\n".join(map(_asked, prompts)) if self._config.keep_text else None,
        )

    def _divergences(self, block: Sequence[Unit], arms: Sequence[Arm]) -> None:
        """Where greedy texts differ from the target alone, as far as nobody noted it."""
        pairs = []
        for arm in arms:
            for unit in block:
                own, other = Job(unit, 0).key(Arm("baseline", load=arm.load)), Job(unit, 0).key(arm)
                hashes = self._hashes.get(own), self._hashes.get(other)
                if None not in hashes and hashes[0] != hashes[1] and other not in self._noted:
                    pairs.append((unit, own, other))
        self._recall({key: Job(unit, 0) for unit, *keys in pairs for key in keys})
        for unit, own, other in pairs:
            if own in self._outputs and other in self._outputs:
                found = self._session.divergence(unit, self._outputs[own], self._outputs[other])
                if found is not None:
                    self._writer.append_divergence(other, found)

    def _recall(self, wanted: dict[TrialKey, Job], *, exactly: bool = True) -> None:
        """Ask again for texts of an earlier session, of which no more is stored than the hash. A text that is not as it
        was is not taken where it has to be `exactly` that."""
        missing: dict[Arm, list[Job]] = {}
        for key, job in wanted.items():
            if key not in self._outputs:
                missing.setdefault(key[1], []).append(job)
        for arm, jobs in missing.items():
            with closing(self._session.recall(jobs, arm)) as answers:
                for answer in answers:
                    key = answer.job.key(arm)
                    if not exactly or answer.trial.output_sha256 == self._hashes.get(key):
                        self._outputs[key] = answer.output

    def _scores(self, session: CanScore, block: Sequence[Unit]) -> None:
        """What the drafts would have said at every position of the target's own texts, untimed."""
        left = [
            (Job(unit, repeat), row, draft)
            for unit in block
            for repeat in range(1 if self._config.sampling.greedy else self._config.repeats)
            for draft in self._config.draft
            for row, item in enumerate(unit.items)
            if (item.prompt.id, draft, repeat) not in self._scored
        ]
        if len(block) > 1 and left:
            self._observer.say(f"Asking what drafts say to {len(left)} texts")
        for job, row, draft in left:
            own = job.key(Arm("baseline"))
            self._recall({own: job}, exactly=False)
            if own in self._outputs:
                rows, item = self._outputs[own], job.unit.items[row]
                assert isinstance(rows, list)
                scores = session.score(item, rows[row], draft)
                self._positions.append(text_of(item, draft, job.repeat, self._config, scores))

    def _trials_left(self, units: Sequence[Unit], arms: Sequence[Arm]) -> Counter[Arm]:
        jobs = [Job(unit, repeat) for unit in units for repeat in range(self._config.repeats)]
        return Counter(arm for arm in arms for job in jobs if job.key(arm) not in self._done)


def _asked(prompt: Prompt) -> str:
    """All that is asked, as one text."""
    return "\n".join(message.content for message in prompt.messages)
