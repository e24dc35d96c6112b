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

from specbench.errors import EngineError, SpecbenchError
from specbench.servers.adapter import Chunk

# A page that takes longer than this will not come.
PAGE_S = 10.0

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RefusedError(Exception):
    """The server will not answer this request, and would not next time either. `status` is its HTTP status."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"HTTP status {status}")


class FailedError(Exception):
    """The request failed in a way that may pass: `kind` says how, without a word of what was asked or answered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


@cache
def _verified() -> ssl.SSLContext:
    """Certificates are verified; reading them takes longer than many a request."""
    return httpx.create_ssl_context()


def is_local(url: str) -> bool:
    """Whether the address is on this machine."""
    return (urlsplit(url).hostname or "") in LOOPBACK


class Client:
    """An open connection pool to the server at `url`. `key` goes into the Authorization header and nowhere else."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=self.url,
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

    async def get(self, path: str) -> str | None:
        """A page as text; None where the server does not have it or does not show it. Raises EngineError where nothing
        answers."""
        try:
            answer = await self._http.get(path, timeout=PAGE_S)
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        self._admitted(answer.status_code)
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
            async with asyncio.timeout(self._timeout_s), self._http.stream("POST", path, json=body) as answer:
                self._check(answer.status_code, path)
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
                answer = await self._http.post(path, json=body)
            except httpx.RemoteProtocolError:  # as in `send`
                answer = await self._http.post(path, json=body)
        except httpx.TimeoutException:
            raise FailedError("timeout") from None
        except httpx.ConnectError as error:
            raise self._gone(error) from None
        except httpx.HTTPError as error:
            raise FailedError(type(error).__name__) from None
        self._check(answer.status_code, path)
        try:
            found = answer.json()
        except ValueError:
            raise FailedError("not JSON") from None
        if not isinstance(found, dict):
            raise FailedError("not JSON")
        return found

    def _check(self, status: int, path: str) -> None:
        self._admitted(status)
        if status in (404, 405, 501):
            raise EngineError(
                f"The server does not take requests at {path} (HTTP status {status})",
                where=self.url,
                cure="Check the address, and name the engine that runs there with --engine.",
            )
        if status == 429 or status >= 500:
            raise FailedError(f"HTTP status {status}")
        if status >= 300:
            raise RefusedError(status)

    def _admitted(self, status: int) -> None:
        if status in (401, 403):
            raise EngineError(
                f"The server wants a key (HTTP status {status})",
                where=self.url,
                cure="Put it in the environment variable that --api-key-env names (SPECBENCH_API_KEY).",
            )

    def _gone(self, error: httpx.HTTPError) -> SpecbenchError:
        reason = "its certificate cannot be verified" if "CERTIFICATE" in str(error).upper() else type(error).__name__
        return EngineError(
            f"No server answers: {reason}",
            where=self.url,
            cure="Start it; the same command then continues where it stopped.",
        )


def _parsed(arrived: list[tuple[float, str]]) -> list[Chunk]:
    """Events as JSON. Raises FailedError for an answer that breaks off or reports an error of its own."""
    if not arrived or arrived[-1][1] != "[DONE]":
        raise FailedError("the answer broke off")
    chunks = []
    for at_s, line in arrived[:-1]:
        try:
            data = json.loads(line)
        except ValueError:
            raise FailedError("not JSON") from None
        if not isinstance(data, dict) or "error" in data:
            raise FailedError("an error inside the answer")
        chunks.append(Chunk(at_s, data))
    return chunks
