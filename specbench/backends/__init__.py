"""Engines that can be asked: models in this process, and servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specbench.backends.base import Backend
    from specbench.config import RunConfig
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
