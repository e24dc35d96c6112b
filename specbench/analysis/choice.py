"""One verdict for the whole run: which draft at which gamma, chosen without flattering it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specbench.analysis.contract import Choice, Rival
from specbench.analysis.results import Judged
from specbench.decision.holdout import choose_gamma
from specbench.decision.interval import Paired
from specbench.decision.verdict import judge
from specbench.records import Policy


def choose(judged: Sequence[Judged], policy: Policy) -> Choice | None:
    """The best of all drafts and gammas over the prompts that all of them have measured. Random halves choose among
    drafts as they choose among gammas, so that many drafts do not look better than few. None without such prompts."""
    shared = set.intersection(*(set(one.view.prompts) for one in judged))
    if not shared:
        return None
    pairs: dict[tuple[int, int], Paired] = {}  # (draft's index, gamma)
    for index, one in enumerate(judged):
        kept = np.array([prompt in shared for prompt in one.view.prompts])
        if one.gates.idle is None or all(each.gates.idle for each in judged):
            pairs |= {(index, gamma): one.view.paired(gamma, policy.metric).take(kept) for gamma in one.choosable}
    keys = list(pairs)
    found = choose_gamma({number: pairs[key] for number, key in enumerate(keys)})
    index, gamma = keys[found.best]
    best = judged[index]
    speedup = best.interval(found.paired)
    gates = best.with_slower(found.paired) if len(shared) == len(best.view.prompts) else best.gates
    verdict = judge(speedup, policy, gates)
    return Choice(
        draft=best.view.spec,
        gamma=gamma,
        verdict=verdict.call,
        reasons=verdict.reasons,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        probability=verdict.probability,
        prompts=len(shared),
        rivals=tuple(
            _rival(one, pairs, number, pairs[index, gamma], policy)
            for number, one in enumerate(judged)
            if number != index and any(key[0] == number for key in pairs)
        ),
    )


def _rival(one: Judged, pairs: dict[tuple[int, int], Paired], number: int, chosen: Paired, policy: Policy) -> Rival:
    own = {gamma: paired for (index, gamma), paired in pairs.items() if index == number}
    gamma = max(own, key=lambda g: own[g].speedup)
    other = own[gamma]
    ratio = one.interval(Paired(other.spec_s, other.spec_tokens, chosen.spec_s, chosen.spec_tokens))
    same = ratio.low is None or ratio.high is None or ratio.low <= 1.0 <= ratio.high
    return Rival(one.view.spec, gamma, ratio.value, ratio.low, ratio.high, same)
