"""`specbench probe`: what a draft costs, timed without a run, and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from specbench.backends import prober_of
from specbench.config import RunConfig
from specbench.cost.plan import ProbeRequest
from specbench.run.record import ended, prompts_of, provenance
from specbench.run_record import RunRecord
from specbench.store import RunWriter, new_folder


def run_probe(config: RunConfig, request: ProbeRequest, say: Callable[[str], None], argv: Sequence[str] = ()) -> Path:
    """Time the models, or an engine's rounds, and store what was found; returns the folder, which is not made before
    everything is loaded."""
    prober = prober_of(config, request, lambda: prompts_of(config)[1], say)
    setting = provenance(prober.setting, argv)
    admitted = prober.admit()
    # A system prompt is private, and changes nothing here but lengths.
    config = replace(config, draft=tuple(admitted.drafts), system_prompt=None)
    if admitted.served is None and admitted.target.name is not None:
        config = replace(config, target=admitted.target.name)
    record = RunRecord(
        status="started",
        command="probe",
        name=config.name or "probe",
        config=config,
        fingerprint=config.fingerprint(),
        provenance=setting,
        target=admitted.target,
        drafts=admitted.drafts,
        served=admitted.served,
    )
    folder = new_folder(Path(config.out), config.name or "probe")
    with RunWriter(folder, record) as writer:
        costs = prober.probe(writer)
        writer.update(
            status="finished",
            provenance=ended(writer.run.provenance),
            probe=costs.points,
            bandwidth=costs.bandwidth,
            warnings=(*costs.cautions, *admitted.cautions),
        )
    return folder
