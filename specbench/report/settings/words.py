"""What the settings are for, in words: the recommendation, what it was measured on, and how to measure it elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from specbench import text
from specbench.analysis.contract import DraftResult, Summary
from specbench.analysis.facts import Facts
from specbench.config import SERVED
from specbench.drafters import parse_draft
from specbench.models.embedded import PREFIX
from specbench.records import Call
from specbench.report.settings.engines import Engine
from specbench.report.settings.plan import Given, Plan, gguf, shell
from specbench.report.settings.routing import part_that_is_on
from specbench.report.templating import mark
from specbench.shipped import DEFAULT_WORKLOAD

# The engines that specbench starts itself, by the names that --engine takes.
_LAUNCHED = {"vLLM": "vllm", "SGLang": "sglang", "llama.cpp": "llamacpp"}

# Of the server without these settings, and of the one with them.
_PORTS = ("8000", "8001")


def head(summary: Summary, plan: Plan, draft: DraftResult, call: Call, *, pasted: bool) -> str:
    """What is recommended, what it was measured on, and so what these settings are for; `pasted` says whether any
    follow."""
    cutoff = f"with a cut-off of {plan.spec.cutoff:g}" if plan.spec.cutoff else "without a cut-off"
    what, how = text.code(plan.spec.text), f"gamma {plan.gamma}, {cutoff}"
    on = text.join(text.escape(category.category) for category in part_that_is_on(draft))
    if call == "GO":
        first = f"**GO: {what}, {how}.**"
    elif call == "NO-GO":
        first = (
            f"**NO-GO: leave {what} off{f', but for {on}' if on else ''}.** An engine speculates only where told to."
        )
        first += f" For {on}: {how} (see Which category goes where)." if on else ""
    else:
        first = f"**UNCLEAR: nothing to go live with{f' but for {on}' if on else ''}.** What follows is {what}, {how}"
        first += " (see Which category goes where). All else is" if on else ". It is"
        first += " for a trial, a canary or a copy of the traffic: for measuring, not for production."
    same = f"Elsewhere these settings should draft as was measured {mark('assumed', 'other engine')}." if pasted else ""
    return " ".join(filter(None, (first, _measured_on(summary, plan, call), same)))


def _measured_on(summary: Summary, plan: Plan, call: Call) -> str:
    verdict = {"GO": "a GO", "NO-GO": "a NO-GO", "UNCLEAR": "what was measured"}[call]
    apart = f"another engine has another cost of a round, so {verdict} does not carry over (see What this holds for)"
    server = summary.server
    if server is None:
        return f"Measured in process, on none of the engines here: {apart}. Measure on yours before you decide."
    if plan.spec.model == SERVED:
        return (
            "Of the draft specbench knows only that the measured server was started with it: keep that server's own "
            "command line."
        )
    own = "the command line of that server is what was measured"
    if server.launch is not None:
        own = f"its flags in {text.code(server.launch)} belong to what was measured"
    if plan.on is None:
        return f"Measured on a server of another engine than those here ({own}): {apart}."
    return f"Measured on {plan.on}, requests {text.escape(server.load)}; {own}. The others were not measured: {apart}."


def expect(plan: Plan, draft: DraftResult) -> str:
    """What the counters have to come near to; empty where the run has no counts."""
    row = next((row for row in draft.gammas if row.gamma == plan.gamma), None)
    if row is None or row.tokens_per_round is None or row.acceptance_rate is None:
        return ""
    # Servers leave rounds that find nothing out of their counters, so tau does not follow from those of a look-up.
    tau = (
        f"{row.tokens_per_round:.2f} tokens per round (1 + accepted over drafts) and " if not plan.spec.look_up else ""
    )
    return (
        f"Where it drafts as measured, expect about {tau}{text.percent(row.acceptance_rate)} of drafted tokens "
        f"accepted, over all prompts {mark('assumed', 'carry over')}. Far fewer tell of another model, prompt format "
        "or sampling."
    )


def measure(plan: Plan, facts: Facts, engines: Sequence[str]) -> tuple[str, str] | None:
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
        others = [f"`--engine {name}`" for name in names if name != engine]
        words = (
            f"specbench starts both servers and measures{f' (likewise with {text.join(others)})' if others else ''}:"
        )
        options[0] += ["--engine", engine]
    else:
        words = f"Of two servers that run, without these settings on port {_PORTS[0]} and with them on {_PORTS[1]}:"
        options[0][1] = "measure"
        options.append([part for flag, port in zip(("--server", "--spec-server"), _PORTS, strict=True)
                        for part in (flag, f"http://localhost:{port}")])  # fmt: skip
    target, draft = plan.target, plan.spec.text
    if engine == "llamacpp":
        target = target if target.startswith(PREFIX) else gguf(plan, "target").name
        model = plan.spec.model or ""
        draft = draft if not model or model.startswith(PREFIX) else draft.replace(model, gguf(plan, "draft").name)
    options.append(["--target", target, "--draft", draft])
    return words, shell([*options, *_as_before(plan, facts)])


def _reads(engine: str, model: str) -> bool:
    return model.startswith(PREFIX) or model.lower().endswith(".gguf") == (engine == "llamacpp")


def _as_before(plan: Plan, facts: Facts) -> list[list[str]]:
    """The prompts and the sampling of the run, where they are not those that a command has anyway."""
    options = []
    if facts.workload.source is not None and not facts.workload.source.endswith(DEFAULT_WORKLOAD):
        options.append(["--workload", facts.workload.source])
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
    if plan.spec.ngram is None:
        return plan.spec.kind == "model" and plan.spec.suffix is None
    return plan.spec.kind is None and re.search(r"[:,](min|max)=", plan.spec.text) is None


def instead(summary: Summary, plan: Plan, call: Call, refusing: Sequence[Engine]) -> str:
    """A draft of this run that is not surely slower and that some of the `refusing` engines have; else nothing."""
    verdicts = {draft.draft: draft.verdict for draft in summary.drafts}
    rivals = summary.choice.rivals if summary.choice is not None and call == "GO" else ()
    for rival in rivals:
        # Without an interval nothing is known of the two.
        near = rival.difference in ("same", "not resolved") and rival.ratio_low is not None
        if not near or verdicts.get(rival.draft) != "GO":
            continue
        other = replace(plan, spec=parse_draft(rival.draft), gamma=rival.gamma)
        able = [engine.name for engine in refusing if isinstance(engine.build(other), Given)]
        if able:
            have = "has" if len(able) == 1 else "have"
            return (
                f"{text.join(able)} {have} {text.code(rival.draft)}, which at gamma {rival.gamma} was not surely "
                "slower here, or come near it."
            )
    return ""
