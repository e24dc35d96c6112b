"""HTTP/1.1 for a clock: what arrives is kept as it comes, each read with its time, and looked at when all is there.

A library that parses while the stream runs takes more time for a token than many an engine, and every stream of a
busy client waits for it. So only the end of an answer is looked for here; benchmarks/client.py compares.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import time
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

CONNECT_S = 10.0
# Of an answer: more than anything that is asked for, and less than what would not fit into memory.
MOST_BYTES = 256 << 20
_MOST_HEAD = 64 << 10

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: |$)")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_BODILESS = (204, 304)


class UnreachableError(Exception):
    """Nobody could be asked: the message says why, and `hint` what to do where starting the server is not it."""

    def __init__(self, why: str, hint: str | None = None) -> None:
        self.hint = hint
        super().__init__(why)


class ClosedError(Exception):
    """The connection closed before a word of the answer came."""


class GarbledError(Exception):
    """What came is no answer, or not the whole of one: the message says how, without a word of it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `headers` have names in small letters; `ends[i]` is how much of `body` was there at `times[i]`, by
    time.perf_counter()."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    ends: tuple[int, ...]
    times: tuple[float, ...]

    def events(self) -> list[tuple[float, bytes]]:
        """The data of each server-sent event, with the time at which the last of it was there."""
        found: list[tuple[float, bytes]] = []
        data: list[bytes] = []
        at = 0
        for line in (*self.body.splitlines(keepends=True), b"\n"):
            at += len(line)
            if line.startswith(b"data:"):
                data.append(line[5:].strip())
                last = at
            elif data and not line.strip():
                found.append((self.times[bisect_left(self.ends, last)], b"\n".join(data)))
                data = []
        return found


class Answer:
    """An answer while it comes in: everything that was read, and how much of it was there when. `reply` is for the time
    when nothing else waits."""

    def __init__(self, most: int, *, bodiless: bool = False) -> None:
        self.raw = bytearray()
        self.reads: list[tuple[int, float]] = []
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.keeps = False  # the connection, for the next request
        self._most = most
        self._bodiless = bodiless
        self._at = 0  # up to where it is understood
        self._spans: list[tuple[int, int]] = []  # of the body
        self._headed = self._chunked = False
        self._length: int | None = None

    def take(self, data: bytes, now: float) -> None:
        """The next bytes. Raises GarbledError."""
        self.raw += data
        self.reads.append((len(self.raw), now))
        if len(self.raw) > self._most:
            raise GarbledError("the answer does not end")
        if not self._headed:
            self._read_head()
        elif self._chunked:
            # The end looks so, and few other reads do.
            if self.raw.endswith(b"\r\n\r\n"):
                self._read_chunks()
        elif self._length is not None and len(self.raw) - self._at >= self._length:
            self._done(self._length)

    def closed(self) -> None:
        """The connection has closed. Raises ClosedError and GarbledError where that is not the answer's end."""
        if not self.raw:
            raise ClosedError
        if not self._headed or self._chunked or self._length is not None:
            raise GarbledError("the answer broke off")
        self._done(len(self.raw) - self._at)

    def reply(self) -> Reply:
        """All of it, the times by places in the body."""
        view = memoryview(self.raw)
        body = b"".join(view[begin:end] for begin, end in self._spans)
        ends, times, so_far, spans = [], [], 0, iter(self._spans)
        begin, end = next(spans, (0, 0))
        for read, now in self.reads:
            while end < read and (later := next(spans, None)) is not None:
                so_far += end - begin
                begin, end = later
            ends.append(so_far + max(0, min(read, end) - begin))
            times.append(now)
        return Reply(self.status, self.headers, body, tuple(ends), tuple(times))

    def _done(self, length: int) -> None:
        self._spans.append((self._at, self._at + length))
        self._end(self._at + length)

    def _end(self, end: int) -> None:
        self.keeps = self.keeps and end == len(self.raw)
        if not self.whole.done():
            self.whole.set_result(None)

    def _read_head(self) -> None:
        end = self.raw.find(b"\r\n\r\n", self._at)
        if end < 0:
            if len(self.raw) - self._at > _MOST_HEAD:
                raise GarbledError("the answer is not HTTP")
            return
        first, *lines = bytes(self.raw[self._at : end]).split(b"\r\n")
        found = _STATUS.match(first)
        if found is None:
            raise GarbledError("the answer is not HTTP")
        self._at, self.status = end + 4, int(found[2])
        if self.status < 200:  # more is to come
            self._read_head()
            return
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._headed = True
        self.keeps = found[1] == b"1" and "close" not in self.headers.get("connection", "").lower()
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            raise GarbledError("the answer is compressed, which we do not ask for")
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        told = self.headers.get("content-length")
        if told is not None and not self._chunked:
            if not told.isascii() or not told.isdecimal() or len(told) > 15:
                raise GarbledError("the answer has no length that could be")
            self._length = int(told)
            if self._length > self._most:
                raise GarbledError("the answer does not end")
        if self._bodiless or self.status in _BODILESS:
            self._chunked, self._length = False, 0
        if self._chunked:
            self._read_chunks()
        elif self._length is not None and len(self.raw) - self._at >= self._length:
            self._done(self._length)

    def _read_chunks(self) -> None:
        """All that are whole."""
        while True:
            line = self.raw.find(b"\r\n", self._at, self._at + _MOST_HEAD)
            if line < 0:
                if len(self.raw) - self._at > _MOST_HEAD:
                    raise GarbledError("the answer is not HTTP")
                return
            found = _SIZE.fullmatch(bytes(self.raw[self._at : line]).partition(b";")[0].strip())
            if found is None:
                raise GarbledError("the answer is not HTTP")
            size = int(found[0], 16)
            end = line + 2 + size
            if not size:
                trailer = self.raw.find(b"\r\n\r\n", line)
                if trailer >= 0:
                    self._end(trailer + 4)
                return
            if end + 2 > len(self.raw):
                return
            if self.raw[end : end + 2] != b"\r\n":
                raise GarbledError("the answer is not HTTP")
            self._spans.append((line + 2, end))
            self._at = end + 2


class _Connection(asyncio.Protocol):
    """One connection; at most one answer is awaited at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        answer = self._answer
        if answer is None or answer.whole.done():
            self.close()  # nobody asked
            return
        try:
            answer.take(data, now)
        except GarbledError as error:
            answer.whole.set_exception(error)
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.whole.done():
            try:
                self._answer.closed()
            except (ClosedError, GarbledError) as broken:
                self._answer.whole.set_exception(broken)

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes, most: int = MOST_BYTES, *, tunnel: bool = False) -> Answer:
        """The answer, whole; of a proxy that shall be a `tunnel`, its head. The connection is closed unless it may be
        used again."""
        assert self._transport is not None
        self._answer = answer = Answer(most, bodiless=tunnel)
        try:
            self._transport.write(request)
            await answer.whole
        except BaseException:
            self.close()
            raise
        self._answer = None
        # What a proxy says of its own connection ends where the tunnel begins.
        if not answer.keeps and not tunnel:
            self.close()
        return answer

    async def secure(self, context: ssl.SSLContext, host: str) -> None:
        """TLS from here on, through a proxy that has answered."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(self._transport, self, context, server_hostname=host)
        if transport is None:
            raise ConnectionError
        self._transport = transport


@dataclass(frozen=True, slots=True)
class Proxy:
    """Who passes requests on, where that is `named`, and the value of its own Authorization header."""

    host: str
    port: int
    secure: bool
    named: str
    secret: str | None = None

    @classmethod
    def of(cls, address: str, named: str) -> Proxy:
        """Raises ValueError for an address that is no HTTP proxy's."""
        parts = urlsplit(address if "://" in address else f"http://{address}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
        secret = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            secret = f"Basic {b64encode(pair.encode()).decode()}"
        return cls(parts.hostname.encode("idna").decode(), _port(parts), parts.scheme == "https", named, secret)


class Wire:
    """Connections to the server at `origin` (scheme, host, port), kept open from request to request. `context` checks
    certificates; `headers` go with every request to the server and never to a proxy that only passes bytes on."""

    def __init__(
        self, origin: str, *, headers: Mapping[str, str], proxy: Proxy | None, context: ssl.SSLContext | None
    ) -> None:
        self._parts = urlsplit(origin)
        self._host = (self._parts.hostname or "").encode("idna").decode()
        self._port = _port(self._parts)
        self._secure = self._parts.scheme == "https"
        self._proxy = proxy
        self._context = context
        usual = 443 if self._secure else 80
        self._bare = f"[{self._host}]" if ":" in self._host else self._host
        named = self._bare + ("" if self._port == usual else f":{self._port}")
        self._before = f"http://{named}" if proxy is not None and not self._secure else ""
        lines = {"Host": named, "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "specbench", **headers}
        if self._before and proxy is not None and proxy.secret is not None:
            lines["Proxy-Authorization"] = proxy.secret
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    def close(self) -> None:
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()

    async def open(self, count: int) -> None:
        """So many connections, before a clock runs. Raises UnreachableError."""
        missing = count - sum(connection.open for connection in self._idle)
        self._idle += [await self._connected() for _ in range(missing)]

    async def ask(self, method: str, path: str, body: bytes | None, most: int = MOST_BYTES) -> Answer:
        """One request and its whole answer; the caller sets how long that may take. Raises UnreachableError,
        ClosedError and GarbledError."""
        head = f"{method} {self._before}{path} HTTP/1.1\r\n{self._lines}"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        request = head.encode("latin-1") + b"\r\n" + (body or b"")
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                break
        else:
            connection = await self._connected()
        answer = await connection.ask(request, most)
        if connection.open:
            self._idle.append(connection)
        else:
            self._all.discard(connection)
        return answer

    async def _connected(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await self._connect()
        except TimeoutError:
            raise UnreachableError("timeout") from None
        except ssl.SSLCertVerificationError:
            hint = "Name its certificate in SSL_CERT_FILE, and its host as the certificate does."
            raise UnreachableError("its certificate cannot be verified", hint) from None
        except ssl.SSLError:
            raise UnreachableError("it does not speak TLS as we do", "Check whether it is http or https.") from None
        except socket.gaierror:
            own = self._proxy is None
            raise UnreachableError("its name is not known", "Check the address." if own else None) from None
        except OSError as error:
            raise UnreachableError(_why(error)) from None
        except (ClosedError, GarbledError):
            raise UnreachableError("the proxy does not answer as one") from None
        self._all.add(connection)
        return connection

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        host, port, secure = self._host, self._port, self._secure
        if self._proxy is not None:
            host, port, secure = self._proxy.host, self._proxy.port, self._proxy.secure
        context = self._context if secure else None
        _, connection = await loop.create_connection(_Connection, host, port, ssl=context)
        if self._proxy is None or not self._secure:
            return connection
        secret = f"Proxy-Authorization: {self._proxy.secret}\r\n" if self._proxy.secret else ""
        there = f"{self._bare}:{self._port}"
        request = f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n{secret}\r\n".encode()
        status = (await connection.ask(request, tunnel=True)).status
        if status != 200:
            connection.close()
            raise UnreachableError(f"the proxy answers HTTP status {status}")
        assert self._context is not None
        await connection.secure(self._context, self._host)
        return connection


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _why(error: OSError) -> str:
    """Why there is no connection, in the system's words without addresses."""
    # Of a host with several addresses, as localhost has, asyncio tells the numbers in its text alone.
    numbers = [str(error.errno)] if error.errno else re.findall(r"\[Errno (\d+)\]", str(error))
    return os.strerror(int(numbers[-1])).lower() if numbers else "no connection"
