"""Messages, in whatever names data sets and libraries write them: OpenAI, ShareGPT, Anthropic, Gemini, LangChain and
the formats that agents are trained on. Calls of tools become those of OpenAI's interface.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from specbench.records import Message, Prompt, Role
from specbench.validation import kind_of
from specbench.workload.faults import MalformedRowError, SkipRowError, list_names

_TEXT = ("text", "input_text", "output_text", "summary_text")
_THOUGHT = ("thinking", "reasoning", "reasoning_text")
_COLUMN = "Correct the row or name --column NAME."


@dataclass(frozen=True, slots=True)
class Content:
    """`text` is None where there is none; `thoughts` went before it; `calls` of tools are as they stand, `results` what
    tools answered."""

    text: str | None = None
    thoughts: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    results: tuple[Message, ...] = ()


def read_content(content: object, place: str) -> Content:
    """Raises SkipRowError for a part that is no text, MalformedRowError for what is no content."""
    if content is None or isinstance(content, str):
        return Content(content)
    if isinstance(content, dict):
        parts = content.get("parts")
        return read_content(parts, place) if isinstance(parts, list) else _joined([_part(content, place)])
    if not isinstance(content, list):
        raise MalformedRowError(f"{place} is {kind_of(content)}, not text", _COLUMN)
    parts = [_part(part, f"{place}[{index}]") for index, part in enumerate(content) if part is not None]
    return _joined(parts)


def _joined(parts: list[Content]) -> Content:
    # vLLM joins the text parts of one message by line breaks where the chat template wants a string.
    texts = [part.text for part in parts if part.text is not None]
    return Content(
        text="\n".join(texts) if texts or not parts else None,
        thoughts="\n".join(part.thoughts for part in parts if part.thoughts),
        calls=tuple(call for part in parts for call in part.calls),
        results=tuple(result for part in parts for result in part.results),
    )


def _part(part: object, place: str) -> Content:
    if isinstance(part, str | list):
        return read_content(part, place)
    if not isinstance(part, dict):
        raise MalformedRowError(f"{place} is {kind_of(part)}, not a content part", "A part has a type and a text.")
    kind = part.get("type")
    if kind == "tool_use":
        return Content(calls=(part,))
    if kind == "tool_result":
        own = part.get("tool_use_id")
        said = read_content(_as_text(part.get("content")), place).text or ""
        fields = {"tool_call_id": own} if isinstance(own, str) and own else {}
        return Content(results=(Message("tool", said, fields),))
    if kind == "refusal":
        return Content(require_text(part.get("refusal"), f"{place}.refusal"))
    if kind in _THOUGHT:
        found = next((part[key] for key in (*_THOUGHT, "text", "summary", "content") if part.get(key) is not None), "")
        return Content(thoughts=read_content(found, place).text or "")
    if kind in _TEXT or (kind is None and "text" in part):
        text = part.get("text")
        return Content(require_text(text.get("value") if isinstance(text, dict) else text, f"{place}.text"))
    raise SkipRowError(f"not text: a content part of type {list_names([kind])}")


def _as_text(content: object) -> object:
    """What a tool gave, as JSON where nobody made it a text or a list of parts."""
    parts = content if isinstance(content, list) else []
    data = any(
        "type" not in part and part.keys() != {"text"} if isinstance(part, dict) else isinstance(part, int | float)
        for part in parts
    )
    if data or isinstance(content, int | float) or (isinstance(content, dict) and "type" not in content):
        return json.dumps(content, ensure_ascii=False)
    return content


def require_text(value: object, place: str) -> str:
    """Raises MalformedRowError for anything else."""
    if not isinstance(value, str):
        raise MalformedRowError(f"{place} is {kind_of(value)}, not text", _COLUMN)
    return value


Messages: TypeAlias = tuple[Message, ...]
Turn: TypeAlias = Role | Literal["call"]

# Names are what data sets write, letters alone and without LangChain's "Message". "call" is a call of a tool that has
# a turn of its own.
_ROLES: dict[str, Turn] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bing", "bard"), "assistant"),
    **dict.fromkeys(("functioncall", "toolcall", "toolcalls", "tooluse"), "call"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "environment"), "tool"),
    **dict.fromkeys((f"{who}{what}" for who in ("tool", "function") for what in ("response", "result")), "tool"),
    **dict.fromkeys((f"{who}{what}" for who in ("tool", "function") for what in ("output", "calloutput")), "tool"),
    **dict.fromkeys(("toolresponses", "toolresults", "tooloutputs", "functionresponses"), "tool"),
}
_ROLE_KEYS = ("role", "from", "speaker", "type")
_CONTENT_KEYS = ("content", "value", "text", "utterance", "parts", "output")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_ASKING = ("user", "tool")
_CALL_IDS = ("tool_call_id", "call_id", "tool_use_id")
_NOT_TEXT = ("images", "image", "videos", "video", "audios", "audio")
_CURE = "Use system, user, assistant or tool (or ShareGPT's human and gpt)."


def unpacked(value: object) -> object:
    """What a text holds that is the JSON of a list or an object, since a cell of a table has no other way; else the
    value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def looks_like_turns(value: object) -> bool:
    """A list of objects with a role and a content each, of which one role at least is known."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        return False
    entries = [_flat(entry) for entry in value]
    said = all(
        _name(entry) is not None and (_has_content(entry) or entry.get("tool_calls") or entry.get("function_call"))
        for entry in entries
    )
    return said and any(_role_of(entry) is not None for entry in entries)


def ends_answered(value: object) -> bool:
    """Whether the last of what looks like turns is the assistant's."""
    turns = unpacked(value)
    return isinstance(turns, list) and _role_of(_flat(turns[-1])) in ("assistant", "call")


def conversation(value: object, key: str) -> Messages:
    """All turns up to the last one that is not the assistant's: what follows is the answer that is to be generated.
    Raises SkipRowError and MalformedRowError."""
    entries, roles = _entries(value, key)
    last = max((index for index, role in enumerate(roles) if role not in ("assistant", "call")), default=-1)
    return _asking(_read(entries[: last + 1], roles, key))


def turns_of(prompt: Prompt) -> tuple[Prompt, ...]:
    """A conversation as the prompts of its turns: each has all that was said before it, recorded answers included, and
    the last is the whole."""
    roles = [message.role for message in prompt.messages]
    answered = [
        place for place, role in enumerate(roles) if role == "assistant" and place and roles[place - 1] in _ASKING
    ]
    ends = [*answered, len(roles)]
    return tuple(
        replace(prompt, id=f"{prompt.id}#{number}", messages=prompt.messages[:end])
        for number, end in enumerate(ends, 1)
    )


def earlier_turns(value: object, key: str) -> Messages:
    """Turns that went before, answers included, from a list of turns or of pairs of question and answer."""
    pairs = unpacked(value)
    if isinstance(pairs, list) and all(isinstance(pair, list | tuple) for pair in pairs):
        if any(len(pair) != 2 or not all(isinstance(text, str) for text in pair) for pair in pairs):
            raise MalformedRowError(f"{key} is not a list of pairs of texts", "Give [question, answer] for each.")
        return tuple(turn for ask, answer in pairs for turn in (Message("user", ask), Message("assistant", answer)))
    entries, roles = _entries(value, key)
    return tuple(_read(entries, roles, key))


def first_turn(value: object, key: str) -> Messages:
    """The first user turn: later ones answer the model's replies, which are not recorded here. Where they are recorded
    (turns of the assistant or of tools among them) the history is kept as in a conversation."""
    texts = unpacked(value)
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return text_prompt(texts[0] if texts else "")
    entries, roles = _entries(value, key)
    if "user" not in roles or set(roles) - {"user", "system"}:
        return conversation(value, key)
    return _asking(_read(entries[: roles.index("user") + 1], roles, key))


def text_prompt(text: str) -> Messages:
    """One user message. Raises SkipRowError for white space alone."""
    if not text.strip():
        raise SkipRowError("empty prompt")
    return (Message("user", text),)


def _entries(value: object, key: str) -> tuple[list[Mapping[str, Any]], list[Turn]]:
    entries = unpacked(value)
    if not isinstance(entries, list):
        raise MalformedRowError(f"{key} is {kind_of(value)}, not a list of messages", _COLUMN)
    flat, roles = [], []
    for index, entry in enumerate(entries):
        place = f"{key}[{index}]"
        if not isinstance(entry, dict):
            raise MalformedRowError(
                f"{place} is {kind_of(entry)}, not a message", "A message has a role and a content."
            )
        flat.append(_flat(entry))
        role = _role_of(flat[-1])
        if role is None:
            what = "has no role" if _name(flat[-1]) is None else "has an unknown role"
            raise MalformedRowError(f"{place} {what}", _CURE)
        roles.append(role)
    return flat, roles


def _flat(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """LangChain's dumps have the message one level deeper, under `data` or under `kwargs`."""
    if isinstance(entry.get("data"), dict) and "content" in entry["data"]:
        return {**entry["data"], "type": entry.get("type")}
    if isinstance(entry.get("kwargs"), dict) and isinstance(entry.get("id"), list) and entry["id"]:
        return {**entry["kwargs"], "type": entry["id"][-1]}
    return entry


def _name(entry: Mapping[str, Any]) -> object:
    return next((entry[key] for key in _ROLE_KEYS if entry.get(key) is not None), None)


def _role_of(entry: Mapping[str, Any]) -> Turn | None:
    name = _name(entry)
    if not isinstance(name, str):
        return None
    letters = re.sub(r"[^a-z]", "", name.lower())
    return _ROLES.get(letters) or _ROLES.get(re.sub(r"message(chunk)?$", "", letters))


def _has_content(entry: Mapping[str, Any]) -> bool:
    return any(key in entry for key in _CONTENT_KEYS)


def _asking(messages: list[Message]) -> Messages:
    if not any(message.role in _ASKING for message in messages):
        raise SkipRowError("no user message")
    # A tool may have nothing to say, a user who asks may not.
    if messages[-1].role != "tool" and not messages[-1].content.strip():
        raise SkipRowError("empty prompt")
    return tuple(messages)


def _read(entries: list[Mapping[str, Any]], roles: list[Turn], key: str) -> list[Message]:
    """`roles` may be longer than `entries`: what was cut off is not read, so it cannot be wrong."""
    messages: list[Message] = []
    for index, entry in enumerate(entries):
        messages += _turn(entry, roles[index], f"{key}[{index}]")
    return list(_linked(messages))


def _turn(entry: Mapping[str, Any], role: Turn, place: str) -> list[Message]:
    if carried := [key for key in _NOT_TEXT if entry.get(key)]:
        raise SkipRowError(f"not text: {list_names(carried)} in a message")
    said = Content() if role == "call" and not _has_content(entry) else _said(entry, role, place)
    calls, text = [*said.calls, *_calls(entry, place)], said.text
    if role == "call":
        role = "assistant"
        if not calls and (own := _own_calls(entry, text)):
            calls, text = own, ""
    fields = _fields(entry, role, said, calls, place)
    if text is None and not said.results and (role in ("user", "system") or (role == "assistant" and not fields)):
        raise SkipRowError("a message without text, such as a tool call")
    # Anthropic's answers of tools stand in the user's turn, before what the user says.
    return [*said.results, *([] if said.results and not text else [Message(role, text or "", fields)])]


def _own_calls(entry: Mapping[str, Any], text: str | None) -> list[Any]:
    """What a turn that is a call calls: by its own keys, or by its text as JSON; empty where neither says."""
    found = unpacked(text) if _has_content(entry) else entry
    found = found if isinstance(found, list) else [found]
    return found if all(isinstance(call, dict) and "name" in call for call in found) else []


def _fields(entry: Mapping[str, Any], role: Role, said: Content, calls: list[Any], place: str) -> dict[str, Any]:
    """What a message has beside its text, under OpenAI's names."""
    fields: dict[str, Any] = {}
    if role == "assistant":
        thoughts = said.thoughts or next((entry[key] for key in _THOUGHTS if isinstance(entry.get(key), str)), "")
        if thoughts:
            fields["reasoning_content"] = thoughts
        if calls:
            fields["tool_calls"] = [_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)]
    if role == "tool":
        own = next((entry[key] for key in _CALL_IDS if isinstance(entry.get(key), str)), None)
        fields |= {} if own is None else {"tool_call_id": own}
    if isinstance(entry.get("name"), str) and entry["name"] and not calls:
        fields["name"] = entry["name"]
    return fields


def _said(entry: Mapping[str, Any], role: Turn, place: str) -> Content:
    found = [key for key in _CONTENT_KEYS if key in entry]
    if not found and not entry.get("tool_calls") and not entry.get("function_call"):
        raise MalformedRowError(
            f"{place} has no content; its keys: {list_names(entry)}", "A message has a role and a content."
        )
    content = next((entry[key] for key in found if entry[key] is not None), None)
    if content is None and isinstance(entry.get("refusal"), str):
        content = entry["refusal"]
    return read_content(_as_text(content) if role == "tool" else content, f"{place}.content")


def _calls(entry: Mapping[str, Any], place: str) -> list[Any]:
    """Calls beside a message's text: tool_calls, LangChain's copy of them, or the one function_call of old."""
    more = entry.get("additional_kwargs")
    for where in (entry, more if isinstance(more, dict) else {}):
        calls = unpacked(where.get("tool_calls"))
        if calls:
            if not isinstance(calls, list):
                raise MalformedRowError(
                    f"{place}.tool_calls is {kind_of(calls)}, not a list", "See OpenAI's tool_calls."
                )
            return calls
        if call := unpacked(where.get("function_call")):
            return [call]
    return []


def _call(call: object, place: str) -> dict[str, Any]:
    """One call as OpenAI has it, its arguments as JSON text. Others write them as an object, and under other names."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise MalformedRowError(f"{place} is no call with a name", "A call has a function with name and arguments.")
    given: Any = next(
        (inner[key] for key in ("arguments", "args", "parameters", "input") if inner.get(key) is not None), {}
    )
    try:
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise MalformedRowError(f"the arguments of {place} are no JSON", "Give an object or JSON text.") from None
    own = next((call[key] for key in ("call_id", "id") if isinstance(call.get(key), str) and call[key]), None)
    return ({"id": own} if own else {}) | {
        "type": "function",
        "function": {"name": inner["name"], "arguments": arguments},
    }


def _linked(messages: Iterable[Message]) -> Iterable[Message]:
    """Every call and the answer to it under one id, which servers and some templates demand: that of the row, or one
    by number, of the nine letters and digits that the strictest of them takes."""
    waiting: list[str] = []
    made = 0
    for message in messages:
        calls = []
        for call in message.fields.get("tool_calls", ()):
            made += "id" not in call
            calls.append({"id": f"call{made:05d}"} | call)
            waiting.append(calls[-1]["id"])
        fields = dict(message.fields) | ({"tool_calls": calls} if calls else {})
        if message.role == "tool":
            own = fields.get("tool_call_id")
            if own is None and waiting:
                fields["tool_call_id"] = waiting.pop(0)
            elif own in waiting:
                waiting.remove(own)
        yield Message(message.role, message.content, fields)
