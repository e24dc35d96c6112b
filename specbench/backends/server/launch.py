"""The command line of one server, from a launch file and what is to be measured."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specbench.backends.server.launchfile import PLACEHOLDER, SYNTHETIC, LaunchFile, placeholders, read_launch
from specbench.drafters.spec import DraftSpec
from specbench.errors import ConfigError, ModelError
from specbench.models.directory import require_config
from specbench.models.embedded import PREFIX, gguf_path, packaged_head, prepare
from specbench.models.heads import kind_of
from specbench.shipped import shipped

__all__ = ["LaunchFile", "Setting", "command", "engine_version", "environment", "find_launch", "require_draft"]

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
        found = read_launch(Path(name).expanduser())
    elif name == "llamacpp" and _present("xllamacpp"):
        found = read_launch(shipped(f"{FOLDER}/xllamacpp.yaml"))
    elif name in SHIPPED:
        found = read_launch(shipped(f"{FOLDER}/{name}.yaml"))
    else:
        near = difflib.get_close_matches(name, SHIPPED, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(SHIPPED)}; else name a launch file."
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
    """The first line that the file's `version` command prints; None where there is none or it fails."""
    if file.version is None:
        return None
    line = [_filled(part, {"python": _python(file)}) for part in file.version]
    try:
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    # llama-server prints its version where others print their errors.
    return next((text.strip() for text in (done.stdout + "\n" + done.stderr).splitlines() if text.strip()), None)


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
    written = re.search(r"[:,]min=", spec.text) is not None or spec.ngram.shortest != 1
    if written and spec.ngram.shortest != spec.ngram.n and not placeholders(parts) & {"min"}:
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


def model_file(name: str, kind: Literal["gguf", "directory", "name"]) -> str:
    """What {target} and {draft} of a launch file become. Embedded models are fetched and converted on first use.

    gguf: the path of a .gguf file. directory: a local directory, or a hub id as it is. name: as written. Raises
    ModelError where `name` is no such thing."""
    if kind == "name":
        return name
    if name.startswith(PREFIX):
        head = packaged_head(name) if kind == "directory" else None
        return str(gguf_path(name) if kind == "gguf" else prepare(name) if head is None else head.folder)
    path = Path(name).expanduser()
    return _gguf(path, name) if kind == "gguf" else _directory(path, name)


def _gguf(path: Path, name: str) -> str:
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name} is no GGUF file", hint="This engine reads files that end in .gguf.")
        return str(path.absolute())
    if not path.is_dir():
        raise ModelError(
            f"{name} is no file here, and this engine reads GGUF files", hint="Download the model's .gguf and name it."
        )
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if not found:
        raise ModelError(
            f"{name} has no .gguf file, and this engine reads nothing else",
            hint="Convert it with llama.cpp's convert_hf_to_gguf.py and name the file.",
        )
    if len(found) > 1:
        raise ModelError(f"{name} has {len(found)} .gguf files", hint=f"Name one of them, such as {found[0]}.")
    return str(found[0].absolute())


def _directory(path: Path, name: str) -> str:
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"{name} is a GGUF file, and this engine reads directories", hint="Name the original model.")
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        require_config(path, name)
        return str(path.absolute())
    if "@" in name:
        raise ModelError(
            f"{name}: a server takes no revision with the name",
            hint="Leave it out, and pass the engine's own flag in the launch file.",
        )
    return name
