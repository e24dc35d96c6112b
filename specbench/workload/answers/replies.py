"""Answers as engines send them: OpenAI's responses, whole or in chunks, and messages by themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from specbench.records import Finish, Message
from specbench.validation import kind_of
from specbench.workload.answers.recorded import Reply
from specbench.workload.conversation import earlier_turns, unpacked
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.naming import list_names

_CURE = "See the formats of recorded answers in docs/recorded.md."
_ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls", "function_call", "tool_use")
_TOKEN_ID = re.compile(r"token_id:(\d+)")


def reply_of(value: object, place: str) -> Reply:
    """A response of OpenAI's interface, a message, a list that ends with one, or a text. Raises SkipRowError and
    MalformedRowError."""
    value = unpacked(value)
    if isinstance(value, str):
        return Reply(Message("assistant", _some(value)))
    if isinstance(value, list) and value:
        return reply_of(value[-1], place)
    if not isinstance(value, dict):
        raise MalformedRowError(f"{place} is {kind_of(value)}, not an answer", _CURE)
    if isinstance(value.get("choices"), list):
        return _response(value, place)
    for key in ("message", "body", "text", "output", "generation"):
        if "content" not in value and value.get(key) is not None:
            return reply_of(value[key], f"{place}.{key}")
    return Reply(message_of(value, place), finish=finish_of(value.get("finish_reason")))


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
