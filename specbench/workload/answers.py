"""A file of recorded answers as a stream: read once to say what is in it, and again to score it, in flat memory."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from specbench.config import RECORDED, RunConfig
from specbench.errors import WorkloadError
from specbench.records import Finding, Message, warned
from specbench.validation import expanded
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.files import PREFIX
from specbench.workload.load import (
    Skipped,
    category_of,
    check_unicode,
    nothing_usable,
    prompt_of,
    rows_of,
    shown_id,
)
from specbench.workload.replies import NAME, Exchange, Recorded, is_log, logged_exchanges
from specbench.workload.shapes import without_nan
from specbench.workload.sources import exchanges_in

# Answers in memory at once, and those over which models are checked when they are loaded.
BLOCK, SAMPLE = 256, 64
# Rows left out are listed up to here, and counted beyond.
MOST_LISTED = 100
# Conversations are counted up to here.
MOST_CONVERSATIONS = 100_000

_JOINED = "answer of another file"
_JOINS = ("custom_id", "question_id", "id", "uid")


@dataclass(slots=True)
class Survey:
    """What a log holds. `sha256` is over all prompts and answers; `sources` and `models` count answers by what wrote
    the log and by the name of the model, `temperatures` by that of the request. Of `as_ids` the log holds the tokens,
    of `unended` it does not say how they ended. Conversations are at least so many."""

    answers: int = 0
    conversations: int = 0
    sha256: str = ""
    categories: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    temperatures: Counter[float] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    as_ids: int = 0
    unended: int = 0
    left_out: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    first_fault: tuple[str, MalformedRowError] | None = None


class AnswerLog:
    """The answers of `source`, a file or `hub:ID`; those to its prompts may stand in a file of their own, `answers`,
    by the same ids. `chosen` are the numbers of those that are wanted (None: all)."""

    def __init__(
        self,
        source: str,
        *,
        answers: str | None = None,
        category_column: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        self.source = source
        self.chosen: Collection[int] | None = None
        self._answers = None if answers is None else _by_id(answers)
        self._category_column = category_column
        self._system_prompt = system_prompt

    @classmethod
    def of(cls, config: RunConfig) -> AnswerLog:
        """The log that a configuration names."""
        return cls(
            config.workload,
            answers=None if config.answers == RECORDED else config.answers,
            category_column=config.category_column,
            system_prompt=config.system_prompt,
        )

    def survey(self) -> tuple[Survey, list[str | None]]:
        """What is in it, and the category of every answer. Raises WorkloadError where there is not one."""
        found, digest = Survey(), hashlib.sha256()
        seen: set[int] = set()
        labels: list[str | None] = []
        for source, one in self._read(found):
            found.answers += 1
            labels.append(one.prompt.category)
            found.categories[one.prompt.category or "all"] += 1
            found.sources[source] += 1
            if one.reply.model is not None:
                found.models[one.reply.model] += 1
            if one.temperature is not None:
                found.temperatures[one.temperature] += 1
            found.as_ids += one.reply.ids is not None
            found.unended += one.reply.finish is None
            if len(seen) < MOST_CONVERSATIONS:
                seen.add(int(one.conversation, 16))
            reply = [one.reply.message.content, one.reply.message.fields, one.reply.ids, one.reply.finish]
            digest.update(json.dumps([one.prompt.id, one.prompt.category, one.prompt.sha256, *reply]).encode())
        found.conversations, found.sha256 = len(seen), digest.hexdigest()
        if not found.answers:
            raise nothing_usable("answers", self.source, found.left_out, found.skipped, found.first_fault)
        return found, labels

    def __iter__(self) -> Iterator[Recorded]:
        for number, (_, one) in enumerate(self._read(Survey())):
            if self.chosen is None or number in self.chosen:
                yield one

    def blocks(self) -> Iterator[list[Recorded]]:
        answers = iter(self)
        while block := list(islice(answers, BLOCK)):
            yield block

    def numbered(self, numbers: Collection[int]) -> list[Recorded]:
        """Those of these numbers, counted from 0 among the wanted ones."""
        return [one for number, one in enumerate(islice(self, max(numbers) + 1)) if number in numbers]

    def _read(self, found: Survey) -> Iterator[tuple[str, Recorded]]:
        log = not self.source.startswith(PREFIX) and is_log(Path(self.source))
        rows: Iterator[tuple[str, object]] = (
            logged_exchanges(expanded(self.source, WorkloadError)) if log else rows_of(self.source)
        )
        for place, row in rows:
            count = 0
            try:
                for source, category, each in self._exchanges(row):
                    count += 1
                    found.unused.update(dict.fromkeys(each.asked.unused, 1))
                    yield source, self._recorded(place, count, category, each)
            except (SkipRowError, MalformedRowError) as fault:
                found.left_out += 1
                if isinstance(fault, MalformedRowError):
                    found.first_fault = found.first_fault or (place, fault)
                if len(found.skipped) < MOST_LISTED:
                    found.skipped.append(Skipped(place, str(fault), shown_id(row)))

    def _exchanges(self, row: object) -> Iterator[tuple[str, str | None, Exchange]]:
        """What a row holds, with the name of its source and its category. Raises SkipRowError and MalformedRowError."""
        if isinstance(row, Exception):
            raise row
        if isinstance(row, Exchange):
            yield NAME, None, row
            return
        row = self._with_answer(row)
        source, exchanges = exchanges_in(row)
        for each in exchanges:
            yield source, category_of(row, self._category_column, None), each

    def _with_answer(self, row: object) -> object:
        if self._answers is None or not isinstance(row, dict):
            return row
        answer = self._answers.get(_id_of(row))
        if answer is None:
            raise SkipRowError(f"no {_JOINED} has its id")
        # What the prompt's row calls its own stays: an answer's row may say "turns" or "category" as well.
        return {**answer, **{key: value for key, value in without_nan(row).items() if value is not None}}

    def _recorded(self, place: str, count: int, category: str | None, each: Exchange) -> Recorded:
        check_unicode(f"{category}{each.reply.message.content}")
        name = place.replace(" ", "-") + ("" if count == 1 else f".{count}")
        prompt = prompt_of(each.asked, self._system_prompt if each.form == "chat" else None)
        prompt = replace(prompt, id=name, category=category)
        conversation = _conversation(name, prompt.messages, each)
        return Recorded(prompt, each.reply, each.form, each.limit, each.temperature, conversation)


def _conversation(name: str, messages: tuple[Message, ...], each: Exchange) -> str:
    """By the name that the log has for it, else by how it begins, up to the first question: turns of one conversation
    share that, wherever in a log they stand."""
    if each.conversation is not None:
        key: Any = ["named", each.conversation]
    elif messages:
        first = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
        key = [[message.role, message.content] for message in messages[: first + 1]]
    else:
        key = ["alone", name]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _by_id(path: str) -> Mapping[str, dict[str, Any]]:
    """The rows of a file of answers, in memory. Raises WorkloadError where none has an id."""
    found = {}
    for _, row in rows_of(path):
        if isinstance(row, dict) and (name := _id_of(row)) is not None:
            found[name] = row
    if not found:
        raise WorkloadError(
            f"no row has an id ({', '.join(_JOINS)})", where=path, hint="Name the file with the answers to the prompts."
        )
    return found


def _id_of(row: Mapping[str, Any]) -> Any:
    return next((str(row[key]) for key in _JOINS if isinstance(row.get(key), str | int)), None)


def survey_cautions(found: Survey) -> list[Finding]:
    """What keeps these answers from standing for the target's: rows and fields left out."""
    if not found.left_out:
        return []
    first = "".join(f"; the first, {one.where}: {one.reason}" for one in found.skipped[:1])
    said = f"{found.left_out:,} rows give no answer and are left out, {found.answers:,} answers are taken{first}"
    most = 2 * found.left_out > found.answers + found.left_out
    hint = "the file may have another form" if most else "mend these rows, or leave them out"
    return [warned("rows-left-out", said, f"See the reasons in run.json: {hint}.")]
