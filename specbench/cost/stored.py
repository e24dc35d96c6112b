"""The costs of an earlier `specbench probe`, for a run in the same setting and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specbench.checks.stored import check_probe
from specbench.cost.plan import Costs, ProbePlan
from specbench.errors import StoreError
from specbench.records import Caution, CostPoint
from specbench.store import cautions_of, read_run

_CURE = "Run specbench probe again in the setting of this run, or leave out --costs."

# Contexts further than this factor outside those of the probe are worth a caution.
_REACH = 1.5


def stored_costs(folder: Path, record: Mapping[str, Any], plan: ProbePlan) -> Costs:
    """The points of a probe folder for the run that `record` (its run.json) and `plan` describe.

    Raises StoreError where the folder is no probe, where models, machine, precision, device, threads or library
    versions differ, and where a width that the run needs was not probed at batch 1.
    """
    probed = require_probe(folder)
    names = _same_drafts(probed["drafts"], record["drafts"])
    names[None] = None
    differs = _differences(probed, record, names)
    if differs:
        raise StoreError(f"The probe was made with {', '.join(differs)}", where=str(folder), cure=_CURE)
    points = [CostPoint(**point) for point in probed["probe"]]
    kept = tuple(replace(point, model=names[point.model]) for point in points if point.model in names)
    _require_widths(kept, record, plan, folder)
    return Costs(kept, (*_contexts(kept, plan), *cautions_of(probed)), str(folder))


def require_probe(folder: Path) -> dict[str, Any]:
    """run.json of a probe's folder; raises StoreError for any other folder."""
    record = read_run(folder).run
    if record["command"] != "probe":
        raise StoreError("This folder holds no probe", where=str(folder), cure="Name one that specbench probe made.")
    try:
        check_probe(record)
    except ValueError as error:
        raise StoreError(
            f"run.json is not that of a probe: {error}", where=str(folder), cure="Run specbench probe again."
        ) from None
    return record


def _same_drafts(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str | None, str | None]:
    """What the probe's drafts are called in this run; another path to the same model is the same model."""
    ours = {_identity(facts): facts["reader"] for facts in here.values() if facts["reader"] is not None}
    same: dict[str | None, str | None] = {
        spec: ours[_identity(facts)] for spec, facts in there.items() if _identity(facts) in ours
    }
    # The target's own first layers have no identity but their name.
    return same | {spec: spec for spec in there if spec in ours.values()}


def _identity(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    return facts["revision"] or facts["name"], facts["parameters"]


def _differences(
    probed: Mapping[str, Any], record: Mapping[str, Any], names: Mapping[str | None, str | None]
) -> list[str]:
    """What is another there than here, in words with both values."""
    there, here = probed["provenance"], record["provenance"]
    found = []
    if _identity(probed["target"]) != _identity(record["target"]):
        found.append(f"another target ({probed['target']['name']})")
    # A look-up has no weights and no cost.
    found += [f"no draft {reader}" for reader in _readers(record) if reader not in names.values()]
    if there["hardware"] != here["hardware"]:
        found.append(f"another machine ({there['hardware']['line']})")
    for key, noun in (("precision", "precision"), ("device", "device"), ("threads", "threads")):
        if there[key] != here[key]:
            found.append(f"{noun} {there[key]}, not {here[key]}")
    for name in sorted({*there["versions"], *here["versions"]}):
        was, now = there["versions"].get(name), here["versions"].get(name)
        if was != now:
            found.append(f"{name} {was}, not {now}")
    return found


def _readers(record: Mapping[str, Any]) -> list[str]:
    """The draft models of a run; a look-up has none, and several drafts may share one."""
    return sorted({facts["reader"] for facts in record["drafts"].values() if facts["reader"] is not None})


def _require_widths(points: tuple[CostPoint, ...], record: Mapping[str, Any], plan: ProbePlan, folder: Path) -> None:
    reads = {(p.model, p.tokens) for p in points if p.batch == 1 and p.phase == "read" and p.context > 0}
    widths: dict[str | None, tuple[int, ...]] = {None: plan.widths(1)}
    widths |= dict.fromkeys(_readers(record), (1, 2))
    missing = [(model, n) for model, needed in widths.items() for n in needed if (model, n) not in reads]
    if missing:
        model, width = missing[0]
        raise StoreError(
            f"The probe did not time {model or 'the target'} over {width} tokens at batch 1",
            where=str(folder),
            cure=f"Run specbench probe with --gamma 1..{max(plan.gammas)} and batch size 1.",
        )


def _contexts(points: tuple[CostPoint, ...], plan: ProbePlan) -> list[Caution]:
    probed = sorted({point.context for point in points if point.context > 0})
    if probed[0] / _REACH <= plan.contexts[0] and plan.contexts[-1] <= probed[-1] * _REACH:
        return []
    return [
        Caution(
            "probe-contexts",
            f"the models were probed after {probed[0]} to {probed[-1]} tokens, texts of this run are at "
            f"{plan.contexts[0]} to {plan.contexts[-1]} in their middle; costs are held beyond what was probed",
            f"Probe with --context {','.join(map(str, plan.contexts))}.",
        )
    ]
