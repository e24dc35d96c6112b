"""An accelerator that runs behind the program, with a clock of its own: what a pass costs is planted, and the work of a
pass is only waited for where somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from specbench.acceptance import loop
from specbench.backends.local import local, probing
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.lanes import Underway
from specbench.clock import Stopwatch
from specbench.config import RunConfig
from specbench.cost.plan import ProbePlan, run_plan
from specbench.records import Arm
from specbench.run import session as run

STEP_S, MORE_S, DRAFT_S, READ_S = 0.020, 0.001, 0.002, 0.0004
LAUNCH_S, ACCEPT_S = 0.00005, 0.0002


def quick_probe(patch: Any) -> None:
    """Three passes in place of fifteen, at one length: what a probe of tiny models says is not looked at."""

    def quick(lengths: Sequence[int], config: RunConfig) -> ProbePlan:
        middle = sorted(lengths)[len(lengths) // 2 : len(lengths) // 2 + 1]
        plan = run_plan(lengths, config)
        contexts = run_plan(middle, config).contexts
        return replace(plan, contexts=contexts, batch_contexts=contexts, passes=3, batch_passes=3, prefill_passes=3)

    patch.setattr(run, "run_plan", quick)


class FakeDevice:
    """`slow` multiplies what the target costs without a draft, in `reading` prompts and in its `steps`; `idle_s` is
    what the program then does for nothing after each step."""

    def __init__(self, *, slow: float = 1.0, reading: bool = True, steps: bool = True, idle_s: float = 0.0) -> None:
        self.now_s = self.done_s = 0.0
        self.slow, self.reading, self.steps, self.idle_s = slow, reading, steps, idle_s
        self.arm: Arm | None = None
        self.in_prompt = False

    def now(self) -> int:
        return round(self.now_s * 1e9)

    def sync(self) -> None:
        self.now_s = max(self.now_s, self.done_s)

    def launch(self, reader: CachedModel, tokens: int) -> None:
        """Queue a pass; the program goes on at once."""
        self.now_s += LAUNCH_S
        self.done_s = max(self.done_s, self.now_s) + self._cost_s(reader, tokens)

    def _cost_s(self, reader: CachedModel, tokens: int) -> float:
        if not reader.model.name_or_path.endswith("target"):
            return DRAFT_S * tokens
        self.in_prompt = whole = tokens > 16
        cost_s = READ_S * tokens if whole else STEP_S + MORE_S * (tokens - 1)
        handicapped = self.arm is not None and self.arm.draft is None and (self.reading if whole else self.steps)
        return cost_s * (self.slow if handicapped else 1.0)

    def install(self, patch: Any, *, synced: bool = True) -> None:
        """Make every clock and every wait of a run this device's; `synced` says whether spans wait for it."""
        forward, advance, accept = CachedModel.forward_rows, Underway.advance, loop.accept

        def forward_rows(reader: CachedModel, rows: Any, keep: int) -> Any:
            self.launch(reader, len(rows[0]))
            return forward(reader, rows, keep)

        def advanced(underway: Underway, tokens: int) -> bool:
            self.arm = underway.arm
            try:
                return advance(underway, tokens)
            finally:
                self.arm = None

        def accepted(*args: Any) -> Any:
            # Whoever looks at a number waits for it, on every device.
            self.sync()
            needless = self.arm is not None and self.arm.draft is None and not self.in_prompt
            self.now_s += ACCEPT_S + (self.idle_s if needless else 0.0)
            return accept(*args)

        def waits(_: str) -> Callable[[], None]:
            return self.sync

        patch.setattr(CachedModel, "forward_rows", forward_rows)
        patch.setattr(Underway, "advance", advanced)
        patch.setattr(loop, "accept", accepted)
        patch.setattr(local, "device_sync", waits if synced else lambda _: lambda: None)
        patch.setattr(probing, "device_sync", waits)
        patch.setattr(local, "Stopwatch", partial(Stopwatch, now=self.now))
        for name in ("probe", "probe_prefill"):
            patch.setattr(probing, name, partial(getattr(probing, name), now=self.now))
