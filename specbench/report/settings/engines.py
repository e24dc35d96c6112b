"""Every engine that settings are given for: what to paste, how to see that it drafts, and how to switch it off.

The counters are those of specbench/backends/server/*.py; beside them docs/source/reference/metrics.md of
github.com/huggingface/text-generation-inference, and github.com/ggml-org/llama.cpp/issues/25345 (a draft that is loaded
and never used).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specbench.report.settings.plan import Given, Plan
from specbench.report.settings.servers import llamacpp, sglang, tgi, vllm
from specbench.report.settings.transformers import counting, python


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine. `adapters` are the names that a run has it by, `known` the versions for which its settings hold and
    how we know. `build` gives what to paste, or one sentence that says why nothing would be what was measured.
    `running` says how to see that it drafts like this; `off` what to leave out, `resting` how to see that it is off."""

    name: str
    adapters: tuple[str, ...]
    known: str
    build: Callable[[Plan], Given | str]
    running: Callable[[Plan], str]
    off: str
    resting: str


def _tokens(plan: Plan) -> str:
    """What a round drafts: a look-up may find less."""
    steady = not plan.spec.look_up and not plan.spec.cutoff
    return f"{plan.gamma} (a little less where texts end)" if steady else f"at most {plan.gamma}"


def _vllm(plan: Plan) -> str:
    return (
        "`curl -s localhost:8000/metrics | grep vllm:spec_decode` shows anything at all; `num_draft_tokens_total` over "
        f"`num_drafts_total` is {_tokens(plan)}, and `num_accepted_tokens_total` grows."
    )


def _sglang(plan: Plan) -> str:
    return (
        "`curl -s localhost:30000/server_info` has `speculative_algorithm` STANDALONE and `speculative_num_steps` "
        f"{plan.gamma}; `meta_info` in an answer of `/generate` has a `spec_verify_ct` above 0."
    )


def _llamacpp(plan: Plan) -> str:
    return (
        '`curl -s localhost:8080/slots` has `"speculative": true` (`/props` says none even then). In `/metrics`, with '
        "`--metrics`, `llamacpp:spec_decode_num_draft_tokens_total` over `num_drafts_total` is "
        f"{_tokens(plan)}."
    )


def _tgi(plan: Plan) -> str:
    return (
        "`curl -s localhost:3000/metrics | grep tgi_request_skipped_tokens`: sum over count, the tokens that a step "
        f"gives beyond its first, is above 0 and at most {plan.proposed}."
    )


ENGINES = (
    Engine(
        "vLLM",
        ("vLLM", "vllm"),
        "vLLM 0.32.0, which ran in specbench's tests (`configs/engines/vllm.yaml`, on a CPU).",
        vllm,
        _vllm,
        "Leave out `--speculative-config`.",
        "`/metrics` has no `vllm:spec_decode_*`.",
    ),
    Engine(
        "SGLang",
        ("SGLang", "sglang"),
        "SGLang 0.5.23, from its documentation; never run by us.",
        sglang,
        _sglang,
        "Leave out `--speculative-algorithm` and every other `--speculative-*`.",
        "`/server_info` has `speculative_algorithm` null.",
    ),
    Engine(
        "llama.cpp",
        ("llama.cpp", "llamacpp"),
        "llama-server build 11434 (flags checked against its `--help`) and xllamacpp 2026.10, the same server in "
        "Python, which runs in specbench's tests. Older builds have other names for these flags.",
        llamacpp,
        _llamacpp,
        "Leave out `--spec-type` (and `LLAMA_ARG_SPEC_TYPE`, `--spec-default`) or say `--spec-type none`; leave out "
        "`--spec-draft-model` (`-md`) too: alone it is loaded and never used.",
        '`/slots` has `"speculative": false`, and the `timings` of an answer have no `draft_n`.',
    ),
    Engine(
        "TGI",
        ("TGI", "tgi"),
        "TGI 3.x, from its documentation; never run by us.",
        tgi,
        _tgi,
        "Leave out `--speculate` (and `SPECULATE`).",
        "`tgi_request_skipped_tokens_sum` in `/metrics` stays 0.",
    ),
    Engine(
        "transformers",
        (),
        "transformers >=5.20,<6; 5.23 runs in specbench's tests.",
        python,
        counting,
        "Pass no `assistant_model`, no `prompt_lookup_num_tokens` and no `assistant_early_exit`.",
        "`target.register_forward_hook` counts one pass for each new token.",
    ),
)
