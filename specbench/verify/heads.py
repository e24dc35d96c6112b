"""Is a draft head fed what it was trained on? Wrong layers, a norm too many or states of the wrong place raise no
error: the head drafts on, and little of it is accepted. One that was trained too little does the same, and is sound.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from specbench.backends.local.drafts import HeadDraft
from specbench.backends.local.eagle3 import Eagle3
from specbench.backends.local.headreader import Network
from specbench.verify.setup import Outcome, Setup

# Places of the target's own texts that tell anything, and first drafts that have to be right among them.
PLACES, ENOUGH = 40, 10
# Of its share right in a round's first draft, a head keeps more than this in the second.
CLIFF = 0.25
# So small that of two ways to feed a head the better one is not better by chance.
IMPROBABLE = 1e-4
# And by so much in the log-probability of a token, since the smallest gain is real over enough text.
LEAST_GAIN = 0.02

Hits = NDArray[np.bool_]


def head_agreement(setup: Setup, draft: HeadDraft) -> Outcome:
    """First drafts of a head against the target's own text: right more often than one who always says the text's most
    frequent token."""
    first = _hits(setup, draft)[:, 0]
    if len(first) < PLACES:
        return Outcome("not checked", f"{len(first)} places are too few to tell")
    tokens = [token for text in setup.alone for token in text[1:]]
    chance = Counter(tokens).most_common(1)[0][1] / len(tokens)
    evidence = f"{first.mean():.0%} of {len(first)} first drafts are right, always the commonest token {chance:.0%}"
    if stats.binomtest(int(first.sum()), len(first), chance, alternative="greater").pvalue < 0.01:
        return Outcome("ok", f"{evidence} ({setup.dtype})")
    hint = (
        "The head reads other states than it was trained on, or was not trained for this target: check its layer ids, "
        "norms and vocabulary map."
    )
    return Outcome("broken", f"{evidence} ({setup.dtype})", hint)


def head_depth(setup: Setup, draft: HeadDraft) -> Outcome:
    """Second drafts against first ones, each at every place of the text: a head that is given its own state wrongly
    fails from the second on."""
    hits = _hits(setup, draft)
    first, second = float(hits[:, 0].mean()) if len(hits) else 0.0, float(hits[:, 1].mean()) if len(hits) else 0.0
    evidence = (
        f"{first:.0%} of first and {second:.0%} of second drafts are right, at {len(hits)} places ({setup.dtype})"
    )
    if hits[:, 0].sum() < ENOUGH:
        return Outcome("not checked", f"too little to tell: {evidence}")
    if second > CLIFF * first:
        return Outcome("ok", evidence)
    hint = "Its own output is fed back wrongly (norm_output?), or at the wrong position."
    if draft.head.masked is not None:
        hint = "It reads another mask token than it was trained with, or a mask at the wrong position."
    return Outcome("broken", evidence, hint)


def head_config(setup: Setup, draft: HeadDraft) -> Outcome:
    """The head as configured against neighbouring layer ids and other norms: none may fit the text better."""
    own = _read(setup, draft)
    if len(own.hits) < PLACES:
        return Outcome("not checked", f"{len(own.hits)} places are too few to tell")
    better: list[tuple[str, _Reading, _Gain]] = []
    variants, least = list(_variants(draft.head)), LEAST_GAIN
    for words, variant in variants:
        other = HeadDraft(draft.spec, variant)
        other.open(draft.setting, setup.capacity)
        found = _read(setup, other)
        gain = found.over(own)
        least = max(least, gain.high - gain.mean)
        if gain.mean >= LEAST_GAIN and gain.low > 0:
            better.append((words, found, gain))
    as_is = f"as configured (states before layers {_ids(draft.head)}) {own.words}"
    if not better:
        seen = f"a gain of {least:.2f} a draft would have been seen"
        evidence = f"{as_is}, and none of {len(variants)} other ways is better; {seen} ({setup.dtype})"
        return Outcome("ok", evidence)
    words, best, gain = max(better, key=lambda one: one[2].mean)
    hint = f"Its config.json is not what it was trained with: it fits {words}."
    by = f"{gain.mean:.2f} [{gain.low:.2f}, {gain.high:.2f}] a draft better"
    return Outcome("broken", f"{as_is}; with {words} {best.words}, {by} ({setup.dtype})", hint)


@dataclass(frozen=True, slots=True)
class _Gain:
    """By how much more one way to feed a head expects the text's own tokens than another, in log-probability a draft:
    mean over places, and an interval of all but `IMPROBABLE` on each side."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a head reads the target's own texts: whether first and second drafts are right [places, 2], and their
    log-probability of the text's own token, minus infinity where the head never drafts that."""

    hits: Hits
    log_q: NDArray[np.float64]

    @property
    def words(self) -> str:
        known = self.log_q[np.isfinite(self.log_q)]
        expects = f"{known.mean():.2f}" if len(known) else "none"
        return f"{self.hits.mean():.0%} of drafts are right, log-probability {expects}"

    def over(self, other: _Reading) -> _Gain:
        """Paired, place by place: probabilities tell far more than drafts that are right or wrong, and the second
        drafts are where the head's own state counts."""
        both = np.isfinite(self.log_q) & np.isfinite(other.log_q)
        apart = np.where(both, self.log_q, 0) - np.where(both, other.log_q, 0)
        counts = both.sum(1)
        each = apart.sum(1)[counts > 0] / counts[counts > 0]
        if len(each) < PLACES:
            return _Gain(0.0, 0.0, 0.0)
        error = float(stats.norm.isf(IMPROBABLE) * each.std(ddof=1) / len(each) ** 0.5)
        mean = float(each.mean())
        return _Gain(mean, mean - error, mean + error)


def _hits(setup: Setup, draft: HeadDraft) -> Hits:
    """Whether first and second drafts would be kept [places, 2], at every place of the target's own texts that has a
    token for a second one."""
    found = [np.zeros((0, 2), dtype=bool)]
    for prompt, text in zip(setup.prompts, setup.alone, strict=True):
        found.append(draft.score(prompt, text).accept[: max(0, len(text) - 2), :2] > 0.5)
    return np.concatenate(found)


@torch.inference_mode()
def _read(setup: Setup, draft: HeadDraft) -> _Reading:
    """Over the same places as `_hits`."""
    hits, log_q = [np.zeros((0, 2), dtype=bool)], [np.zeros((0, 2))]
    memory, target, states = draft.memory, draft.target, draft.states.read
    assert target is not None
    for prompt, text in zip(setup.prompts, setup.alone, strict=True):
        begin, places = len(prompt) - 1, len(text) - 2
        if places < 1:
            continue
        target.rewind(0)
        target.forward([*prompt, *text[:places]], keep=1)
        memory.rewind(0)
        if begin:
            memory.read(prompt[1:], states(0, begin), 0)
        first = memory.read(text[:places], states(begin, begin + places), places)
        second = next(memory.deeper(begin, memory.own, [text[1 : places + 1]]), torch.full_like(first, float("-inf")))
        drafts, own = torch.stack((first, second), 1).float(), [text[at + 1 : at + 3] for at in range(places)]
        wanted = torch.tensor(own, device=drafts.device)  # [places, 2]
        hits.append((drafts.argmax(-1) == wanted).cpu().numpy())
        log_q.append(drafts.log_softmax(-1).gather(2, wanted[..., None])[..., 0].double().cpu().numpy())
    return _Reading(np.concatenate(hits), np.concatenate(log_q))


def _variants(head: Network) -> Iterator[tuple[str, Network]]:
    """Other ways to feed it, in words: layers counted from their other end, and norms before the residual and after the
    output."""
    last = head.target_layers if head.head.kind in ("dflash", "mtp") else head.target_layers - 1
    for by in (-1, 1):
        ids = tuple(layer + by for layer in head.reads)
        if min(ids) >= 0 and max(ids) <= last:
            other = copy.copy(head)
            other.reads = ids
            yield f"states before layers {_ids(other)}", other
    if not isinstance(head, Eagle3):
        return
    before, output = not head.options.norm_before_residual, not head.options.norm_output
    norms = [(f"norm_before_residual: {str(before).lower()}", replace(head.options, norm_before_residual=before))]
    if head.masked is None:  # else no output is ever read
        norms.append((f"norm_output: {str(output).lower()}", replace(head.options, norm_output=output)))
    for words, changed in norms:
        changed_head = copy.copy(head)
        changed_head.options = changed
        yield words, changed_head


def _ids(head: Network) -> str:
    return ", ".join(map(str, head.reads))
