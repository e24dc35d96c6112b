"""A run on servers: plan -> skip what is done -> start or connect -> ask -> store.

Prompts go in blocks. For each block the servers of all arms are started side by side and take turns prompt by prompt;
where memory holds but one, they are started one after the other. The order is drawn anew each time, so that drift of
the machine falls on all arms alike. A server that takes long to start gets one block of everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from specbench.backends.server import preflight
from specbench.backends.server.adapter import Reading, State
from specbench.backends.server.provider import Provider, Up, provider_of
from specbench.config import RunConfig
from specbench.drafters.spec import DraftSpec, parse_draft, with_cutoff
from specbench.errors import ConfigError
from specbench.records import Arm, ArmKind, Caution, Prompt
from specbench.run.bench import Observer
from specbench.run.resume import opened, progress_of, threads_of, unfinished
from specbench.run.runfile import marked
from specbench.run.servedfile import begun, engine, note_losses, note_server, nothing_done, refused_before
from specbench.run.serverbench import Job, ServerBench, text_hash
from specbench.run.session import shuffled
from specbench.run_record import Command
from specbench.store import RunWriter, StoredRun, TrialKey, read_run, trial_key

WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Serving:
    """What one server is started for: an arm at every load."""

    kind: ArmKind
    draft: str | None = None
    gamma: int | None = None

    def arms(self, config: RunConfig) -> list[Arm]:
        return [Arm(self.kind, self.draft, self.gamma, load) for load in config.loads]

    @property
    def label(self) -> str:
        return "baseline" if self.draft is None else f"{self.draft} gamma {self.gamma}"


def serve(
    config: RunConfig, command: Command, gammas: Sequence[int], observer: Observer, *, mode: str = "auto"
) -> Path:
    """Run or continue on servers; returns the run folder, in which every answered request already lies. `mode` is as
    for a run in process. KeyboardInterrupt passes through after the folder is marked and the servers are stopped."""
    drafts = tuple(with_cutoff(draft, config.cutoff) for draft in config.draft)
    config = replace(config, gamma=tuple(gammas), draft=drafts)
    specs = {draft: parse_draft(draft) for draft in drafts}
    _askable(config)
    earlier = unfinished(config, command, mode)
    provider = provider_of(config, specs, tuple(gammas), partial(threads_of, config, earlier))
    arms = 2 + len(config.draft) * len(config.gamma)
    prompts, record = begun(config, command, provider, arms)
    folder, record = opened(config, record, earlier, observer)
    with RunWriter(folder, record) as writer, marked(writer):
        _Serve(config, specs, provider, writer, observer).run(prompts)
    return folder


def _askable(config: RunConfig) -> None:
    """Refuse what no server can be asked for."""
    if config.server is not None and len(config.gamma) != 1:
        raise ConfigError(
            f"A running server has one gamma, not {len(config.gamma)}",
            where="--gamma",
            cure="Name the one that it was started with, or let specbench start it with --launch.",
        )
    if config.server is not None and (config.spec_server is None or len(config.draft) != 1):
        what = "one that speculates" if config.spec_server is None else "one draft, which it runs with"
        raise ConfigError("A running server is compared with another", where="--spec-server", cure=f"Name {what}.")
    if config.draft_server is not None:
        raise ConfigError(
            "A server of the draft alone is asked in a replay", where="--draft-server", cure="Add --replay-only."
        )


class _Serve:
    """One session of a run."""

    def __init__(
        self,
        config: RunConfig,
        specs: dict[str, DraftSpec],
        provider: Provider,
        writer: RunWriter,
        observer: Observer,
    ) -> None:
        self.config = config
        self.specs = specs
        self.provider = provider
        self.writer = writer
        self.observer = observer
        stored = read_run(writer.folder)
        attempts, self.done = progress_of(stored.trials)
        self._hashes = {trial_key(trial): trial.output_sha256 for trial in stored.trials if not trial.warmup}
        self._noted = {trial_key(trial) for trial in stored.trials if trial.diverged is not None}
        total = writer.run.trials_planned or 0
        self.bench = ServerBench(config, writer, observer, attempts, 3 + total // 10, _next_stretch(stored))
        self.bench.refused = refused_before(writer.run)
        self._cautions: list[Caution] = []
        self._looked: dict[str, State] = {}
        self._warm: set[str] = set()

    def run(self, prompts: Sequence[Prompt]) -> None:
        speculative = [Serving("speculative", draft, g) for draft in self.config.draft for g in self.config.gamma]
        servings = [Serving("baseline"), Serving("baseline-again"), *speculative]
        self._check_all(servings, prompts)
        self.observer.begin(self.writer.run.trials_planned or 0, len(self.done))
        size = self.provider.prompts_per_start or len(prompts)
        try:
            for begin in range(0, len(prompts), size):
                self._block(prompts[begin : begin + size], servings)
            self._require_trials(prompts)
        finally:
            self._note()

    def _require_trials(self, prompts: Sequence[Prompt]) -> None:
        """Raises EngineError for a run without a single measured prompt."""
        measured = {key[0] for key, count in self.bench.attempts.items() if count}
        if not any(prompt.id in measured and prompt.id not in self.bench.refused for prompt in prompts):
            raise nothing_done(self.config, prompts, self.bench.refused, self.bench.failures)

    def _check_all(self, servings: Sequence[Serving], prompts: Sequence[Prompt]) -> None:
        """Every server once, before anything is measured: what is wrong with the last must not show after an hour.
        Servers that are started only once are checked as they come."""
        if self.provider.prompts_per_start is None and self.provider.launch is not None:
            return
        for serving in servings:
            if serving.kind != "baseline-again":
                self.observer.say(f"Checking the server of {serving.label}")
                with self._server(serving, prompts):
                    pass

    def _block(self, block: Sequence[Prompt], servings: Sequence[Serving]) -> None:
        """Every arm over the block's prompts. Servers that run side by side take turns prompt by prompt."""
        todo = [s for s in servings if any(self._todo(arm, block) for arm in s.arms(self.config))]
        with ExitStack() as stack:
            ups: dict[Serving, Up] = {}
            if self.provider.at_once:
                ups = {s: stack.enter_context(self._server(s, block)) for s in shuffled(todo, self._turn(block))}
            for turn in [[prompt] for prompt in block] if self.provider.at_once else [block]:
                for serving in shuffled(todo, self._turn(turn)):
                    with nullcontext(ups[serving]) if ups else self._server(serving, turn) as up:
                        for arm in serving.arms(self.config):
                            self.bench.stretch(up, arm, self._todo(arm, turn))
        if self.config.sampling.greedy:
            arms = [arm for serving in servings[1:] for arm in serving.arms(self.config)]
            self._recall(block, servings, arms)
            if self.bench.differ(block, arms):
                with self._server(servings[0], block) as up:
                    self.bench.divergences(up, block, arms)
        self.bench.texts.clear()

    def _recall(self, block: Sequence[Prompt], servings: Sequence[Serving], arms: Sequence[Arm]) -> None:
        """Ask again for texts of an earlier session that part from the target's own, where that ended before anybody
        noted at which token: of a text no more is stored than its hash."""
        if not self.done:
            return
        now = self._hashes | {key: text_hash(text) for key, text in self.bench.texts.items()}
        lost: set[TrialKey] = set()
        for prompt in block:
            for arm in arms:
                pair = ((prompt.id, Arm("baseline", load=arm.load), 0), (prompt.id, arm, 0))
                own, other = (now.get(key) for key in pair)
                if None not in (own, other) and own != other and pair[1] not in self._noted:
                    lost |= {key for key in pair if key not in self.bench.texts}
        for serving in servings:
            for arm in serving.arms(self.config):
                again = [prompt for prompt in block if (prompt.id, arm, 0) in lost]
                if again:
                    with self._server(serving, block) as up:
                        self.bench.recall(up, arm, again, now)

    def _turn(self, prompts: Sequence[Prompt]) -> str:
        """What draws the order of the servers for these prompts."""
        return f"{self.config.seed}/{prompts[0].id}"

    def _todo(self, arm: Arm, block: Sequence[Prompt]) -> list[Job]:
        keys: list[tuple[TrialKey, Job]] = [
            ((prompt.id, arm, repeat), Job(prompt, repeat))
            for repeat in range(self.config.repeats)
            for prompt in block
            if prompt.id not in self.bench.refused
        ]
        return [job for key, job in keys if key not in self.done]

    @contextmanager
    def _server(self, serving: Serving, prompts: Sequence[Prompt]) -> Iterator[Up]:
        with self.provider.up(serving.draft, serving.gamma, self.writer.folder) as up:
            yield self._checked(up, serving, prompts)

    def _checked(self, up: Up, serving: Serving, prompts: Sequence[Prompt]) -> Up:
        """Look at the server, warm it, and refuse one whose times would mean nothing."""
        label = serving.label
        # One that runs already is looked at and warmed once, one that is started or may have to load, each time.
        if up.pid is None and not up.shared and label in self._warm:
            return up
        state = self.bench.look(up)
        first = label not in self._looked
        answers = self._warmed(up, serving, prompts, WARM_UPS if first else 1)
        if first:
            self._looked[label] = state = replace(self.bench.look(up), busy=state.busy)
            note_server(self.writer, label, state, engine(self.provider, state))
        if serving.draft is None or serving.gamma is None:
            found = preflight.check_alone(state, up.url)
        else:
            spec, alone = self.specs[serving.draft], self._looked.get("baseline")
            named_apart = self.config.served_names[1] is not None
            found = preflight.check_speculating(state, None if named_apart else alone, serving.gamma, up.url)
            if answers:
                found += preflight.check_drafts(answers, state, spec, serving.gamma, up.url)
        if first:
            found += preflight.check_read(self.bench.unread(up, prompts), up.url)
        found += preflight.check_defaults(state)
        self._cautions += [*found, *preflight.check_prefix_cache(answers, state)]
        self._warm.add(label)
        return up

    def _warmed(self, up: Up, serving: Serving, prompts: Sequence[Prompt], count: int) -> list[Reading]:
        """Short answers to the first prompt that the server takes."""
        for prompt in prompts:
            answers = self.bench.warm_up(up, serving.arms(self.config)[0], [prompt] * count)
            if prompt.id not in self.bench.refused:
                return answers
        return []

    def _note(self) -> None:
        """Put into run.json what the session noticed."""
        note_losses(self.writer, self.bench.refused, self.bench.failures, self._cautions)


def _next_stretch(stored: StoredRun) -> int:
    used = [trial.stretch for trial in stored.trials if trial.stretch is not None]
    return max([*used, *(stretch.number for stretch in stored.stretches)], default=-1) + 1
