"""vLLM's server: what its fields mean, as version 0.32.0 answers.

Where it runs with --enable-per-request-metrics and --per-request-spec-decode-metrics detailed (or summary) an answer
tells its times and its rounds (or their totals). Both count only steps that drafted; steps without a draft are nowhere.
They also count what the target agreed with after the token limit or an end of sequence had cut the text, so that
1 + rounds + accepted + steps without a draft is output_tokens or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.backends.base import TargetText
from specbench.backends.server.adapter import (
    AnswerError,
    Ask,
    Chunk,
    Completion,
    Event,
    Fields,
    Get,
    Json,
    Milliseconds,
    Post,
    Samples,
    State,
    Text,
    TokenList,
    Tokens,
    UsageFields,
    as_word,
    by_position,
    in_seconds,
    parsed,
    samples,
    total,
)
from specbench.backends.server.openai import (
    CHAT,
    FINISHES,
    SOURCES,
    OpenAI,
    chat_body,
    counted,
    events_of,
    reading,
    salted,
    served,
    survivors,
)
from specbench.backends.server.scoring import Top, require_places
from specbench.records import LARGEST, Count, LogProb, ServerStats

_COUNTED = counted("vllm:", "generation_tokens_total")
_POSITIONS, _TOKENS, _COUNTER = _COUNTED["survived"], _COUNTED["tokens"], "vllm:spec_decode_num_"
_SPEC = "metrics.speculative_decoding"


class _Rounds(Fields):
    num_spec_steps: Count | None = None
    num_draft_tokens: Count | None = None
    num_accepted_draft_tokens: Count | None = None
    acceptance_histogram: Tokens | None = None
    per_step_drafted: Tokens | None = None
    per_step_accepted: Tokens | None = None


class _Metrics(Fields):
    time_to_first_token_ms: Milliseconds | None = None
    generation_time_ms: Milliseconds | None = None
    queue_time_ms: Milliseconds | None = None
    speculative_decoding: _Rounds | None = None


class _Event(Event):
    metrics: _Metrics | None = None


class _Version(Fields):
    version: Text | None = None


class _Written(Fields):
    """A choice that tells its token ids."""

    token_ids: Tokens | None = None
    finish_reason: Text | None = None


class _Answer(Fields):
    """A chat answer that was not streamed."""

    choices: list[_Written] | None = None
    prompt_token_ids: Tokens | None = None
    usage: UsageFields | None = None


class _Scored(Fields):
    """A token at a place of a text, and how likely it was there."""

    logprob: LogProb | None = None
    rank: Count | None = None


class _Places(Fields):
    prompt_logprobs: list[dict[str, _Scored | None] | None] | None = None


class _Scores(Fields):
    choices: list[_Places] | None = None


class VLLM(OpenAI):
    name = "vLLM"
    metrics = "/metrics"
    counted = _COUNTED
    sources: Mapping[str, str] = {
        **SOURCES,
        "drafted": f"{_SPEC}.per_step_drafted (level detailed)",
        "accepted": f"{_SPEC}.per_step_accepted (level detailed)",
        "told.prefill_s": "metrics.time_to_first_token_ms, from the start of its first step, without the queue",
        "told.decode_s": "metrics.generation_time_ms, from the first token to the last",
        "told.queue_s": "metrics.queue_time_ms",
        "told.rounds": f"{_SPEC}.num_spec_steps",
        "told.drafted": f"{_SPEC}.num_draft_tokens",
        "told.accepted": f"{_SPEC}.num_accepted_draft_tokens",
        "told.survived": f"{_SPEC}.acceptance_histogram",
        "counters": f"/metrics {_COUNTER}*, {_TOKENS}",
        "speculating": f"/metrics has {_COUNTER}*",
        "gamma": f"/metrics positions of {_POSITIONS}",
        "busy": "/metrics vllm:num_requests_running + vllm:num_requests_waiting",
        "prefix_cache": "/metrics vllm:cache_config_info enable_prefix_caching",
    }

    def body(self, ask: Ask, model: str | None) -> dict[str, Any]:
        """Says what the model's generation_config.json could otherwise decide: top_k (-1 is off), min_p, penalty."""
        asked = ask.sampling
        said = {"top_k": asked.top_k or -1, "min_p": asked.min_p, "repetition_penalty": asked.repetition_penalty}
        return chat_body(ask, model) | said | salted(ask)

    def read(self, chunks: Sequence[Chunk]) -> Completion:
        """No rounds are listed at level summary: it tells how many of them accepted how much, not in which order."""
        events = events_of(chunks, _Event)
        found = [event.metrics for _, event in events if event.metrics is not None]
        metrics = found[-1] if found else _Metrics()
        drafted, accepted = _rounds(metrics.speculative_decoding or _Rounds())
        return reading(events, drafted, accepted, _told(metrics))

    async def state(self, get: Get) -> State:
        """A server that speculates has the counters of speculation from its start, at 0; one that does not has none.
        With --disable-log-stats it shows no counters at all. It does not tell how it drafts."""
        model, page = await served(get), await get("/metrics")
        found = {} if page is None else samples(page)
        return State(
            model=model.id,
            version=_Version.of(parsed(await get("/version"))).version,
            speculating=_POSITIONS in found if _TOKENS in found else None,
            gamma=len(by_position(found, _POSITIONS) or ()) or None,
            busy=_busy(found),
            context=model.max_model_len,
            prefix_cache=_prefix_cache(found),
        )

    async def write(self, post: Post, ask: Ask, model: str | None) -> TargetText:
        """See `Writer`."""
        body = {key: value for key, value in self.body(ask, model).items() if key != "stream_options"}
        return _written(await post(CHAT, body | {"stream": False, "return_token_ids": True}))

    async def token_ids(self, post: Post, text: str, model: str | None) -> tuple[int, ...]:
        body = {"prompt": text, "add_special_tokens": False}
        return TokenList.of(await post("/tokenize", body if model is None else {"model": model, **body})).ids()

    async def end_ids(self, get: Get, post: Post, model: str | None) -> frozenset[int]:
        """See `Writer`. It tells none."""
        return frozenset()

    def score_request(self, ids: Sequence[int], model: str | None = None) -> tuple[str, dict[str, Any]]:
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}
        return "/v1/completions", body if model is None else {"model": model, **body}

    def read_scores(self, payload: Json, ids: Sequence[int]) -> list[Top]:
        """See `Scorer`. Each place has the token that stands there and the likeliest, by token id; one, if equal."""
        choices = _Scores.of(payload).choices
        places = choices[0].prompt_logprobs if choices else None
        if places is None:
            raise AnswerError("the answer has no prompt_logprobs")
        require_places(places, ids)
        return [_top(place, token) for place, token in zip(places[1:], ids[1:], strict=True)]


def _rounds(spec: _Rounds) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Drafted and accepted tokens of each round in order; empty where it does not list them."""
    drafted, accepted = tuple(spec.per_step_drafted or ()), tuple(spec.per_step_accepted or ())
    rounds = spec.num_spec_steps
    if len(drafted) != len(accepted) or (drafted and len(drafted) != rounds):
        raise AnswerError(f"the answer lists {len(drafted)} drafts and {len(accepted)} acceptances of {rounds} rounds")
    return drafted, accepted


def _written(payload: Json) -> TargetText:
    answer = _Answer.of(payload)
    written = answer.choices[0] if answer.choices else _Written()
    prompt, output = answer.prompt_token_ids, written.token_ids
    if not prompt or not output or answer.usage is None or len(output) != answer.usage.completion_tokens:
        raise AnswerError("the answer does not tell all its token ids")
    finish = FINISHES.get(written.finish_reason or "")
    if finish is None:
        raise AnswerError(f"the answer ended with finish_reason {as_word(written.finish_reason)}")
    return TargetText(tuple(prompt), tuple(output), finish)


def _told(metrics: _Metrics) -> ServerStats:
    spec = metrics.speculative_decoding or _Rounds()
    histogram = spec.acceptance_histogram
    return ServerStats(
        prefill_s=in_seconds(metrics.time_to_first_token_ms),
        decode_s=in_seconds(metrics.generation_time_ms),
        queue_s=in_seconds(metrics.queue_time_ms),
        rounds=spec.num_spec_steps,
        drafted=spec.num_draft_tokens,
        accepted=spec.num_accepted_draft_tokens,
        survived=None if histogram is None else survivors(histogram),
    )


def _busy(found: Samples) -> int | None:
    running, waiting = (total(found, f"vllm:num_requests_{state}") for state in ("running", "waiting"))
    return None if running is None or waiting is None else running + waiting


def _prefix_cache(found: Samples) -> bool | None:
    """Whether any engine keeps one."""
    said = [labels.get("enable_prefix_caching") for labels, _ in found.get("vllm:cache_config_info", [])]
    return "True" in said if said else None


def _top(place: Mapping[str, _Scored | None] | None, token: int) -> Top:
    if place is None or str(token) not in place:
        raise AnswerError("the server scored another text than it was sent")
    firsts = [(key, entry.logprob) for key, entry in place.items() if entry is not None and entry.rank == 1]
    name, logprob = firsts[0] if len(firsts) == 1 else ("", None)
    if logprob is None or not name.isdecimal() or len(name) > len(str(LARGEST)):
        raise AnswerError("the server does not tell the likeliest token at every place")
    own = place[str(token)]
    return Top(token, int(name), logprob, own_logprob=None if own is None else own.logprob)
