"""What all servers with OpenAI's interface share, and the plain adapter that knows nothing else of its server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, takewhile
from typing import Any, TypeAlias, TypeVar

from specbench.backends.server.adapter import (
    AnswerError,
    Ask,
    Chunk,
    Completion,
    Event,
    Fields,
    Get,
    Json,
    Model,
    Models,
    State,
    Text,
    Tokens,
    UsageFields,
    as_word,
    by_position,
    error_word,
    parsed,
    samples,
    total,
)
from specbench.records import MOST_DRAFTED, Counters, Divergence, Finish, LogProb, ServerStats

Told = TypeVar("Told", bound=Event)
Events: TypeAlias = Sequence[tuple[float, Event]]  # each with its arrival in seconds after the request was sent

CHAT = "/v1/chat/completions"
MOST_TEXT = 8 << 20  # characters: a line of a run folder holds it, however it is written
SOURCES: Mapping[str, str] = {
    "text": "choices[].delta: thoughts, content, tool_calls",
    "finish": "choices[].finish_reason",
    "prompt_tokens": "usage.prompt_tokens",
    "output_tokens": "usage.completion_tokens",
    "first_s": "arrival of the first chunk with text",
    "last_s": "arrival of the last chunk with text or a finish_reason",
    "told.cached_tokens": "usage.prompt_tokens_details.cached_tokens",
}
FINISHES: Mapping[str, Finish] = {"stop": "eos", "tool_calls": "eos", "function_call": "eos", "length": "length"}


def chat_body(ask: Ask, model: str | None) -> dict[str, Any]:
    """A streamed chat request in the fields of OpenAI's interface alone, which has no top_k; but for
    chat_template_kwargs, which every engine takes and gateways pass on. Greedy decoding draws nothing with a seed, and
    some servers refuse that field."""
    beside: dict[str, Any] = {"tools": list(ask.tools), "chat_template_kwargs": dict(ask.template_kwargs)}
    body: dict[str, Any] = {
        **ask.request,
        **{key: value for key, value in beside.items() if value},
        "messages": [{"role": message.role, "content": message.content, **message.fields} for message in ask.messages],
        "max_tokens": ask.max_tokens,
        "temperature": ask.sampling.temperature,
        "top_p": ask.sampling.top_p,
        **({} if ask.sampling.greedy else {"seed": ask.seed}),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body if model is None else {"model": model, **body}


def salted(ask: Ask) -> dict[str, str]:
    """vLLM and SGLang keep prompts of other salts apart: a conversation finds its own earlier turns alone."""
    return {} if ask.cache is None else {"cache_salt": ask.cache.name}


def events_of(chunks: Sequence[Chunk], kind: type[Told]) -> list[tuple[float, Told]]:
    """A streamed answer, field by field, each event with its arrival. Raises ValueError for one that is not as it
    should be, or tells of a failure instead."""
    found = [(chunk.at_s, kind.of(chunk.data)) for chunk in chunks]
    for _, event in found:
        if event.error is not None:
            raise AnswerError(f"the server broke the answer off with an error{error_word(event.error)}")
    return found


def stream_times(events: Events) -> tuple[float, float]:
    """Arrival of the first and of the last token, seconds after the request was sent. The end of sequence has no text:
    it arrives with the finish_reason. Raises ValueError where no event carries a token."""
    spoken = [at_s for at_s, event in events if event.text]
    ended = [at_s for at_s, event in events if event.finish_reason]
    if not spoken and not ended:
        raise AnswerError("the answer has no token")
    return min(spoken or ended), max(spoken + ended)


def text_of(events: Events) -> str:
    """All text of an answer, thoughts and calls of tools included, in the order of its arrival."""
    return "".join(event.text for _, event in events)


def finish_of(events: Events) -> Finish:
    """How the answer ended. Raises ValueError for an answer that broke off or ended in another way than ours can."""
    reasons = [event.finish_reason for _, event in events if event.finish_reason]
    if not reasons:
        raise AnswerError("the answer broke off: no finish_reason")
    if reasons[-1] not in FINISHES:
        raise AnswerError(f"the answer ended with finish_reason {as_word(reasons[-1])}")
    return FINISHES[reasons[-1]]


def usage_of(events: Events) -> UsageFields:
    """The last counts in the stream: some servers repeat running counts in every chunk. Raises ValueError where there
    are none."""
    told = [event.usage for _, event in events if event.usage is not None]
    if not told or told[-1].completion_tokens is None:
        raise AnswerError(
            "no usage.completion_tokens, which we ask for by stream_options.include_usage (some servers and gateways "
            "send it only where a setting of theirs says so)"
        )
    return told[-1]


def reading(
    events: Events,
    drafted: tuple[int, ...] = (),
    accepted: tuple[int, ...] = (),
    told: ServerStats | None = None,
) -> Completion:
    """The answer, with what an engine tells beyond OpenAI's fields. Raises ValueError for one that is not whole."""
    finish, usage, said = finish_of(events), usage_of(events), text_of(events)
    first_s, last_s = stream_times(events)
    if said and not usage.completion_tokens:
        raise AnswerError("usage.completion_tokens is 0, and there is a text")
    if len(said) > MOST_TEXT:
        raise AnswerError("its text is longer than any answer's")
    told = told or ServerStats()
    return Completion(
        text=said,
        finish=finish,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens or 1,  # the end of sequence, which some servers do not count
        first_s=first_s,
        last_s=last_s,
        drafted=drafted,
        accepted=accepted,
        told=told if told.cached_tokens is not None else replace(told, cached_tokens=usage.cached_tokens),
        pieces=sum(bool(event.text) for _, event in events),
    )


async def listed(get: Get) -> list[Model]:
    """What the server lists as models; nothing where it has no such page, or a home page in its place."""
    try:
        page = parsed(await get("/v1/models"))
    except AnswerError:
        return []
    return Models.of(page).data or []


def models_of(listing: Sequence[Model]) -> list[list[Model]]:
    """The models of a listing, each with all names that it has, without the adapters (LoRA) of others."""
    found: dict[str | None, list[Model]] = {}
    for row in listing:
        if row.parent is None:
            found.setdefault(row.root or row.id, []).append(row)
    return list(found.values())


async def served(get: Get) -> Model:
    """The model that the server lists, under its first name; nothing is known of it where it lists none or several."""
    models = models_of(await listed(get))
    return models[0][0] if len(models) == 1 else Model()


def survivors(histogram: Sequence[int]) -> tuple[int, ...]:
    """From how many rounds accepted exactly 0, 1, 2, ... drafts: how many had their first 1, 2, ... accepted. Raises
    ValueError for more drafts than a round can have."""
    if len(histogram) > MOST_DRAFTED + 1:
        raise AnswerError("the histogram of acceptances is longer than any draft")
    return tuple(accumulate(reversed(histogram[1:])))[::-1]


def counted(prefix: str, tokens: str | None = None) -> dict[str, str]:
    """What vLLM calls its counters, and other engines after it, by the names of Counters."""
    own = f"{prefix}spec_decode_num_"
    return ({} if tokens is None else {"tokens": f"{prefix}{tokens}"}) | {
        "rounds": f"{own}drafts_total",
        "drafted": f"{own}draft_tokens_total",
        "accepted": f"{own}accepted_tokens_total",
        "survived": f"{own}accepted_tokens_per_pos_total",
    }


class OpenAI:
    """A server that tells no more than OpenAI's interface: text, tokens and times; nothing of speculation. The adapters
    of engines add what theirs tells. `name` is how reports call it; `path` takes the requests; `metrics` is its page of
    counters (None: it has none), which calls those of Counters as `counted` says. `sources` says from which field each
    number comes, by the names of our records."""

    name = "openai"
    path = CHAT
    metrics: str | None = None
    counted: Mapping[str, str] = {}
    sources: Mapping[str, str] = SOURCES
    recent_look_up = False  # `ngram` is matched exactly and at its latest place (lookup.RecentLookUp)

    def body(self, ask: Ask, model: str | None) -> dict[str, Any]:
        """The JSON of a streamed request; `model` is the name under which the server knows its model. Raises ValueError
        for what the interface does not have."""
        asked = ask.sampling
        for name, off in (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0)):
            if getattr(asked, name) != off:
                raise ValueError(f"OpenAI's interface has no {name}")
        return chat_body(ask, model)

    def read(self, chunks: Sequence[Chunk]) -> Completion:
        """A streamed answer, whole. Raises ValueError for one that is not as this engine answers."""
        return reading(events_of(chunks, Event))

    def counters(self, page: str) -> Counters:
        """The running counters of the metrics page. Raises ValueError for a page that is none."""
        found = samples(page)
        told: dict[str, Any] = {
            name: by_position(found, counter) if name == "survived" else total(found, counter)
            for name, counter in self.counted.items()
        }
        return Counters(**told)

    async def state(self, get: Get) -> State:
        """Its model, where it serves exactly one."""
        return State(model=(await served(get)).id)


class Counting(OpenAI):
    """An engine that samples as others do and counts on a page of metrics, but tells nothing of the rounds of an
    answer. From its documentation, never run by us: TensorRT-LLM's trtllm-serve (tensorrt_llm/metrics/collector.py) and
    LMDeploy's api_server (lmdeploy/metrics/loggers.py). `prefix` begins the names of its counters."""

    def __init__(self, name: str, metrics: str, prefix: str) -> None:
        self.name, self.metrics, self._prefix = name, metrics, prefix
        self.counted = counted(prefix)
        self.sources = {**SOURCES, "counters": f"{metrics} {prefix}spec_decode_num_*"}

    def body(self, ask: Ask, model: str | None) -> dict[str, Any]:
        asked = ask.sampling
        said = {"top_k": asked.top_k, "min_p": asked.min_p, "repetition_penalty": asked.repetition_penalty}
        # What is off is left out: what stands for that differs.
        off = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        return chat_body(ask, model) | {key: value for key, value in said.items() if value != off[key]}

    async def counts(self, get: Get) -> bool:
        """Whether the server at hand has this engine's counters."""
        return self._prefix in (await get(self.metrics or "") or "")


TENSORRT = partial(Counting, "TensorRT-LLM", "/prometheus/metrics", "trtllm_")
LMDEPLOY = partial(Counting, "LMDeploy", "/metrics", "lmdeploy:")


class _Top(Fields):
    logprob: LogProb


class _Token(Fields):
    token: Text | None = None
    bytes: Tokens | None = None
    top_logprobs: list[_Top] | None = None


class _Logprobs(Fields):
    content: list[_Token] | None = None


class _Message(Fields):
    content: Text | None = None


class _Choice(Fields):
    message: _Message | None = None
    logprobs: _Logprobs | None = None


class _Answer(Fields):
    choices: list[_Choice] | None = None


def logprobs_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a text, as one that tells the two best tokens at each position, without a stream."""
    kept = {key: value for key, value in body.items() if key not in ("stream", "stream_options", "timings_per_token")}
    return kept | {"stream": False, "logprobs": True, "top_logprobs": 2}


def divergence(answer: Json, own: str, other: str) -> Divergence | None:
    """Where `other` leaves `own`, the target's text that `answer` repeats; None where it does not repeat it or does
    not tell all its tokens. Raises ValueError for what is not such an answer."""
    choice = (_Answer.of(answer).choices or [_Choice()])[0]
    if choice.message is None or choice.message.content != own:
        return None
    whole = own.encode()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, other.encode(), strict=False)))
    tokens = (choice.logprobs and choice.logprobs.content) or []
    sizes = [len(token.bytes or (token.token or "").encode()) for token in tokens]
    if sum(sizes) < len(whole):
        return None  # llama.cpp leaves out tokens that begin a character and do not end it
    for index, (token, read) in enumerate(zip(tokens, accumulate(sizes), strict=True)):
        # The last token may be an end of sequence, which has no text.
        if read > same or index == len(tokens) - 1:
            best = [top.logprob for top in token.top_logprobs or ()]
            return Divergence(index, None, best[0] - best[1] if len(best) > 1 else None)
    return None
