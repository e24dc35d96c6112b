"""Prompts as one model's token ids, and the ids with which its texts end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from json import loads
from typing import Any

from specbench.errors import ConfigError, TemplateError
from specbench.models.encoding import Today
from specbench.models.load import LoadedModel
from specbench.records import Message, Omitted, Prompt
from specbench.text import shown

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
        with (today or Today()).held(tokenizer):
            encoded = tokenizer.apply_chat_template(**given, add_generation_prompt=True, return_dict=True)
    except Exception as error:  # a template may raise anything, and its message may quote the prompt
        raise _refused(loaded, error) from None
    return list(encoded["input_ids"])


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Prompts with their token ids, and those that the chat template refuses, as run.json lists them."""

    encoded: list[tuple[Prompt, list[int]]]
    refused: list[Omitted]


def encode_all(
    loaded: LoadedModel, prompts: Sequence[Prompt], kwargs: Kwargs, today: Today | None = None
) -> EncodedPrompts:
    """A prompt that the template refuses is one prompt less. Raises TemplateError where it refuses all."""
    found = EncodedPrompts([], [])
    for prompt in prompts:
        try:
            found.encoded.append((prompt, encode(loaded, prompt, kwargs, today)))
        except TemplateError as error:
            found.refused.append(Omitted(prompt.id, f"the chat template refuses it ({error.kind})"))
            if len(found.refused) == len(prompts):
                raise
    return found


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
        found = loads(arguments)
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
