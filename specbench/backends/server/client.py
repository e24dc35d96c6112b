"""One server over HTTP: pages, and streamed answers whose events carry the time of their arrival.

Events are kept as text until the answer is whole: nothing is parsed while the clock runs.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from functools import cache
from typing import Self
from urllib.parse import urlsplit

import httpx
from httpx_sse import EventSource, SSEError

from specbench.backends.server.adapter import Chunk
from specbench.backends.server.failures import FailedError, Problem, RefusedError, error_word, problem_of
from specbench.errors import EngineError, SpecbenchError
from specbench.text import shown

# A page that takes longer than this will not come.
PAGE_S = 10.0

_CHAT = "/chat/completions"

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@cache
def _verified() -> ssl.SSLContext:
    """Certificates are verified; reading them takes longer than many a request."""
    return httpx.create_ssl_context()


def is_local(url: str) -> bool:
    """Whether the address is on this machine."""
    return (urlsplit(url).hostname or "") in LOOPBACK


def split_address(address: str) -> tuple[str, str]:
    """Where requests go, and what of /v1/chat/completions the address leaves out: "" or "/v1"."""
    return (address.removesuffix(_CHAT), "/v1") if address.endswith(_CHAT) else (address, "")


class Client:
    """An open connection pool to the server at `url`. `key` goes into the Authorization header and nowhere else."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        root, self._above = split_address(self.url)
        self._has_key = key is not None
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=root,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=PAGE_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            verify=_verified(),
            # A proxy of the environment has no business between us and this machine.
            trust_env=not is_local(url),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def _at(self, path: str) -> str:
        return path.removeprefix(self._above)

    async def get(self, path: str) -> str | None:
        """A page as text; None where the server does not have it or does not show it. Raises EngineError where nothing
        answers."""
        try:
            answer = await self._http.get(self._at(path), timeout=PAGE_S)
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        # A gateway may forbid a page that it does not have: who has a key is told by the requests themselves.
        if answer.status_code in (401, 403) and not self._has_key:
            raise self._locked(Problem(answer.status_code))
        return answer.text if answer.is_success else None

    async def send(self, path: str, body: dict[str, object]) -> list[Chunk]:
        """POST and read the stream to its end. Raises RefusedError, FailedError, or EngineError where no request can
        ever succeed."""
        try:
            return await self._stream(path, body)
        except httpx.RemoteProtocolError:
            # llama.cpp closes a kept connection now and then just as the next request comes: nothing was asked yet.
            try:
                return await self._stream(path, body)
            except httpx.RemoteProtocolError:
                raise FailedError("the server closed the connection") from None

    async def _stream(self, path: str, body: dict[str, object]) -> list[Chunk]:
        """One try. RemoteProtocolError passes where the connection closed before anything came."""
        arrived: list[tuple[float, str]] = []
        sent = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s), self._http.stream("POST", self._at(path), json=body) as answer:
                if answer.status_code >= 300:
                    await answer.aread()
                    self._check(answer, path, body)
                if "text/event-stream" not in answer.headers.get("content-type", ""):
                    raise FailedError("the answer is not streamed")
                async for event in EventSource(answer).aiter_sse():
                    arrived.append((time.perf_counter() - sent, event.data))
        except (TimeoutError, httpx.TimeoutException):
            raise FailedError("timeout") from None
        except httpx.ConnectError as error:
            raise self._gone(error) from None
        except (httpx.HTTPError, SSEError) as error:
            if isinstance(error, httpx.RemoteProtocolError) and not arrived:
                raise
            raise FailedError(type(error).__name__) from None
        return _parsed(arrived)

    async def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """POST without a stream. Raises as `send` does."""
        try:
            try:
                answer = await self._http.post(self._at(path), json=body)
            except httpx.RemoteProtocolError:  # as in `send`
                answer = await self._http.post(self._at(path), json=body)
        except httpx.TimeoutException:
            raise FailedError("timeout") from None
        except httpx.ConnectError as error:
            raise self._gone(error) from None
        except httpx.HTTPError as error:
            raise FailedError(type(error).__name__) from None
        self._check(answer, path, body)
        try:
            found = answer.json()
        except (ValueError, RecursionError):
            raise FailedError("not JSON") from None
        if not isinstance(found, dict):
            raise FailedError("not JSON")
        return found

    def _check(self, answer: httpx.Response, path: str, body: dict[str, object]) -> None:
        """Nothing for an answer, which has been read to its end where it is an error."""
        status = answer.status_code
        if status < 300:
            return
        problem = problem_of(status, answer.text, body)
        if status in (401, 403):
            raise self._locked(problem)
        if status in (404, 405, 501) or status < 400:
            name = body.get("model")
            raise EngineError(
                f"The server does not take requests at {self._at(path)}"
                + (f" for the model {shown(name)}" if name and status == 404 else "")
                + f": {problem}",
                where=self.url,
                hint="Check the address (http://host:port, or as far as /v1), and the names of --served-model-name "
                "and --engine.",
            )
        if status in (408, 429) or status >= 500:
            raise FailedError(str(problem))
        raise RefusedError(problem)

    def _locked(self, problem: Problem) -> SpecbenchError:
        return EngineError(
            f"The server wants a key: {problem}",
            where=self.url,
            hint="Put it in the environment variable that --api-key-env names (SPECBENCH_API_KEY).",
        )

    def _gone(self, error: httpx.HTTPError) -> SpecbenchError:
        reason = "its certificate cannot be verified" if "CERTIFICATE" in str(error).upper() else type(error).__name__
        return EngineError(
            f"No server answers: {reason}",
            where=self.url,
            hint="Start it; the same command then continues where it stopped.",
        )


def _parsed(arrived: list[tuple[float, str]]) -> list[Chunk]:
    """Events as JSON. Raises FailedError for an answer that breaks off or reports an error of its own."""
    if not arrived or arrived[-1][1] != "[DONE]":
        raise FailedError("the answer broke off")
    chunks = []
    for at_s, line in arrived[:-1]:
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise FailedError("not JSON") from None
        if not isinstance(data, dict) or data.get("error") is not None:
            raise FailedError(
                f"an error inside the answer{error_word(data['error']) if isinstance(data, dict) else ''}"
            )
        chunks.append(Chunk(at_s, data))
    return chunks
