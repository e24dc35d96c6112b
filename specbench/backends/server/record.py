"""What run.json says of servers: how their engine is called, and which of them answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

from specbench.backends.server.adapter import State
from specbench.backends.server.provider import Provider
from specbench.errors import StoreError
from specbench.run_record import ServedBy
from specbench.store import RunWriter
from specbench.text import clean

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
