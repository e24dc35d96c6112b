"""A stored run on a made-up server: times, rounds and counters follow planted truths, written and read as real ones."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np

from specbench.config import RunConfig
from specbench.records import Arm, Counters, Load, Policy, ServerStats, Times, Trial, Window
from specbench.run_record import Machine, Provenance, RunRecord, ServedBy, State, WorkloadFacts
from specbench.store import RunWriter, StoredRun, read_run

LIMIT, PREFILL_S = 65, 0.050
SPEC = "demo:draft"


@dataclass
class FakeServer:
    """`step_s` is a token of the target alone, `round_s` a round at any gamma; at `concurrency` c both are `slower[c]`
    times as long for the target alone and `spec_slower[c]` times for the draft. A draft is accepted with `alpha` after
    its prefix. With `read_s`, what a prompt adds to a turn that it is read in, several clients share turns as a real
    server's do, else every text is alone with its slower rounds. `tells` is what the server says of rounds; `clock` its
    own decoding seconds over the client's."""

    step_s: float = 0.010
    round_s: float = 0.013
    alpha: float = 0.6
    tells: str = "rounds"  # rounds, survived, totals, drafts, nothing
    slower: dict[int, float] = field(default_factory=dict)
    spec_slower: dict[int, float] = field(default_factory=dict)
    read_s: float | None = None
    clock: float = 0.99
    noise: float = 0.01
    cached: int = 0
    drafts: Callable[[int], int] = staticmethod(lambda gamma: gamma)  # noqa: RUF009
    miscount: dict[str, int] = field(default_factory=dict)
    counts: bool = True
    adapter: str = "llama.cpp"
    sha: str = "prompt"


def fake_served(
    folder: Path,
    server: FakeServer | None = None,
    *,
    gammas: tuple[int, ...] = (2, 4),
    concurrency: tuple[int, ...] = (1,),
    rate: tuple[float, ...] = (),
    prompts: int = 24,
    policy: Policy | None = None,
    seed: int = 0,
    noise_seed: int = 0,
    **config: object,
) -> StoredRun:
    """The run as read back from disk, finished. `seed` draws what is accepted, `noise_seed` how long things took."""
    server = server or FakeServer()
    loads = [*(Load(c) for c in concurrency), *(Load(1, r) for r in rate)]
    folder.mkdir(parents=True)
    kept = {"draft": (SPEC,), "gamma": gammas, "policy": policy or Policy(), "max_new_tokens": LIMIT}
    asked = replace(RunConfig(), **kept | config)
    stored = replace(asked, engine="llamacpp", concurrency=concurrency, rate=rate)
    # What is lost if the machine dies is no question here.
    with mock.patch.object(os, "fsync"), RunWriter(folder, _run(server, stored, gammas)) as writer:
        rng, noise = random.Random(seed), random.Random(f"noise {noise_seed}")
        # Rounds belong to the text, so every load has the same.
        accepts = [[rng.random() < server.alpha for _ in range(LIMIT)] for _ in range(prompts)]
        number = 0
        for load in loads:
            arms = [Arm("baseline", load=load), Arm("baseline-again", load=load)]
            arms += [Arm("speculative", SPEC, gamma, load) for gamma in gammas]
            for arm in arms:
                trials = [_trial(server, arm, p, accepts[p], number, noise) for p in range(prompts)]
                if load.concurrency > 1 and server.read_s is not None:
                    trials = _shared(server, arm, trials)
                for trial in trials:
                    writer.append(trial)
                alone = load.concurrency == 1
                wall_s = sum(trial.times.total_s for trial in trials) / load.concurrency
                counters = _counters(server, arm, trials, accepts) if server.counts else None
                writer.append_stretch(Window(number, arm, len(trials), wall_s, counters, alone))
                number += 1
        writer.update(status="finished", trials_planned=number * prompts)
    return read_run(folder)


def _run(server: FakeServer, config: RunConfig, gammas: tuple[int, ...]) -> RunRecord:
    line = f"{server.adapter} b11549 over HTTP, started by specbench"
    settings = {"baseline": State("demo", "b11549", False)}
    for gamma in gammas:
        settings[f"{SPEC} gamma {gamma}"] = State("demo", speculating=True, method="draft", gamma=gamma)
    return RunRecord(
        status="started",
        command="sweep",
        name="served",
        config=config,
        provenance=Provenance(
            line,
            ("specbench", "sweep", "--engine", "llamacpp"),
            hardware=Machine(line="fake machine"),
            precision="Q4_1",
        ),
        served=ServedBy(
            adapter=server.adapter,
            launch="configs/engines/demo.yaml",
            sources={"drafted": "timings.draft_n", "told.decode_s": "timings.predicted_ms"},
            settings=settings,
        ),
        workload=WorkloadFacts("w.jsonl", "ab" * 32, 24, 24),
    )


def _trial(server: FakeServer, arm: Arm, p: int, accepts: list[bool], stretch: int, rng: random.Random) -> Trial:
    noise = rng.lognormvariate(0, server.noise)
    drafted: list[int] = []
    accepted: list[int] = []
    slower = server.slower.get(arm.load.concurrency, 1.0)
    decode_s = (LIMIT - 1) * server.step_s * slower
    if arm.kind == "speculative":
        assert arm.gamma is not None
        drafted, accepted = rounds(accepts, server.drafts(arm.gamma))
        decode_s = len(drafted) * server.round_s * server.spec_slower.get(arm.load.concurrency, 1.0)
    decode_s *= noise
    told = ServerStats(prefill_s=PREFILL_S, decode_s=decode_s * server.clock, cached_tokens=server.cached)
    lists = arm.kind == "speculative" and server.tells == "rounds"
    if arm.kind == "speculative" and server.tells != "nothing":
        told = replace(told, drafted=sum(drafted), accepted=sum(accepted))
        if server.tells in ("totals", "survived"):
            told = replace(told, rounds=len(drafted))
        if server.tells == "survived":
            told = replace(told, survived=tuple(sum(a > j for a in accepted) for j in range(max(drafted))))
    return Trial(
        f"p{p}", f"{server.sha}{p}", "code" if p % 2 else "chat", arm, 0, 50, LIMIT, f"text {p}", "length",
        tuple(drafted) if lists else (), tuple(accepted) if lists else (),
        Times(PREFILL_S * slower, None, None, None, None, PREFILL_S * slower + decode_s),
        told=told, begun_s=0.0, stretch=stretch,
    )  # fmt: skip


def _shared(server: FakeServer, arm: Arm, trials: list[Trial]) -> list[Trial]:
    """Their decoding where the clients share turns."""
    slower, one_s = (server.slower, server.step_s) if arm.draft is None else (server.spec_slower, server.round_s)
    turn_s = {count: one_s * by for count, by in slower.items()}
    turns = [len(t.drafted) or t.output_tokens - 1 for t in trials]
    found = turn_by_turn(turns, arm.load.concurrency, turn_s, [server.read_s or 0.0] * len(turns))
    times = [replace(t.times, total_s=t.times.prefill_s + each) for t, each in zip(trials, found, strict=True)]
    return [replace(t, times=each, begun_s=float(n)) for n, (t, each) in enumerate(zip(trials, times, strict=True))]


def turn_by_turn(turns: list[int], clients: int, turn_s: dict[int, float], read_s: list[float]) -> list[float]:
    """Seconds of decoding of each text, in the order of their asking, on a server that reads what came during a turn
    within the next one, and what comes to it idle at once, one before the others. Clients that have nothing left to ask
    ask again until all is answered."""
    queue, found = list(range(len(turns))), [0.0] * len(turns)
    slots = [{"job": queue.pop(0), "at": "came", "counts": True, "again": c} for c in range(clients)]
    clock, left = 0.0, len(turns)
    while left:
        if all(s["at"] == "came" for s in slots):
            slots[0]["at"] = "due"
        due = [s for s in slots if s["at"] == "due"]
        writing = [s for s in slots if s["at"] == "writes"]
        for slot in slots:
            slot["at"] = "due" if slot["at"] == "came" else slot["at"]
        clock += sum(read_s[s["job"]] for s in due)
        clock += float(np.interp(len(writing), list(turn_s), list(turn_s.values()))) if writing else 0.0
        for slot in writing:
            slot["left"] -= 1
            if not slot["left"]:
                if slot["counts"]:
                    found[slot["job"]] = clock - slot["first"]
                    left -= 1
                slot["at"], slot["counts"] = "came", bool(queue)
                slot["job"] = queue.pop(0) if queue else slot["again"] % len(turns)
                slot["again"] += 0 if slot["counts"] else clients
        for slot in due:
            slot.update(at="writes", left=turns[slot["job"]], first=clock)
    return found


def rounds(accepts: list[bool], gamma: int) -> tuple[list[int], list[int]]:
    """Always `gamma` drafts, as a server does that cuts what is too much; the text is cut where it is full."""
    drafted, accepted, out = [], [], 1
    while out < LIMIT:
        kept = 0
        while kept < min(gamma, LIMIT - out - 1) and accepts[out - 1 + kept]:
            kept += 1
        drafted.append(gamma)
        accepted.append(kept)
        out += kept + 1
    return drafted, accepted


def _counters(server: FakeServer, arm: Arm, trials: list[Trial], accepts: list[list[bool]]) -> Counters:
    spec = arm.kind == "speculative"
    listed = [rounds(each, server.drafts(arm.gamma or 0)) for each in accepts] if spec else []
    true = {
        "tokens": sum(trial.output_tokens for trial in trials),
        "drafted": sum(sum(d) for d, _ in listed),
        "accepted": sum(sum(a) for _, a in listed),
        "rounds": sum(len(d) for d, _ in listed),
    }
    off = server.miscount if spec else {}
    return Counters(**{name: value + off.get(name, 0) for name, value in true.items()})
