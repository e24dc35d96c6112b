"""The file that says how an engine's server is started: configs/engines/*.yaml, checked once."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from specbench.errors import ConfigError
from specbench.strict_yaml import YamlError, read_yaml

Models = Literal["gguf", "directory", "name"]

# The braces of JSON in an argument stay as they are: only a bare name between braces is a placeholder.
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_ALWAYS = {"python", "target", "host", "port", "concurrency", "context", "context_total", "threads"}
_GAMMA = {"gamma", "gamma_plus_one"}
_KNOWN = {
    "command": _ALWAYS,
    "env": _ALWAYS,
    "model": _ALWAYS | _GAMMA | {"draft", "cutoff"},
    "ngram": _ALWAYS | _GAMMA | {"n", "min"},
    "version": {"python"},
}
# Without these a server would start and be another one than was asked for; of each set one is enough.
_NEEDED = {"command": ({"target"}, {"port"}), "model": ({"draft"}, _GAMMA), "ngram": ({"n"}, _GAMMA)}


@dataclass(frozen=True, slots=True)
class LaunchFile:
    """A launch file. `engine` names the adapter that reads its answers; `command` starts the target alone, `model` and
    `ngram` are what a draft model and a look-up add to it (None: this engine has no such draft). `models` is what
    {target} and {draft} become, see `modelfiles.model_file`. `context` is in tokens of one sequence; `ready_s` and
    `stop_s` in seconds; after `prompts_per_start` prompts the next arm's server is started (None: after all);
    `at_once` starts those of all arms together and lets them take turns prompt by prompt.
    `version` is a command whose first output line is the version."""

    path: Path
    engine: str
    command: tuple[str, ...]
    models: Models
    model: tuple[str, ...] | None = None
    ngram: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    context: int = 4096
    ready_s: float = 60.0
    stop_s: float = 10.0
    prompts_per_start: int | None = 8
    at_once: bool = False
    needs: str | None = None
    install: str | None = None
    version: tuple[str, ...] | None = None


def read_launch(path: Path) -> LaunchFile:
    """Read and check a launch file; does not look whether `needs` is there. Raises ConfigError naming the key."""
    values: dict[str, Any] = {}
    for key, value in _yaml(path).items():
        if key not in _CHECKS:
            near = difflib.get_close_matches(str(key), _CHECKS, n=1)
            cure = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(_CHECKS)}."
            raise ConfigError(f"Unknown key `{key}`", where=str(path), cure=cure)
        try:
            values[key] = _CHECKS[key](value)
        except ValueError as error:
            raise ConfigError(f"`{key}`: {error}", where=str(path)) from None
    for key in ("engine", "command", "models"):
        if key not in values:
            raise ConfigError(
                f"`{key}` is missing", where=str(path), cure="Copy it from configs/engines/ of specbench."
            )
    for key in _KNOWN:
        if values.get(key) is not None:
            _check_placeholders(key, values[key].values() if key == "env" else values[key], path)
    return LaunchFile(path, **values)


def placeholders(parts: Iterable[str]) -> set[str]:
    """The placeholders in some arguments."""
    return {name for part in parts for name in PLACEHOLDER.findall(part)}


def _check_placeholders(key: str, parts: Iterable[str], path: Path) -> None:
    named = placeholders(parts)
    for name in sorted(named - _KNOWN[key]):
        near = difflib.get_close_matches(name, _KNOWN[key], n=1)
        cure = f"Did you mean `{{{near[0]}}}`?" if near else f"Known here: {', '.join(sorted(_KNOWN[key]))}."
        raise ConfigError(f"`{key}` has no placeholder `{{{name}}}`", where=str(path), cure=cure)
    for any_of in _NEEDED.get(key, ()):
        if not named & any_of:
            raise ConfigError(f"`{key}` does not use `{{{min(any_of)}}}`", where=str(path), cure="Pass it on.")


def _yaml(path: Path) -> dict[Any, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the launch file: {error.strerror}", where=str(path), cure="Check its path."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("The launch file is not UTF-8", where=str(path), cure="Store it as UTF-8.") from None
    except YamlError as error:
        where = f"{path}, line {error.line}" if error.line is not None else str(path)
        raise ConfigError(f"Not readable as YAML: {error}", where=where, cure="Mend that line.") from None
    if not isinstance(values, dict):
        raise ConfigError("A launch file is a mapping of keys to values", where=str(path), cure="Write `key: value`.")
    return values


def _text(value: Any) -> str:
    if isinstance(value, dict):
        raise ValueError(f"{value!r} is not a text; write placeholders in quotes: " + '"{port}"')
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{value!r} is not a text")
    return str(value)


def _arguments(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("write a list of arguments: [program, --flag, value]")
    return tuple(_text(item) for item in value)


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or any(not isinstance(name, str) or not name for name in value):
        raise ValueError("write a mapping of names to texts")
    return {name: _text(text) for name, text in value.items()}


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return check


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000_000:
        raise ValueError(f"{value!r} is not a whole number from 1 to 10000000")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not 0 < value <= 86400:
        raise ValueError(f"{value!r} is not a number of seconds above 0, at most 86400")
    return float(value)


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "engine": _one_of("llamacpp", "vllm", "sglang", "openai"),
    "command": _arguments,
    "model": _optional(_arguments),
    "ngram": _optional(_arguments),
    "models": _one_of("gguf", "directory", "name"),
    "env": _env,
    "context": _whole,
    "ready_s": _seconds,
    "stop_s": _seconds,
    "prompts_per_start": _optional(_whole),
    "at_once": _flag,
    "needs": _optional(_text),
    "install": _optional(_text),
    "version": _optional(_arguments),
}
