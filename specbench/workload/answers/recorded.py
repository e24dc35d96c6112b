"""One answer of a log, whatever wrote the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specbench.records import Finish, Message, Prompt
from specbench.workload.shapes import Asked

# What the prompt is: turns for the chat template, a text for the tokenizer, or what a template made already.
Form = Literal["chat", "text", "rendered"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote. `finish` is "eos" where it ended the text itself, "length" where it was cut, None where the
    log does not say; `ids` are its tokens, an end of sequence included, and `log_probs` theirs in nats."""

    message: Message
    finish: Finish | None = None
    ids: tuple[int, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    log_probs: tuple[float, ...] | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A reply and what it is the reply to, as a reader finds them. `limit` is the most tokens that were allowed, and
    `conversation` what a log calls the session."""

    asked: Asked
    reply: Reply
    form: Form = "chat"
    limit: int | None = None
    temperature: float | None = None
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answer: a prompt with an id of its own, the reply, and its conversation, 16 hex digits. Answers of one
    conversation are not independent."""

    prompt: Prompt
    reply: Reply
    form: Form
    limit: int | None
    temperature: float | None
    conversation: str
