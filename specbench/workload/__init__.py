"""The workload room: the user's own prompts, from a file or a hub data set, as records.

`load_workload` reads, `profile` describes, `select` thins out. Reading is strict where a guess could change what
is measured, and errors never quote prompt text, because prompts may be private.
"""

from __future__ import annotations

from specbench.workload.conversation import turns_of
from specbench.workload.load import Skipped, Workload, load_workload
from specbench.workload.profile import CategoryProfile, WorkloadProfile, profile, select

__all__ = [
    "CategoryProfile",
    "Skipped",
    "Workload",
    "WorkloadProfile",
    "load_workload",
    "profile",
    "select",
    "turns_of",
]
