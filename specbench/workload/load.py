"""Rows -> a Workload: prompts with stable ids, content hashes and what to distrust."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from specbench.errors import WorkloadError
from specbench.records import Finding, Message, Prompt
from specbench.validation import expanded, kind_of
from specbench.workload.cautions import looks_random, prompt_cautions, question, row_cautions
from specbench.workload.faults import MalformedRowError, SkipRowError, list_names
from specbench.workload.files import PREFIX, read_hub, read_rows
from specbench.workload.shapes import Asked, asked_in

_NEEDED = {
    "prompts": ("workload", "Give at least one text prompt; 30 or more make an interval."),
    "answers": ("log", "Give a log with prompts and answers."),
}
_ID_KEYS = ("id", "question_id", "custom_id", "uid")
_CATEGORY_KEYS = ("category", "task")
_LONGEST_LABEL = 64  # a `task` longer than this is an instruction, not a category
_LONGEST_ID = 256  # longer, or of several lines, it is text, which a report may not show


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row left out: where it is ("line 12", "row 12"), why, and its id where it has one."""

    where: str
    reason: str
    id: str | None = None

    @property
    def name(self) -> str:
        return self.where if self.id is None else f"{self.where} ({self.id})"


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts of one source, in its order. `sha256` is over their ids, categories and content hashes, so the
    same prompts have the same hash in any file format. `random_suspects` counts the prompts that look like random
    characters or tokens; it is taken while reading because it costs as much as reading."""

    prompts: tuple[Prompt, ...]
    source: str
    sha256: str
    skipped: tuple[Skipped, ...] = ()
    cautions: tuple[Finding, ...] = ()
    random_suspects: int = 0


def load_workload(
    source: str,
    *,
    column: str | None = None,
    category_column: str | None = None,
    system_prompt: str | None = None,
) -> Workload:
    """Read a file, or a hub data set as `hub:ID[:CONFIG][@SPLIT]`.

    `column` holds the prompt where the row's shape does not tell; `system_prompt` opens every conversation that
    has no system message. Ids come from the rows or are `p-` and 10 hex digits of the content hash; a second use
    of an id gets `#2`. Raises WorkloadError, with place and hint and without prompt text.
    """
    prompts: list[Prompt] = []
    skipped: list[Skipped] = []
    faults: list[tuple[str, MalformedRowError]] = []
    unused: Counter[str] = Counter()
    sampling: Counter[str] = Counter()
    ids = _Ids()
    columns: list[object] | None = None
    category_seen = category_column is None
    for place, row in rows_of(source):
        if isinstance(row, dict):
            columns = list(row) if columns is None else columns
            category_seen = category_seen or category_column in row
        try:
            if isinstance(row, MalformedRowError):
                raise row
            asked = asked_in(row, column)
            prompt = prompt_of(asked, system_prompt)
            category = category_of(row, category_column, column)
            wanted = _wanted_id(row)
            check_unicode(f"{wanted}{category}")
        except (SkipRowError, MalformedRowError) as fault:
            skipped.append(Skipped(place, str(fault), shown_id(row)))
            if isinstance(fault, MalformedRowError):
                faults.append((place, fault))
            continue
        prompts.append(replace(prompt, id=ids.take(wanted, prompt.sha256), category=category))
        unused.update(dict.fromkeys(asked.unused, 1))
        sampling.update(dict.fromkeys(asked.sampling, 1))
    if not prompts:
        raise nothing_usable("prompts", source, len(skipped), skipped, faults[0] if faults else None)
    if not category_seen:
        raise WorkloadError(
            f"no column {category_column}; found: {list_names(columns or [])}",
            where=source,
            hint="Correct --category-column NAME or leave it out.",
        )
    suspects = sum(looks_random(question(prompt)) for prompt in prompts)
    cautions = (
        *row_cautions(len(prompts) + len(skipped), len(faults), len(prompts), unused, sampling),
        *prompt_cautions(prompts, suspects, ids.clashes),
    )
    return Workload(tuple(prompts), source, fingerprint(prompts), tuple(skipped), cautions, suspects)


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """sha256 over ids, categories and content hashes, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.category, prompt.sha256]).encode())
    return digest.hexdigest()


def rows_of(source: str) -> Iterator[tuple[str, object]]:
    if source.startswith(PREFIX):
        return read_hub(source)
    return read_rows(expanded(source, WorkloadError))


def nothing_usable(
    noun: str, source: str, left_out: int, skipped: Sequence[Skipped], fault: tuple[str, MalformedRowError] | None
) -> WorkloadError:
    """A file of which no row can be used is misread as a whole: the first `fault` says how."""
    if fault is not None:
        place, error = fault
        return WorkloadError(error.what, where=f"{source}, {place}", hint=error.hint)
    holder, hint = _NEEDED[noun]
    what = f"the {holder} holds no {noun}"
    if skipped:
        first = skipped[0]
        what = f"no usable {noun}: every row was skipped ({left_out:,}), {first.where} because: {first.reason}"
    return WorkloadError(what, where=source, hint=hint)


def prompt_of(asked: Asked, system_prompt: str | None) -> Prompt:
    """A prompt that has no id yet; `system_prompt` opens what has no system message. Its sha256 is over the canonical
    JSON of all that is asked, UTF-8, no spaces: [[role, content], ...], with a third entry for the fields of a message
    that has some; where more is asked an object with what stands beside. Keys of template arguments and of the request
    come in any order, those of tools as they are written out. Raises SkipRowError."""
    messages = asked.messages
    if system_prompt is not None and all(message.role != "system" for message in messages):
        messages = (Message("system", system_prompt), *messages)
    turns = [[m.role, m.content, *([m.fields] if m.fields else [])] for m in messages]
    beside = {
        "tools": asked.tools,
        "template_kwargs": dict(sorted(asked.template_kwargs.items())),
        "request": dict(sorted(asked.request.items())),
    }
    beside = {key: value for key, value in beside.items() if value}
    text = json.dumps({"messages": turns} | beside if beside else turns, ensure_ascii=False, separators=(",", ":"))
    sha256 = hashlib.sha256(check_unicode(text)).hexdigest()
    return Prompt("", messages, sha256, None, asked.tools, asked.template_kwargs, asked.request)


def check_unicode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer can read it, no file hold it
        raise SkipRowError("not valid Unicode: half a surrogate pair") from None


def category_of(row: object, category_column: str | None, column: str | None) -> str | None:
    if not isinstance(row, dict):
        return None
    if category_column is not None:
        value = row.get(category_column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
            raise MalformedRowError(
                f"the category is {kind_of(value)}, not text", "Choose a --category-column of labels."
            )
        if value is None or (isinstance(value, float) and math.isnan(value)):  # data frames write NaN for "absent"
            return None
        label = str(value).strip()
        if not _is_short(label, _LONGEST_LABEL):
            raise MalformedRowError(
                f"the category is longer than {_LONGEST_LABEL} characters or one line",
                "Choose a --category-column of labels.",
            )
        return label or None
    for key in _CATEGORY_KEYS:
        value = row.get(key)
        if key != column and isinstance(value, str | int) and not isinstance(value, bool):
            label = str(value).strip()
            if label and _is_short(label, _LONGEST_LABEL):
                return label
    return None


def _is_short(text: str, longest: int) -> bool:
    return len(text) <= longest and len(text.splitlines()) <= 1


def _wanted_id(row: object) -> str | None:
    if isinstance(row, dict):
        for key in _ID_KEYS:
            value = row.get(key)
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
                return str(value) if _is_short(str(value), _LONGEST_ID) else None
    return None


def shown_id(row: object) -> str | None:
    """The id of a row that is left out, where it can be shown."""
    found = _wanted_id(row)
    return None if found is None or any("\ud800" <= char <= "\udfff" for char in found) else found


class _Ids:
    """Hands out ids, each once, since a trial is stored under its prompt's id. `clashes` counts the prompts that
    wanted an id in use by other content; the same content again is counted elsewhere, as a repeat."""

    def __init__(self) -> None:
        self.clashes = 0
        self._content: dict[str, str] = {}
        self._copies: dict[str, int] = {}

    def take(self, wanted: str | None, sha256: str) -> str:
        wanted = f"p-{sha256[:10]}" if wanted is None else wanted
        if wanted not in self._content:
            self._content[wanted] = sha256
            return wanted
        self.clashes += self._content[wanted] != sha256
        copy = self._copies.get(wanted, 1) + 1
        while (name := f"{wanted}#{copy}") in self._content:
            copy += 1
        self._copies[wanted] = copy
        self._content[name] = sha256
        return name
