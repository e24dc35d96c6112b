"""Files that come with specbench: the default configuration and the default prompts."""

from __future__ import annotations

from pathlib import Path

DEFAULT_WORKLOAD = "workloads/mixed.jsonl"


def shipped(name: str) -> Path:
    """A file by its path in the project, such as `workloads/mixed.jsonl`: in the working directory if it is there, else
    as it was installed with the package."""
    here = Path(name)
    if here.is_file():
        return here
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / name
    # An editable install has no copy inside the package: the file lies in the checkout beside it.
    return installed if installed.is_file() else package.parent / name


def workload_source(workload: str) -> str:
    """Where the prompts are: the default ones come with specbench, everything else is where the user says."""
    return str(shipped(workload)) if workload == DEFAULT_WORKLOAD else workload
