"""A run folder of a made-up machine, as large as asked for, and a made-up prompt file: what the tool is timed on.

Every line is one that a run writes, so reading checks all that it checks of a real run. Acceptance is independent at
every position, times are the sum of planted costs with some noise. No model takes part.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np

from specbench.acceptance.positions import PositionWriter
from specbench.acceptance.replay import Text, as_text
from specbench.acceptance.scores import Scores
from specbench.config import RunConfig
from specbench.records import Arm, CostPoint, Times, Trial
from specbench.run_record import Machine, ModelFacts, Provenance, RunRecord, WorkloadFacts
from specbench.store import record_json

CATEGORIES = ("chat", "code", "extract", "maths", "qa", "rewrite", "summarise", "translate")
TOKENS = 65  # of every text, the first from prefill
PROMPT_TOKENS = 60
# Seconds: a step of the target, what each further token verified and each drafted one adds, and the rest of a round.
STEP_S, VERIFY_S, DRAFT_S, OTHER_S = 0.020, 0.001, 0.002, 0.001
PREFILL_S = 0.024
NOISE = 0.02
SENTENCE = "the parcel that was sent on monday has not come yet so please look where it is and write to me today"


def fake_folder(folder: Path, prompts: int, gammas: Sequence[int], drafts: int = 1) -> Path:
    """Write a finished run of `prompts` prompts, each in two baselines and in every gamma of every draft."""
    rng = random.Random(0)
    specs = [f"fake-draft-{number}" for number in range(1, drafts + 1)]
    folder.mkdir(parents=True)
    trials = 0
    with PositionWriter(folder) as positions, (folder / "trials.jsonl").open("w") as file:
        for spec in specs:  # from a warm-up is read what a round spends outside the models
            times = Times(0.0, 0.0, DRAFT_S, STEP_S, OTHER_S, DRAFT_S + STEP_S + OTHER_S)
            warm = _trial("warm-up", None, Arm("speculative", spec, 1), ((1,), (0,)), times, warmup=True)
            file.write(json.dumps(asdict(warm)) + "\n")
        for number in range(prompts):
            prompt, category = f"p{number}", CATEGORIES[number % len(CATEGORIES)]
            done = [
                _trial(prompt, category, Arm(kind), ((), ()), _alone(rng)) for kind in ("baseline", "baseline-again")
            ]
            for place, spec in enumerate(specs):
                accepts = [rng.random() < 0.7 - 0.1 * place for _ in range(TOKENS - 1)]
                positions.append(_positions(prompt, category, spec, accepts))
                for gamma in gammas:
                    rounds = walked(accepts, gamma)
                    done.append(
                        _trial(prompt, category, Arm("speculative", spec, gamma), rounds, _drafted(rounds, rng))
                    )
            file.writelines(json.dumps(asdict(trial)) + "\n" for trial in done)
            trials += len(done)
    (folder / "run.json").write_bytes(record_json(_record(specs, gammas, trials, prompts)))
    return folder


def fake_prompts(path: Path, prompts: int, words: int = 60) -> Path:
    """Write a JSONL file of `prompts` prompts of about `words` words, no two alike, in eight categories."""
    rng, known = random.Random(0), SENTENCE.split()
    with path.open("w") as file:
        for number in range(prompts):
            text = " ".join(rng.choices(known, k=rng.randint(words // 2, words * 3 // 2)))
            row = {
                "id": f"t-{number}",
                "category": CATEGORIES[number % len(CATEGORIES)],
                "prompt": f"{number}: {text}.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def walked(accepts: Sequence[bool], gamma: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Drafted and accepted tokens of each round of the loop over a fixed text."""
    drafted, accepted, out = [], [], 1
    while out < TOKENS:
        k = min(gamma, TOKENS - out - 1)
        kept = next((j for j in range(k) if not accepts[out - 1 + j]), k)
        drafted.append(k)
        accepted.append(kept)
        out += kept + 1
    return tuple(drafted), tuple(accepted)


def _alone(rng: random.Random) -> Times:
    verify_s, other_s = ((TOKENS - 1) * each * rng.lognormvariate(0, NOISE) for each in (STEP_S, OTHER_S))
    return Times(PREFILL_S, 0.0, 0.0, verify_s, other_s, PREFILL_S + verify_s + other_s)


def _drafted(rounds: tuple[tuple[int, ...], tuple[int, ...]], rng: random.Random) -> Times:
    count, drafted, noise = len(rounds[0]), sum(rounds[0]), rng.lognormvariate(0, NOISE)
    draft_s, verify_s = drafted * DRAFT_S * noise, (count * STEP_S + drafted * VERIFY_S) * noise
    other_s = count * OTHER_S * noise
    return Times(PREFILL_S, 0.003, draft_s, verify_s, other_s, PREFILL_S + 0.003 + draft_s + verify_s + other_s)


def _trial(
    prompt: str,
    category: str | None,
    arm: Arm,
    rounds: tuple[tuple[int, ...], tuple[int, ...]],
    times: Times,
    warmup: bool = False,
) -> Trial:
    digest = sha256(prompt.encode()).hexdigest()  # a text of its own for each prompt, the same in every arm
    tokens = 3 if warmup else TOKENS
    return Trial(
        prompt, digest, category, arm, 0, PROMPT_TOKENS, tokens, digest, "length", *rounds, times,
        load_before=1.0, load_after=1.0, other_cores=0.0, warmup=warmup,
    )  # fmt: skip


def _positions(prompt: str, category: str, spec: str, accepts: Sequence[bool]) -> Text:
    n = len(accepts)
    accept, some = np.array(accepts, np.float32), np.full(n, 0.5, np.float32)
    unknown = np.full(n, np.nan, np.float32)  # as under greedy
    scores = Scores(accept, accept, some, unknown, -some, np.zeros(n, bool))
    return as_text(scores, prompt_id=prompt, category=category, draft=spec, repeat=0, limit=TOKENS)


def _record(specs: Sequence[str], gammas: Sequence[int], trials: int, prompts: int) -> RunRecord:
    config = RunConfig(
        target="fake-target", draft=tuple(specs), gamma=tuple(gammas), dtype="float32", max_new_tokens=TOKENS,
        temperature=0.0,
    )  # fmt: skip
    widest = max(gammas) + 1
    points = [_point(None, 80, n, STEP_S + VERIFY_S * (n - 1)) for n in range(1, widest + 1)]
    points += [_point(None, 0, n, PREFILL_S) for n in (50, 90)]
    for spec in specs:
        points += [_point(spec, 80, n, DRAFT_S) for n in (1, 2)] + [_point(spec, 0, n, 0.003) for n in (50, 90)]
    provenance = Provenance(
        "fake engine", ("specbench", "sweep"), "2026-01-01T00:00:00+00:00", hardware=Machine(line="fake machine"),
        finished="2026-01-01T01:00:00+00:00",
    )  # fmt: skip
    drafts = {spec: ModelFacts(name=spec, weight_bytes=30_000_000, cache_bytes_per_token=1000) for spec in specs}
    return RunRecord(
        status="finished", command="sweep", name="fake", config=config, fingerprint="fake", provenance=provenance,
        target=ModelFacts(name="fake-target"), drafts=drafts, trials_planned=trials, probe=tuple(points),
        workload=WorkloadFacts(source="fake", prompts_available=prompts, prompts_used=prompts),
    )  # fmt: skip


def _point(model: str | None, context: int, tokens: int, seconds: float) -> CostPoint:
    return CostPoint(model, context, tokens, seconds, seconds, seconds, 9)
