"""The section "Settings to paste": the draft that was decided about, as each engine is told of it.

What was measured is named as such. Settings for an engine that was not measured are settings to measure with: another
engine has another cost of a round, and a GO does not carry over. The sentences are in settings.j2 and words.yaml. What
is said of switching by request there is from github.com/vllm-project/vllm (issue 52258 open, pull request 55412 closed
unmerged; dynamic_speculative_decoding.md), github.com/sgl-project/sglang (issue 30263, pull request 30264, closed) and
github.com/ggml-org/llama.cpp (issue 23052, closed; xllamacpp 2026.10 was seen to ignore `speculative.n_max` 0).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from specbench.analysis.contract import GammaResult, Rival, Summary
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
class Settings:
    """What the section says. `plan` is the recommended draft at the gamma to paste, `call` the verdict on the run.
    `engines` are those that can draft like this, the measured one first; none where nothing is to be switched on.
    `refused` says of the others why not, `instead` which measured draft they have. `measure` says how to measure it on
    an engine, and the command; None where one was measured."""

    summary: Summary
    plan: Plan
    call: Call
    routing: Routing | None
    engines: Mapping[str, Given]
    refused: Mapping[str, Reason]
    instead: tuple[Rival, tuple[str, ...]] | None
    measure: tuple[Reason, str] | None

    @property
    def row(self) -> GammaResult | None:
        """What was measured of the draft at this gamma."""
        draft = self.summary.recommended
        return next((row for row in draft.gammas if row.gamma == self.plan.gamma), None) if draft is not None else None

    @property
    def served(self) -> bool:
        """Whether of the draft no more is known than that a server had it."""
        return self.plan.spec.model == SERVED

    @property
    def off(self) -> list[str]:
        """The engines to say of how it is switched off; none where everything is on."""
        return _order(self.plan) if self.call == "NO-GO" or self.routing is not None else []

    @property
    def legends(self) -> list[Reason]:
        """What placeholders stand for, each once."""
        found = {legend.values["place"]: legend for each in self.engines.values() for legend in each.legends}
        return list(found.values())


def settings_of(summary: Summary) -> Settings | None:
    """The settings for the recommended draft; None where nothing was measured."""
    draft, mix = summary.recommended, summary.policy.mix
    if draft is None:
        return None
    chosen = summary.choice if summary.choice is not None and summary.choice.draft == draft.draft else None
    gamma, call = (chosen.gamma, chosen.verdict) if chosen else (draft.best_gamma, draft.verdict)
    routes = routing(draft, mix)
    adapter = summary.server.adapter if summary.server is not None else None
    on = next((name for name, (_, adapters) in ENGINES.items() if adapter in adapters), None)
    gamma = gamma_to_paste(routes, gamma, call, mix)
    plan = Plan(parse_draft(draft.draft), gamma, summary.target, summary.facts, on)
    # What was measured without knowing the draft cannot be written down for any engine.
    wanted = plan.spec.model != SERVED and (call != "NO-GO" or routes is not None)
    built = {name: ENGINES[name][0](plan) for name in _order(plan) if wanted}
    engines = {name: found for name, found in built.items() if isinstance(found, Given)}
    refused = {name: found for name, found in built.items() if isinstance(found, Reason)}
    instead = _instead(summary, plan, refused) if call == "GO" else None
    measure = _measure(plan, list(engines)) if on is None else None
    return Settings(summary, plan, call, routes, engines, refused, instead, measure)


def _order(plan: Plan) -> list[str]:
    """The engine that was measured goes first."""
    return sorted(ENGINES, key=lambda name: name != plan.on)


def _measure(plan: Plan, engines: Sequence[str]) -> tuple[Reason, str] | None:
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
    return how, shell([*options, *_as_before(plan)])


def _reads(engine: str, model: str) -> bool:
    return model.startswith(PREFIX) or model.lower().endswith(".gguf") == (engine == "llamacpp")


def _as_before(plan: Plan) -> list[list[str]]:
    """The prompts, how they are read, and the sampling of the run, where they are not those that a command has anyway;
    of a system prompt no more is kept than that there was one."""
    facts, options, work = plan.facts, [], plan.facts.workload
    if work.source is not None and not work.source.endswith(DEFAULT_WORKLOAD):
        options.append(["--workload", work.source])
    given = {
        "--column": work.column,
        "--category-column": work.category_column,
        "--system-prompt": "..." if work.system_prompt else None,
        "--chat-template-kwargs": json.dumps(facts.template_kwargs) if facts.template_kwargs else None,
    }
    options += [[flag, value] for flag, value in given.items() if value is not None]
    if facts.max_new_tokens:
        options.append(["--max-new-tokens", str(facts.max_new_tokens)])
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


def _instead(summary: Summary, plan: Plan, refusing: Iterable[str]) -> tuple[Rival, tuple[str, ...]] | None:
    """A draft of this run that is not surely slower, and those of the `refusing` engines that have it."""
    verdicts = {draft.draft: draft.verdict for draft in summary.drafts}
    for rival in summary.choice.rivals if summary.choice is not None else ():
        # Without an interval nothing is known of the two.
        near = rival.difference in ("same", "not resolved") and rival.ratio_low is not None
        if near and verdicts.get(rival.draft) == "GO":
            other = replace(plan, spec=parse_draft(rival.draft), gamma=rival.gamma)
            able = tuple(name for name in refusing if isinstance(ENGINES[name][0](other), Given))
            if able:
                return rival, able
    return None
