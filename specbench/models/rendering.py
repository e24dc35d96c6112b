"""What of a prompt a chat template does not write. Found by rendering: a part whose change leaves the text as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specbench.models.load import LoadedModel
from specbench.models.prompts import Kwargs, template_arguments
from specbench.records import Caution, Prompt

# What takes the place of a part to see whether it matters.
_OTHER = "zq"
_TURNS = {"system": "a system message", "user": "a user turn", "assistant": "an answer", "tool": "the answer of a tool"}
_FIELDS = {"tool_calls": "calls of tools", "reasoning_content": "thoughts", "name": "names of speakers"}


def unwritten(loaded: LoadedModel, prompts: Sequence[Prompt], kwargs: Kwargs) -> list[Caution]:
    """template-drops, what the target's template does not write, and request-fields-not-used, what only a server
    understands; each with its number of prompts. `prompts` are those that it renders."""
    dropped: Counter[str] = Counter()
    request: Counter[str] = Counter()
    for prompt in prompts:
        dropped.update(set(_dropped(loaded.tokenizer, prompt, kwargs)))
        request.update(prompt.request.keys())
    cautions = []
    if dropped:
        who = f"the chat template of {loaded.name} does not write"
        if _bare(loaded.tokenizer):
            who = f"{loaded.name} has no chat template, and nothing else writes"
        cautions.append(
            Caution(
                "template-drops",
                f"{who} {_counted(dropped)}: the target never sees that",
                "Use the template that your engine uses, or take out of prompts and settings what it has no place for.",
            )
        )
    if request:
        cautions.append(
            Caution(
                "request-fields-not-used",
                f"only a server understands {_counted(request)}: not used in process",
                "Measure with specbench sweep --server, or expect other texts where your traffic has these fields.",
            )
        )
    return cautions


def _dropped(tokenizer: Any, prompt: Prompt, kwargs: Kwargs) -> Iterator[str]:
    """Names of what is not written of one prompt."""
    given = template_arguments(prompt, kwargs)
    turns = given["conversation"]
    names = [name for name in given if name not in ("conversation", "tools")]
    if not prompt.tools and not names and [turn.keys() for turn in turns] == [{"role", "content"}]:
        return  # a question alone, of which the doctor looks whether it is written
    text = _rendered(tokenizer, given)
    if prompt.tools and not _matters(tokenizer, text, [_without(given, "tools")]):
        yield "tools"
    for name in names:
        # A default that is given has no effect, and another value has.
        if not _matters(tokenizer, text, [_without(given, name), given | {name: _another(given[name])}]):
            yield f"template argument {name}"
    marks = [f"{_OTHER}{place}{_OTHER}" for place in range(len(turns))]
    marked = [turn | {"content": turn["content"] + mark} for turn, mark in zip(turns, marks, strict=True)]
    all_marked = _rendered(tokenizer, given | {"conversation": marked}) or ""
    for place, turn in enumerate(turns):
        # One rendering settles nearly all turns; the others are changed one by one.
        written = marks[place] in all_marked or not turn["content"].strip()
        if not written and not _matters(tokenizer, text, [_with_turn(given, place, marked[place])]):
            yield _TURNS[turn["role"]]
        for name, what in _FIELDS.items():
            # Templates know a tool by the call that it answers, and seldom by its name.
            asked = name in turn and not (name == "name" and turn["role"] == "tool")
            if asked and not _matters(tokenizer, text, [_with_turn(given, place, _without(turn, name))]):
                yield what


def _matters(tokenizer: Any, text: str | None, others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of these renderings is another text, or fails."""
    return any(_rendered(tokenizer, other) != text for other in others)


def _rendered(tokenizer: Any, given: Mapping[str, Any]) -> str | None:
    if _bare(tokenizer):
        return "\n\n".join(turn["content"] for turn in given["conversation"])
    try:
        return str(tokenizer.apply_chat_template(**given, add_generation_prompt=True, tokenize=False))
    except Exception:  # a template may raise anything
        return None


def _bare(tokenizer: Any) -> bool:
    return tokenizer.chat_template is None


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _with_turn(given: Mapping[str, Any], place: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    turns = list(given["conversation"])
    turns[place] = turn
    return {**given, "conversation": turns}


def _another(value: Any) -> Any:
    return not value if isinstance(value, bool | list) or value is None else _OTHER


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{name} ({n} prompt{'' if n == 1 else 's'})" for name, n in sorted(found.items()))
