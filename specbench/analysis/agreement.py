"""Live rounds against replayed rounds: two ways to one number."""

from __future__ import annotations

import numpy as np

from specbench.analysis.cautions import ReplayGap
from specbench.analysis.views import DraftView
from specbench.decision.interval import Paired, speedup_interval

# Several gammas are compared at once; only a gap that sampling could hardly make is worth a warning.
GAP_CONFIDENCE = 0.999


def replay_gap(view: DraftView, gamma: int) -> ReplayGap | None:
    """Live against replayed rounds per token at one gamma, prompt by prompt; None where nothing can be compared."""
    found, rows = view.replayed(gamma), view.arms[gamma]
    if found is None:
        return None
    replayed = view.by_prompt(found.rounds)
    live = np.array([sum(len(trial.drafted) for trial in trials) for trials in rows.trials], dtype=float)
    tokens = view.by_prompt(np.array([text.tokens - 1.0 for text in view.texts]))
    same_text = np.array([value is True for value in rows.identical])
    unequal = int((live[same_text] != replayed[same_text]).sum())
    paired = Paired(replayed, tokens, live, rows.decode_tokens)
    if view.greedy:
        # A text that left the target's own at a near-tie is another text, with other rounds.
        paired = paired.take(same_text)
        if not paired.base_s.sum():
            return None
    return ReplayGap(view.spec, gamma, speedup_interval(paired, GAP_CONFIDENCE), unequal, int(same_text.sum()))
