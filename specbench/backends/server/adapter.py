"""What servers are asked, and what comes back from those with OpenAI's interface.

Answers are read field by field: absent and null are None, fields that nobody here reads are not looked at. A value of
another kind, a number beyond what any answer has and half a surrogate pair are AnswerError, which names the field and
never its value. Failures are told in words that may be shown and stored: never a server's message, which may quote
what was asked; of an error answer only its HTTP status, its type and code, and a field of our own request. Counters are
those that a server keeps since its start, in Prometheus' text.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from specbench.config import RunConfig
from specbench.records import (
    LARGEST,
    MOST_DRAFTED,
    Count,
    Finish,
    FirstFault,
    Message,
    Prompt,
    Sampling,
    ServerStats,
    Times,
)
from specbench.run_record import State as State
from specbench.validation import read_value

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")
_QUOTED = re.compile(r"""['"`](\w+)\\?['"`]""")

# Fields that every chat request has, so that their names in a message say nothing.
_ALWAYS = frozenset({"model", "messages", "stream"})

LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Problem:
    """What an error answer tells: its HTTP `status`, type and code (`kind`), the `field` of our request that it is
    about, and whether it is about how the longest answer is asked for (`about_limit`)."""

    status: int
    kind: str | None = None
    field: str | None = None
    about_limit: bool = False

    def __str__(self) -> str:
        told = ", ".join(part for part in (self.kind, self.field and f"field `{self.field}`") if part)
        return f"HTTP status {self.status}" + (f" ({told})" if told else "")


class RefusedError(Exception):
    """The server will not answer this request, or not so that it can be measured, and would not next time either."""

    def __init__(self, problem: Problem | str) -> None:
        self.problem = problem if isinstance(problem, Problem) else None
        super().__init__(str(problem))

    def said(self, who: str) -> str:
        return f"{who} refuses it: {self}" if self.problem else f"{who}: {self}"


class FailedError(Exception):
    """The request failed in a way that may pass: `kind` says how, without a word of what was asked or answered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


class AnswerError(ValueError):
    """An answer that is not as its engine answers. The message is ours: it may be shown, and quotes no text."""


def problem_of(status: int, page: str, sent: Mapping[str, Any]) -> Problem:
    """What an error answer to the request `sent` tells, as OpenAI, FastAPI and the engines write theirs."""
    texts = json.dumps([sent.get("messages"), sent.get("prompt"), sent.get("content")], ensure_ascii=False)
    errors = list(_errors(page))
    words = [word(error.get(key)) for error in errors for key in ("type", "error_type", "code")]
    kinds = dict.fromkeys(each for each in words if each and each not in texts and each.lower() not in ("none", "null"))
    message = " ".join(str(error.get(key, "")) for error in errors for key in ("message", "msg"))
    field = next((name for error in errors for name in _named(error) if name in sent), None)
    if field is None:
        mentioned = {name for name in _QUOTED.findall(message) if name in sent} - _ALWAYS
        field = mentioned.pop() if len(mentioned) == 1 else None
    return Problem(status, ", ".join(kinds) or None, field, field in LIMITS or LIMITS[1] in message)


def error_word(error: object) -> str:
    """The type or code of an error inside an answer, as `: InternalServerError`; empty where it has none."""
    told = error if isinstance(error, dict) else {}
    found = word(told.get("type")) or word(told.get("code"))
    return "" if found is None else f": {found}"


def word(value: object) -> str | None:
    """A name such as `invalid_request_error`; None for anything that could be more."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def as_word(value: object) -> str:
    """A server's own word for a message of ours, or of which kind it is."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return word(value) or f"a {type(value).__name__}"


def _errors(page: str) -> Iterator[Mapping[str, Any]]:
    """The errors of an error answer: OpenAI's `error`, FastAPI's list `detail`, or the whole of it."""
    try:
        answer = json.loads(page)
    except (ValueError, RecursionError):
        return
    if not isinstance(answer, dict):
        return
    error, detail = answer.get("error"), answer.get("detail")
    if isinstance(detail, list):
        yield from (each for each in detail if isinstance(each, dict))
    yield error if isinstance(error, dict) else answer | {"message": error or answer.get("message") or detail}


def _named(error: Mapping[str, Any]) -> Iterator[str]:
    """Names of fields that an error points at: `param` of OpenAI's, such as messages[0].content, `loc` of FastAPI's."""
    param, place = error.get("param"), error.get("loc")
    if isinstance(param, str):
        yield re.split(r"[.\[]", param)[0]
    if isinstance(place, list):
        yield from (part for part in place if isinstance(part, str))


Json = Mapping[str, Any]
Milliseconds = Annotated[float, Field(ge=0, le=1e12)]
Tokens = Annotated[list[Count], FirstFault()]
Text = Annotated[str, Field(max_length=1 << 26)]  # with a limit, pydantic also sees to it that it is UTF-8


class Fields(BaseModel):
    """What is read of a JSON object."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, data: object) -> Self:
        """Raises AnswerError: `usage.completion_tokens is text, not a whole number`."""
        try:
            return read_value(cls, data, "the answer")
        except ValueError as error:
            raise AnswerError(str(error)) from None


class Function(Fields):
    name: Text | None = None
    arguments: Text | None = None


class Call(Fields):
    function: Function | None = None


class Delta(Fields):
    """A piece of an answer. A model that thinks sends its thoughts in a field of their own, some servers in two that
    say the same."""

    content: Text | None = None
    refusal: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: list[Call] | None = None
    function_call: Function | None = None

    @property
    def text(self) -> str:
        """All of it; calls of tools have no text but what is called and with what."""
        calls = [call.function for call in self.tool_calls or ()] + [self.function_call]
        called = [part or "" for call in calls if call is not None for part in (call.name, call.arguments)]
        thought = self.reasoning_content or self.reasoning or ""
        return "".join((thought, self.content or "", self.refusal or "", *called))


class Choice(Fields):
    delta: Delta | None = None
    finish_reason: Text | None = None

    @property
    def text(self) -> str:
        return "" if self.delta is None else self.delta.text


class PromptDetails(Fields):
    cached_tokens: Count | None = None


class UsageFields(Fields):
    """Tokens of a request as the server counts them, those that were written with the end of sequence."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Of the prompt, not computed again."""
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class Event(Fields):
    choices: list[Choice] | None = None
    usage: UsageFields | None = None
    error: Any = None

    @cached_property
    def text(self) -> str:
        return "".join(choice.text for choice in self.choices or ())

    @property
    def finish_reason(self) -> str | None:
        return next((choice.finish_reason for choice in self.choices or () if choice.finish_reason), None)


class Model(Fields):
    """A row of /v1/models. `root` is what it is built on, `parent` is there of a LoRA alone."""

    id: Text | None = None
    root: Text | None = None
    parent: Text | None = None
    max_model_len: Count | None = None


class Models(Fields):
    data: list[Model] | None = None


class TokenList(Fields):
    """/tokenize."""

    tokens: Tokens | None = None

    def ids(self) -> tuple[int, ...]:
        """Raises AnswerError where there are none."""
        if self.tokens is None:
            raise AnswerError("the answer of /tokenize has no tokens")
        return tuple(self.tokens)


def in_seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def parsed(page: str | None) -> Json:
    """The JSON object of a page; empty where the server does not have the page. AnswerError for any other text."""
    try:
        value = {} if page is None else json.loads(page)
    except (ValueError, RecursionError):
        raise AnswerError("expected a JSON object, got another text") from None
    if not isinstance(value, dict):
        raise AnswerError("expected a JSON object, got another value")
    return value


Samples = Mapping[str, list[tuple[dict[str, str], float]]]


def samples(page: str) -> Samples:
    """Every sample of a metrics page by its full name, with labels and value. Raises ValueError for text that is not
    Prometheus'."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found[sample.name].append((dict(sample.labels), float(sample.value)))
    except (LookupError, TypeError, AttributeError):  # the parser trips over what it does not expect
        raise ValueError("no page of counters") from None
    return found


def total(page: Samples, name: str) -> int | None:
    """The sum over all engines of a process group; None where the page has no such counter. Raises ValueError for a sum
    that none has."""
    return _whole(sum(value for _, value in page[name])) if name in page else None


def by_position(page: Samples, name: str) -> tuple[int, ...] | None:
    """A counter with a label `position`, from position 0 on, summed over engines. Raises ValueError as above."""
    if name not in page:
        return None
    sums: dict[int, float] = defaultdict(float)
    for labels, value in page[name]:
        position = labels.get("position", "")
        if not position.isdecimal() or len(position) > 9 or int(position) >= MOST_DRAFTED:
            raise ValueError("a position that no draft has")
        sums[int(position)] += value
    return tuple(_whole(sums[position]) for position in range(max(sums) + 1))


def _whole(value: float) -> int:
    if not 0 <= value <= LARGEST:
        raise ValueError("a counter that no server reaches")
    return round(value)


@dataclass(frozen=True, slots=True)
class Cache:
    """Which of the prompts before it a request may be answered from: those with its `name`, of which it is number
    `turn`, from 0. In the server's sequence number `slot`, where it is to stay in one (None: where it likes)."""

    name: str
    turn: int
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `seed` draws the samples; `tools`, `template_kwargs` and `request` are as a Prompt has them. With
    `cache` it is a turn of a conversation; without, nothing is to be taken from earlier requests."""

    messages: tuple[Message, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    cache: Cache | None = None


def ask_of(prompt: Prompt, config: RunConfig, seed: int) -> Ask:
    """The request of a prompt: what it gives the chat template goes over what the run gives all."""
    return Ask(
        prompt.messages,
        config.max_new_tokens,
        config.sampling,
        seed,
        prompt.tools,
        {**(config.chat_template_kwargs or {}), **prompt.template_kwargs},
        prompt.request,
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a streamed answer, and its arrival in seconds after the request was sent."""

    at_s: float
    data: Mapping[str, Any]


# A draft may be accepted whole, and a short answer come at once: so many tokens do not.
PIECE = 8


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer. `first_s` and `last_s` are the arrivals of the first and of the last token; `output_tokens`
    counts as the engine does, with the end of sequence; `pieces` are the events that had a text. `drafted[i]`,
    `accepted[i]` belong to round i; both are empty where the engine lists no rounds."""

    text: str
    finish: Finish
    prompt_tokens: int | None
    output_tokens: int
    first_s: float
    last_s: float
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    told: ServerStats
    pieces: int

    def as_trial(self, waited_s: float = 0.0) -> dict[str, Any]:
        """What a server decides of a trial, by the names of its fields, where the request was sent so late."""
        told = {name: getattr(self, name) for name in ("output_tokens", "finish", "drafted", "accepted", "told")}
        times = Times(waited_s + self.first_s, None, None, None, None, waited_s + self.last_s)
        return told | {"prompt_tokens": self.prompt_tokens or 0, "times": times}

    @property
    def in_one_piece(self) -> bool:
        """Whether nobody can know when its tokens were written, as from a gateway that does not stream."""
        return self.output_tokens >= PIECE and self.pieces == 1

    @property
    def at_once(self) -> bool:
        """Whether all of it was read at once: it is so short, or we were so late."""
        return self.output_tokens > 1 and self.last_s <= self.first_s


# GET a path: the page as text, or None where the server does not have it. POST a JSON body to a path: the JSON answer.
Get = Callable[[str], Awaitable[str | None]]
Post = Callable[[str, dict[str, Any]], Awaitable[Json]]
