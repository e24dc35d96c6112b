"""Prompts as one model's token ids, and the ids with which its texts end."""

from __future__ import annotations

from typing import Any

from specbench.checks.keys import shown
from specbench.errors import ConfigError, ModelError
from specbench.models.encoding import Today
from specbench.models.load import LoadedModel
from specbench.records import Prompt


def encode(loaded: LoadedModel, prompt: Prompt, today: Today | None = None) -> list[int]:
    """Token ids of the prompt for one model, through its chat template where it has one, written `today` (None: now).
    Raises ModelError where the template fails."""
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template is None:
        ids: list[int] = tokenizer("\n\n".join(message.content for message in prompt.messages))["input_ids"]
        return ids or [next(iter(end_tokens(loaded)))]
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    try:
        with (today or Today()).held(tokenizer):
            encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    except Exception as error:  # a template may raise anything, and its message may quote the prompt
        raise ModelError(
            f"the chat template of {loaded.name} fails ({type(error).__name__})",
            cure="Some take no system message, or no two turns of one role: change the prompts, or mend the template.",
        ) from None
    return list(encoded["input_ids"])


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """The ids that end a text: of the generation config, which lists them all, else of the tokenizer. Raises
    ConfigError where neither names one."""
    for given in (getattr(loaded.model.generation_config, "eos_token_id", None), loaded.tokenizer.eos_token_id):
        ids: list[Any] = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        if strange := [one for one in ids if isinstance(one, bool) or not isinstance(one, int)]:
            raise ConfigError(
                f"eos_token_id has {shown(strange[0])}, which is no token id",
                where=loaded.name,
                cure="Mend its generation_config.json.",
            )
        # Some files say -1 for none.
        if ends := frozenset(one for one in ids if one >= 0):
            return ends
    raise ConfigError(
        "The model has no end-of-sequence token",
        where=loaded.name,
        cure="Set eos_token_id in its generation config.",
    )
