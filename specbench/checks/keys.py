"""What each key may hold: the value of a flag or of YAML in, the checked value out; ValueError says what is wrong."""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
from collections.abc import Callable
from typing import Any

from specbench.checks.address import check_address, check_model_names
from specbench.checks.template_kwargs import check_template_kwargs
from specbench.validation import kind_of

MAX_GAMMA = 64
MAX_BATCH = 1024
API_KEY_ENV = "SPECBENCH_API_KEY"

_shorten = reprlib.Repr()
_shorten.maxlevel, _shorten.maxlist, _shorten.maxdict, _shorten.maxstring = 2, 4, 4, 60


def shown(value: object) -> str:
    """A value for an error's one line: short, whatever was given."""
    return _shorten.repr(value)


def parse_gammas(text: object) -> tuple[int, ...]:
    """`1..8`, `1..8..2`, `1,2,4` or a mix (`1,2,4..8`) -> the draft lengths, ascending, without repeats."""
    parts = text if isinstance(text, list | tuple) else str(text).split(",")
    gammas: set[int] = set()
    for part in parts:
        ends = str(part).strip().split("..")
        try:
            numbers = [int(end) for end in ends]
        except ValueError:
            raise ValueError(f"{shown(part)} is no draft length; write 1..8, 1..8..2 or 1,2,4") from None
        if len(numbers) > 3:
            raise ValueError(f"{shown(part)} has too many '..'; write first..last..step")
        first, last, step = numbers[0], numbers[min(1, len(numbers) - 1)], numbers[2] if len(numbers) == 3 else 1
        if step < 1 or last < first:
            raise ValueError(
                f"{shown(part)} is an empty range; write first..last with first <= last and a step of 1 or more"
            )
        if first < 1 or last > MAX_GAMMA:
            raise ValueError(f"{shown(part)} is outside 1..{MAX_GAMMA}: a draft has between 1 and {MAX_GAMMA} tokens")
        gammas.update(range(first, last + 1, step))
    return tuple(sorted(gammas))


def _whole(low: int, high: int, *, optional: bool = False) -> Callable[[Any], int | None]:
    def check(value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{shown(value)} is not a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float, *, above: bool = False) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        # A NaN is in no range.
        bad = isinstance(value, bool) or not isinstance(value, int | float)
        if bad or not low <= value <= high or (above and value == low):
            raise ValueError(f"{shown(value)} is not a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    return check


def _text(*, optional: bool = False, choices: tuple[str, ...] = ()) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        # Not the value: a system prompt is private, and so are prompts given for their file.
        if not isinstance(value, str) or not value.strip():
            found = "an empty text" if isinstance(value, str) else kind_of(value)
            raise ValueError(f"{found} is not a text; write one, in quotes if need be")
        if "\0" in value or not _encodable(value):
            raise ValueError("the text holds a NUL or half a surrogate pair; leave it out")
        if choices and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{shown(value)} is none of {', '.join(choices)}{hint}")
        return value

    return check


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if any(not isinstance(item, str) or not item.strip() for item in items):
        raise ValueError(f"{shown(value)} is not a text or a list of texts")
    if any("\0" in item or not _encodable(item) for item in items):
        raise ValueError("a text holds a NUL or half a surrogate pair; leave it out")
    return tuple(items)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _drafts(value: Any) -> tuple[str, ...]:
    drafts = _texts(value)
    if not drafts:
        raise ValueError("at least one draft is needed")
    return drafts


def _gammas(value: Any) -> tuple[int, ...]:
    if isinstance(value, bool | float) or value in ([], (), None):
        raise ValueError(f"{shown(value)} is no draft length; write 1..8, 1..8..2 or 1,2,4")
    return parse_gammas(value)


def _counts(what: str) -> Callable[[Any], tuple[int, ...]]:
    """`1,2,4,8` -> whole numbers in the order given."""

    def check(value: Any) -> tuple[int, ...]:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            found = [part if isinstance(part, int) else int(str(part)) for part in parts]
        except ValueError:
            raise ValueError(f"{shown(value)} is no list of {what}; write 1,2,4,8") from None
        if not found or any(isinstance(count, bool) or not 1 <= count <= MAX_BATCH for count in found):
            raise ValueError(f"{shown(value)}: {what} go from 1 to {MAX_BATCH}")
        if len(set(found)) != len(found):
            raise ValueError(f"{shown(value)} names one of its {what} twice")
        return tuple(found)

    return check


def _rates(value: Any) -> tuple[float, ...]:
    """`0.5,1,2` -> requests a second in the order given."""
    if value is None:
        return ()
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        rates = tuple(_number(0, 1e6, above=True)(_as_float(part)) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{shown(value)} is no list of requests per second; write 0.5,1,2") from None
    if len(set(rates)) != len(rates):
        raise ValueError(f"{shown(value)} names a rate twice")
    return rates


def _as_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("no number")
    return float(value) if not isinstance(value, int) or abs(value) < 1e9 else math.inf


def _name(value: Any) -> str | None:
    text = _text(optional=True)(value)
    if text is None:
        return None
    strange = any(c in '/\\:*?"<>|' or not c.isprintable() for c in text)
    # 80 letters, or as many bytes of other scripts: a folder's name has 255 at most.
    if strange or text.startswith(".") or text.endswith((".", " ")) or len(text) > 80 or len(text.encode()) > 160:
        raise ValueError(f"{shown(text)} cannot be part of a folder name; use letters, digits, '-' and '_'")
    return text


def _variable(value: Any) -> str:
    """The name of an environment variable. No message quotes it: who mistakes the flag gives the key itself, and that
    must get neither onto the terminal nor, as a setting, into run.json."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("not the name of an environment variable; put the key into one, and give that one's name")
    if value != API_KEY_ENV and value not in os.environ:  # a key may look like a name
        raise ValueError("no environment variable of that name is set; export it, or leave this out")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not true or false")
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
            shares[name] = _number(0, 1e9, above=True)(_as_float(share))
        except (TypeError, ValueError):
            raise ValueError(
                f"{shown(name)}={shown(share)}: a share is a number above 0; write code=0.6,chat=0.4"
            ) from None
    total = sum(shares.values())
    if abs(total - 1) > 0.011:
        raise ValueError(f"the shares add up to {total:g}, not 1")
    return {name: share / total for name, share in shares.items()}


POLICY_CHECKS: dict[str, Callable[[Any], Any]] = {
    "min_speedup": _number(0, 100, above=True),
    "metric": _text(choices=("decode", "e2e")),
    "confidence": _number(0.5, 0.9999),
    "slower_than": _number(0, 1),
    "max_slower_share": _number(0, 1),
    "mix": _mix,
    "price_per_hour": _optional(_number(0, 1e9, above=True)),
    "max_added_gb": _optional(_number(0, 1e6)),
}

RUN_CHECKS: dict[str, Callable[[Any], Any]] = {
    "target": _text(),
    "draft": _drafts,
    "workload": _text(),
    "column": _text(optional=True),
    "category_column": _text(optional=True),
    "system_prompt": _text(optional=True),
    "chat_template_kwargs": check_template_kwargs,
    "limit": _whole(1, 10_000_000, optional=True),
    "gamma": _gammas,
    "measure_gamma": _whole(1, MAX_GAMMA),
    "max_new_tokens": _whole(2, 1_000_000),
    "temperature": _number(0, 100),
    "top_p": _number(0, 1, above=True),
    "top_k": _whole(0, 10_000_000),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0, 10, above=True),
    "seed": _whole(0, 2**31 - 1),
    "dtype": _text(choices=("float32", "bfloat16", "float16")),
    "device": _text(choices=("auto", "cpu", "cuda", "mps")),
    "threads": _whole(1, 4096, optional=True),
    "cutoff": _cutoff,
    "batch_size": _whole(1, 1024),
    "probe_batch_sizes": lambda value: tuple(sorted(_counts("batch sizes")(value))),
    "engine": _text(choices=("local", "llamacpp", "vllm", "sglang", "openai")),
    "launch": _text(optional=True),
    "server": check_address,
    "spec_server": check_address,
    "draft_server": check_address,
    "served_model_name": check_model_names,
    "concurrency": _counts("numbers of clients"),
    "rate": _rates,
    "request_timeout_s": _number(0, 1e6, above=True),
    "api_key_env": _variable,
    "repeats": _whole(1, 1000),
    "max_other_cores": _number(0, 4096, above=True),
    "out": _text(),
    "name": _name,
    "all_gammas": _flag,
    "keep_text": _flag,
    "trust_remote_code": _texts,
}
