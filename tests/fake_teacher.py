"""A fake vLLM that reads token ids and tells how likely a planted model finds each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fake_server import FakeServer, Handler


@dataclass
class FakeTeacher(FakeServer):
    """`logprobs` of token ids [n] are [n, V], of what follows each; `tokenizer` cuts texts, all ids moved by
    `shift`. With `tells_own` off it names the likeliest token alone, unless that is the text's own."""

    logprobs: Callable[[list[int]], torch.Tensor] = torch.zeros
    tokenizer: Any = None
    shift: int = 0
    tells_own: bool = True
    model: str = "taught"

    def handler(self) -> type[Handler]:
        return _Teaching

    def pages(self) -> dict[str, Any]:
        return {
            "/v1/models": {"data": [{"id": self.model}], "object": "list"},
            "/version": {"version": "0-fake"},
            "/metrics": "",
        }

    def places(self, ids: list[int]) -> list[dict[str, Any] | None]:
        after, places = self.logprobs(ids), [None]
        for place, token in enumerate(ids[1:]):
            row = after[place]
            top = int(row.argmax())
            found = {str(token): {"logprob": float(row[token]) if self.tells_own else None, "rank": 2}}
            found[str(top)] = {"logprob": float(row[top]), "rank": 1}
            places.append(found)
        return places


class _Teaching(Handler):
    server_of: FakeTeacher

    def answer_whole(self, path: str, body: dict[str, Any]) -> str | None:
        fake = self.server_of
        if path == "/tokenize":
            ids = fake.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            return json.dumps({"tokens": [token + fake.shift for token in ids]})
        if path == "/v1/completions":
            return json.dumps({"choices": [{"prompt_logprobs": fake.places(body["prompt"])}]})
        return None
