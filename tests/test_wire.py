"""HTTP as a clock reads it: the same answer however it is cut, times of arrival, and an end to everything."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import time
from itertools import pairwise

import pytest
from conftest import examples, full
from fake_raw import FakeRaw, answer
from hypothesis import given
from hypothesis import strategies as st

from specbench.backends.server import client, wire
from specbench.backends.server.adapter import FailedError
from specbench.backends.server.client import Client, is_local
from specbench.backends.server.traffic import LagMeter
from specbench.backends.server.wire import ClosedError, GarbledError
from specbench.errors import ConfigError, EngineError

EVENTS = b'data: {"a": 1}\n\n: a comment\n\nevent: x\r\ndata: {"b":\r\ndata: 2}\r\n\r\ndata: [DONE]\n\n'
SAID = [b'{"a": 1}', b'{"b":\n2}', b"[DONE]"]


def chunked(body, size, trailer=b""):
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%X;x=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
WHOLE = {
    "a length": HEAD + b"content-length: %d\r\n\r\n" % len(EVENTS) + EVENTS,
    "chunks": HEAD + b"Transfer-Encoding: Chunked\r\n\r\n" + chunked(EVENTS, 7),
    "one chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(EVENTS, 999),
    "a trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(EVENTS, 3, b"X: y\r\n"),
    "something before": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    + HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + chunked(EVENTS, 11),
    "its end": b"HTTP/1.0 200 OK\r\n\r\n" + EVENTS,
}


def read(pieces, *, closed=False, most=1 << 20):
    """The answer that comes in these pieces, piece i at i seconds; whether nothing more was awaited."""

    async def taken():
        found = wire.Answer(most)
        for number, piece in enumerate(pieces):
            found.take(piece, float(number))
        if closed:
            found.closed()
        return found.whole.done(), found.reply() if found.whole.done() else None, found.keeps

    return asyncio.run(taken())


@examples(300)
@given(name=st.sampled_from(list(WHOLE)), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_however_it_is_cut_the_answer_is_the_same(name, cuts):
    data = WHOLE[name]
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    done, reply, keeps = read([data[a:b] for a, b in pairwise(places)], closed=name == "its end")
    assert done and reply.body == EVENTS
    assert [said for _, said in reply.events()] == SAID
    assert keeps is (name != "its end")


@pytest.mark.parametrize("name", ["chunks", *full(*[name for name in WHOLE if name != "chunks"])])
def test_byte_by_byte_each_event_has_the_time_of_its_last_byte(name):
    data = WHOLE[name]
    done, reply, _ = read([data[at : at + 1] for at in range(len(data))], closed=name == "its end")
    assert done
    for at_s, said in reply.events():
        until, before = (data[: int(end)] for end in (at_s + 1, at_s))
        last = said.split(b"\n")[-1]
        body = until.partition(b"\r\n\r\n")[2]
        if name in ("a length", "its end"):
            assert body.rstrip(b"\r\n").endswith(last) and not before.endswith(b"\n\n")


def test_an_answer_is_awaited_until_it_is_whole():
    for name, data in WHOLE.items():
        for at in range(0, len(data), 5):
            assert not read([data[:at]])[0], name
    assert read([WHOLE["a length"] + b"more"])[2] is False  # such a connection is not used again


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "not HTTP"),
        (b"x" * 70_000, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n", "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % (b"9" * 401), "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "does not end"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\n", "compressed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nabc\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\nabc\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n\r\n" % (b"f" * 401), "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n\r\n", "not HTTP"),
    ],
)
def test_what_is_no_answer(data, why):
    with pytest.raises(GarbledError, match=why):
        read([data])


def test_an_answer_that_ends_too_soon():
    for name, data in WHOLE.items():
        for at in range(1, len(data) - 1, 5):
            if name == "its end" and at > data.index(b"\r\n\r\n") + 3:
                continue
            with pytest.raises(GarbledError, match="broke off"):
                read([data[:at]], closed=True)
    with pytest.raises(ClosedError):
        read([], closed=True)


def test_nothing_grows_without_end():
    with pytest.raises(GarbledError, match="does not end"):
        read([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 1000] * 20], most=10_000)
    with pytest.raises(GarbledError, match="does not end"):
        read([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 5000], most=10_000)


# Through the client.


def get(url, path="/v1/models", **planted):
    async def ask():
        async with Client(url, key=planted.get("key"), timeout_s=planted.get("timeout_s", 5.0)) as own:
            return await own.get(path)

    return asyncio.run(ask())


def send(url, times=1, **planted):
    async def ask():
        async with Client(url, key=planted.get("key"), timeout_s=planted.get("timeout_s", 5.0)) as own:
            return [await own.send("/v1/chat/completions", {"messages": []}) for _ in range(times)]

    return asyncio.run(ask())


OK = [WHOLE["chunks"]]


def saying(*pieces):
    return lambda _: iter(pieces)


def test_a_connection_is_kept_from_request_to_request():
    with FakeRaw(saying(*OK)) as server:
        chunks = send(server.url, times=5)
    assert [[chunk.data for chunk in each] for each in chunks] == [[{"a": 1}, {"b": 2}]] * 5
    assert (server.connections, len(server.heads)) == (1, 5)
    assert "Accept-Encoding: identity" in server.heads[0]


def test_connections_are_opened_before_the_clock_runs():
    async def ask(url):
        async with Client(url, key=None, timeout_s=5) as own:
            await own.open(3)
            await asyncio.gather(*(own.send("/v1/chat/completions", {}) for _ in range(3)))
            await own.open(3)

    with FakeRaw(saying(*OK)) as server:
        asyncio.run(ask(server.url))
        assert server.connections == 3


def test_a_text_comes_when_it_is_sent_not_when_it_is_parsed():
    pieces = [HEAD + b"\r\n", 0.1, b'data: {"a": 1}\n\n', 0.1, b'data: {"b": 2}\n\n', 0.05, b"data: [DONE]\n\n", -1.0]
    with FakeRaw(saying(*pieces)) as server:
        ((first, second),) = send(server.url)
    assert 0.095 < first.at_s < second.at_s - 0.095


def test_a_total_limit_of_time_holds_for_a_byte_now_and_then(monkeypatch):
    monkeypatch.setattr(client, "PAGE_S", 0.3)
    drip = [HEAD + b"Content-Length: 9999\r\n\r\n", *[b" ", 0.02] * 100]
    with FakeRaw(saying(*drip)) as server:
        for ask, error in ((get, EngineError), (send, FailedError)):
            began = time.perf_counter()
            with pytest.raises(error, match="timeout"):
                ask(server.url, timeout_s=0.3)
            assert time.perf_counter() - began < 1.5


@pytest.mark.parametrize("charset", ["utf-7", "rot13", "undefined", "punycode", "\xff", "utf-16", "x" * 9000])
def test_no_charset_of_a_header_is_obeyed(charset):
    body = '{"data": [{"id": "ключ"}]}'.encode()
    with FakeRaw(lambda head: iter([answer(body, f"application/json; charset={charset}")])) as server:
        assert get(server.url) == body.decode()
    with FakeRaw(saying(answer(EVENTS, f"text/event-stream; charset={charset}"))) as server:
        assert len(send(server.url)[0]) == 2


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (b"[" * 5000, "not JSON"),
        (b"[" * 5000 + b"]" * 5000, "not JSON"),
        (b'{"a":' * 200_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"9" * 5000, "not JSON"),
        (b'{"error": {"type": "\\u001b[31m", "message": "secret"}}', "an error inside the answer$"),
    ],
)
def test_garbled_events_are_asked_again(event, why):
    body = b"data: " + event + b"\n\ndata: [DONE]\n\n"
    with FakeRaw(saying(answer(body, "text/event-stream"))) as server, pytest.raises(FailedError, match=why):
        send(server.url)


@pytest.mark.parametrize(
    "body",
    [
        EVENTS + b"data: [DONE]\n\n",
        EVENTS + b'event: end\ndata: {"c": 3}\n\n',
        EVENTS + b'data: {"c"',
        b"data:\n\ndata: \n\n" + EVENTS,
    ],
)
def test_an_answer_ends_at_its_first_done_and_has_no_empty_events(body):
    with FakeRaw(saying(answer(body, "text/event-stream"))) as server:
        assert [chunk.data for chunk in send(server.url)[0]] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (b'data: {"error": {"type": "InternalServerError"}}\n\n', "an error inside the answer: InternalServerError"),
        (b'data: {"error": {"type": "InternalServerError"}}\n\ndata: {"b', "answer: InternalServerError"),
        (b'data: {"b', "broke off"),
        (b"data: [DO", "broke off"),
        (b"data:", "broke off"),
        (b"", "broke off"),
    ],
)
def test_an_answer_without_its_end_names_an_error_that_it_has(end, why):
    body = b'data: {"a": 1}\n\n' + end
    with FakeRaw(saying(answer(body, "text/event-stream"))) as server, pytest.raises(FailedError, match=why):
        send(server.url)


def test_a_redirect_is_named_with_its_target_and_without_secrets():
    moved = answer(b"", status="307 x", more="Location: https://me:s3cret@other.example:8443/v1/chat?token=s3cret\r\n")
    with FakeRaw(saying(moved)) as server:
        with pytest.raises(EngineError, match=r"redirects requests to 'https://other.example:8443/v1/chat'") as error:
            send(server.url)
        assert "s3cret" not in error.value.line() and "final address" in error.value.line()
    for odd in ("", "Location: \r\n", "Location: http://[::1\r\n", "Location: \x1b[31m\r\n"):
        with FakeRaw(saying(answer(b"", status="308 x", more=odd))) as server:
            with pytest.raises(EngineError, match="redirects requests") as error:
                send(server.url)
            assert error.value.line().isprintable()


# Ways out.


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.localhost",
            "127.0.0.1",
            "127.0.0.2",
            "127.255.255.254",
            "0.0.0.0",
        ),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:0:0:1]", "127.1", "0x7f000001", "2130706433", "0"),
    ],
)
def test_this_machine_by_any_name_is_never_asked_through_a_proxy(host, monkeypatch):
    assert is_local(f"http://{host}:8000/v1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.example:1")
    assert client._proxy_of(f"http://{host}:8000") is None


@pytest.mark.parametrize("host", ["128.0.0.1", "10.0.0.1", "localhost.example", "notlocalhost", "[::2]", "1.127.0.0"])
def test_other_machines_are_others(host):
    assert not is_local(f"http://{host}:8000")


@pytest.fixture
def proxied(monkeypatch):
    """Names whose addresses nobody looks up: only a proxy can reach them."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_a_proxy_of_the_environment_is_used_for_other_machines(proxied):
    with FakeRaw(saying(*OK)) as proxy:
        proxied.setenv("http_proxy", f"http://me:pa%20ss@127.0.0.1:{proxy.port}")
        send("http://far.invalid:8000")
    assert proxy.heads[0].startswith(
        "POST http://far.invalid:8000/v1/chat/completions HTTP/1.1\r\nHost: far.invalid:8000"
    )
    assert "Proxy-Authorization: Basic bWU6cGEgc3M=" in proxy.heads[0]
    proxied.setenv("no_proxy", "far.invalid")
    with pytest.raises(EngineError, match=r"No server answers: its name is not known .*Check the address"):
        send("http://far.invalid:8000")
    proxied.delenv("no_proxy")
    with pytest.raises(EngineError, match=r"through the proxy .* http_proxy: connection refused .*no_proxy"):
        send("http://far.invalid:8000")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_a_name_with_two_addresses_that_both_refuse(monkeypatch):
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, free_port())) for address in ("127.0.0.1", "127.0.0.2")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(EngineError, match=r"connection refused .*Start it"):
        send("http://localhost:8000")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=far.invalid"]
    made += ["-addext", "subjectAltName=DNS:far.invalid,IP:127.0.0.1"]
    made += ["-keyout", folder / "key.pem", "-out", folder / "own.pem"]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("makes a certificate with openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem", folder / "key.pem")
    return folder / "own.pem", context


def trusting(monkeypatch, path):
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    client._verifying.cache_clear()


@pytest.fixture(autouse=True)
def forget_certificates():
    yield
    client._verifying.cache_clear()


def test_tls_is_spoken_and_checked(certificate, proxied):
    own, context = certificate
    with FakeRaw(saying(*OK), context) as server:
        with pytest.raises(EngineError, match=r"certificate cannot be verified .*SSL_CERT_FILE"):
            send(server.url)
        trusting(proxied, own)
        send(server.url, times=2)
        with pytest.raises(EngineError, match="certificate cannot be verified"):
            send(server.url.replace("127.0.0.1", "localhost"))
    with (
        FakeRaw(saying(*OK), greeting=answer(b"", status="400 No")) as plain,
        pytest.raises(EngineError, match=r"does not speak TLS .*http or https"),
    ):
        send(plain.url.replace("http:", "https:"))


@pytest.mark.parametrize(
    "head", ["HTTP/1.1 200 Connection established", "HTTP/1.0 200 OK", "HTTP/1.1 200 OK\r\nConnection: close"]
)
def test_a_proxy_passes_tls_on_and_never_sees_the_key(certificate, proxied, head):
    own, context = certificate
    trusting(proxied, own)
    with FakeRaw(saying(*OK), context, tunnel=head) as proxy:
        proxied.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        assert len(send("https://far.invalid", key="s3cret")[0]) == 2
    before, inside = proxy.heads
    assert before == "CONNECT far.invalid:443 HTTP/1.1\r\nHost: far.invalid:443"
    assert "Authorization: Bearer s3cret" in inside
    with FakeRaw(saying(answer(b"", status="407 No"))) as proxy:
        proxied.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(EngineError, match="the proxy answers HTTP status 407"):
            send("https://far.invalid")


@pytest.mark.parametrize(
    "value", ["socks5://127.0.0.1:1", "http://", "http://h:x", "http://h:0", "ftp://h", "http://[::1"]
)
@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY"])
def test_an_unusable_proxy_names_its_variable(name, value, proxied):
    proxied.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"no address of an HTTP proxy \({name}\)") as error:
        send("http://far.invalid")
    assert "h:x" not in error.value.line()


def test_unusable_certificates_name_their_variable(tmp_path, proxied):
    (tmp_path / "x.pem").write_text("no certificate")
    for path in (tmp_path / "x.pem", tmp_path / "gone.pem"):
        trusting(proxied, path)
        with pytest.raises(ConfigError, match=r"Certificates cannot be read \(SSL_CERT_FILE\)"):
            send("https://far.invalid")


# How late the client is itself.


def lag_of(work):
    async def measured():
        with LagMeter() as meter:
            await work()
        return meter.found()

    return asyncio.run(measured())


def test_a_loop_that_is_kept_busy_is_late_and_one_that_waits_is_not():
    async def blocked():
        for _ in range(5):
            time.sleep(0.1)  # as parsing would
            await asyncio.sleep(0)

    quiet, busy = lag_of(lambda: asyncio.sleep(0.5)), lag_of(blocked)
    # A read that comes at any moment of 0.1 s of work waits for half of it on average.
    assert busy.mean_s > 0.02 and busy.p99_s > 0.05
    assert quiet.mean_s < busy.mean_s / 2 and quiet.p99_s < busy.p99_s


def test_a_span_too_short_tells_nothing_of_the_client():
    assert lag_of(lambda: asyncio.sleep(0)) is None
