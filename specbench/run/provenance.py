"""What a verdict holds for: the command, versions, commit, hardware, precision and load."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from specbench import __version__
from specbench.backends.base import Setting


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine. `memory_bytes` is what is installed."""

    cpu: str
    physical_cores: int
    memory_bytes: int
    accelerator: str | None

    def line(self) -> str:
        """One line for tables and the brief."""
        chip = self.accelerator or f"{self.cpu}, {self.physical_cores} cores"
        return f"{chip}, {self.memory_bytes / 2**30:.0f} GiB"


def hardware(device: str | None) -> Hardware:
    """The machine as it is. The accelerator is named only where `device` uses one, or a server may."""
    accelerator = _nvidia() if device is None else None
    if device == "cuda":
        import torch

        accelerator = torch.cuda.get_device_name()
    elif device == "mps":
        accelerator = f"Apple GPU ({platform.machine()})"
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return Hardware(_cpu_name(), cores, psutil.virtual_memory().total, accelerator)


def provenance(setting: Setting) -> dict[str, Any]:
    """Everything needed to judge whether another measurement is comparable."""
    machine = hardware(setting.device)
    return {
        "argv": ["specbench", *_without_text(sys.argv[1:])],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"specbench": __version__, "python": platform.python_version()} | _versions(),
        "commit": _commit(),
        "platform": platform.platform(),
        "hardware": {
            "cpu": machine.cpu,
            "physical_cores": machine.physical_cores,
            "memory_bytes": machine.memory_bytes,
            "accelerator": machine.accelerator,
            "line": setting.where or machine.line(),
        },
        "engine": setting.engine,
        "device": setting.device,
        "precision": setting.precision,
        "threads": setting.threads,
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


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


def _without_text(argv: list[str]) -> list[str]:
    """The arguments without the text of a system prompt, which may be private."""
    shown = list(argv)
    for index, word in enumerate(argv):
        if word == "--system-prompt" and index + 1 < len(argv):
            shown[index + 1] = "..."
        elif word.startswith("--system-prompt="):
            shown[index] = "--system-prompt=..."
    return shown


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
