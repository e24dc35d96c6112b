"""Runs of every sort that `specbench explain RUN` may meet, by name, and their explanations."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fake_run
from fake_served import FakeServer, fake_served
from fake_summary import explain_run, stored_of, summary_of, with_second_draft
from fake_worlds import FEW, GO, MIXED, NO_GO, WORLDS, World

from specbench.analysis.contract import BreakEven, GammaResult, Memory, Money, Summary
from specbench.analysis.summarise import summarise
from specbench.records import Divergence, Policy, Reason
from specbench.report.explain.explain import Explanation, Level, explain
from specbench.store import StoredRun, read_run

ROOT = Path(__file__).parent.parent
KEPT = ("example", "drafters", "llamacpp")
LEVELS: tuple[Level, ...] = ("manager", "engineer")
HERE = Path("reports")
SLOWER = {"share": 0.31, "slower_than": 0.95, "allowed": 0.25, "may_be_chance": False}
SLOW = (Reason("slower-prompts", SLOWER),)
IN_DOUBT = (Reason("slower-prompts", {**SLOWER, "may_be_chance": True}),)

Case = tuple[StoredRun, Summary]


def made(world: World, **changes: Any) -> Case:
    """A made-up world whose counts are large enough to give its tau to the digits shown."""

    def exact(row: GammaResult) -> GammaResult:
        rounds = 1000 * (row.rounds or 0)
        accepted = round(rounds * ((row.tokens_per_round or 1) - 1))
        counts = {"rounds": rounds, "drafted": rounds * row.gamma, "accepted": accepted, "emitted": rounds + accepted}
        return replace(row, acceptance_rate=accepted / (rounds * row.gamma), **counts)

    return with_rows((stored_of(world, HERE, **changes), summary_of(world)), exact)


def with_rows(case: Case, change: Callable[[GammaResult], GammaResult], **of_draft: Any) -> Case:
    stored, summary = case
    drafts = tuple(replace(d, gammas=tuple(map(change, d.gammas)), **of_draft) for d in summary.drafts)
    return stored, replace(summary, drafts=drafts)


def with_policy(case: Case, **policy: Any) -> Case:
    stored, summary = case
    return fake_run.with_policy(stored, **policy), summary


def in_batches(case: Case) -> Case:
    stored, summary = case
    return fake_run.with_config(stored, batch_size=4), replace(summary, batch_size=4)


def no_rounds(row: GammaResult) -> GammaResult:
    lost = {"rounds": 0, "tokens_per_round": None, "acceptance_rate": None, "round_time": None}
    return replace(row, survival=(None,) * row.gamma, drafted=0, accepted=0, **lost)


def lossy(case: Case) -> Case:
    """Two texts part from the target's own at the best gamma: one at a tie, one far from any."""
    stored, summary = case
    trials = []
    for trial in stored.trials:
        margin = {"prompt-0": 0.001, "prompt-1": 0.4}.get(trial.prompt_id)
        if trial.arm.kind == "speculative" and trial.arm.gamma == 4 and margin is not None:
            trial = replace(trial, identical=False, diverged=Divergence(3, margin))
        trials.append(trial)
    at = {"prompt_id": "prompt-1", "index": 3, "margin": 0.4, "gap": None, "precision": "bfloat16"}
    reason = Reason("not-lossless", {"prompts": 1, **at})
    return with_rows(
        (replace(stored, trials=tuple(trials)), summary),
        lambda row: replace(row, identical_prompts=row.prompts - 2) if row.gamma == 4 else row,
        verdict="NO-GO",
        reasons=(reason,),
        probability=None,
    )


def priced(case: Case) -> Case:
    stored, summary = case
    even = BreakEven(1.29, 0.3, 0.4, 0.24, 1.42, 0.42, 0.3)
    memory, money = Memory(30_000_000, 2048, 1000, 32_048_000), Money(4.20, 3.62)
    return with_rows((stored, summary), lambda row: replace(row, break_even=even), memory=memory, money=money)


def too_dear(case: Case) -> Case:
    """Rounds that no acceptance would pay for."""
    even = BreakEven(1.9, 0.9, None, 0.24, 9.3, None, None)
    return with_rows(case, lambda row: replace(row, break_even=even))


FAKES: dict[str, Callable[[], Case]] = {
    **{f"world-{name}": (lambda world=world: made(world)) for name, world in WORLDS.items()},
    "batch": lambda: in_batches(made(NO_GO)),
    "interrupted": lambda: made(GO, status="interrupted", missing=70),
    "several-unchosen": lambda: (stored_of(GO, HERE), with_second_draft(summary_of(GO))),
    "no-rounds": lambda: with_rows(made(FEW), no_rounds),
    "nothing-accepted": lambda: with_rows(
        made(NO_GO),
        lambda row: replace(row, accepted=0, acceptance_rate=0.0, tokens_per_round=1.0, survival=(0.0,) * row.gamma),
    ),
    "lossy": lambda: lossy(made(GO)),
    "slow-gate": lambda: with_rows(made(GO), lambda row: row, verdict="NO-GO", reasons=SLOW),
    "slow-gate-in-doubt": lambda: with_rows(
        made(GO), lambda row: row, verdict="UNCLEAR", reasons=IN_DOUBT, slower_share=0.31
    ),
    "slow-gate-open": lambda: with_rows(made(MIXED), lambda row: row, verdict="NO-GO", reasons=SLOW),
    "memory-limit": lambda: with_policy(made(GO), max_added_gb=0.5),
    "too-dear": lambda: too_dear(made(NO_GO)),
    "priced": lambda: priced(made(MIXED)),
    "verifying-dear": lambda: made(replace(GO, verify_extra=0.3)),
    "rounds-cheap": lambda: made(replace(GO, draft_step_s=0.0001, verify_extra=0.001)),
    "acceptance-poor": lambda: made(replace(NO_GO, alpha=0.05)),
    "program-slow": lambda: made(replace(GO, other_s=0.02)),
}
SERVED: dict[str, tuple[FakeServer, dict[str, Any]]] = {
    "rounds": (FakeServer(), {}),
    "totals": (FakeServer(tells="totals"), {"concurrency": (1, 4)}),
    "drafts": (FakeServer(tells="drafts"), {}),
    "nothing": (FakeServer(tells="nothing"), {}),
    "slow": (FakeServer(round_s=0.03), {}),
    "few": (FakeServer(), {"prompts": 6}),
    "idle": (FakeServer(drafts=lambda gamma: 0), {}),
    "mix": (FakeServer(), {"policy": Policy(mix={"code": 0.9, "chat": 0.1}, price_per_hour=2.0)}),
    "e2e": (FakeServer(), {"policy": Policy(metric="e2e"), "gammas": (2,)}),
    "busy": (FakeServer(slower={4: 1.5}, spec_slower={4: 4.0}), {"concurrency": (1, 4)}),
    "open-loop": (FakeServer(), {"rate": (2.0,)}),
    "sampling": (FakeServer(), {"temperature": 0.7, "top_p": 0.9}),
}

# "" is the subject without a run.
CASES = ["", *(f"kept:{name}" for name in KEPT), *FAKES, *(f"served:{name}" for name in SERVED)]


@cache
def case(name: str) -> Case:
    """`kept:example`, `served:rounds` or one of FAKES."""
    kind, _, rest = name.partition(":")
    if kind == "kept":
        stored = read_run(ROOT / "tests/runs" / rest)
    elif kind == "served":
        server, options = SERVED[rest]
        stored = fake_served(_folder() / rest, server, **options)
    else:
        return FAKES[name]()
    return stored, summarise(stored)


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


@cache
def explained(name: str, level: Level) -> Explanation:
    return explain_run(*case(name), level) if name else explain(level)


def body(text: str) -> str:
    """Without its Words."""
    return text.partition("\n## Words\n")[0]


def unlinked(text: str) -> str:
    return re.sub(r"\[([^\]\n]+)\]\(#[\w-]+\)", r"\1", text)


def manager(name: str) -> str:
    """What a manager reads of it."""
    return unlinked(explained(name, "manager").text)


def engineer(name: str) -> str:
    return unlinked(explained(name, "engineer").text)
