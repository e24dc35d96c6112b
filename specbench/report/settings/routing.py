"""What a verdict that differs by category means for a deployment: what goes on, how much that is, and who can switch.

None of the servers switches for a single request: vLLM (github.com/vllm-project/vllm: issue 52258 open, pull request
55412 closed unmerged), SGLang (github.com/sgl-project/sglang: issue 30263 and pull request 30264, closed), llama.cpp
(github.com/ggml-org/llama.cpp: issue 23052, closed; xllamacpp 2026.10 was seen to ignore `speculative.n_max` 0). vLLM's
schedule by batch size: docs/features/speculative_decoding/dynamic_speculative_decoding.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specbench import text
from specbench.analysis.contract import CategoryResult, DraftResult
from specbench.records import Call
from specbench.report.templating import mark
from specbench.report.wording import by_speedup, few_mark

_SERVERS = (
    "vLLM, SGLang, llama.cpp and TGI switch by server process: run two, with and without these settings, behind a "
    "router that knows the category before it sends the request. transformers switches with every `generate`."
)
_BY_REQUEST = (
    "A switch by request was asked for and is not there ([vLLM](https://github.com/vllm-project/vllm/issues/52258), "
    "[SGLang](https://github.com/sgl-project/sglang/issues/30263), "
    "[llama.cpp](https://github.com/ggml-org/llama.cpp/issues/23052)). vLLM's `num_speculative_tokens_per_batch_size` "
    "sets gamma by how many requests run at once, not by what they ask."
)
_SPLIT = (
    "A server for some categories alone has other batches than one for all. That their verdict holds there too was not "
    f"measured {mark('assumed', 'split')}: measure each server under its own load. The target's weights are in memory "
    "twice."
)


def part_that_is_on(draft: DraftResult) -> list[CategoryResult]:
    """The categories that are a GO where others are not; none where all agree."""
    categories = by_speedup(draft)
    on = [category for category in categories if category.verdict == "GO"]
    return on if len(on) < len(categories) else []


def gamma_to_paste(draft: DraftResult, gamma: int, call: Call, mix: Mapping[str, float] | None) -> int:
    """The gamma of the whole run where that is a GO. Else a server is for the categories that are one, and has the
    gamma of that with the most traffic."""
    on = part_that_is_on(draft)
    if call == "GO" or not on:
        return gamma
    return max(on, key=lambda category: _weight([category], mix)).best_gamma


def routing(draft: DraftResult, gamma: int, call: Call, mix: Mapping[str, float] | None) -> tuple[str, ...]:
    """Sentences on what to switch on where the categories of `draft` disagree and one at least is a GO; else none.
    `gamma` is what servers are started with, `call` the verdict on the whole run."""
    on = part_that_is_on(draft)
    if not on:
        return ()
    categories = by_speedup(draft)
    off = [category for category in categories if category.verdict == "NO-GO"]
    later = [category for category in categories if category.verdict == "UNCLEAR"]
    total = _weight(categories, mix)
    parts = [
        f"**{word}**: {_names(found)}, {_share(found, total, mix)}{few}."
        for word, found, few in (
            ("On", on, _few(on)),
            ("Off", off, _few(off)),
            ("Off until measured", later, ""),
        )
        if found
    ]
    gammas = _one_gamma(on, gamma)
    return (_whole(call), " ".join(parts), *([gammas] if gammas else []), _SERVERS, _BY_REQUEST, _SPLIT)


def _few(categories: Sequence[CategoryResult]) -> str:
    return few_mark(min(category.prompts for category in categories)) if categories else ""


def _whole(call: Call) -> str:
    """How the categories go with the verdict on all of them."""
    if call == "GO":
        return "As a whole it is a GO: on for everything is what was measured, and needs no router."
    return f"As a whole it is {call}: with a router, only what pays is on."


def _one_gamma(on: Sequence[CategoryResult], gamma: int) -> str:
    """A category is decided at its own best gamma; a server has one."""
    others = [
        f"{text.escape(category.category)} is a GO at gamma {category.best_gamma}"
        + "".join(
            f" and ran {text.estimate(row.speedup, row.speedup_low, row.speedup_high)} at {gamma}"
            for row in category.gammas
            if row.gamma == gamma
        )
        for category in on
        if category.best_gamma != gamma
    ]
    return f"A server has one gamma, here {gamma}: {'; '.join(others)}." if others else ""


def _weight(categories: Sequence[CategoryResult], mix: Mapping[str, float] | None) -> float:
    return sum(mix.get(c.category, 0.0) if mix else c.prompts for c in categories)


def _share(categories: Sequence[CategoryResult], total: float, mix: Mapping[str, float] | None) -> str:
    share = text.percent(_weight(categories, mix) / total) if total else text.UNKNOWN
    return f"{share} of the traffic {mark('assumed', 'mix')}" if mix else f"{share} of this run's prompts"


def _names(categories: Sequence[CategoryResult]) -> str:
    return text.join(text.escape(category.category) for category in categories)
