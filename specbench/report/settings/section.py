"""The section "Settings to paste": the draft that was decided about, as each engine is told of it.

What was measured is named as such. Settings for an engine that was not measured are settings to measure with: another
engine has another cost of a round, and a GO does not carry over. The sentences are in settings.j2 and words.yaml. What
is said of switching by request there is from github.com/vllm-project/vllm (issue 52258 open, pull request 55412 closed
unmerged; dynamic_speculative_decoding.md), github.com/sgl-project/sglang (issue 30263, pull request 30264, closed) and
github.com/ggml-org/llama.cpp (issue 23052, closed; xllamacpp 2026.10 was seen to ignore `speculative.n_max` 0).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specbench.analysis.contract import DraftResult, GammaResult, Rival, Summary
from specbench.analysis.facts import Facts, Model
from specbench.config import SERVED
from specbench.drafters import parse_draft
from specbench.models.embedded import PREFIX
from specbench.records import Call, Reason
from specbench.report.settings.plan import Given, Plan, Routing, gamma_to_paste, gguf, routing, shell
from specbench.report.settings.servers import ENGINES
from specbench.shipped import DEFAULT_WORKLOAD

# The engines that specbench starts itself, by the names that --engine takes.
_LAUNCHED = {"vLLM": "vllm", "SGLang": "sglang", "llama.cpp": "llamacpp"}

# Of the server without these settings, and of the one with them.
_PORTS = ("8000", "8001")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One engine; `found` is what to paste."""

    engine: str
    measured: bool
    found: Given


@dataclass(frozen=True, slots=True)
class Settings:
    """What the section says. `plan` is the recommended draft at the gamma to paste, `row` what was measured of it
    there; `call` is the verdict on the whole run. `measure` says how to measure it on an engine, and the command; None
    where one was measured. `engines` are those that can draft like this, the measured one first; none where nothing is
    to be switched on. `refused` says of the others why not, `instead` which measured draft they have. `off` are the
    engines to say of how it is switched off, none where everything is on."""

    summary: Summary
    plan: Plan
    call: Call
    row: GammaResult | None
    measure: tuple[Reason, str] | None
    engines: tuple[EngineSettings, ...]
    refused: tuple[Reason, ...]
    instead: tuple[Rival, tuple[str, ...]] | None
    off: tuple[str, ...]
    routing: Routing | None

    @property
    def draft(self) -> str:
        return self.plan.spec.text

    @property
    def gamma(self) -> int:
        return self.plan.gamma

    @property
    def served(self) -> bool:
        """Whether of the draft no more is known than that a server had it."""
        return self.plan.spec.model == SERVED

    @property
    def legends(self) -> list[Reason]:
        """What placeholders stand for, each once."""
        found = {legend.values["place"]: legend for each in self.engines for legend in each.found.legends}
        return list(found.values())


def settings_of(summary: Summary) -> Settings | None:
    """The settings for the recommended draft; None where nothing was measured."""
    draft, facts, mix = summary.recommended, summary.facts, summary.policy.mix
    if draft is None:
        return None
    chosen = summary.choice if summary.choice is not None and summary.choice.draft == draft.draft else None
    gamma, call = (chosen.gamma, chosen.verdict) if chosen else (draft.best_gamma, draft.verdict)
    routes = routing(draft, mix)
    plan = _plan(summary, draft, gamma_to_paste(routes, gamma, call, mix))
    order = sorted(ENGINES, key=lambda name: name != plan.on)
    # What was measured without knowing the draft cannot be written down for any engine.
    wanted = plan.spec.model != SERVED and (call != "NO-GO" or routes is not None)
    built = [(name, ENGINES[name][0](plan)) for name in order if wanted]
    able = [EngineSettings(name, name == plan.on, found) for name, found in built if isinstance(found, Given)]
    return Settings(
        summary=summary,
        plan=plan,
        call=call,
        row=next((row for row in draft.gammas if row.gamma == plan.gamma), None),
        measure=_measure(plan, facts, [each.engine for each in able]) if plan.on is None else None,
        engines=tuple(able),
        refused=tuple(found for _, found in built if isinstance(found, Reason)),
        instead=_instead(summary, plan, call, [name for name, found in built if isinstance(found, Reason)]),
        off=tuple(name for name in order if call == "NO-GO" or routes is not None),
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
        on=next((name for name, (_, adapters) in ENGINES.items() if adapter in adapters), None),
    )


def _title(model: Model) -> str | None:
    return model.name if model.name != model.spec else None


def _measure(plan: Plan, facts: Facts, engines: Sequence[str]) -> tuple[Reason, str] | None:
    """How to measure it on one of `engines`, in words and as a command: specbench starts the servers or, of a draft
    that its launch files do not have, measures two that run. None where none of them is a server that it knows."""
    names = [_LAUNCHED[name] for name in engines if name in _LAUNCHED]
    # Where the model is not in a form that an engine reads, another is named first.
    names = [name for name in names if _reads(name, plan.target)] or names
    if not names:
        return None
    options = [["specbench", "sweep", "--gamma", str(plan.gamma)]]
    # llama.cpp runs anywhere.
    engine = "llamacpp" if "llamacpp" in names else names[0]
    if _startable(plan):
        how = Reason("started", {"others": [name for name in names if name != engine]})
        options[0] += ["--engine", engine]
    else:
        how = Reason("running", {"ports": list(_PORTS)})
        options[0][1] = "measure"
        options.append([part for flag, port in zip(("--server", "--spec-server"), _PORTS, strict=True)
                        for part in (flag, f"http://localhost:{port}")])  # fmt: skip
    target, draft = plan.target, plan.spec.text
    if engine == "llamacpp":
        target = target if target.startswith(PREFIX) else gguf(plan, "target").name
        model = plan.spec.model or ""
        draft = draft if not model or model.startswith(PREFIX) else draft.replace(model, gguf(plan, "draft").name)
    options.append(["--target", target, "--draft", draft])
    return how, shell([*options, *_as_before(plan, facts)])


def _reads(engine: str, model: str) -> bool:
    return model.startswith(PREFIX) or model.lower().endswith(".gguf") == (engine == "llamacpp")


def _as_before(plan: Plan, facts: Facts) -> list[list[str]]:
    """The prompts, how they are read, and the sampling of the run, where they are not those that a command has anyway;
    of a system prompt no more is kept than that there was one."""
    options, work = [], facts.workload
    if work.source is not None and not work.source.endswith(DEFAULT_WORKLOAD):
        options.append(["--workload", work.source])
    given = {
        "--column": work.column,
        "--category-column": work.category_column,
        "--system-prompt": "..." if work.system_prompt else None,
        "--chat-template-kwargs": json.dumps(facts.template_kwargs) if facts.template_kwargs else None,
    }
    options += [[flag, value] for flag, value in given.items() if value is not None]
    if plan.max_new_tokens:
        options.append(["--max-new-tokens", str(plan.max_new_tokens)])
    sampling = plan.sampling
    drawn = {}
    if not sampling.greedy:
        drawn = {"temperature": sampling.temperature, "top-p": sampling.top_p, "top-k": sampling.top_k}
        drawn |= {"min-p": sampling.min_p} if sampling.min_p else {}
    drawn |= {"repetition-penalty": sampling.repetition_penalty} if sampling.penalised else {}
    if drawn:
        options.append([part for flag, value in drawn.items() for part in (f"--{flag}", f"{value:g}")])
    return options


def _startable(plan: Plan) -> bool:
    """Whether a launch file of ours has this draft, whatever the engine: see servers.launch."""
    spec, ngram = plan.spec, plan.spec.ngram
    if ngram is None:
        return spec.kind == "model" and spec.suffix is None
    return spec.kind is None and not ngram.stated and ngram.longest is None


def _instead(summary: Summary, plan: Plan, call: Call, refusing: Sequence[str]) -> tuple[Rival, tuple[str, ...]] | None:
    """A draft of this run that is not surely slower, and those of the `refusing` engines that have it."""
    verdicts = {draft.draft: draft.verdict for draft in summary.drafts}
    for rival in summary.choice.rivals if summary.choice is not None and call == "GO" else ():
        # Without an interval nothing is known of the two.
        near = rival.difference in ("same", "not resolved") and rival.ratio_low is not None
        if near and verdicts.get(rival.draft) == "GO":
            other = replace(plan, spec=parse_draft(rival.draft), gamma=rival.gamma)
            able = tuple(name for name in refusing if isinstance(ENGINES[name][0](other), Given))
            if able:
                return rival, able
    return None
