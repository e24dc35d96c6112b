"""A run without a wall clock: texts of the target alone, in batches, and what every draft would have said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.acceptance.positions import PositionWriter, read_positions
from specbench.acceptance.replay import Text
from specbench.backends.local.room import REPLAY_BATCH
from specbench.config import RunConfig
from specbench.models.memory import is_out_of_memory
from specbench.records import Arm
from specbench.run.bench import Encoded, LeftOut, Observer, text_of
from specbench.store import RunWriter, TrialKey

if TYPE_CHECKING:
    from specbench.backends.local.local import LocalEngine


def replay_texts(
    engine: LocalEngine, encoded: Sequence[Encoded], config: RunConfig, writer: RunWriter, observer: Observer
) -> None:
    """Texts of the target alone and their positions under every draft, in batches of prompts of like length; the
    longest first, so that what does not fit in memory fails at once and later batches use what earlier ones freed."""
    scored = scored_texts(writer.folder)
    order = sorted(encoded, key=lambda item: len(item.ids), reverse=True)
    texts = 1 if config.sampling.greedy else config.repeats
    observer.begin(len(order) * texts, 0)
    left_out = LeftOut(writer, most_in_a_row=None)  # the longest come first
    with PositionWriter(writer.folder) as positions:
        for repeat in range(texts):
            for begin in range(0, len(order), REPLAY_BATCH):
                batch = [item for item in order[begin : begin + REPLAY_BATCH] if item.prompt.id not in left_out.ids]
                keys = [(item.prompt.id, Arm("baseline", d), repeat) for item in batch for d in config.draft]
                if not all(key in scored for key in keys):
                    for text in _score_batch(engine, batch, repeat, config, left_out):
                        positions.append(text)
                observer.advance(len(batch))
    left_out.end()


def _score_batch(
    engine: LocalEngine, batch: Sequence[Encoded], repeat: int, config: RunConfig, left_out: LeftOut
) -> list[Text]:
    """Texts of the target alone for these prompts and their positions under every draft. A batch that does not fit is
    halved: nothing is timed here, so its size is free. A prompt that does not fit alone is left out."""
    try:
        prompts = [item.ids for item in batch]
        outputs = engine.texts(prompts, config.max_new_tokens, f"{repeat}/{batch[0].prompt.id}")
        found = {draft: engine.score_texts(prompts, outputs, draft) for draft in config.draft}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = None
    if found is not None:
        left_out.fitted()
        return [
            text_of(item.prompt, draft, repeat, config, one)
            for draft, scores in found.items()
            for item, one in zip(batch, scores, strict=True)
        ]
    engine.release()
    if len(batch) == 1:
        left_out.add(batch[0].prompt.id, len(batch[0].ids) + config.max_new_tokens)
        return []
    half = len(batch) // 2
    return [
        text for part in (batch[:half], batch[half:]) for text in _score_batch(engine, part, repeat, config, left_out)
    ]


def scored_texts(folder: Path) -> set[TrialKey]:
    """The texts whose positions are on disk, keyed as the baseline of a draft."""
    return {(text.prompt_id, Arm("baseline", text.draft), text.repeat) for text in read_positions(folder)}
