"""A fake server with OpenAI's interface and nothing else, as gateways and desktop programs have it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fake_server import FakeServer, Handler

Refusal = tuple[int, Any]  # HTTP status and the JSON of the answer


@dataclass
class FakeOpenAI(FakeServer):
    """`names` are the models that it lists (none: it has no such page), below `root`, and `chat` is where it is asked;
    `refuse` says what it answers instead of a text. `deltas` are the events of every answer, `finish` is how it
    ends."""

    names: tuple[str, ...] = ("m",)
    root: str = ""
    chat: str = "/v1/chat/completions"
    refuse: Callable[[dict[str, Any]], Refusal | None] = lambda body: None
    deltas: tuple[dict[str, Any], ...] = ()
    finish: str = "length"
    usage: bool = True

    def handler(self) -> type[Handler]:
        return _Plain

    def pages(self) -> dict[str, Any]:
        listing = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]}
        return {f"{self.root}/v1/models": listing} if self.names else {}

    def answer(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for event in super().answer({"max_tokens": self.tokens, **body}):
            plain = {key: value for key, value in event.items() if key != "timings"}
            if "usage" in plain:
                for delta in self.deltas:
                    time.sleep(self.step_s)
                    yield {"choices": [{"delta": delta, "finish_reason": None}]}
                yield {"choices": [{"delta": {}, "finish_reason": self.finish, "index": 0}]}
                if self.usage:
                    yield plain
            elif not self.deltas and event["choices"][0]["finish_reason"] is None:
                yield plain


class _Plain(Handler):
    server_of: FakeOpenAI

    def refusal(self, path: str, body: dict[str, Any]) -> Refusal | None:
        fake = self.server_of
        return fake.refuse(body) if path == fake.root + fake.chat else (404, {"error": "not found"})
