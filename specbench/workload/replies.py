"""One answer of a log, and answers as engines write them: OpenAI's responses, whole or in chunks, messages alone, and
the request log of vLLM (`--enable-log-requests --enable-log-outputs`, prompts at the level DEBUG), in which lines of
one request stand apart, and a stream is a line for each chunk.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from specbench.errors import WorkloadError
from specbench.records import Finish, Message, Prompt
from specbench.validation import kind_of
from specbench.workload.conversation import earlier_turns, looks_like_turns, text_prompt, unpacked
from specbench.workload.faults import MalformedRowError, SkipRowError, list_names
from specbench.workload.files import READERS, format_of
from specbench.workload.shapes import Asked
from specbench.workload.text import text_lines

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


_CURE = "See the formats of recorded answers in docs/recorded.md."
_ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls", "function_call", "tool_use")
_TOKEN_ID = re.compile(r"token_id:(\d+)")
_INNER = ("message", "body", "text", "output", "generation")


def reply_of(value: object, place: str) -> Reply:
    """A response of OpenAI's interface, a message, a list that ends with one, or a text. Raises SkipRowError and
    MalformedRowError."""
    if isinstance(value, str):
        held = unpacked(value)
        if not _is_reply(held):
            return Reply(Message("assistant", _some(value)))
        value = held
    if isinstance(value, list) and value:
        return reply_of(value[-1], place)
    if not isinstance(value, dict):
        raise MalformedRowError(f"{place} is {kind_of(value)}, not an answer", _CURE)
    if isinstance(value.get("choices"), list):
        return _response(value, place)
    for key in _INNER:
        if "content" not in value and value.get(key) is not None:
            inner = reply_of(value[key], f"{place}.{key}")
            return replace(inner, finish=inner.finish or finish_in(value))
    return Reply(message_of(value, place), finish=finish_in(value))


def _is_reply(held: object) -> bool:
    """Whether what a text holds as JSON is a response or a message; else the JSON is what the model wrote."""
    inner = map(held.get, _INNER) if isinstance(held, dict) else ()
    return any(map(_is_one, (held, *inner)))


def _is_one(held: object) -> bool:
    if not isinstance(held, dict):
        return looks_like_turns(held)
    choices = held.get("choices")
    if isinstance(choices, list):
        return all(map(_is_choice, choices))
    named = held.get("role") == "assistant" or isinstance(held.get("kwargs"), dict)  # LangChain's
    return named and looks_like_turns([held])


def _is_choice(held: object) -> bool:
    """A quiz has choices with a text as well."""
    if not isinstance(held, dict):
        return False
    return isinstance(held.get("message"), dict) or {"text", "finish_reason"} <= held.keys()


def message_of(value: Mapping[str, Any], place: str) -> Message:
    """The assistant's message; a role that is not there is the assistant's."""
    named = any(value.get(key) is not None for key in ("role", "from", "speaker", "type", "kwargs", "data"))
    turns = earlier_turns([value if named else {"role": "assistant", **value}], place)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise MalformedRowError(f"{place} is no message of an assistant", _CURE)
    message = turns[0]
    if not message.content and not message.fields:
        raise SkipRowError("the answer is empty")
    return message


def finish_of(reason: object, stop: object = None) -> Finish | None:
    """A text that was stopped at a string of the request's, or aborted, is cut as one at its limit is: no end of
    sequence was written."""
    if not isinstance(reason, str) or not reason:
        return None
    ended = reason.lower() in _ENDED and not isinstance(stop, str) and reason != "stop_sequence"
    return "eos" if ended else "length"


def finish_in(value: object) -> Finish | None:
    """What a row, a response or a message says of its end, under the names of OpenAI, Anthropic, Ollama and LangChain;
    None where it says nothing."""
    if not isinstance(value, dict):
        return None
    stop = value.get("stop_reason")  # Anthropic's reason, or the string at which vLLM stopped
    own = finish_of(value.get("finish_reason"), stop) or finish_of(stop) or finish_of(value.get("done_reason"))
    return own or finish_in(value.get("response_metadata")) or finish_in(value.get("kwargs"))


def joined_chunks(chunks: Iterable[str], place: str) -> Reply:
    """The answer of a stream, from the payloads of its server-sent events."""
    text, thoughts, ids = "", "", list[int]()
    choice: dict[str, Any] = {}
    model = None
    for chunk in chunks:
        if chunk.strip() == "[DONE]":
            continue
        with suppress(ValueError, RecursionError):
            found = json.loads(chunk)
            model = found.get("model") or model
            for each in found.get("choices") or ():
                delta = each.get("delta") or each.get("message") or each
                if delta.get("tool_calls"):
                    raise SkipRowError("calls of tools in chunks, which are not put together")
                text += delta.get("content") or delta.get("text") or ""
                thoughts += delta.get("reasoning_content") or delta.get("reasoning") or ""
                ids += each.get("token_ids") or ()
                choice |= {key: each[key] for key in ("finish_reason", "stop_reason") if each.get(key) is not None}
    message = {"role": "assistant", "content": text, **({"reasoning_content": thoughts} if thoughts else {})}
    return _response({"model": model, "choices": [choice | {"message": message, "token_ids": ids or None}]}, place)


def _response(value: Mapping[str, Any], place: str) -> Reply:
    choices = [choice for choice in value["choices"] if isinstance(choice, dict)]
    if not choices:
        raise SkipRowError("the response has no choice")
    choice = choices[0]
    where = f"{place}.choices[0]"
    if isinstance(choice.get("message"), dict):
        message = message_of(choice["message"], f"{where}.message")
    elif isinstance(choice.get("text"), str):
        message = Message("assistant", _some(choice["text"]))
    else:
        raise MalformedRowError(f"{where} has no message; its keys: {list_names(choice)}", _CURE)
    model = value.get("model")
    ids, log_probs = _log_probs(choice.get("logprobs"))
    return Reply(
        message,
        finish_of(choice.get("finish_reason"), choice.get("stop_reason")),
        ids=token_ids(choice.get("token_ids")) or ids,
        prompt_ids=token_ids(value.get("prompt_token_ids")) or token_ids(choice.get("prompt_token_ids")),
        log_probs=log_probs,
        model=model if isinstance(model, str) else None,
    )


def token_ids(value: object) -> tuple[int, ...] | None:
    """A list of token ids, also as text; None for anything else and for an empty one."""
    value = unpacked(value)
    if isinstance(value, list) and value and all(type(one) is int and 0 <= one < 2**31 for one in value):
        return tuple(value)
    return None


def _log_probs(value: object) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Token ids where vLLM was asked to write tokens as such, and the log-probabilities of what was written."""
    if not isinstance(value, dict):
        return None, None
    entries = value.get("content")
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        tokens, numbers = [entry.get("token") for entry in entries], [entry.get("logprob") for entry in entries]
    else:
        tokens, numbers = value.get("tokens") or [], value.get("token_logprobs") or []
    found = [_TOKEN_ID.fullmatch(token) if isinstance(token, str) else None for token in tokens]
    ids = tuple(int(one[1]) for one in found if one is not None)
    log_probs = tuple(float(one) for one in numbers if isinstance(one, int | float))
    return (
        ids if ids and len(ids) == len(tokens) else None,
        log_probs if log_probs and len(log_probs) == len(tokens) else None,
    )


def _some(text: str) -> str:
    if not text:
        raise SkipRowError("the answer is empty")
    return text


NAME = "vLLM log"

_TEXT = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None)"""
_IDS = r"(\[[\d, ]*\]|None)"
_ASKED = re.compile(
    rf"(?:Received request|Request) (\S+?)(?: details)?: prompt: {_TEXT}(?:, params: (.*?))?, prompt_token_ids: {_IDS}"
)
_SETTINGS = re.compile(r"Received request (\S+?): (?:prompt: .*, )?params: (SamplingParams\(.*?\)), ")
_SAID = re.compile(
    rf"Generated response (\S+?)(?: \(streaming (delta|complete)\))?: "
    rf"output: {_TEXT}(?:, output_token_ids: {_IDS})?, finish_reason: (\S+)"
)
# Requests that are open at once; more are those that never ended.
_MOST_OPEN = 20_000


@dataclass(slots=True)
class _Open:
    """What was logged of a request so far."""

    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    settings: str = ""
    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None

    def ends_with(self, match: re.Match[str]) -> bool:
        """Takes a line about the answer; whether it is the last."""
        if match[2] != "complete":
            self.text += _literal(match[3]) or ""
            self.ids += _ids(match[4]) or ()
        if match[5] not in ("None", "streaming_complete"):
            self.finish = finish_of(match[5])
        return match[2] == "complete" or (match[2] is None and match[5] != "None")


def is_log(path: Path) -> bool:
    """Also where it was rotated, as vllm.log.1; rows that are called after a log are rows."""
    return format_of(path) not in READERS and any(suffix.lower() in (".log", ".out") for suffix in path.suffixes)


def logged_exchanges(path: Path) -> Iterator[tuple[str, Exchange | SkipRowError | MalformedRowError]]:
    """The place of every response, and the exchange that it ends. Raises WorkloadError for a log that holds neither a
    request nor a response."""
    requests: dict[str, _Open] = {}  # which have no answer yet
    empty = True
    for number, line in text_lines(path):
        # A text may hold the words of the other kind: those that come first are the line's own.
        said, asked = line.find("Generated response "), line.find("equest ")
        forms = (_SAID,) if said >= 0 and not 0 <= asked < said else (_ASKED, _SETTINGS) if asked >= 0 else ()
        for match in filter(None, (form.search(line) for form in forms)):
            empty = False
            one = requests.setdefault(match[1], _Open())
            if match.re is _SETTINGS:
                one.settings = match[2]
            elif match.re is _ASKED:
                one.prompt, one.prompt_ids = _literal(match[2]), _ids(match[4])
            elif one.ends_with(match):
                yield f"line {number}", _exchange(match[1], requests.pop(match[1]))
        while len(requests) > _MOST_OPEN:
            del requests[next(iter(requests))]
    if empty:
        raise WorkloadError(
            "no request of vLLM in the log",
            where=str(path),
            hint="Log with --enable-log-requests --enable-log-outputs and VLLM_LOGGING_LEVEL=DEBUG, no --max-log-len.",
        )


def _exchange(request: str, one: _Open) -> Exchange | SkipRowError | MalformedRowError:
    """The prompt is what the template made of a chat, or the text of a completion."""
    if one.prompt is None and one.prompt_ids is None:
        return SkipRowError("an answer whose prompt is not in the log, as below VLLM_LOGGING_LEVEL=DEBUG")
    if not one.text and not one.ids:
        return SkipRowError("the answer is empty")
    form: Form = "rendered" if request.startswith("chatcmpl") else "text"
    try:
        asked = Asked(text_prompt(one.prompt) if one.prompt else ())
    except SkipRowError as skip:
        return skip
    reply = Reply(Message("assistant", one.text), one.finish, tuple(one.ids) or None, one.prompt_ids)
    limit = _setting(one.settings, "max_tokens")
    return Exchange(asked, reply, form, None if limit is None else int(limit), _setting(one.settings, "temperature"))


def _literal(text: str) -> Any:
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return None


def _ids(text: str | None) -> tuple[int, ...] | None:
    found = None if text is None else _literal(text)
    return tuple(found) if found else None


def _setting(settings: str, name: str) -> float | None:
    match = re.search(rf"\b{name}=([\d.]+(?:e-?\d+)?)", settings)
    return None if match is None else float(match[1])
