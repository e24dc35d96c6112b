"""The parts of the Summary that only a run on a server has: loads, and what the server itself says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specbench.records import Call
from specbench.run_record import State


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one time over `requests` requests, seconds. None where so few do not show it: the 50th takes 2 requests, the
    95th 20, the 99th 100."""

    requests: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One draft at one gamma under one load, against the target alone under the same load. `concurrency` is None where
    requests arrive at a `rate` (requests/s), and the other way round. `speedup` is of decoding time per output token,
    `speedup_e2e` of the whole time of a request, both as a client sees them, over `prompts` prompts; `verdict` follows
    the policy's metric.

    `predicted_speedup` is of decoding, from replayed rounds and rounds that were probed at this concurrency; its ends
    are over prompts and hold the costs' own uncertainty.

    `throughput` is output tokens per second of all clients together, None where an open loop's clock was not kept;
    `ttft` the time to the first token, `tpot` decoding time per output token of a request."""

    load: str
    concurrency: int | None
    rate: float | None
    draft: str
    gamma: int
    prompts: int
    verdict: Call
    reasons: tuple[str, ...]
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
    """How many tokens to draft with so many clients at once. `gain` is how much faster all concurrencies together are,
    each with as much to do, than with `fixed_gamma`, the best single one; less than 0 where it is slower."""

    steps: tuple[ScheduleStep, ...]
    fixed_gamma: int
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, slots=True)
class NumberCheck:
    """One number over the stretches in which it could be compared: as we added it up, and as the server counted."""

    name: str
    ours: int
    theirs: int
    stretches: int


@dataclass(frozen=True, slots=True)
class CounterCheck:
    """Our sums against the server's own counters, stretch by stretch (a stretch is an uninterrupted sequence of
    requests of one arm). `agreeing` of `compared` stretches have every number equal; `not_comparable` have no counters
    or hold requests that we do not count."""

    compared: int
    agreeing: int
    not_comparable: int
    numbers: tuple[NumberCheck, ...]


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """Seconds of decoding of one arm over the requests of which the server tells its own: as the client saw them, and
    by the server's clock. `server_less` is by which share the server's are less."""

    arm: str
    requests: int
    client_s: float
    server_s: float
    server_less: float


@dataclass(frozen=True, slots=True)
class Server:
    """The server that was measured, as far as it tells. `launch` is the file that it was started from, None where it
    was running already; `load` the load that the verdict is about; `sources` says from which field each number comes,
    `settings` what the server said of itself in each arm."""

    adapter: str
    launch: str | None
    load: str
    counters: CounterCheck | None
    clocks: tuple[ClockCheck, ...]
    sources: Mapping[str, str]
    settings: Mapping[str, State]
