"""The costs of an earlier `specbench probe`, for a run in the same setting and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from specbench.config import NO_TARGET
from specbench.cost.plan import Costs, ProbePlan
from specbench.errors import StoreError
from specbench.records import CostPoint, Finding, warned
from specbench.run_record import ModelFacts, RunRecord
from specbench.store import read_run
from specbench.text import join

_HINT = "Run specbench probe again in the setting of this run, or leave out --costs."

# Contexts further than this factor outside those of the probe are worth a caution.
REACH = 1.5


def stored_costs(folder: Path, record: RunRecord, plan: ProbePlan) -> Costs:
    """The points of a probe folder for the run that `record` and `plan` describe.

    Raises StoreError where the folder is no probe, where models, machine, precision, device, threads or library
    versions differ, and where a width that the run needs was not probed at batch 1.
    """
    probed = require_probe(folder)
    if probed.served is not None:
        raise StoreError("The probe was made on a server", where=str(folder), hint=_HINT)
    names = _same_drafts(probed.drafts, record.drafts)
    _require_same(folder, _differences(probed, record, names))
    kept = _renamed(probed, names)
    _require_widths(kept, record, plan, folder)
    return Costs(kept, (*_contexts(kept, plan), *probed.warnings), str(folder))


def served_costs(folder: Path, record: RunRecord) -> Costs:
    """The rounds of a probe on a server, for the run that `record` describes. Raises StoreError where the folder is no
    such probe, where engine, machine, threads or models differ, and where the run's drafts, its widest gamma or its
    first load are not among what was probed."""
    probed, config = require_probe(folder), record.config
    if probed.served is None:
        raise StoreError("The probe timed models in process", where=str(folder), hint=_HINT)
    there, here = probed.provenance, record.provenance
    differs = _changed({
        "engine": (there.engine, here.engine),
        "machine": (there.hardware.line, here.hardware.line),
        "threads": (there.threads, here.threads),
        "target": (probed.target.name, record.target.name),
    })  # fmt: skip
    _require_same(folder, [*differs, *(f"no draft {draft}" for draft in config.draft if draft not in probed.drafts)])
    points = tuple(p for p in probed.probe or () if p.model is None or p.model in config.draft)
    widest, clients = max(config.gamma), config.concurrency[0]
    if max(probed.config.gamma) < widest or clients not in probed.config.concurrency:
        raise StoreError(
            f"The probe has no rounds at gamma {widest} with {clients} at once",
            where=str(folder),
            hint=f"Run specbench probe with --gamma 1..{widest} --concurrency {clients}.",
        )
    reached = {
        d: max((p.tokens - 1 for p in points if (p.phase, p.model, p.batch) == ("round", d, clients)), default=0)
        for d in probed.drafts
    }
    few = {draft: reached[draft] for draft in config.draft if reached[draft] < widest}
    return Costs(points, (*probed.warnings, *([_not_seen(few)] if few else [])), str(folder))


def replay_costs(folder: Path, record: RunRecord) -> Costs:
    """The points of a probe for drafts that the run `record` replayed, on whatever machine: it is the probe's machine
    that they speak of. Drafts are called as in the run. Raises StoreError where the folder is no probe, and where a
    draft of the run was not timed: taken for one that costs nothing it would look best."""
    probed = require_probe(folder)
    if probed.served is not None:
        names: Names = {None: None} | {draft: draft for draft in record.drafts if draft in probed.drafts}
        lacking = [draft for draft in record.drafts if draft not in names]
    else:
        names = _same_drafts(probed.drafts, record.drafts)
        lacking = [reader for reader in _readers(record) if reader not in names.values()]
    if lacking:
        raise StoreError(
            f"The probe did not time {', '.join(lacking)}",
            where=str(folder),
            hint="Run specbench probe with every --draft of this run.",
        )
    timed, ours = probed.target, record.target
    same = record.config.target in (NO_TARGET, timed.name) or (ours.revision and ours.revision == timed.revision)
    other = warned(
        "costs-of-another-target",
        f"the probe timed {timed.name}, and the run is of {record.config.target}: predicted speedups are those of "
        "acceptance as here at the costs of the other",
        "Give --costs a probe of this target.",
    )
    return Costs(_renamed(probed, names), (*([] if same else [other]), *probed.warnings), str(folder))


def _not_seen(most: Mapping[str, int]) -> Finding:
    """`most` is how many tokens a round of these drafts had there at most."""
    said = [f"{draft} drafted {f'no more than {n}' if n else 'nothing'}" for draft, n in most.items()]
    return warned(
        "rounds-not-probed",
        f"in the probe {join(said)}: beyond that there is no prediction",
        "A look-up drafts where texts repeat themselves: probe it with such prompts, or with longer answers.",
    )


def require_probe(folder: Path) -> RunRecord:
    """run.json of a probe's folder; raises StoreError for any other folder."""
    record = read_run(folder).run
    if record.command != "probe":
        raise StoreError("This folder holds no probe", where=str(folder), hint="Name one that specbench probe made.")
    if (lacking := _lacking(record)) is not None:
        raise StoreError(
            f"run.json is not that of a probe: {lacking}", where=str(folder), hint="Run specbench probe again."
        )
    return record


def _lacking(record: RunRecord) -> str | None:
    origin = record.provenance
    needed: dict[str, object] = {"provenance.hardware.line": origin.hardware.line, "probe": record.probe or None}
    if record.served is None:
        needed |= {f"provenance.{key}": getattr(origin, key) for key in ("device", "precision", "threads")}
        needed["bandwidth"] = record.bandwidth
        for place, facts in (("target", record.target), *(("drafts[]", facts) for facts in record.drafts.values())):
            keys = ("name", "parameters", "weight_bytes", "step_bytes")
            needed |= {f"{place}.{key}": getattr(facts, key) for key in keys}
    missing = [key for key, value in needed.items() if value is None]
    if missing:
        return f"it lacks {missing[0]}"
    after = record.served is not None or any(point.context > 0 for point in record.probe or ())
    return None if after else "probe holds no pass after a context"


Names = dict[str | None, str | None]


def _same_drafts(there: Mapping[str, ModelFacts], here: Mapping[str, ModelFacts]) -> Names:
    """What the probe's models are called in this run, the target None in both; another path to the same model is the
    same model."""
    ours = {_identity(facts): facts.reader for facts in here.values() if facts.reader is not None}
    same: Names = {spec: ours[_identity(facts)] for spec, facts in there.items() if _identity(facts) in ours}
    # The target's own first layers have no identity but their name.
    return same | {spec: spec for spec in there if spec in ours.values()} | {None: None}


def _renamed(probed: RunRecord, names: Names) -> tuple[CostPoint, ...]:
    """The probe's points of these models."""
    return tuple(replace(p, model=names[p.model]) for p in probed.probe or () if p.model in names)


def _identity(facts: ModelFacts) -> tuple[str | None, int | None]:
    return facts.revision or facts.name, facts.parameters


def _require_same(folder: Path, differs: Sequence[str]) -> None:
    if differs:
        raise StoreError(f"The probe was made with {', '.join(differs)}", where=str(folder), hint=_HINT)


def _changed(pairs: Mapping[str, tuple[object, object]]) -> list[str]:
    return [f"{name} {was}, not {now}" for name, (was, now) in pairs.items() if was != now]


def _differences(probed: RunRecord, record: RunRecord, names: Names) -> list[str]:
    """What is another there than here, in words with both values."""
    there, here = probed.provenance, record.provenance
    found = []
    if _identity(probed.target) != _identity(record.target):
        found.append(f"another target ({probed.target.name})")
    # A look-up has no weights and no cost.
    found += [f"no draft {reader}" for reader in _readers(record) if reader not in names.values()]
    if there.hardware != here.hardware:
        found.append(f"another machine ({there.hardware.line})")
    found += _changed({key: (getattr(there, key), getattr(here, key)) for key in ("precision", "device", "threads")})
    libraries = sorted({*there.versions, *here.versions})
    return found + _changed({name: (there.versions.get(name), here.versions.get(name)) for name in libraries})


def _readers(record: RunRecord) -> list[str]:
    """The draft models of a run; a look-up has none, and several drafts may share one."""
    return sorted({facts.reader for facts in record.drafts.values() if facts.reader is not None})


def _require_widths(points: tuple[CostPoint, ...], record: RunRecord, plan: ProbePlan, folder: Path) -> None:
    reads = {(p.model, p.tokens) for p in points if p.batch == 1 and p.phase == "read" and p.context > 0}
    widths: dict[str | None, tuple[int, ...]] = {None: plan.widths(1)}
    widths |= dict.fromkeys(_readers(record), (1, 2))
    missing = [(model, n) for model, needed in widths.items() for n in needed if (model, n) not in reads]
    if missing:
        model, width = missing[0]
        raise StoreError(
            f"The probe did not time {model or 'the target'} over {width} tokens at batch 1",
            where=str(folder),
            hint=f"Run specbench probe with --gamma 1..{max(plan.gammas)} and batch size 1.",
        )


def _contexts(points: tuple[CostPoint, ...], plan: ProbePlan) -> list[Finding]:
    probed = sorted({point.context for point in points if point.context > 0})
    if probed[0] / REACH <= plan.contexts[0] and plan.contexts[-1] <= probed[-1] * REACH:
        return []
    return [
        warned(
            "probe-contexts",
            f"the models were probed after {probed[0]} to {probed[-1]} tokens, texts of this run are at "
            f"{plan.contexts[0]} to {plan.contexts[-1]} in their middle; costs are held beyond what was probed",
            f"Run specbench probe --context {','.join(map(str, plan.contexts))}.",
        )
    ]
