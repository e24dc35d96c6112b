"""The Python to paste for transformers' assisted generation, which takes its draft with every `generate` call."""

from __future__ import annotations

from specbench.kinds import HEADS
from specbench.models.defaults import measured
from specbench.report.settings.plan import Given, Named, Plan, directory

# `from_pretrained` takes these by name; a server may have told another word.
_DTYPES = ("float32", "bfloat16", "float16")

# Where gamma and the cut-off of assisted generation are read from: the assistant's own settings, which by default cut
# unsure drafts.
_GAMMA = "num_assistant_tokens"


def python(plan: Plan) -> Given | str:
    """A script of a few lines that drafts as measured."""
    spec = plan.spec
    if spec.kind in ("mtp", "suffix") or (spec.ngram is not None and spec.ngram.way is not None):
        return "transformers has no such draft in `generate`."
    if spec.kind is not None and spec.ngram is not None:
        return "transformers takes a look-up or an assistant in one `generate` call, not both."
    if plan.head is not None:
        if plan.head in ("mtp", "dflash"):
            return f"transformers drafts with {HEADS[plan.head]} heads too, one sequence at a time; not tried here."
        return f"transformers drives no {HEADS.get(plan.head, plan.head)} head."
    if spec.kind == "skip" and spec.layers is None:
        return "transformers can draft with the first layers (`assistant_early_exit`); how many, run.json says."
    target = directory(plan, "target")
    draft = directory(plan, "draft") if spec.model is not None else None
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({_loaded(target)})",
        f"target = AutoModelForCausalLM.from_pretrained({_loaded(target, plan.precision)})",
    ]
    if draft is not None:
        lines.append(f"draft = AutoModelForCausalLM.from_pretrained({_loaded(draft, plan.precision)})")
    if spec.kind == "cross" and draft is not None:
        lines.append(f"draft_tokenizer = AutoTokenizer.from_pretrained({_loaded(draft)})")
    lines += [*_speculation(plan), *_inputs(plan)]
    lines.append(f"output = target.generate(**inputs, **speculation, {_sampling(plan)})")
    legends = tuple(each.legend for each in (target, draft) if each is not None and each.legend is not None)
    return Given("python", "\n".join(lines), _differs(plan), legends=legends)


def counting(plan: Plan) -> str:
    """How to see that it drafts: transformers has no counters, but its models have hooks."""
    spec = plan.spec
    if spec.ngram is not None:
        return "`target.register_forward_hook` counts fewer passes than new tokens wherever something is found."
    if spec.kind == "skip":
        where = "A forward hook on the target's first layer counts"
        return f"{where} {plan.gamma} passes more for each of its last layer's{_less(plan)}."
    return (
        "`register_forward_hook` on both models counts fewer passes of the target than new tokens, and "
        f"{plan.gamma} of the draft for each of them{_less(plan)}."
    )


def _less(plan: Plan) -> str:
    return ", or fewer where it is unsure" if plan.spec.cutoff else " (fewer at the end)"


def _loaded(model: Named, precision: str | None = None) -> str:
    """The arguments of `from_pretrained`."""
    found = [repr(model.name)]
    if model.revision is not None:
        found.append(f"revision={model.revision!r}")
    if precision in _DTYPES:
        found.append(f"dtype={precision!r}")
    return ", ".join(found)


def _speculation(plan: Plan) -> list[str]:
    """Fresh settings for both models: a `generation_config.json` may have penalties, forced tokens and the like, which
    `generate` would take for whatever it is not given; so it does with the draft's."""
    spec = plan.spec
    ends = f"eos_token_id={list(plan.ends) if plan.ends else 'target.generation_config.eos_token_id'}"
    if spec.ngram is not None:
        n = f'"max_matching_ngram_size": {spec.ngram.n}'
        return [
            f"target.generation_config = GenerationConfig({ends})",
            f'speculation = {{"prompt_lookup_num_tokens": {plan.proposed}, {n}}}',
        ]
    gamma = f'{_GAMMA}={plan.gamma}, {_GAMMA}_schedule="constant", assistant_confidence_threshold={spec.cutoff}'
    given = f'"assistant_early_exit": {spec.layers}' if spec.kind == "skip" else '"assistant_model": draft'
    if spec.kind == "cross":
        given += ', "tokenizer": tokenizer, "assistant_tokenizer": draft_tokenizer'
    own = [f"target.generation_config = GenerationConfig({ends}{f', {gamma}' if spec.kind == 'skip' else ''})"]
    if spec.kind != "skip":
        own.append(f"draft.generation_config = GenerationConfig({gamma})")
    return [*own, f"speculation = {{{given}}}"]


def _inputs(plan: Plan) -> list[str]:
    if not plan.templated:
        return ['inputs = tokenizer("Your prompt", return_tensors="pt")']
    return [
        'messages = [{"role": "user", "content": "Your prompt"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
    ]


def _sampling(plan: Plan) -> str:
    """As measured; top_k 0 is off, where `generate` has 50."""
    values: dict[str, float] = measured(plan.sampling)
    said = [f"do_sample={not plan.sampling.greedy}"]
    if not plan.sampling.greedy:
        said += [f"{key}={values[key]}" for key in ("temperature", "top_p", "top_k")]
        said += [f"min_p={values['min_p']}"] if values["min_p"] else []
    said += [f"repetition_penalty={values['repetition_penalty']}"] if values["repetition_penalty"] != 1.0 else []
    return ", ".join([*said, *([f"max_new_tokens={plan.max_new_tokens}"] if plan.max_new_tokens else [])])


def _differs(plan: Plan) -> tuple[str, ...]:
    spec, found = plan.spec, list[str]()
    if plan.batch_size > 1:
        found.append(f"The run had batches of {plan.batch_size}; assisted generation takes one sequence.")
    if spec.ngram is not None and plan.down_to > 1:
        found.append(f"transformers goes down to 1 token, the run to {plan.down_to}.")
    if spec.ngram is not None and plan.latest:
        found.append("transformers copies the earliest match, the run copied the latest.")
    if spec.kind == "skip":
        found.append("The same drafts, but the first layers read the prompt again; the run shared the target's cache.")
    if spec.kind == "cross" and plan.sampling.greedy:
        found.append("It goes over through text as the run did, but joins words to tokens by its own rules.")
    if spec.kind == "cross" and not plan.sampling.greedy:
        found.append("When sampling it says only tokens that both vocabularies share; the run went over through text.")
    if spec.cutoff:
        found.append("It drafts the unsure token too and stops after it; the run stopped before.")
    if spec.cutoff and spec.kind == "model":
        found.append("Where scikit-learn is installed it moves the cut-off as it goes.")
    return tuple(found)
