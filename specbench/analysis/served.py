"""What the Summary has of a run on a server: its loads, how much to draft at each, and what the server told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specbench.records import Call, Reason
from specbench.run_record import State


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one time over `requests` requests, seconds; None where there are fewer than 2, 20 or 100."""

    requests: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One draft at one gamma under one load (`concurrency` requests at once, or `rate` a second), against the target
    alone under the same. `speedup` is of decoding time per output token, `speedup_e2e` of a request's whole time, as
    clients see them; `predicted_speedup` is of decoding. `throughput` is output tokens per second of all clients, None
    where an open loop's clock was not kept; `ttft` the time to the first token, `tpot` decoding time per output token,
    of conversations turn by turn."""

    load: str
    concurrency: int | None
    rate: float | None
    draft: str
    gamma: int
    prompts: int
    verdict: Call
    reasons: tuple[Reason, ...]
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    speedup_e2e: float
    speedup_e2e_low: float | None
    speedup_e2e_high: float | None
    baseline_throughput: float | None
    throughput: float | None
    throughput_ratio: float | None
    baseline_ttft: Percentiles
    ttft: Percentiles
    baseline_tpot: Percentiles
    tpot: Percentiles
    predicted_speedup: float | None = None
    predicted_speedup_low: float | None = None
    predicted_speedup_high: float | None = None


@dataclass(frozen=True, slots=True)
class ScheduleStep:
    """The best gamma at one concurrency, 0 for none, by a speedup that was `measured` or is predicted."""

    concurrency: int
    gamma: int
    speedup: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many tokens to draft with so many clients at once. `gain` is over `fixed_gamma`, the best single one, with
    each concurrency having as much to do."""

    steps: tuple[ScheduleStep, ...]
    fixed_gamma: int
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, slots=True)
class NumberCheck:
    """One number, over the stretches that tell it: our sum and the server's count."""

    name: str
    ours: int
    theirs: int
    stretches: int


@dataclass(frozen=True, slots=True)
class CounterCheck:
    """Our sums against the server's counters, by stretch. In `agreeing` of `compared` every number is equal;
    `not_comparable` have no counters or hold requests of others."""

    compared: int
    agreeing: int
    not_comparable: int
    numbers: tuple[NumberCheck, ...]


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """Seconds of decoding of one arm by the client's clock and by the server's, over the requests of which it tells.
    The server's are less by the share `server_less`."""

    arm: str
    requests: int
    client_s: float
    server_s: float
    server_less: float


@dataclass(frozen=True, slots=True)
class TurnCheck:
    """One turn of all conversations in one arm, at the verdict's load: tokens of its prompts, those that the server had
    from earlier turns (None: it does not tell), the median time to its first token, and the mean of every token after
    it."""

    arm: str
    turn: int
    conversations: int
    prompt_tokens: int
    cached_tokens: int | None
    first_s: float
    token_s: float | None


@dataclass(frozen=True, slots=True)
class Server:
    """What the server tells of itself. `launch` is the file that it was started from, None where it was running; `load`
    that of the verdict; `sources` the field that each number comes from, `settings` by arm; `turns` those of
    conversations."""

    adapter: str
    launch: str | None
    load: str
    counters: CounterCheck | None
    clocks: tuple[ClockCheck, ...]
    sources: Mapping[str, str]
    settings: Mapping[str, State]
    turns: tuple[TurnCheck, ...] = ()
