"""Times loaded models at one batch size after another, as far as memory goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        readers = {name: CachedModel(model, self._plan.capacity, batch) for name, model in self._models.items()}
        try:
            heads = [
                HeadProbe(name, head, readers[None], self._plan)
                for name, head in self._heads.items()
                if None in readers
            ]
            if self._device.startswith("cuda"):  # as a run does
                widths = self._plan.widths(batch)
                wanted: list[tuple[Recordable, Sequence[int], bool]] = [
                    (reader, (1, 2) if name else widths, name is None) for name, reader in readers.items()
                ]
                record_all([*wanted, *((head.target, widths, True) for head in heads)])
            points += [*self._steps(readers, batch, heads), *self._prefills(readers, batch, heads)]
        except ModelMemoryError as error:
            name = next(name for name, reader in readers.items() if reader is error.reader)
            return name, f"ran out of memory at {error.where}"
        return None

    def _steps(
        self, readers: Mapping[str | None, CachedModel], batch: int, heads: Sequence[HeadProbe]
    ) -> list[CostPoint]:
        plan = self._plan
        found = []
        for context in plan.contexts if batch == 1 else plan.batch_contexts:
            phases = context in plan.batch_contexts and batch == 1
            found += probe(
                {name: self._probed(name, reader, phases) for name, reader in readers.items()},
                self._ids,
                [context],
                seed=f"{self._seed}/{batch}/{context}",
                batch=batch,
                sync=device_sync(self._device),
                passes=plan.passes if batch == 1 else plan.batch_passes,
                generator=torch.Generator(self._device).manual_seed(self._seed),
                beside=[one for head in heads for one in head.probed(self._sampling, context)],
            )
        return found

    def _probed(self, name: str | None, reader: CachedModel, phases: bool) -> Probed:
        if name is None:
            widths = self._plan.widths(reader.batch)
            return Probed(reader, widths, keep_all=True, rereads=widths[:-1])
        # Of k drafts the model has read all but the last.
        kept = tuple(range(1, max(self._plan.gammas)))
        if not phases:
            return Probed(reader, (1, 2), keep_all=False, rereads=kept)
        # No end of sequence: a phase is timed over all of its tokens.
        chained = not self._device.startswith("cpu")
        drafter = ModelDrafter(reader, vocab_size=reader.vocab_size, sampling=self._sampling, eos=(), chained=chained)
        return Probed(reader, (1, 2), False, drafter, self._plan.gammas, rereads=kept)

    def _prefills(
        self, readers: Mapping[str | None, CachedModel], batch: int, heads: Sequence[HeadProbe]
    ) -> list[CostPoint]:
        return probe_prefill(
            {**readers, **{head.name: head.pairs for head in heads}},
            self._ids,
            self._plan.prompts if batch == 1 else self._plan.batch_prompts,
            seed=f"{self._seed}/{batch}/prefill",
            batch=batch,
            sync=device_sync(self._device),
            passes=self._plan.prefill_passes,
        )

    def _drop_what_cannot_fit(self, batch: int) -> None:
        """By estimate, before anything is allocated. The target comes first: its costs matter most."""
        free = available_bytes(self._device)
        for name, model in list(self._models.items()):
            element = next(model.parameters()).element_size()
            size = model.config, self._plan.capacity, batch, element
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
