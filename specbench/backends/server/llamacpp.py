"""llama.cpp's server: what its fields mean, as build 11549 answers.

It lists no rounds, but a streamed answer with `timings_per_token` carries running totals of drafted and accepted tokens
with every token: where the drafted total grows a round begins, and it emits one token more than it accepted. A token
beyond that is a step without a draft. /props says "none" even while it speculates; only /slots tells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, create_model

from specbench.backends.base import TargetText
from specbench.backends.server import openai
from specbench.backends.server.adapter import (
    AnswerError,
    Ask,
    Chunk,
    Completion,
    Event,
    Fields,
    Get,
    Milliseconds,
    Post,
    RefusedError,
    State,
    Text,
    TokenList,
    Tokens,
    as_word,
    in_seconds,
    parsed,
    word,
)
from specbench.backends.server.scoring import Scored, Top
from specbench.records import Count, Finish, LogProb, Number, Round, Sampling, ServerStats

_COMPLETION = "/completion"

# A draft's sampler keeps so many tokens, and --spec-draft-p-min is about the likeliest's share of them. Seen with build
# 11549: with this share a replay has the rounds that the server counts, with the probability itself it has not.
DRAFT_TOP_K = 10

# What the chat template is given, and wishes that leave the text as the model writes it.
_WRITES = ("messages", "tools", "chat_template_kwargs", "tool_choice")
_FREE = (("tool_choice", "auto"), ("tool_choice", "none"))
# A penalty counts so many of the last tokens, 64 if nothing is said. Build 11549 refuses the -1 of its documentation,
# and takes memory for each of them.
WHOLE_TEXT = 1 << 18

# What it may be started with, or a GGUF file may have, and the values that change no text.
_OFF = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0}
_OFF |= {"xtc_probability": 0.0, "typical_p": 1.0, "top_n_sigma": -1.0, "mirostat": 0.0, "dynatemp_range": 0.0}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n", "seed", "cache_prompt")
_MOST_ROUNDS = 1 << 22
_STOPS: Mapping[str, Finish] = {"eos": "eos", "limit": "length"}


class Timings(Fields):
    """Running totals of a request, with every token."""

    predicted_n: Count | None = None
    draft_n: Count | None = None
    draft_n_accepted: Count | None = None
    prompt_n: Count | None = None
    cache_n: Count | None = None
    prompt_ms: Milliseconds | None = None
    predicted_ms: Milliseconds | None = None


class _Event(Event):
    timings: Timings | None = None


_NUMBERS: Any = dict.fromkeys(_OFF, (Number | None, None))
_Sampling: type[Fields] = create_model("_Sampling", __base__=Fields, **_NUMBERS)


class _Defaults(Fields):
    """What it was started with: `params` of those that change texts (`_OFF`)."""

    params: dict[str, Any] | None = None


class _Props(Fields):
    build_info: Text | None = None
    eos_token: Text | None = None
    default_generation_settings: _Defaults | None = None


class _Methods(Fields):
    types: Text | None = Field(None, alias="speculative.types")


class _Slot(Fields):
    speculative: Any = None
    is_processing: Any = None
    n_ctx: Count | None = None
    params: _Methods | None = None


class _Slots(Fields):
    slots: list[_Slot] | None = None


class _Template(Fields):
    prompt: Text | None = None


class _Completion(Fields):
    tokens: Tokens | None = None
    stop_type: Text | None = None


class _Likely(Fields):
    id: Count | None = None
    logprob: LogProb | None = None


class _Place(Fields):
    top_logprobs: list[_Likely] | None = None


class _Step(Fields):
    tokens_evaluated: Count | None = None
    completion_probabilities: list[_Place] | None = None
    timings: Timings | None = None


class LlamaCpp(openai.OpenAI):
    """llama-server, or the same server inside a Python process (xllamacpp)."""

    name = "llama.cpp"
    metrics = "/metrics"
    counted = openai.counted("llamacpp:", "tokens_predicted_total")
    recent_look_up = True
    sources: Mapping[str, str] = {
        **openai.SOURCES,
        "first_s": "arrival of the first chunk with timings.predicted_n, or with text",
        "rounds": "steps of timings.draft_n and timings.draft_n_accepted from chunk to chunk",
        "told.drafted": "timings.draft_n",
        "told.accepted": "timings.draft_n_accepted",
        "told.prefill_s": "timings.prompt_ms",
        "told.decode_s": "timings.predicted_ms",
        "told.cached_tokens": "timings.cache_n",
        "speculating": "/slots [].speculative",
        "counters": "/metrics llamacpp:spec_decode_num_*, llamacpp:tokens_predicted_total",
    }

    def body(self, ask: Ask, model: str | None) -> dict[str, Any]:
        """Its own defaults (top_k 40, top_p 0.95, min_p 0.05) are switched off, and so is the reuse of prompts, but for
        that of a conversation's earlier turns: what its slot held before, the first one overwrites."""
        cache = ask.cache
        return openai.chat_body(ask, model) | {
            "top_k": ask.sampling.top_k,
            "min_p": ask.sampling.min_p,
            "repeat_penalty": ask.sampling.repetition_penalty,
            "repeat_last_n": WHOLE_TEXT if ask.sampling.penalised else 0,
            "cache_prompt": cache is not None and cache.turn > 0,
            "timings_per_token": True,
            **({} if cache is None or cache.slot is None else {"id_slot": cache.slot}),
        }

    def read(self, chunks: Sequence[Chunk]) -> Completion:
        events = openai.events_of(chunks, _Event)
        finish = openai.finish_of(events)
        told = [(at_s, event.timings) for at_s, event in events]
        timings = [found for _, found in told if found is not None]
        if not timings:
            raise AnswerError("the answer has no timings, which llama.cpp's server always sends")
        rounds = rounds_of(timings)
        answer = openai.reading(
            events,
            tuple(r.drafted for r in rounds or ()),
            tuple(r.accepted for r in rounds or ()),
            _told(timings[-1], finish),
        )
        # Of an answer that it parses (tools, a grammar) it holds the first tokens back, but not their timings.
        counted = [at_s for at_s, found in told if found is not None and (found.predicted_n or 0) >= 1]
        return replace(answer, first_s=min([answer.first_s, *counted]))

    async def state(self, get: Get) -> State:
        model = await openai.served(get)
        props = _Props.of(parsed(await get("/props")))
        slots = _slots(await get("/slots"))
        first = slots[0] if slots else _Slot()
        methods = ((first.params and first.params.types) or "").split(",")
        speculating = None if not slots else any(slot.speculative is True for slot in slots)
        return State(
            model=model.id,
            version=props.build_info,
            speculating=speculating,
            method=", ".join(m for m in methods if m not in ("", "none")) or None if speculating else None,
            busy=None if not slots else sum(slot.is_processing is True for slot in slots),
            context=first.n_ctx,
            prefix_cache=None,  # every request says it itself
            defaults=self._defaults(props.default_generation_settings or _Defaults()),
        )

    def _defaults(self, found: _Defaults) -> dict[str, float] | None:
        asked = self.body(Ask((), 1, Sampling(), 0), None)
        told = _Sampling.of(found.params or {}).model_dump(exclude_none=True)
        return {key: value for key, value in told.items() if key not in asked and value != _OFF[key]} or None

    async def write(self, post: Post, ask: Ask, model: str | None) -> TargetText:
        """See `Writer`. The steps of a chat request one by one, for only a plain completion tells its tokens: what
        would hold a chat to a grammar cannot be asked for so. Raises RefusedError for that."""
        held = [key for key, value in ask.request.items() if (key, value) not in _FREE]
        if held:
            raise RefusedError(f"it tells no token ids of texts under {', '.join(word(key) or '?' for key in held)}")
        body = openai.chat_body(ask, None)
        asked = _Template.of(await post("/apply-template", {key: body[key] for key in _WRITES if key in body})).prompt
        if asked is None:
            raise AnswerError("the answer of /apply-template has no prompt")
        ids = await _tokenize(post, {"content": asked, "add_special": True, "parse_special": True})
        greedy = {key: value for key, value in self.body(ask, None).items() if key in _SAMPLING}
        body = {"prompt": list(ids), "n_predict": ask.max_tokens, "return_tokens": True, **greedy}
        answer = _Completion.of(await post(_COMPLETION, body))
        output, finish = answer.tokens, _STOPS.get(answer.stop_type or "")
        if not output or finish is None:
            raise AnswerError(f"the answer has no tokens, or ended with stop_type {as_word(answer.stop_type)}")
        return TargetText(ids, output, finish)

    async def token_ids(self, post: Post, text: str, model: str | None) -> tuple[int, ...]:
        return await _tokenize(post, {"content": text, "add_special": False, "parse_special": True})

    async def end_ids(self, get: Get, post: Post, model: str | None) -> frozenset[int]:
        end = _Props.of(parsed(await get("/props"))).eos_token
        return frozenset(await self.token_ids(post, end, model) if end else ())

    async def score_steps(self, post: Post, prompt: Sequence[int], output: Sequence[int]) -> Scored:
        """See `StepScorer`. The log-probability is of the whole vocabulary, before any sampler; the confidence is that
        among the likeliest few, which is what a draft's p-min is compared with."""
        ids, tops, read_again = [*prompt, *output], list[Top](), 0
        asked: dict[str, Any] = {"n_predict": 1, "temperature": 0.0, "n_probs": DRAFT_TOP_K, "cache_prompt": True}
        # It tells no probabilities of a token that begins a character and does not end it, so a whole one is made to be
        # written. Those told are of the model, before any bias.
        asked |= {"logit_bias": [["a", 1000.0]]}
        for end in range(len(prompt) + 1, len(ids)):
            answer = _Step.of(await post(_COMPLETION, {"prompt": ids[:end], **asked}))
            token, logprob, confidence = _likeliest(answer, end)
            if tops and answer.timings is not None:
                read_again += (answer.timings.prompt_n or 1) - 1
            tops.append(Top(ids[end], token, logprob, confidence))
        return Scored(tops, read_again)


def _likeliest(answer: _Step, tokens: int) -> tuple[int, float, float]:
    """The likeliest token after a text of so many, its log-probability in nats, and its share among the likeliest few.
    Raises AnswerError for an answer that is about another text."""
    if answer.tokens_evaluated != tokens:
        raise AnswerError(f"the answer is about {as_word(answer.tokens_evaluated)} tokens, not {tokens}")
    places = answer.completion_probabilities
    tops = (places[0].top_logprobs or []) if places else []
    token, logprobs = tops[0].id if tops else None, [each.logprob for each in tops]
    told = [math.exp(each) for each in logprobs if each is not None]
    if token is None or logprobs[0] is None:
        raise AnswerError("the answer has no completion_probabilities[0].top_logprobs[0]")
    return token, logprobs[0], told[0] / (sum(told) or 1.0)


def rounds_of(timings: Sequence[Timings]) -> list[Round] | None:
    """The rounds of a request from its running totals. None where several rounds may hide in one step: the server holds
    text back while a character is incomplete."""
    rounds: list[Round] = []
    tokens, drafted, accepted = 1, 0, 0
    room = 0  # tokens that the last round has yet to emit
    for now in timings:
        n = now.predicted_n or tokens
        d, a = now.draft_n or 0, now.draft_n_accepted or 0
        new = n - tokens
        if d > drafted:
            if new > 1:
                return None
            rounds.append(Round(d - drafted, a - accepted))
            room = a - accepted + 1
        plain = max(0, new - room)
        if len(rounds) + plain > _MOST_ROUNDS:
            raise AnswerError("timings.predicted_n is more than any answer has")
        rounds += [Round(0, 0)] * plain
        room -= new - plain
        tokens, drafted, accepted = n, d, a
    return rounds


def _told(timings: Timings, finish: Finish) -> ServerStats:
    """Every token but the first came from a step or from an acceptance, so that a text that the limit ended tells its
    rounds; at an end of sequence accepted tokens may have been cut off."""
    tokens, accepted = timings.predicted_n, timings.draft_n_accepted
    whole = finish == "length" and tokens is not None and accepted is not None
    return ServerStats(
        prefill_s=in_seconds(timings.prompt_ms),
        decode_s=in_seconds(timings.predicted_ms),
        rounds=(tokens or 0) - 1 - (accepted or 0) if whole else None,
        drafted=timings.draft_n,
        accepted=accepted,
        cached_tokens=timings.cache_n,
    )


async def _tokenize(post: Post, body: dict[str, Any]) -> tuple[int, ...]:
    return TokenList.of(await post("/tokenize", body)).ids()


def _slots(page: str | None) -> list[_Slot]:
    """The slots; none where the server was started without that page."""
    try:
        found = json.loads(page) if page is not None else []
    except (ValueError, RecursionError):
        found = []
    if not isinstance(found, list):
        return []
    return _Slots.of({"slots": found}).slots or []
