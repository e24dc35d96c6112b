"""What makes each server draft as measured, or why nothing would: options of a command line.

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
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from specbench.drafters import NgramSpec
from specbench.models.defaults import measured
from specbench.report.settings.plan import (
    Given,
    Named,
    Plan,
    bare_drafts,
    directory,
    gguf,
    printable,
    sampled_drafts,
    shell,
)


def vllm(plan: Plan) -> Given | str:
    """`vllm serve` with a speculative config. As a server that was measured it ran as a module, with the same flags."""
    spec, ngram = plan.spec, plan.spec.ngram
    if spec.kind == "skip":
        return "vLLM has no draft made of the target's own first layers."
    if spec.kind == "cross":
        return (
            "vLLM's draft with another vocabulary (`use_heterogeneous_vocab`) says only tokens that both models share; "
            "measured was one that goes over through text."
        )
    if spec.kind is not None and ngram is not None:
        return "vLLM takes one method, a look-up or a model."
    if ngram is not None and ngram.way is not None:
        return f"vLLM has no {_way(plan)}, which is a look-up of llama.cpp."
    if spec.cutoff:
        return "vLLM has no confidence cut-off for a draft model (proposed in vllm-project/vllm#35301, not merged)."
    target = directory(plan, "target")
    differs, legends = list[str](), [target.legend]
    config: dict[str, object]
    if spec.model is None and ngram is None:
        config = {"method": spec.kind, "num_speculative_tokens": plan.gamma}
        # As measured: its other look-up, in earlier answers, was not.
        config |= {"suffix_decoding_max_cached_requests": 0} if spec.kind == "suffix" else {}
    elif ngram is None:
        draft = directory(plan, "draft")
        legends.append(draft.legend)
        method = "eagle3" if plan.head == "peagle" else plan.head or "draft_model"
        config = {"method": method, "model": printable(draft.name), "num_speculative_tokens": plan.gamma}
        config |= {"parallel_drafting": True} if plan.head == "peagle" else {}
        config |= {"revision": draft.revision} if draft.revision else {}
        differs += sampled_drafts(plan, "vLLM", '`"draft_sample_method":"probabilistic"` in the config')
        differs += bare_drafts(plan, "vLLM")
    else:
        config = {"method": "ngram", "num_speculative_tokens": plan.proposed}
        config |= {"prompt_lookup_min": plan.down_to, "prompt_lookup_max": ngram.n}
        if plan.latest:
            differs.append("vLLM copies the earliest match, the run copied the latest.")
    if not plan.sampling.greedy:
        differs.append("On a CPU, vLLM 0.32.0 takes the temperature for a whole number while it drafts: random text.")
    if plan.sampling.min_p and not plan.sampling.greedy:
        differs.append("vLLM refuses requests with min-p while it speculates (vllm-project/vllm#42744).")
    written = json.dumps(config, ensure_ascii=False, separators=(",", ":"))
    # Without the second line the file's penalties and temperature are what a request does not set; its ends stay.
    options = [["vllm", "serve", target.name], *_revision(target), ["--generation-config", "vllm"]]
    options.append(["--speculative-config", written])
    return Given("sh", shell(options), tuple(differs), _request(plan), tuple(filter(None, legends)))


def sglang(plan: Plan) -> Given | str:
    """With topk 1 the draft is one chain; a pass of the target reads its gamma tokens and the one before."""
    spec = plan.spec
    if spec.kind in ("mtp", "suffix"):
        return _sglang_own(plan)
    if spec.ngram is not None:
        also = ", and it takes no draft model beside it" if spec.kind is not None else ""
        return f"SGLang's NGRAM drafts from all texts that it has written, not by a look-up in this one{also}."
    if spec.kind == "skip":
        return "SGLang has no draft made of the target's own first layers."
    if spec.kind == "cross":
        return "SGLang's draft model needs the target's vocabulary."
    if spec.cutoff:
        return "SGLang's documentation has no confidence cut-off for a draft model."
    if plan.head == "peagle":
        return "SGLang drives no P-EAGLE head (sgl-project/sglang#23171)."
    target, draft = directory(plan, "target"), directory(plan, "draft")
    options = [
        ["python", "-m", "sglang.launch_server", "--model-path", target.name],
        *_revision(target),
        ["--sampling-defaults", "openai"],
        ["--speculative-algorithm", "STANDALONE" if plan.head is None else plan.head.upper()],
        ["--speculative-draft-model-path", draft.name],
        *([["--speculative-draft-model-revision", draft.revision]] if draft.revision else []),
        ["--speculative-num-steps", str(plan.gamma), "--speculative-eagle-topk", "1"],
        ["--speculative-num-draft-tokens", str(plan.gamma + 1)],
    ]
    differs = sampled_drafts(plan, "SGLang", None) + bare_drafts(plan, "SGLang")
    if plan.head is not None:
        differs.append("Versions differ in whether they add 1 to a head's layer ids: check its acceptance.")
    if plan.sampling.penalised:
        differs.append("Its penalty does not count a round's own drafts: the text is not quite the target's own.")
    legends = tuple(filter(None, (target.legend, draft.legend)))
    return Given("sh", shell(options), tuple(differs), _request(plan), legends)


def _sglang_own(plan: Plan) -> Given:
    """What SGLang drafts with without a model beside the target: its layers, or all texts that it has written."""
    target = directory(plan, "target")
    algorithm, chain = {
        "mtp": ("NEXTN", ["--speculative-num-steps", str(plan.gamma), "--speculative-eagle-topk", "1"]),
        "suffix": ("NGRAM", ["--speculative-ngram-max-bfs-breadth", "1"]),
    }[str(plan.spec.kind)]
    options = [
        ["python", "-m", "sglang.launch_server", "--model-path", target.name],
        *_revision(target),
        ["--sampling-defaults", "openai"],
        ["--speculative-algorithm", algorithm],
        chain,
        ["--speculative-num-draft-tokens", str(plan.gamma + 1)],
    ]
    return Given("sh", shell(options), (), _request(plan), tuple(filter(None, (target.legend,))))


def _way(plan: Plan) -> str:
    """`ngram-mod`, as llama.cpp calls the look-up."""
    way = plan.spec.ngram.way if plan.spec.ngram is not None else None
    return f"`ngram-{way or 'simple'}`"


def llamacpp(plan: Plan) -> Given | str:
    """llama-server. Of several types the look-up goes first, and the model where it finds nothing."""
    spec, ngram = plan.spec, plan.spec.ngram
    if spec.kind == "suffix":
        return "llama.cpp has no suffix decoding; its `ngram-mod` also drafts from texts before."
    if spec.kind == "skip":
        return "llama.cpp has no draft made of the target's own first layers."
    if spec.kind == "cross":
        return "llama.cpp starts with a draft whose vocabulary does not fit, and then never uses it."
    if plan.head == "peagle":
        return "llama.cpp's help has no P-EAGLE head among its types of draft."
    target = gguf(plan, "target")
    differs, legends = list[str](), [target.legend]
    if plan.on != "llama.cpp":
        differs.append(f"A quantised GGUF is another model than the {plan.precision or 'one'} that was measured.")
    kind = f"draft-{'mtp' if spec.kind == 'mtp' else plan.head or 'simple'}"
    types = [*([_way(plan).strip("`")] if ngram is not None else []), *([kind] if spec.kind is not None else [])]
    options = [["llama-server", "--model", target.name], _llamacpp_sampling(plan)]
    options.append(["--spec-type", ",".join(types)])
    if ngram is not None:
        options += _llamacpp_sizes(plan, ngram)
        differs += _llamacpp_lookup(plan, ngram.n)
    if spec.kind is not None:
        if spec.model is not None:
            draft = gguf(plan, "draft")
            legends.append(draft.legend)
            options.append(["--spec-draft-model", draft.name])
        options.append(["--spec-draft-n-max", str(plan.gamma), "--spec-draft-n-min", "0"])
        options[-1] += ["--spec-draft-p-min", f"{spec.cutoff:g}"]
        if spec.cutoff and plan.on != "llama.cpp":
            differs.append(
                "Its cut-off is on the likeliest token's share of the ten likeliest, not on its probability."
            )
        differs += sampled_drafts(plan, "llama.cpp", "`--spec-draft-sampling probabilistic`")
        differs += bare_drafts(plan, "llama.cpp")
    if len(plan.ends) > 1:
        differs.append(f"The run's texts ended at any of the ids {_listed(plan.ends)}; a GGUF file may know fewer.")
    return Given("sh", shell(options), tuple(differs), legends=tuple(filter(None, legends)))


def tgi(plan: Plan) -> Given | str:
    """text-generation-launcher, whose look-up matches a single token."""
    spec, ngram = plan.spec, plan.spec.ngram
    if ngram is None or ngram.way is not None or spec.kind is not None:
        return "TGI drafts by look-up or with Medusa heads, never with a model of its own."
    target = directory(plan, "target")
    differs = (
        f"TGI matches the last token alone, the run {_matched(plan, ngram.n)}; TGI drafts in every step, found or not.",
        "An open report has TGI 3.0 and 3.1 answer nonsense with it (huggingface/text-generation-inference#2997): "
        "compare texts first.",
    )
    options = [["text-generation-launcher", "--model-id", target.name], *_revision(target)]
    options.append(["--speculate", str(plan.proposed)])
    return Given("sh", shell(options), differs, _tgi_request(plan), tuple(filter(None, (target.legend,))))


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
    return "to `/generate`, `parameters`: " + _body(
        {"do_sample": not plan.sampling.greedy} | said | _limit(plan, "max_new_tokens")
    )


def _limit(plan: Plan, key: str) -> dict[str, int]:
    return {key: plan.max_new_tokens} if plan.max_new_tokens else {}


def _body(values: Mapping[str, float]) -> str:
    return f"`{json.dumps(values)[1:-1]}`."


def _llamacpp_sampling(plan: Plan) -> list[str]:
    """What the server takes where a request says nothing; its own defaults are 0.8, 40, 0.95, 0.05, and a GGUF file may
    have others. A penalty goes over all that was read, and not over the last 64 tokens."""
    flags = {"temp": "temperature", "top-k": "top_k", "top-p": "top_p", "min-p": "min_p"}
    flags |= {"repeat-penalty": "repetition_penalty"}
    values = measured(plan.sampling)
    said = [part for flag, key in flags.items() for part in (f"--{flag}", f"{values[key]:g}")]
    return said if values["repetition_penalty"] == 1.0 else [*said, "--repeat-last-n", "-1"]


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))


def _revision(model: Named) -> list[list[str]]:
    return [["--revision", model.revision]] if model.revision else []


def _matched(plan: Plan, n: int) -> str:
    return f"{n} tokens" if plan.down_to == n else f"{n} tokens or fewer, down to {plan.down_to}"


def _llamacpp_sizes(plan: Plan, ngram: NgramSpec) -> list[list[str]]:
    way, n, m = ngram.way or "simple", str(ngram.n), str(plan.proposed)
    if way == "cache":
        return []  # it drafts 8 tokens, whatever it is told
    if way == "mod":
        return [["--spec-ngram-mod-n-match", n, "--spec-ngram-mod-n-min", "1", "--spec-ngram-mod-n-max", m]]
    flag = f"--spec-ngram-{way}"
    return [[f"{flag}-size-n", n, f"{flag}-size-m", m], [f"{flag}-min-hits", "1"]]


def _llamacpp_lookup(plan: Plan, n: int) -> list[str]:
    found = []
    if plan.down_to < n:
        found.append(f"llama.cpp matches {n} tokens and no fewer, the run went down to {plan.down_to}.")
    if not plan.latest:
        found.append("llama.cpp copies the latest match, the run copied the earliest.")
    return found
