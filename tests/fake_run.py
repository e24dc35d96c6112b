"""A stored run of a made-up machine: times follow planted costs to the last digit, rounds follow planted acceptance."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from specbench.acceptance.positions import PositionWriter
from specbench.acceptance.replay import Text, as_text
from specbench.acceptance.scores import Scores
from specbench.config import RunConfig
from specbench.records import Arm, CostPoint, Policy, Times, Trial
from specbench.run_record import Machine, ModelFacts, Provenance, RunRecord
from specbench.store import StoredRun

STEP_S, PREFILL_S = 0.020, 0.0004  # the target: a token, and a token of prompt
LIMIT = 65


@dataclass
class FakeDraft:
    """Accepted with `alpha` at every position of a prompt of each category, independently."""

    alpha: dict[str, float]
    draft_s: float = 0.002
    catch_up_s: float = 0.003
    prefill_s: float = 0.00005


@dataclass
class FakeMachine:
    """`verify[n-1]` is the target over n tokens in steps, at batch 1; a batch of B multiplies a step by `batch[B]` and
    the extra of each further token by B. `more_in_rounds_s` is work that a plain step does not have, `noise` the spread
    of a trial's time; `a_a` slows the second baseline, `a_a_on` that over the prompts of a category besides."""

    verify: tuple[float, ...] = (1.0, 1.05, 1.1, 1.15, 1.2)
    other_s: float = 0.001
    more_in_rounds_s: float = 0.0
    batch: dict[int, float] = field(default_factory=lambda: {1: 1.0})
    noise: float = 0.0
    a_a: float = 1.0
    a_a_on: dict[str, float] = field(default_factory=dict)

    def verify_s(self, tokens: int, batch: int = 1) -> float:
        return STEP_S * (self.batch[batch] + (self.verify[tokens - 1] - 1) * batch)


def fake_run(
    folder: Path,
    drafts: dict[str, FakeDraft],
    *,
    machine: FakeMachine | None = None,
    prompts: dict[str, int] | None = None,
    gammas: tuple[int, ...] = (1, 2, 4),
    policy: Policy | None = None,
    seed: int = 0,
) -> StoredRun:
    """The run as read from disk; its positions really are in `folder`. `prompts` counts them by category."""
    machine, prompts = machine or FakeMachine(), prompts or {"code": 15, "chat": 15}
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    trials: list[Trial] = []
    with PositionWriter(folder) as positions:
        for number, category in enumerate(name for name, n in prompts.items() for _ in range(n)):
            prompt, prompt_tokens = f"p{number}", 50 + 10 * (number % 5)
            again = machine.a_a * machine.a_a_on.get(category, 1.0)
            for arm, slow in ((Arm("baseline"), 1.0), (Arm("baseline-again"), again)):
                trials.append(_alone(prompt, category, prompt_tokens, arm, machine, slow, rng))
            for spec, draft in drafts.items():
                accepts = [rng.random() < draft.alpha[category] for _ in range(LIMIT - 1)]
                positions.append(_positions(prompt, category, spec, accepts))
                trials += [
                    _speculative(prompt, category, prompt_tokens, spec, draft, gamma, accepts, machine, rng)
                    for gamma in gammas
                ]
    for spec, draft in drafts.items():  # what a round spends outside the models is read from warm-up trials
        trials.append(
            Trial(
                "w",
                "",
                None,
                Arm("speculative", spec, 1),
                0,
                5,
                3,
                "",
                "length",
                (1,),
                (0,),
                Times(0, 0, draft.draft_s, 0, machine.other_s, 0),
                warmup=True,
            )
        )
    run = RunRecord(
        status="finished",
        command="sweep",
        name="fake",
        config=RunConfig(draft=tuple(drafts), gamma=gammas, dtype="float32", policy=policy or Policy()),
        provenance=Provenance("fake engine", ("specbench", "sweep"), hardware=Machine(line="fake machine")),
        trials_planned=len(trials),
        drafts={spec: ModelFacts(weight_bytes=30_000_000, cache_bytes_per_token=1000) for spec in drafts},
        probe=tuple(_probe(drafts, machine, max(gammas))),
    )
    return StoredRun(folder, run, tuple(trials), torn=False)


def with_run(stored: StoredRun, **fields: Any) -> StoredRun:
    """The same with other fields of its run.json."""
    return replace(stored, run=replace(stored.run, **fields))


def with_config(stored: StoredRun, **keys: Any) -> StoredRun:
    """The same with other settings."""
    return with_run(stored, config=replace(stored.run.config, **keys))


def with_policy(stored: StoredRun, **policy: Any) -> StoredRun:
    return with_config(stored, policy=replace(stored.run.config.policy, **policy))


def with_provenance(stored: StoredRun, **origin: Any) -> StoredRun:
    return with_run(stored, provenance=replace(stored.run.provenance, **origin))


def _probe(drafts: dict[str, FakeDraft], machine: FakeMachine, widest: int) -> list[CostPoint]:
    def point(model: str | None, context: int, tokens: int, seconds: float, batch: int = 1) -> CostPoint:
        return CostPoint(model, context, tokens, seconds, seconds, seconds, 9, batch)

    points = []
    for batch in machine.batch:
        points += [point(None, 80, n, machine.verify_s(n, batch), batch) for n in range(1, widest + 2)]
        for spec, draft in drafts.items():
            points += [point(spec, 80, n, s, batch) for n, s in ((1, draft.draft_s), (2, draft.catch_up_s))]
    for tokens in (50, 90):
        points.append(point(None, 0, tokens, PREFILL_S * tokens))
        points += [point(spec, 0, tokens, draft.prefill_s * tokens) for spec, draft in drafts.items()]
    return points


def _positions(prompt: str, category: str, spec: str, accepts: list[bool]) -> Text:
    n = len(accepts)
    ones = np.ones(n, np.float32)
    accept = np.array(accepts, np.float32)
    scores = Scores(accept, accept, ones, ones, ones, np.zeros(n, bool))
    return as_text(scores, prompt_id=prompt, category=category, draft=spec, repeat=0, limit=LIMIT)


def _alone(
    prompt: str, category: str, prompt_tokens: int, arm: Arm, machine: FakeMachine, slow: float, rng: random.Random
) -> Trial:
    decode_s = (LIMIT - 1) * (STEP_S + machine.other_s) * slow * rng.lognormvariate(0, machine.noise)
    prefill_s = PREFILL_S * prompt_tokens
    times = Times(prefill_s, 0, 0, decode_s, 0, prefill_s + decode_s)
    return Trial(prompt, "", category, arm, 0, prompt_tokens, LIMIT, "", "length", (), (), times)


def _speculative(
    prompt: str,
    category: str,
    prompt_tokens: int,
    spec: str,
    draft: FakeDraft,
    gamma: int,
    accepts: list[bool],
    machine: FakeMachine,
    rng: random.Random,
) -> Trial:
    """The loop's rounds over a fixed text: catch-up after a round that accepted everything, as the loop does it."""
    drafted, accepted, draft_s, verify_s, out, behind = [], [], 0.0, 0.0, 1, False
    while out < LIMIT:
        k = min(gamma, LIMIT - out - 1)
        kept = 0
        while kept < k and accepts[out - 1 + kept]:
            kept += 1
        drafted.append(k)
        accepted.append(kept)
        draft_s += k * draft.draft_s + (draft.catch_up_s - draft.draft_s) * (behind and k > 0)
        verify_s += machine.verify_s(k + 1)
        out, behind = out + kept + 1, kept == k
    noise = rng.lognormvariate(0, machine.noise)
    parts = (draft_s * noise, verify_s * noise, len(drafted) * (machine.other_s + machine.more_in_rounds_s) * noise)
    prefill_s = PREFILL_S * prompt_tokens, draft.prefill_s * prompt_tokens
    times = Times(*prefill_s, *parts, sum(prefill_s) + sum(parts))
    arm = Arm("speculative", spec, gamma)
    rounds = tuple(drafted), tuple(accepted)
    return Trial(prompt, "", category, arm, 0, prompt_tokens, LIMIT, "", "length", *rounds, times, identical=True)
