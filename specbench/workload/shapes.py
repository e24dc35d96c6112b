"""A row -> what is asked in it, and what stands beside that. Shapes are tried in the order of `SHAPES`; the first one
present wins. Of the fields beside a prompt that change it or its answer, those that are not of their form, such as a
`tools` column with names alone, are not used, and are named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from specbench.kinds import RESERVED
from specbench.records import Message
from specbench.validation import kind_of
from specbench.workload.conversation import (
    Messages,
    conversation,
    earlier_turns,
    first_turn,
    looks_like_turns,
    read_content,
    require_text,
    text_prompt,
    unpacked,
)
from specbench.workload.faults import MalformedRowError, SkipRowError, list_names


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


SYSTEM = (
    *("system", "system_prompt", "system_message", "system_instruction"),
    *("systemPrompt", "systemMessage", "systemInstruction"),
)
_TOOLS = ("tools", "functions")
_SWITCH = {"true": True, "false": False}
_KWARGS = ("enable_thinking", "documents")  # names of template arguments that also stand by themselves

# What only a server understands; the rest of OpenAI's, vLLM's and SGLang's fields that steer an answer.
_REQUEST = _names(
    "tool_choice function_call response_format parallel_tool_calls stop stop_token_ids bad_words logit_bias "
    "reasoning_effort reasoning thinking verbosity prediction guided_json guided_regex guided_choice guided_grammar "
    "structured_outputs json_schema regex ebnf grammar"
)
# Beside a plain row these are text of the data set's own, and the request's only where they are an object or a switch.
_COLUMNS = frozenset({"reasoning", "thinking", "verbosity", "prediction", "regex", "grammar", "ebnf"})
_SAMPLING = _names(
    "temperature top_p top_k min_p typical_p max_tokens max_completion_tokens max_new_tokens min_tokens seed "
    "presence_penalty frequency_penalty repetition_penalty length_penalty ignore_eos do_sample"
)
# Beside a prompt they may be a part of it, or may not: known data sets have both.
_TEXTS = ("input", "query", "context", "history", "instruction", "instructions", "question")
_OTHERS = ("image", "images", "video", "videos", "audio", "audios", "chat_template", "suffix")
# Of a request: who asks, how the answer is sent, and what is told about it.
_BOOKKEEPING = _names(
    "model stream stream_options user metadata store service_tier logprobs top_logprobs prompt_logprobs request_id "
    "priority safety_identifier prompt_cache_key prompt_cache_retention cache_prompt cache_salt id_slot timeout "
    "extra_headers extra_query return_token_ids return_tokens_as_token_ids id category custom_id messages prompt "
    "extra_body chat_template_kwargs"
)
# Where false says something that leaving it out does not.
_SAYS_FALSE = _REQUEST | {*_KWARGS, "do_sample", "add_generation_prompt"}
# Values that change nothing.
_IDLE: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p", "min_tokens"), (0,)),
    **dict.fromkeys(("n", "best_of", "repetition_penalty"), (1,)),
    **dict.fromkeys(("add_generation_prompt", "do_sample"), (True,)),
}


def _idle(key: str, value: object) -> bool:
    """Absent, empty, or what holds without it."""
    if value is False:
        return key not in _SAYS_FALSE
    return (
        value is None
        or value in ([], {})
        or (isinstance(value, str) and not value.strip())
        or value in _IDLE.get(key, ())
    )


def _system(given: dict[str, Any], messages: Messages, unused: list[str]) -> Messages:
    """The first system text opens the conversation that has none of its own."""
    own = {message.content for message in messages if message.role == "system"}
    opening: Messages = ()
    for key in SYSTEM:
        if key not in given:
            continue
        text = None
        with suppress(SkipRowError, MalformedRowError):
            text = read_content(given.pop(key), "system").text
        if not text or (own and text not in own):
            unused.append(key)
        elif not own:
            opening, own = (Message("system", text),), {text}
    return opening


def _tools(given: dict[str, Any], unused: list[str]) -> tuple[Mapping[str, Any], ...]:
    found: tuple[Mapping[str, Any], ...] = ()
    for key in _TOOLS:
        if key in given:
            tools = read_tools(given.pop(key))
            if tools is None or (tools and found):
                unused.append(key)
            found = found or tools or ()
    return found


def read_tools(value: object) -> tuple[Mapping[str, Any], ...] | None:
    """Definitions of tools as OpenAI has them, from those, their JSON text, bare functions and Anthropic's form; None
    for what is none of these."""
    tools = unpacked(value)
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        return None
    found = []
    for tool in map(unpacked, tools):
        if not isinstance(tool, dict) or not _is_json(tool):
            return None
        if "input_schema" in tool:
            renamed = {"parameters" if key == "input_schema" else key: item for key, item in tool.items()}
            tool = {key: item for key, item in renamed.items() if key not in ("type", "cache_control")}
        if isinstance(tool.get("name"), str) and "function" not in tool and tool.get("type", "function") == "function":
            tool = {"type": "function", "function": {key: item for key, item in tool.items() if key != "type"}}
        if "type" not in tool and not isinstance(tool.get("function"), dict):
            return None
        found.append(tool if "type" in tool else {"type": "function"} | tool)
    return tuple(found)


def _template_kwargs(given: dict[str, Any], unused: list[str]) -> dict[str, Any]:
    found = {}
    for key in _KWARGS:
        if key in given:
            value = unpacked(given.pop(key))
            value = _SWITCH.get(value.lower(), value) if isinstance(value, str) else value  # a cell has only text
            if isinstance(value, list if key == "documents" else bool) and _is_json(value):
                found[key] = value
            else:
                unused.append(key)
    values = unpacked(given.get("chat_template_kwargs", {}))
    if not isinstance(values, dict) or not _is_json(values):
        unused.append("chat_template_kwargs")
        return found
    unused += [f"chat_template_kwargs.{key}" for key in values if key in RESERVED]
    return found | {key: value for key, value in values.items() if key not in RESERVED}


def _as_openai(key: str, value: Any) -> tuple[str, Any]:
    """An object may be JSON text in a cell; and older and other ways to say which tool is to be called."""
    held = unpacked(value)
    value = held if isinstance(held, dict) else value
    if key == "function_call":
        named = isinstance(value, dict) and "name" in value
        return "tool_choice", {"type": "function", "function": {"name": value["name"]}} if named else value
    if key == "tool_choice" and isinstance(value, dict) and value.get("type") in ("auto", "any", "none", "tool"):
        kind = value["type"]
        if kind == "tool":
            return key, {"type": "function", "function": {"name": value.get("name")}}
        return key, "required" if kind == "any" else kind
    return key, value


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Asked:
    """One row, read: the conversation up to where the answer begins, and what stands beside it as Prompt has it.
    `unused` names fields that would change the prompt or its answer, `sampling` those that are a run's own settings."""

    messages: Messages
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    sampling: tuple[str, ...] = ()


def asked_in(row: object, column: str | None = None) -> Asked:
    """Raises SkipRowError and MalformedRowError, which leave the row out."""
    if isinstance(row, str):
        if column is not None:
            raise MalformedRowError("the rows are plain text without columns", "Leave out --column.")
        return Asked(text_prompt(row))
    if not isinstance(row, dict):
        raise MalformedRowError(f"the row is {kind_of(row)}, not an object", "Give one object or one string a row.")
    row = without_nan(row)
    key = _key_of(row, column)
    if row[key] is None:
        raise SkipRowError("empty prompt")
    request = _request_in(key, row[key])
    try:
        if request is not None:
            # What stands beside the whole request is bookkeeping, but for a system text and tools.
            outer = {name: row[name] for name in (*SYSTEM, "tools") if name in row and name != key}
            return _request({**outer, **request}, key)
        return together(SHAPES.get(key, _text_or_conversation), row, key, key, request=False)
    except RecursionError:
        raise MalformedRowError("the row is nested too deeply", "Correct the row or name --column NAME.") from None


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Data frames write NaN for "absent"."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _key_of(row: Mapping[str, Any], column: str | None) -> str:
    if column is not None:
        if column not in row:
            raise MalformedRowError(f"no column {column}; found: {list_names(row)}", "Correct --column NAME.")
        return column
    # Parquet and data frames fill the shapes a row lacks with null. `body` is a batch line only as an object: elsewhere
    # the word names the text of a mail.
    found = [
        key for key in SHAPES if row.get(key) is not None and (key != "body" or isinstance(unpacked(row[key]), dict))
    ]
    if found:
        return next((key for key in found if row[key] not in ([], "")), found[0])
    if any(key in row for key in SHAPES if key != "body"):
        raise SkipRowError("empty prompt")
    # A body that is there was no batch line, and naming it again would help nobody.
    shapes = ", ".join(key for key in SHAPES if key not in row)
    raise MalformedRowError(
        f"no prompt found in the row; its columns: {list_names(row)}",
        f"Name the prompt's column with --column NAME, or use one of {shapes}.",
    )


def _request_in(key: str, value: object) -> Mapping[str, Any] | None:
    """A whole request under one key: a line of OpenAI's batch API has it under `body`, traces under any name."""
    held = unpacked(value)
    return held if isinstance(held, dict) and (key == "body" or isinstance(held.get("messages"), list)) else None


def _request(fields: Mapping[str, Any], place: str) -> Asked:
    for key in ("messages", "prompt"):
        if fields.get(key) is not None:
            return together(SHAPES[key], fields, key, f"{place}.{key}", request=True)
    raise MalformedRowError(
        f"the batch line's body holds neither messages nor prompt; its keys: {list_names(fields)}",
        "Use lines for /v1/chat/completions or /v1/completions.",
    )


Reader: TypeAlias = Callable[[Any, str, Mapping[str, Any]], Messages]


def together(read: Reader, fields: Mapping[str, Any], key: str, place: str, *, request: bool) -> Asked:
    """The conversation under `key`, and what stands beside it in a row, or in a whole request, in which keys that
    nobody knows count as unused."""
    more = fields.get("extra_body")  # of OpenAI's client, which puts it among the others
    fields = {**fields, **more} if isinstance(more, dict) else fields
    messages = read(fields[key], place, fields)
    given = {name: value for name, value in fields.items() if name != key and not _idle(name, value)}
    asked: dict[str, Any] = {}
    unused: list[str] = []
    opening = _system(given, messages, unused)
    history: Messages = ()
    turns = unpacked(given.get("history"))
    if isinstance(turns, list) and len(messages) == 1:  # in front of a conversation it would be told twice
        del given["history"]
        history = earlier_turns(turns, "history")
    tools, template_kwargs = _tools(given, unused), _template_kwargs(given, unused)
    for name, value in given.items():
        if name in _REQUEST and (request or name not in _COLUMNS or not isinstance(value, str)):
            own, value = _as_openai(name, value)
            if _is_json(value):
                asked[own] = value
            else:
                unused.append(name)
        elif name in _TEXTS or (name == "prompt" and isinstance(value, str)):
            # A text that stands in the prompt already was put together with it by somebody.
            told = isinstance(value, str) and any(value.strip() in message.content for message in messages)
            unused += [] if told else [name]
        elif name not in _SAMPLING and (name in _OTHERS or (request and name not in _BOOKKEEPING)):
            unused.append(name)
    sampling = tuple(name for name in given if name in _SAMPLING)
    return Asked((*opening, *history, *messages), tools, template_kwargs, asked, tuple(unused), sampling)


def _text_or_conversation(value: object, place: str, _: object) -> Messages:
    """A text that is the JSON of a conversation is that conversation, whatever its column is called."""
    if isinstance(value, str) and not looks_like_turns(unpacked(value)):
        return text_prompt(value)
    return conversation(value, place)


def _conversation(value: object, place: str, _: object) -> Messages:
    return conversation(value, place)


# What an instruction is about: Alpaca's, LLaMA-Factory's and Dolly's names for it.
_INPUTS = ("input", "query", "context")


def _alpaca(value: object, place: str, fields: Mapping[str, Any]) -> Messages:
    if looks_like_turns(unpacked(value)):
        return conversation(value, place)
    parts = [
        require_text(value, place),
        *(require_text(fields[key], key) for key in _INPUTS if fields.get(key) is not None),
    ]
    return text_prompt("\n\n".join(part for part in parts if part.strip()))


SHAPES: dict[str, Reader] = {
    "messages": _conversation,
    "body": _text_or_conversation,  # as text a mail's; as an object a request, read before
    "conversations": _conversation,
    "turns": lambda value, place, _: first_turn(value, place),
    "prompt": _text_or_conversation,
    "instruction": _alpaca,
}
