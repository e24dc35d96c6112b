"""A real EAGLE-3 head on the embedded target. It lies beside the checkout and is no part of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "demo-eagle3"
WORKLOAD = Path(__file__).parents[1] / "workloads" / "mixed.jsonl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.full,
    pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/demo-eagle3 is not beside this checkout"),
]


def test_a_trained_head_in_loop_and_replay():
    from specbench.acceptance.metrics import count
    from specbench.backends.local.drafts import HeadDraft, load_head
    from specbench.backends.local.lean import make_lean
    from specbench.drafters import parse_draft
    from specbench.models import load_model
    from specbench.models.heads import find_head
    from specbench.models.prompts import encode
    from specbench.records import Message, Prompt, Sampling
    from specbench.verify.setup import GAMMA, Setup

    target = load_model("demo:target", dtype="float32", device="cpu")
    make_lean(target.model)
    head = load_head(find_head(str(SHARED)), target)
    assert (head.reads, head.parameters) == ((2, 15, 27), 6_859_008)
    texts = [json.loads(line)["prompt"] for line in WORKLOAD.read_text().splitlines()]
    prompts = [encode(target, Prompt("p", (Message("user", text),), ""), None) for text in sorted(texts, key=len)[:3]]
    draft = HeadDraft(parse_draft(str(SHARED)), head)
    bed = Setup(target, [draft], prompts, sampling=Sampling(), eos=frozenset({2}), max_new_tokens=24, dtype="float32")
    (draft,) = bed.drafts
    replayed, accepted = bed.replayed(draft), 0
    for i, (live, _) in enumerate(bed.with_draft(draft)):
        counts = count(live.rounds, GAMMA)
        assert live.tokens == bed.alone[i]
        assert (counts.rounds, counts.accepted) == (replayed.rounds[i], replayed.accepted[i])
        accepted += counts.accepted
    assert accepted >= 6
