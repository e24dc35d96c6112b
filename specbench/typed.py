"""A call from Python as the command line with the same settings: what run.json keeps, and how the brief says to run
again. A notebook's own command line says nothing of the run, and something of the machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specbench.run.task import Task

# A flag of these is given once for each value.
_REPEATED = ("draft", "trust_remote_code")
# Keys without a flag. None of them decides what a trial measures: measure_gamma is said as gamma.
NO_FLAG = ("measure_gamma", "max_other_cores", "slower_than", "max_slower_share")


@contextmanager
def as_typed(task: Task, keys: Mapping[str, object]) -> Iterator[None]:
    """For as long as the task takes, `sys.argv` is what one would type; `keys` are what was given, and `config`."""
    kept, sys.argv = sys.argv, command_line(task, keys)
    try:
        yield
    finally:
        sys.argv = kept


def command_line(task: Task, keys: Mapping[str, object]) -> list[str]:
    """Words that the command line reads as this task."""
    words = ["specbench", task.command, *(["--replay-only"] if task.replay_only else [])]
    own = {"costs": task.costs} | ({"gamma": task.gammas} if task.command == "measure" else {})
    for key, value in {**keys, **own}.items():
        if value is None or value is False or key in NO_FLAG:
            continue
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif key in _REPEATED and isinstance(value, list):
            words += [word for each in value for word in (flag, str(each))]
        elif key == "chat_template_kwargs" and isinstance(value, Mapping):
            words += [flag, json.dumps(value)]
        else:
            words += [flag, _word(value)]
    return words


def _word(value: object) -> str:
    """As one writes it behind a flag: `1,2,4`, `code=0.6,chat=0.4`."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={share}" for name, share in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
