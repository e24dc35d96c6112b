"""A stored run to the Summary that `--json`, the tables and the brief all show."""

from __future__ import annotations

import pandas as pd

from specbench.decision.interval import excess_variance, speedup_interval
from specbench.errors import ConfigError, StoreError
from specbench.positions import read_positions
from specbench.records import Interval, Policy
from specbench.report.agreement import replay_gap
from specbench.report.cautions import run_cautions
from specbench.report.choice import choose
from specbench.report.contract import SCHEMA, Summary
from specbench.report.frame import counted, main_trials, prompt_frame
from specbench.report.results import Judged
from specbench.report.served.cautions import server_cautions
from specbench.report.served.contract import LoadResult
from specbench.report.served.loads import load_results, with_loads
from specbench.report.served.server import server_of
from specbench.report.views import DraftView, a_a, arm
from specbench.store import StoredRun, cautions_of


def summarise(stored: StoredRun) -> Summary:
    """Everything specbench says about a run, from its folder alone. Works on an interrupted run with what there is;
    raises StoreError where not one prompt has both the target alone and a draft. A server's verdict is about the first
    load that was asked for."""
    policy = Policy(**stored.run["config"]["policy"])
    trials = main_trials(stored)
    _timed(stored)
    texts = read_positions(stored.folder)
    frame = prompt_frame(trials)
    if not len(frame) or not frame["decode_tokens"].sum():
        raise StoreError(
            "No trial has decoded anything yet", where=str(stored.folder), cure="Use prompts that get longer answers."
        )
    _mix_fits(policy, frame)
    specs = [spec for spec in stored.run["config"]["draft"] if (frame["draft"] == spec).any()]
    base = arm(frame, "baseline")
    again = a_a(frame, base, policy.metric)
    excess = 0.0 if again is None else excess_variance(again)
    views = [DraftView(frame, base, spec, trials, texts, stored, policy) for spec in specs]
    judged = [
        Judged(view, policy, excess, stored.run.get("drafts", {}).get(view.spec) or {})
        for view in views
        if view.complete
    ]
    if not judged:
        raise StoreError(
            "No prompt was measured with and without a draft yet",
            where=str(stored.folder),
            cure="Run the same command again: it continues where it stopped.",
        )
    results = tuple(one.result() for one in judged)
    decoded = a_a(frame, base, "decode")
    floor = None if decoded is None else speedup_interval(decoded, policy.confidence)
    gaps = [gap for one in judged for g in one.view.arms if (gap := replay_gap(one.view, g)) is not None]
    server, every = server_of(stored), counted(stored.trials)
    loads: tuple[LoadResult, ...] = ()
    cautions = [*run_cautions(stored, every, results, floor, policy, gaps), *cautions_of(stored.run)]
    if server is not None:
        loads = load_results(stored, policy)
        results = tuple(with_loads(result, loads, policy) for result in results)
        cautions += server_cautions(server, every)
    return Summary(
        run=str(stored.folder),
        schema=SCHEMA,
        target=stored.run["config"]["target"],
        engine=stored.run["provenance"]["engine"],
        hardware=(stored.run["provenance"].get("hardware") or {}).get("line") or "hardware not known",
        noise_floor=_half_width(floor),
        drafts=results,
        warnings=tuple({caution.code: caution for caution in cautions}.values()),
        choice=choose(judged, policy),
        mix=policy.mix,
        batch_size=int(stored.run["config"]["batch_size"]),
        server=server,
        loads=loads,
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
    if (why := refused.get(stored.run["command"])) is not None:
        raise StoreError(why[0], where=str(stored.folder), cure=why[1])


def _mix_fits(policy: Policy, frame: pd.DataFrame) -> None:
    known = sorted(frame["category"].unique())
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
