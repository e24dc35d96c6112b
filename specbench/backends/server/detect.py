"""Which engine answers at an address, and what it calls its model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from specbench.backends.server.adapter import Adapter, Get
from specbench.backends.server.answers import Json, parsed
from specbench.backends.server.failures import AnswerError
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.openai import LMDEPLOY, TENSORRT, OpenAI, listed, models_of
from specbench.backends.server.sglang import SGLang
from specbench.backends.server.vllm import VLLM
from specbench.errors import ConfigError, EngineError, SpecbenchError
from specbench.text import shown

ADAPTERS: Mapping[str, Callable[[], Adapter]] = {
    "llamacpp": LlamaCpp,
    "vllm": VLLM,
    "sglang": SGLang,
    "tensorrt": TENSORRT,
    "lmdeploy": LMDEPLOY,
    "openai": OpenAI,
}


async def detect(get: Get) -> Adapter:
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
