"""Recorded answers scored by the workers of a Ray cluster, or of Ray on this machine: `--ray`.

What goes to a worker is the number of a block of answers, and what comes back are acceptances: every worker reads the
log by itself, so that no text passes through Ray, its logs or what it spills. Ray Data hands the blocks out, restarts
workers that died with the block they had, and keeps the order, so that the run is what one process writes.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from shutil import rmtree
from typing import Any

import psutil

from specbench.acceptance.positions import PositionWriter
from specbench.acceptance.replay import Text
from specbench.backends.base import Admitted, Noticed, Observer
from specbench.config import RunConfig
from specbench.drafters import parse_draft
from specbench.errors import ConfigError, EngineError, SpecbenchError
from specbench.run.losses import Losses
from specbench.run.replay import ScoreKey, texts_of
from specbench.run_record import AnswerFacts, AnswersVerified, RunRecord
from specbench.store import RunWriter
from specbench.workload.answers import BLOCK, SAMPLE, AnswerLog
from specbench.workload.replies import Recorded

LOCAL = "local"

# Of Ray on this machine; one a process, which Ray remembers.
_TOKEN = secrets.token_hex(32)

# Of results that wait to be stored; what is more lies in the private folder.
_STORE_BYTES = 512 << 20
# A socket's path has at most 107 characters, of which Ray takes so many below its folder.
_SOCKET_ROOM = 107 - 64


@dataclass(repr=False)  # Ray may log how a worker was made
class Job:
    """What a worker needs to know. `record` is run.json of the run, once it began."""

    config: RunConfig
    chosen: frozenset[int] | None
    threads: int
    record: RunRecord | None


@dataclass
class Block:
    """What came of one block: `added` are the facts of its answers alone."""

    number: int
    texts: list[Text]
    added: AnswerFacts
    noticed: Noticed


class Worker:
    """Loads the models with its first block; each worker has one set of them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._backend: Any = None
        self._blocks: Iterator[list[Recorded]] = iter(())
        self._next = -1

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        return {"found": _guarded(lambda: self._scored(int(row["number"]), bool(row["left"])))}

    def _scored(self, number: int, left: bool) -> Block:
        config = self._job.config
        if self._backend is None:
            self._backend, _ = _loaded(self._job)
        backend = self._backend
        backend.noticed, backend.facts = Noticed(), AnswerFacts()
        items = backend.read(self._block(number), number * BLOCK)
        texts: list[Text] = []
        if left:
            with backend.scoring() as scoring:
                for batch in scoring.batches(items):
                    texts += texts_of(scoring, batch, dict.fromkeys(config.draft, batch), 0, config)
        return Block(number, texts, backend.facts, backend.noticed)

    def _block(self, number: int) -> list[Recorded]:
        """Forward in the log, and from its beginning where a block comes again that went before."""
        if not 0 <= self._next <= number:
            self._blocks, self._next = _log(self._job).blocks(), 0
        block = next(islice(self._blocks, number - self._next, None))
        self._next = number + 1
        return block


def _loaded(job: Job) -> tuple[Any, Admitted]:
    """The models of a job, loaded here and held against the first answers."""
    from specbench.backends.local.recorded import RecordedBackend

    backend = RecordedBackend(job.config, threads=lambda: job.threads, earlier=job.record, say=_nothing)
    return backend, backend.admit(list(islice(_log(job), SAMPLE)))


def _admitted(job: Job) -> bytes:
    return _guarded(lambda: replace(_loaded(job)[1], items=[]))


def _verified(job: Job, numbers: Sequence[int]) -> bytes:
    return _guarded(lambda: _loaded(job)[0].verify(_log(job).numbered(numbers)))


def _log(job: Job) -> AnswerLog:
    log = AnswerLog.of(job.config)
    log.chosen = job.chosen
    return log


def _nothing(line: str) -> None:
    """Said by whoever started the workers."""


def _guarded(call: Callable[[], Any]) -> bytes:
    """What `call` gives, or what it raises: Ray would log an error with its message, which may quote a text."""
    found: Any
    try:
        found = call()
    except SpecbenchError as error:
        found = error.what, error.where, error.hint, type(error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        found = f"A worker failed: {type(error).__name__} in {Path(last.filename).name}:{last.lineno}", None, None, None
    return pickle.dumps(found)


def _opened(found: bytes) -> Any:
    value = pickle.loads(found)  # noqa: S301 - written by our own workers
    if isinstance(value, tuple):
        what, where, hint, kind = value
        raise (kind or EngineError)(what, where=where, hint=hint)
    return value


class Workers:
    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self.noticed = Noticed()
        self.facts = AnswerFacts()
        self._job = job
        self._say = say
        self._each = _resources(job)

    def admit(self) -> Admitted:
        self._say("Loading the models in a worker")
        found: Admitted = self._asked(_admitted, self._job)
        return found

    def verify(self, numbers: Sequence[int]) -> AnswersVerified:
        found: AnswersVerified = self._asked(_verified, self._job, numbers)
        return found

    def score(
        self,
        blocks: Iterable[tuple[int, object, bool]],
        writer: RunWriter,
        total: int,
        scored: set[ScoreKey],
        positions: PositionWriter,
        losses: Losses,
        observer: Observer,
    ) -> None:
        """Every block once; texts that are `scored`, in an earlier session or another block, are dropped."""
        import ray.data

        self._job.record = writer.run
        every = [{"number": number, "left": left} for number, _, left in blocks]
        observer.begin(total * len(self._job.config.draft), len(scored))
        done, stored = len(scored), set[int]()
        if every:
            rows = ray.data.from_items(every, override_num_blocks=len(every))
            count = min(self._count(), len(every))
            self._say(f"{len(every):,} blocks of up to {BLOCK} answers, {count} worker{'s' if count > 1 else ''}")
            found = rows.map(Worker, fn_constructor_args=(self._job,), concurrency=count, **self._each)
            for row in found.iter_rows():
                block: Block = _opened(row["found"])
                if block.number in stored:
                    raise EngineError(f"Ray gave block {block.number} twice", where="--ray", hint="Run again.")
                stored.add(block.number)
                done += self._stored(block, scored, positions, losses, observer)
        if len(stored) < len(every):
            raise EngineError(f"Ray lost {len(every) - len(stored)} blocks", where="--ray", hint="Run the same again.")
        losses.end()
        losses.require_any(done > 0, list(self.noticed.refused), self.noticed)

    def _stored(
        self, block: Block, scored: set[ScoreKey], positions: PositionWriter, losses: Losses, observer: Observer
    ) -> int:
        self.facts = with_counts(self.facts, block.added, self.facts)
        self.noticed.refused |= block.noticed.refused
        self.noticed.cautions += block.noticed.cautions
        before = len(scored)
        for text in block.texts:
            key = text.prompt_id, text.draft, text.repeat
            if key not in scored:
                scored.add(key)
                positions.append(text)
                losses.fitted()
        new = len(scored) - before
        observer.advance(new)
        for name, tokens in block.noticed.too_long.items():
            losses.too_long(name, tokens)
        return new

    def _asked(self, function: Callable[..., bytes], *args: object) -> Any:
        import ray

        return _opened(ray.get(ray.remote(**self._each)(function).remote(*args)))

    def _count(self) -> int:
        import ray

        there = ray.cluster_resources()
        return max(1, int(min(there.get(name[4:-1].upper(), 0) / size for name, size in self._each.items())))


def _resources(job: Job) -> dict[str, float]:
    """What one worker takes of a cluster: a GPU where models run on one, else as many processors as it has threads."""
    import ray

    models = any(parse_draft(draft).model is not None for draft in job.config.draft)
    if models and job.config.device in ("auto", "cuda") and ray.cluster_resources().get("GPU"):
        return {"num_cpus": 1, "num_gpus": 1}
    return {"num_cpus": job.threads}


def with_counts(was: AnswerFacts, *counted: AnswerFacts) -> AnswerFacts:
    """The facts with what was counted while answers were read, added up."""
    names = ("answers", "tokens", "from_log", "unended", "round_trips", "round_trip_tokens", "changed_tokens")
    return replace(was, **{name: sum(getattr(one, name) for one in counted) for name in names})


def require_ray() -> None:
    """Raises ConfigError where it is not installed."""
    if find_spec("ray") is None:
        raise ConfigError("Ray is not installed", where="--ray", hint="Run: pip install 'specbench-cli[ray]'.")


@contextmanager
def workers(
    config: RunConfig, log: AnswerLog, earlier: RunRecord | None, say: Callable[[str], None]
) -> Iterator[Workers]:
    """Ray on this machine, in a private folder that is deleted afterwards, or the cluster at an address."""
    chosen = None if log.chosen is None else frozenset(log.chosen)
    threads = config.threads or (None if earlier is None else earlier.provenance.threads) or 1
    where = config.ray or LOCAL
    # Nothing is reported to Ray's makers, and what a reader of ours need not know is not said.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "error"}
    if where != LOCAL and _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` does so by itself, a driver does not
    require_ray()
    import ray
    import ray.data
    import ray.exceptions

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    said: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    if where != LOCAL:
        _require_cluster(where)
    with _folder(Path(config.out)) as folder, _token_for(where):
        say("Starting Ray" if where == LOCAL else f"Joining Ray at {where}")
        here = {"_temp_dir": str(folder), "object_store_memory": _STORE_BYTES} if where == LOCAL else {"address": where}
        try:
            ray.init(**said, **here)
        except Exception as error:  # Ray raises plain ones
            raise _no_cluster(where, type(error).__name__) from None
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.execution_options.preserve_order = True
            yield Workers(Job(config, chosen, threads, earlier), say)
        except ray.exceptions.RayError as error:
            # Its message may hold what a worker said.
            raise EngineError(
                f"Ray failed ({type(error).__name__})",
                where=f"--ray {where}",
                hint="What was scored is kept; run the same command again.",
            ) from None
        finally:
            ray.shutdown()


def _has_token() -> bool:
    """Whether Ray finds a token here, which clusters ask for that were started where there was one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").is_file()


@contextmanager
def _token_for(where: str) -> Iterator[None]:
    """A token for Ray on this machine where it finds none: it would write one into the home and leave it there."""
    if where != LOCAL or _has_token():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    try:
        yield
    finally:
        os.environ.pop("RAY_AUTH_TOKEN", None)


def _require_cluster(where: str) -> None:
    """Ray itself looks for minutes. Raises ConfigError where nothing answers at the address HOST:PORT."""
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if where == "auto":
        return
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(where, type(error).__name__) from None


def _no_cluster(where: str, why: str) -> ConfigError:
    return ConfigError(
        f"Ray does not start or answer ({why})",
        where=f"--ray {where}",
        hint="Try again on a less busy machine, or name the address HOST:PORT that ray start printed.",
    )


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A private folder for what Ray writes, under a path that is short enough for its sockets. What a killed process
    left is deleted, too."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(".ray-*-*"):
        if not psutil.pid_exists(int(old.name.split("-")[1])):
            rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".ray-{os.getpid()}-", dir=out, ignore_cleanup_errors=True) as private:
        inside = Path(private).resolve()
        if len(str(inside)) <= _SOCKET_ROOM:
            yield inside
            return
        with tempfile.TemporaryDirectory(prefix="ray-") as short:
            link = Path(short) / "r"
            link.symlink_to(inside)
            yield link
