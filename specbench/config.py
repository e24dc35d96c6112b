"""What to run: a YAML file plus flags, checked once, frozen after.

Every key of the file is a field of RunConfig (or of its `policy`), by the same name; an unknown key is an error
with a suggestion. Values are checked here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specbench.errors import ConfigError
from specbench.records import Policy, Sampling

MAX_GAMMA = 64
MAX_BATCH = 1024
DEFAULT_WORKLOAD = "workloads/mixed.jsonl"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run, fully stated. configs/default.yaml says what each key means."""

    target: str = "demo:target"
    draft: tuple[str, ...] = ("demo:draft",)
    workload: str = DEFAULT_WORKLOAD
    column: str | None = None
    category_column: str | None = None
    system_prompt: str | None = None
    limit: int | None = None
    gamma: tuple[int, ...] = (1, 2, 4)
    measure_gamma: int = 1
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    dtype: str = "bfloat16"
    device: str = "auto"
    threads: int | None = None
    cutoff: float = 0.0
    batch_size: int = 1
    probe_batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 1
    max_other_cores: float = 0.5
    out: str = "reports"
    name: str | None = None
    keep_text: bool = False
    trust_remote_code: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored in run.json."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The part that decides what trials measure: two runs that differ here may not share a folder."""
        cosmetic = {"out", "name", "policy", "keep_text", "trust_remote_code", "probe_batch_sizes"}
        return {key: value for key, value in self.as_dict().items() if key not in cosmetic}

    def fingerprint(self) -> str:
        """sha256 of `identity()`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def load_config(path: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """Read the YAML file (None: the built-in defaults), lay the flags that are not None over it, check everything.

    Raises ConfigError naming the key, the value and the cure.
    """
    values = _read_yaml(path) if path is not None else {}
    where = str(path) if path is not None else "defaults"
    policy_flags = {key: value for key, value in flags.items() if key in _POLICY_CHECKS and value is not None}
    run_flags = {key: value for key, value in flags.items() if key not in _POLICY_CHECKS and value is not None}
    policy_values = values.pop("policy", None)
    if policy_values is None:
        policy_values = {}
    if not isinstance(policy_values, dict):
        raise ConfigError("`policy` must be a mapping of keys to values", where=where, cure="Indent its keys below it.")
    policy = _check(policy_values, _POLICY_CHECKS, f"{where}, policy") | _check(policy_flags, _POLICY_CHECKS, "flags")
    run = _check(values, _RUN_CHECKS, where) | _check(run_flags, _RUN_CHECKS, "flags")
    config = RunConfig(**run, policy=Policy(**policy))
    if len(set(config.draft)) != len(config.draft):
        raise ConfigError("The same draft is named twice", where=where, cure="Name each draft once.")
    return config


def override_policy(stored: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A stored run's policy with the flags that are not None over it. Raises ConfigError for a bad value."""
    given = {key: value for key, value in flags.items() if value is not None}
    return {**stored, **_check(given, _POLICY_CHECKS, "flags")}


def parse_gammas(text: object) -> tuple[int, ...]:
    """`1..8`, `1..8..2`, `1,2,4` or a mix (`1,2,4..8`) -> the draft lengths, ascending, without repeats."""
    parts = text if isinstance(text, list | tuple) else str(text).split(",")
    gammas: set[int] = set()
    for part in parts:
        ends = str(part).strip().split("..")
        try:
            numbers = [int(end) for end in ends]
        except ValueError:
            raise ValueError(f"{part!r} is no draft length; write 1..8, 1..8..2 or 1,2,4") from None
        if len(numbers) > 3:
            raise ValueError(f"{part!r} has too many '..'; write first..last..step")
        first, last, step = numbers[0], numbers[min(1, len(numbers) - 1)], numbers[2] if len(numbers) == 3 else 1
        if step < 1 or last < first:
            raise ValueError(
                f"{part!r} is an empty range; write first..last with first <= last and a step of 1 or more"
            )
        if first < 1 or last > MAX_GAMMA:
            raise ValueError(f"{part!r} is outside 1..{MAX_GAMMA}: a draft has between 1 and {MAX_GAMMA} tokens")
        gammas.update(range(first, last + 1, step))
    return tuple(sorted(gammas))


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise ConfigError("No such configuration file", where=str(path), cure="Check the path given to --config.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"Not readable as YAML: {problem}", where=where, cure="Mend that line.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("A configuration is a mapping of keys to values", where=str(path), cure="Write `key: value`.")
    return values


def _check(values: Mapping[Any, Any], checks: Mapping[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    checked = {}
    for key, value in values.items():
        if key not in checks:
            near = difflib.get_close_matches(str(key), checks, n=1)
            cure = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(checks)}."
            raise ConfigError(f"Unknown key `{key}`", where=where, cure=cure)
        try:
            checked[key] = checks[key](value)
        except ValueError as error:
            raise ConfigError(f"`{key}`: {error}", where=where) from None
    return checked


def _whole(low: int, high: int, *, optional: bool = False) -> Callable[[Any], int | None]:
    def check(value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float, *, above: bool = False) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        bad = isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value)
        if bad or not low <= value <= high or (above and value == low):
            raise ValueError(f"{value!r} is not a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    return check


def _text(*, optional: bool = False, choices: tuple[str, ...] = ()) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{value!r} is not a text")
        if choices and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{value!r} is none of {', '.join(choices)}{hint}")
        return value

    return check


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if any(not isinstance(item, str) or not item.strip() for item in items):
        raise ValueError(f"{value!r} is not a text or a list of texts")
    return tuple(items)


def _drafts(value: Any) -> tuple[str, ...]:
    drafts = _texts(value)
    if not drafts:
        raise ValueError("at least one draft is needed")
    return drafts


def _gammas(value: Any) -> tuple[int, ...]:
    if isinstance(value, bool | float) or value in ([], (), None):
        raise ValueError(f"{value!r} is no draft length; write 1..8, 1..8..2 or 1,2,4")
    return parse_gammas(value)


def _batch_sizes(value: Any) -> tuple[int, ...]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        sizes = [part if isinstance(part, int) else int(str(part)) for part in parts]
    except ValueError:
        raise ValueError(f"{value!r} is no list of batch sizes; write 1,2,4,8") from None
    if not sizes or any(isinstance(size, bool) or not 1 <= size <= MAX_BATCH for size in sizes):
        raise ValueError(f"{value!r}: a batch has between 1 and {MAX_BATCH} sequences")
    if len(set(sizes)) != len(sizes):
        raise ValueError(f"{value!r} names a batch size twice")
    return tuple(sorted(sizes))


def _name(value: Any) -> str | None:
    text = _text(optional=True)(value)
    if text is not None and (any(c in text for c in '/\\\0:*?"<>|') or text.startswith(".") or len(text) > 80):
        raise ValueError(f"{text[:80]!r} cannot be part of a folder name; use letters, digits, '-' and '_'")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _cutoff(value: Any) -> float:
    found = _number(0, 1)(value)
    if found == 1:
        raise ValueError("1 would stop every draft; write a number from 0 to below 1")
    return found


def _optional(check: Callable[[Any], float]) -> Callable[[Any], float | None]:
    return lambda value: None if value is None else check(value)


def _mix(value: Any) -> dict[str, float] | None:
    """`code=0.6,chat=0.4` or a mapping -> shares that add up to 1."""
    if value is None:
        return None
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")]
        value = {name.strip(): share.strip() for name, _, share in pairs}
    if not isinstance(value, dict) or not value or any(not isinstance(name, str) or not name for name in value):
        raise ValueError("write category=share,..., such as code=0.6,chat=0.4")
    shares: dict[str, float] = {}
    for name, share in value.items():
        try:
            shares[name] = _number(0, 1e9, above=True)(float(share))
        except (TypeError, ValueError):
            raise ValueError(f"{name}={share!s}: a share is a number above 0; write code=0.6,chat=0.4") from None
    total = sum(shares.values())
    if abs(total - 1) > 0.011:
        raise ValueError(f"the shares add up to {total:g}, not 1")
    return {name: share / total for name, share in shares.items()}


_POLICY_CHECKS: dict[str, Callable[[Any], Any]] = {
    "min_speedup": _number(0, 100, above=True),
    "metric": _text(choices=("decode", "e2e")),
    "confidence": _number(0.5, 0.9999),
    "slower_than": _number(0, 1),
    "max_slower_share": _number(0, 1),
    "mix": _mix,
    "price_per_hour": _optional(_number(0, 1e9, above=True)),
    "max_added_gb": _optional(_number(0, 1e6)),
}

_RUN_CHECKS: dict[str, Callable[[Any], Any]] = {
    "target": _text(),
    "draft": _drafts,
    "workload": _text(),
    "column": _text(optional=True),
    "category_column": _text(optional=True),
    "system_prompt": _text(optional=True),
    "limit": _whole(1, 10_000_000, optional=True),
    "gamma": _gammas,
    "measure_gamma": _whole(1, MAX_GAMMA),
    "max_new_tokens": _whole(2, 1_000_000),
    "temperature": _number(0, 100),
    "top_p": _number(0, 1, above=True),
    "top_k": _whole(0, 10_000_000),
    "seed": _whole(0, 2**31 - 1),
    "dtype": _text(choices=("float32", "bfloat16", "float16")),
    "device": _text(choices=("auto", "cpu", "cuda", "mps")),
    "threads": _whole(1, 4096, optional=True),
    "cutoff": _cutoff,
    "batch_size": _whole(1, 1024),
    "probe_batch_sizes": _batch_sizes,
    "repeats": _whole(1, 1000),
    "max_other_cores": _number(0, 4096, above=True),
    "out": _text(),
    "name": _name,
    "keep_text": _flag,
    "trust_remote_code": _texts,
}
