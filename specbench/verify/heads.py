"""Is a draft head fed what it was trained on? Wrong layers, a norm too many or states of the wrong place raise no
error: the head drafts on, and little of it is accepted. One that was trained too little does the same, and is sound.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from specbench.backends.local.drafting import Draft, HeadDraft
from specbench.backends.local.eagle3 import Eagle3
from specbench.verify.findings import Finding
from specbench.verify.setup import Setup

# Places of the target's own texts that tell anything, and first drafts that have to be right among them.
PLACES, ENOUGH = 40, 10
# Of its share right in a round's first draft, a head keeps more than this in the second.
CLIFF = 0.25
# So small that of two ways to feed a head the better one is not better by chance.
IMPROBABLE = 1e-3
# And by so much in the log-probability of a token, since the smallest gain is real over enough text.
LEAST_GAIN = 0.02

Hits = NDArray[np.bool_]


def head_agreement(setup: Setup, draft: Draft) -> Finding | None:
    """First drafts of a head against the target's own text: right more often than one who always says the text's most
    frequent token. None for other drafts."""
    if not isinstance(draft, HeadDraft):
        return None
    code, name, first = "head-agreement", draft.spec.text, _hits(setup, draft)[:, 0]
    if len(first) < PLACES:
        return Finding(code, "not checked", f"{len(first)} places are too few to tell", draft=name)
    tokens = [token for text in setup.alone for token in text[1:]]
    chance = Counter(tokens).most_common(1)[0][1] / len(tokens)
    evidence = f"{first.mean():.0%} of {len(first)} first drafts are right, always the commonest token {chance:.0%}"
    if stats.binomtest(int(first.sum()), len(first), chance, alternative="greater").pvalue < 0.01:
        return Finding(code, "ok", f"{evidence} ({setup.dtype})", draft=name)
    hint = (
        "The head reads other states than it was trained on, or was not trained for this target: check its layer ids, "
        "norms and vocabulary map."
    )
    return Finding(code, "broken", f"{evidence} ({setup.dtype})", hint, name)


def head_depth(setup: Setup, draft: Draft) -> Finding | None:
    """Second drafts against first ones, each at every place of the text: a head that is given its own state wrongly
    fails from the second on."""
    if not isinstance(draft, HeadDraft):
        return None
    code, name, hits = "head-depth", draft.spec.text, _hits(setup, draft)
    first, second = float(hits[:, 0].mean()) if len(hits) else 0.0, float(hits[:, 1].mean()) if len(hits) else 0.0
    evidence = (
        f"{first:.0%} of first and {second:.0%} of second drafts are right, at {len(hits)} places ({setup.dtype})"
    )
    if hits[:, 0].sum() < ENOUGH:
        return Finding(code, "not checked", f"too little to tell: {evidence}", draft=name)
    if second > CLIFF * first:
        return Finding(code, "ok", evidence, draft=name)
    hint = "Its own output is fed back wrongly (norm_output?), or at the wrong position."
    if draft.head.masked is not None:
        hint = "It reads another mask token than it was trained with, or a mask at the wrong position."
    return Finding(code, "broken", evidence, hint, name)


def head_config(setup: Setup, draft: Draft) -> Finding | None:
    """The head as configured against neighbouring layer ids and other norms: none may fit the text better."""
    if not isinstance(draft, HeadDraft):
        return None
    code, name, own = "head-config", draft.spec.text, _read(setup, draft)
    if len(own.hits) < PLACES:
        return Finding(code, "not checked", f"{len(own.hits)} places are too few to tell", draft=name)
    better: list[tuple[str, _Reading]] = []
    variants = list(_variants(draft.head))
    for words, variant in variants:
        other = HeadDraft(draft.spec, variant)
        other.open(draft.setting, setup.capacity)
        found = _read(setup, other)
        if found.fits_better_than(own):
            better.append((words, found))
    as_is = f"as configured (states before layers {_ids(draft.head)}) {own.words}"
    if not better:
        return Finding(
            code, "ok", f"{as_is}, and none of {len(variants)} other ways is better ({setup.dtype})", draft=name
        )
    words, best = max(better, key=lambda one: (round(one[1].log_q.mean(), 2), one[1].hits.mean()))
    hint = f"Its config.json is not what it was trained with: it fits {words}."
    return Finding(code, "broken", f"{as_is}; with {words} {best.words} ({setup.dtype})", hint, name)


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a head reads the target's own texts: whether first and second drafts are right [places, 2], and the first
    drafts' log-probability of the text's own token, where it can draft that at all."""

    hits: Hits
    log_q: NDArray[np.float64]

    @property
    def words(self) -> str:
        return f"{self.hits.mean():.0%} of drafts are right, log-probability {self.log_q.mean():.2f}"

    def fits_better_than(self, other: _Reading) -> bool:
        """Beyond chance, place by place. Probabilities tell far more than drafts that are right or wrong, but not of
        what changes later drafts alone."""
        gained, lost = (int((one & ~two).sum()) for one, two in ((self.hits, other.hits), (other.hits, self.hits)))
        if gained > lost and stats.binomtest(lost, gained + lost, 0.5, alternative="less").pvalue < IMPROBABLE:
            return True
        apart = self.log_q - other.log_q
        if apart.mean() < LEAST_GAIN:
            return False
        return bool(stats.wilcoxon(apart, alternative="greater").pvalue < IMPROBABLE)


def _hits(setup: Setup, draft: HeadDraft) -> Hits:
    return _read(setup, draft).hits


def _read(setup: Setup, draft: HeadDraft) -> _Reading:
    """Over all places of the target's own texts that have a token for a second draft."""
    hits, log_q = [np.zeros((0, 2), dtype=bool)], [np.zeros(0)]
    for prompt, text in zip(setup.prompts, setup.alone, strict=True):
        found, places = draft.score(prompt, text), max(0, len(text) - 2)
        hits.append(found.accept[:places, :2] > 0.5)
        log_q.append(found.log_q[:places].astype(np.float64))
    every = np.concatenate(log_q)
    return _Reading(np.concatenate(hits), every[np.isfinite(every)])


def _variants(head: Eagle3) -> Iterator[tuple[str, Eagle3]]:
    """Other ways to feed it, in words: layers counted from their other end, and norms before the residual and after the
    output."""
    layers = int(head.target_layers)
    for by in (-1, 1):
        ids = tuple(layer + by for layer in head.reads)
        if min(ids) >= 0 and max(ids) < layers:
            other = copy.copy(head)
            other.reads = ids
            yield f"states before layers {_ids(other)}", other
    before, output = not head.head.norm_before_residual, not head.head.norm_output
    norms = [(f"norm_before_residual: {str(before).lower()}", replace(head.head, norm_before_residual=before))]
    if head.masked is None:  # else no output is ever read
        norms.append((f"norm_output: {str(output).lower()}", replace(head.head, norm_output=output)))
    for words, changed in norms:
        other = copy.copy(head)
        other.head = changed
        yield words, other


def _ids(head: Eagle3) -> str:
    return ", ".join(map(str, head.reads))
