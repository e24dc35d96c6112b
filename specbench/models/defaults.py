"""What a target's own files make of prompts and texts: parts of a prompt that its chat template does not write, found
by rendering (a part whose change leaves the text as it is), and what its generation config would do to texts on engines
that apply it, beside what a run measured.

Who applies what, by their sources: transformers 5.23 (`GenerationMixin._get_logits_processor`), vLLM
(`ModelConfig.get_diff_sampling_param`), SGLang 0.5.23 (`ModelConfig.get_default_sampling_params`), and for GGUF files
of llama.cpp the package gguf 0.19 (`Metadata.load`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from specbench.config import RunConfig
from specbench.errors import ModelError
from specbench.models.directory import generation_settings, is_local
from specbench.models.embedded import PREFIX, folder_of
from specbench.models.hub import cached_folder
from specbench.models.load import LoadedModel
from specbench.models.prompts import Kwargs, Today, encoding_cautions, render, template_arguments
from specbench.records import Finding, Prompt, Sampling, warned
from specbench.text import count, shown
from specbench.validation import expanded

CODE = "generation-config"

# Every setting of transformers' GenerationConfig that changes a text or where it ends, and with which values it does
# not. Unset, an empty list and an empty text change nothing either.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "repetition_penalty": (1.0,),
    "temperature": (1.0, 0.0),
    "top_k": (0, -1),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "max_new_tokens": (),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "guidance_scale"), (1.0,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty", "penalty_alpha"), (0.0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("do_sample", "renormalize_logits", "token_healing"), (False,)),
    **dict.fromkeys(("num_beams", "num_beam_groups"), (1,)),
    **dict.fromkeys(("top_h", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("max_length", "max_time", "stop_strings", "watermarking_config"), ()),
    **dict.fromkeys(("dola_layers", "constraints", "force_words_ids"), ()),
    # transformers unsets "hybrid"; other caches round otherwise, and a quantised one is another model.
    "cache_implementation": ("dynamic", "hybrid"),
    # The target alone would speculate, the last one not even losslessly.
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "speculation_type"), ()),
    "use_mtp": (False,),
    "assistant_ensemble_weight": (),
}
# What gguf writes into a GGUF file as well; llama.cpp takes it from there.
_DRAWN = ("temperature", "top_k", "top_p", "min_p")
_SERVERS = ("repetition_penalty", *_DRAWN)


def own_settings(name: str) -> tuple[str, dict[str, Any]] | None:
    """The file in which a model says how to generate, and what it says, where that is at hand: in its directory, or in
    the local cache of the hub; else None. Fetches nothing. Raises ModelError for a file that cannot be read."""
    folder: Path | None
    if name.startswith(PREFIX):
        folder = folder_of(name)
    elif is_local(name):
        folder = expanded(name, ModelError)
    else:
        folder = cached_folder(*name.partition("@")[::2])
    return None if folder is None else generation_settings(folder, name)


def measured(sampling: Sampling) -> dict[str, float]:
    """The sampling of a run by the names that engines have for it; `top_k` 0 is off."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }


def unmeasured(values: Mapping[str, Any], sampling: Sampling, *, new_tokens: int, longest: int) -> dict[str, Any]:
    """Those of a file's `values` that would change a text, or where it ends, from what was measured with `sampling`, at
    most `new_tokens` tokens and sequences of up to `longest`. Ends of sequence are not among them."""
    ours, draws = measured(sampling), values.get("do_sample") is True
    limits = {"max_new_tokens": new_tokens, "max_length": longest}

    def changes(key: str, value: Any) -> bool:
        if value is None or value in ([], {}, ""):
            return False
        if key in limits:
            return not isinstance(value, int) or value < limits[key]
        if key == "do_sample":
            return value is sampling.greedy
        if key == "repetition_penalty" or (key in _DRAWN and not sampling.greedy):
            return bool((0 if value == -1 and key == "top_k" else value) != ours[key])
        if draws and (key, value) in (("temperature", 1.0), ("top_k", 50)):
            return True  # said beside do_sample, though transformers would draw with them anyway
        return value not in _NEUTRAL[key] and not (key == "top_k" and value == 50)

    return {key: values[key] for key in _NEUTRAL if changes(key, values.get(key))}


def own_cautions(
    target: LoadedModel, config: RunConfig, encoded: Sequence[Sequence[int]], ends: frozenset[int], today: Today
) -> list[Finding]:
    """What is odd about the tokens of prompts and the ends of texts, and what the target's own files would do to texts
    elsewhere. `encoded` are the prompts as token ids, written `today`."""
    found = [*encoding_cautions(target, encoded, ends, today)]
    longest = max(map(len, encoded)) + config.max_new_tokens
    other = generation_caution(config.target, config.sampling, new_tokens=config.max_new_tokens, longest=longest)
    return found if other is None else [*found, other]


def generation_caution(
    target: str, sampling: Sampling, *, new_tokens: int, longest: int | None = None
) -> Finding | None:
    """generation-config: what the target's own file would do on engines that apply it, beside what a run measured;
    None where that is the same, and where the file is not at hand."""
    try:
        own = own_settings(target)
    except ModelError as error:
        return warned(CODE, error.what, str(error.hint))
    if own is None:
        return None
    file, values = own
    found = unmeasured(values, sampling, new_tokens=new_tokens, longest=longest or new_tokens)
    parts = []
    if any_of := [key for key in found if key in _SERVERS]:
        gguf = "; converted to GGUF, by llama.cpp too, but for a penalty" if {*any_of} & {*_DRAWN} else ""
        parts.append(f"{_listed(found, any_of)} (applied by vLLM, SGLang and transformers{gguf})")
    if "max_new_tokens" in found:
        parts.append(f"{_listed(found, ['max_new_tokens'])} (by vLLM and transformers)")
    if rest := [key for key in found if key not in (*_SERVERS, "max_new_tokens")]:
        parts.append(f"{_listed(found, rest)} (by transformers)")
    ends = values.get("eos_token_id")
    several = isinstance(ends, list) and len(ends) > 1
    if not parts and not several:
        return None
    said = [f"the {file} of {target} asks for what the run did not: {', '.join(parts)}"] if parts else []
    if several:
        whose = "" if parts else f" by the {file} of {target}"
        said.append(
            f"texts end at any of the ids {shown(ends)}{whose}, as in this run; an engine that does not read them all "
            "(llama.cpp) goes on after some"
        )
    return warned(CODE, "; ".join(said), _hint(found) if parts else "See that the engine ends at all of them.")


def _listed(found: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {shown(found[key])}" for key in keys)


def _hint(found: Mapping[str, Any]) -> str:
    """Switched off, or measured: with what a run can be asked for."""
    known = {field.name for field in fields(Sampling)}
    flags = [
        f"--{key.replace('_', '-')} {value:g}"
        for key, value in found.items()
        if key in known and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return (
        "Switch it off (vLLM: --generation-config vllm, SGLang: --sampling-defaults openai, transformers: see Settings "
        "to paste) and send the run's sampling with every request"
        + (f"; or measure what is served: {' '.join(flags)}." if flags else ".")
    )


# What takes the place of a part to see whether it matters.
_OTHER = "zq"
_TURNS = {"system": "a system message", "user": "a user turn", "assistant": "an answer", "tool": "the answer of a tool"}
_FIELDS = {"tool_calls": "calls of tools", "reasoning_content": "thoughts", "name": "names of speakers"}


def unwritten(loaded: LoadedModel, prompts: Sequence[Prompt], kwargs: Kwargs) -> Iterator[Finding]:
    """template-drops, what the target's template does not write, and request-fields-not-used, what only a server
    understands; each with its number of prompts. `prompts` are those that it renders."""
    dropped: Counter[str] = Counter()
    request: Counter[str] = Counter()
    for prompt in prompts:
        dropped.update(set(_dropped(loaded.tokenizer, prompt, kwargs)))
        request.update(prompt.request.keys())
    if dropped:
        who = f"the chat template of {loaded.name} does not write"
        if loaded.tokenizer.chat_template is None:
            who = f"{loaded.name} has no chat template, and nothing else writes"
        yield warned(
            "template-drops",
            f"{who} {_counted(dropped)}: the target never sees that",
            "Use the template that your engine uses, or take out of prompts and settings what it has no place for.",
        )
    if request:
        yield warned(
            "request-fields-not-used",
            f"only a server understands {_counted(request)}: not used in process",
            "Measure with specbench sweep --server, or expect other texts where your traffic has these fields.",
        )


def _dropped(tokenizer: Any, prompt: Prompt, kwargs: Kwargs) -> Iterator[str]:
    """Names of what is not written of one prompt."""
    given = template_arguments(prompt, kwargs)
    turns = given["conversation"]
    text = _rendered(tokenizer, given)

    def matters(other: Mapping[str, Any]) -> bool:
        """Whether this rendering is another text, or fails."""
        return _rendered(tokenizer, other) != text

    def turn_matters(place: int, turn: Mapping[str, Any]) -> bool:
        return matters({**given, "conversation": [*turns[:place], turn, *turns[place + 1 :]]})

    if prompt.tools and not matters(_without(given, "tools")):
        yield "tools"
    for name in given.keys() - {"conversation", "tools"}:
        # A default that is given has no effect, and another value has.
        if not matters(_without(given, name)) and not matters({**given, name: _another(given[name])}):
            yield f"template argument {name}"
    marks = [f"{_OTHER}{place}{_OTHER}" for place in range(len(turns))]
    marked = [turn | {"content": turn["content"] + mark} for turn, mark in zip(turns, marks, strict=True)]
    all_marked = _rendered(tokenizer, given | {"conversation": marked}) or ""
    for place, turn in enumerate(turns):
        # One rendering settles nearly all turns; the others are changed one by one.
        written = marks[place] in all_marked or not turn["content"].strip()
        if not written and not turn_matters(place, marked[place]):
            yield _TURNS[turn["role"]]
        for name, what in _FIELDS.items():
            # Templates know a tool by the call that it answers, and seldom by its name.
            asked = name in turn and not (name == "name" and turn["role"] == "tool")
            if asked and not turn_matters(place, _without(turn, name)):
                yield what


def _rendered(tokenizer: Any, given: Mapping[str, Any]) -> str | None:
    if tokenizer.chat_template is None:
        return "\n\n".join(turn["content"] for turn in given["conversation"])
    try:
        return str(render(tokenizer, given, tokenize=False))
    except Exception:  # a template may raise anything
        return None


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _another(value: Any) -> Any:
    return not value if isinstance(value, bool | list) or value is None else _OTHER


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{name} ({count(n, 'prompt')})" for name, n in sorted(found.items()))
