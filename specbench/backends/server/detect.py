"""Which engine answers at an address, and the adapters by the names that the user gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from specbench.backends.server.adapter import Adapter, Get
from specbench.backends.server.answers import Json, parsed
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.openai import OpenAI
from specbench.backends.server.sglang import SGLang
from specbench.backends.server.vllm import VLLM

ADAPTERS: Mapping[str, Callable[[], Adapter]] = {
    "llamacpp": LlamaCpp,
    "vllm": VLLM,
    "sglang": SGLang,
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
