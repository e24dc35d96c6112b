"""What makes each engine draft as measured, or why nothing would: options of a command line, or a few lines of Python.
The words of each code are in words.yaml.

They are those of configs/engines/*.yaml, without what serves measuring alone; a test holds them equal. They are written
out here because a brief must not depend on files in the reader's folder, and because a name goes into JSON only through
`json.dumps`. What is said of the servers beside those files is from:

- vLLM: its pages README.md, draft_model.md and n_gram.md of docs/features/speculative_decoding/ (methods,
  `use_heterogeneous_vocab`, `draft_sample_method`); vllm/v1/spec_decode/ngram_proposer.py (earliest of the longest
  matches); github.com/vllm-project/vllm/pull/35301 (a cut-off, open), 19482 (penalties in the rejection
  sampler)
- sampling: vllm/config/model.py `get_diff_sampling_param`, SGLang's srt/configs/model_config.py
  `get_default_sampling_params`, TGI's server/text_generation_server/models/flash_causal_lm.py (ends of texts alone)
- SGLang: docs/advanced_features/speculative_decoding.md of github.com/sgl-project/sglang; its pull request 22049 (a
  penalty over a whole round is that of the round's start)
- llama.cpp: `llama-server --help` of build 11434; docs/speculative.md of github.com/ggml-org/llama.cpp (the latest
  match; a look-up goes before a draft model); a test runs both together in xllamacpp 2026.10.11549
- TGI: docs/source/reference/launcher.md of github.com/huggingface/text-generation-inference, its issue 2997, and in its
  server/text_generation_server/utils/tokens.py `create_n_gram_speculation` (one token, the first match)
- counters: those of specbench/backends/server/*.py; docs/source/reference/metrics.md of
  github.com/huggingface/text-generation-inference, and github.com/ggml-org/llama.cpp/issues/25345 (a draft that is
  loaded and never used)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from specbench.drafters import NgramSpec
from specbench.kinds import HEADS
from specbench.models.defaults import measured
from specbench.records import Reason
from specbench.report.dialect import PLAIN, template
from specbench.report.settings.plan import (
    Given,
    Named,
    Plan,
    directory,
    drafts_otherwise,
    gguf,
    given,
    printable,
    shell,
)

# `from_pretrained` takes these by name; a server may have told another word.
_DTYPES = ("float32", "bfloat16", "float16")


def vllm(plan: Plan) -> Given | Reason:
    """`vllm serve` with a speculative config. As a server that was measured it ran as a module, with the same flags."""
    spec, ngram = plan.spec, plan.spec.ngram
    if spec.kind in ("skip", "cross"):
        return Reason(f"vllm-{spec.kind}")
    if spec.kind is not None and ngram is not None:
        return Reason("vllm-both")
    if ngram is not None and ngram.way is not None:
        return Reason("vllm-way", {"way": _way(plan)})
    if spec.cutoff:
        return Reason("vllm-cutoff")
    models = [directory(plan, "target")]
    differs: list[Reason | None] = []
    config: dict[str, object]
    if spec.model is None and ngram is None:
        config = {"method": spec.kind, "num_speculative_tokens": plan.gamma}
        # As measured: its other look-up, in earlier answers, was not.
        config |= {"suffix_decoding_max_cached_requests": 0} if spec.kind == "suffix" else {}
    elif ngram is None:
        draft = directory(plan, "draft")
        models.append(draft)
        method = "eagle3" if plan.head == "peagle" else plan.head or "draft_model"
        config = {"method": method, "model": printable(draft.name), "num_speculative_tokens": plan.gamma}
        config |= {"parallel_drafting": True} if plan.head == "peagle" else {}
        config |= {"revision": draft.revision} if draft.revision else {}
        differs += drafts_otherwise(plan, "vLLM", option=True)
    else:
        config = {"method": "ngram", "num_speculative_tokens": plan.proposed}
        config |= {"prompt_lookup_min": plan.down_to, "prompt_lookup_max": ngram.n}
        differs.append(Reason("earliest-match", {"engine": "vLLM"}) if plan.latest else None)
    if not plan.sampling.greedy:
        differs += [Reason("vllm-temperature"), Reason("vllm-min-p") if plan.sampling.min_p else None]
    written = json.dumps(config, ensure_ascii=False, separators=(",", ":"))
    # Without the second line the file's penalties and temperature are what a request does not set; its ends stay.
    options = [["vllm", "serve", models[0].name], *_revision(models[0]), ["--generation-config", "vllm"]]
    options.append(["--speculative-config", written])
    return given(shell(options), differs, models, _request(plan))


def sglang(plan: Plan) -> Given | Reason:
    """With topk 1 the draft is one chain; a pass of the target reads its gamma tokens and the one before. Without a
    model it drafts with the target's own layers, or from all texts that it has written."""
    spec = plan.spec
    if spec.ngram is not None:
        return Reason("sglang-look-up", {"model": spec.kind is not None})
    if spec.kind in ("skip", "cross"):
        return Reason(f"sglang-{spec.kind}")
    if spec.cutoff:
        return Reason("sglang-cutoff")
    if plan.head == "peagle":
        return Reason("sglang-peagle")
    models = [directory(plan, "target")]
    steps = ["--speculative-num-steps", str(plan.gamma), "--speculative-eagle-topk", "1"]
    if spec.kind == "suffix":
        algorithm, more = "NGRAM", [["--speculative-ngram-max-bfs-breadth", "1"]]
    elif spec.kind == "mtp":
        algorithm, more = "NEXTN", [steps]
    else:
        draft = directory(plan, "draft")
        models.append(draft)
        algorithm = "STANDALONE" if plan.head is None else plan.head.upper()
        pinned = [["--speculative-draft-model-revision", draft.revision]] if draft.revision else []
        more = [["--speculative-draft-model-path", draft.name], *pinned, steps]
    options = [
        ["python", "-m", "sglang.launch_server", "--model-path", models[0].name],
        *_revision(models[0]),
        ["--sampling-defaults", "openai"],
        ["--speculative-algorithm", algorithm],
        *more,
        ["--speculative-num-draft-tokens", str(plan.gamma + 1)],
    ]
    differs = [
        *drafts_otherwise(plan, "SGLang", option=False),
        None if plan.head is None or spec.kind == "mtp" else Reason("sglang-layer-ids"),
        Reason("sglang-penalty") if plan.sampling.penalised else None,
    ]
    return given(shell(options), differs, models, _request(plan))


def _way(plan: Plan) -> str:
    """`ngram-mod`, as llama.cpp calls the look-up."""
    way = plan.spec.ngram.way if plan.spec.ngram is not None else None
    return f"ngram-{way or 'simple'}"


def llamacpp(plan: Plan) -> Given | Reason:
    """llama-server. Of several types the look-up goes first, and the model where it finds nothing."""
    spec, ngram = plan.spec, plan.spec.ngram
    if spec.kind in ("suffix", "skip", "cross"):
        return Reason(f"llamacpp-{spec.kind}")
    if plan.head == "peagle":
        return Reason("llamacpp-peagle")
    models, here = [gguf(plan, "target")], plan.on == "llama.cpp"
    differs = [None if here else Reason("quantised", {"precision": plan.facts.precision})]
    kind = f"draft-{'mtp' if spec.kind == 'mtp' else plan.head or 'simple'}"
    types = [*([_way(plan)] if ngram is not None else []), *([kind] if spec.kind is not None else [])]
    options = [["llama-server", "--model", models[0].name], _llamacpp_sampling(plan)]
    options.append(["--spec-type", ",".join(types)])
    if ngram is not None:
        options += _llamacpp_sizes(plan, ngram)
        exact = None if plan.down_to == ngram.n else Reason("llamacpp-exact", {"n": ngram.n, "down_to": plan.down_to})
        differs += [exact, None if plan.latest else Reason("llamacpp-latest")]
    if spec.kind is not None:
        if spec.model is not None:
            models.append(gguf(plan, "draft"))
            options.append(["--spec-draft-model", models[1].name])
        options.append(["--spec-draft-n-max", str(plan.gamma), "--spec-draft-n-min", "0"])
        options[-1] += ["--spec-draft-p-min", f"{spec.cutoff:g}"]
        differs.append(Reason("llamacpp-cutoff") if spec.cutoff and not here else None)
        differs += drafts_otherwise(plan, "llama.cpp", option=True)
    ends = plan.facts.target.ends
    differs.append(Reason("llamacpp-ends", {"ends": list(ends)}) if len(ends) > 1 else None)
    return given(shell(options), differs, models)


def tgi(plan: Plan) -> Given | Reason:
    """text-generation-launcher, whose look-up matches a single token."""
    spec, ngram = plan.spec, plan.spec.ngram
    if ngram is None or ngram.way is not None or spec.kind is not None:
        return Reason("tgi-model")
    target = directory(plan, "target")
    differs = [Reason("tgi-last-token", {"n": ngram.n, "down_to": plan.down_to}), Reason("tgi-nonsense")]
    options = [["text-generation-launcher", "--model-id", target.name], *_revision(target)]
    options.append(["--speculate", str(plan.proposed)])
    return given(shell(options), differs, [target], _tgi_request(plan))


def _request(plan: Plan) -> str:
    """The sampling of the run as vLLM and SGLang have it; top_k -1 is off."""
    values = measured(plan.sampling)
    body = values | {"top_k": plan.sampling.top_k or -1}
    if plan.sampling.greedy:
        body = {key: body[key] for key in ("temperature", "repetition_penalty")}
    return _body(body | _limit(plan, "max_tokens"))


def _tgi_request(plan: Plan) -> str:
    """TGI takes no more than the ends of texts from the model's file, several where it lists several. Off is unset."""
    values = measured(plan.sampling)
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    if plan.sampling.greedy:
        values = {"repetition_penalty": values["repetition_penalty"]}
    said = {key: value for key, value in values.items() if value != off.get(key)}
    return _body({"do_sample": not plan.sampling.greedy} | said | _limit(plan, "max_new_tokens"))


def _limit(plan: Plan, key: str) -> dict[str, int]:
    return {key: plan.facts.max_new_tokens} if plan.facts.max_new_tokens else {}


def _body(values: Mapping[str, float]) -> str:
    return json.dumps(values)[1:-1]


def _llamacpp_sampling(plan: Plan) -> list[str]:
    """What the server takes where a request says nothing; its own defaults are 0.8, 40, 0.95, 0.05, and a GGUF file may
    have others. A penalty goes over all that was read, and not over the last 64 tokens."""
    flags = {"temp": "temperature", "top-k": "top_k", "top-p": "top_p", "min-p": "min_p"}
    flags |= {"repeat-penalty": "repetition_penalty"}
    values = measured(plan.sampling)
    said = [part for flag, key in flags.items() for part in (f"--{flag}", f"{values[key]:g}")]
    return said if values["repetition_penalty"] == 1.0 else [*said, "--repeat-last-n", "-1"]


def _revision(model: Named) -> list[list[str]]:
    return [["--revision", model.revision]] if model.revision else []


def _llamacpp_sizes(plan: Plan, ngram: NgramSpec) -> list[list[str]]:
    way, n, m = ngram.way or "simple", str(ngram.n), str(plan.proposed)
    if way == "cache":
        return []  # it drafts 8 tokens, whatever it is told
    if way == "mod":
        return [["--spec-ngram-mod-n-match", n, "--spec-ngram-mod-n-min", "1", "--spec-ngram-mod-n-max", m]]
    flag = f"--spec-ngram-{way}"
    return [[f"{flag}-size-n", n, f"{flag}-size-m", m], [f"{flag}-min-hits", "1"]]


def python(plan: Plan) -> Given | Reason:
    """A script of a few lines that drafts as measured."""
    spec = plan.spec
    if spec.kind in ("mtp", "suffix") or (spec.ngram is not None and spec.ngram.way is not None):
        return Reason("transformers-none")
    if spec.kind is not None and spec.ngram is not None:
        return Reason("transformers-both")
    if plan.head is not None:
        known = HEADS.get(plan.head, plan.head)
        return Reason("transformers-head", {"head": known, "untried": plan.head in ("mtp", "dflash")})
    if spec.kind == "skip" and spec.layers is None:
        return Reason("transformers-layers")
    target = directory(plan, "target")
    draft = directory(plan, "draft") if spec.model is not None else None
    code = template("transformers.py.j2", PLAIN).render(
        plan=plan, target=target, draft=draft, loaded=_loaded, sampling=_sampling(plan)
    )
    models = [each for each in (target, draft) if each is not None]
    return given(code.rstrip("\n"), _differs(plan), models, language="python")


def _loaded(model: Named, precision: str | None = None) -> str:
    found = [repr(model.name)]
    if model.revision is not None:
        found.append(f"revision={model.revision!r}")
    if precision in _DTYPES:
        found.append(f"dtype={precision!r}")
    return ", ".join(found)


def _sampling(plan: Plan) -> str:
    """As measured; top_k 0 is off, where `generate` has 50."""
    values: dict[str, float] = measured(plan.sampling)
    said = [f"do_sample={not plan.sampling.greedy}"]
    if not plan.sampling.greedy:
        said += [f"{key}={values[key]}" for key in ("temperature", "top_p", "top_k")]
        said += [f"min_p={values['min_p']}"] if values["min_p"] else []
    said += [f"repetition_penalty={values['repetition_penalty']}"] if values["repetition_penalty"] != 1.0 else []
    return ", ".join([*said, *([f"max_new_tokens={plan.facts.max_new_tokens}"] if plan.facts.max_new_tokens else [])])


def _differs(plan: Plan) -> list[Reason | None]:
    spec, look_up = plan.spec, plan.spec.ngram is not None
    found = {
        "one-sequence": plan.facts.batch_size > 1,
        "transformers-down-to-1": look_up and plan.down_to > 1,
        "earliest-match": look_up and plan.latest,
        "transformers-skip": spec.kind == "skip",
        "transformers-cross": spec.kind == "cross" and plan.sampling.greedy,
        "transformers-cross-sampled": spec.kind == "cross" and not plan.sampling.greedy,
        "transformers-unsure": bool(spec.cutoff),
        "transformers-moves-cutoff": bool(spec.cutoff) and spec.kind == "model",
    }
    values = {"engine": "transformers", "batch": plan.facts.batch_size, "down_to": plan.down_to}
    return [Reason(code, values) for code, applies in found.items() if applies]


# By the name that words.yaml has them under, with the names of their adapters in a run.
ENGINES: Mapping[str, tuple[Callable[[Plan], Given | Reason], tuple[str, ...]]] = {
    "vLLM": (vllm, ("vLLM", "vllm")),
    "SGLang": (sglang, ("SGLang", "sglang")),
    "llama.cpp": (llamacpp, ("llama.cpp", "llamacpp")),
    "TGI": (tgi, ("TGI", "tgi")),
    "transformers": (python, ()),
}
