"""The backend of servers: they run already, or are started as a launch file says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from specbench.backends.base import Admitted, Conditions, Item
from specbench.backends.server.adapter import Ask
from specbench.backends.server.provider import Provider, engine_name, provider_of
from specbench.backends.server.replay import ServerScoring, require_scorable, require_writer
from specbench.backends.server.session import ServerSession
from specbench.config import RunConfig
from specbench.drafters.spec import DraftSpec, parse_draft
from specbench.errors import ConfigError
from specbench.models.defaults import generation_caution
from specbench.records import Finding, Prompt, warned
from specbench.run_record import ServedBy
from specbench.store import RunWriter


class ServerBackend:
    """Servers that run already, or are started as a launch file says. Raises ConfigError for what none can be asked."""

    def __init__(
        self, config: RunConfig, *, replay_only: bool, threads: Callable[[], int], say: Callable[[str], None]
    ) -> None:
        self._config = config
        self._say = say
        self._specs = {draft: parse_draft(draft) for draft in config.draft}
        if replay_only:
            require_scorable(config, self._specs)
            self._provider = provider_of(config, self._specs, (), threads)
            require_writer(self._provider)
        else:
            _require_askable(config, self._specs)
            self._provider = provider_of(config, self._specs, config.gamma, threads)
            _require_blocks(config, self._provider)

    def admit(self, prompts: Sequence[Prompt]) -> Admitted:
        """All of them: what does not fit its context the server says when it is asked."""
        config, provider = self._config, self._provider
        try:
            provider.adapter.body(Ask((), config.max_new_tokens, config.sampling, config.seed), None)
        except ValueError as error:
            raise ConfigError(str(error), where=provider.adapter.name, hint="Leave that setting out.") from None
        own = generation_caution(config.target, config.sampling, new_tokens=config.max_new_tokens)
        found = [caution for caution in (own, _unused(config, provider)) if caution is not None]
        return Admitted(
            [Item(prompt, None) for prompt in prompts],
            [],
            Conditions(engine_name(provider, None), None, None, provider.threads, provider.where),
            *provider.models,
            cautions=found,
            served=ServedBy(provider.adapter.name, provider.launch, dict(provider.adapter.sources)),
        )

    @contextmanager
    def session(self, writer: RunWriter) -> Iterator[ServerSession]:
        yield ServerSession(self._config, self._specs, self._provider, writer, self._say)

    @contextmanager
    def scoring(self, writer: RunWriter) -> Iterator[ServerScoring]:
        yield ServerScoring(self._config, self._specs, self._provider, writer, self._say)


def _require_askable(config: RunConfig, specs: Mapping[str, DraftSpec]) -> None:
    """Refuse what no server can be asked for."""
    if config.server is not None and any(spec.cutoff for spec in specs.values()):
        raise ConfigError(
            "A running server has the cut-off that it was started with, and no request changes it",
            where="--cutoff" if config.cutoff else "--draft",
            hint="Leave it out, or let specbench start the server with --launch.",
        )
    if config.server is not None and len(config.gamma) != 1:
        raise ConfigError(
            f"A running server has one gamma, not {len(config.gamma)}",
            where="--gamma",
            hint="Name the one that it was started with, or let specbench start it with --launch.",
        )
    if config.server is not None and (config.spec_server is None or len(config.draft) != 1):
        what = "one that speculates" if config.spec_server is None else "one draft, which it runs with"
        raise ConfigError("A running server is compared with another", where="--spec-server", hint=f"Name {what}.")
    if config.draft_server is not None:
        raise ConfigError(
            "A server of the draft alone is asked in a replay", where="--draft-server", hint="Add --replay-only."
        )


def _unused(config: RunConfig, provider: Provider) -> Finding | None:
    """What was set for models in this process."""
    names = ("dtype", "device", "threads") if provider.launch is None else ("dtype", "device")
    flags = [f"--{name}" for name in names if getattr(config, name) != getattr(RunConfig(), name)]
    if not flags:
        return None
    said = f"{' and '.join(flags)} change nothing: the server was started with its own"
    return warned(
        "settings-not-used", said, "Leave them out; what the server has, its own command or launch file says."
    )


def _require_blocks(config: RunConfig, provider: Provider) -> None:
    """Refuse a budget of time where every arm's server gets all prompts before the next arm's."""
    if config.time_budget_s is not None and provider.prompts_per_start is None:
        other = "servers at two addresses"
        if provider.kept_apart:
            other = "one client, or free memory for the servers of all arms"
        elif provider.launch is not None:
            other = "`prompts_per_start` in the launch file, with one client or servers that are `at_once`"
        raise ConfigError(
            "These servers get all prompts in one block, before whose end no run can stop",
            where="--time-budget",
            hint=f"Use --limit, or {other}.",
        )
