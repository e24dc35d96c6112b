"""SGLang's server: what its fields mean, by the source of version 0.5.23. Nothing here has met a running SGLang.

`return_spec_tokens_details` makes an answer tell the totals of its rounds (`sglext.spec_tokens_details`, streamed too);
a version without it ignores the wish, and then they are None. Every step drafts. `accepted` counts also what the token
limit or an end of sequence then cut from the text, so that 1 + rounds + accepted is output_tokens or more. `drafted` is
no count: the server multiplies rounds by the draft length that it was started with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.backends.server.adapter import (
    AnswerError,
    Ask,
    Chunk,
    Completion,
    Event,
    Fields,
    Get,
    Json,
    State,
    Text,
    Tokens,
    as_word,
    parsed,
)
from specbench.backends.server.openai import SOURCES, OpenAI, chat_body, events_of, reading, salted, served, survivors
from specbench.backends.server.scoring import Top, require_places
from specbench.records import LARGEST, MOST_DRAFTED, Count, ServerStats

_SPEC = "sglext.spec_tokens_details"


class _Rounds(Fields):
    spec_verify_ct: Count | None = None
    spec_num_proposed_drafts: Count | None = None
    spec_num_correct_drafts: Count | None = None
    spec_correct_drafts_histogram: Tokens | None = None


class _Extension(Fields):
    spec_tokens_details: _Rounds | None = None


class _Event(Event):
    sglext: _Extension | None = None


class ServerInfo(Fields):
    """The settings that the server runs with; a key that it does not know is in no `model_fields_set`."""

    version: Text | None = None
    speculative_algorithm: Text | None = None
    speculative_num_steps: Count | None = None
    speculative_num_draft_tokens: Count | None = None
    disable_radix_cache: bool | None = None


class _Scheduler(Fields):
    num_running_reqs: Count | None = None
    num_waiting_reqs: Count | None = None


class _Loads(Fields):
    loads: list[_Scheduler] | None = None


class _Meta(Fields):
    input_token_logprobs: list[Any] | None = None
    input_top_logprobs: list[Any] | None = None


class _Scores(Fields):
    meta_info: _Meta | None = None


class SGLang(OpenAI):
    """Its page of counters needs --enable-metrics, and adds a request when it ends; of drafted and accepted tokens it
    has running means alone."""

    name = "SGLang"
    metrics = "/metrics"
    counted: Mapping[str, str] = {
        "tokens": "sglang:generation_tokens_total",
        "rounds": "sglang:spec_verify_calls_total",
    }
    sources: Mapping[str, str] = {
        **SOURCES,
        "told.rounds": f"{_SPEC}.spec_verify_ct",
        "told.drafted": f"{_SPEC}.spec_num_proposed_drafts, rounds times draft length",
        "told.accepted": f"{_SPEC}.spec_num_correct_drafts",
        "told.survived": f"{_SPEC}.spec_correct_drafts_histogram",
        "told.cached_tokens": f"{SOURCES['told.cached_tokens']} (--enable-cache-report)",
        "counters": "/metrics sglang:generation_tokens_total, sglang:spec_verify_calls_total (--enable-metrics)",
        "speculating": "/server_info speculative_algorithm",
        "gamma": "/server_info speculative_num_steps, else speculative_num_draft_tokens - 1",
        "busy": "/v1/loads num_running_reqs + num_waiting_reqs",
        "prefix_cache": "/server_info disable_radix_cache",
    }

    def body(self, ask: Ask, model: str | None) -> dict[str, Any]:
        """Says what the model's generation_config.json could otherwise decide: top_k (-1 is off), min_p, penalty. The
        seed counts only where the server runs with --enable-deterministic-inference."""
        asked = ask.sampling
        said = {"top_k": asked.top_k or -1, "min_p": asked.min_p, "repetition_penalty": asked.repetition_penalty}
        return chat_body(ask, model) | said | salted(ask) | {"return_spec_tokens_details": True}

    def read(self, chunks: Sequence[Chunk]) -> Completion:
        events = events_of(chunks, _Event)
        told = [event.sglext for _, event in events if event.sglext is not None]
        found = [ext.spec_tokens_details for ext in told if ext.spec_tokens_details is not None]
        return reading(events, told=_told(found[-1] if found else _Rounds()))

    async def state(self, get: Get) -> State:
        model, info = await served(get), await server_info(get)
        method, caching_off = info.speculative_algorithm, info.disable_radix_cache
        return State(
            model=model.id,
            version=info.version,
            speculating=method is not None if "speculative_algorithm" in info.model_fields_set else None,
            method=method,
            gamma=None if method is None else _gamma(info),
            busy=_busy(_Loads.of(parsed(await get("/v1/loads"))).loads or []),
            context=model.max_model_len,
            prefix_cache=None if caching_off is None else not caching_off,
        )

    def score_request(self, ids: Sequence[int], model: str | None = None) -> tuple[str, dict[str, Any]]:
        """See `Scorer`. Its own interface serves one model and takes no name."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 1,
        }
        return "/generate", body

    def read_scores(self, payload: Json, ids: Sequence[int]) -> list[Top]:
        """See `Scorer`. Each place is (log-probability, token id, text); one list has the tokens sent, one the best."""
        meta = _Scores.of(payload).meta_info or _Meta()
        sent, best = meta.input_token_logprobs, meta.input_top_logprobs
        if sent is None or best is None:
            raise AnswerError("the answer has no input_token_logprobs or no input_top_logprobs")
        require_places(sent, ids)
        require_places(best, ids)
        # It shows the last id of the vocabulary as 0.
        if any(_scored(entry)[1] not in (token, 0) for entry, token in zip(sent, ids, strict=True)):
            raise AnswerError("the server scored another text than it was sent")
        own = [_scored(entry)[0] for entry in sent]
        return [_top(*each) for each in zip(best[1:], ids[1:], own[1:], strict=True)]


async def server_info(get: Get) -> ServerInfo:
    """The settings that the server runs with; empty where it tells none. The second name is that of older versions."""
    return ServerInfo.of(parsed(await get("/server_info")) or parsed(await get("/get_server_info")))


def _told(spec: _Rounds) -> ServerStats:
    """An answer without any round has 0 everywhere, or nothing: the server fills what it does not know with 0."""
    rounds, drafted = spec.spec_verify_ct, spec.spec_num_proposed_drafts
    if not rounds or not drafted:
        return ServerStats()
    histogram = spec.spec_correct_drafts_histogram or ()
    if drafted // rounds > MOST_DRAFTED:
        raise AnswerError("spec_num_proposed_drafts is more than its rounds can have")
    # It ends at the longest run that this answer had: nothing survived beyond.
    survived = survivors(histogram) + (0,) * (drafted // rounds + 1 - len(histogram))
    return ServerStats(
        rounds=rounds,
        drafted=drafted,
        accepted=spec.spec_num_correct_drafts,
        survived=survived if histogram else None,
    )


def _gamma(info: ServerInfo) -> int | None:
    """The longest run that a draft can have: a tree of drafts has more tokens than levels."""
    steps, tokens = info.speculative_num_steps, info.speculative_num_draft_tokens
    return steps or (tokens - 1 if tokens else None)


def _busy(loads: Sequence[_Scheduler]) -> int | None:
    """Over all its schedulers."""
    told = [count for load in loads for count in (load.num_running_reqs, load.num_waiting_reqs)]
    return sum(n or 0 for n in told) if any(n is not None for n in told) else None


def _top(place: object, token: int, own: float | None) -> Top:
    logprob, top = _scored(place[0] if isinstance(place, list) and place else None)
    if logprob is None:
        raise AnswerError("the server does not tell the likeliest token at every place")
    return Top(token, top, logprob, own_logprob=own)


def _scored(entry: object) -> tuple[float | None, int]:
    """Log-probability (None at the first place of a text) and token id."""
    match entry:
        case [float() | int() | None as logprob, int() as token, *_] if 0 <= token <= LARGEST and (
            logprob is None or -LARGEST <= logprob <= 1e-3
        ):
            return logprob, token
    raise AnswerError(f"a scored token is {as_word(entry)}, not log-probability and token id")
