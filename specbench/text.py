"""How every number and name is written, so that tables, figures and the brief agree.

Unknown is "-". Nothing here rounds a doubt away: a share just under 1 reads ">99%", not "100%".
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "-"
NO_INTERVAL = "(no interval)"

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 2, 4, 4, 60

_BLOCKS = "▁▂▃▄▅▆▇█"
_ROUNDED = "(the digits shown are rounded)"


def clean(text: object) -> str:
    """Names come from users' files: one line, and no control characters that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def shown(value: object) -> str:
    """A value for an error's one line: short, whatever was given."""
    return _SHORT.repr(value)


def did_you_mean(name: str, known: Iterable[str], otherwise: str, form: str = "{}") -> str:
    """A hint that names the nearest of what is `known`, in that `form`; else `otherwise`."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {form.format(near[0])}?" if near else otherwise


def ascii_text(text: str) -> str:
    """The text for a terminal that can show nothing else; "?" stands for what is lost."""
    return text.encode("ascii", "replace").decode("ascii")


def apart(value: float, limit: float | None, digits: int) -> int:
    """Decimals, at least so many, with which `value` reads as the `limit` where it is that, and only there."""
    if limit is None:
        return digits
    same = math.isclose(value, limit, rel_tol=1e-9)
    while round(limit, digits) != round(limit, 9) if same else round(value, digits) == round(limit, digits):
        digits += 1
    return digits


def speedup(value: float | None, limit: float | None = None) -> str:
    """`1.23x`: how many times as fast as the target alone; beside a limit `1.097x`, where 1.10x would be the limit."""
    return UNKNOWN if value is None else f"{value:.{apart(value, limit, 2)}f}x"


def asked(minimum: float) -> str:
    """`1.10x`, or `1.125x`: a threshold as it was asked for, not rounded."""
    return speedup(minimum) if round(minimum, 2) == minimum else f"{minimum:.10g}x"


def exactly(share: float) -> str:
    """`2.5%`: the same of a share."""
    return f"{100 * share:.10g}%"


def fine(share: float) -> str:
    """`3.125%`, `0.000048%`: also what is far below a percent, without an exponent."""
    return f"{100 * share:.6f}".rstrip("0").rstrip(".") + "%"


def interval(low: float | None, high: float | None, limit: float | None = None) -> str:
    """`[1.10, 1.35]`, or `(no interval)`."""
    if low is None or high is None:
        return NO_INTERVAL
    return f"[{low:.{apart(low, limit, 2)}f}, {high:.{apart(high, limit, 2)}f}]"


def estimate(value: float, low: float | None, high: float | None, limit: float | None = None) -> str:
    """`1.23x [1.10, 1.35]`, or `1.23x (no interval)`."""
    return f"{speedup(value, limit)} {interval(low, high, limit)}"


def spread(low: float, high: float) -> str:
    """`49% slower to 6% faster`: the ends of a ratio's interval, as one says them."""
    ends = [f"{abs(end - 1):.0%} {'slower' if end < 1 else 'faster'}" for end in (low, high)]
    return " to ".join(ends)


def percent(share: float | None, limit: float | None = None) -> str:
    """`63%` of a share in 0..1; the ends are kept for exactly none and exactly all."""
    if share is None:
        return UNKNOWN
    if 0 < share < 0.01 <= (limit or 1):
        return "<1%"
    if 1 > share > 0.99 >= (limit or 0):
        return ">99%"
    return _percent(share, limit)


def _percent(share: float, *limits: float | None) -> str:
    digits = max(apart(100 * share, None if limit is None else 100 * limit, 0) for limit in limits)
    return f"{100 * share:.{digits}f}%"


def chance(probability: float, confidence: float = 0.95) -> str:
    """A percent for a probability from a bootstrap, which can never show certainty; on its own side of what a verdict
    with that confidence takes."""
    unlikely, sure = 1 - confidence, confidence
    if probability < (low := min(0.01, unlikely)):
        return f"below {exactly(low)}"
    if probability > (high := max(0.99, sure)):
        return f"above {exactly(high)}"
    return _percent(probability, unlikely, sure)


def milliseconds(seconds: float) -> str:
    """`14.0 ms`: one decimal, two below one millisecond, none from a hundred."""
    value = seconds * 1000
    return f"{value:,.{decimals(value)}f} ms"


def decimals(value: float) -> int:
    """The larger a time or a rate, the fewer it is shown with."""
    return 2 if value < 1 else 1 if value < 100 else 0


@dataclass(frozen=True, slots=True)
class Shown:
    """A number as it is shown: rounded to `digits`, with a unit behind."""

    value: float
    digits: int = 0
    unit: str = ""

    @property
    def rounded(self) -> float:
        return round(self.value, self.digits)

    def __str__(self) -> str:
        return f"{self.value:,.{self.digits}f}{self.unit}"


def ms(seconds: float) -> Shown:
    """As `milliseconds` has it."""
    return Shown(1000 * seconds, decimals(1000 * seconds), " ms")


def divide(top: Shown, bottom: Shown, result: Shown, what: str = "") -> str:
    """`1.67 / 1.33 = 1.26`. Where the digits shown give something else than the numbers behind them, the result stands
    there as `is about 1.26`, with the reason."""
    return _sum(f"{top} / {bottom}", top.rounded / bottom.rounded, result, what)


def multiply(one: Shown, other: Shown, result: Shown) -> str:
    """`1.32 x 18.8 ms = 24.8 ms`, in the same way."""
    return _sum(f"{one} x {other}", one.rounded * other.rounded, result)


def add(parts: Sequence[Shown], result: Shown, what: str = "") -> str:
    """`16.5 ms + 75.3 ms = 91.8 ms`, in the same way."""
    return _sum(" + ".join(map(str, parts)), math.fsum(part.rounded for part in parts), result, what)


def _sum(words: str, shown: float, result: Shown, what: str = "") -> str:
    behind = f"{result}{' ' + what if what else ''}"
    if f"{shown:.{result.digits}f}" == f"{result.value:.{result.digits}f}":
        return f"{words} = {behind}"
    return f"{words} is about {behind} {_ROUNDED}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `2 h 5 min`: how long something takes, as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float | None, unit: str, limit: float | None = None) -> str | None:
    """`134.5 M parameters`, `269 MB`: a large count in thousands, millions or billions; None if unknown."""
    if count is None:
        return None
    names = (("B" if unit != "B" else "G", 1e9), ("M", 1e6), ("k", 1e3))
    prefix, scale = next(((name, scale) for name, scale in names if count >= scale), ("", 1.0))
    value = count / scale
    digits = 0 if value >= 100 or scale == 1 else 1
    number = f"{value:.{apart(value, None if limit is None else limit / scale, digits)}f}"
    return f"{number} {prefix}{unit}" if unit == "B" else f"{number} {prefix} {unit}".replace("  ", " ")


def count(n: int, noun: str) -> str:
    """`1 prompt`, `1,755 rounds`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def join(items: Iterable[str]) -> str:
    """`a, b and c`."""
    names = list(items)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def whole(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def digits(value: float | None, limit: float | None = None) -> str:
    return UNKNOWN if value is None else f"{value:.{apart(value, limit, 2)}f}"


def out_of(part: int | None, whole: int) -> str:
    """`73 of 115`."""
    return UNKNOWN if part is None else f"{part:,} of {whole:,}"


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False, width: int = 8) -> str:
    """Shares in 0..1 as bars; in ASCII as tenths (`8` is 0.8 to 0.9). At most `width` marks, evenly chosen."""
    if len(values) > width:
        last = len(values) - 1
        values = [values[round(i * last / (width - 1))] for i in range(width)]
    marks = "0123456789" if ascii_only else _BLOCKS
    return "".join("?" if v is None else marks[min(int(v * len(marks)), len(marks) - 1)] for v in values)


def capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def sentence(words: str) -> str:
    """Capital first, full stop last; of markup it stays markup."""
    return capital(words) if words.endswith((".", "!", "?")) else capital(words) + "."


def code(text: object) -> str:
    """A Markdown code span that survives backticks in the text."""
    line = clean(text)
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def escape(text: object) -> str:
    """Markdown prose from a user's name: nothing in it can start markup, a link or a table cell. Between letters a `_`
    starts none."""
    return re.sub(r"([\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", clean(text))


def cell(markdown: str) -> str:
    """Make a Markdown fragment safe inside a table row; GFM needs the bar escaped even in a code span."""
    return re.sub(r"(?<!\\)\|", r"\\|", markdown)


def template_kwargs(given: Mapping[str, Any]) -> str:
    """`enable_thinking: false`, values as JSON has them; empty where nothing is given."""
    return clean(", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in given.items()))


def gigabytes(count: float) -> str:
    """`140 GB`, `3.4 GB`, `0.05 GB`: for messages about memory."""
    value = count / 1e9
    if value < 0.01:
        return f"{count / 1e6:.2f} MB"
    return f"{value:.0f} GB" if value >= 10 else f"{value:.1f} GB" if value >= 1 else f"{value:.2f} GB"
