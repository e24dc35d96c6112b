"""A fake llama.cpp server with a planted truth and planted faults, on a real port.

It writes a fixed number of tokens for every prompt, in rounds of planted drafted and accepted counts, each token and
round taking a planted time, and answers in llama.cpp's own fields.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from specbench.records import Round


@dataclass
class FakeServer:
    """`rounds` are those of every answer (none: no speculation); `faults[n]` befalls the n-th request of the server's
    life, counted from 0: an HTTP status, "hang", "cut" (breaks off), "garbage", "close" (before a word),
    "die" (stops listening)."""

    tokens: int = 12
    rounds: tuple[Round, ...] = ()
    speculating: bool | None = None
    method: str = "none"
    model: str = "/models/fake.gguf"
    step_s: float = 0.002
    prefill_s: float = 0.004
    faults: dict[int, int | str] = field(default_factory=dict)
    cached: int = 0
    busy: bool = False
    notices_s: float | None = None  # goes on so long with a request that was given up, and counts its tokens
    extra_tokens: int = 0  # of somebody else, in the counters
    restart_at: int | None = None  # the request at which the counters begin anew
    text_of: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    port: int = 0
    certificate: tuple[Path, Path] | None = None  # and its key: then it speaks https
    fault_on: str | None = None  # a word: every prompt with it gets a 400
    missing: int = 404  # the status of a page that it does not have, and what it says there
    missing_page: str = "{}"
    paths: list[str] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = {"tokens": 0, "drafts": 0, "drafted": 0, "accepted": 0}
        self._lock = threading.Lock()
        self.given_up = 0
        self._http: ThreadingHTTPServer | None = None

    def __enter__(self) -> FakeServer:
        fake = self

        class Bound(self.handler()):
            server_of = fake

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Bound)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def handler(self) -> type[Handler]:
        """What answers its requests."""
        return Handler

    def stop(self) -> None:
        """Stop listening, as a server that died."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    @property
    def url(self) -> str:
        return f"http{'' if self.certificate is None else 's'}://127.0.0.1:{self.port}"

    def count(self, rounds: tuple[Round, ...], number: int) -> None:
        with self._lock:
            if self.restart_at == number:
                self.counts = dict.fromkeys(self.counts, 0)
            self.counts["tokens"] += self.tokens + self.extra_tokens
            self.counts["drafts"] += sum(r.drafted > 0 for r in rounds)
            self.counts["drafted"] += sum(r.drafted for r in rounds)
            self.counts["accepted"] += sum(r.accepted for r in rounds)

    def go_on(self, number: int) -> None:
        """With a request whose client is gone."""
        if self.notices_s is None:
            return
        self.given_up += 1
        time.sleep(self.notices_s)
        self.count((), number)
        self.given_up -= 1

    def next_number(self, body: dict[str, Any]) -> int:
        with self._lock:
            self.seen.append(body)
            return len(self.seen) - 1

    def metrics(self) -> str:
        names = {
            "tokens": "tokens_predicted_total",
            "drafts": "spec_decode_num_drafts_total",
            "drafted": "spec_decode_num_draft_tokens_total",
            "accepted": "spec_decode_num_accepted_tokens_total",
        }
        lines = [f"# TYPE llamacpp:{names[k]} counter\nllamacpp:{names[k]} {n}" for k, n in self.counts.items()]
        return "\n".join(lines) + "\n"

    def answer(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of one answer, at their times."""
        prompt = body["messages"][-1]["content"]
        words = self.text_of.get(prompt, " ".join(f"w{i}" for i in range(self.tokens))).split(" ")
        limit = min(body["max_tokens"], self.tokens)
        said, drafted, accepted = 1, 0, 0
        start = time.perf_counter()
        time.sleep(self.prefill_s)
        first = time.perf_counter()
        yield self._chunk(words[0], {"predicted_n": 1})
        plan = list(self.rounds) or [Round(0, 0)] * self.tokens
        used: list[Round] = []
        while said < limit:
            r = plan[len(used) % len(plan)]
            r = Round(min(r.drafted, limit - said - 1), min(r.accepted, limit - said - 1))
            used.append(r)
            time.sleep(self.step_s * (1 + 0.5 * r.drafted))
            drafted, accepted = drafted + r.drafted, accepted + r.accepted
            for _ in range(r.accepted + 1):
                counts = {"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}
                said += 1
                yield self._chunk(" " + words[(said - 1) % len(words)], {"predicted_n": said, **counts})
        counts = {"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}
        now = time.perf_counter()
        timings = {"predicted_n": said, "cache_n": self.cached, **counts}
        timings |= {"prompt_ms": 1000 * (first - start), "predicted_ms": 1000 * (now - first)}
        yield {"choices": [{"delta": {}, "finish_reason": "length", "index": 0}]}
        usage = {
            "completion_tokens": said,
            "prompt_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }
        yield {"choices": [], "usage": usage, "timings": timings}
        self.last_rounds = tuple(used)

    def _chunk(self, text: str, timings: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"delta": {"content": text}, "finish_reason": None, "index": 0}], "timings": timings}

    def pages(self) -> dict[str, Any]:
        on = bool(self.rounds) if self.speculating is None else self.speculating
        slot = {"n_ctx": 4096, "speculative": on, "is_processing": self.busy or self.given_up > 0}
        slot["params"] = {"speculative.types": self.method}
        return {
            "/health": {"status": "ok"},
            "/v1/models": {"data": [{"id": self.model}], "object": "list"},
            "/props": {"build_info": "b1-fake"},
            "/slots": [slot],
            "/metrics": self.metrics(),
        }


class Handler(BaseHTTPRequestHandler):
    server_of: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.server_of
        fake.paths.append(self.path)
        if self._locked():
            return
        if self.path in fake.pages():
            page = fake.pages()[self.path]
            self._whole(200, page if isinstance(page, str) else json.dumps(page))
        else:
            self._whole(fake.missing, fake.missing_page)

    def do_POST(self) -> None:
        fake = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._locked():
            return
        fake.paths.append(self.path)
        number = fake.next_number(body)
        refusal = self.refusal(self.path, body)
        if refusal is not None:
            self._whole(refusal[0], json.dumps(refusal[1]))
            return
        fault = fake.faults.get(number)
        whole = None if fault is not None else self.answer_whole(self.path, body)
        if whole is not None:
            self._whole(200, whole)
            return
        if fake.fault_on is not None and fake.fault_on in body["messages"][-1]["content"]:
            fault = 400
        if isinstance(fault, int):
            # As real servers do: the message quotes what was asked.
            self._whole(fault, json.dumps({"error": {"message": json.dumps(body)}}))
        elif not body.get("stream"):
            self._whole(200, json.dumps(self._logprobs(body)))
        elif fault == "hang":
            time.sleep(3)
        elif fault == "close":
            self.close_connection = True
            self.connection.close()
        elif fault == "die":
            threading.Thread(target=fake.stop, daemon=True).start()
            self.close_connection = True
            self.connection.close()
        else:
            self._stream(body, fault, number)

    def refusal(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        """Status and JSON of what is answered instead of a text."""
        return None

    def answer_whole(self, path: str, body: dict[str, Any]) -> str | None:
        """Answers of other paths than those of chats, as JSON; None for a path that it does not have."""
        return None

    def _stream(self, body: dict[str, Any], fault: str | None, number: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for index, chunk in enumerate(self.server_of.answer(body)):
                if fault == "cut" and index == 3:
                    return
                line = "{nonsense" if fault == "garbage" and index == 3 else json.dumps(chunk)
                self.wfile.write(f"data: {line}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server_of.go_on(number)
            return
        self.server_of.count(self.server_of.last_rounds, number)

    def _logprobs(self, body: dict[str, Any]) -> dict[str, Any]:
        """The target's own text again, with a near tie at every token."""
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in self.server_of.answer(body) if c["choices"])
        tokens = [text[: text.find(" ")] if " " in text else text]
        tokens += [" " + word for word in text.split(" ")[1:]]
        best = [{"logprob": -0.5}, {"logprob": -0.7}]
        content = [{"token": t, "bytes": list(t.encode()), "top_logprobs": best} for t in tokens]
        return {"choices": [{"message": {"content": text}, "logprobs": {"content": content}}]}

    def _locked(self) -> bool:
        key = self.server_of.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self._whole(401, "{}")
        return True

    def _whole(self, status: int, page: str) -> None:
        data = page.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
