"""What templates can do with a value, whatever page they are on: numbers, ranges, pairs and lists in words.

`FILTERS` are written `value|name`, `FUNCTIONS` `name(value)`. What depends on the page is its dialect's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from textwrap import shorten
from typing import Any

from markupsafe import Markup, escape

from specbench import text
from specbench.report.schedule import ranges, sglang_schedule, tensorrt_schedule, vllm_schedule

# More positions than this do not fit beside the bars, and more of a name not beside a table's numbers.
_SURVIVAL_NUMBERS = 8
_NAME_WIDTH = 24


def listed(items: Iterable[str]) -> str:
    """`a, b and c`; of markup it stays markup."""
    each = list(items)
    if any(hasattr(item, "__html__") for item in each):
        each = [escape(item) for item in each]
        return Markup(" and ").join([Markup(", ").join(each[:-1]), each[-1]]) if len(each) > 1 else each[0]
    return text.join(each)


def squash(words: str) -> str:
    """On one line, with single spaces; of markup it stays markup."""
    line = re.sub(r"[ \t\n]+", " ", str(words)).strip()
    return Markup(line) if hasattr(words, "__html__") else line  # noqa: S704  # it was markup


def ranged(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """`2.31 [2.20, 2.42]`; the number alone where there is no interval."""
    if value is None:
        return text.UNKNOWN
    ends = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"


def _ms_range(value_s: float, low_s: float, high_s: float) -> str:
    shown = [f"{1000 * seconds:,.{2 if value_s < 0.01 else 1}f}" for seconds in (value_s, low_s, high_s)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def pair(one: float | None, other: float | None, digits: int | None = None) -> str:
    """`46.1 / 9.4`: the target alone and with the draft, or A and B; unknown where neither is known."""
    if one is None and other is None:
        return text.UNKNOWN
    return " / ".join(
        text.UNKNOWN if v is None else f"{v:,.{text.decimals(v) if digits is None else digits}f}" for v in (one, other)
    )


def bars(survival: Sequence[float | None], rows: Iterable[Any], *, ascii_only: bool) -> str:
    """Bars and, where those of all `rows` fit beside them, the shares: `▅▃ .52 .31`."""
    longest = max(len(row.survival) for row in rows)
    line = text.sparkline(survival, ascii_only=ascii_only) or text.UNKNOWN
    if longest > _SURVIVAL_NUMBERS:
        return line
    shares = " ".join("?" if share is None else f"{share:.2f}".removeprefix("0") for share in survival)
    return f"{line:{longest}} {shares}".rstrip()


def of_100(share: float) -> str:
    """`8 were`, `1 was`, `fewer than 1 was`: how many of a hundred, with their verb."""
    many = text.percent(share).rstrip("%").replace("<", "fewer than ").replace(">", "more than ")
    return f"{many} {'was' if many.endswith('than 1') or many == '1' else 'were'}"


FILTERS: dict[str, Callable[..., Any]] = {
    "listed": listed,
    "squash": squash,
    "closed": lambda lines: type(lines)("".join(f"{line}\n" for line in lines.splitlines() if line.strip())),
    "kwargs": text.template_kwargs,
    "of_100": of_100,
    "cell": text.cell,
    "x": text.speedup,
    "asked": text.asked,
    "exactly": text.exactly,
    "fine": text.fine,
    "pct": text.percent,
    "chance": text.chance,
    "ms": text.milliseconds,
    "size": lambda count, unit="B", limit=None: text.size(count, unit, limit),
    "num": text.whole,
    "n0": lambda value: f"{value:,.0f}",
    "d1": lambda value: f"{value:.1f}",
    "d2": text.digits,
    "count": text.count,
    "out_of": text.out_of,
    "est": lambda row, limit=None: text.estimate(row.speedup, row.speedup_low, row.speedup_high, limit),
    "capital": text.capital,
    "small": lambda words: words[:1].lower() + words[1:],
    "sentence": text.sentence,
    "shortened": lambda name: shorten(name, _NAME_WIDTH, placeholder=".."),
    "ranged": lambda one, digits=2: ranged(one.value, one.low, one.high, digits),
    "ranges": ranges,
    "vllm_schedule": vllm_schedule,
    "tensorrt_schedule": tensorrt_schedule,
    "sglang_schedule": sglang_schedule,
}

FUNCTIONS: dict[str, Any] = {
    "estimate": text.estimate,
    "interval": text.interval,
    "spread": text.spread,
    "decimals": text.apart,
    "ranged": ranged,
    "ms_range": _ms_range,
    "pair": pair,
    "pair_ms": lambda *seconds: pair(*(None if value is None else 1000 * value for value in seconds)),
    "UNKNOWN": text.UNKNOWN,
    "shown": text.Shown,
    "ms": text.ms,
    "divide": text.divide,
    "multiply": text.multiply,
    "add": text.add,
}
