"""What pages say otherwise of a server, which is seen from outside, than of models in this process."""

from __future__ import annotations

from dataclasses import dataclass, replace

from specbench.analysis.facts import Facts


@dataclass(frozen=True, slots=True)
class EngineWords:
    """`turns` is how the arms were interleaved, `no_rounds` why nobody knows any. The time before the first token is
    called `prefill` alone, `reading` in a manager's sentence, `reading_takes` before its share and `both_reading` of
    two models. `rule` keeps the distribution when sampling, on the ground of `proof`; texts are compared `alike`.
    `new_run` is what else needs one."""

    turns: str
    no_rounds: str
    prefill: str
    reading: str
    reading_takes: str
    both_reading: str
    rule: str
    proof: str
    alike: str
    new_run: str


IN_PROCESS = EngineWords(
    turns=", every arm on one prompt before the next",
    no_rounds="no round was run",
    prefill="Prefill",
    reading="the reading of the prompt",
    reading_takes="Reading the prompt takes",
    both_reading="both models reading the prompt",
    rule="the rejection rule",
    proof="; specbench's tests prove it by enumerating short texts",
    alike="token for token",
    new_run=" or batch sizes",
)
SLICED = replace(IN_PROCESS, turns=", taking turns every few tokens of a prompt")
SERVED = EngineWords(
    turns="",
    no_rounds="the server does not tell its rounds",
    prefill="The time to first token",
    reading="the wait for the first token",
    reading_takes="The time to the first token is",
    both_reading="the time to the first token",
    rule="the server's rejection rule",
    proof="",
    alike="character for character",
    new_run=", loads or settings of the server",
)


def words_of(facts: Facts) -> EngineWords:
    """Those of the engine that was measured."""
    return SERVED if facts.served else SLICED if facts.sliced else IN_PROCESS
