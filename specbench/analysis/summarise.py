"""A stored run to the Summary that `--json`, the tables and the brief all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from specbench.acceptance.positions import read_positions
from specbench.analysis.agreement import replay_gap
from specbench.analysis.cautions import run_cautions
from specbench.analysis.choice import choose
from specbench.analysis.contract import SCHEMA, Summary
from specbench.analysis.frame import ArmRows, by_arm, counted, loads_of
from specbench.analysis.results import Judged
from specbench.analysis.served.cautions import server_cautions
from specbench.analysis.served.contract import LoadResult
from specbench.analysis.served.loads import load_results, with_loads
from specbench.analysis.served.schedule import schedule_of
from specbench.analysis.served.server import server_of
from specbench.analysis.steady import Steady
from specbench.analysis.stopped import kept_arms, stopped_gammas
from specbench.analysis.views import DraftView, a_a
from specbench.decision.interval import speedup_interval
from specbench.errors import ConfigError, StoreError
from specbench.records import Arm, Interval, Policy
from specbench.run_record import ModelFacts
from specbench.store import StoredRun


def summarise(stored: StoredRun) -> Summary:
    """Everything specbench says about a run, from its folder alone. Works on an interrupted run with what there is;
    raises StoreError where not one prompt has both the target alone and a draft. A server's verdict is about the first
    load that was asked for."""
    policy = stored.run.config.policy
    _timed(stored)
    every, first = counted(stored.trials), loads_of(stored)[0]
    trials = [trial for trial in every if trial.arm.load == first]
    texts = read_positions(stored.folder)
    every_arm = by_arm(trials)
    arms = kept_arms(every_arm, stored.run)
    if not any(rows.decode_tokens.sum() for rows in arms.values()):
        raise StoreError(
            "No trial has decoded anything yet", where=str(stored.folder), cure="Use prompts that get longer answers."
        )
    _mix_fits(policy, arms)
    specs = [spec for spec in stored.run.config.draft if any(arm.draft == spec for arm in arms)]
    steady = Steady(arms, policy)
    views = [DraftView(arms, spec, trials, texts, stored, policy) for spec in specs]
    judged = [
        Judged(view, policy, steady, stored.run.drafts.get(view.spec, ModelFacts())) for view in views if view.complete
    ]
    if not judged:
        raise StoreError(
            "No prompt was measured with and without a draft yet",
            where=str(stored.folder),
            cure="Run the same command again: it continues where it stopped.",
        )
    results = tuple(
        replace(one.result(), stopped=stopped_gammas(every_arm, one.view.spec, stored.run, policy, steady.excess))
        for one in judged
    )
    decoded = a_a(arms, "decode", policy.mix)
    floor = None if decoded is None else speedup_interval(decoded, policy.confidence)
    gaps = [gap for one in judged for g in one.view.arms if (gap := replay_gap(one.view, g)) is not None]
    server = server_of(stored)
    loads: tuple[LoadResult, ...] = ()
    cautions = [*run_cautions(stored, every, results, floor, policy, gaps), *stored.run.warnings]
    if server is not None:
        loads = load_results(stored, policy, texts)
        results = tuple(
            replace(with_loads(one, loads, policy), schedule=schedule_of(stored, one.draft, policy, texts))
            for one in results
        )
        cautions += server_cautions(server, every)
    return Summary(
        run=str(stored.folder),
        schema=SCHEMA,
        target=stored.run.config.target,
        engine=stored.run.provenance.engine,
        hardware=stored.run.provenance.hardware.line or "hardware not known",
        noise_floor=_half_width(floor),
        drafts=results,
        warnings=tuple({caution.code: caution for caution in cautions}.values()),
        choice=choose(judged, policy),
        mix=policy.mix,
        batch_size=stored.run.config.batch_size,
        server=server,
        loads=loads,
        trials_run=len(every),
        trials_spared=stored.run.spared,
    )


def _timed(stored: StoredRun) -> None:
    """Refuse a run without trials."""
    refused = {
        "replay": (
            "This run measured acceptance only, no wall clock: there is no verdict without a measurement",
            "See it with specbench replay, or run specbench sweep without --replay-only.",
        ),
        "probe": (
            "This run timed the models alone, no prompt: there is no verdict without a measurement",
            "Run specbench sweep; --costs takes these timings.",
        ),
    }
    if (why := refused.get(stored.run.command)) is not None:
        raise StoreError(why[0], where=str(stored.folder), cure=why[1])


def _mix_fits(policy: Policy, arms: Mapping[Arm, ArmRows]) -> None:
    known = sorted({name for rows in arms.values() for name in rows.category})
    strange = sorted(set(policy.mix or {}) - set(known))
    if strange:
        raise ConfigError(
            f"The traffic mix names {', '.join(strange)}, of which no prompt was measured",
            where="mix",
            cure=f"The run's categories are {', '.join(known)}.",
        )


def _half_width(floor: Interval | None) -> float | None:
    if floor is None or floor.low is None or floor.high is None:
        return None
    return max(abs(floor.low - 1.0), abs(floor.high - 1.0))
