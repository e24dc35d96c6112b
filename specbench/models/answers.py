"""Recorded answers as one model's token ids: as the log has them, else as its tokenizer and its chat template write
them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from specbench.models.load import LoadedModel
from specbench.models.prompts import Kwargs, Today, beyond, encode, render, template_arguments, vocabulary_of
from specbench.records import Finish
from specbench.workload.replies import Recorded


class UnwrittenAnswerError(Exception):
    """An answer that cannot be had as token ids; the argument is the reason, without a word of the text."""


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """Token ids of prompt and answer. `limit` is the most tokens that the answer might have had. `from_log` is whether
    the log held those of the answer."""

    prompt: list[int]
    output: list[int]
    finish: Finish
    limit: int
    from_log: bool


class AnswerEncoder:
    """For the texts of one model, which end with one of `ends`. At most `longest` tokens of an answer are read."""

    def __init__(self, loaded: LoadedModel, kwargs: Kwargs, today: Today, ends: Collection[int], longest: int) -> None:
        self._loaded = loaded
        self._kwargs = kwargs
        self._today = today
        self._ends = frozenset(ends)
        self._longest = longest
        self._size = vocabulary_of(loaded)
        self._end = _turn_end(loaded, self._ends)

    def encode(self, one: Recorded) -> EncodedAnswer:
        """Raises TemplateError for a prompt that the template refuses, UnwrittenAnswerError for an answer that it does
        not write as it was, and for tokens that the model does not have."""
        ids = one.reply.ids
        output = list(ids) if ids is not None else self._written(one)
        finish = one.reply.finish
        end = next((place for place, token in enumerate(output) if token in self._ends), None)
        if end is not None:
            output, finish = output[: end + 1], "eos"
        elif ids is not None:
            finish = "length"  # no end of sequence among its tokens
        if len(output) > self._longest:
            output, finish = output[: self._longest], "length"
        if not output:
            raise UnwrittenAnswerError("the answer has no tokens")
        cut = finish == "length"
        limit = len(output) if cut else max(len(output), min(one.limit or self._longest, self._longest))
        prompt = self._prompt(one)
        if (strange := beyond([*prompt, *output], self._size)) is not None:
            raise UnwrittenAnswerError(strange)
        return EncodedAnswer(prompt, output, "length" if cut else "eos", limit, ids is not None)

    def changed_tokens(self, output: Sequence[int]) -> int:
        """How many tokens of an answer another tokenization of its own text would not have."""
        body = [token for token in output if token not in self._ends]
        tokenizer = self._loaded.tokenizer
        again = _ids(tokenizer, tokenizer.decode(body))
        if again == body:
            return 0
        same = SequenceMatcher(None, body, again, autojunk=False).get_matching_blocks()
        return len(body) - sum(block.size for block in same)

    def _prompt(self, one: Recorded) -> list[int]:
        if one.reply.prompt_ids is not None:
            return list(one.reply.prompt_ids)
        if not one.prompt.messages:
            raise UnwrittenAnswerError("the log has no prompt to it")
        if one.form == "chat":
            return encode(self._loaded, one.prompt, self._kwargs, self._today)
        text, tokenizer = one.prompt.messages[0].content, self._loaded.tokenizer
        begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        return _ids(tokenizer, text, special=one.form == "text" and not begins) or [min(self._ends)]

    def _written(self, one: Recorded) -> list[int]:
        """The tokens of a text, and the end that the model wrote unless it was cut."""
        message, cut = one.reply.message, one.reply.finish == "length"
        if not message.fields:
            output = _ids(self._loaded.tokenizer, message.content)
            return output if cut or (output and output[-1] in self._ends) else [*output, self._end]
        output = _ids(self._loaded.tokenizer, self._by_template(one))
        end = next((place for place, token in enumerate(output) if token in self._ends), len(output))
        return output[:end] if cut else [*output[:end], self._end]

    def _by_template(self, one: Recorded) -> str:
        """Thoughts and calls of tools as the template writes them behind the prompt."""
        message, tokenizer = one.reply.message, self._loaded.tokenizer
        if tokenizer.chat_template is None or one.form != "chat":
            raise UnwrittenAnswerError("thoughts or calls of tools in an answer, and no chat template writes them")
        given = template_arguments(one.prompt, self._kwargs)
        alone = replace(one.prompt, messages=(message,), tools=(), template_kwargs={})
        answer = template_arguments(alone, None)["conversation"]
        try:
            before = render(tokenizer, given, self._today, tokenize=False)
            given["conversation"] = [*given["conversation"], *answer]
            whole = render(tokenizer, given, self._today, add_generation_prompt=False, tokenize=False)
        except Exception:  # a template may raise anything, and its message may quote the text
            raise UnwrittenAnswerError("the chat template refuses the answer") from None
        said = whole[len(before) :]
        calls = message.fields.get("tool_calls", ())
        wanted = [message.content, message.fields.get("reasoning_content", ""), *(c["function"]["name"] for c in calls)]
        if not whole.startswith(before) or any(text.strip() not in said for text in wanted):
            raise UnwrittenAnswerError(
                "thoughts or calls of tools in an answer, which the chat template does not write"
            )
        return str(said)


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _turn_end(loaded: LoadedModel, ends: frozenset[int]) -> int:
    """The end of sequence that the chat template writes behind an answer, else the tokenizer's."""
    tokenizer, mark = loaded.tokenizer, "zq"
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
        try:
            text = str(render(tokenizer, {"conversation": turns}, add_generation_prompt=False, tokenize=False))
        except Exception:  # a template may raise anything; then it says nothing of ends
            text = ""
        found = next((token for token in _ids(tokenizer, text.rpartition(mark)[2]) if token in ends), None)
        if found is not None:
            return found
    named = tokenizer.eos_token_id
    return named if named in ends else min(ends)
