"""The number format of models in this process: as asked, else the weights' own, else float32 where a CPU has no kernels
for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from specbench.config import DType, RunConfig
from specbench.drafters import parse_draft
from specbench.models import resolve_device
from specbench.models.heads import heads_of
from specbench.models.shapes import own_format
from specbench.records import Finding, warned

# In float32 a CPU multiplies as fast as it can; more than so many times as slowly is without kernels.
SLOW = 2.0


def with_precision(
    config: RunConfig, was: str | None = None, own: str | None = None
) -> tuple[RunConfig, list[Finding]]:
    """`config` with a `dtype` that is one, and what to say of it. `was` is that of the session that began the run,
    which a continued one keeps; `own` the weights' format where the target is no model that can be looked up."""
    device = resolve_device(config.device)
    asked = config.dtype != "auto"
    wanted = config.dtype if asked else own or _own(config)
    times = times_float32(wanted, device)
    if asked or was == wanted:
        return _in(config, wanted), [_slow(wanted, times)] if times > SLOW else []
    if was is not None or times > SLOW:
        return _in(config, was or "float32"), [_instead(was or "float32", wanted, times)]
    return _in(config, wanted), []


def _in(config: RunConfig, dtype: str) -> RunConfig:
    return replace(config, dtype=cast(DType, dtype))


def times_float32(dtype: str, device: str, now: Callable[[], float] = time.thread_time) -> float:
    """How many times as long as in float32 a CPU multiplies matrices of the size of a prompt's, by the best of five
    turns of each in processor time, which others on the machine leave alone; 1 elsewhere. With kernels bfloat16 takes
    half as long, without them 5 to 10 times. Single steps do not tell: they wait for memory, of which bfloat16 takes
    half."""
    if dtype == "float32" or not device.startswith("cpu"):
        return 1.0
    import torch

    best = dict.fromkeys(("float32", dtype), float("inf"))
    for _ in range(5):
        for name in best:
            one = torch.ones(64, 1024, dtype=getattr(torch, name))
            other = torch.ones(1024, 1024, dtype=one.dtype)
            start_s = now()
            one @ other
            best[name] = min(best[name], now() - start_s)
    return best[dtype] / best["float32"]


def _own(config: RunConfig) -> str:
    """Of the first model that names one, the target before the drafts; heads take the target's."""
    drafts = [draft.model for draft in map(parse_draft, config.draft) if draft.model is not None]
    names = dict.fromkeys([config.target, *drafts])
    trusted = frozenset(config.trust_remote_code)
    found = (own_format(name, trust_remote_code=trusted) for name in names if name not in heads_of(names))
    return next((one for one in found if one is not None), "float32")


def _slow(dtype: str, times: float) -> Finding:
    return warned(
        "slow-precision",
        f"this CPU multiplies {times:.0f} times as slowly in {dtype} as in float32, for which it has kernels: prompts "
        "and verify passes are dearer than where the model is served",
        "Measure with --dtype float32, or on the machine that serves.",
    )


def _instead(dtype: str, own: str, times: float) -> Finding:
    why = f"in which this CPU multiplies {times:.0f} times as slowly" if times > SLOW else "as the run began"
    return warned(
        "other-precision",
        f"measured in {dtype}, not in the weights' own {own}, {why}",
        f"Read it as an estimate for a server in {own}, or measure there; --dtype {own} measures in it here.",
    )
