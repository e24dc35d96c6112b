"""What a draft head costs alone: its first step of a round, a step on its own state or a pass that drafts several
tokens at once, a whole draft phase; and what the target's pass costs that keeps the states for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specbench.backends.local.cached import CachedModel
from specbench.backends.local.dflash import BlockReader, DFlash
from specbench.backends.local.drafts import reader_of
from specbench.backends.local.headreader import HeadReader, ManyHeadReader, Network
from specbench.backends.local.states import States
from specbench.cost.plan import ProbePlan
from specbench.cost.probe import Probed
from specbench.drafters.head import HeadDrafter
from specbench.records import Sampling


class HeadProbe:
    """A head to time under `name`, beside the `reader` of its target, at that reader's batch."""

    def __init__(self, name: str, head: Network, reader: CachedModel, plan: ProbePlan) -> None:
        self.name, self._head, self._plan = name, head, plan
        self.target = reader.keeping(head.reads)
        # Which numbers the states hold does not change the time.
        width = len(head.reads) * head.head.target_hidden
        self._states = torch.zeros(plan.capacity, width, dtype=head.dtype, device=head.device)
        self._at_once = isinstance(head, DFlash) or head.masked is not None
        self.pairs: _Pairs | _ManyPairs
        if reader.batch == 1:
            self.pairs = _Pairs(reader_of(head, plan.capacity), self._states)
        else:
            self.pairs = _ManyPairs(head, width, plan.capacity, reader.batch)

    def probed(self, sampling: Sampling) -> Iterator[tuple[str, Probed]]:
        """All that is timed after a context. The caches are those of the target, and one of the head."""
        plan = self._plan
        widths = plan.widths(self.target.batch)
        yield self.name, Probed(self.target, widths, keep_all=True, phase="states")
        yield self.name, Probed(self.pairs, widths, keep_all=False)
        if not self._at_once:
            yield self.name, Probed(_Steps(self.pairs), (1,), keep_all=False, phase="step")
        else:
            most = max(plan.gammas)
            drafted = tuple(sorted({*(n for n in widths if n < most), most}))
            yield self.name, Probed(_Blocks(self.pairs), drafted, keep_all=False, phase="block")
        if self.target.batch == 1:
            memory = reader_of(self._head, plan.capacity)
            drafter = HeadDrafter(
                memory,
                lambda begin, end: self._states[begin:end],
                vocab_size=memory.vocab_size,
                sampling=sampling,
                eos=(),  # a phase is timed over all of its tokens
                chained=not memory.head.device.startswith("cpu"),
            )
            yield self.name, Probed(_Pairs(memory, self._states), (), False, drafter, plan.phases)


class _Pairs:
    """Reads emitted tokens beside states of the target."""

    def __init__(self, memory: HeadReader | BlockReader, states: Tensor) -> None:
        self.memory, self._states = memory, states

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        (ids,) = rows
        past = self.memory.cache.get_seq_length()
        states = self._states[past : past + len(ids)]
        # The first draft of a block comes with all of it.
        found = self.memory.block(ids, states, keep) if self.memory.at_once else self.memory.read(ids, states, keep)
        return found[None]

    def rewind(self, length: int) -> None:
        self.memory.rewind(length)

    def step(self, ids: Sequence[int]) -> Tensor:
        assert isinstance(self.memory, HeadReader)
        return self.memory.step(ids)[None]

    def block(self, ids: Sequence[int], k: int) -> Tensor:
        past = self.memory.cache.get_seq_length()
        return self.memory.block(ids, self._states[past : past + 1], k)[None]


class _ManyPairs:
    """The same in several sequences at once."""

    def __init__(self, head: Network, width: int, capacity: int, batch: int) -> None:
        states = States((0,), capacity, batch)
        at = torch.zeros(batch, 1, dtype=torch.long, device=head.device)
        states.placed(torch.arange(batch, device=head.device)[:, None], at)[0](
            torch.zeros(batch, 1, width, dtype=head.dtype, device=head.device)
        )
        self.memory, self._batch = ManyHeadReader(head, states, capacity), batch
        self.memory.begin(batch)

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        return self.memory.read(rows)[:, None]

    def step(self, ids: Sequence[int]) -> Tensor:
        return self.memory.step(ids, range(self._batch))[:, None]

    def block(self, ids: Sequence[int], k: int) -> Tensor:
        return self.memory.block([[one] for one in ids], k)

    def rewind(self, length: int) -> None:
        self.memory.rewind([length] * self._batch)


class _Steps:
    """Reads one token beside the head's own state; a context as any."""

    def __init__(self, pairs: _Pairs | _ManyPairs) -> None:
        self._pairs = pairs

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        one = len(rows[0]) == 1
        return self._pairs.step([ids[0] for ids in rows]) if one else self._pairs.forward_rows(rows, keep)

    def rewind(self, length: int) -> None:
        self._pairs.rewind(length)


class _Blocks:
    """Drafts as many tokens as it is given, in one pass after one emitted token; a context as any."""

    def __init__(self, pairs: _Pairs | _ManyPairs) -> None:
        self._pairs, self._read = pairs, False

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        if not self._read:
            self._read = True
            return self._pairs.forward_rows(rows, keep)
        return self._pairs.block([ids[0] for ids in rows], len(rows[0]))

    def rewind(self, length: int) -> None:
        self._read = length > 0
        self._pairs.rewind(length)
