"""A fake llama.cpp server that tells token ids: as the target it writes a planted text, as a draft it would go on
with the same text but for planted slips."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fake_server import FakeServer, Handler

PROMPT_IDS = [5, 6, 7, 8]
END = 2


@dataclass
class FakeScorer(FakeServer):
    """`text` is written after every prompt, token ids; asked what follows, it says the text's next token, except at the
    output places in `slips`, where it says another. `shift` moves all its token ids: another vocabulary."""

    text: tuple[int, ...] = ()
    slips: frozenset[int] = frozenset()
    shift: int = 0

    def handler(self) -> type[Handler]:
        return _Scoring

    def written(self, limit: int) -> dict[str, Any]:
        tokens = list(self.text[:limit])
        return {"tokens": tokens, "stop_type": "eos" if tokens[-1] == END else "limit", "timings": {}}

    def step(self, ids: list[int]) -> dict[str, Any]:
        place = len(ids) - len(PROMPT_IDS)
        token = self.text[place] + (100 if place in self.slips else 0)
        probabilities = [{"top_logprobs": [{"id": token, "logprob": -0.25}, {"id": 1, "logprob": -1.75}]}]
        return {"tokens_evaluated": len(ids), "completion_probabilities": probabilities, "timings": {"prompt_n": 1}}


class _Scoring(Handler):
    server_of: FakeScorer

    def answer_whole(self, path: str, body: dict[str, Any]) -> str | None:
        fake = self.server_of
        if path == "/apply-template":
            return json.dumps({"prompt": body["messages"][-1]["content"]})
        if path == "/tokenize":
            probe = body["content"].startswith(("The quick", "def f", "na", "<|im"))
            ids = [ord(c) + fake.shift for c in body["content"]] if probe else PROMPT_IDS
            return json.dumps({"tokens": ids})
        if path == "/completion":
            asked = fake.step(body["prompt"]) if body.get("n_probs") else fake.written(body["n_predict"])
            return json.dumps(asked)
        return None
