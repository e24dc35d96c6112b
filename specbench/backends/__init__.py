"""Engines that can be asked: models in this process, and servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specbench.backends.base import Backend, Prober
    from specbench.config import RunConfig
    from specbench.cost.plan import ProbeRequest
    from specbench.records import Prompt
    from specbench.run_record import RunRecord


def backend_of(
    config: RunConfig,
    *,
    replay_only: bool,
    threads: Callable[[], int],
    earlier: RunRecord | None,
    say: Callable[[str], None],
) -> Backend:
    """The engine that a configuration names. `threads` are for what is computed on this machine, and take time to
    count; `earlier` is run.json of the session that began the run; `say` shows what is being done. Raises ConfigError
    for what the engine cannot do."""
    if config.served:
        from specbench.backends.server.backend import ServerBackend

        return ServerBackend(config, replay_only=replay_only, threads=threads, say=say)
    from specbench.backends.local.backend import LocalBackend

    return LocalBackend(config, replay_only=replay_only, threads=threads, earlier=earlier, say=say)


def prober_of(
    config: RunConfig, request: ProbeRequest, prompts: Callable[[], Sequence[Prompt]], say: Callable[[str], None]
) -> Prober:
    """What times the costs on the engine that a configuration names; `prompts` are those that a run would use."""
    if config.served:
        from specbench.backends.server.probing import ServerProbe

        return ServerProbe(config, request, prompts, say)
    from specbench.backends.local.probing import LocalProbe

    return LocalProbe(config, request, prompts, say)
