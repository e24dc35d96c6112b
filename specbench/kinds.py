"""What the value of a setting may be: types that pydantic checks, with parsers of what people write (`1..8`).

A type tells pydantic what it holds when it is asked, so that declaring settings does not load it. A parser's ValueError
is the message; none quotes a text that may be private.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from specbench.text import shown
from specbench.validation import STORED, kind_of, strict_json

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, ValidationInfo
    from pydantic_core import CoreSchema

MAX_GAMMA = 64
MAX_BATCH = 1024
API_KEY_ENV = "SPECBENCH_API_KEY"
LARGEST = 1e12  # of numbers for a template

# Given to a chat template by the call that renders: all else goes to the template.
RESERVED = frozenset(
    {"conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"}
    | {"tokenize", "tokenizer_kwargs", "processor_kwargs", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask"}
)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low`, or only those above it, to `high`. One that is read back from where we stored it is checked
    by whoever reads it, in words of its own (context STORED)."""

    low: float
    high: float
    above: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticKnownError
        from pydantic_core.core_schema import with_info_after_validator_function

        def within(value: float, info: ValidationInfo) -> float:
            if info.context != STORED and not (self.low < value if self.above else self.low <= value):
                raise PydanticKnownError("greater_than_equal", {"ge": self.low})
            if info.context != STORED and value > self.high:
                raise PydanticKnownError("less_than_equal", {"le": self.high})
            return value

        return with_info_after_validator_function(within, handler(source))


@dataclass(frozen=True, slots=True)
class Written:
    """What people write, and the parser that makes the value of it; its ValueError is the message. A value that is
    read back from where we stored it (context STORED) is as the parser made it."""

    parse: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core.core_schema import with_info_before_validator_function

        def read(value: Any, info: ValidationInfo) -> Any:
            if info.context != STORED:
                return self.parse(value)
            return tuple(value) if isinstance(value, list) else value  # of JSON

        return with_info_before_validator_function(read, handler(source))


def parse_gammas(value: object) -> tuple[int, ...]:
    """`1..8`, `1..8..2`, `1,2,4` or a mix (`1,2,4..8`) -> the draft lengths, ascending, without repeats."""
    if isinstance(value, bool | float) or value in ([], (), None):
        raise ValueError(f"{shown(value)} is no draft length; write 1..8, 1..8..2 or 1,2,4")
    gammas: set[int] = set()
    for part in _parts(value):
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


def _parts(value: Any) -> Sequence[Any]:
    """The items of a list, also of one that is written with commas."""
    return value if isinstance(value, list | tuple) else str(value).split(",")


def _text(value: Any) -> Any:
    # Not the value: a system prompt is private, and so are prompts given for their file.
    if not isinstance(value, str) or not value.strip():
        found = "an empty text" if isinstance(value, str) else kind_of(value)
        raise ValueError(f"{found} is not a text; write one, in quotes if need be")
    if not _storable(value):
        raise ValueError("the text holds a NUL or half a surrogate pair; leave it out")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if any(not isinstance(item, str) or not item.strip() for item in items):
        raise ValueError(f"{shown(value)} is not a text or a list of texts")
    if not all(map(_storable, items)):
        raise ValueError("a text holds a NUL or half a surrogate pair; leave it out")
    return tuple(items)


def _storable(text: str) -> bool:
    return "\0" not in text and _encodable(text)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _drafts(value: Any) -> tuple[str, ...]:
    drafts = _texts(value)
    if not drafts:
        raise ValueError("at least one draft is needed")
    return drafts


def _counts(what: str) -> Callable[[Any], tuple[int, ...]]:
    def parse(value: Any) -> tuple[int, ...]:
        try:
            found = [part if isinstance(part, int) else int(str(part)) for part in _parts(value)]
        except ValueError:
            raise ValueError(f"{shown(value)} is no list of {what}; write 1,2,4,8") from None
        if not found or any(isinstance(count, bool) or not 1 <= count <= MAX_BATCH for count in found):
            raise ValueError(f"{shown(value)}: {what} go from 1 to {MAX_BATCH}")
        if len(set(found)) != len(found):
            raise ValueError(f"{shown(value)} names one of its {what} twice")
        return tuple(found)

    return parse


def _batch_sizes(value: Any) -> tuple[int, ...]:
    return tuple(sorted(_counts("batch sizes")(value)))


def _rates(value: Any) -> tuple[float, ...]:
    """`0.5,1,2` -> requests a second in the order given."""
    if value is None:
        return ()
    try:
        rates = tuple(_above_zero(part, 1e6) for part in _parts(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{shown(value)} is no list of requests per second; write 0.5,1,2") from None
    if len(set(rates)) != len(rates):
        raise ValueError(f"{shown(value)} names a rate twice")
    return rates


def _above_zero(value: Any, most: float) -> float:
    number = -1.0 if isinstance(value, bool) else float(value)
    if not 0 < number <= most:  # a NaN is in no range
        raise ValueError("out of range")
    return number


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def _duration(value: Any) -> float:
    """`90s`, `10m`, `1h30m` or a number of seconds -> seconds."""
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None and any(found.groups()):
        value = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    try:
        return _above_zero(value, 1e7)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{shown(value)} is no length of time; write 90s, 10m or 1h30m") from None


# In the place of edges: one of THIRDS holds a third of the prompts.
THIRDS = (0,)


def _lengths(value: Any) -> tuple[int, ...]:
    """`1k,4k,16k` -> 1024, 4096, 16384, ascending; `quantiles` -> THIRDS."""
    if value in ("quantiles", "", None, [], (), THIRDS, list(THIRDS)):
        return THIRDS if value in ("quantiles", THIRDS, list(THIRDS)) else ()
    found = []
    for part in _parts(value):
        number, kilo, rest = str(part).strip().lower().partition("k")
        if isinstance(part, bool) or not number.isdecimal() or rest or not 1 <= int(number) <= 10_000_000:
            raise ValueError(f"{shown(value)} are no lengths; write 1k,4k,16k or quantiles")
        found.append(int(number) * (1024 if kilo else 1))
    return tuple(sorted(set(found)))


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
            shares[name] = _above_zero(share, 1e9)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{shown(name)}={shown(share)}: a share is a number above 0; write code=0.6,chat=0.4"
            ) from None
    total = sum(shares.values())
    if abs(total - 1) > 0.011:
        raise ValueError(f"the shares add up to {total:g}, not 1")
    return {name: share / total for name, share in shares.items()}


def _cutoff(value: Any) -> Any:
    if value == 1 and not isinstance(value, bool):
        raise ValueError("1 would stop every draft; write a number from 0 to below 1")
    return value


def _name(value: Any) -> Any:
    text = _text(value)
    strange = any(c in '/\\:*?"<>|' or not c.isprintable() for c in text)
    # 80 letters, or as many bytes of other scripts: a folder's name has 255 at most.
    if strange or text.startswith(".") or text.endswith((".", " ")) or len(text) > 80 or len(text.encode()) > 160:
        raise ValueError(f"{shown(text)} cannot be part of a folder name; use letters, digits, '-' and '_'")
    return text


def _variable(value: Any) -> Any:
    """The name of an environment variable. No message quotes it: who mistakes the flag gives the key itself, and that
    must get neither onto the terminal nor, as a setting, into run.json."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("not the name of an environment variable; put the key into one, and give that one's name")
    if value != API_KEY_ENV and value not in os.environ:  # a key may look like a name
        raise ValueError("no environment variable of that name is set; export it, or leave this out")
    return value


_ADDED = re.compile(r"(?<=[^/:])(/+v1(/+(chat/+completions|completions|models|responses|embeddings))?)?/*$")


def _address(value: Any) -> str:
    """An address without what every request adds to it: clients of OpenAI's interface are given http://host/v1, and
    some people paste the whole of a request's. A whole one that is not below /v1 stays as it is."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 2000:
        raise ValueError("an address is a text, such as http://host:8000")
    return _ADDED.sub("", value.strip(), count=1)


def _model_names(value: Any) -> str:
    """`NAME`, or `NAME,NAME` where the second server has another."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
    if not 1 <= len(names) <= 2 or not all(name and name.isprintable() and len(name) <= 300 for name in names):
        raise ValueError("write a name, or two with a comma between, as the server's /v1/models lists them")
    return ",".join(names)


_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_EXAMPLE = '{"enable_thinking": false}'  # YAML as well


def _template_kwargs(value: Any) -> dict[str, Any] | None:
    """A mapping, or its JSON text, of plain names to plain values or lists of them; an empty one is None. No message
    quotes a value, which may be a text of one's own."""
    if isinstance(value, str):
        try:
            value = strict_json(value.encode())
        except (ValueError, RecursionError):
            raise ValueError(f"the text is no JSON; write {_EXAMPLE}") from None
    if value is None or value == {}:
        return None
    if not isinstance(value, dict) or not all(isinstance(name, str) and _ARGUMENT.fullmatch(name) for name in value):
        raise ValueError(f"not a mapping of plain names to values; write {_EXAMPLE}")
    for name, given in value.items():
        if name in RESERVED:
            raise ValueError(f"{name} is not for the template; leave it out")
        if not all(map(_is_plain, given if isinstance(given, list) else [given])):
            raise ValueError(f"{name} is neither a text, a number, true, false or null, nor a list of these")
    return value


def _is_plain(item: object) -> bool:
    """Whether JSON and UTF-8 can hold it."""
    if isinstance(item, str):
        return _encodable(item)
    return item is None or (isinstance(item, bool | int | float) and abs(item) <= LARGEST)


WORDS = Written(_text)
PATH = "path"  # says nothing to pydantic, and to a shell that it may complete the word

Text = Annotated[str, WORDS]
PathText = Annotated[str, WORDS, PATH]
Texts = Annotated[tuple[str, ...], Written(_texts)]
Drafts = Annotated[tuple[str, ...], Written(_drafts)]
Gammas = Annotated[tuple[int, ...], Written(parse_gammas)]
BatchSizes = Annotated[tuple[int, ...], Written(_batch_sizes)]
Clients = Annotated[tuple[int, ...], Written(_counts("numbers of clients"))]
Rates = Annotated[tuple[float, ...], Written(_rates)]
Seconds = Annotated[float, Written(_duration)]
Lengths = Annotated[tuple[int, ...], Written(_lengths)]
Mix = Annotated[dict[str, float] | None, Written(_mix)]
Cutoff = Annotated[float, Range(0, 1), Written(_cutoff)]
Name = Annotated[str, Written(_name)]
Variable = Annotated[str, Written(_variable)]
Address = Annotated[str, Written(_address)]
ModelNames = Annotated[str, Written(_model_names)]
TemplateKwargs = Annotated[dict[str, Any] | None, Written(_template_kwargs)]

# Draft heads that are driven, by their kind in run.json.
HEADS = {"eagle3": "EAGLE-3", "peagle": "P-EAGLE", "dflash": "DFlash", "mtp": "MTP"}
