"""Faults that would spoil a measurement and say nothing, each planted and each named; and its healthy twin, in which
the same word must not appear."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import ACCEPT_S, DRAFT_S, LAUNCH_S, READ_S, STEP_S, FakeDevice, quick_probe
from fake_run import FakeDraft, FakeMachine, fake_run
from fake_served import FakeServer, fake_served
from test_run import FakeObserver, config_for

from specbench.acceptance import loop
from specbench.analysis.summarise import summarise
from specbench.backends.local import session
from specbench.backends.local.cached import CachedModel
from specbench.drafters.model import ModelDrafter
from specbench.errors import ModelError, StoreError
from specbench.records import Policy
from specbench.run.session import run
from specbench.store import StoredRun, find_runs, read_run


@dataclass
class World:
    """Where a fault is planted."""

    lab: Any
    out: Path
    patch: pytest.MonkeyPatch

    def run(self, gammas: tuple[int, ...] = (3,), **flags: Any) -> StoredRun:
        """A whole run on tiny models."""
        config = config_for(self.lab, self.out, **({"probe_batch_sizes": "1", "limit": 10} | flags))
        return read_run(run(config, "sweep", gammas, FakeObserver()))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_probe(monkeypatch)


def named(stored: StoredRun) -> set[str]:
    """Every word with which the summary of a run says that something is wrong."""
    summary = summarise(stored)
    lossy = any(reason.startswith("not lossless") for draft in summary.drafts for reason in draft.reasons)
    return {warning.code for warning in summary.warnings} | ({"not-lossless"} if lossy else set())


def prompts_of(world: World, prompts: list[str]) -> str:
    path = world.out / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    return str(path)


SUBJECTS = ("tides", "bread", "glaciers", "chess", "bees", "rust", "maps", "violins", "yeast", "kites", "salt", "moss")
SENTENCES = [f"Please write a short note about {what}, and say why it matters to people at sea." for what in SUBJECTS]


def random_tokens(world: World, planted: bool) -> set[str]:
    draw = random.Random(0)
    noise = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=400)) for _ in SENTENCES]
    real = [f"{number}. {' '.join(SENTENCES[:5])}" for number in range(12)]
    return named(world.run((1,), workload=prompts_of(world, noise if planted else real), max_new_tokens=4))


def repeated_prompts(world: World, planted: bool) -> set[str]:
    prompts = SENTENCES[:6] * 2 if planted else SENTENCES
    return named(world.run((1,), workload=prompts_of(world, prompts), max_new_tokens=4))


def one_long_prompt(world: World, planted: bool) -> set[str]:
    stored = fake_run(world.out / "run", {"m": FakeDraft({"code": 0.8, "chat": 0.8})})
    trials = tuple(
        replace(t, times=replace(t.times, verify_s=t.times.verify_s * 20, total_s=t.times.total_s * 20))
        if planted and t.prompt_id == "p3"
        else t
        for t in stored.trials
    )
    return named(replace(stored, trials=trials))


def effect_below_the_floor(world: World, planted: bool) -> set[str]:
    drafts = {"m": FakeDraft({"code": 0.8, "chat": 0.8})}
    machine = FakeMachine(noise=0.05)
    speedup = summarise(fake_run(world.out / "first", drafts, machine=machine, gammas=(2,))).drafts[0].speedup
    policy = Policy(min_speedup=speedup + 0.005 if planted else speedup / 1.3)
    return named(fake_run(world.out / "run", drafts, machine=machine, gammas=(2,), policy=policy))


def busy_machine(world: World, planted: bool) -> set[str]:
    class FakeMeter:
        def start(self) -> None: ...

        def stop(self) -> float:
            return 2.0 if planted else 0.1

    world.patch.setattr(session, "OthersMeter", FakeMeter)
    asked = replace(config_for(world.lab, world.out, probe_batch_sizes="1", max_new_tokens=4), max_other_cores=0.5)
    return named(read_run(run(asked, "sweep", (1,), FakeObserver())))


def loop_drafts_fewer(world: World, planted: bool) -> set[str]:
    propose = ModelDrafter.propose
    less = 1 if planted else 0
    world.patch.setattr(ModelDrafter, "propose", lambda self, x, k, g: propose(self, x, max(1, k - less), g))
    return named(world.run())


def loop_drafts_more(world: World, planted: bool) -> set[str]:
    propose = ModelDrafter.propose
    more = 1 if planted else 0
    world.patch.setattr(ModelDrafter, "propose", lambda self, x, k, g: propose(self, x, k + more * (k > 1), g))
    return named(world.run((2,)))


def server_drafts_fewer(world: World, planted: bool) -> set[str]:
    server = FakeServer(drafts=(lambda gamma: gamma - 1) if planted else (lambda gamma: gamma))
    return named(fake_served(world.out / "run", server))


def lossy_loop(world: World, planted: bool) -> set[str]:
    honest, calls = loop.accept_greedy, count(1)

    def accept(logits: Any, drafts: list[int]) -> tuple[int, int]:
        accepted, token = honest(logits, drafts)
        # one wrong token in a thousand is waved through
        if planted and accepted < len(drafts) and next(calls) % 1000 == 0:
            return accepted + 1, int(logits[accepted + 1].argmax())
        return accepted, token

    world.patch.setattr(loop, "accept_greedy", accept)
    return named(world.run((1,), draft=[str(world.lab.far)], max_new_tokens=120 if planted else 8))


def more_than_rounding(world: World, planted: bool) -> set[str]:
    """In bfloat16. The healthy twin is off by a unit in the last place, which flips near-ties: that is numerics."""
    forward, noise = CachedModel.forward_rows, torch.Generator().manual_seed(0)
    off = 0.2 if planted else 2.0**-7

    def verified_otherwise(reader: CachedModel, rows: Any, keep: int) -> torch.Tensor:
        logits = forward(reader, rows, keep)
        if keep < 2:
            return logits
        return logits * (1 + off * (2 * torch.rand(logits.shape, generator=noise) - 1)).to(logits.dtype)

    world.patch.setattr(CachedModel, "forward_rows", verified_otherwise)
    if planted:  # it would be refused before the run
        with pytest.raises(ModelError, match="gives other tokens here than in transformers' generate"):
            world.run(dtype="bfloat16", max_new_tokens=16)
        world.patch.setattr("specbench.backends.local.local.LocalEngine.check_reference", lambda *_, **__: [])
    stored = world.run(dtype="bfloat16", max_new_tokens=64)
    margins = [trial.diverged.margin for trial in stored.trials if trial.diverged is not None]
    assert max(margins, default=0) > 0, "nothing but exact ties was flipped"
    return named(stored)


def handicapped(**fault: Any) -> Callable[[World, bool], set[str]]:
    """The target alone is slowed down, the target with a draft is not; on a device whose clock is the test's."""

    def plant(world: World, planted: bool) -> set[str]:
        device = FakeDevice(**(fault if planted else {}))
        device.install(world.patch)
        return named(world.run(max_new_tokens=8))

    return plant


def clock_without_sync(world: World, planted: bool) -> set[str]:
    FakeDevice().install(world.patch, synced=not planted)
    return named(world.run(max_new_tokens=8))


def other_versions(world: World, planted: bool) -> set[str]:
    """Two sessions of one run; between them a library is replaced."""
    config = config_for(world.lab, world.out, limit=2, probe_batch_sizes="1")
    with pytest.raises(KeyboardInterrupt):
        run(config, "sweep", (1,), FakeObserver(interrupt_after=1))
    (folder,) = find_runs(world.out)
    record = json.loads((folder / "run.json").read_text())
    if planted:
        record["provenance"]["versions"]["transformers"] = "5.0"
        (folder / "run.json").write_text(json.dumps(record))
    try:
        return named(read_run(run(config, "sweep", (1,), FakeObserver())))
    except StoreError as refused:
        assert "version" in refused.what
        return {"refused"}


slow_steps = handicapped(slow=1.4, reading=False)
slow_reading = handicapped(slow=1.4, steps=False)
fewer_threads = handicapped(slow=1.4)
needless_work = handicapped(idle_s=0.005)

FAULTS: list[tuple[str, Callable[[World, bool], set[str]]]] = [
    ("random-prompts", random_tokens),
    ("repeated-prompts", repeated_prompts),
    ("dominant-prompt", one_long_prompt),
    ("below-noise-floor", effect_below_the_floor),
    ("busy-machine", busy_machine),
    ("gamma-not-honoured", loop_drafts_fewer),
    ("gamma-not-honoured", loop_drafts_more),
    ("gamma-not-honoured", server_drafts_fewer),
    ("not-lossless", lossy_loop),
    ("not-lossless", more_than_rounding),
    ("slow-baseline", slow_steps),
    ("slow-baseline", slow_reading),
    ("slow-baseline", fewer_threads),
    ("slow-baseline", needless_work),
    ("unsynchronised-clock", clock_without_sync),
    ("refused", other_versions),
]


# Each costs whole runs; its code is found by another fault of FAULTS, or by a test of its own.
LONG = (random_tokens, repeated_prompts, loop_drafts_fewer, loop_drafts_more, lossy_loop, more_than_rounding)
LONG += (slow_reading, fewer_threads, needless_work, other_versions)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        pytest.param(code, fault, id=f"{code}-{number}", marks=[pytest.mark.full] if fault in LONG else [])
        for number, (code, fault) in enumerate(FAULTS)
    ],
)
def test_a_planted_fault_is_named_and_its_healthy_twin_is_not(code, fault, lab, tmp_path, monkeypatch):
    for planted in (False, True):
        out = tmp_path / str(planted)
        out.mkdir()
        with monkeypatch.context() as patch:
            found = fault(World(lab, out, patch), planted)
        assert (code in found) == planted, found


@pytest.mark.full
def test_a_machine_that_is_slower_than_when_it_was_probed_is_no_handicap(lab, tmp_path, monkeypatch):
    FakeDevice().install(monkeypatch)
    stored = World(lab, tmp_path, monkeypatch).run()
    slower = [
        replace(t, times=replace(t.times, **{name: 2 * seconds for name, seconds in asdict(t.times).items()}))
        for t in stored.trials
    ]
    assert not named(replace(stored, trials=tuple(slower))) & {"slow-baseline", "unsynchronised-clock"}


@pytest.mark.full
def test_spans_hold_the_work_of_a_device_that_runs_behind(lab, tmp_path, monkeypatch):
    FakeDevice().install(monkeypatch)
    stored = World(lab, tmp_path, monkeypatch).run((1,))
    for trial in (t for t in stored.trials if not t.warmup):
        times, passes = trial.times, len(trial.drafted) if trial.arm.draft else trial.decode_tokens
        read = READ_S * trial.prompt_tokens + LAUNCH_S
        assert times.prefill_s == pytest.approx(read + ACCEPT_S, rel=1e-6)
        wide = sum(0.001 * drafted for drafted in trial.drafted)
        assert times.verify_s == pytest.approx(passes * (STEP_S + LAUNCH_S) + wide, rel=1e-6)
        assert times.other_s == pytest.approx(passes * ACCEPT_S, rel=1e-6)
        assert (times.draft_s >= sum(trial.drafted) * DRAFT_S) == (times.draft_s > 0 or not sum(trial.drafted))
