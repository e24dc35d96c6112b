"""One verdict for the whole run: which draft at which gamma, chosen without flattering it."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.decision.holdout import choose_gamma
from specbench.decision.interval import Paired
from specbench.decision.verdict import Gates, judge
from specbench.records import Policy
from specbench.report.contract import Choice, Rival
from specbench.report.results import Judged, slower_share


def choose(judged: Sequence[Judged], policy: Policy) -> Choice | None:
    """The best of all drafts and gammas over the prompts that all of them have measured. Random halves choose among
    drafts as they choose among gammas, so that many drafts do not look better than few. None without such prompts."""
    shared = judged[0].view.prompts
    for one in judged[1:]:
        shared = shared.intersection(one.view.prompts)
    if not len(shared):
        return None
    pairs: dict[tuple[int, int], Paired] = {}  # (draft's index, gamma)
    for index, one in enumerate(judged):
        kept = one.view.prompts.isin(shared)
        pairs |= {(index, gamma): one.view.paired(gamma, policy.metric).take(kept) for gamma in one.view.arms}
    keys = list(pairs)
    found = choose_gamma({number: pairs[key] for number, key in enumerate(keys)})
    index, gamma = keys[found.best]
    best = judged[index]
    speedup = best.interval(found.paired)
    slower = slower_share(found.paired, best.view, policy) if len(shared) == len(best.view.prompts) else None
    verdict = judge(speedup, policy, Gates(slower, best.gates.lossy, best.gates.memory))
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
            if number != index
        ),
    )


def _rival(one: Judged, pairs: dict[tuple[int, int], Paired], number: int, chosen: Paired, policy: Policy) -> Rival:
    own = {gamma: paired for (index, gamma), paired in pairs.items() if index == number}
    gamma = max(own, key=lambda g: own[g].speedup)
    other = own[gamma]
    ratio = one.interval(Paired(other.spec_s, other.spec_tokens, chosen.spec_s, chosen.spec_tokens))
    same = ratio.low is None or ratio.high is None or ratio.low <= 1.0 <= ratio.high
    return Rival(one.view.spec, gamma, ratio.value, ratio.low, ratio.high, same)
