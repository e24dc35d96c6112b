"""Times loaded models at one batch size after another, as far as memory goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specbench.backends.local.cached import CachedModel
from specbench.backends.local.graphs import Recordable, record_all
from specbench.backends.local.headprobe import HeadProbe
from specbench.backends.local.headreader import Network
from specbench.clock import device_sync
from specbench.cost.plan import Costs, ProbePlan
from specbench.cost.probe import Probed, probe, probe_prefill
from specbench.drafters.model import ModelDrafter
from specbench.models.memory import ModelMemoryError, available_bytes, cache_bytes, pass_bytes
from specbench.records import Caution, CostPoint, Sampling
from specbench.text import gigabytes

# Of free memory, what caches of several contexts side by side may take.
SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Bench:
    """Models and heads over caches that hold one context."""

    readers: Mapping[str | None, CachedModel]
    heads: Sequence[HeadProbe]


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
        self._heads = heads or {}
        self._plan = plan
        # A draft with another tokenizer knows fewer ids than the target; which ones are read does not change the time.
        known = min(int(model.config.get_text_config().vocab_size) for model in models.values())
        self._ids = [token % known for token in ids]
        self._device = device
        self._seed = seed
        self._sampling = sampling
        self._say = say
        self._cautions: list[Caution] = []

    def run(self) -> Costs:
        """Every batch size in turn. A model that does not fit is left out from there on; the others go on."""
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
        """Add the points of one batch; or the model that ran out of memory, and where. The error is not kept: its
        frames hold the tensors that filled the memory."""
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
            readers = [pair for bench in every for pair in bench.readers.items()]
            name = next(name for name, reader in readers if reader is error.reader)
            return name, f"ran out of memory at {error.where}"
        points += found
        return None

    def _fits(self, batch: int, times: int) -> bool:
        """Whether so many caches of every model find room side by side."""
        needed = sum(times * cache_bytes(*self._size(model, batch)) for model in self._models.values())
        return needed <= SHARE * available_bytes(self._device)

    def _bench(self, batch: int) -> Bench:
        """Caches of every model and head."""
        readers = {name: CachedModel(model, self._plan.capacity, batch) for name, model in self._models.items()}
        target = readers.get(None)
        wanted = {} if target is None else self._heads
        heads = [HeadProbe(name, head, readers[None], self._plan) for name, head in wanted.items()]
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
        del self._models[name]
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()
        self._cautions.append(
            Caution(
                "batch-too-large",
                f"{'the target' if name is None else name} was not timed at batch {batch} and above: it {why}",
                "Probe smaller batches or shorter contexts, or use a device with more memory.",
            )
        )
