"""The section "Settings to paste": the draft that was decided about, as each engine is told of it.

What was measured is named as such. Settings for an engine that was not measured are settings to measure with: another
engine has another cost of a round, and a GO does not carry over.
"""

from __future__ import annotations

from dataclasses import dataclass

from specbench.analysis.contract import DraftResult, Summary
from specbench.analysis.facts import Model
from specbench.config import SERVED
from specbench.drafters import parse_draft
from specbench.records import Call
from specbench.report.dialect import Column
from specbench.report.settings.engines import ENGINES, Engine
from specbench.report.settings.plan import Given, Plan
from specbench.report.settings.routing import gamma_to_paste, routing
from specbench.report.settings.words import expect, head, instead, measure


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One engine, in Markdown but for `code`, which is to be pasted as it is. `known` is for which versions it holds
    and how we know, `request` what each request has to say, `differs` where it is not quite what was measured, `check`
    how to see that it drafts like this."""

    engine: str
    measured: bool
    language: str
    code: str
    known: str
    request: str
    differs: str
    check: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the section says, in Markdown. `draft` is the recommended one as `--draft` has it, with the `gamma` to paste
    and its `cutoff` (None without one); `call` is the verdict on the whole run. `measure` says how to measure it on an
    engine, and the command; None where one was measured. `engines` are those that can draft like this, the measured one
    first; none where nothing is to be switched on. `refused` says of the others why not, `instead` which measured draft
    they have. `off` has rows (engine, what to set, how to see it), none where everything is on. `routing` is empty
    unless categories disagree."""

    draft: str
    gamma: int
    cutoff: float | None
    call: Call
    head: str
    measure: tuple[str, str] | None
    legend: str
    expect: str
    engines: tuple[EngineSettings, ...]
    refused: tuple[str, ...]
    instead: str
    off: tuple[tuple[str, str, str], ...]
    routing: tuple[str, ...]

    @property
    def off_columns(self) -> list[Column]:
        headers = ("engine", "to switch it off", "to see that it is off")
        cells = zip(*self.off, strict=True)
        return [Column(name, name, tuple(each), left=True) for name, each in zip(headers, cells, strict=True)]


def settings_of(summary: Summary) -> Settings | None:
    """The settings for the recommended draft; None where nothing was measured."""
    draft, facts = summary.recommended, summary.facts
    if draft is None:
        return None
    chosen = summary.choice if summary.choice is not None and summary.choice.draft == draft.draft else None
    gamma, call = (chosen.gamma, chosen.verdict) if chosen else (draft.best_gamma, draft.verdict)
    plan = _plan(summary, draft, gamma_to_paste(draft, gamma, call, summary.policy.mix))
    routes = routing(draft, plan.gamma, call, summary.policy.mix)
    order = sorted(ENGINES, key=lambda engine: engine.name != plan.on)
    # What was measured without knowing the draft cannot be written down for any engine.
    wanted = plan.spec.model != SERVED and (call != "NO-GO" or bool(routes))
    built = [(engine, engine.build(plan)) for engine in order if wanted]
    given = [(engine, found) for engine, found in built if isinstance(found, Given)]
    legends = dict.fromkeys(legend for _, found in given for legend in found.legends)
    return Settings(
        draft=draft.draft,
        gamma=plan.gamma,
        cutoff=plan.spec.cutoff or None,
        call=call,
        head=head(summary, plan, draft, call, pasted=bool(given)),
        measure=measure(plan, facts, [engine.name for engine, _ in given]) if plan.on is None else None,
        legend=f"{'; '.join(legends)}." if legends else "",
        expect=expect(plan, draft) if given else "",
        engines=tuple(_engine(engine, found, plan) for engine, found in given),
        refused=tuple(found for _, found in built if isinstance(found, str)),
        instead=instead(summary, plan, call, [engine for engine, found in built if isinstance(found, str)]),
        off=tuple((engine.name, engine.off, engine.resting) for engine in order if call == "NO-GO" or routes),
        routing=routes,
    )


def _plan(summary: Summary, draft: DraftResult, gamma: int) -> Plan:
    facts = summary.facts
    loaded = facts.drafts.get(draft.draft)
    adapter = summary.server.adapter if summary.server is not None else None
    return Plan(
        spec=parse_draft(draft.draft),
        gamma=gamma,
        target=summary.target,
        sampling=facts.sampling,
        target_title=_title(facts.target),
        draft_title=_title(loaded) if loaded is not None else None,
        precision=facts.precision,
        max_new_tokens=facts.max_new_tokens,
        batch_size=facts.batch_size,
        served=facts.served,
        ends=facts.target.ends,
        templated=bool(facts.workload.templated),
        head=loaded.head if loaded is not None else None,
        on=next((engine.name for engine in ENGINES if adapter in engine.adapters), None),
    )


def _title(model: Model) -> str | None:
    return model.name if model.name != model.spec else None


def _engine(engine: Engine, found: Given, plan: Plan) -> EngineSettings:
    return EngineSettings(
        engine=engine.name,
        measured=engine.name == plan.on,
        language=found.language,
        code=found.code,
        known=engine.known,
        request=found.request,
        differs=" ".join(found.differs),
        check=engine.running(plan),
    )
