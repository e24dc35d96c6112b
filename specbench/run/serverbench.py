"""Requests to one server as trials, each on disk as soon as it is answered."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from specbench.backends.server.adapter import Ask, Reading, State, ask_of
from specbench.backends.server.asking import Asking
from specbench.backends.server.client import Client, run_async
from specbench.backends.server.failures import AnswerError, FailedError, RefusedError
from specbench.backends.server.nearness import divergence, logprobs_body
from specbench.backends.server.patience import PAUSE_S, Patience
from specbench.backends.server.provider import Up, key_of
from specbench.backends.server.traffic import drive
from specbench.config import RunConfig
from specbench.cost.load import OthersMeter, load_average
from specbench.records import Arm, Counters, Divergence, Load, Prompt, Stretch, Times, Trial
from specbench.run.bench import MAX_ATTEMPTS, WARMUP_TOKENS, Observer, joined
from specbench.store import RunWriter, TrialKey

# How long given-up requests may take to end, and how often to look.
DRAIN_S = 5.0
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to be asked once."""

    prompt: Prompt
    repeat: int


@dataclass
class Course:
    """One stretch while it runs."""

    number: int
    begun_s: float
    ended_s: float = 0.0
    answered: int = 0
    clean: bool = True
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class ServerBench:
    """Sends requests and stores trials; repeats, visibly, those that other processes disturbed. `refused` are the
    prompts that the server will not take, by id, with its reason; `failures` the requests that failed for good."""

    def __init__(
        self,
        config: RunConfig,
        writer: RunWriter,
        observer: Observer,
        attempts: dict[TrialKey, int],
        repeats_left: int,
        first_stretch: int,
    ) -> None:
        self.config = config
        self.writer = writer
        self.observer = observer
        self.attempts = attempts
        self.repeats_left = repeats_left
        self.refused: dict[str, str] = {}
        self._asking = Asking()
        self._patience = Patience()
        self.failures = self._patience.failures
        self.texts: dict[TrialKey, str] = {}
        self._next = first_stretch

    def look(self, up: Up) -> State:
        """What the server says of itself."""

        async def ask() -> State:
            async with self._client(up) as client:
                return await self._asking.look(client, up)

        return run_async(ask())

    def warm_up(self, up: Up, arm: Arm, prompts: Sequence[Prompt]) -> list[Reading]:
        """Short answers, one after the other, kept in the folder, marked, and counted nowhere. A prompt that is refused
        is not asked again. Raises EngineError where the server would refuse any other as well."""

        async def ask() -> list[Reading]:
            found = []
            async with self._client(up) as client:
                for prompt in prompts:
                    if prompt.id in self.refused:
                        continue
                    job = Job(prompt, 0)
                    answer = await self._answer(client, up, job, WARMUP_TOKENS, arm)
                    if prompt.id in self.refused:
                        await self._asking.require_any(client, up, self.config.sampling)
                    if answer is not None:
                        reading = answer[0]
                        self.writer.append(replace(self._trial(arm, job, reading, 0.0), warmup=True))
                        found.append(reading)
            return found

        return run_async(ask())

    def unread(self, up: Up, prompts: Sequence[Prompt]) -> set[str]:
        """What prompts have in vain beside their messages."""
        asks = [self._ask(Job(prompt, 0)) for prompt in prompts if prompt.id not in self.refused]

        async def ask() -> set[str]:
            async with self._client(up) as client:
                return await self._asking.unread(client, up, asks)

        return run_async(ask())

    def stretch(self, up: Up, arm: Arm, jobs: Sequence[Job]) -> None:
        """Every job once, under the arm's load."""
        todo = [job for job in jobs if job.prompt.id not in self.refused]
        if todo:
            run_async(self._stretch(up, arm, todo))

    async def _stretch(self, up: Up, arm: Arm, jobs: Sequence[Job]) -> None:
        async with self._client(up) as client:
            before = await self._counters(client, up)
            began_s = asyncio.get_running_loop().time()
            course = Course(self._next, began_s, ended_s=began_s)  # nothing answered takes no time
            self._next += 1

            async def send(job: Job, due_s: float) -> None:
                await self._counted(client, up, arm, job, due_s, course)

            async def fill(job: Job) -> None:
                try:
                    await self._asking.send(client, up, self._ask(job))
                except (FailedError, RefusedError):
                    await asyncio.sleep(PAUSE_S)

            first = jobs[0]
            await drive(
                jobs, arm.load, send=send, fill=fill, seed=f"{self.config.seed}/{first.prompt.id}/{first.repeat}"
            )
            if arm.load.concurrency > 1:
                await _drained(client, up)
            after = await self._counters(client, up)
        self.writer.append_stretch(
            Stretch(
                number=course.number,
                arm=arm,
                requests=course.answered,
                wall_s=course.ended_s - course.begun_s,
                counters=None if before is None or after is None else after.since(before),
                alone=course.clean and (arm.load.concurrency == 1 or arm.load.rate is not None),
            )
        )

    async def _counted(self, client: Client, up: Up, arm: Arm, job: Job, due_s: float, course: Course) -> None:
        """One job's trial on disk, and again while it was disturbed and repeats are left."""
        key = (job.prompt.id, arm, job.repeat)
        loop = asyncio.get_running_loop()
        while True:
            # Requests that overlap cannot each say who disturbed them.
            meter = OthersMeter(up.pid) if up.pid is not None and arm.load == Load() else None
            load_before = load_average()
            if meter:
                meter.start()
            answer = await self._answer(client, up, job, self.config.max_new_tokens, arm)
            if answer is None:
                course.clean = False
                return
            reading, sent_s, tries = answer
            if tries:  # its clock begins anew
                course.clean, due_s = False, sent_s
            others = meter.stop() if meter else None
            trial = replace(
                self._trial(arm, job, reading, sent_s - due_s),
                load_before=load_before,
                load_after=load_average(),
                other_cores=others,
                disturbed=others is not None and others > self.config.max_other_cores,
                attempt=self.attempts[key],
                begun_s=due_s - course.begun_s,
                stretch=course.number,
            )
            course.ended_s = max(course.ended_s, due_s + trial.times.total_s)
            course.answered += 1
            self.attempts[key] += 1
            async with course.writing:
                await asyncio.to_thread(self.writer.append, trial)
            self.texts[key] = reading.text
            self.observer.trial(trial)
            if not trial.disturbed or self.attempts[key] >= MAX_ATTEMPTS or self.repeats_left <= 0:
                return
            self.repeats_left -= 1
            due_s = loop.time()

    async def _answer(
        self, client: Client, up: Up, job: Job, max_tokens: int, arm: Arm
    ) -> tuple[Reading, float, int] | None:
        """The answer, when its request was sent, and after how many failures; None where it is refused or keeps
        failing. Raises EngineError after too many failures in a row."""
        ask = replace(self._ask(job), max_tokens=max_tokens)

        async def attempt() -> tuple[Reading, float]:
            sent_s = asyncio.get_running_loop().time()
            reading = up.adapter.read(await self._asking.send(client, up, ask))
            if reading.prompt_tokens is None:
                raise AnswerError("no usage.prompt_tokens")
            if reading.in_one_piece:
                raise RefusedError("its answer comes in one piece, so that nobody knows when which token was written")
            return reading, sent_s

        try:
            found = await self._patience.insist(attempt, up, prompt=job.prompt.id, arm=arm.label)
        except RefusedError as refused:
            self.refused[job.prompt.id] = refused.said("the server")
            return None
        return None if found is None else (*found[0], found[1])

    def _ask(self, job: Job) -> Ask:
        digest = hashlib.sha256(f"{self.config.seed}/{job.prompt.id}/{job.repeat}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") >> 1
        return ask_of(job.prompt, self.config, seed)

    def _trial(self, arm: Arm, job: Job, reading: Reading, waited_s: float) -> Trial:
        """The trial of an answer; `waited_s` passed between when it was due and when it was sent."""
        kept = self.config.keep_text
        return Trial(
            prompt_id=job.prompt.id,
            prompt_sha256=job.prompt.sha256,
            category=job.prompt.category,
            arm=arm,
            repeat=job.repeat,
            prompt_tokens=reading.prompt_tokens or 0,
            output_tokens=reading.output_tokens,
            output_sha256=text_hash(reading.text),
            finish=reading.finish,
            drafted=reading.drafted if arm.draft else (),
            accepted=reading.accepted if arm.draft else (),
            times=Times(waited_s + reading.first_s, None, None, None, None, waited_s + reading.last_s),
            prompt_text=joined(job.prompt) if kept else None,
            output_text=reading.text if kept else None,
            told=reading.told,
        )

    def recall(self, up: Up, arm: Arm, prompts: Sequence[Prompt], hashes: Mapping[TrialKey, str]) -> None:
        """Texts that an earlier session measured, asked again, untimed and uncounted. `hashes` are their sha256: a text
        that is not as it was is not taken."""

        async def ask() -> None:
            async with self._client(up) as client:
                for prompt in prompts:
                    key = (prompt.id, arm, 0)
                    answer = await self._answer(client, up, Job(prompt, 0), self.config.max_new_tokens, arm)
                    if answer is not None and text_hash(answer[0].text) == hashes[key]:
                        self.texts[key] = answer[0].text

        run_async(ask())

    def divergences(self, up: Up, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> None:
        """Where greedy texts of these prompts differ from the target alone: at which token, and how near a tie it was
        there, from the log-probabilities of the target alone asked once more."""

        async def ask() -> None:
            async with self._client(up) as client:
                for prompt, arm, own, other in self._parted(prompts, arms):
                    found = await self._divergence(client, up, prompt, own, other)
                    if found is not None:
                        self.writer.append_divergence((prompt.id, arm, 0), found)

        run_async(ask())

    def differ(self, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> bool:
        """Whether any text of these prompts differs from the target alone."""
        return any(True for _ in self._parted(prompts, arms))

    def _parted(self, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> Iterator[tuple[Prompt, Arm, str, str]]:
        """Each prompt and arm whose text differs from that of the target alone, and both texts, the target's first."""
        for prompt in prompts:
            for arm in arms:
                own = self.texts.get((prompt.id, Arm("baseline", load=arm.load), 0))
                other = self.texts.get((prompt.id, arm, 0))
                if own is not None and other is not None and own != other:
                    yield prompt, arm, own, other

    async def _divergence(self, client: Client, up: Up, prompt: Prompt, own: str, other: str) -> Divergence | None:
        body = logprobs_body(self._asking.body(up, self._ask(Job(prompt, 0))))
        try:
            found = divergence(await client.post(up.adapter.path, body), own, other)
        except (FailedError, RefusedError, ValueError):
            return None
        # Servers tell log-probabilities before a penalty, which chose another token.
        return replace(found, gap=None) if found is not None and self.config.sampling.penalised else found

    async def _counters(self, client: Client, up: Up) -> Counters | None:
        page = None if up.adapter.metrics is None else await client.get(up.adapter.metrics)
        try:
            return None if page is None else up.adapter.counters(page)
        except ValueError:
            return None

    def _client(self, up: Up) -> Client:
        return Client(up.url, key=key_of(self.config), timeout_s=self.config.request_timeout_s)


def text_hash(text: str) -> str:
    """The sha256 of an output, as its trial stores it."""
    return hashlib.sha256(text.encode()).hexdigest()


async def _drained(client: Client, up: Up) -> None:
    """Wait until the server has noticed that its uncounted requests were given up: they would run on into whatever is
    measured next."""
    for _ in range(round(DRAIN_S / LOOK_S)):
        await asyncio.sleep(LOOK_S)
        if not (await up.adapter.state(client.get)).busy:
            return
