"""A run without a wall clock: texts of the target alone, written for it or recorded, and what every draft would have
said of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from specbench.acceptance.positions import PositionWriter, read_keys
from specbench.acceptance.replay import Text, as_text
from specbench.acceptance.scores import BlockScores, Scores
from specbench.backends.base import Item, Observer, Scoring, TargetText
from specbench.config import RunConfig
from specbench.run.losses import Losses

# A text and a draft that is asked about it.
ScoreKey = tuple[str, str, int]


def replay_texts(
    scoring: Scoring,
    blocks: Iterable[Sequence[Item]],
    total: int,
    config: RunConfig,
    scored: set[ScoreKey],
    positions: PositionWriter,
    losses: Losses,
    observer: Observer,
) -> None:
    """Positions of every text under every draft, on disk batch by batch; those that an earlier session `scored` are
    skipped. The prompts, `total` of them, come in blocks, of which one is in memory."""
    repeats = range(1 if config.sampling.greedy or config.recorded else config.repeats)
    observer.begin(total * len(config.draft) * len(repeats), len(scored))
    done, asked = len(scored), list[str]()
    for repeat in repeats:
        for items in blocks:
            asked = [item.prompt.id for item in items]
            for batch in scoring.batches(items):
                left = {draft: _left(batch, draft, repeat, scored, losses, scoring) for draft in config.draft}
                for text in texts_of(scoring, batch, left, repeat, config):
                    positions.append(text)
                    done += 1
                    observer.advance(1)
                    losses.fitted()
                while scoring.noticed.too_long:
                    losses.too_long(*scoring.noticed.too_long.popitem())
    losses.end()
    losses.require_any(done > 0, list(dict.fromkeys([*asked, *scoring.noticed.refused])), scoring.noticed)


def texts_of(
    scoring: Scoring, batch: Sequence[Item], left: Mapping[str, Sequence[Item]], repeat: int, config: RunConfig
) -> Iterator[Text]:
    """What every draft would have said of the texts that are `left` to it, of a batch."""
    missing = [item for item in batch if any(item in todo for todo in left.values())]
    if not missing:
        return
    scoring.prepare([draft for draft, todo in left.items() if todo])
    texts = {item.prompt.id: (item, text) for item, text in scoring.write(batch, missing, repeat)}
    for draft in config.draft:
        if known := _known(texts, left[draft], scoring):
            with closing(scoring.score(known, draft)) as found:
                for item, scores in found:
                    yield text_of(item, draft, repeat, config, scores)


def _left(
    batch: Sequence[Item], draft: str, repeat: int, scored: set[ScoreKey], losses: Losses, scoring: Scoring
) -> list[Item]:
    lost = losses.ids | set(scoring.noticed.refused)
    return [item for item in batch if item.prompt.id not in lost and (item.prompt.id, draft, repeat) not in scored]


def _known(
    texts: dict[str, tuple[Item, TargetText]], left: Sequence[Item], scoring: Scoring
) -> list[tuple[Item, TargetText]]:
    """Those that were written, but for what a draft before this one could not be asked about."""
    lost = {*scoring.noticed.refused, *scoring.noticed.too_long}
    return [texts[item.prompt.id] for item in left if item.prompt.id in texts and item.prompt.id not in lost]


def text_of(item: Item, draft: str, repeat: int, config: RunConfig, scores: Scores | BlockScores) -> Text:
    """The scores of one text with what it takes to replay them."""
    answer = item.answer
    return as_text(
        scores,
        prompt_id=item.prompt.id,
        category=item.prompt.category,
        draft=draft,
        repeat=repeat,
        limit=config.max_new_tokens if answer is None else answer.limit,
        prompt_tokens=None if answer is None else len(item.tokens),
        conversation=None if answer is None else answer.conversation,
    )


def scored_texts(folder: Path) -> set[ScoreKey]:
    return set(read_keys(folder))
