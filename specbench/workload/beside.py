"""Fields beside a prompt that change it or its answer: what is used of them, and the names of what is not.

A field that is not of its form, such as a `tools` column with names alone, is not used either, and is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specbench.kinds import RESERVED
from specbench.workload.content import read_content
from specbench.workload.conversation import Messages, earlier_turns, unpacked
from specbench.workload.faults import MalformedRowError, SkipRowError


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
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
_TEXTS = ("input", "query", "context", "history")
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


@dataclass(slots=True)
class Beside:
    """What stands beside a prompt, read. `unused` would change it or its answer, `sampling` are settings of a run."""

    system: str | None = None
    history: Messages = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    sampling: list[str] = field(default_factory=list)


def read_beside(fields: Mapping[str, Any], messages: Messages, own: str, *, request: bool) -> Beside:
    """`fields` of a row, or of a whole request, in which keys that nobody knows count as unused. The prompt's
    `messages` come from the key `own`."""
    given = {key: value for key, value in fields.items() if key != own and not _idle(key, value)}
    found = Beside()
    _system(given, messages, found)
    _history(given, messages, found)
    _tools(given, found)
    _template_kwargs(given, found)
    for key, value in given.items():
        if key in _SAMPLING:
            found.sampling.append(key)
        elif key in _REQUEST and (request or key not in _COLUMNS or not isinstance(value, str)):
            name, value = _as_openai(key, value)
            if _is_json(value):
                found.request[name] = value
            else:
                found.unused.append(key)
        elif key in _OTHERS or (
            not _contained(value, messages) if key in _TEXTS else request and key not in _BOOKKEEPING
        ):
            found.unused.append(key)
    return found


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


def _system(given: dict[str, Any], messages: Messages, found: Beside) -> None:
    """The first system text opens the conversation that has none of its own."""
    own = {message.content for message in messages if message.role == "system"}
    for key in SYSTEM:
        if key not in given:
            continue
        text = _system_text(given.pop(key))
        if text is None:
            found.unused.append(key)
        elif text not in own and text != found.system:
            if own or found.system is not None:
                found.unused.append(key)
            else:
                found.system = text


def _system_text(value: object) -> str | None:
    try:
        return read_content(value, "system").text or None
    except (SkipRowError, MalformedRowError):
        return None


def _history(given: dict[str, Any], messages: Messages, found: Beside) -> None:
    """Before a single question; in front of a conversation it would be told twice."""
    turns = unpacked(given.get("history"))
    if isinstance(turns, list) and len(messages) == 1:
        del given["history"]
        found.history = earlier_turns(turns, "history")


def _tools(given: dict[str, Any], found: Beside) -> None:
    for key in _TOOLS:
        if key not in given:
            continue
        tools = read_tools(given.pop(key))
        if tools is None or (tools and found.tools):
            found.unused.append(key)
        else:
            found.tools = tools or found.tools


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
        flat = (
            isinstance(tool.get("name"), str) and "function" not in tool and tool.get("type", "function") == "function"
        )
        if flat:
            tool = {"type": "function", "function": {key: item for key, item in tool.items() if key != "type"}}
        if "type" not in tool and not isinstance(tool.get("function"), dict):
            return None
        found.append(tool if "type" in tool else {"type": "function"} | tool)
    return tuple(found)


def _template_kwargs(given: dict[str, Any], found: Beside) -> None:
    for key in _KWARGS:
        if key in given:
            value = unpacked(given.pop(key))
            value = _SWITCH.get(value.lower(), value) if isinstance(value, str) else value  # a cell has only text
            fits = isinstance(value, list if key == "documents" else bool) and _is_json(value)
            if fits:
                found.template_kwargs[key] = value
            else:
                found.unused.append(key)
    values = unpacked(given.get("chat_template_kwargs", {}))
    if not isinstance(values, dict) or not _is_json(values):
        found.unused.append("chat_template_kwargs")
        return
    found.template_kwargs |= {key: value for key, value in values.items() if key not in RESERVED}
    found.unused += [f"chat_template_kwargs.{key}" for key in values if key in RESERVED]


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


def _contained(value: object, messages: Messages) -> bool:
    """Whether a text stands in the prompt already, which somebody put together from it."""
    return isinstance(value, str) and any(value.strip() in message.content for message in messages)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
