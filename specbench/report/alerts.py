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
from specbench.errors import ConfigError
from specbench.store import replace_file, unwritable

RULES, DASHBOARD = "alerts.yml", "dashboard.json"

# Over so long counters are averaged, so long a condition has to hold, and so long ago a counter may have been seen.
WINDOW, HOLDS, SEEN = "10m", "15m", "1d"
# Of what acceptance gained over break-even, so much may be lost before prompts count as others than those measured.
LOST = 0.5


@dataclass(frozen=True, slots=True)
class Counted:
    """What an engine counts, by the names of its metrics page; None is what it does not."""

    tokens: str
    rounds: str
    drafted: str | None = None
    accepted: str | None = None
    by_position: str | None = None


def _like_vllm(prefix: str, tokens: str) -> Counted:
    name = f"{prefix}:spec_decode_num"
    return Counted(
        f"{prefix}:{tokens}", f"{name}_drafts_total", f"{name}_draft_tokens_total", f"{name}_accepted_tokens_total",
        f"{name}_accepted_tokens_per_pos_total",
    )  # fmt: skip


# As backends/server/*.py read them; by the adapter's name.
COUNTERS: Mapping[str, Counted] = {
    "vLLM": _like_vllm("vllm", "generation_tokens_total"),
    "llama.cpp": _like_vllm("llamacpp", "tokens_predicted_total"),
    "SGLang": Counted("sglang:generation_tokens_total", "sglang:spec_verify_calls_total"),
}


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
    counted: Counted


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


def _watch(draft: DraftResult, row: GammaResult, counted: Counted) -> Watch:
    tau, even = row.tokens_per_round, row.break_even
    if tau is None or even is None:
        raise ConfigError(
            "The server told no rounds, so that no break-even is known",
            where="--alerts",
            hint="Start it with its metrics, and measure again.",
        )
    speedup = text.estimate(row.speedup, row.speedup_low, row.speedup_high)
    if counted.drafted is None or counted.accepted is None:
        value = f"{_rate(counted.tokens)} / {_rate(counted.rounds)}"
        unit = "tokens per round"
        return Watch(draft.draft, row.gamma, speedup, unit, value, even.tokens_per_round, tau, counted)
    if not row.drafted or not row.rounds:
        raise ConfigError("It drafted nothing", where="--alerts")
    per_round = row.drafted / row.rounds
    value = f"{_rate(counted.accepted)} / {_rate(counted.drafted)}"
    shares = ((even.tokens_per_round - 1) / per_round, (tau - 1) / per_round)
    return Watch(draft.draft, row.gamma, speedup, "share of drafted tokens accepted", value, *shares, counted)


def _rate(counter: str) -> str:
    return f"sum by (job, instance) (rate({counter}[{WINDOW}]))"


def rules(watch: Watch, source: str) -> dict[str, Any]:
    """The rule file as Prometheus reads it. `source` names the brief."""
    counted, even, measured = watch.counted, watch.break_even, watch.measured
    lost = measured - LOST * (measured - even)
    # Prometheus reads two braces in an annotation as a template.
    about = f"{watch.draft} at gamma {watch.gamma}, {source}".replace("{", "(").replace("}", ")")
    said = f"Measured: {measured:.3f} {watch.unit}, {watch.speedup} of decoding; break-even {even:.3f}"
    busy = f"{_rate(counted.tokens)} > 0"
    alerts = [
        (
            "SpeculationBelowBreakEven",
            f"{watch.value} < {even:.4f}",
            HOLDS,
            "critical",
            "Speculation is slower than the target alone",
            f"{said}. Switch it off, or measure again with today's prompts and load.",
        ),
        (
            "SpeculationAcceptsLess",
            f"{watch.value} < {lost:.4f}",
            "1h",
            "warning",
            "Half of what acceptance gained is lost",
            f"{said}. The prompts may be others than those measured: measure again.",
        ),
        (
            "SpeculationStopped",
            f"({_rate(counted.rounds)} == 0) and {busy}",
            HOLDS,
            "warning",
            "The server writes tokens and drafts none",
            "It may have started without its draft, or switched speculation off.",
        ),
        (
            "SpeculationCountersVanished",
            f"group by (job, instance) (present_over_time({counted.rounds}[{SEEN}])) "
            f"unless group by (job, instance) ({counted.rounds})",
            HOLDS,
            "warning",
            "The counters of speculation are gone",
            "The server is down, started without speculation, or has other metrics after an update.",
        ),
    ]
    return {
        "groups": [
            {
                "name": "speculation",
                "rules": [
                    {"record": "specbench:speculation", "expr": watch.value, "labels": {"unit": watch.unit}},
                    *(
                        {
                            "alert": name,
                            "expr": expression,
                            "for": holds,
                            "labels": {"severity": severity},
                            "annotations": {"summary": f"{summary} ({about})", "description": description},
                        }
                        for name, expression, holds, severity, summary, description in alerts
                    ),
                ],
            }
        ]
    }


def dashboard(watch: Watch, source: str) -> dict[str, Any]:
    """One Grafana dashboard, to be imported; the data source is chosen there."""
    counted = watch.counted
    panels = [
        _panel(watch.unit, [(watch.value, "{{instance}}")], [(watch.break_even, "red"), (watch.measured, "green")]),
        _panel("rounds per second", [(_rate(counted.rounds), "{{instance}}")]),
        _panel("output tokens per second", [(_rate(counted.tokens), "{{instance}}")]),
    ]
    if counted.accepted is not None and counted.drafted is not None:
        tau = f"1 + {_rate(counted.accepted)} / {_rate(counted.rounds)}"
        panels.insert(1, _panel("tokens per round that drafts (tau)", [(tau, "{{instance}}")]))
    if counted.by_position is not None:
        survived = f"sum by (position) (rate({counted.by_position}[{WINDOW}]))"
        share = f"{survived} / scalar(sum(rate({counted.rounds}[{WINDOW}])))"
        panels.append(_panel("share of rounds in which a position was accepted", [(share, "position {{position}}")]))
    for number, panel in enumerate(panels):
        panel |= {"id": number + 1, "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)}}
    return {
        "title": f"Speculative decoding: {watch.draft}",
        "description": f"Gamma {watch.gamma}, {source}. Red: break-even, green: measured.",
        "tags": ["specbench"],
        "schemaVersion": 39,
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def _panel(title: str, series: list[tuple[str, str]], lines: list[tuple[float, str]] | None = None) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    steps: list[dict[str, Any]] = [{"color": "transparent", "value": None}]
    steps += [{"color": colour, "value": round(value, 4)} for value, colour in sorted(lines or [])]
    return {
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": source, "expr": expression, "legendFormat": legend}
            for n, (expression, legend) in enumerate(series)
        ],
        "fieldConfig": {
            "defaults": {
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {"thresholdsStyle": {"mode": "line" if lines else "off"}},
            },
            "overrides": [],
        },
    }


def write_alerts(summary: Summary, folder: Path) -> tuple[Path, Path]:
    """Write both files; returns their paths. Raises ConfigError as `watch_of` does."""
    watch, source = watch_of(summary), f"brief of {Path(summary.run).name}"
    written = {
        folder / RULES: yaml.safe_dump(rules(watch, source), sort_keys=False, width=200, allow_unicode=True),
        folder / DASHBOARD: json.dumps(dashboard(watch, source), indent=1) + "\n",
    }
    for path, words in written.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, words.encode())
        except OSError as error:
            raise unwritable(error, path) from None
    first, second = written
    return first, second
