"""Times loaded models at one batch size after another, as far as memory goes.

Of a draft head: its first step of a round, a step on its own state or a pass that drafts several
tokens at once, a whole draft phase; and what the target's pass costs that keeps the states for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specbench.backends.local.cached import CachedModel, States
from specbench.backends.local.drafts import reader_of
from specbench.backends.local.graphs import Recordable, record_all
from specbench.backends.local.headreader import HeadReader, ManyHeadReader, Network, out_of_memory
from specbench.clock import device_sync
from specbench.cost.plan import Costs, ProbePlan
from specbench.cost.probe import Probed, probe, probe_prefill
from specbench.drafters.head import HeadDrafter
from specbench.drafters.model import ModelDrafter
from specbench.models.memory import ModelMemoryError, available_bytes, cache_bytes, pass_bytes
from specbench.records import CostPoint, Finding, Sampling, warned
from specbench.text import gigabytes


class HeadProbe:
    """A head to time under `name`, beside the `reader` of its target, at that reader's batch. `parts` are what its
    passes are asked of. Raises ModelMemoryError with the `head` as reader where there is no room for its memory."""

    def __init__(self, name: str, head: Network, reader: CachedModel, plan: ProbePlan) -> None:
        self.name, self._head, self._plan = name, head, plan
        self.target = reader.keeping(head.reads)
        # Which numbers the states hold does not change the time.
        width = len(head.reads) * head.head.target_hidden
        self.pairs: _Pairs | _ManyPairs
        self._phase: _Pairs | None = None
        with out_of_memory(head, f"{plan.capacity} tokens"):
            self._states = torch.zeros(plan.capacity, width, dtype=head.dtype, device=head.device)
            if reader.batch == 1:
                self.pairs, self._phase = (_Pairs(reader_of(head, plan.capacity), self._states) for _ in range(2))
            else:
                self.pairs = _ManyPairs(head, width, plan.capacity, reader.batch)
        self.parts = self.target, *(pairs.memory for pairs in (self.pairs, self._phase) if pairs is not None)

    def probed(self, sampling: Sampling) -> Iterator[tuple[str, Probed]]:
        """All that is timed after a context. The caches are those of the target, and one of the head."""
        plan = self._plan
        widths = plan.widths(self.target.batch)
        yield self.name, Probed(self.target, widths, keep_all=True, phase="states")
        yield self.name, Probed(self.pairs, widths, keep_all=False)
        if not self._head.at_once:
            yield self.name, Probed(_Steps(self.pairs), (1,), keep_all=False, phase="step")
        else:
            most = max(plan.gammas)
            drafted = tuple(sorted({*(n for n in widths if n < most), most}))
            yield self.name, Probed(_Blocks(self.pairs), drafted, keep_all=False, phase="block")
        if self._phase is not None:
            memory = self._phase.memory
            drafter = HeadDrafter(
                memory,
                lambda begin, end: self._states[begin:end],
                vocab_size=memory.vocab_size,
                sampling=sampling,
                eos=(),  # a phase is timed over all of its tokens
                chained=not memory.head.device.startswith("cpu"),
            )
            yield self.name, Probed(self._phase, (), False, drafter, plan.phases)


class _Pairs:
    """Reads emitted tokens beside states of the target."""

    def __init__(self, memory: HeadReader, states: Tensor) -> None:
        self.memory, self._states = memory, states

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        (ids,) = rows
        states = self._states[self.memory.pairs :][: len(ids)]
        # The first draft of a block comes with all of it.
        read = self.memory.block if self.memory.head.at_once else self.memory.read
        return read(ids, states, keep)[None]

    def rewind(self, length: int) -> None:
        self.memory.rewind(length)

    def step(self, ids: Sequence[int]) -> Tensor:
        return self.memory.step(ids)[None]

    def block(self, ids: Sequence[int], k: int) -> Tensor:
        return self.memory.block(ids, self._states[self.memory.pairs :][:1], k)[None]


class _ManyPairs:
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


# Of free memory, what caches of several contexts side by side may take.
SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Bench:
    """Models and heads over caches that hold one context."""

    readers: Mapping[str | None, CachedModel]
    heads: Sequence[HeadProbe]

    def asked(self) -> Iterator[tuple[str | None, object]]:
        """All that a pass is asked of, by name."""
        yield from self.readers.items()
        yield from ((head.name, part) for head in self.heads for part in head.parts)


class Prober:
    """Probes transformers `models` by name (None: the target) as `plan` says, over the tokens `ids`."""

    def __init__(
        self,
        models: Mapping[str | None, Any],
        plan: ProbePlan,
        ids: Sequence[int],
        *,
        device: str,
        seed: int,
        sampling: Sampling,
        say: Callable[[str], None] = lambda _: None,
        heads: Mapping[str, Network] | None = None,
    ) -> None:
        self._models = dict(models)
        self._heads = dict(heads or {})
        self._plan = plan
        # A draft with another tokenizer knows fewer ids than the target; which ones are read does not change the time.
        known = min(int(model.config.get_text_config().vocab_size) for model in models.values())
        self._ids = [token % known for token in ids]
        self._device = device
        self._seed = seed
        self._sampling = sampling
        self._say = say
        self._cautions: list[Finding] = []

    def run(self) -> Costs:
        """Every batch size in turn. A model or head that does not fit is left out from there on; the others go on."""
        points: list[CostPoint] = []
        for batch in sorted(self._plan.batch_sizes):
            self._drop_what_cannot_fit(batch)
            while self._models:
                self._say(f"Timing the models alone, batch {batch}")
                lost = self._try(batch, points)
                if lost is None:
                    break
                self._drop(*lost, batch)
        return Costs(tuple(points), tuple(self._cautions))

    def _try(self, batch: int, points: list[CostPoint]) -> tuple[str | None, str] | None:
        """Add the points of one batch; or the model or head that ran out of memory, and where. The error is not kept:
        its frames hold the tensors that filled the memory."""
        contexts = self._plan.contexts if batch == 1 else self._plan.batch_contexts
        found: list[CostPoint] = []
        every: list[Bench] = []
        try:
            # Side by side in each pass where their caches fit, else one length after the other.
            for part in [contexts] if self._fits(batch, len(contexts)) else [(context,) for context in contexts]:
                every[:] = [self._bench(batch) for _ in part]
                for bench in every:
                    self._record(bench, batch)
                found += self._steps(dict(zip(part, every, strict=True)), batch)
            found += self._prefills(every[-1], batch)
        except ModelMemoryError as error:
            asked: list[tuple[str | None, object]] = [*self._heads.items()]
            asked += [pair for bench in every for pair in bench.asked()]
            name = next(name for name, reader in asked if reader is error.reader)
            return name, f"ran out of memory at {error.where}"
        points += found
        return None

    def _fits(self, batch: int, times: int) -> bool:
        """Whether so many caches of every model find room side by side."""
        needed = sum(times * cache_bytes(*self._size(model, batch)) for model in self._models.values())
        return needed <= SHARE * available_bytes(self._device)

    def _bench(self, batch: int) -> Bench:
        readers = {name: CachedModel(model, self._plan.capacity, batch) for name, model in self._models.items()}
        # A head whose rounds are bounded has no form for batches.
        wanted = {name: head for name, head in self._heads.items() if batch == 1 or head.head.most is None}
        heads = [HeadProbe(name, head, readers[None], self._plan) for name, head in wanted.items() if None in readers]
        return Bench(readers, heads)

    def _record(self, bench: Bench, batch: int) -> None:
        """On CUDA passes are recorded, as those of a run are."""
        if self._device.startswith("cuda"):
            widths = self._plan.widths(batch)
            passes: list[tuple[Recordable, Sequence[int], bool]] = [
                (reader, (1, 2) if name else widths, name is None) for name, reader in bench.readers.items()
            ]
            record_all([*passes, *((head.target, widths, True) for head in bench.heads)])

    def _steps(self, benches: Mapping[int, Bench], batch: int) -> list[CostPoint]:
        """What is timed after each of these contexts, over its own caches."""
        at = {
            context: [
                *((name, self._probed(name, reader)) for name, reader in bench.readers.items()),
                *(one for head in bench.heads for one in head.probed(self._sampling)),
            ]
            for context, bench in benches.items()
        }
        return probe(
            at,
            self._ids,
            seed=f"{self._seed}/{batch}/{min(at)}",
            batch=batch,
            sync=device_sync(self._device),
            passes=self._plan.passes if batch == 1 else self._plan.batch_passes,
            generator=torch.Generator(self._device).manual_seed(self._seed),
        )

    def _probed(self, name: str | None, reader: CachedModel) -> Probed:
        if name is None:
            widths = self._plan.widths(reader.batch)
            return Probed(reader, widths, keep_all=True, rereads=widths[:-1])
        # Of k drafts the model has read all but the last.
        kept = tuple(range(1, max(self._plan.gammas)))
        if reader.batch > 1:
            return Probed(reader, (1, 2), keep_all=False, rereads=kept)
        # No end of sequence: a phase is timed over all of its tokens.
        chained = not self._device.startswith("cpu")
        drafter = ModelDrafter(reader, vocab_size=reader.vocab_size, sampling=self._sampling, eos=(), chained=chained)
        return Probed(reader, (1, 2), False, drafter, self._plan.phases, rereads=kept)

    def _prefills(self, bench: Bench, batch: int) -> list[CostPoint]:
        return probe_prefill(
            {**bench.readers, **{head.name: head.pairs for head in bench.heads}},
            self._ids,
            self._plan.prompts if batch == 1 else self._plan.batch_prompts,
            seed=f"{self._seed}/{batch}/prefill",
            batch=batch,
            sync=device_sync(self._device),
            passes=self._plan.prefill_passes,
        )

    def _size(self, model: Any, batch: int) -> tuple[Any, int, int, int]:
        return model.config, self._plan.capacity, batch, next(model.parameters()).element_size()

    def _drop_what_cannot_fit(self, batch: int) -> None:
        """By estimate, before anything is allocated. The target comes first: its costs matter most."""
        free = available_bytes(self._device)
        for name, model in list(self._models.items()):
            size = self._size(model, batch)
            needed = cache_bytes(*size) + pass_bytes(*size)
            if needed > free:
                self._drop(name, f"needs {gigabytes(needed)} beside the weights, {gigabytes(free)} are free", batch)
            else:
                free -= cache_bytes(*size)

    def _drop(self, name: str | None, why: str, batch: int) -> None:
        if name in self._heads:
            del self._heads[name]
        else:
            del self._models[name]
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()
        self._cautions.append(
            warned(
                "batch-too-large",
                f"{'the target' if name is None else name} was not timed at batch {batch} and above: it {why}",
                "Probe smaller batches or shorter contexts, or use a device with more memory.",
            )
        )
