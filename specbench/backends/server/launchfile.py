"""The file that says how an engine's server is started: configs/engines/*.yaml, checked once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from specbench.errors import ConfigError
from specbench.records import FirstFault
from specbench.strict_yaml import YamlError, read_yaml
from specbench.validation import read_value

Models = Literal["gguf", "directory", "name"]

# The braces of JSON in an argument stay as they are: only a bare name between braces is a placeholder.
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_ALWAYS = {"python", "target", "host", "port", "concurrency", "context", "context_total", "threads"}
_GAMMA = {"gamma", "gamma_plus_one"}
_MODEL, _LOOK_UP = _ALWAYS | _GAMMA | {"draft", "cutoff"}, _ALWAYS | _GAMMA | {"n", "min"}
_OF_MODEL, _OF_LOOK_UP = ({"draft"}, _GAMMA), ({"n"}, _GAMMA)

# Ways to draft: the placeholders that each may have, and those without which a server would start and draft otherwise
# than was asked for; of each set one is enough.
WAYS = {
    **dict.fromkeys(("model", "eagle3", "peagle", "dflash"), (_MODEL, _OF_MODEL)),
    "mtp": (_MODEL, (_GAMMA,)),
    "suffix": (_ALWAYS | _GAMMA, (_GAMMA,)),
    **dict.fromkeys(("ngram", "ngram-map-k", "ngram-map-k4v", "ngram-mod"), (_LOOK_UP, _OF_LOOK_UP)),
    "ngram-cache": (_LOOK_UP, ()),
}
_KNOWN = {
    **dict.fromkeys(("command", "uncached", "cached", "env"), _ALWAYS),
    **{key: _ALWAYS | _GAMMA | {"zeros"} for key in ("synthetic", "synthetic_env")},
    "version": {"python"},
}
_NEEDED = {"command": ({"target"}, {"port"})}

# What makes a server accept drafts by chance: a benchmark's, and never a measurement's.
SYNTHETIC = re.compile(r"spec-synth|SPEC_SYNTH|synthetic|SIMULATE_ACC|FORCE_NUM_ACCEPTED", re.IGNORECASE)


# A number in YAML, such as 8080, is a text on a command line.
Word = Annotated[str, Field(coerce_numbers_to_str=True, pattern=r"\S", max_length=100_000)]
Words = Annotated[tuple[Word, ...], Field(min_length=1, max_length=1000), FirstFault()]
Environment = dict[Annotated[str, Field(min_length=1)], Word]
Whole = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=86400)]

_HINTS = {
    **dict.fromkeys(("env", "synthetic_env"), "Write a mapping of names to texts."),
    "drafts": f"Write a mapping of {', '.join(WAYS)} to lists of arguments.",
    **dict.fromkeys(("at_once", "greedy_only"), "Write true or false."),
    **dict.fromkeys(("ready_s", "stop_s"), "Write a number of seconds above 0, at most 86400."),
    **dict.fromkeys(("context", "prompts_per_start", "at_once_clients"), "Write a whole number from 1 to 10000000."),
    **dict.fromkeys(
        ("command", "uncached", "cached", "synthetic", "version"),
        'Write a list of arguments: [program, --flag, value], with placeholders in quotes: "{port}".',
    ),
}
_COPY = "Copy it from configs/engines/ of specbench."


@dataclass(frozen=True, slots=True)
class LaunchFile:
    """A launch file. `engine` names the adapter that reads its answers; `command` starts the target alone, `drafts` are
    what each of WAYS adds to it, `cached` what conversations with a prefix cache add, and `uncached` all else. Of
    several at once the values of the flag `joined` are joined by commas (None: the engine drafts in one way at a time).
    `synthetic` and `synthetic_env` make a server reject every draft, whatever the
    target says, which shows what a round costs. `models` is what {target} and {draft} become, see
    `launch.model_file`. `context` is in tokens of one sequence; `ready_s` and `stop_s` in seconds; after
    `prompts_per_start` prompts the next arm's server is started (None: after all); `at_once` starts those of all arms
    together, for runs of up to `at_once_clients` clients, and lets them take turns: prompt by prompt, or with several
    clients window by window. `greedy_only`: above temperature 0 its drafts change the texts. `version` is a command
    whose first output line is the version."""

    path: Path
    engine: Literal["llamacpp", "vllm", "sglang", "tensorrt", "lmdeploy", "openai"]
    command: Words
    models: Models
    drafts: dict[str, Words] = field(default_factory=dict)
    joined: Word | None = None
    synthetic: Words | None = None
    synthetic_env: Environment = field(default_factory=dict)
    uncached: Words | None = None
    cached: Words | None = None
    env: Environment = field(default_factory=dict)
    context: Whole = 4096
    ready_s: Seconds = 60.0
    stop_s: Seconds = 10.0
    prompts_per_start: Whole | None = 8
    at_once: Annotated[bool, Field(strict=True)] = False
    at_once_clients: Whole = 1
    greedy_only: Annotated[bool, Field(strict=True)] = False
    needs: Word | None = None
    install: Word | None = None
    version: Words | None = None


_KEYS = [each.name for each in fields(LaunchFile) if each.name != "path"]


def read_launch(path: Path) -> LaunchFile:
    """Read and check a launch file; does not look whether `needs` is there. Raises ConfigError naming the key."""
    values = _yaml(path)
    for key in values:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(_KEYS)}."
            raise ConfigError(f"Unknown key `{key}`", where=str(path), hint=hint)
    try:
        file = read_value(LaunchFile, {**values, "path": path}, "the launch file")
    except ValueError as error:
        key = re.split(r"[ .\[]", str(error))[0]
        raise ConfigError(str(error), where=str(path), hint=_HINTS.get(key, _COPY)) from None
    for key, known in _KNOWN.items():
        given = getattr(file, key)
        if given is not None:
            _check(key, given.values() if key.endswith("env") else given, known, _NEEDED.get(key, ()), path)
    for way, parts in file.drafts.items():
        if way not in WAYS:
            near = difflib.get_close_matches(way, WAYS, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(WAYS)}."
            raise ConfigError(f"`drafts` has an unknown way to draft, `{way}`", where=str(path), hint=hint)
        _check(f"drafts.{way}", parts, *WAYS[way], path)
    measuring = (*file.command, *(part for parts in file.drafts.values() for part in parts), *file.env)
    if any(SYNTHETIC.search(part) for part in measuring):
        raise ConfigError(
            "It starts servers that accept drafts by chance, whatever the target says",
            where=str(path),
            hint="Leave that out; specbench probe adds what is in `synthetic` by itself.",
        )
    return file


def placeholders(parts: Iterable[str]) -> set[str]:
    """The placeholders in some arguments."""
    return {name for part in parts for name in PLACEHOLDER.findall(part)}


def _check(key: str, parts: Iterable[str], known: set[str], needed: Iterable[set[str]], path: Path) -> None:
    named = placeholders(parts)
    for name in sorted(named - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{{{near[0]}}}`?" if near else f"Known here: {', '.join(sorted(known))}."
        raise ConfigError(f"`{key}` has no placeholder `{{{name}}}`", where=str(path), hint=hint)
    for any_of in needed:
        if not named & any_of:
            raise ConfigError(f"`{key}` does not use `{{{min(any_of)}}}`", where=str(path), hint="Pass it on.")


def _yaml(path: Path) -> dict[Any, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the launch file: {error.strerror}", where=str(path), hint="Check its path."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("The launch file is not UTF-8", where=str(path), hint="Store it as UTF-8.") from None
    except YamlError as error:
        where = f"{path}, line {error.line}" if error.line is not None else str(path)
        raise ConfigError(f"Not readable as YAML: {error}", where=where, hint="Mend that line.") from None
    if not isinstance(values, dict):
        raise ConfigError("A launch file is a mapping of keys to values", where=str(path), hint="Write `key: value`.")
    return values
