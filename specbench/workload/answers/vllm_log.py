"""The request log of vLLM (`--enable-log-requests --enable-log-outputs`, prompts at the level DEBUG): lines of one
request stand apart, and a stream is a line for each chunk."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specbench.errors import WorkloadError
from specbench.records import Finish, Message
from specbench.workload.answers.recorded import Exchange, Form, Reply
from specbench.workload.answers.replies import finish_of
from specbench.workload.conversation import text_prompt
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.shapes import Asked
from specbench.workload.text import text_lines

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


def is_log(path: Path) -> bool:
    """Whether a file is named as logs are."""
    return any(suffix in (".log", ".out") for suffix in path.suffixes)


def logged_exchanges(path: Path) -> Iterator[tuple[str, Exchange | SkipRowError | MalformedRowError]]:
    """The place of every response, and the exchange that it ends. Raises WorkloadError for a log that holds neither a
    request nor a response."""
    found = Open()
    for number, line in text_lines(path):
        place = f"line {number}"
        if "equest " in line:
            found.asked(line)
        elif "Generated response " in line and (match := _SAID.search(line)) is not None:
            ended = found.said(match)
            if ended is not None:
                yield place, _exchange(match[1], ended)
    if not found.any:
        raise WorkloadError(
            "no request of vLLM in the log",
            where=str(path),
            hint="Log with --enable-log-requests --enable-log-outputs and VLLM_LOGGING_LEVEL=DEBUG, no --max-log-len.",
        )


class Open:
    """The requests that have no answer yet."""

    def __init__(self) -> None:
        self.any = False
        self._open: dict[str, _Open] = {}

    def asked(self, line: str) -> None:
        """A line about a request: its prompt, its settings, or both."""
        for match in (_ASKED.search(line), _SETTINGS.search(line)):
            if match is None:
                continue
            self.any = True
            one = self._open.setdefault(match[1], _Open())
            if match.re is _SETTINGS:
                one.settings = match[2]
            else:
                one.prompt, one.prompt_ids = _literal(match[2]), _ids(match[4])
        while len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    def said(self, match: re.Match[str]) -> _Open | None:
        """A line about an answer; the request where it is the last."""
        self.any = True
        one = self._open.setdefault(match[1], _Open())
        if match[2] != "complete":
            one.text += _literal(match[3]) or ""
            one.ids += _ids(match[4]) or ()
        if match[5] not in ("None", "streaming_complete"):
            one.finish = finish_of(match[5])
        over = match[2] == "complete" or (match[2] is None and match[5] != "None")
        return self._open.pop(match[1]) if over else None


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
    match = re.search(rf"\b{name}=([\d.]+)", settings)
    return None if match is None else float(match[1])
