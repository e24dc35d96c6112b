"""run.json: how it begins, whether an earlier session's may be continued, and how it ends; and what a verdict holds
for: the command, versions, commit, hardware, precision and load.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from specbench import __version__
from specbench.backends.base import Admitted, Conditions
from specbench.config import RunConfig
from specbench.cost.load import load_average
from specbench.errors import ConfigError, StoreError
from specbench.records import Finding, Omitted, Prompt, warned
from specbench.run_record import CategoryCount, Command, Machine, Provenance, RunRecord, WorkloadFacts
from specbench.shipped import workload_source
from specbench.store import RUN_FILE, RunWriter, busy, find_runs, in_use, one_at_a_time, read_record
from specbench.text import count
from specbench.workload import Workload, load_workload, select

# How a stored system prompt begins of which only the hash was kept.
HASHED = "sha256:"


def prompts_of(config: RunConfig) -> tuple[Workload, tuple[Prompt, ...]]:
    """The workload and the prompts of it that a run takes. Raises ConfigError where the traffic mix names a category of
    which none is among them: the run would have no verdict."""
    workload = load_workload(
        workload_source(config.workload),
        column=config.column,
        category_column=config.category_column,
        system_prompt=config.system_prompt,
    )
    chosen = select(workload.prompts, config.limit, config.seed)
    known = {prompt.category or "all" for prompt in chosen}
    strange = sorted(set(config.policy.mix or {}) - known)
    if strange:
        raise ConfigError(
            f"The traffic mix names {', '.join(strange)}, of which there is no prompt",
            where="mix",
            hint=f"The categories are {', '.join(sorted(known))}.",
        )
    return workload, chosen


def run_record(
    config: RunConfig,
    command: Command,
    workload: Workload,
    admitted: Admitted,
    unused: Sequence[Omitted],
    *,
    trials_planned: int,
    argv: Sequence[str] = (),
) -> RunRecord:
    """run.json at the start of a run. `unused` are prompts that were admitted and find no place in the plan."""
    without = {one.id for one in unused}
    used = [item.prompt for item in admitted.items if item.prompt.id not in without]
    left_out = (*(Omitted(each.name, each.reason) for each in workload.skipped), *admitted.skipped, *unused)
    # Of a log survey_cautions says how much is left out: the list ends somewhere.
    skipped = [] if config.recorded or not left_out else [skipped_prompts(left_out)]
    warnings = (*workload.cautions, *admitted.cautions, *skipped)
    return RunRecord(
        status="started",
        command=command,
        name=config.name or command,
        config=stored_config(config),
        fingerprint=config.fingerprint(),
        provenance=provenance(admitted.setting, argv),
        target=admitted.target,
        drafts=admitted.drafts,
        workload=WorkloadFacts(
            source=workload.source,
            sha256=workload.sha256,
            prompts_available=len(workload.prompts),
            prompts_used=len(used),
            categories=_by_category(workload.prompts, used),
            skipped=left_out,
            encoded=admitted.encoded,
        ),
        served=admitted.served,
        trials_planned=trials_planned,
        warnings=warnings,
        reference_check=admitted.reference,
    )


def skipped_prompts(left_out: Sequence[Omitted], *, recorded: bool = False) -> Finding:
    """What to say of prompts that were not measured, or of recorded answers that were not scored."""
    first = left_out[0]
    if recorded:
        return warned(
            "skipped-answers",
            f"{count(len(left_out), 'row')} of the log gave no answer that could be scored, the first: {first.id}, "
            f"{first.reason}",
            "Mend these rows, or leave them out; run.json lists them.",
        )
    return warned(
        "skipped-prompts",
        f"{len(left_out)} prompt{'s were' if len(left_out) > 1 else ' was'} left out, the first: {first.id}, "
        f"{first.reason}",
        "Mend or shorten them; run.json lists all.",
    )


def stored_config(config: RunConfig) -> RunConfig:
    """The configuration as it may be stored: a system prompt is private text, of which only the hash is kept."""
    if config.system_prompt is None or config.keep_text:
        return config
    return replace(config, system_prompt=hashed(config.system_prompt))


def hashed(system_prompt: str) -> str:
    """A system prompt as it is stored without --keep-text."""
    return HASHED + hashlib.sha256(system_prompt.encode()).hexdigest()


def _by_category(available: Sequence[Prompt], used: Sequence[Prompt]) -> dict[str, CategoryCount]:
    here, measured = (Counter(prompt.category or "all" for prompt in prompts) for prompts in (available, used))
    return {name: CategoryCount(here[name], measured[name]) for name in {**here, **measured}}


@contextmanager
def marked(writer: RunWriter) -> Iterator[None]:
    """Keep the run's status true while it is measured: started, then finished, interrupted or failed. Raises StoreError
    where another process measures the same just now."""
    _begin(writer)
    try:
        yield
    except KeyboardInterrupt:
        _note(writer, status="interrupted")
        raise
    except BaseException as error:
        # The type and place of a failure, never its message: messages may quote prompts.
        last = traceback.extract_tb(error.__traceback__)[-1]
        _note(writer, status="failed", failure=f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}")
        raise
    if writer.run.status == "started":  # else something is left to do
        writer.update(status="finished", provenance=ended(writer.run.provenance))


def ended(provenance: Provenance) -> Provenance:
    return replace(provenance, finished=datetime.now(UTC).isoformat(timespec="seconds"), load_at_end=load_average())


def _begin(writer: RunWriter) -> None:
    """Mark the run as started. A new one stands back where the same command began meanwhile: the two would share the
    machine, and neither would know which is the run."""
    out = writer.folder.parent
    if (writer.folder / RUN_FILE).exists():
        writer.update(status="started", failure=None)
        return
    with one_at_a_time(out):
        for folder in find_runs(out):
            if in_use(folder) and _same(folder, writer.run):
                raise busy(folder)
        writer.update(status="started", failure=None)


def _same(folder: Path, run: RunRecord) -> bool:
    try:
        there = read_record(folder)
    except StoreError:
        return False
    return (there.command, there.fingerprint) == (run.command, run.fingerprint)


def _note(writer: RunWriter, **changes: Any) -> None:
    """Store how a session ended, if that can be: what stopped it is the thing to say, and a run that could not even
    note it still counts as unfinished."""
    with suppress(StoreError):
        writer.update(**changes)


def hardware(device: str | None) -> Machine:
    """The machine as it is. The accelerator is named only where `device` uses one, or a server may."""
    accelerator = _nvidia() if device is None else None
    if device == "cuda":
        import torch

        accelerator = torch.cuda.get_device_name()
    elif device == "mps":
        accelerator = f"Apple GPU ({platform.machine()})"
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cpu, memory = _cpu_name(), psutil.virtual_memory().total
    line = f"{accelerator or f'{cpu}, {cores} cores'}, {memory / 2**30:.0f} GiB"
    return Machine(cpu, cores, memory, accelerator, line)


def provenance(setting: Conditions, argv: Sequence[str]) -> Provenance:
    """Everything needed to judge whether another measurement is comparable. `argv` is the command, without private
    texts."""
    machine = hardware(setting.device)
    return Provenance(
        argv=tuple(argv),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"specbench": __version__, "python": platform.python_version()} | _versions(),
        commit=_commit(),
        platform=platform.platform(),
        hardware=machine if setting.where is None else replace(machine, line=setting.where),
        engine=setting.engine,
        device=setting.device,
        precision=setting.precision,
        threads=setting.threads,
        load_at_start=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _nvidia() -> str | None:
    """The GPUs that the driver's own tool names; torch is too heavy for a client."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = found.stdout.split("\n")[:-1] if found.returncode == 0 else []
    return " + ".join(names) or None


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "tokenizers", "numpy", "scipy", "pandas"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the specbench that ran, where it runs from a checkout of its own."""
    here = Path(__file__).resolve().parent.parent.parent
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() or None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
