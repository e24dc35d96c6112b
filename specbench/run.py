"""The only orchestrator: plan -> skip what is done -> run -> store.

For each prompt, every arm runs in an order drawn anew, so that drift of the machine falls on all arms alike.
"""

from __future__ import annotations

import hashlib
import random
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, free_cores, load_average
from specbench.errors import StoreError, WorkloadError
from specbench.provenance import provenance
from specbench.records import Arm, Caution, Divergence, Prompt, Trial
from specbench.store import SCHEMA, RunWriter, TrialKey, find_runs, new_folder, read_run, trial_key
from specbench.workload import Workload, load_workload, select

if TYPE_CHECKING:
    from specbench.acceptance.loop import Generation
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


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and its token ids."""

    prompt: Prompt
    ids: list[int]


def plan_arms(config: RunConfig, gammas: Sequence[int]) -> list[Arm]:
    """The target alone, the same again (the noise floor), and every draft at every gamma."""
    speculative = [Arm("speculative", draft, gamma) for draft in config.draft for gamma in gammas]
    return [Arm("baseline"), Arm("baseline-again"), *speculative]


def run(config: RunConfig, command: str, gammas: Sequence[int], observer: Observer, *, mode: str = "auto") -> Path:
    """Run or continue; returns the run folder, in which every finished trial already lies.

    `mode`: "fresh" starts a new folder, "resume" demands an unfinished one, "auto" takes an unfinished one if there
    is one with the same configuration. KeyboardInterrupt passes through after the folder is marked interrupted.
    """
    config = replace(config, gamma=tuple(gammas))
    folder = _unfinished(config, mode)
    workload = load_workload(
        config.workload,
        column=config.column,
        category_column=config.category_column,
        system_prompt=config.system_prompt,
    )
    chosen = select(workload.prompts, config.limit, config.seed)
    threads = config.threads or free_cores()
    from specbench.engines.local import LocalEngine

    observer.say(f"Loading {config.target} and {', '.join(config.draft)}")
    engine = LocalEngine(config, threads)
    encoded, skipped = _fit(engine, chosen, config)
    if folder is None:
        folder = new_folder(Path(config.out), config.name or command)
        record = _record(config, command, engine, workload, encoded, skipped, threads)
    else:
        record = read_run(folder).run
        observer.say(f"Continuing {folder}")
        _same_workload(record, workload, folder)
    with RunWriter(folder, record) as writer:
        writer.update(status="started")
        try:
            _measure(engine, encoded, plan_arms(config, gammas), config, writer, observer)
        except KeyboardInterrupt:
            writer.update(status="interrupted")
            raise
        except BaseException as error:
            # The type and place of a failure, never its message: messages may quote prompts.
            last = traceback.extract_tb(error.__traceback__)[-1]
            writer.update(
                status="failed", failure=f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
            )
            raise
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        writer.update(
            status="finished", provenance=record["provenance"] | {"finished": finished, "load_at_end": load_average()}
        )
    return folder


def _measure(
    engine: LocalEngine,
    encoded: Sequence[Encoded],
    arms: Sequence[Arm],
    config: RunConfig,
    writer: RunWriter,
    observer: Observer,
) -> None:
    attempts, done = _progress(read_run(writer.folder).trials)
    order = list(encoded)
    random.Random(config.seed).shuffle(order)
    bench = Bench(engine, config, writer, observer, attempts, repeats_left=3 + len(order) * len(arms) // 10)
    total = len(order) * len(arms) * config.repeats
    bench.warm_up(order[0], arms)
    observer.begin(total, len(done))
    for item in order:
        for repeat in range(config.repeats):
            for arm in shuffled(arms, f"{config.seed}/{item.prompt.id}/{repeat}"):
                if (item.prompt.id, arm, repeat) not in done:
                    bench.trial(item, arm, repeat)
        if config.sampling.greedy:
            bench.note_divergences(item, arms)


def shuffled(arms: Sequence[Arm], seed: str) -> list[Arm]:
    """The arms in an order that depends on `seed` alone, so that a resumed run keeps its plan."""
    order = list(arms)
    random.Random(seed).shuffle(order)
    return order


class Bench:
    """Runs trials of one engine and stores them; repeats, visibly, those that other processes disturbed."""

    def __init__(
        self,
        engine: LocalEngine,
        config: RunConfig,
        writer: RunWriter,
        observer: Observer,
        attempts: dict[TrialKey, int],
        repeats_left: int,
    ) -> None:
        self.engine = engine
        self.config = config
        self.writer = writer
        self.observer = observer
        self.attempts = attempts
        self.repeats_left = repeats_left
        self._texts: dict[tuple[str, Arm], list[int]] = {}

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
            self.writer.append(replace(trial, attempt=self.attempts[key]))
            self.attempts[key] += 1
            self._texts[item.prompt.id, arm] = tokens
            self.observer.trial(trial)
            if not trial.disturbed or self.attempts[key] >= MAX_ATTEMPTS or self.repeats_left <= 0:
                return
            self.repeats_left -= 1

    def note_divergences(self, item: Encoded, arms: Sequence[Arm]) -> None:
        """Where greedy text differs from the target alone: at which token, and how near a tie it was there."""
        alone = self._text(item, arms[0])
        for arm in arms[1:]:
            text = self._text(item, arm)
            if text != alone:
                at = next(
                    (i for i, (a, b) in enumerate(zip(alone, text, strict=False)) if a != b), min(len(alone), len(text))
                )
                margin = self.engine.margin([*item.ids, *alone[:at]])
                self.writer.append_divergence((item.prompt.id, arm, 0), Divergence(at, margin))
        self._texts.clear()

    def _text(self, item: Encoded, arm: Arm) -> list[int]:
        """The arm's output ids; generated again, untimed, where an earlier session produced them."""
        if (item.prompt.id, arm) not in self._texts:
            self._texts[item.prompt.id, arm] = self._generate(item, arm, 0, self.config.max_new_tokens).tokens
        return self._texts[item.prompt.id, arm]

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


def _progress(trials: Sequence[Trial]) -> tuple[dict[TrialKey, int], set[TrialKey]]:
    """How often each thing was tried, and which need no further try."""
    attempts: dict[TrialKey, int] = defaultdict(int)
    done: set[TrialKey] = set()
    for trial in trials:
        if trial.warmup:
            continue
        key = trial_key(trial)
        attempts[key] += 1
        if not trial.disturbed or attempts[key] >= MAX_ATTEMPTS:
            done.add(key)
    return attempts, done


def _fit(
    engine: LocalEngine, prompts: Sequence[Prompt], config: RunConfig
) -> tuple[list[Encoded], list[dict[str, str]]]:
    """Encode the prompts; those that would not fit the context are skipped and listed, never cut."""
    encoded: list[Encoded] = []
    skipped: list[dict[str, str]] = []
    for prompt in prompts:
        ids = engine.encode(prompt)
        need = len(ids) + config.max_new_tokens
        if engine.max_context is not None and need > engine.max_context:
            reason = f"{len(ids)} prompt tokens and {config.max_new_tokens} new ones exceed the context of {engine.max_context}"
            skipped.append({"id": prompt.id, "reason": reason})
        else:
            encoded.append(Encoded(prompt, ids))
    if not encoded:
        raise WorkloadError(
            "No prompt fits the models' context", where=config.workload, cure="Use shorter prompts or fewer new tokens."
        )
    engine.reserve(max(len(item.ids) for item in encoded) + config.max_new_tokens + max(config.gamma) + 1)
    return encoded, skipped


def _record(
    config: RunConfig,
    command: str,
    engine: LocalEngine,
    workload: Workload,
    encoded: Sequence[Encoded],
    skipped: list[dict[str, str]],
    threads: int,
) -> dict[str, Any]:
    """run.json at the start of a run."""
    cautions = list(workload.cautions)
    left_out = [{"id": s.id, "reason": s.reason} for s in workload.skipped] + skipped
    if left_out:
        cautions.append(
            Caution(
                "skipped-prompts",
                f"{len(left_out)} prompts were left out, the first: {left_out[0]['id']}, {left_out[0]['reason']}",
                "Mend or shorten them; run.json lists all.",
            )
        )
    return {
        "schema": SCHEMA,
        "status": "started",
        "command": command,
        "name": config.name or command,
        "config": config.as_dict(),
        "fingerprint": config.fingerprint(),
        "provenance": provenance(engine.device, config.dtype, threads),
        **engine.describe(),
        "workload": {
            "source": workload.source,
            "sha256": workload.sha256,
            "prompts_available": len(workload.prompts),
            "prompts_used": len(encoded),
            "categories": _by_category(workload.prompts, [item.prompt for item in encoded]),
            "skipped": left_out,
        },
        "trials_planned": len(encoded) * len(plan_arms(config, config.gamma)) * config.repeats,
        "warnings": [asdict(caution) for caution in cautions],
    }


def _by_category(available: Sequence[Prompt], used: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for column, prompts in (("available", available), ("used", used)):
        for prompt in prompts:
            counts.setdefault(prompt.category or "all", {"available": 0, "used": 0})[column] += 1
    return counts


def _unfinished(config: RunConfig, mode: str) -> Path | None:
    """The newest unfinished run of this very configuration; None to start anew."""
    if mode == "fresh":
        return None
    for folder in find_runs(Path(config.out)):
        try:
            stored = read_run(folder)
        except StoreError:
            continue
        if stored.status != "finished" and stored.run.get("fingerprint") == config.fingerprint():
            return folder
    if mode == "resume":
        raise StoreError(
            "No unfinished run with this configuration", where=config.out, cure="Leave out --resume to start one."
        )
    return None


def _same_workload(record: dict[str, Any], workload: Workload, folder: Path) -> None:
    if record["workload"]["sha256"] != workload.sha256:
        raise StoreError(
            "The workload has changed since this run began", where=str(folder), cure="Use --fresh to start a new run."
        )
