"""A row -> the exchanges in it: chat data sets, logs of OpenAI's interface, exports of benchmarks and of tracing tools.

Readers are tried in the order of `SOURCES`; the first that knows a row by its keys reads it. A source whose rows hold
no answer, or no prompt, is refused by its name, with what to export instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from specbench.records import Message
from specbench.validation import kind_of
from specbench.workload.conversation import earlier_turns, ends_answered, looks_like_turns, text_prompt, unpacked
from specbench.workload.faults import MalformedRowError, SkipRowError, list_names
from specbench.workload.replies import Exchange, Form, Reply, finish_in, joined_chunks, message_of, reply_of
from specbench.workload.shapes import SHAPES, Asked, together, without_nan

Row: TypeAlias = Mapping[str, Any]
Exchanges: TypeAlias = Iterator[Exchange]

_REQUESTS = ("request", "request_body", "body", "kwargs", "input")
_RESPONSES = ("response", "response_body", "completion", "output", "answer")
_CHATS = ("messages", "conversations", "conversation")
_QUESTIONS = ("prompt", "instruction", "question")
_TEXT_ANSWERS = ("output", "response", "completion", "answer")
_SESSIONS = ("session_id", "sessionId", "conversation_id", "conversationId", "thread_id", "chat_id")


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of row: its name, which rows are of it, and how they are read."""

    name: str
    is_one: Callable[[Row], bool]
    read: Callable[[Row], Exchanges]


def exchanges_in(row: object) -> tuple[str, Exchanges]:
    """The name of the source, and what a row of it holds. Raises SkipRowError and MalformedRowError, here and while it
    is read."""
    if not isinstance(row, dict):
        raise MalformedRowError(f"the row is {kind_of(row)}: a prompt without an answer", _KNOWN)
    row = without_nan(row)
    for source in SOURCES:
        if source.is_one(row):
            return source.name, _formed(source, row)
    raise MalformedRowError(f"no answer known by the columns of the row: {list_names(row)}", _KNOWN)


def _formed(source: Source, row: Row) -> Exchanges:
    """A log may hold anything at any place: readers take its form for granted."""
    try:
        yield from source.read(row)
    except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError):
        raise MalformedRowError(f"a row of {source.name} is not of its form", _KNOWN) from None


def _turns(asked: Asked, conversation: str | None) -> Exchanges:
    """Every turn of the assistant, with all before it; a greeting before anybody asked answers nothing."""
    for place, message in enumerate(asked.messages):
        before = asked.messages[:place]
        said = message.role == "assistant" and (message.content or message.fields)
        if said and any(one.role in ("user", "tool") for one in before):
            yield Exchange(replace(asked, messages=before), Reply(message), conversation=conversation)


def _chat(row: Row) -> Exchanges:
    key = _turns_key(row)
    assert key is not None
    asked = together(lambda value, place, _: earlier_turns(value, place), row, key, key, request=False)
    found = list(_turns(asked, _session(row)))
    if not found:
        raise SkipRowError("no turn of an assistant in the conversation")
    *before, last = found
    yield from before
    yield replace(last, reply=_ended(last.reply, row)) if last.reply.message is asked.messages[-1] else last


def _turns_key(row: Row) -> str | None:
    return next((key for key in _CHATS if looks_like_turns(unpacked(row.get(key)))), None)


def _instruction(row: Row) -> Exchanges:
    """Alpaca's rows and their like: the answer is a text beside the prompt."""
    key = next(key for key in _QUESTIONS if isinstance(row.get(key), str))
    answer = next(name for name in _TEXT_ANSWERS if isinstance(row.get(name), str))
    rest = {name: value for name, value in row.items() if name != answer}
    read = SHAPES.get(key, lambda value, place, _: text_prompt(value))
    yield Exchange(together(read, rest, key, key, request=False), _ended(reply_of(row[answer], answer), row))


def _is_instruction(row: Row) -> bool:
    return all(any(isinstance(row.get(key), str) for key in keys) for keys in (_QUESTIONS, _TEXT_ANSWERS))


def _ended(reply: Reply, told: object) -> Reply:
    """What stands beside an answer may say how it ended."""
    return replace(reply, finish=reply.finish or finish_in(told))


def asked_by(request: object, place: str, *, whole: bool) -> tuple[Asked, Form]:
    """A request of OpenAI's interface: what it asks, and whether a chat template gets it. Unless it is `whole`, other
    things may stand beside it."""
    request = unpacked(request)
    if looks_like_turns(request):
        request = {"messages": request}
    if isinstance(request, str):
        return Asked(text_prompt(request)), "text"
    if not isinstance(request, dict):
        raise MalformedRowError(f"{place} is {kind_of(request)}, not a request", _KNOWN)
    key = _turns_key(request) or ("messages" if request.get("messages") is not None else None)
    if key is not None:
        # LangChain has a list of conversations.
        turns: Any = unpacked(request[key])
        nested = isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list)
        fields = {**request, key: turns[0] if nested else turns}
        asked = together(lambda v, p, _: earlier_turns(v, p), fields, key, f"{place}.{key}", request=whole)
        if not asked.messages or asked.messages[-1].role == "assistant":
            raise SkipRowError("the request ends with a turn of the assistant, which the answer goes on with")
        return asked, "chat"
    if isinstance(request.get("prompt"), str):
        read = SHAPES["prompt"]
        return together(read, request, "prompt", f"{place}.prompt", request=whole), "text"
    raise MalformedRowError(f"{place} holds neither messages nor a prompt; its keys: {list_names(request)}", _KNOWN)


def exchange(request: object, reply: Reply, place: str, row: Row) -> Exchange:
    """A request and its reply, with the settings that the request asked for."""
    asked, form = asked_by(request, place, whole=request is not row)
    fields = unpacked(request)
    fields = fields if isinstance(fields, dict) else {}
    limits = (fields.get(key) for key in ("max_completion_tokens", "max_tokens", "max_new_tokens"))
    limit = next((value for value in limits if type(value) is int and value > 0), None)
    warmth = fields.get("temperature")
    return Exchange(
        asked, reply, form, limit, float(warmth) if isinstance(warmth, int | float) else None, _session(row)
    )


def _logged(row: Row) -> Exchanges:
    """Request and response side by side, under whatever names a proxy or a logger gives them."""
    place, request = _request_of(row)
    key = _answer_of(row)
    assert key is not None
    answer = unpacked(row[key])
    told = answer if isinstance(answer, dict) else {}
    error, status = told.get("error"), told.get("status_code")
    refused = isinstance(status, int) and status >= 400
    # A model may write JSON of errors itself, though hardly a server's.
    served = isinstance(error, dict) or told.get("object") == "error" or (refused and "body" in told)
    if row.get("error") or served or ((error or refused) and answer is row[key]):
        raise SkipRowError("the request failed")
    yield exchange(request, _ended(reply_of(row[key], key), row), place, row)


def _answer_of(row: Row) -> str | None:
    """The key of the answer beside a request; one that is empty gives way."""
    given = [key for key in _RESPONSES if row.get(key) is not None]
    return next((key for key in given if row[key] != ""), given[0] if given else None)


def _is_logged(row: Row) -> bool:
    (place, request), key = _request_of(row), _answer_of(row)
    if request is None or key is None:
        return False
    answer = row[key]
    if not isinstance(answer, str):
        return key != "answer" and (isinstance(answer, dict) or looks_like_turns(answer))
    if request is row:  # its turns may hold the answers themselves
        return answer != "" and not ends_answered(row[_turns_key(row) or ""])
    # Alpaca's input may be JSON.
    return place != "input" or not any(row.get(name) for name in _QUESTIONS)


def _request_of(row: Row) -> tuple[str, object]:
    for key in _REQUESTS:
        held = unpacked(row.get(key))
        if isinstance(held, dict) and ("messages" in held or "prompt" in held):
            return key, held
        if key == "request" and isinstance(held, dict) and isinstance(held.get("body"), dict):
            return "request.body", held["body"]
        if looks_like_turns(held):
            return key, held
    return ("row", row) if _turns_key(row) else ("", None)


def _judged(row: Row) -> Exchanges:
    """Answers of Spec-Bench and SPEED-Bench: the user's turns in one list, the model's in another."""
    turns, choices = row.get("turns"), row["choices"]
    texts = choices[0]["turns"] if choices else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(turns, list):
        raise MalformedRowError(
            "Spec-Bench's answers come without their questions",
            "Name its question.jsonl with --workload, and this file with --answers.",
        )
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in (*turns, *texts)):
        raise MalformedRowError("the turns are not lists of texts", _KNOWN)
    messages: list[Message] = []
    for ask, answer in zip(turns, texts, strict=False):
        messages += [Message("user", ask), Message("assistant", answer)]
    for one in _turns(Asked(tuple(messages)), None):
        yield replace(one, reply=_written_by(row.get("model_id"), one.reply))


def _aiperf(row: Row) -> Exchanges:
    if row.get("error") or not row.get("responses"):
        raise SkipRowError("the request failed")
    chunks = []
    for response in row["responses"]:
        if isinstance(response.get("text"), str):
            chunks.append(response["text"])
        packets = response.get("packets") or ()
        chunks += [p["value"] for p in packets if p.get("name") == "data" and isinstance(p.get("value"), str)]
    streamed = any(response.get("packets") for response in row["responses"])
    reply = joined_chunks(chunks, "responses") if streamed else reply_of(unpacked(chunks[-1]), "responses")
    yield exchange(row["payload"], reply, "payload", row.get("metadata") or {})


def _guidellm(row: Row) -> Exchanges:
    for request in row["requests"]["successful"]:
        if not request.get("output") and not request.get("tool_calls"):
            continue
        given = unpacked(request.get("request_args"))
        given = given.get("body", given) if isinstance(given, dict) else given
        if request.get("prompt") is not None and not (isinstance(given, dict) and "messages" in given):
            given = {**(given if isinstance(given, dict) else {}), "prompt": request["prompt"]}
        answer = {
            "content": request.get("output"),
            "reasoning_content": request.get("reasoning_output"),
            "tool_calls": request.get("tool_calls"),
        }
        yield exchange(given, Reply(message_of(answer, "output")), "request_args", {})


def _langfuse(row: Row) -> Exchanges:
    if str(row.get("type", "GENERATION")).upper() != "GENERATION":
        raise SkipRowError("no generation: another kind of observation")
    if row.get("input") is None or row.get("output") is None:
        raise SkipRowError("a generation without input or output")
    asked = unpacked(row["input"])
    settings = unpacked(next((row[k] for k in ("modelParameters", "model_parameters") if row.get(k)), {}))
    if isinstance(asked, dict) and "messages" in asked and isinstance(settings, dict):
        asked = {**{k: settings[k] for k in ("temperature", "max_tokens") if k in settings}, **asked}
    model = next((row[key] for key in ("model", "provided_model_name", "providedModelName") if row.get(key)), None)
    reply = reply_of(row["output"], "output")
    if isinstance(asked, str):  # a question in a chat, since an export has no other way to say one
        found = Exchange(Asked(text_prompt(asked)), reply, conversation=_session(row))
    else:
        found = exchange(asked, reply, "input", row)
    yield replace(found, reply=_written_by(model, reply))


def _is_langfuse(row: Row) -> bool:
    traced = any(key in row for key in ("traceId", "trace_id")) and "run_type" not in row
    return traced and "input" in row and "output" in row


def _langsmith(row: Row) -> Exchanges:
    if row["run_type"] != "llm":
        raise SkipRowError("no call of a model: another kind of run")
    asked, answer = unpacked(row.get("inputs")), unpacked(row.get("outputs"))
    if row.get("error") or not isinstance(asked, dict) or not isinstance(answer, dict):
        raise SkipRowError("a run without inputs or outputs")
    extra = unpacked(row.get("extra"))
    extra = extra if isinstance(extra, dict) else {}
    called = extra.get("invocation_params") or {}
    place = "outputs"
    generations = unpacked(answer.get("generations"))
    if isinstance(generations, list) and generations:
        first = generations[0][0] if isinstance(generations[0], list) else generations[0]
        reply = reply_of(first.get("message") or first.get("text"), f"{place}.generations")
        reply = _ended(reply, first.get("generation_info"))
    else:
        reply = reply_of(answer.get("messages") or answer, place)
    kept = {key: called[key] for key in ("temperature", "max_tokens", "tools") if key in called}
    reply = _written_by(called.get("model") or called.get("model_name"), reply)
    # `session_id` of a run is the project; its thread is among the metadata.
    yield exchange({**kept, **asked}, reply, "inputs", extra.get("metadata") or {"session_id": row.get("trace_id")})


def _written_by(model: object, reply: Reply) -> Reply:
    """What stands beside an answer may name its model."""
    return replace(reply, model=reply.model or (model if isinstance(model, str) else None))


def _session(row: Row) -> str | None:
    found = next((row[key] for key in _SESSIONS if row.get(key) is not None), None)
    return None if found is None else str(found)


def _refused(what: str, hint: str) -> Callable[[Row], Exchanges]:
    def read(row: Row) -> Exchanges:
        raise MalformedRowError(what, hint)

    return read


SOURCES = (
    Source("LangSmith", lambda row: "run_type" in row, _langsmith),
    Source("Langfuse", _is_langfuse, _langfuse),
    Source("aiperf", lambda row: isinstance(row.get("payload"), dict) and "responses" in row, _aiperf),
    Source(
        "aiperf",
        lambda row: isinstance(row.get("metrics"), dict) and isinstance(row.get("metadata"), dict),
        _refused(
            "aiperf's profile_export.jsonl holds no texts",
            "Run it with --export-level raw, and name profile_export_raw.jsonl.",
        ),
    ),
    Source(
        "guidellm",
        lambda row: isinstance(row.get("requests"), dict) and isinstance(row["requests"].get("successful"), list),
        _guidellm,
    ),
    Source(
        "Spec-Bench",
        lambda row: isinstance(row.get("choices"), list) and ("question_id" in row or "turns" in row),
        _judged,
    ),
    Source("OpenAI requests and responses", _is_logged, _logged),
    Source(
        "OpenAI batch",
        lambda row: "custom_id" in row and "body" not in row and "response" in row,
        _refused(
            "a batch output holds answers without their prompts",
            "Name the batch input with --workload, and this file with --answers.",
        ),
    ),
    Source(
        "OpenAI batch",
        lambda row: "custom_id" in row and "body" in row,
        _refused("a batch input holds prompts without their answers", "Name the batch output with --answers."),
    ),
    Source("chat rows", lambda row: _turns_key(row) is not None, _chat),
    Source("instruction rows", _is_instruction, _instruction),
)

_KNOWN = (
    "Known are rows whose messages hold answers, ShareGPT, Alpaca, OpenAI requests with responses, batch files, logs "
    "of vLLM, exports of aiperf, guidellm, Langfuse and LangSmith, answers of Spec-Bench and SPEED-Bench: see "
    "docs/recorded.md."
)
