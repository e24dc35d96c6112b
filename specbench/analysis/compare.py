"""Two runs of the same prompts side by side: where speedups differ, and which term of them moved.

Speedups are of decoding. Prompts are paired by the hash of their content, so that what is particular to a prompt drops
out of the ratio; a traffic mix is left aside.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from specbench.analysis.contract import Summary
from specbench.analysis.frame import DraftView, Steady, by_arm, kept_arms
from specbench.analysis.summarise import summarise
from specbench.decision.interval import (
    EQUIVALENT,
    Difference,
    Paired,
    difference,
    ends,
    speedup_interval,
    totals_interval,
)
from specbench.errors import StoreError
from specbench.models.prompts import changed_encoding
from specbench.records import Call, Finding, Interval, Reason
from specbench.run_record import RunRecord
from specbench.store import StoredRun
from specbench.text import template_kwargs

SCHEMA = 3

Moved = Literal["acceptance", "cost of a round"]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One of the two runs. `name` is how the words call it; `load` that of a server's verdict."""

    run: str
    name: str
    engine: str
    hardware: str
    target: str
    load: str | None


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """One arm in one run, over the prompts that both have. `round_s` is a round in seconds, `round_steps` in steps of
    the target alone in the same run; `drafted` are tokens."""

    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    baseline_tokens_per_s: float
    tokens_per_s: float
    tokens_per_round: float | None
    round_s: float | None
    round_steps: float | None
    drafted: int | None = None


@dataclass(frozen=True, slots=True)
class ComparedCategory:
    """One category at one gamma. `ratio` is B's speedup over A's; `difference` what its interval resolves: "same" is
    within 5 %."""

    category: str
    prompts: int
    a_speedup: float
    a_speedup_low: float | None
    a_speedup_high: float | None
    b_speedup: float
    b_speedup_low: float | None
    b_speedup_high: float | None
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    difference: Difference


@dataclass(frozen=True, slots=True)
class ComparedGamma:
    """Decoding. `ratio` and `difference` are as for a category, `rate` is tokens per second with the draft, B over A.
    `moved` is the term of the speedup, tau or the cost of a round, whose logarithm changed more; None where one is not
    known or no difference resolved."""

    gamma: int
    prompts: int
    a: ComparedSide
    b: ComparedSide
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    difference: Difference
    rate: float
    rate_low: float | None
    rate_high: float | None
    moved: Moved | None
    reasons: tuple[Reason, ...]
    categories: tuple[ComparedCategory, ...]


@dataclass(frozen=True, slots=True)
class ComparedDraft:
    """A draft that both runs have. `gamma` is the one to look at: A's best, where B has it. The verdicts are on the
    whole runs."""

    draft: str
    gamma: int
    a_verdict: Call
    b_verdict: Call
    gammas: tuple[ComparedGamma, ...]

    @property
    def shown(self) -> ComparedGamma:
        return next(row for row in self.gammas if row.gamma == self.gamma)


@dataclass(frozen=True, slots=True)
class Slower:
    """How many fewer tokens per second B decodes with A's choice of draft and gamma: 0.03 is 3 % slower, below 0 is
    faster."""

    draft: str
    gamma: int
    by: float
    low: float | None
    high: float | None

    def surely_above(self, share: float) -> bool:
        """Whether the whole interval lies above `share`; False without an interval."""
        return self.low is not None and self.low > share


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, A and B. `prompts` are in both, by their hash. `only_a` and `only_b` are arms that one has alone, such
    as `demo:draft gamma 4`. `slower` is None where A's choice is not in both."""

    schema: int
    a: ComparedRun
    b: ComparedRun
    prompts: int
    drafts: tuple[ComparedDraft, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    slower: Slower | None
    warnings: tuple[Finding, ...]


# Two times, or two taus, that are no further apart are called the same.
_NEAR = 0.05


def term_that_moved(a: ComparedSide, b: ComparedSide) -> Moved | None:
    """A speedup is tau over the cost of a round in target steps, so the log of the ratio of two speedups is the sum of
    what each term adds: the larger of the two. None where one is not known."""
    if a.tokens_per_round is None or b.tokens_per_round is None or a.round_steps is None or b.round_steps is None:
        return None
    tau = abs(math.log(b.tokens_per_round / a.tokens_per_round))
    return "acceptance" if tau > abs(math.log(b.round_steps / a.round_steps)) else "cost of a round"


def reasons(
    a: ComparedSide, b: ComparedSide, ratio: Interval, found: Difference, moved: Moved | None, names: tuple[str, str]
) -> tuple[Reason, ...]:
    """Whether the two can be told apart where they cannot surely, then the terms behind it. Pairs of values are A's and
    B's; a factor is B over A, 1.0 where the two are near."""
    idle = [name for name, side in zip(names, (a, b), strict=True) if side.drafted == 0]
    if idle:
        return (Reason("nothing-drafted", {"on": idle}),)
    head = []
    if ratio.low is None or ratio.high is None:
        head = [Reason("too-few-to-tell")]
    elif found == "same":
        head = [Reason("same", {"margin": EQUIVALENT})]
    elif found == "not resolved":
        head = [Reason("not-resolved", {"low": ratio.low, "high": ratio.high})]
    rates = a.baseline_tokens_per_s, b.baseline_tokens_per_s
    taus, costs = (a.tokens_per_round, b.tokens_per_round), (a.round_steps, b.round_steps)
    if None in (*taus, *costs) or a.round_s is None or b.round_s is None:
        return (*head, Reason("rounds-untold", {"names": names, "rates": rates}))
    values = {"on": names[1], "taus": taus, "costs": costs}
    if head:
        return (*head, Reason("rounds-beside", values))
    if moved == "acceptance":
        return (Reason("acceptance-moved", values),)
    steps_s = tuple(1 / rate for rate in rates)
    factors = {"step": _factor(*rates), "round": _factor(b.round_s, a.round_s), "tau": _factor(*taus)}
    return (Reason("cost-moved", values | {"steps_s": steps_s} | factors),)


def _factor(a: float | None, b: float | None) -> float:
    times = (b or 1) / (a or 1)
    return 1.0 if abs(math.log(times)) < _NEAR else times


Rows = NDArray[np.int64]
PromptKey = tuple[str, int]  # the content's hash, and which of several equal prompts


def compared(a: StoredRun, b: StoredRun) -> Comparison:
    """Everything two runs have in common. Raises StoreError where one has no measurement or they share no prompt of a
    draft at one gamma."""
    sides = _Run(a), _Run(b)
    first, second = (side.described(number, sides) for number, side in enumerate(sides))
    drafts = [
        draft
        for spec in sides[0].views
        if spec in sides[1].views and (draft := _draft(spec, sides, (first.name, second.name))) is not None
    ]
    if not drafts:
        raise StoreError(
            "The two runs have no draft at one gamma over one prompt in common",
            where=f"{a.folder} and {b.folder}",
            hint="Run the second with the first one's --draft, --gamma and --workload.",
        )
    arms = [side.arms() for side in sides]
    return Comparison(
        schema=SCHEMA,
        a=first,
        b=second,
        prompts=max(row.prompts for draft in drafts for row in draft.gammas),
        drafts=tuple(drafts),
        only_a=tuple(f"{draft} gamma {gamma}" for draft, gamma in arms[0] if (draft, gamma) not in arms[1]),
        only_b=tuple(f"{draft} gamma {gamma}" for draft, gamma in arms[1] if (draft, gamma) not in arms[0]),
        slower=_slower(drafts, sides[0].summary),
        warnings=(
            *_warnings(sides),
            *dict.fromkeys(w for each in sides for w in each.summary.warnings if w.code == "no-decode"),
        ),
    )


class _Run:
    """One run, lined up at its first load; `steady` has the variance of a log speedup that its A/A arm shows."""

    def __init__(self, stored: StoredRun) -> None:
        self.stored = stored
        self.summary = summarise(stored)
        self.load = None if self.summary.server is None else self.summary.server.load
        self.policy = replace(stored.run.config.policy, mix=None)
        trials = stored.main
        arms = kept_arms(by_arm(trials), stored.run)
        self.steady = Steady(arms, replace(self.policy, metric="decode"))
        specs = [draft.draft for draft in self.summary.drafts]
        self.views = {spec: DraftView(arms, spec, trials, (), stored, self.policy) for spec in specs}

    def arms(self) -> list[tuple[str, int]]:
        return [(spec, gamma) for spec, view in self.views.items() for gamma in view.arms]

    def described(self, number: int, both: tuple[_Run, _Run]) -> ComparedRun:
        """A and B, with engine and weights where these differ: what is faster is then both together."""
        engines, formats = [_engine(run.stored) for run in both], [weights(run.stored.run) for run in both]
        engine = engines[number] if engines[0] != engines[1] else ""
        precision = f" in {formats[number] or 'weights not known'}" if formats[0] != formats[1] else ""
        name = ", ".join(filter(None, ("AB"[number], f"{engine}{precision}".strip())))
        summary = self.summary
        return ComparedRun(summary.run, name, summary.engine, summary.hardware, summary.target, self.load)


# How llama.cpp and hubs name what weights are in: Q4_1, IQ4_XS, BF16, FP8, AWQ.
_FORMAT = re.compile(
    r"(?<![A-Za-z0-9])(I?Q\d\w*|BF16|F16|F32|FP8|FP4|NVFP4|MXFP4|AWQ|GPTQ|INT[48])(?![A-Za-z0-9])", re.I
)


def weights(run: RunRecord) -> str | None:
    """What the target's weights are in: of this process its precision, of a server what its model's name says; None
    where it does not."""
    if run.precision is not None:
        return run.precision
    told = () if run.served is None else (state.model for state in run.served.settings.values())
    found = (_FORMAT.search(name) for name in (run.target.name, *told, run.config.target) if name)
    return next((match[1].upper() for match in found if match), None)


def _engine(stored: StoredRun) -> str:
    """A short name."""
    if not stored.run.on_server:
        return "specbench's own loop"
    return (stored.run.served and stored.run.served.adapter) or stored.run.config.engine


def _draft(spec: str, runs: tuple[_Run, _Run], names: tuple[str, str]) -> ComparedDraft | None:
    views = [run.views[spec] for run in runs]
    rows = _shared(*views)
    shared = [gamma for gamma in views[0].arms if gamma in views[1].arms]
    gammas = [gamma for gamma in shared if all(each.decoded for each in _pairs(spec, gamma, runs, rows))]
    if not gammas:
        return None
    found = tuple(_gamma(spec, gamma, runs, rows, names) for gamma in gammas)
    a, b = (next(draft for draft in run.summary.drafts if draft.draft == spec) for run in runs)
    gamma = a.best_gamma if a.best_gamma in gammas else gammas[0]
    return ComparedDraft(spec, gamma, a.verdict, b.verdict, found)


def _pairs(spec: str, gamma: int, runs: tuple[_Run, _Run], rows: tuple[Rows, Rows]) -> list[Paired]:
    return [run.views[spec].paired(gamma, "decode").take(kept) for run, kept in zip(runs, rows, strict=True)]


def _shared(a: DraftView, b: DraftView) -> tuple[Rows, Rows]:
    """Row numbers in both views of the prompts that both have, in one order."""
    places = [{key: row for row, key in enumerate(_keys(view))} for view in (a, b)]
    keys = [key for key in places[0] if key in places[1]]
    first, second = (np.array([place[key] for key in keys], dtype=np.int64) for place in places)
    return first, second


def _keys(view: DraftView) -> list[PromptKey]:
    seen: Counter[str] = Counter()
    keys = []
    for sha in view.base.prompt_sha256:
        keys.append((str(sha), seen[sha]))
        seen[sha] += 1
    return keys


def _gamma(
    spec: str, gamma: int, runs: tuple[_Run, _Run], rows: tuple[Rows, Rows], names: tuple[str, str]
) -> ComparedGamma:
    pairs = _pairs(spec, gamma, runs, rows)
    confidence, excess = runs[0].policy.confidence, runs[0].steady.excess + runs[1].steady.excess
    a, b = (
        _side(run, run.views[spec], gamma, paired, kept, confidence)
        for run, paired, kept in zip(runs, pairs, rows, strict=True)
    )
    ratio = _ratio(pairs[0], pairs[1], confidence, excess)
    columns = pairs[0].spec_s, pairs[0].spec_tokens, pairs[1].spec_s, pairs[1].spec_tokens
    found = difference(ratio.low, ratio.high)
    moved = term_that_moved(a, b) if found in ("faster", "slower") else None
    return ComparedGamma(
        gamma=gamma,
        prompts=len(rows[0]),
        a=a,
        b=b,
        **ends("ratio", ratio),
        difference=found,
        **ends("rate", speedup_interval(Paired(*columns), confidence, excess)),
        moved=moved,
        reasons=reasons(a, b, ratio, found, moved, names),
        categories=_categories(runs, spec, pairs, rows, confidence),
    )


def _side(run: _Run, view: DraftView, gamma: int, paired: Paired, rows: Rows, confidence: float) -> ComparedSide:
    interval = speedup_interval(paired, confidence, run.steady.excess)
    alone = float(paired.base_tokens.sum() / paired.base_s.sum())
    with_draft = float(paired.spec_tokens.sum() / paired.spec_s.sum())
    counts = view.counts(gamma, rows)
    tau = counts.tokens_per_round
    return ComparedSide(
        **ends("speedup", interval),
        baseline_tokens_per_s=alone,
        tokens_per_s=with_draft,
        tokens_per_round=tau,
        round_s=None if tau is None else tau / with_draft,
        round_steps=None if tau is None else tau / with_draft * alone,
        drafted=counts.drafted,
    )


def _categories(
    runs: tuple[_Run, _Run], spec: str, pairs: list[Paired], rows: tuple[Rows, Rows], confidence: float
) -> tuple[ComparedCategory, ...]:
    """By the first run's categories, where both runs decoded anything; empty where its prompts carry none."""
    names = runs[0].views[spec].base.category[rows[0]]
    found = []
    for name in sorted(set(names) - {"all"}):
        a, b = (paired.take(names == name) for paired in pairs)
        if not (a.decoded and b.decoded):
            continue
        excess = [run.steady.excess_of(str(name)) for run in runs]
        ratio = _ratio(a, b, confidence, sum(excess))
        first, second = (speedup_interval(p, confidence, e) for p, e in zip((a, b), excess, strict=True))
        pair = ends("a_speedup", first) | ends("b_speedup", second) | ends("ratio", ratio)
        found.append(ComparedCategory(str(name), a.n, **pair, difference=difference(ratio.low, ratio.high)))
    return tuple(found)


def _ratio(a: Paired, b: Paired, confidence: float, excess: float) -> Interval:
    """The second speedup over the first, prompt by prompt."""
    above = (b.base_s, b.spec_tokens, a.base_tokens, a.spec_s)
    below = (b.base_tokens, b.spec_s, a.base_s, a.spec_tokens)
    return totals_interval(above, below, confidence, excess)


def _slower(drafts: list[ComparedDraft], summary: Summary) -> Slower | None:
    """Of one arm that is fixed beforehand, so that many arms do not make a regression more likely to be seen."""
    chosen = summary.choice
    arm = None if chosen is None else (chosen.draft, chosen.gamma)
    for draft in drafts:
        for row in draft.gammas:
            if (draft.draft, row.gamma) == arm:
                low, high = (None if end is None else 1 - end for end in (row.rate_high, row.rate_low))
                return Slower(draft.draft, row.gamma, 1 - row.rate, low, high)
    return None


def _other_tokens(a: StoredRun, b: StoredRun) -> str | None:
    """Prompts with other token ids; where a server encoded them, with another number of tokens."""
    before, after = (stored.run.workload.encoded for stored in (a, b))
    if before is not None and after is not None:
        return changed_encoding(before, after)
    then, now = ({trial.prompt_sha256: trial.prompt_tokens for trial in stored.main} for stored in (a, b))
    shared = then.keys() & now.keys()
    if not (other := sum(then[sha] != now[sha] for sha in shared)):
        return None
    why = "another chat template, tokenizer or begin of text"
    return f"{other} of {len(shared)} prompts have another number of tokens: {why}"


_HINTS = {
    "other-prompts": "Run the second on the first one's workload.",
    "other-token-ids": "Run the second with the first one's target, tokenizer and chat template, and where that writes "
    "the date, on one day.",
    "other-weights": "Run both with the same weights before crediting an engine.",
    "other-sampling": "Run the second with the first one's sampling: acceptance depends on it.",
    "other-template-arguments": "Run the second with the first one's --chat-template-kwargs: the answers are others.",
    "other-limit": "Run the second with the first one's --max-new-tokens.",
    "other-load": "Run the second with the first one's first --concurrency.",
}


def _warnings(runs: tuple[_Run, _Run]) -> list[Finding]:
    """Where the two do not answer the same question."""
    a, b = (run.stored for run in runs)
    configs = a.run.config, b.run.config
    sampled = [asdict(each.sampling) for each in configs]
    formats, engines = [weights(each.run) for each in (a, b)], [_engine(each) for each in (a, b)]
    both: dict[str, Sequence[object]] = {
        "other-prompts": [each.run.workload.sha256 for each in (a, b)],
        "other-token-ids": [None, _other_tokens(a, b)],
        "other-weights": formats,
        "other-sampling": sampled,
        "other-template-arguments": [template_kwargs(each.chat_template_kwargs or {}) or "nothing" for each in configs],
        "other-limit": [each.max_new_tokens for each in configs],
        "other-load": [run.load or "1 at a time" for run in runs],
    }
    values: dict[str, dict[str, object]] = {
        "other-prompts": {},
        "other-token-ids": {"changed": both["other-token-ids"][1]},
        "other-sampling": {
            "changed": [
                (key, x, y) for (key, x), y in zip(sampled[0].items(), sampled[1].values(), strict=True) if x != y
            ]
        },
    }
    # Of two engines that do not tell it nobody knows that their weights are the same.
    unknown = {"other-weights"} if formats == [None, None] and engines[0] != engines[1] else set()
    differ = [code for code, (one, other) in both.items() if one != other or code in unknown]
    return [Finding(code, "warning", values.get(code, {"both": both[code]}), _HINTS[code]) for code in differ]
