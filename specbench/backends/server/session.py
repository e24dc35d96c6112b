"""Requests to servers as answers: which server is asked for what, and what servers say of themselves.

Where memory holds them, the servers of all arms run side by side; else each arm's server is started when its turn
comes. A server that takes long to start gets one block of everything.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from specbench.backends.base import (
    WARMUP_TOKENS,
    Answer,
    Answers,
    Events,
    Item,
    Job,
    Noticed,
    Output,
    Unit,
)
from specbench.backends.server import preflight
from specbench.backends.server.adapter import Ask, Completion, FailedError, RefusedError, State, ask_of
from specbench.backends.server.asking import PAUSE_S, TRIES, Asking, RetryPolicy, Slots, answered, caches
from specbench.backends.server.client import Client
from specbench.backends.server.openai import divergence, logprobs_body
from specbench.backends.server.preflight import require_plausible
from specbench.backends.server.provider import Provider, ServerHandle, client_of, engine_name, note_server, window_of
from specbench.backends.server.traffic import LagMeter, call, drive, stream
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, load_average
from specbench.drafters.spec import DraftSpec
from specbench.errors import EngineError
from specbench.records import Arm, Counters, Divergence, Load, Prompt, Window
from specbench.store import RunWriter

WARM_UPS = 2

# How long given-up requests may take to end, and how often to look.
DRAIN_S = 5.0
LOOK_S = 0.1


def _server_of(arm: Arm) -> Arm:
    """One server is started for an arm at every load."""
    return replace(arm, load=Load())


def _label(server: Arm) -> str:
    """How run.json calls the server: the target alone is one, however often it is measured."""
    return "baseline" if server.draft is None else server.label


@dataclass
class _Course:
    """One window while it runs."""

    begun_s: float
    ended_s: float = 0.0
    answered: int = 0
    clean: bool = True


class ServerSession:
    """Requests to one server after another, and what they showed."""

    def __init__(
        self,
        config: RunConfig,
        specs: dict[str, DraftSpec],
        provider: Provider,
        writer: RunWriter,
        say: Callable[[str], None],
    ) -> None:
        self.block_size = provider.prompts_per_start
        self.noticed = Noticed()
        self._config = config
        self._specs = specs
        self._provider = provider
        self._writer = writer
        self._say = say
        self._asking = Asking()
        self._patience = RetryPolicy(self.noticed)
        self._servers = ExitStack()
        self._ups: dict[Arm, ServerHandle] = {}
        self._warmed_with: list[Answer] = []  # not yet told
        self._prompts: list[Prompt] = []  # of the block
        self._looked: dict[str, State] = {}
        # How many sequences a server has that runs already nobody says.
        self._slots = Slots(1 if provider.launch is None else max(config.concurrency))
        self._warm: set[str] = set()
        if provider.kept_apart:
            say("The servers of all arms do not fit side by side (memory, `at_once_clients`): one runs after the other")

    def turn(self, load: Load) -> int | None:
        return window_of(load) if self._provider.at_once else None

    def warm(self, units: Sequence[Unit], arms: Sequence[Arm]) -> Iterator[Answer]:
        """Every server once, before anything is measured: what is wrong with the last must not show after an hour.
        Servers that are started only once are checked as they come."""
        if self._provider.prompts_per_start is None and self._provider.launch is not None:
            return
        for server in dict.fromkeys(map(_server_of, arms)):
            if server.kind != "baseline-again":
                self._say(f"Checking the server of {_label(server)}")
                with self.block(units, ()):
                    self._met(server)
                yield from self._warm_ups()

    @contextmanager
    def block(self, units: Sequence[Unit], arms: Sequence[Arm]) -> Iterator[None]:
        self._prompts = [unit.items[0].prompt for unit in units]
        with self._servers:
            if self._provider.at_once:
                for server in dict.fromkeys(map(_server_of, arms)):
                    self._met(server)
            yield
        self._ups.clear()

    def generate(self, jobs: Sequence[Job], arm: Arm) -> Events:
        up = self._met(_server_of(arm))
        yield from self._warm_ups()
        todo = self._open(jobs)
        if todo:
            yield from stream(partial(self._window, up, arm, todo))

    def recall(self, jobs: Sequence[Job], arm: Arm) -> Answers:
        up = self._met(_server_of(arm))

        async def ask(put: Callable[[Answer], None]) -> None:
            async with self._client(up) as client:
                for job in self._open(jobs):
                    found = await self._answer(client, up, job, self._config.max_new_tokens, arm)
                    if found is not None:
                        put(answered(job, arm, found[0], self._config))

        yield from stream(ask)

    def divergence(self, unit: Unit, own: Output, other: Output) -> Divergence | None:
        """From the log-probabilities of the target alone, asked once more."""
        up = self._met(Arm("baseline"))
        assert isinstance(own, tuple) and isinstance(other, tuple)
        both = list(zip(own, other, strict=True))
        turn = next(number for number, (mine, text) in enumerate(both) if mine != text)

        async def ask() -> Divergence | None:
            async with self._client(up) as client:
                body = logprobs_body(self._asking.body(up, self._asks(Job(unit, 0))[turn]))
                try:
                    return divergence(await client.post(up.adapter.path, body), *both[turn])
                except (FailedError, RefusedError, ValueError):
                    return None

        found = call(ask)
        # Servers tell log-probabilities before a penalty, which chose another token.
        return replace(found, gap=None) if found is not None and self._config.sampling.penalised else found

    def _open(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.unit.id not in self.noticed.refused]

    def _met(self, server: Arm) -> ServerHandle:
        """The server, up, looked at and warm. Where memory holds but one, the one that runs makes room."""
        if server not in self._ups:
            if not self._provider.at_once:
                self._servers.close()
                self._ups.clear()
            up = self._servers.enter_context(self._provider.up(server.draft, server.gamma, self._writer.folder))
            self._warmed_with += self._checked(up, server)
            self._ups[server] = up
        return self._ups[server]

    def _warm_ups(self) -> Iterator[Answer]:
        while self._warmed_with:
            yield self._warmed_with.pop(0)

    def _checked(self, up: ServerHandle, server: Arm) -> list[Answer]:
        """Look at the server, warm it, and refuse one whose times would mean nothing."""
        label = _label(server)
        # One that runs already is looked at and warmed once, one that is started or may have to load, each time.
        if up.pid is None and not up.shared and label in self._warm:
            return []
        state = call(lambda: self._look(up))
        first = label not in self._looked
        answers = self._warmed(up, server, WARM_UPS if first else 1)
        if first:
            self._looked[label] = state = replace(call(lambda: self._look(up)), busy=state.busy)
            # The other server may be of another version, and the run has one name of its engine.
            name = engine_name(self._provider, state) if server.draft is None else None
            note_server(self._writer, label, state, name)
        readings = [reading for _, (reading,) in answers]
        if server.draft is None or server.gamma is None:
            found = preflight.check_alone(state, up.url)
        else:
            spec, alone = self._specs[server.draft], self._looked.get("baseline")
            named_apart = self._config.served_names[1] is not None
            found = preflight.check_speculating(state, None if named_apart else alone, server.gamma, up.url)
            if readings:
                started = up.pid is not None
                found += preflight.check_drafts(readings, state, spec, server.gamma, up.url, started=started)
        if first:
            found += preflight.check_read(call(lambda: self._unread(up)), up.url)
        found += preflight.check_defaults(state)
        if not self._config.sessions:
            found += preflight.check_prefix_cache(readings, state)
        self.noticed.cautions += found
        self._warm.add(label)
        arm = replace(server, load=self._config.loads[0])
        return [answered(job, arm, found, self._config, warmup=True) for job, found in answers]

    def _warmed(self, up: ServerHandle, server: Arm, count: int) -> list[tuple[Job, Sequence[Completion]]]:
        """Short answers, one after the other, to the first prompt that the server takes, with room for a whole round.
        Raises EngineError where it would refuse any other as well."""
        tokens = max(WARMUP_TOKENS, (server.gamma or 0) + 4)

        async def ask() -> list[tuple[Job, Sequence[Completion]]]:
            found: list[tuple[Job, Sequence[Completion]]] = []
            async with self._client(up) as client:
                for prompt in self._prompts:
                    job = Job(Unit(prompt.id, prompt.sha256, prompt.category, (Item(prompt, None),)), 0)
                    for _ in range(count):
                        if prompt.id in self.noticed.refused:
                            break
                        answer = await self._answer(client, up, job, tokens, server)
                        if prompt.id in self.noticed.refused:
                            await self._require_any(client, up, prompt)
                        if answer is not None:
                            found.append((job, answer[0]))
                    if prompt.id not in self.noticed.refused:
                        break
            return found

        return call(ask)

    async def _require_any(self, client: Client, up: ServerHandle, refused: Prompt) -> None:
        """Raises EngineError where it was not the prompt that was refused, but whatever we ask."""
        try:
            await self._asking.require_any(client, up, self._config.sampling)
        except EngineError:
            del self.noticed.refused[refused.id]
            raise

    async def _look(self, up: ServerHandle) -> State:
        async with self._client(up) as client:
            return await self._asking.look(client, up)

    async def _unread(self, up: ServerHandle) -> set[str]:
        asks = [self._ask_prompt(prompt, 0) for prompt in self._prompts if prompt.id not in self.noticed.refused]
        async with self._client(up) as client:
            return await self._asking.unread(client, up, asks)

    async def _window(
        self, up: ServerHandle, arm: Arm, jobs: Sequence[Job], put: Callable[[Answer | Window], None]
    ) -> None:
        """Every job once, under the arm's load; the server's counters before and after."""
        async with self._client(up) as client:
            before = await _counters(client, up)
            if arm.load.concurrency > 1:
                await client.open(arm.load.concurrency)
            began_s = asyncio.get_running_loop().time()
            course = _Course(began_s, ended_s=began_s)  # nothing answered takes no time

            async def send(job: Job, due_s: float) -> None:
                answer = await self._timed(client, up, arm, job, due_s, course)
                if answer is not None:
                    put(answer)

            async def fill(job: Job) -> None:
                try:
                    with self._slots.one() as slot:
                        for ask in self._asks(job, slot):
                            await self._asking.send(client, up, ask)
                except (FailedError, RefusedError):
                    await asyncio.sleep(PAUSE_S)

            first = jobs[0]
            seed = f"{self._config.seed}/{first.unit.id}/{first.repeat}"
            with LagMeter() as meter:
                await drive(jobs, arm.load, send=send, fill=fill, seed=seed)
            if arm.load.concurrency > 1:
                await _drained(client, up)
            after = await _counters(client, up)
        put(
            Window(
                number=0,
                arm=arm,
                requests=course.answered,
                wall_s=course.ended_s - course.begun_s,
                counters=None if before is None or after is None else after.since(before),
                alone=course.clean and (arm.load.concurrency == 1 or arm.load.rate is not None),
                lag=meter.found(),
            )
        )

    async def _timed(
        self, client: Client, up: ServerHandle, arm: Arm, job: Job, due_s: float, course: _Course
    ) -> Answer | None:
        # Requests that overlap cannot each say who disturbed them.
        meter = OthersMeter(up.pid) if up.pid is not None and arm.load == Load() else None
        load_before = load_average()
        if meter:
            meter.start()
        answer = await self._answer(client, up, job, self._config.max_new_tokens, arm)
        if answer is None:
            course.clean = False
            return None
        readings, sent_s, tries = answer
        if tries:  # its clock begins anew
            course.clean, due_s = False, sent_s
        others = meter.stop() if meter else None
        found = answered(
            job,
            arm,
            readings,
            self._config,
            waited_s=sent_s - due_s,
            load_before=load_before,
            load_after=load_average(),
            other_cores=others,
            begun_s=due_s - course.begun_s,
        )
        course.ended_s = max(course.ended_s, due_s + found.trial.times.total_s)
        course.answered += 1
        return found

    async def _answer(
        self, client: Client, up: ServerHandle, job: Job, max_tokens: int, arm: Arm
    ) -> tuple[Sequence[Completion], float, int] | None:
        """The answers to the job's prompts, one after the other, when the first request was sent, and after how many
        failures; None where one is refused or keeps failing. Raises EngineError after too many failures in a row."""
        readings: list[Completion] = []
        began_s, failures = 0.0, 0
        with self._slots.one() as slot:
            for ask in self._asks(job, slot):
                found = await self._reading(client, up, job, replace(ask, max_tokens=max_tokens), arm)
                if found is None:
                    return None
                reading, sent_s, tries = found
                began_s = began_s if readings else sent_s
                failures += tries
                readings.append(reading)
        return readings, began_s, failures

    async def _reading(
        self, client: Client, up: ServerHandle, job: Job, ask: Ask, arm: Arm
    ) -> tuple[Completion, float, int] | None:
        left = TRIES

        async def attempt() -> tuple[Completion, float]:
            nonlocal left
            left -= 1
            sent_s = asyncio.get_running_loop().time()
            chunks = await self._asking.send(client, up, ask)
            async with client.turn:
                await asyncio.sleep(0)
                reading = up.adapter.read(chunks)
            if reading.at_once and left:
                raise FailedError("its tokens came at once")  # perhaps we were late
            require_plausible(reading, ask.max_tokens)
            return reading, sent_s

        found = await self._patience.insist(attempt, up, prompt=job.unit.id, arm=arm.label, who="the server")
        return None if found is None else (*found[0], found[1])

    def _asks(self, job: Job, slot: int | None = None) -> list[Ask]:
        """A request for each prompt of a job: one, or the turns of a conversation."""
        asks = [self._ask_prompt(item.prompt, job.repeat) for item in job.unit.items]
        if not self._config.sessions:
            return asks
        return [replace(ask, cache=cache) for ask, cache in zip(asks, caches(len(asks), slot), strict=True)]

    def _ask_prompt(self, prompt: Prompt, repeat: int) -> Ask:
        digest = hashlib.sha256(f"{self._config.seed}/{prompt.id}/{repeat}".encode()).digest()
        return ask_of(prompt, self._config, int.from_bytes(digest[:4], "big") >> 1)

    def _client(self, up: ServerHandle) -> Client:
        return client_of(self._config, up.url)


async def _counters(client: Client, up: ServerHandle) -> Counters | None:
    page = None if up.adapter.metrics is None else await client.get(up.adapter.metrics)
    try:
        return None if page is None else up.adapter.counters(page)
    except ValueError:
        return None


async def _drained(client: Client, up: ServerHandle) -> None:
    """Wait until the server has noticed that its uncounted requests were given up: they would run on into whatever is
    measured next."""
    for _ in range(round(DRAIN_S / LOOK_S)):
        await asyncio.sleep(LOOK_S)
        try:
            if not (await up.adapter.state(client.get)).busy:
                return
        except ValueError:  # it does not tell
            return
