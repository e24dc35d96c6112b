"""run.json: what every command that reads it may rely on.

Only what is read without asking is demanded, and only of the commands that read it: older runs lack newer keys.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from specbench.checks.fields import check_fields
from specbench.checks.keys import MAX_GAMMA, POLICY_CHECKS
from specbench.records import Caution, CostPoint, ReferenceCheck, RuledOut

_RUN: dict[str, Any] = {
    "status": str,
    "command": Literal["measure", "sweep", "replay", "probe"],
    "fingerprint": str | None,
    "provenance": dict[str, object],
    "target": dict[str, object],
    "drafts": dict[str, dict[str, object]],
    "workload": dict[str, object] | None,
    "served": dict[str, object] | None,
    "trials_planned": int | None,
    "warnings": tuple[Caution, ...],
    "probe": tuple[CostPoint, ...] | None,
    "reference_check": tuple[ReferenceCheck, ...] | None,
    "looks": tuple[int, ...] | None,
    "ruled_out": tuple[RuledOut, ...] | None,
}
_CONFIG: dict[str, Any] = {
    "target": str,
    "draft": tuple[str, ...],
    "workload": str | None,
    "column": str | None,
    "category_column": str | None,
    "system_prompt": str | None,
    "chat_template_kwargs": dict[str, object] | None,
    "gamma": tuple[int, ...],
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
    "dtype": str | None,
    "threads": int | None,
    "batch_size": int,
    "repeats": int,
    "engine": str | None,
    "served_model_name": str | None,
    "concurrency": tuple[int, ...] | None,
    "rate": tuple[float, ...] | None,
}
_PROVENANCE: dict[str, Any] = {
    "argv": tuple[str, ...] | None,
    "started": str | None,
    "finished": str | None,
    "versions": dict[str, str | None] | None,
    "hardware": dict[str, object] | None,
    "engine": str,
    "device": str | None,
    "precision": str | None,
    "threads": int | None,
}
_HARDWARE: dict[str, Any] = {"line": str | None, "memory_bytes": int | None, "cpu": str | None}
_MODEL: dict[str, Any] = {
    "name": str | None,
    "revision": str | None,
    "parameters": int | None,
    "weight_bytes": int | None,
    "step_bytes": int | None,
    "cache_bytes_per_token": int | None,
    "reader": str | None,
    "forward": str | None,
    "layers": int | None,
    "head": str | None,
    "layer_ids": tuple[int, ...] | None,
    "draft_vocabulary": int | None,
    "end_tokens": tuple[int, ...] | None,
}
_WORKLOAD: dict[str, Any] = {
    "source": str | None,
    "sha256": str | None,
    "prompts_available": int | None,
    "prompts_used": int | None,
    "categories": dict[str, dict[str, int]],
    "skipped": tuple[dict[str, str], ...],
    "encoded": dict[str, object] | None,
}
_ENCODED: dict[str, Any] = {"template_sha256": str | None, "now": str | None, "ids_sha256": dict[str, str]}
_SERVED: dict[str, Any] = {
    "adapter": str | None,
    "launch": str | None,
    "sources": dict[str, str] | None,
    "settings": dict[str, dict[str, object] | None] | None,
    "ends": tuple[int, ...],
}

# A verdict is read from these without asking.
_TIMED = ("target", "draft", "gamma", "temperature", "repeats", "batch_size")
_PROBED_MODEL = ("name", "revision", "parameters", "weight_bytes", "step_bytes")


def check_run(run: dict[str, Any]) -> None:
    """Raises ValueError for a run.json that no version of specbench writes: `config.gamma is text, not a list`."""
    _needs(run, ("status", "command", "config"), "")
    check_fields(run, _RUN, "")
    config = run["config"]
    check_fields(config, _CONFIG, "config")
    for name, kinds in (("provenance", _PROVENANCE), ("target", _MODEL), ("workload", _WORKLOAD), ("served", _SERVED)):
        if run.get(name) is not None:
            check_fields(run[name], kinds, name)
    if (encoded := (run.get("workload") or {}).get("encoded")) is not None:
        _needs(encoded, tuple(_ENCODED), "workload.encoded.")
        check_fields(encoded, _ENCODED, "workload.encoded")
        _check_time(encoded["now"])
    for skipped in (run.get("workload") or {}).get("skipped", ()):
        _needs(skipped, ("id", "reason"), "workload.skipped[].")
    for facts in run.get("drafts", {}).values():
        check_fields(facts, _MODEL, "drafts[]")
    for point in run.get("probe") or ():
        if min(point["median_s"], point["low_s"], point["high_s"], point["tokens"], point.get("batch", 1)) <= 0:
            raise ValueError("probe has a time, width or batch that is not above 0")
    hardware = run.get("provenance", {}).get("hardware")
    if hardware is not None:
        check_fields(hardware, _HARDWARE, "provenance.hardware")
    _needs(config, ("policy",), "config.")
    _check_policy(config["policy"])
    if any(not 1 <= gamma <= MAX_GAMMA for gamma in config.get("gamma", ())):
        raise ValueError(f"config.gamma is not from 1 to {MAX_GAMMA}")
    if run["command"] in ("measure", "sweep"):
        _needs(run, ("provenance",), "")
        _needs(run["provenance"], ("engine",), "provenance.")
        _needs(config, _TIMED, "config.")
        if min(config["repeats"], config["batch_size"]) < 1:
            raise ValueError("config.repeats or config.batch_size is not 1 or more")


def check_probe(run: dict[str, Any]) -> None:
    """The same for what a probe's folder must hold beside."""
    _needs(run, ("provenance", "target", "drafts", "probe", "bandwidth"), "")
    _needs(run["provenance"], ("hardware", "device", "precision", "threads", "versions"), "provenance.")
    for key in ("hardware", "versions"):
        check_fields(run["provenance"][key], {}, f"provenance.{key}")
    _needs(run["provenance"]["hardware"], ("line",), "provenance.hardware.")
    _needs(run["target"], _PROBED_MODEL, "target.")
    for facts in run["drafts"].values():
        _needs(facts, _PROBED_MODEL, "drafts[].")
    if not run["probe"] or not any(point["context"] > 0 for point in run["probe"]):
        raise ValueError("probe holds no pass after a context")


def _check_time(value: str | None) -> None:
    try:
        datetime.fromisoformat(value or "2026-01-01")
    except ValueError:
        raise ValueError("workload.encoded.now is not a time") from None


def _check_policy(policy: object) -> None:
    check_fields(policy, {}, "config.policy")
    assert isinstance(policy, dict)
    for name, value in policy.items():
        if name not in POLICY_CHECKS:
            raise ValueError("config.policy has a key that this version does not know")
        try:
            POLICY_CHECKS[name](value)
        except ValueError:
            raise ValueError(f"config.policy.{name} is not what a policy may hold") from None


def _needs(values: dict[str, Any], keys: tuple[str, ...], path: str) -> None:
    missing = [key for key in keys if values.get(key, ...) is ...]
    if missing:
        raise ValueError(f"it lacks {path}{missing[0]}")
