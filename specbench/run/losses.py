"""What a run loses on its way, and how that gets into run.json: prompts that an engine refuses or has no memory for,
requests that fail for good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from specbench.backends.base import Noticed
from specbench.errors import EngineError
from specbench.records import Finding, Omitted, warned
from specbench.run.record import skipped_prompts
from specbench.store import OUT_OF_MEMORY, RunWriter

# So many prompts in a row on which memory ran out end a run whose prompts come in no order: then it is not the prompts.
MOST_IN_A_ROW = 5


class Losses:
    """Prompts that count in no arm: `ids`, those of earlier sessions too. Of `at_load` the workload or the model had
    left out already, and whoever has that name now is another. Prompts on which memory ran out are stored when a later
    one has fitted: where none does, memory is short for another reason, and they are tried again."""

    def __init__(self, writer: RunWriter, at_load: Iterable[str], most_in_a_row: int | None) -> None:
        self._writer = writer
        self._most = most_in_a_row
        self._waiting: list[Omitted] = []
        self._any_fitted = False
        self.ids = {one.id for one in writer.run.workload.skipped} - set(at_load)

    def fitted(self) -> None:
        self._any_fitted = True
        self._store_waiting()

    def too_long(self, prompt_id: str, tokens: int) -> None:
        """Memory ran out on a prompt of `tokens` tokens, those to be generated included. Raises EngineError where it
        did on the ones before as well."""
        self._waiting.append(Omitted(prompt_id, f"{OUT_OF_MEMORY} at {tokens:,} tokens, its answer included"))
        if len(self._waiting) == self._most:
            raise self._no_memory(f"Out of memory on {self._most} prompts in a row")

    def end(self) -> None:
        """After the last prompt. Raises EngineError where not one fitted."""
        if self._waiting and not self._any_fitted:
            raise self._no_memory("Out of memory on every prompt")
        self._store_waiting()

    def _no_memory(self, what: str) -> EngineError:
        lengths = _lengths(self._waiting)
        return EngineError(
            what,
            where=f"at {min(lengths):,} to {max(lengths):,} tokens",
            hint="What is done is kept. Free memory and run the same command again, or use shorter texts or a smaller "
            "model.",
        )

    def _store_waiting(self) -> None:
        if not self._waiting:
            return
        workload = self._writer.run.workload
        skipped = (*workload.skipped, *self._waiting)
        self.ids |= {one.id for one in self._waiting}
        self._waiting.clear()
        lengths = _lengths(skipped)
        what, arms = ("answer", "") if self._writer.run.config.recorded else ("prompt", " of every arm")
        warning = warned(
            "out-of-memory",
            f"{len(lengths)} {what}{'s were' if len(lengths) > 1 else ' was'} left out{arms} because memory ran "
            f"out, at {min(lengths):,} tokens and more, answers included: no number here is about prompts as long",
            "Free memory, or use a smaller model or --dtype bfloat16, and run again with --fresh.",
        )
        others = [one for one in self._writer.run.warnings if one.code != warning.code]
        self._writer.update(workload=replace(workload, skipped=skipped), warnings=(*others, warning))

    @contextmanager
    def noting(self, noticed: Noticed) -> Iterator[None]:
        """At the end of the block what a session noticed is in run.json, however it ends."""
        try:
            yield
        finally:
            self._note(noticed)

    def _note(self, noticed: Noticed) -> None:
        run = self._writer.run
        known = {skipped.id for skipped in run.workload.skipped}
        new = [Omitted(name, why) for name, why in noticed.refused.items() if name not in known]
        said = list(noticed.cautions)
        changes: dict[str, Any] = {}
        if new:
            skipped = (*run.workload.skipped, *new)
            changes["workload"] = replace(run.workload, skipped=skipped)
            recorded = run.config.recorded  # all are read again in every session
            told = [Omitted(*one) for one in noticed.refused.items()] if recorded else skipped
            said.append(skipped_prompts(told, recorded=recorded))
        if noticed.failures:
            said.append(_failed(noticed.failures))
            changes["status"] = "interrupted"  # the same command asks again
        unique = {caution.code: caution for caution in said}
        kept = [warning for warning in run.warnings if warning.code not in {*unique, "failed-requests"}]
        if changes or unique or len(kept) < len(run.warnings):
            # At once: a kill in between would leave prompts out without a word.
            self._writer.update(**changes, warnings=(*kept, *unique.values()))

    def require_any(self, measured: bool, prompts: Sequence[str], noticed: Noticed) -> None:
        """Raises EngineError for a run in which not a single prompt was measured: why, by the last that failed, or was
        refused. These are taken back: the same command, when that is mended, asks for all of them."""
        if measured:
            return
        taken = [noticed.refused.pop(prompt) for prompt in prompts if prompt in noticed.refused]
        why = [one["kind"] for one in noticed.failures] if len(taken) < len(prompts) else taken
        config = self._writer.run.config
        raise EngineError(
            f"Not a single prompt was measured; the last: {why[-1] if why else 'it was left out'}",
            where=config.server or config.launch or config.engine,
            hint="Mend that; the same command then asks again.",
        )


def _lengths(skipped: Iterable[Omitted]) -> list[int]:
    """Tokens at which memory ran out, of the prompts that were left out for that."""
    found = (re.match(rf"{OUT_OF_MEMORY} at ([\d,]+) tokens", one.reason) for one in skipped)
    return [int(at[1].replace(",", "")) for at in found if at is not None]


def _failed(failures: Sequence[dict[str, str]]) -> Finding:
    kinds = ", ".join(sorted({failure["kind"] for failure in failures}))
    return warned(
        "failed-requests",
        f"{len(failures)} requests failed for good ({kinds}), the first: prompt {failures[0]['prompt']}, "
        f"{failures[0]['arm']}",
        "Run the same command again, which asks them once more, or see the server's log.",
    )
