"""Alert rules and dashboard: Prometheus itself takes them, and a made-up metrics page sets each of them off."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import pytest
import yaml
from fake_served import FakeServer, fake_served
from test_cli import call

from specbench.analysis.contract import Summary
from specbench.analysis.summarise import summarise
from specbench.errors import ConfigError
from specbench.report.alerts import COUNTERS, pages, watch_of, write_alerts

GOOD = FakeServer(alpha=0.8)
PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> Summary:
    return summarise(fake_served(tmp_path_factory.mktemp("alerts") / "run", GOOD, gammas=(4,)))


def on(summary: Summary, adapter: str) -> Summary:
    return replace(summary, server=replace(summary.server, adapter=adapter))


def test_break_even_is_that_of_the_measured_round(summary):
    (row,) = summary.drafts[0].gammas
    watch = watch_of(summary)
    # A round of 13 ms against steps of 10: 1.3 tokens break even, 0.3 of them drafted, of 4.
    assert watch.break_even == pytest.approx(0.3 / 4, rel=0.03)
    assert watch.measured == pytest.approx(row.accepted / row.drafted, rel=1e-9)
    counted = watch_of(on(summary, "SGLang"))
    assert counted.break_even == pytest.approx(1.3, rel=0.03) and counted.measured == row.tokens_per_round


def test_what_cannot_be_watched_is_refused(summary, tmp_path):
    for changed, says in (
        (replace(summary, server=None), "in this process"),
        (on(summary, "OpenAI"), "on OpenAI, whose counters are not known"),
        (replace(summary, choice=replace(summary.choice, verdict="NO-GO")), "nothing speculates"),
    ):
        with pytest.raises(ConfigError, match=says):
            watch_of(changed)
    slow = summarise(fake_served(tmp_path / "slow", FakeServer(alpha=0.1), gammas=(4,)))
    with pytest.raises(ConfigError, match="not above break-even"):
        watch_of(replace(slow, choice=replace(slow.choice, verdict="UNCLEAR")))


def test_the_command_writes_both(tmp_path):
    stored = fake_served(tmp_path / "run", GOOD, gammas=(4,))
    result = call("brief", stored.folder, "--alerts", "--to", tmp_path / "brief")
    assert result.exit_code == 0, result.output
    assert "Alert rules in" in result.stderr
    names = [
        rule.get("alert") for rule in yaml.safe_load((tmp_path / "brief/alerts.yml").read_text())["groups"][0]["rules"]
    ]
    assert names[1:] == [
        "SpeculationBelowBreakEven", "SpeculationAcceptsLess", "SpeculationStopped", "SpeculationCountersVanished",
    ]  # fmt: skip
    assert json.loads((tmp_path / "brief/dashboard.json").read_text())["panels"]
    result = call("brief", stored.folder, stored.folder, "--alerts")
    assert (result.exit_code, "beside the brief of one run" in result.stderr) == (2, True)


def test_every_panel_asks_for_counters_of_this_engine(summary):
    for adapter, counted in COUNTERS.items():
        shown = pages(watch_of(on(summary, adapter)), "brief")["dashboard"]
        asked = " ".join(target["expr"] for panel in shown["panels"] for target in panel["targets"])
        prefix = counted["tokens"].partition(":")[0]
        assert {part.partition(":")[0].rpartition("(")[2] for part in asked.split() if ":" in part} == {prefix}
        assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])


def test_a_draft_with_braces_is_no_template(summary):
    odd = replace(watch_of(summary), draft="{{ $labels }}")
    said = [
        rule["annotations"]["summary"] for rule in pages(odd, "brief")["rules"]["groups"][0]["rules"] if "alert" in rule
    ]
    assert not [words for words in said if "{" in words]


# Counters minute by minute, as a server that is scraped every minute shows them: start, step, times.
def page(adapter: str, *, accepted: float, rounds: str | None = None, tokens: str = "0+600x120") -> list[dict]:
    counted = COUNTERS[adapter]
    each = {counted["tokens"]: tokens, counted["rounds"]: rounds or "0+120x120"}
    if "drafted" in counted:
        each |= {counted["drafted"]: "0+480x120", counted["accepted"]: f"0+{480 * accepted:g}x120"}
    return [{"series": f'{name}{{job="llm", instance="a"}}', "values": values} for name, values in each.items()]


def firing(adapter: str, name: str, series: list[dict], fires: bool, at: str = "110m") -> dict:
    labels = {
        "severity": "critical" if name == "SpeculationBelowBreakEven" else "warning",
        "job": "llm",
        "instance": "a",
    }
    expected = [{"exp_labels": labels}] if fires else []
    return {
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": expected}],
    }


@pytest.mark.full
@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
@pytest.mark.parametrize("adapter", COUNTERS)
def test_prometheus_fires_them_on_a_made_up_page(summary, tmp_path, adapter):
    path, _ = write_alerts(on(summary, adapter), tmp_path)
    checked = subprocess.run([PROMTOOL, "check", "rules", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    watch = watch_of(on(summary, adapter))
    cases = [
        firing(adapter, "SpeculationStopped", page(adapter, accepted=0.5), fires=False),
        firing(adapter, "SpeculationStopped", page(adapter, accepted=0.5, rounds="0+120x60 7200x60"), fires=True),
        # The server is idle: no tokens, no alarm.
        firing(
            adapter,
            "SpeculationStopped",
            page(adapter, accepted=0.0, rounds="7200x120", tokens="9000x120"),
            fires=False,
        ),
        firing(adapter, "SpeculationCountersVanished", page(adapter, accepted=0.5), fires=False),
        firing(adapter, "SpeculationCountersVanished", page(adapter, accepted=0.5, rounds="0+120x60 _x60"), fires=True),
    ]
    for name, low in (("SpeculationBelowBreakEven", watch.break_even), ("SpeculationAcceptsLess", watch.break_even)):
        for share, fires in ((0.9 * low, True), (watch.measured, False)):
            if "drafted" in COUNTERS[adapter]:
                series = page(adapter, accepted=share)
            else:
                series = page(adapter, accepted=0.0, tokens=f"0+{120 * share:g}x120")
            cases.append(firing(adapter, name, series, fires))
    test = tmp_path / "test.yml"
    made = pages(watch, f"brief of {summary.run.rpartition('/')[2]}")["rules"]
    for case in cases:
        for one in case["alert_rule_test"]:
            own = next(r for r in made["groups"][0]["rules"] if r.get("alert") == one["alertname"])
            for expected in one["exp_alerts"]:
                expected["exp_annotations"] = own["annotations"]
    test.write_text(yaml.safe_dump({"rule_files": [path.name], "evaluation_interval": "1m", "tests": cases}))
    found = subprocess.run([PROMTOOL, "test", "rules", test.name], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
