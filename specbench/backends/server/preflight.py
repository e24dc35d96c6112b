"""Which engine answers, what run.json says of it, and what has to be true of it before its times mean anything."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath

from specbench.backends.server.adapter import AnswerError, Completion, Get, Json, RefusedError, State, parsed
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.openai import LMDEPLOY, TENSORRT, OpenAI, listed, models_of
from specbench.backends.server.sglang import SGLang
from specbench.backends.server.vllm import VLLM
from specbench.config import SERVED
from specbench.drafters.spec import DraftSpec
from specbench.errors import ConfigError, EngineError, SpecbenchError
from specbench.records import Arm, Finding, Trial, warned
from specbench.store import check_trial
from specbench.text import shown

ADAPTERS: Mapping[str, Callable[[], OpenAI]] = {
    "llamacpp": LlamaCpp,
    "vllm": VLLM,
    "sglang": SGLang,
    "tensorrt": TENSORRT,
    "lmdeploy": LMDEPLOY,
    "openai": OpenAI,
}


async def detect(get: Get) -> OpenAI:
    """The adapter of the engine that answers, by pages that only it has; the plain one where none is known. A proxy
    that hides these pages hides the engine: then the user names it."""
    if "build_info" in await _page(get, "/props"):
        return LlamaCpp()
    if "version" in await _page(get, "/version") and await _is_vllm(get):
        return VLLM()
    for path in ("/server_info", "/get_server_info"):
        if "speculative_algorithm" in await _page(get, path):
            return SGLang()
    for counting in (TENSORRT(), LMDEPLOY()):
        if await counting.counts(get):
            return counting
    return OpenAI()


async def _is_vllm(get: Get) -> bool:
    """With --disable-log-stats its page of counters is empty, but its models say whose they are."""
    listed = (await _page(get, "/v1/models")).get("data")
    owners = [model.get("owned_by") for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
    return "vllm" in owners or "vllm:" in (await get("/metrics") or "")


async def _page(get: Get, path: str) -> Json:
    """The JSON object at a path; empty for anything else, for some servers answer every path with their home page."""
    try:
        return parsed(await get(path))
    except ValueError:
        return {}


# So many names fit on an error's one line.
MOST_SHOWN = 10


async def model_name(get: Get, url: str, wanted: str | None, guess: str | None) -> str | None:
    """The name for requests: the one `wanted`, else `guess` where the server lists it, else that of the only model;
    None where it lists none. Raises ConfigError for a name that is not in its list, and where it lists several models
    of which none is wanted: some servers would take any, and load it or answer with another."""
    try:
        listing = await listed(get)
        names = [row.id for row in listing if row.id]
        models = models_of(listing)
    except AnswerError as error:
        raise EngineError(
            f"The list of models is not as servers with OpenAI's interface have it: {error}",
            where=f"{url}, /v1/models",
            hint="Check the address.",
        ) from None
    if wanted is not None:
        # LiteLLM lists `openai/*` for all of a kind.
        if names and not any(wanted == name or ("*" in name and fnmatchcase(wanted, name)) for name in names):
            raise _unnamed(f"The server does not list a model {shown(wanted)}, but", names, url, wanted)
        return wanted
    if guess in names:
        return guess
    if len(models) > 1:
        raise _unnamed(f"The server lists {len(models)} models, and requests have to name one:", names, url, guess)
    return models[0][0].id if models else None


def _unnamed(what: str, names: Sequence[str], url: str, wanted: str | None) -> SpecbenchError:
    near = difflib.get_close_matches(wanted or "", names, n=1)
    first = [*near, *(name for name in names if name not in near)][:MOST_SHOWN]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ConfigError(
        f"{what} {', '.join(map(shown, first))}{more}", where=url, hint="Name one of these with --served-model-name."
    )


def check_alone(state: State, url: str) -> list[Finding]:
    """The server with the target alone must not speculate. Raises ConfigError."""
    if state.speculating:
        raise ConfigError(
            f"The server of the target alone speculates ({state.method or 'in a way that it does not name'})",
            where=url,
            hint="Start it without a draft: it is what speculation is compared with.",
        )
    return _idle(state, url)


def check_speculating(state: State, alone: State | None, gamma: int, url: str) -> list[Finding]:
    """A server that drafts, the same model behind it, the gamma that was asked for. Raises ConfigError."""
    if state.speculating is False:
        raise ConfigError(
            "This server does not speculate: it may have loaded a draft and never use it, or refused its vocabulary",
            where=url,
            hint="Name the method with the draft (llama.cpp: --spec-type draft-simple), and see the server's log.",
        )
    names = [PurePath(each.model).name if each and each.model else None for each in (alone, state)]
    if None not in names and names[0] != names[1]:
        raise ConfigError(
            f"The two servers serve different models: {names[0]} and {names[1]}",
            where=url,
            hint="Serve the same target, alone and with a draft.",
        )
    if state.gamma is not None and state.gamma != gamma:
        raise ConfigError(
            f"The server was started with gamma {state.gamma}, not {gamma}",
            where=url,
            hint=f"Use --gamma {state.gamma}.",
        )
    versions = [each.version if each else None for each in (alone, state)]
    found = []
    if None not in versions and versions[0] != versions[1]:
        said = f"the two servers are of different versions, {shown(versions[0])} and {shown(versions[1])}: the draft is"
        hint = "Serve both with the same version."
        found.append(warned("other-version", f"{said} not all that they differ in", hint))
    return found + _idle(state, url)


def check_drafts(
    answers: Sequence[Completion], state: State, spec: DraftSpec, gamma: int, url: str, *, started: bool
) -> list[Finding]:
    """What the first answers show of drafting. A draft model drafts in every round but the last ones of a text; a
    look-up may find nothing. Of a server that we `started` we know what it was told. Raises EngineError."""
    rounds = [drafted for answer in answers for drafted in answer.drafted]
    totals = [answer.told.drafted for answer in answers if answer.told.drafted is not None]
    seen = sum(rounds) + sum(totals)
    if max(rounds, default=0) > gamma:
        raise EngineError(
            f"Gamma is not honoured: a round drafted {max(rounds)} tokens, not at most {gamma}",
            where=url,
            hint="Start the server with that draft length; requests cannot change it.",
        )
    room = any(answer.output_tokens > gamma + 1 for answer in answers)
    steady = started and spec.model is not None and spec.ngram is None and not spec.cutoff
    if steady and room and 0 < max(rounds, default=0) < gamma:
        raise EngineError(
            f"Gamma is not honoured: no round drafted more than {max(rounds)} tokens, not {gamma}",
            where=url,
            hint=f"Use --gamma up to {max(rounds)}: this draft, or this engine, gives no more.",
        )
    # A look-up may find nothing in so short a text; of a server that we did not start we may not know that it is one.
    look_up = spec.model is None or (spec.model == SERVED and state.method is None) or "ngram" in (state.method or "")
    if seen or (look_up and state.speculating):
        return []
    if state.speculating is None or not (rounds or totals):
        what = "whether it speculates, nor what it drafts" if state.speculating is None else "what it drafts"
        return [
            warned(
                "speculation-not-told",
                f"the server does not tell {what}: acceptance is unknown",
                "Name the engine with --engine, and switch on its metrics, those of each request too.",
            )
        ]
    raise EngineError(
        "The server drafted nothing in the warm-up",
        where=url,
        hint="See its log: a draft may be loaded and never used, or its vocabulary does not fit.",
    )


def check_prefix_cache(answers: Sequence[Completion], state: State) -> list[Finding]:
    """A prompt that was asked twice must have been read twice."""
    reused = max((answer.told.cached_tokens or 0 for answer in answers), default=0)
    if not state.prefix_cache and not reused:
        return []
    return [
        warned(
            "prefix-cache",
            "the server answers prompts from earlier ones"
            + (f" ({reused} tokens of a warm-up prompt were not read again)" if reused else "")
            + ": time to first token depends on what was asked before",
            "Switch it off (vLLM: --no-enable-prefix-caching, SGLang: --disable-radix-cache).",
        )
    ]


def check_read(unread: Collection[str], url: str) -> list[Finding]:
    """What prompts have beside their messages must be in what the model reads."""
    if not unread:
        return []
    what = " and ".join(sorted(unread))
    return [
        warned(
            "prompt-not-read",
            f"with {what} the first prompt that has them is as long as without, at {url}: the server drops them, or "
            "the model's chat template writes nothing for them",
            "Serve the model with a chat template that reads them, or leave them out of the prompts.",
        )
    ]


def check_defaults(state: State) -> list[Finding]:
    """A server may have been started with, or its model file may hold, sampling that no request asks for."""
    if not state.defaults:
        return []
    listed = ", ".join(f"{name} {value:g}" for name, value in state.defaults.items())
    return [
        warned(
            "server-defaults",
            f"the server applies what the run did not ask for: {listed}",
            "Start it without, or take it as a part of what was measured: elsewhere texts are others.",
        )
    ]


def _idle(state: State, url: str) -> list[Finding]:
    if not state.busy:
        return []
    return [
        warned(
            "busy-server",
            f"the server at {url} was working on {state.busy} other requests",
            "Measure a server that nobody else uses, or at a quiet hour.",
        )
    ]


def require_plausible(answer: Completion, max_tokens: int) -> None:
    """Raises AnswerError for numbers that no answer to a request for at most `max_tokens` has, or that no run folder is
    read with; RefusedError for one whose times mean nothing."""
    if not answer.prompt_tokens:
        raise AnswerError("no usage.prompt_tokens" if answer.prompt_tokens is None else "usage.prompt_tokens is 0")
    if answer.output_tokens > max_tokens:
        raise AnswerError(f"usage.completion_tokens is more than the {max_tokens} that were asked for")
    if answer.in_one_piece or answer.at_once:
        raise RefusedError("its answer comes in one piece, so that nobody knows when which token was written")
    try:
        check_trial(Trial("", "", None, Arm("baseline"), 0, output_sha256="", **answer.as_trial()))
    except ValueError as error:
        raise AnswerError(str(error)) from None
