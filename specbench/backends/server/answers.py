"""Answers of servers with OpenAI's interface, field by field. What an engine has beside stands in its adapter.

Absent and null are None; fields that nobody here reads are not looked at. A value of another kind, a number beyond
what any answer has and half a surrogate pair are AnswerError, which names the field and never its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from specbench.backends.server.failures import AnswerError
from specbench.records import Count, FirstFault
from specbench.validation import read_value

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
    """A call of a tool."""

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
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None


class Event(Fields):
    """One event of a streamed answer."""

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
