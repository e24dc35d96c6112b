"""After the decision: rules for the user's own Prometheus and a dashboard for Grafana, over the engine's own counters.

The thresholds are those of the brief: how many of the drafted tokens have to be accepted for the measured round to
break even, and how many were. Both are shares of drafted tokens, since engines count rounds without a draft or do not.
SGLang counts no drafts: there it is tokens per round. Nothing of specbench runs on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.sglang import SGLang
from specbench.backends.server.vllm import VLLM
from specbench.errors import ConfigError
from specbench.report.dialect import PLAIN, template
from specbench.store import replace_file, unwritable

RULES, DASHBOARD = "alerts.yml", "dashboard.json"

# Over so long counters are averaged, so long a condition has to hold, and so long ago a counter may have been seen.
WINDOW, HOLDS, SEEN = "10m", "15m", "1d"
# Of what acceptance gained over break-even, so much may be lost before prompts count as others than those measured.
LOST = 0.5


# What engines count, by the adapter's name: the counters that are read of them.
COUNTERS = {adapter.name: adapter.counted for adapter in (VLLM, LlamaCpp, SGLang)}


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch: `value` is a PromQL expression of what `unit` says; `break_even` and `measured` are the same."""

    draft: str
    gamma: int
    speedup: str
    unit: str
    value: str
    break_even: float
    measured: float
    counted: Mapping[str, str]


def watch_of(summary: Summary) -> Watch:
    """Raises ConfigError where there is nothing to watch, or nothing to watch it by."""
    draft = summary.recommended
    adapter = None if summary.server is None else summary.server.adapter
    counted = COUNTERS.get(adapter or "")
    if counted is None:
        what = "in this process" if adapter is None else f"on {adapter}, whose counters are not known"
        raise ConfigError(
            f"The run was measured {what}, and alerts are about an engine's own counters",
            where="--alerts",
            hint="Measure on the engine that serves: specbench sweep --engine or --server.",
        )
    if draft is None or summary.verdict == "NO-GO":
        raise ConfigError("The verdict is NO-GO: nothing speculates that could be watched", where="--alerts")
    gamma = summary.choice.gamma if summary.choice and summary.choice.draft == draft.draft else draft.best_gamma
    row = next(row for row in draft.gammas if row.gamma == gamma)
    found = _watch(draft, row, counted)
    if found.measured <= found.break_even:
        raise ConfigError(
            f"What was measured at gamma {gamma} is not above break-even: an alert would fire at once",
            where="--alerts",
            hint="Measure until the verdict is GO.",
        )
    return found


def _watch(draft: DraftResult, row: GammaResult, counted: Mapping[str, str]) -> Watch:
    tau, even = row.tokens_per_round, row.break_even
    if tau is None or even is None:
        raise ConfigError(
            "The server told no rounds, so that no break-even is known",
            where="--alerts",
            hint="Start it with its metrics, and measure again.",
        )
    speedup = text.estimate(row.speedup, row.speedup_low, row.speedup_high)
    if "accepted" not in counted:
        value = f"{_rate(counted['tokens'])} / {_rate(counted['rounds'])}"
        unit = "tokens per round"
        return Watch(draft.draft, row.gamma, speedup, unit, value, even.tokens_per_round, tau, counted)
    if not row.drafted or not row.rounds:
        raise ConfigError("It drafted nothing", where="--alerts")
    per_round = row.drafted / row.rounds
    value = f"{_rate(counted['accepted'])} / {_rate(counted['drafted'])}"
    shares = ((even.tokens_per_round - 1) / per_round, (tau - 1) / per_round)
    return Watch(draft.draft, row.gamma, speedup, "share of drafted tokens accepted", value, *shares, counted)


def _rate(counter: str) -> str:
    return f"sum by (job, instance) (rate({counter}[{WINDOW}]))"


def pages(watch: Watch, source: str) -> dict[str, Any]:
    """`rules`, a file as Prometheus reads it, and `dashboard`, to be imported in Grafana, where its data source is
    chosen. `source` names the brief."""
    page = template("alerts.yaml.j2", PLAIN).render(
        w=watch,
        c=watch.counted,
        rate=_rate,
        # Prometheus reads two braces in an annotation as a template.
        about=f"{watch.draft} at gamma {watch.gamma}, {source}".replace("{", "(").replace("}", ")"),
        lost=watch.measured - LOST * (watch.measured - watch.break_even),
        source=source,
        window=WINDOW,
        holds=HOLDS,
        seen=SEEN,
    )
    found: dict[str, Any] = yaml.safe_load(page)
    for number, panel in enumerate(found["dashboard"]["panels"]):
        panel |= {"id": number + 1, "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)}}
    return found


def write_alerts(summary: Summary, folder: Path) -> tuple[Path, Path]:
    """Write both files; returns their paths. Raises ConfigError as `watch_of` does."""
    made = pages(watch_of(summary), f"brief of {Path(summary.run).name}")
    rules, dashboard = folder / RULES, folder / DASHBOARD
    for path, words in (
        (rules, yaml.safe_dump(made["rules"], sort_keys=False, width=200, allow_unicode=True)),
        (dashboard, json.dumps(made["dashboard"], indent=1) + "\n"),
    ):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, words.encode())
        except OSError as error:
            raise unwritable(error, path) from None
    return rules, dashboard
