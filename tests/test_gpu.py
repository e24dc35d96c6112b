"""On a real CUDA device: passes are recorded, and give what the CPU gives. `make test-gpu`; skipped elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny import GREEDY, near_copy, run, tiny_llama

from specbench.acceptance.loop import Generation, generate
from specbench.acceptance.many import generate_many
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.graphs import record_all
from specbench.backends.local.lean import LeanLayer, make_lean
from specbench.backends.local.ragged import RaggedModel
from specbench.clock import EventStopwatch, Stopwatch
from specbench.drafters.model import ManyModelDrafter, ModelDrafter
from specbench.drafters.skip import SkipDrafter, first_layers
from specbench.records import Sampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PROMPT = list(range(1, 20))
SAMPLED = Sampling(temperature=0.8, top_p=0.95)


def llama(seed: int = 1, **more: Any) -> Any:
    return tiny_llama(64, seed=seed, **(SHAPE | {"initializer_range": 0.2} | more))


def on_device(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    model = model.to("cuda", dtype)
    make_lean(model)
    assert all(isinstance(layer, LeanLayer) for layer in model.model.layers)
    return model


def pair(kind: str = "model", *, sampling: Sampling = GREEDY, eos: set[int] | None = None, gamma: int = 4) -> Any:
    """Target and chained drafter on the device, every pass recorded."""
    target = llama()
    draft = near_copy(target, noise=0.3)
    reader = CachedModel(on_device(target), 512)
    rule: dict[str, Any] = {"vocab_size": 64, "sampling": sampling, "eos": eos or set(), "chained": True}
    if kind == "skip":
        stepper = reader.sharing(first_layers(reader.model, 2))
        drafter: Any = SkipDrafter(stepper, **rule)
    else:
        stepper = CachedModel(on_device(draft), 512)
        drafter = ModelDrafter(stepper, **rule)
    assert record_all([(reader, range(1, gamma + 2), True), (stepper, (1, 2), False)])
    return reader, drafter


def on_cuda(target: Any, drafter: Any, *, sampling: Sampling = GREEDY, n: int = 60, seed: int = 0) -> Generation:
    return generate(
        target,
        drafter,
        PROMPT,
        gamma=4,
        sampling=sampling,
        eos=set(),
        max_new_tokens=n,
        generator=torch.Generator("cuda").manual_seed(seed),
        clock=EventStopwatch(partial(torch.cuda.Event, enable_timing=True)),
    )


@pytest.mark.parametrize("kind", ["model", "skip"])
def test_the_rounds_of_the_device_are_those_of_the_cpu(kind):
    target = llama()
    plain = CachedModel(target, 512)
    rule: dict[str, Any] = {"vocab_size": 64, "sampling": GREEDY, "eos": set()}
    drafter: Any = (
        SkipDrafter(plain.sharing(first_layers(target, 2)), **rule)
        if kind == "skip"
        else ModelDrafter(CachedModel(near_copy(target, noise=0.3), 512), **rule)
    )
    here = run(plain, drafter, PROMPT, max_new_tokens=60)
    there = on_cuda(*pair(kind))
    assert there.tokens == here.tokens and there.rounds == here.rounds
    assert 0 < sum(r.accepted for r in here.rounds) < sum(r.drafted for r in here.rounds)


def test_replays_are_used():
    """Reading after a recording replays it: a graph that is swapped for nonsense shows in the logits."""
    reader, _ = pair()
    with torch.inference_mode():
        reader.forward(PROMPT, keep=1)
        before = reader.forward([3], keep=1)
        reader.rewind(len(PROMPT))
        found = reader._graphs._recorded[1, 1, 1, 256]
        found.logits.zero_()
        assert reader.forward([3], keep=1).equal(before)


def test_sampled_text_is_distributed_as_the_targets():
    """First token of the second round on: over many seeds, with a draft and without, the same frequencies."""
    reader, drafter = pair(sampling=SAMPLED)
    counts = torch.zeros(2, 64)
    draws = 600
    for side, who in enumerate((None, drafter)):
        for seed in range(draws):
            out = on_cuda(reader, who, sampling=SAMPLED, n=3, seed=seed + side * draws)
            counts[side, out.tokens[2]] += 1
    seen = counts.sum(0) >= 20
    one, other = counts[:, seen]
    chi2 = float(((one - other) ** 2 / (one + other)).sum())
    assert chi2 < 2.5 * float(seen.sum()) + 10


def test_spans_by_events_add_up_to_the_wall_clock():
    reader, drafter = pair()
    on_cuda(reader, drafter)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    found = on_cuda(reader, drafter, n=200)
    end.record()
    torch.cuda.synchronize()
    times = found.times
    parts = times.prefill_s + times.draft_prefill_s + times.draft_s + times.verify_s + times.other_s
    assert parts == pytest.approx(times.total_s, rel=1e-6)
    assert times.total_s == pytest.approx(start.elapsed_time(end) / 1e3, rel=0.05)


def test_bfloat16_on_the_device_is_as_near_to_float32_as_transformers_is():
    exact = llama()
    ids = torch.tensor([PROMPT])
    theirs = llama().to("cuda", torch.bfloat16)
    with torch.inference_mode():
        truth = exact(ids).logits[0]
        other = theirs(ids.to("cuda")).logits[0].float().cpu()
        ours = CachedModel(on_device(llama(), torch.bfloat16), 64).forward(PROMPT, keep=len(PROMPT)).float().cpu()
    assert (ours - truth).norm() < 1.2 * (other - truth).norm()


def batch(*, sampling: Sampling = GREEDY) -> Any:
    """A target and a draft model for up to five rows on the device, every pass recorded."""
    target = llama()
    draft = near_copy(target, noise=0.3)
    many = RaggedModel(on_device(target), 128, 5)
    steps = RaggedModel(on_device(draft), 128, 5)
    assert record_all([(many, range(1, 6), True), (steps, (1, 2), False)])
    return many, ManyModelDrafter(steps, vocab_size=64, sampling=sampling, eos=(), chained=True)


def test_every_row_of_a_recorded_batch_is_its_prompt_alone():
    """Rows of different lengths, of which some end early: passes of four, two and one row are replayed as well."""
    prompts = [[*range(1, 4 + 3 * row)] for row in range(5)]
    alone = [run(llama(), None, prompt, max_new_tokens=40).tokens for prompt in prompts]
    eos = {alone[0][12], alone[1][25]}
    many, drafter = batch()
    for who in (None, drafter):
        rows = generate_many(
            many,
            who,
            prompts,
            gamma=4,
            sampling=GREEDY,
            eos=eos,
            max_new_tokens=40,
            generators=[torch.Generator("cuda").manual_seed(row) for row in range(5)],
            clock=Stopwatch(torch.cuda.synchronize),
        )
        assert [row.tokens for row in rows] == [
            run(llama(), None, prompt, eos=eos, max_new_tokens=40).tokens for prompt in prompts
        ]


def test_sampled_rows_of_a_batch_are_the_rows_alone():
    """One wait for all rows draws the numbers that each row draws alone."""
    many, drafter = batch(sampling=SAMPLED)
    reader, chained = pair(sampling=SAMPLED)
    prompts = [PROMPT, PROMPT[:7]]
    rows = generate_many(
        many,
        drafter,
        prompts,
        gamma=4,
        sampling=SAMPLED,
        eos=(),
        max_new_tokens=30,
        generators=[torch.Generator("cuda").manual_seed(row) for row in range(2)],
        clock=Stopwatch(torch.cuda.synchronize),
    )
    assert rows[0].tokens == on_cuda(reader, chained, sampling=SAMPLED, n=30, seed=0).tokens
