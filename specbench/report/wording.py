"""The brief's first page in words: verdict, what it holds for, policy. Pure functions from numbers to Markdown.

One rule everywhere: a sentence is never surer than its numbers. Without an interval it says so and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specbench import text
from specbench.analysis.contract import CategoryResult, DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts, Model
from specbench.decision.interval import MIN_PROMPTS, Difference
from specbench.records import Policy, Sampling
from specbench.report.engine_words import words_of
from specbench.report.templating import mark

# An interval takes MIN_PROMPTS; one over fewer than these is wide and leans on its shape, and is marked.
FEW_PROMPTS = 30

_ADVICE = {"GO": "turn {} on, at gamma {}", "NO-GO": "leave {} off", "UNCLEAR": "{} is not settled"}


def best_row(draft: DraftResult) -> GammaResult:
    """The row of the table that `best_gamma` names."""
    return next((row for row in draft.gammas if row.gamma == draft.best_gamma), draft.gammas[0])


def recommended(summary: Summary) -> DraftResult | None:
    """The draft that was chosen among all, else the fastest; None without a measurement."""
    chosen = summary.choice.draft if summary.choice is not None else None
    named = [draft for draft in summary.drafts if draft.draft == chosen]
    return named[0] if named else max(summary.drafts, key=lambda draft: draft.speedup, default=None)


def banner(facts: Facts) -> str | None:
    """Said above everything else where the run did not come to its end."""
    if facts.finished:
        return None
    planned = f"of {facts.planned:,} trials" if facts.planned else "trials of an unknown number"
    how = {"interrupted": "interrupted", "failed": "failed"}.get(facts.status, "not finished:")
    word = "stopped or still running " if how.endswith(":") else ""
    return (
        f"**This run is incomplete: {how} {word}after {facts.done:,} {planned}.** "
        "What follows rests on those trials alone, and the prompts that came last may be missing altogether."
    )


def verdict(draft: DraftResult, policy: Policy, batch_size: int = 1, *, one_of_several: bool = False) -> str:
    """The verdict sentence: call, speedup with interval, over how many prompts, against what was asked. For one of
    several drafts it gives no advice, which the choice among them does."""
    subject = "generation with prefill" if policy.metric == "e2e" else "decoding"
    n = best_row(draft).prompts
    at = f"gamma {draft.best_gamma}" if len(draft.gammas) == 1 else f"the best gamma ({draft.best_gamma})"
    head = f"**{draft.verdict}: {_ADVICE[draft.verdict].format(text.code(draft.draft), draft.best_gamma)}.**"
    if one_of_several:
        head = f"**{text.code(draft.draft)} alone: {draft.verdict}.**"
    ran = f"With it, {subject} at {at} ran {text.speedup(draft.speedup)} as fast as the target alone"
    over, few = f"measured over {text.measured(n, batch_size)}", few_mark(n)
    if draft.speedup_low is None or draft.speedup_high is None:
        return " ".join([f"{head} {ran} ({over}){few}.", _no_interval(n), *_reasons(draft)])
    bounds = f"{text.percent(policy.confidence)} interval {text.interval(draft.speedup_low, draft.speedup_high)}"
    return " ".join([f"{head} {ran} ({over}, {bounds}){few}.", _against_policy(draft, policy), *_reasons(draft)])


def choice(summary: Summary, policy: Policy) -> str | None:
    """The verdict on the whole run where several drafts were compared; None with one, whose own verdict says it."""
    found = summary.choice
    if found is None or len(summary.drafts) < 2:
        return None
    advice = _ADVICE[found.verdict].format(text.code(found.draft), found.gamma)
    bounds = text.interval(found.speedup_low, found.speedup_high)
    head = (
        f"**{found.verdict}, of {len(summary.drafts)} drafts: {advice}.** Chosen among all drafts and gammas on some "
        f"prompts and measured on the others, it ran {text.speedup(found.speedup)} {bounds} as fast as the target "
        f"alone (measured over {text.count(found.prompts, 'prompt')}; asked for {text.speedup(policy.min_speedup)})"
        f"{few_mark(found.prompts)}."
    )
    rivals = [
        f"{text.code(rival.draft)} at its gamma {rival.gamma} is "
        + _RIVAL[rival.difference].format(
            text.code(found.draft), text.estimate(rival.ratio, rival.ratio_low, rival.ratio_high)
        )
        for rival in found.rivals
    ]
    parts = [head, text.sentence("; ".join(rivals)) if rivals else "", _mixed(recommended(summary), policy)]
    return " ".join(filter(None, parts))


_RIVAL: dict[Difference, str] = {
    "faster": "slower: {0} runs {1} as fast",
    "slower": "faster: {0} runs {1} as fast",
    "same": "the same to within 5 % (ratio {1})",
    "not resolved": "not told apart from it: {0} runs {1} as fast",
}


def _mixed(draft: DraftResult | None, policy: Policy) -> str:
    """Where the chosen draft is on for some categories and off for others, which no verdict on the whole says."""
    if draft is None or not {"GO", "NO-GO"} <= {category.verdict for category in draft.categories}:
        return ""
    return f"By category it is mixed: {policy_line(draft, policy)}"


def mix_line(mix: Mapping[str, float]) -> str:
    """`weighed as traffic of 60% code and 40% chat`."""
    shares = text.join(f"{text.percent(s)} {text.escape(n)}" for n, s in mix.items())
    return f"weighed as traffic of {shares} {mark('assumed', 'mix')}"


def few_mark(prompts: int) -> str:
    """` (few prompts)` behind a claim that rests on so many; empty where they are enough."""
    return f" {mark('few prompts', 'few')}" if prompts < FEW_PROMPTS else ""


def _no_interval(prompts: int) -> str:
    few = f"so few prompts (an interval takes {MIN_PROMPTS})" if prompts < MIN_PROMPTS else "these prompts"
    return f"There is no interval over {few}, so this is what happened on them, not what to expect of others."


def _against_policy(draft: DraftResult, policy: Policy) -> str:
    asked = f"The policy asks for at least {text.speedup(policy.min_speedup)}"
    if draft.probability is None:
        return f"{asked}."
    likely = (
        f"{asked} with {text.percent(policy.confidence)} confidence; "
        f"the chance of that speedup is {text.chance(draft.probability)}."
    )
    if draft.speedup_high is not None and draft.speedup_high < 1:
        return f"{likely} The whole interval lies below 1.00x: it is slower than the target alone."
    return likely


def _reasons(draft: DraftResult) -> list[str]:
    """The rule's own reasons, without those that the verdict sentence has already said: the odds, and too few
    prompts for an interval."""
    if draft.verdict == "UNCLEAR" and draft.speedup_low is None:
        return []
    return [
        text.escape(text.sentence(reason))[:-1]
        + (f" {mark('extrapolated', 'settle')}." if "would settle" in reason else ".")
        for reason in draft.reasons
        if not reason.startswith("P(")
    ]


def scope(facts: Facts, engine: str, hardware: str, drafts: Sequence[DraftResult]) -> list[str]:
    """What was measured, one line a circumstance."""
    threads = f", {text.count(facts.threads, 'thread')}" if facts.threads else ""
    models = [_model(facts.drafts.get(d.draft, Model(d.draft, d.draft, None, None, None))) for d in drafts]
    limit = f", at most {facts.max_new_tokens:,} new tokens" if facts.max_new_tokens else ""
    load = f"batch {facts.batch_size}"
    if facts.served:
        others = [each.label for each in facts.loads[1:]]
        load = f"requests: {facts.loads[0].label}" + (f" (also measured: {text.join(others)})" if others else "")
    setting = f"{facts.precision or 'precision not recorded'}{threads}; {load}"
    return [
        f"target {_model(facts.target)}",
        *(f"draft {model}" for model in models),
        f"engine: {text.escape(engine)}",
        f"machine: {text.escape(hardware)}; {setting}",
        f"sampling: {sampling(facts.sampling)}{limit}",
        *(
            [f"chat template given {text.code(text.template_kwargs(facts.template_kwargs))}"]
            if facts.template_kwargs
            else []
        ),
        f"prompts: {prompts(facts)}" + (f", {mix_line(facts.policy.mix)}" if facts.policy.mix else ""),
    ]


def sampling(settings: Sampling) -> str:
    """`greedy (temperature 0)` or `temperature 0.7, top-p 0.9`; what is off, or without effect, is not named."""
    penalty = [f"repetition penalty {settings.repetition_penalty:g}"] if settings.penalised else []
    if settings.greedy:
        return ", ".join(["greedy (temperature 0)", *penalty])
    parts = [f"temperature {settings.temperature:g}"]
    if settings.top_p < 1:
        parts.append(f"top-p {settings.top_p:g}")
    if settings.top_k:
        parts.append(f"top-k {settings.top_k}")
    if settings.min_p:
        parts.append(f"min-p {settings.min_p:g}")
    return ", ".join([*parts, *penalty])


def prompts(facts: Facts) -> str:
    """`40 of 200 in `file` (sha256 0123456789ab)`."""
    work = facts.workload
    used = f"{work.used:,}" if work.used is not None else "an unrecorded number"
    of = f" of {work.available:,}" if work.available is not None else ""
    source = f" in {text.code(work.source)}" if work.source else ""
    sha = f" (sha256 {work.sha256[:12]})" if work.sha256 else ""
    shortest, longest = facts.prompt_tokens or (None, None)
    long = (
        ""
        if shortest is None
        else f", of {shortest:,} tokens"
        if shortest == longest
        else (f", of {shortest:,} to {longest:,} tokens")
    )
    return f"{used}{of}{source}{sha}{long}"


def model_name(model: Model) -> str:
    """With the name that it bears itself where that is another, such as a quantised file's."""
    return text.code(model.spec) + (f" ({text.escape(model.name)})" if model.name != model.spec else "")


def load(facts: Facts) -> str:
    """`requests 1 at a time` of a server, `batch 1` in process."""
    return f"requests {facts.loads[0].label}" if facts.served else f"batch {facts.batch_size}"


def _model(model: Model) -> str:
    name = model_name(model)
    if model.parameters == 0:
        return f"{name}, no weights of its own"
    sizes = [text.size(model.parameters, "parameters"), text.size(model.weight_bytes, "B")]
    known = [part for part in sizes if part]
    return f"{name}, {', '.join(known)} of weights" if sizes[1] else ", ".join([name, *known])


def circumstances(facts: Facts) -> str:
    """What a figure's caption has to say besides the Summary, so that it can stand alone."""
    used = facts.workload.used
    prompts = None if used is None else text.count(used, "prompt")
    if facts.policy.mix:  # its own prompts alone are shown, which are fewer than were measured
        prompts = "weighed by a mix of traffic"
    known = (facts.precision, sampling(facts.sampling), prompts)
    return ", ".join(part for part in known if part)


def from_outside(engine: str, facts: Facts) -> str:
    """How a server was measured, for the first paragraph; "" in process."""
    if not facts.served:
        return ""
    line = engine if "HTTP" in engine else f"{engine} over HTTP"
    return f"Measured from outside, as a client sees it, with requests {facts.loads[0].label}: {text.escape(line)}."


def carry(facts: Facts) -> str:
    """What it would take to use the verdict elsewhere."""
    return (
        "Elsewhere: acceptance comes from prompts, models and sampling, and should be much the same on another machine "
        f"or engine {mark('assumed', 'carry over')}; the time of a round has to be measured there. Other prompts, "
        f"models, sampling{words_of(facts).new_run} need a new run."
    )


def policy_line(draft: DraftResult, policy: Policy) -> str:
    """Where to turn the draft on: `on for code and maths; off for summarise; undecided for chat (...)`, after the
    decision on the whole where no category is decided against it."""
    found = by_speedup(draft)
    if not found:
        state = {"GO": "on", "NO-GO": "off", "UNCLEAR": "undecided"}[draft.verdict]
        return f"{state} for everything: the prompts carry no category to tell apart."
    undecided = [category for category in found if category.verdict == "UNCLEAR"]
    parts = (
        ("on for", [category for category in found if category.verdict == "GO"], ""),
        ("off for", [category for category in found if category.verdict == "NO-GO"], ""),
        ("undecided for", [c for c in undecided if c.speedup_low is not None], _open_about(policy)),
        ("undecided for", [c for c in undecided if c.speedup_low is None], " (too few prompts to say)"),
    )
    apart = "; ".join(f"{word} {_names(group)}{_few(group)}{why}" for word, group, why in parts if group) + "."
    against = {"GO": "NO-GO", "NO-GO": "GO"}.get(draft.verdict)
    if not undecided or against is None or any(category.verdict == against for category in found):
        return apart
    # The whole is decided and no category speaks against it: fewer prompts decide less, that is all.
    return (
        f"{'on' if draft.verdict == 'GO' else 'off'} for this mix of traffic as a whole. Each category alone: {apart}"
    )


def _open_about(policy: Policy) -> str:
    return f" (the measurement leaves {text.speedup(policy.min_speedup)} open)"


def _few(categories: Sequence[CategoryResult]) -> str:
    """A mark behind a decision that rests on few prompts; who is undecided claims nothing."""
    decided = [category.prompts for category in categories if category.verdict != "UNCLEAR"]
    return few_mark(min(decided)) if decided else ""


def _names(categories: Sequence[CategoryResult]) -> str:
    return text.join(text.escape(category.category) for category in categories)


def by_speedup(draft: DraftResult) -> list[CategoryResult]:
    """Fastest category first; ties by name. Empty where the prompts carry no category, which is stored as "all"."""
    if [category.category for category in draft.categories] == ["all"]:
        return []
    return sorted(draft.categories, key=lambda category: (-category.speedup, category.category))


def metric_column(policy: Policy) -> str:
    """The heading of a speedup that follows the policy's metric."""
    return "speedup, end to end" if policy.metric == "e2e" else "speedup, decode"
