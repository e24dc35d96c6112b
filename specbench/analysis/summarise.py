"""A stored run to the Summary that `--json`, the tables and the brief all show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specbench.acceptance.positions import read_positions
from specbench.analysis.cautions import run_cautions
from specbench.analysis.contract import SCHEMA, Choice, Rival, Summary
from specbench.analysis.facts import pace_of, read_facts
from specbench.analysis.frame import ArmRows, DraftView, Steady, a_a, by_arm, kept_arms, paired, traffic_weights
from specbench.analysis.loads import load_cautions, load_results, schedule_of, with_loads
from specbench.analysis.results import Judged, stopped_gammas, texts_of
from specbench.analysis.served import LoadResult
from specbench.analysis.server import server_cautions, server_of
from specbench.decision.interval import Paired, choose_gamma, difference, ends, speedup_interval
from specbench.errors import ConfigError, SpecbenchError, StoreError
from specbench.records import Arm, Call, Interval, Policy
from specbench.run_record import ModelFacts
from specbench.store import StoredRun, read_record, read_run


def summarise(stored: StoredRun) -> Summary:
    """Everything specbench says about a run, from its folder alone. Works on an interrupted run with what there is;
    raises StoreError where not one prompt has both the target alone and a draft. A server's verdict is about the first
    load that was asked for."""
    policy = stored.run.config.policy
    require_timed(stored)
    trials = stored.main
    texts = read_positions(stored.folder)
    every_arm = by_arm(trials)
    arms = kept_arms(every_arm, stored.run)
    _mix_fits(policy, arms)
    specs = [spec for spec in stored.run.config.draft if any(arm.draft == spec for arm in arms)]
    steady = Steady(arms, policy)
    views = [DraftView(arms, spec, trials, texts, stored, policy) for spec in specs]
    judged = [
        Judged(view, policy, steady, stored.run.drafts.get(view.spec, ModelFacts())) for view in views if view.complete
    ]
    if not judged:
        raise _nothing_judged(views, str(stored.folder))
    results = tuple(
        replace(one.result(), stopped=stopped_gammas(every_arm, one.view.spec, stored.run, policy, steady.excess))
        for one in judged
    )
    decoded = a_a(arms, "decode", policy.mix)
    floor = None if decoded is None else speedup_interval(decoded, policy.confidence)
    server = server_of(stored)
    loads: tuple[LoadResult, ...] = ()
    of_numbers = run_cautions(stored, every_arm, [one.view for one in judged], results, floor)
    cautions = [*of_numbers, *stored.run.warnings]
    if server is not None:
        loads = load_results(stored, policy, texts)
        results = tuple(
            replace(with_loads(one, loads, policy), schedule=schedule_of(stored, one.draft, policy, texts))
            for one in results
        )
        seen = [*server_cautions(server, stored), *load_cautions(loads, policy)]
        # What the trials show of the server goes before what its first answers did.
        cautions = [*(one for one in cautions if one.code not in {each.code for each in seen}), *seen]
    return Summary(
        run=str(stored.folder),
        schema=SCHEMA,
        target=stored.run.config.target,
        engine=stored.run.provenance.engine,
        hardware=stored.run.provenance.hardware.line or "hardware not known",
        policy=policy,
        facts=read_facts(stored),
        noise_floor=_half_width(floor),
        drafts=results,
        warnings=tuple(dict.fromkeys(cautions)),
        choice=choose(judged, policy),
        batch_size=stored.run.config.batch_size,
        server=server,
        loads=loads,
        trials_run=len(stored.counted),
        trials_spared=stored.run.spared,
        trials_disturbed=sum(trial.disturbed for trial in trials),
        baseline_texts=texts_of(trials, None, stored.run.precision).differing,
        pace=pace_of(stored),
    )


_UNTIMED = {
    "answers": (
        "Recorded answers were scored here, no wall clock",
        "See it with specbench brief, or time a --target of yours: specbench sweep without --answers.",
    ),
    "replay": (
        "This run measured acceptance only, no wall clock",
        "See it with specbench replay, or run specbench sweep without --replay-only.",
    ),
    "probe": (
        "This run timed the models alone, no prompt",
        "Run specbench sweep; --costs takes these timings.",
    ),
}


def require_timed(stored: StoredRun, so: str = "there is no verdict without a measurement") -> None:
    """Raises StoreError for a run that timed no prompt, so that it says nothing of the kind asked for."""
    why = _UNTIMED.get("answers" if stored.run.answers is not None else stored.run.command)
    if why is not None:
        raise StoreError(f"{why[0]}: {so}", where=str(stored.folder), hint=why[1])


def _mix_fits(policy: Policy, arms: Mapping[Arm, ArmRows]) -> None:
    known = sorted({name for rows in arms.values() for name in rows.category})
    strange = sorted(set(policy.mix or {}) - set(known))
    if strange:
        raise ConfigError(
            f"The traffic mix names {', '.join(strange)}, of which no prompt was measured",
            where="mix",
            hint=f"The run's categories are {', '.join(known)}.",
        )


def _nothing_judged(views: Sequence[DraftView], where: str) -> StoreError:
    if any(view.prompts and not view.missing for view in views):
        return StoreError("No trial has decoded anything yet", where=where, hint="Use prompts that get longer answers.")
    missing = sorted({name for view in views for name in view.missing if view.prompts})
    of = f" of {', '.join(missing)}, which the traffic mix names," if missing else ""
    hint = "Run the same command again: it continues where it stopped."
    return StoreError(f"No prompt{of} was measured with and without a draft yet", where=where, hint=hint)


def _half_width(floor: Interval | None) -> float | None:
    if floor is None or floor.low is None or floor.high is None:
        return None
    return max(abs(floor.low - 1.0), abs(floor.high - 1.0))


def choose(judged: Sequence[Judged], policy: Policy) -> Choice | None:
    """The best of all drafts and gammas over the prompts that all of them have measured. Random halves choose among
    drafts as they choose among gammas, so that many drafts do not look better than few. None without such prompts, of
    every category of a mix."""
    shared = sorted(set.intersection(*(set(one.view.prompts) for one in judged)))
    base = judged[0].view.base.of(shared)
    if set(policy.mix or {}) - set(base.category):
        return None
    weights = traffic_weights(list(base.category), policy.mix)
    pairs: dict[tuple[int, int], Paired] = {}  # (draft's index, gamma)
    for index, one in enumerate(judged):
        if one.gates.idle is None or all(each.gates.idle for each in judged):
            rows = {gamma: one.view.arms[gamma].of(shared) for gamma in one.choosable}
            own = {(index, gamma): paired(base, arm, policy.metric, weights) for gamma, arm in rows.items()}
            pairs |= {key: pair for key, pair in own.items() if pair.decoded}
    if not pairs:
        return None
    keys = list(pairs)
    found = choose_gamma({number: pairs[key] for number, key in enumerate(keys)})
    index, gamma = keys[found.best]
    best = judged[index]
    speedup = best.interval(found.paired, excess=found.excess)
    rivals = []
    for number, one in enumerate(judged):
        by_gamma = {g: pair for (other, g), pair in pairs.items() if other == number}
        if number != index and by_gamma:
            rivals.append(_rival(one, by_gamma, pairs[index, gamma]))
    verdict = best.verdict(found.paired, speedup, best.with_slower(found.paired, weights))
    return Choice(
        draft=best.view.spec,
        gamma=gamma,
        verdict=verdict.call,
        reasons=(*verdict.reasons, *best.whole_answer(verdict.call, gamma)),
        **ends("speedup", speedup),
        probability=verdict.probability,
        prompts=len(shared),
        rivals=tuple(rivals),
    )


def _rival(one: Judged, by_gamma: Mapping[int, Paired], chosen: Paired) -> Rival:
    gamma, own = max(by_gamma.items(), key=lambda item: item[1].speedup)
    ratio = one.interval(Paired(own.spec_s, own.spec_tokens, chosen.spec_s, chosen.spec_tokens))
    found = difference(ratio.low, ratio.high)
    return Rival(draft=one.view.spec, gamma=gamma, **ends("ratio", ratio), difference=found)


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run folder, the `number`-th newest (`@1`). `drafts` are all that it measured, `draft` and `gamma` those
    chosen; `problem` says why a folder could not be read."""

    number: int
    folder: str
    command: str | None = None
    status: str | None = None
    started: str | None = None
    target: str | None = None
    engine: str | None = None
    drafts: tuple[str, ...] = ()
    verdict: Call | None = None
    draft: str | None = None
    gamma: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    noise_floor: float | None = None
    problem: str | None = None


def listed(folders: Sequence[Path]) -> tuple[ListedRun, ...]:
    """`folders` newest first, as `find_runs` gives them."""
    return tuple(_line(number, folder) for number, folder in enumerate(folders, 1))


def _line(number: int, folder: Path) -> ListedRun:
    try:
        run = read_record(folder)
    except SpecbenchError as error:
        return ListedRun(number, str(folder), problem=error.what)
    known = ListedRun(
        number,
        str(folder),
        command=run.command,
        status=run.status,
        started=run.provenance.started,
        target=run.config.target,
        # the adapter's name of a run on a server, which says more than its configuration
        engine=(run.served.adapter if run.served else None) or run.config.engine,
        drafts=run.config.draft,
    )
    try:
        summary = summarise(read_run(folder)) if run.command in ("measure", "sweep") else None
    except SpecbenchError:  # nothing to judge yet
        summary = None
    if summary is None:
        return known
    chosen = ("draft", "gamma", "speedup", "speedup_low", "speedup_high")
    choice = {} if summary.choice is None else {name: getattr(summary.choice, name) for name in chosen}
    return replace(known, verdict=summary.verdict, noise_floor=summary.noise_floor, **choice)
