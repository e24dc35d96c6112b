"""Prompts as one model's token ids: how they are written, the ids with which texts end, the hashes and the date that
are stored of them, and tokens that should not be there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from specbench.errors import ConfigError, ModelError, TemplateError
from specbench.models.load import LoadedModel
from specbench.records import Finding, Message, Omitted, Prompt, warned
from specbench.run_record import Encoding
from specbench.text import shown

# The function that transformers gives templates; a date comes into a prompt in no other way.
_CLOCK = "strftime_now"


class Today:
    """The moment that a chat template takes for now: the same for all prompts of a run, and for whoever goes on with
    it. `written` is whether a template asked for it."""

    def __init__(self, at: datetime | None = None) -> None:
        self.at = at or datetime.now()
        self.written = False

    def now(self) -> datetime:
        """What transformers asks for."""
        self.written = True
        return self.at

    @contextmanager
    def held(self, tokenizer: Any) -> Iterator[None]:
        """Templates are written at this moment. transformers gives them a clock and no way to set it: it looks it up as
        `datetime` of its own module, at every call."""
        if _CLOCK not in json.dumps(tokenizer.chat_template):
            yield
            return
        from transformers.utils import chat_template_utils

        home: Any = chat_template_utils
        clock = home.datetime
        home.datetime = self
        try:
            yield
        finally:
            home.datetime = clock


def ids_sha256(ids: Sequence[int]) -> str:
    """16 hex digits that change with the ids of a prompt."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def encoded_record(loaded: LoadedModel, encoded: Sequence[tuple[str, Sequence[int]]], today: Today) -> Encoding:
    """What became of these prompts, by the hash of their content."""
    template = loaded.tokenizer.chat_template
    return Encoding(
        template_sha256=None if template is None else hashlib.sha256(json.dumps(template).encode()).hexdigest(),
        now=today.at.isoformat(timespec="seconds") if today.written else None,
        ids_sha256={sha: ids_sha256(ids) for sha, ids in encoded},
    )


def today_of(record: Encoding | None) -> Today:
    """The moment that the prompts of a stored run were written at; now where they have none."""
    now = None if record is None else record.now
    return Today(None if now is None else datetime.fromisoformat(now))


def changed_encoding(was: Encoding | None, now: Encoding | None) -> str | None:
    """How many prompts that two runs share are of other token ids, and why, by what `encoded_record` stored of them:
    `3 of 8 prompts have other token ids: another chat template`. None where none is, or where a run stored nothing."""
    if was is None or now is None:
        return None
    then, ids = was.ids_sha256, now.ids_sha256
    shared = then.keys() & ids.keys()
    other = sum(then[sha] != ids[sha] for sha in shared)
    if not other:
        return None
    if was.template_sha256 != now.template_sha256:
        why = "another chat template"
    elif was.now != now.now:
        days = [(each.now or "no date")[:10] for each in (was, now)]
        # A template may write the time as well.
        why = f"the chat template wrote {' and '.join(days if days[0] != days[1] else [str(was.now), str(now.now)])}"
    else:
        why = "another tokenizer, or other arguments of the chat template"
    return f"{other} of {len(shared)} prompts have other token ids: {why}"


def encoding_cautions(
    loaded: LoadedModel, encoded: Sequence[Sequence[int]], ends: frozenset[int], today: Today
) -> Iterator[Finding]:
    """end-in-prompt, two-begins, date-in-prompt, end-tokens."""
    tokenizer = loaded.tokenizer
    bare = tokenizer.chat_template is None
    writer = "tokenizer appends" if bare else "chat template writes"
    # An empty prompt is its end alone.
    ended = sum(len(ids) > 1 and ids[-1] in ends for ids in encoded)
    begin = tokenizer.bos_token_id
    twice = sum(begin is not None and list(ids[:2]) == [begin] * 2 for ids in encoded)
    if ended > 0:
        yield warned(
            "end-in-prompt",
            f"{ended} of {len(encoded)} prompts end with an end-of-sequence token, which the {writer}: the target "
            "reads that the text is over before it begins",
            "Set add_eos_token to false, and take it out of the post_processor in tokenizer.json."
            if bare
            else "Take it out of the template, unless the model was trained like that.",
        )
    if twice > 0:
        yield warned(
            "two-begins",
            f"{twice} of {len(encoded)} prompts begin with two begin-of-text tokens (id {begin}): models are trained "
            "on one",
            "Take one out: of the template, of the tokenizer (add_bos_token), or of the prompts.",
        )
    if today.written:
        yield warned(
            "date-in-prompt",
            f"the chat template writes the date into prompts (here {today.at:%Y-%m-%d}): on another day they are "
            "other prompts, with other texts",
            "Compare runs of one day. A run that is continued, and its check, keep the date that it began with.",
        )
    yield from _ends_caution(loaded, ends)


def _ends_caution(loaded: LoadedModel, ends: frozenset[int]) -> Iterator[Finding]:
    """end-tokens: where the files of the target do not agree on how its texts end. `ends` are those that count here."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    text = config.get_text_config()
    named = {
        "the tokenizer": _ids(tokenizer.eos_token_id),
        "config.json": _ids(getattr(config, "eos_token_id", None)) | _ids(getattr(text, "eos_token_id", None)),
    }
    others = [f"{who} names {_listed(ids - ends)}" for who, ids in named.items() if ids - ends]
    said = []
    if others:
        said.append(
            f"here they end at {_listed(ends)}, while {' and '.join(others)}; engines end at other sets of these"
        )
    if beyond := [token for token in ends if token >= int(text.vocab_size)]:
        said.append(f"the model has {int(text.vocab_size):,} tokens, and so never says {_listed(beyond)}")
    if said:
        yield warned(
            "end-tokens",
            f"the files of {loaded.name} do not agree on how texts end: {'; '.join(said)}",
            "List every end of the model, and no other, as eos_token_id in its generation_config.json.",
        )


def _ids(value: Any) -> frozenset[int]:
    given = value if isinstance(value, list | tuple) else [value]
    return frozenset(one for one in given if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def _listed(ids: Any) -> str:
    return ", ".join(map(str, sorted(ids)))


Kwargs = Mapping[str, Any] | None


def encode(loaded: LoadedModel, prompt: Prompt, kwargs: Kwargs, today: Today | None = None) -> list[int]:
    """Token ids of the prompt for one model, through its chat template where it has one, written `today` (None: now).
    `kwargs` are the run's arguments of the template, over which those of the prompt go. Raises TemplateError where the
    template fails."""
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template is None:
        ids: list[int] = tokenizer("\n\n".join(message.content for message in prompt.messages))["input_ids"]
        return ids or [next(iter(end_tokens(loaded)))]
    given = template_arguments(prompt, kwargs)
    try:
        encoded = render(tokenizer, given, today, return_dict=True)
    except Exception as error:  # a template may raise anything, and its message may quote the prompt
        raise _refused(loaded, error) from None
    return list(encoded["input_ids"])


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Prompts with their token ids, and those that the chat template refuses, or of which the model cannot read a
    token, as run.json lists them."""

    encoded: list[tuple[Prompt, list[int]]]
    refused: list[Omitted]


def encode_all(
    loaded: LoadedModel, prompts: Sequence[Prompt], kwargs: Kwargs, today: Today | None = None
) -> EncodedPrompts:
    """A prompt that the template refuses, or that spells a token which the model does not have, is one prompt less.
    Raises ModelError where none is left."""
    found = EncodedPrompts([], [])
    size = vocabulary_of(loaded)
    error: ModelError | None = None
    for prompt in prompts:
        try:
            ids = encode(loaded, prompt, kwargs, today)
            why = beyond(ids, size)
        except TemplateError as refused:
            error, why = refused, f"the chat template refuses it ({refused.kind})"
        if why is None:
            found.encoded.append((prompt, ids))
        else:
            found.refused.append(Omitted(prompt.id, why))
    if found.refused and not found.encoded:
        hint = "Take out of prompts what spells tokens of images and their like."
        raise error or ModelError(f"{loaded.name} can read no prompt: the first {found.refused[0].reason}", hint=hint)
    return found


def vocabulary_of(loaded: LoadedModel) -> int | None:
    """How many tokens the model reads; None without one."""
    return None if loaded.model is None else loaded.vocab_size


def beyond(ids: Sequence[int], size: int | None) -> str | None:
    """Why a model that reads `size` tokens cannot read these ids; None where it can. A tokenizer may know more tokens
    than the model, such as those of images."""
    most = max(ids, default=0)
    return None if size is None or most < size else f"holds token {most}, and the model has {size:,} tokens"


def render(tokenizer: Any, given: Mapping[str, Any], today: Today | None = None, **options: Any) -> Any:
    """What the chat template makes of `given`, as `template_arguments` has it, up to the next answer, written `today`
    (None: now). Texts are given as parts where it writes no others, as those for images do; vLLM does the same."""
    if _takes_parts(tokenizer, json.dumps(tokenizer.chat_template)):
        turns = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in given["conversation"]]
        given = {**given, "conversation": turns}
    with (today or Today()).held(tokenizer):
        return tokenizer.apply_chat_template(**({"add_generation_prompt": True} | {**given} | options))


@lru_cache(maxsize=16)  # asked for every prompt of a log
def _takes_parts(tokenizer: Any, template: str) -> bool:
    if "type" not in template:  # it knows no parts
        return False
    mark = "zq0zq"
    return mark not in _written(tokenizer, mark) and mark in _written(tokenizer, [{"type": "text", "text": mark}])


def _written(tokenizer: Any, content: Any) -> str:
    turns = [{"role": "user", "content": content}]
    with suppress(Exception):  # a template may raise anything
        return str(tokenizer.apply_chat_template(conversation=turns, add_generation_prompt=True, tokenize=False))
    return ""


def template_arguments(prompt: Prompt, kwargs: Kwargs) -> dict[str, Any]:
    """What rendering this prompt takes."""
    given = {**(kwargs or {}), **prompt.template_kwargs, "conversation": [_turn(each) for each in prompt.messages]}
    return given | {"tools": list(prompt.tools)} if prompt.tools else given


def _turn(message: Message) -> dict[str, Any]:
    """Templates take the arguments of a call as an object, and OpenAI's interface has them as JSON text."""
    turn = {"role": message.role, "content": message.content, **message.fields}
    if "tool_calls" in turn:
        turn["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": _object(call["function"]["arguments"])}}
            for call in turn["tool_calls"]
        ]
    return turn


def _object(arguments: str) -> Any:
    with suppress(ValueError, RecursionError):
        found = json.loads(arguments)
        return found if isinstance(found, dict) else arguments
    return arguments


def _refused(loaded: LoadedModel, error: Exception) -> TemplateError:
    kind = type(error).__name__
    return TemplateError(
        f"the chat template of {loaded.name} fails ({kind})",
        kind=kind,
        hint="Some take no system message, or no two turns of one role: change the prompts, or mend the template.",
    )


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """The ids that end a text: of the generation config, which lists them all, else of the tokenizer. Raises
    ConfigError where neither names one."""
    for given in (getattr(loaded.model.generation_config, "eos_token_id", None), loaded.tokenizer.eos_token_id):
        ids: list[Any] = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        if strange := [one for one in ids if isinstance(one, bool) or not isinstance(one, int)]:
            raise ConfigError(
                f"eos_token_id has {shown(strange[0])}, which is no token id",
                where=loaded.name,
                hint="Mend its generation_config.json.",
            )
        # Some files say -1 for none.
        if ends := frozenset(one for one in ids if one >= 0):
            return ends
    raise ConfigError(
        "The model has no end-of-sequence token",
        where=loaded.name,
        hint="Set eos_token_id in its generation config.",
    )
