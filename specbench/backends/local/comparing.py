"""One stored trial and the same prompt in transformers: counts of both, and whether rounding explains what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbench.acceptance.lossless import is_near_tie
from specbench.backends.local.assisted import RULES, Assisted, SeenText, gaps, reconcile
from specbench.drafters import DraftSpec
from specbench.models import LoadedModel
from specbench.models.prompts import end_tokens
from specbench.records import Round, Sampling, Trial


@dataclass(frozen=True, slots=True)
class Pair:
    """One trial and the same prompt elsewhere. `theirs` are the rounds as they were counted there, `reconciled` as we
    count; `near_tie` says whether rounding explains what differs, None where nothing does."""

    trial: Trial
    tokens: int
    same_text: bool
    theirs: tuple[Round, ...]
    reconciled: tuple[Round, ...]
    touched: dict[str, int]
    near_tie: bool | None

    @property
    def different_rounds(self) -> int:
        """Rounds of either side that the other has not at the same place of the text, the larger of both."""
        ours, theirs = placed(self.trial.rounds), placed(self.reconciled)
        return max(len(ours - theirs), len(theirs - ours))


def placed(rounds: Iterable[Round]) -> set[tuple[int, Round]]:
    """Each round with the number of tokens that were out when it began."""
    found, begin = set(), 1
    for r in rounds:
        found.add((begin, r))
        begin += r.accepted + 1
    return found


class Comparer:
    """Repeats trials of one run in transformers. `prompts` are token ids by prompt id; `rules` as in `reconcile`."""

    def __init__(
        self,
        target: LoadedModel,
        prompts: Mapping[str, Sequence[int]],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        precision: str,
        seed: int,
        rules: Collection[str] = RULES,
    ) -> None:
        self._target, self._prompts, self._seed = target, prompts, seed
        self._max_new_tokens, self._rules = max_new_tokens, rules
        self.sampling, self.precision = sampling, precision
        self._eos = end_tokens(target)
        self._assisted = Assisted(target, eos=self._eos, sampling=sampling)

    def misfit(self, draft: LoadedModel) -> str | None:
        """Why transformers cannot draft with this model for this target, or None."""
        theirs, ours = (int(m.model.config.get_text_config().vocab_size) for m in (draft, self._target))
        if theirs > ours or (theirs != ours and not self.sampling.greedy):
            return f"transformers needs one vocabulary size; the draft has {theirs}, the target {ours}"
        return None

    def pair(self, trial: Trial, spec: DraftSpec, draft: LoadedModel | None, gamma: int) -> Pair:
        """The trial's prompt again."""
        ids = self._prompts[trial.prompt_id]
        seen = self._assisted.text(
            ids,
            spec,
            draft,
            gamma,
            max_new_tokens=self._max_new_tokens,
            seed=_seed(f"again/{self._seed}/{trial.arm.label}/{trial.prompt_id}/{trial.repeat}"),
            after_first="first-token" in self._rules,
        )
        found = reconcile(seen, prompt_tokens=len(ids), eos=self._eos, rules=self._rules)
        same = trial.output_sha256 == hashlib.sha256(",".join(map(str, seen.tokens)).encode()).hexdigest()
        near_tie = None
        if self.sampling.greedy and not same:
            near_tie = self._near(min(gaps(self._target.model, ids, seen.tokens, self.sampling), default=1.0))
        elif self.sampling.greedy and trial.rounds != found.rounds:
            near_tie = draft is not None and self._draft_tied(ids, seen, trial.rounds, found.rounds, draft.model)
        theirs = tuple(Round(r.drafted, r.accepted) for r in seen.rounds)
        return Pair(trial, len(seen.tokens), same, theirs, tuple(found.rounds), found.touched, near_tie)

    def _near(self, gap: float) -> bool:
        return is_near_tie(gap, self.precision)

    def _draft_tied(
        self, ids: Sequence[int], seen: SeenText, ours: Sequence[Round], theirs: Sequence[Round], draft: Any
    ) -> bool:
        """Whether, in the first round that differs, the draft was near a tie where it went another way. Later rounds
        begin elsewhere and say nothing new."""
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if at is None:
            return False
        mine, other, known = ours[at], theirs[at], seen.rounds[at]
        x, turn = [*ids, *seen.tokens][: known.length], min(mine.accepted, other.accepted)
        begin = len(ids) + 1 + sum(r.accepted + 1 for r in ours[:at])
        if begin != known.length or turn >= len(known.proposed):
            return False
        if mine.accepted == other.accepted:  # they stopped in different places: one drafted an end of sequence
            return any(map(self._near, gaps(draft, x, known.proposed, self.sampling)))
        # The side that accepted more had drafted the text's own token there, the other had not.
        said, right = known.proposed[turn], seen.tokens[known.length + turn - len(ids)]
        if (said == right) != (other.accepted > mine.accepted):
            return False
        rival = None if said == right else right
        return self._near(gaps(draft, x, known.proposed[: turn + 1], self.sampling, rival)[turn])


def _seed(text: str) -> int:
    """Other draws than the run's: with the same ones both sides may sample the very same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
