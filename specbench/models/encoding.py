"""What became of the prompts as token ids: their hashes, the date in them, and tokens that should not be there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from specbench.records import Finding, warned
from specbench.run_record import Encoding

if TYPE_CHECKING:
    from specbench.models.load import LoadedModel

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
) -> list[Finding]:
    """end-in-prompt, two-begins, date-in-prompt, end-tokens."""
    tokenizer = loaded.tokenizer
    writer = "tokenizer appends" if tokenizer.chat_template is None else "chat template writes"
    found = []
    # An empty prompt is its end alone.
    ended = sum(len(ids) > 1 and ids[-1] in ends for ids in encoded)
    if ended:
        found.append(
            warned(
                "end-in-prompt",
                f"{ended} of {len(encoded)} prompts end with an end-of-sequence token, which the {writer}: the target "
                "reads that the text is over before it begins",
                "Take it out of the template, unless the model was trained like that."
                if tokenizer.chat_template is not None
                else "Set add_eos_token to false, and take it out of the post_processor in tokenizer.json.",
            )
        )
    begin = tokenizer.bos_token_id
    twice = sum(begin is not None and list(ids[:2]) == [begin] * 2 for ids in encoded)
    if twice:
        found.append(
            warned(
                "two-begins",
                f"{twice} of {len(encoded)} prompts begin with two begin-of-text tokens (id {begin}): models are "
                "trained on one",
                "Take one out: of the template, of the tokenizer (add_bos_token), or of the prompts.",
            )
        )
    if today.written:
        found.append(
            warned(
                "date-in-prompt",
                f"the chat template writes the date into prompts (here {today.at:%Y-%m-%d}): on another day they are "
                "other prompts, with other texts",
                "Compare runs of one day. A run that is continued, and its check, keep the date that it began with.",
            )
        )
    return [*found, *ends_cautions(loaded, ends)]


def ends_cautions(loaded: LoadedModel, ends: frozenset[int]) -> list[Finding]:
    """end-tokens: where the files of the target do not agree on how its texts end. `ends` are those that count here."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    text = config.get_text_config()
    named = {
        "the tokenizer": _ids(tokenizer.eos_token_id),
        "config.json": _ids(getattr(config, "eos_token_id", None)) | _ids(getattr(text, "eos_token_id", None)),
    }
    others = [f"{who} names {_listed(ids - ends)}" for who, ids in named.items() if ids - ends]
    beyond = sorted(token for token in ends if token >= int(text.vocab_size))
    found = []
    if others:
        found.append(
            f"here they end at {_listed(ends)}, while {' and '.join(others)}; engines end at other sets of these"
        )
    if beyond:
        found.append(f"the model has {int(text.vocab_size):,} tokens, and so never says {_listed(beyond)}")
    if not found:
        return []
    return [
        warned(
            "end-tokens",
            f"the files of {loaded.name} do not agree on how texts end: {'; '.join(found)}",
            "List every end of the model, and no other, as eos_token_id in its generation_config.json.",
        )
    ]


def _ids(value: Any) -> frozenset[int]:
    given = value if isinstance(value, list | tuple) else [value]
    return frozenset(one for one in given if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def _listed(ids: Any) -> str:
    return ", ".join(map(str, sorted(ids)))
