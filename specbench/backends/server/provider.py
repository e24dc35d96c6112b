"""Where the servers of a run come from: they run already, or one is started for every arm."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from specbench.backends.server.adapter import State
from specbench.backends.server.client import Client, is_local
from specbench.backends.server.launch import (
    LaunchFile,
    Setting,
    command,
    engine_version,
    environment,
    find_launch,
    require_draft,
)
from specbench.backends.server.launched import Launched
from specbench.backends.server.openai import OpenAI
from specbench.backends.server.preflight import ADAPTERS, detect, model_name
from specbench.backends.server.traffic import call
from specbench.config import RunConfig
from specbench.drafters.spec import DraftSpec
from specbench.errors import ConfigError, EngineError, StoreError
from specbench.models.gguf import server_bytes
from specbench.models.heads import kind_of
from specbench.models.load import model_file
from specbench.models.memory import available_bytes
from specbench.records import Load
from specbench.run_record import ModelFacts, ServedBy
from specbench.store import RunWriter
from specbench.text import clean

LOGS = "server-logs"

# Answers for each client in a window, where the arms of several clients take turns: it begins and ends with fewer
# clients than it is about, and has to be long against that.
WINDOW = 4
# The same in seconds, for requests that arrive at random: so long until queues are what they stay.
OPEN_WINDOW_S = 30.0

# Sequences side by side for requests that arrive at random.
OPEN_SLOTS = 8

# Of free memory, what servers side by side may take.
FREE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class ServerHandle:
    """A server that answers. `pid` is its process where we started it, `model` the name by which it knows its model.
    One with `shared` answers for several arms under several names, and may have to load what is asked for next."""

    url: str
    adapter: OpenAI
    pid: int | None = None
    model: str | None = None
    shared: bool = False


def window_of(load: Load) -> int:
    """How many requests under this load one arm answers before the next has its turn."""
    if load.rate is not None:
        return max(WINDOW * OPEN_SLOTS, math.ceil(load.rate * OPEN_WINDOW_S))
    return 1 if load.concurrency == 1 else WINDOW * load.concurrency


class Provider(ABC):
    """`adapter` reads the answers. `prompts_per_start`: after how many prompts servers are started anew (None: never),
    or, where only one is up at a time, the next arm's; `at_once`: whether those of all arms are up side by side, and
    take turns window by window, `kept_apart`: whether they are not though they were to be. `models` are the facts of
    target and drafts for run.json, `where` names the machine if it is not this one. `launch` is the launch file's name,
    `version` what its own command says."""

    adapter: OpenAI
    models: tuple[ModelFacts, dict[str, ModelFacts]]
    prompts_per_start: int | None
    at_once = False
    kept_apart = False
    where: str | None = None
    launch: str | None = None
    version: str | None = None
    threads: int | None = None

    @abstractmethod
    def up(self, draft: str | None, gamma: int | None, folder: Path) -> AbstractContextManager[ServerHandle]:
        """A server for the target alone (None) or a draft at one gamma."""

    @abstractmethod
    def alone(self, draft: str | None, folder: Path) -> AbstractContextManager[ServerHandle]:
        """A server for the target alone (None) or for a draft's model alone."""


class Running(Provider):
    """Two servers that run already, one with the target alone and one that speculates. The client's view of them is all
    there is: neither their machine nor their models are known but by name."""

    def __init__(self, config: RunConfig, specs: dict[str, DraftSpec]) -> None:
        assert config.server is not None
        self._config = config
        first, second = config.served_names
        self._target = self._met(config.server, first, config.target)
        self.adapter = self._target.adapter
        self._speculating = self._draft = None
        if config.spec_server is not None:
            self._speculating = self._met(config.spec_server, second or first, config.target, self.adapter)
            if self._speculating == self._target:
                raise ConfigError(
                    "One server is named both for the target alone and for the target that speculates",
                    where=config.spec_server,
                    hint="Name the other, or what this one calls both models: --served-model-name ALONE,SPECULATING.",
                )
        if config.draft_server is not None:
            model = next((spec.model for spec in specs.values() if spec.model is not None), None)
            self._draft = self._met(config.draft_server, second, model)
        # The two take turns, unless one has to make room for the other. Nothing is started, so that blocks are short.
        self.at_once = config.server != config.spec_server
        self.prompts_per_start = max(map(window_of, config.loads)) if self.at_once else None
        self.models = _facts(config.target, None), {d: _facts(d, None) for d in config.draft}
        host = urlsplit(config.server).hostname
        self.where = None if is_local(config.server) else f"the server at {host}, whose hardware is not told"

    def _met(self, url: str, wanted: str | None, guess: str | None, adapter: OpenAI | None = None) -> ServerHandle:
        """The server at an address: which engine answers there unless `adapter` says it, and what it calls the
        model."""

        async def meet() -> ServerHandle:
            async with client_of(self._config, url) as client:
                named, reader = self._config.engine, adapter
                if reader is None:
                    reader = await detect(client.get) if named == "local" else ADAPTERS[named]()
                model = await model_name(client.get, url, wanted, guess)
            return ServerHandle(url, reader, model=model, shared=self._config.server == self._config.spec_server)

        return call(meet)

    @contextmanager
    def up(self, draft: str | None, gamma: int | None, folder: Path) -> Iterator[ServerHandle]:
        found = self._target if draft is None else self._speculating
        assert found is not None
        yield found

    @contextmanager
    def alone(self, draft: str | None, folder: Path) -> Iterator[ServerHandle]:
        found = self._target if draft is None else self._draft
        assert found is not None
        yield found


class Starting(Provider):
    """Starts servers on this machine, as a launch file says. Raises ConfigError or ModelError before any is started
    where one of the run's arms could not be. Without any of `gammas` no server drafts: each model is served alone.
    Those that are `synthetic` reject every draft."""

    def __init__(
        self,
        config: RunConfig,
        specs: dict[str, DraftSpec],
        gammas: tuple[int, ...],
        threads: int,
        *,
        synthetic: bool = False,
    ) -> None:
        self.file: LaunchFile = find_launch(config.launch or config.engine)
        self.adapter = ADAPTERS[self.file.engine]()
        self.launch, self.version, self.threads = self.file.path.name, engine_version(self.file), threads
        self._config, self._specs, self._threads = config, specs, threads
        self._synthetic = synthetic
        for spec in specs.values() if gammas else ():
            require_draft(self.file, spec)
            if self.file.greedy_only and not config.sampling.greedy:
                raise ConfigError(
                    "This engine's texts are not the target's when it drafts above temperature 0 (`greedy_only`)",
                    where=str(self.file.path),
                    hint="Use --temperature 0, or another engine.",
                )
        self._target = model_file(config.target, self.file.models)
        names = {text: spec.model for text, spec in specs.items()}
        self._drafts = {t: None if name is None else model_file(name, self.file.models) for t, name in names.items()}
        busiest = max(config.concurrency)
        self._slots = max(busiest, OPEN_SLOTS) if config.rate else busiest
        # A probe has the servers of one draft up at a time.
        self.at_once = self.file.at_once and self._holds(1 + len(gammas) if synthetic else 2 + len(specs) * len(gammas))
        self.kept_apart = self.file.at_once and not self.at_once
        most = self.file.prompts_per_start
        if self._slots > 1 and most is not None:
            most = max(most, *map(window_of, config.loads)) if self.at_once else None
        self.prompts_per_start = most
        drafts = {text: _facts(text, path) for text, path in self._drafts.items()}
        self.models = _facts(config.target, self._target), drafts
        for text, path in self._drafts.items() if not gammas else ():
            if path is not None and (kind := kind_of(path)) is not None:
                raise ConfigError(
                    f"A head ({kind}) cannot be asked alone on a server: it reads its target's states",
                    where=text,
                    hint="Measure it without a replay (and without --costs), or replay it with --engine local.",
                )
        for text in specs:
            for gamma in gammas:
                command(self.file, self._setting(text, gamma), 0)
        environment(self.file, self._setting(None, None), 0)

    def _holds(self, servers: int) -> bool:
        """Whether so many servers may run side by side: by the launch file's word, or by what their files say that each
        needs, in memory that is free now. Of files that do not say, with one client."""
        most = self.file.at_once_clients
        if most is not None:
            return self._synthetic or self._slots <= most
        paths = {path for path in (self._target, *self._drafts.values()) if path is not None}
        needed = [server_bytes(Path(path), self.file.context * self._slots) for path in paths]
        if None in needed:
            return self._slots == 1
        return servers * sum(each or 0 for each in needed) <= FREE_SHARE * available_bytes("cpu")

    def _setting(self, draft: str | None, gamma: int | None) -> Setting:
        return Setting(
            target=self._target,
            spec=None if draft is None else self._specs[draft],
            draft=None if draft is None else self._drafts[draft],
            gamma=gamma,
            concurrency=self._slots,
            threads=self._threads,
            synthetic=self._synthetic and draft is not None,
            cached=self._config.sessions,
        )

    def up(self, draft: str | None, gamma: int | None, folder: Path) -> AbstractContextManager[ServerHandle]:
        log = folder / LOGS / f"{_slug(draft, gamma)}.log"
        return self._started(self._setting(draft, gamma), self._config.served_names[0], log)

    def alone(self, draft: str | None, folder: Path) -> AbstractContextManager[ServerHandle]:
        if draft is None:
            return self.up(None, None, folder)
        path = self._drafts[draft]
        assert path is not None
        log = folder / LOGS / f"{_slug(draft, None)}.log"
        return self._started(replace(self._setting(None, None), target=path), self._config.served_names[1], log)

    @contextmanager
    def _started(self, setting: Setting, wanted: str | None, log: Path) -> Iterator[ServerHandle]:
        log.parent.mkdir(exist_ok=True)
        with Launched(self.file, setting, log=log) as server:
            try:
                name = call(partial(self._name, server.url, wanted, setting.target))
                yield ServerHandle(server.url, self.adapter, server.pid, name)
            except EngineError:
                if not server.ended():
                    raise
                what = f"The server ended in the middle of the measurement (exit code {server.exit_code})"
                reason, hint = server.reason()
                raise EngineError(
                    f"{what}; its log tells of {reason}" if reason else what,
                    where=str(log),
                    hint=hint or "See its log; the same command then continues where it stopped.",
                ) from None

    async def _name(self, url: str, wanted: str | None, guess: str) -> str | None:
        async with client_of(self._config, url) as client:
            return await model_name(client.get, url, wanted, guess)


def provider_of(
    config: RunConfig, specs: dict[str, DraftSpec], gammas: tuple[int, ...], threads: Callable[[], int]
) -> Provider:
    """The servers that the configuration names. `threads` are for those that are started, and take time to count."""
    if config.server is not None:
        return Running(config, specs)
    return Starting(config, specs, gammas, threads())


def client_of(config: RunConfig, url: str) -> Client:
    """A connection to a server of the run. The key is that of the environment; it is held nowhere else. Raises
    ConfigError for a key that no header can hold."""
    key = os.environ.get(config.api_key_env) or None
    if key is not None and not re.fullmatch(r"[!-~]+( [!-~]+)*", key):
        raise ConfigError(
            "The key holds what no key does: a line end, a space at an end, or a character that is not ASCII",
            where=config.api_key_env,
            hint="Set it again without that.",
        )
    return Client(url, key=key, timeout_s=config.request_timeout_s)


def _facts(name: str, path: str | None) -> ModelFacts:
    """What is known of a model that another process reads. A look-up has none and adds nothing."""
    if name.startswith(("ngram", "suffix")) and path is None:
        return ModelFacts(name=name, parameters=0, weight_bytes=0)
    file = Path(path) if path is not None else None
    size = file.stat().st_size if file is not None and file.is_file() else None
    head = None if path is None else kind_of(path)
    return ModelFacts(name=file.name if file is not None else name, weight_bytes=size, head=head)


def _slug(draft: str | None, gamma: int | None) -> str:
    name = "target" if draft is None else f"{draft}-alone" if gamma is None else f"{draft}-gamma-{gamma}"
    return re.sub(r"[^A-Za-z0-9.=+-]+", "-", name)[-100:]


# What may not change between two sessions of a run, the last where both tell it: some servers do so only after the
# first request.
IDENTITY = ("model", "version", "speculating", "gamma", "context", "method")


_LONGEST_NAME = 300


def engine_name(provider: Provider, state: State | None) -> str:
    """How the engine is called in tables and the brief."""
    version = provider.version or (None if state is None else _name(state.version))
    name = " ".join(part for part in (provider.adapter.name, version) if part)
    how = f"started by specbench ({provider.launch})" if provider.launch else "running before specbench came"
    return f"{name} over HTTP, {how}"


def note_server(writer: RunWriter, label: str, state: State, name: str | None) -> None:
    """Store what the server of `label` is, and under which `name` the engine goes (None: as before). Raises StoreError
    where an earlier session measured another."""
    served = writer.run.served or ServedBy()
    earlier = served.settings.get(label)
    # Whoever reads the run need not know where on a disk the model lay.
    model = PurePath(state.model).name if state.model and state.model.startswith("/") else state.model
    now = replace(state, busy=None, model=_name(model), version=_name(state.version), method=_name(state.method))
    changed = [] if earlier is None else [_change(key, earlier, now) for key in IDENTITY if _differ(key, earlier, now)]
    engine_was = writer.run.provenance.engine
    if earlier is not None and name not in (None, engine_was):
        changed.append(f"{clean(engine_was)} -> {clean(name)}")
    if changed:
        raise StoreError(
            f"The server of {label} is another than when this run began: {', '.join(changed)}",
            where=str(writer.folder),
            hint="Use --fresh to start a new run.",
        )
    writer.update(served=replace(served, settings={**served.settings, label: now}))
    if name is not None:
        writer.update(provenance=replace(writer.run.provenance, engine=name))


def _name(told: str | None) -> str | None:
    """A server's word for something, fit to be shown: one line without control characters, and no longer than any."""
    return None if told is None else clean(told[:_LONGEST_NAME])


def _differ(key: str, was: State, now: State) -> bool:
    before, after = getattr(was, key), getattr(now, key)
    return bool(before != after and (key != "method" or None not in (before, after)))


def _change(key: str, was: State, now: State) -> str:
    return f"{key}: {clean(getattr(was, key))} -> {clean(getattr(now, key))}"
