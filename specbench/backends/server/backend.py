"""The backend of servers: they run already, or are started as a launch file says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from specbench.backends.base import Admitted, Conditions, Item
from specbench.backends.server.adapter import Ask
from specbench.backends.server.provider import engine_name, provider_of
from specbench.backends.server.replay import ServerScoring, require_scorable, require_writer
from specbench.backends.server.session import ServerSession
from specbench.config import RunConfig
from specbench.drafters.spec import parse_draft
from specbench.errors import ConfigError
from specbench.models.defaults import generation_caution
from specbench.records import Prompt
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
            _require_askable(config)
            self._provider = provider_of(config, self._specs, config.gamma, threads)

    def admit(self, prompts: Sequence[Prompt]) -> Admitted:
        """All of them: what does not fit its context the server says when it is asked."""
        config, provider = self._config, self._provider
        try:
            provider.adapter.body(Ask((), config.max_new_tokens, config.sampling, config.seed), None)
        except ValueError as error:
            raise ConfigError(str(error), where=provider.adapter.name, hint="Leave that setting out.") from None
        own = generation_caution(config.target, config.sampling, new_tokens=config.max_new_tokens)
        return Admitted(
            [Item(prompt, None) for prompt in prompts],
            [],
            Conditions(engine_name(provider, None), None, None, provider.threads, provider.where),
            *provider.models,
            cautions=[] if own is None else [own],
            served=ServedBy(provider.adapter.name, provider.launch, dict(provider.adapter.sources)),
        )

    @contextmanager
    def session(self, writer: RunWriter) -> Iterator[ServerSession]:
        yield ServerSession(self._config, self._specs, self._provider, writer, self._say)

    @contextmanager
    def scoring(self, writer: RunWriter) -> Iterator[ServerScoring]:
        yield ServerScoring(self._config, self._specs, self._provider, writer, self._say)


def _require_askable(config: RunConfig) -> None:
    """Refuse what no server can be asked for."""
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
