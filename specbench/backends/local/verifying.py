"""Are recorded answers this target's? A few are held against it.

Greedy: it writes them anew, and reads them token by token: its likeliest token has to be the answer's own nearly
everywhere. Sampled: an answer drawn from p has at each place a surprise, -log p(x), whose mean is the entropy of p
there. The mean of the difference is 0 for the target's own answers and above it for those of anybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from specbench.acceptance.penalty import RepetitionPenalty
from specbench.acceptance.rules import distribution
from specbench.acceptance.score import CHUNK
from specbench.backends.base import Item
from specbench.backends.local.batch import score_batch
from specbench.backends.local.room import REPLAY_BATCH
from specbench.decision.interval import reach
from specbench.records import Sampling
from specbench.run_record import AnswersVerified

if TYPE_CHECKING:
    from specbench.backends.local.local import LocalEngine

# Of greedy answers at least this share of tokens is the target's likeliest: quantised weights and other kernels change
# a few in a hundred, another model a few in ten.
OWN_SHARE = 0.9
# Nats a token by which answers may be less likely than the target's own: as much as other kernels and a temperature
# that is off by little make.
OWN_NATS = 0.1
# The largest surprise of a token, in nats: top-k and top-p give others no chance at all.
_MOST = 20.0


def verify(engine: LocalEngine, items: Sequence[Item]) -> AnswersVerified:
    """Hold answers against the target, which is loaded; over the whole run's sampling."""
    return _greedy(engine, items) if engine.sampling.greedy else _sampled(engine, items)


def _greedy(engine: LocalEngine, items: Sequence[Item]) -> AnswersVerified:
    identical = likeliest = tokens = 0
    order = sorted(items, key=lambda item: len(_output(item)))
    for begin in range(0, len(order), REPLAY_BATCH):
        batch = order[begin : begin + REPLAY_BATCH]
        prompts, outputs = [item.tokens for item in batch], [_output(item) for item in batch]
        anew = engine.texts(prompts, max(map(len, outputs)), "")
        identical += sum(new[: len(old)] == list(old) for new, old in zip(anew, outputs, strict=True))
        # Read as if the target drafted for itself: a place is accepted where its likeliest token is the text's own. The
        # end of sequence goes before, so that the first token of the answer is a place too.
        shifted = [[prompt[-1], *output] for prompt, output in zip(prompts, outputs, strict=True)]
        scores = score_batch(
            None,
            engine.target.model,
            [prompt[:-1] for prompt in prompts],
            shifted,
            vocab_size=engine.vocab_size,
            sampling=Sampling(repetition_penalty=engine.sampling.repetition_penalty),
            eos=(),
        )
        likeliest += sum(int(one.accept.sum()) for one in scores)
        tokens += sum(len(one.accept) for one in scores)
    share = likeliest / tokens if tokens else 0.0
    return AnswersVerified(len(items), tokens, identical=identical, likeliest=likeliest, foreign=share < OWN_SHARE)


@torch.inference_mode()
def _sampled(engine: LocalEngine, items: Sequence[Item]) -> AnswersVerified:
    excess, counts = [], []
    for item in items:
        prompt, output = item.tokens, list(_output(item))
        reader, penalty, x = engine.reader, RepetitionPenalty(engine.sampling), [*item.tokens, *output]
        reader.rewind(0)
        logits = penalty.apply(reader.forward(prompt, keep=1), prompt)
        total = 0.0
        for at in range(0, len(output), CHUNK):
            wanted = torch.tensor(output[at : at + CHUNK], device=logits.device)
            if len(wanted) > 1:
                read = output[at : at + len(wanted) - 1]
                more = penalty.apply(reader.forward(read, keep=len(read)), x[: len(prompt) + at + len(read)])
                logits = torch.cat((logits, more))
            p = distribution(logits, engine.sampling)
            surprise = -p.gather(1, wanted[:, None])[:, 0].log()
            entropy = torch.special.entr(p).sum(-1)
            total += float((surprise.clamp_max(_MOST) - entropy).sum())
            if at + CHUNK < len(output):
                logits = penalty.apply(reader.forward([int(wanted[-1])], keep=1), x[: len(prompt) + at + CHUNK])
        excess.append(total)
        counts.append(len(output))
    value, error = _mean(np.array(excess), np.array(counts, dtype=float))
    width = reach(len(items) - 1, 0.95) * error if len(items) > 1 else float("inf")
    known = np.isfinite(width)
    return AnswersVerified(
        len(items),
        int(sum(counts)),
        excess_nats=value,
        excess_low=value - width if known else None,
        excess_high=value + width if known else None,
        foreign=bool(known and value - width > 0 and value > OWN_NATS),
    )


def _mean(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The ratio of totals, and its standard error over answers."""
    value, n = float(sums.sum() / counts.sum()), len(sums)
    rest = sums - value * counts
    return value, float(np.sqrt(n / max(1, n - 1) * (rest**2).sum()) / counts.sum())


def _output(item: Item) -> Sequence[int]:
    assert item.answer is not None
    return item.answer.text.output
