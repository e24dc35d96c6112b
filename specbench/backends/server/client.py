"""One server over HTTP: pages, answers, and streamed answers whose events carry the time of their arrival.

Nothing is parsed while the clock of a request runs, and nothing that a server says is taken on trust: every request has
a limit of time and of bytes, texts are UTF-8 whatever a header says, and what is not an answer is asked for again.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from functools import cache
from ipaddress import ip_address
from socket import inet_aton
from typing import Any, Self
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from specbench.backends.server.adapter import Chunk, FailedError, Problem, RefusedError, error_word, problem_of
from specbench.backends.server.wire import Answer, ClosedError, GarbledError, Proxy, Reply, UnreachableError, Wire
from specbench.errors import ConfigError, EngineError, SpecbenchError
from specbench.text import shown

# A page that takes longer than this will not come, and one that is larger is none that we ask for.
PAGE_S = 10.0
_MOST_PAGE = 32 << 20

# So many events are parsed before the loop looks for what has arrived: far below a millisecond.
_AT_ONCE = 16

_CHAT = "/chat/completions"


def is_local(url: str) -> bool:
    """Whether the address is on this machine, however it is written: all of 127/8, ::1, 0.0.0.0, ::, localhost."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        try:
            address = ip_address(inet_aton(host))  # 127.1, 0x7f000001
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def split_address(address: str) -> tuple[str, str]:
    """Where requests go, and what of /v1/chat/completions the address leaves out: "" or "/v1"."""
    return (address.removesuffix(_CHAT), "/v1") if address.endswith(_CHAT) else (address, "")


@cache
def _verifying() -> ssl.SSLContext:
    """Certificates are verified; reading them takes longer than many a request. Raises ConfigError."""
    try:
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError):
        name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "the system's own")
        raise ConfigError(
            "Certificates cannot be read",
            where=name,
            hint="Name a file of certificates in PEM, or unset it.",
        ) from None


def _proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment names for an address; it has no business between us and this machine. Raises
    ConfigError for one that cannot be used."""
    parts = urlsplit(url)
    if is_local(url) or proxy_bypass(parts.netloc):
        return None
    known = getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if known.get(kind)), None)
    if kind is None:
        return None
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    name = next((name for name in names if os.environ.get(name)), "the system's settings")
    try:
        return Proxy.of(known[kind], name)
    except ValueError:
        raise ConfigError(
            "The proxy is no address of an HTTP proxy",  # which may hold a password
            where=name,
            hint="Write http://host:port, unset it, or name the server's host in no_proxy.",
        ) from None


class Client:
    """Open connections to the server at `url`. `key` goes into the Authorization header and nowhere else. Raises
    ConfigError where the environment names a proxy or certificates that cannot be used."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        root, self._above = split_address(self.url)
        parts = urlsplit(root)
        self._root = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self._has_key = key is not None
        self._timeout_s = timeout_s
        # Answers that end together are read one after the other, in small parts: reads of other streams come between.
        self.turn = asyncio.Lock()
        self._proxy = proxy = _proxy_of(root)
        secure = parts.scheme == "https" or (proxy is not None and proxy.secure)
        self._wire = Wire(
            root,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            proxy=proxy,
            context=_verifying() if secure else None,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._wire.close()

    async def open(self, connections: int) -> None:
        """So many connections at once, before a clock runs. Raises EngineError where nothing answers."""
        try:
            await self._wire.open(connections)
        except UnreachableError as error:
            raise self._gone(str(error), error.hint) from None

    def _at(self, path: str) -> str:
        return path.removeprefix(self._above)

    async def get(self, path: str) -> str | None:
        """A page as text; None where the server does not have it or does not show it. Raises EngineError where nothing
        answers."""
        try:
            _, came = await self._asked("GET", path, None, PAGE_S, _MOST_PAGE)
            answer = came.reply()
        except FailedError as failed:
            hint = "Check the address, and the server's log; the same command then continues where it stopped."
            raise self._gone(f"{self._at(path)}: {failed.kind}", hint) from None
        # A gateway may forbid a page that it does not have (403): requests themselves tell that one is wanted.
        if answer.status == 401 and not self._has_key:
            raise self._locked(Problem(answer.status))
        page = answer.body.decode(errors="replace")
        # While it loads, llama.cpp's server answers so at every page, and looks like any other that has none.
        if answer.status == 503 and (problem := problem_of(503, page, {})).kind == "unavailable_error":
            hint = "Wait until it has, then run the same command."
            raise EngineError(f"The server still loads its model: {problem}", where=self.url, hint=hint)
        return page if 200 <= answer.status < 300 else None

    async def send(self, path: str, body: dict[str, Any]) -> list[Chunk]:
        """POST and read the stream to its end. Raises RefusedError, FailedError, or EngineError where no request can
        ever succeed."""
        sent_s, came = await self._asked("POST", path, body, self._timeout_s)
        async with self.turn:
            await asyncio.sleep(0)
            answer = came.reply()
            self._check(answer, path, body)
            if "text/event-stream" not in answer.headers.get("content-type", "").lower():
                raise FailedError("the answer is not streamed")
            return await _parsed([(at_s - sent_s, data) for at_s, data in answer.events()])

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST without a stream. Raises as `send` does."""
        _, came = await self._asked("POST", path, body, self._timeout_s)
        answer = came.reply()
        self._check(answer, path, body)
        found = _json(answer.body)
        if not isinstance(found, dict):
            raise FailedError("not JSON")
        return found

    async def _asked(
        self, method: str, path: str, body: dict[str, Any] | None, limit_s: float, *most: int
    ) -> tuple[float, Answer]:
        """When the request was sent, by time.perf_counter(), and the whole of what came. Raises FailedError, and
        EngineError where nothing answers."""
        data = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        for again in (False, True):
            sent_s = time.perf_counter()
            try:
                async with asyncio.timeout(limit_s):
                    return sent_s, await self._wire.ask(method, self._root + self._at(path), data, *most)
            except TimeoutError:
                raise FailedError("timeout") from None
            except UnreachableError as error:
                raise self._gone(str(error), error.hint) from None
            except GarbledError as error:
                raise FailedError(str(error)) from None
            except ClosedError:
                # llama.cpp closes a kept connection now and then just as the next request comes: nothing was asked yet.
                if again:
                    raise FailedError("the server closed the connection") from None
        raise AssertionError

    def _check(self, answer: Reply, path: str, body: dict[str, Any]) -> None:
        """Nothing for an answer."""
        status = answer.status
        if status < 300:
            return
        problem = problem_of(status, answer.body.decode(errors="replace"), body)
        if status in (401, 403):
            raise self._locked(problem)
        if status < 400:
            raise self._moved(answer, path, problem)
        if status in (404, 405, 501):
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

    def _moved(self, answer: Reply, path: str, problem: Problem) -> SpecbenchError:
        """Neither key nor prompt goes where a server points; the user may send them there."""
        target = _without_secrets(answer.headers.get("location", ""))
        return EngineError(
            f"The server redirects requests{f' to {shown(target)}' if target else ''}, and we follow none: {problem}",
            where=f"{self.url}, {self._at(path)}",
            hint="Name the final address in its place.",
        )

    def _locked(self, problem: Problem) -> SpecbenchError:
        return EngineError(
            f"The server wants a key: {problem}",
            where=self.url,
            hint="Put it in the environment variable that --api-key-env names (SPECBENCH_API_KEY).",
        )

    def _gone(self, reason: str, hint: str | None) -> SpecbenchError:
        through, usual = "", "Start it; the same command then continues where it stopped."
        if self._proxy is not None:
            through = f" through the proxy that stands in {self._proxy.named}"
            usual = "Check that proxy, or name the server's host in no_proxy."
        return EngineError(f"No server answers{through}: {reason}", where=self.url, hint=hint or usual)


def _without_secrets(address: str) -> str:
    """An address without what may be a password or a token; empty for what is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def _json(data: bytes) -> Any:
    """Raises FailedError."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        raise FailedError("not JSON") from None


async def _parsed(arrived: list[tuple[float, bytes]]) -> list[Chunk]:
    """Events as JSON up to [DONE], but for empty ones, which keep a connection open. Raises FailedError for an answer
    that breaks off or reports an error of its own."""
    chunks: list[Chunk] = []
    for number, (at_s, line) in enumerate(arrived, 1):
        if line == b"[DONE]":
            return chunks
        if not line.strip():
            continue
        try:
            data = _json(line)
        except FailedError:
            if number == len(arrived):
                break  # cut in half
            raise
        if not isinstance(data, dict):
            raise FailedError("not a JSON object")
        if data.get("error") is not None:
            raise FailedError(f"an error inside the answer{error_word(data['error'])}")
        chunks.append(Chunk(at_s, data))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    raise FailedError("the answer broke off")
