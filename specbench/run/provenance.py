"""What a verdict holds for: the command, versions, commit, hardware, precision and load."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from specbench import __version__
from specbench.backends.base import Conditions
from specbench.run_record import Machine, Provenance


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
