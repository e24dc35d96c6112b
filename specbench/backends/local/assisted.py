"""The other way to every count: generation in transformers with a draft, watched round by round and not changed.

Counts are taken where transformers hands them to its own candidate generator after each round. What it counts otherwise
than docs/measuring.md is put right by `reconcile`, one named rule at a time; `Comparer` holds stored trials against
it, and says whether rounding explains what differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.candidate_generator import (
    AssistedCandidateGenerator,
    CandidateGenerator,
    PromptLookupCandidateGenerator,
)

from specbench.acceptance.lossless import is_near_tie
from specbench.acceptance.rules import RepetitionPenalty, margins
from specbench.acceptance.scores import until_end
from specbench.backends.local.batch import NO_PADDING, written
from specbench.drafters import DraftSpec
from specbench.models import LoadedModel
from specbench.models.prompts import end_tokens
from specbench.records import Round, Sampling, Trial

RULES = ("first-token", "limit", "end-drafted", "end-accepted")


@dataclass(frozen=True, slots=True)
class SeenRound:
    """A round as transformers had it. `length` tokens were there before; `proposed` is what the draft said, of an
    n-gram look-up before it was cut at an end of sequence; `drafted` and `accepted` are transformers' own counts."""

    length: int
    proposed: tuple[int, ...]
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class SeenText:
    """Output token ids, the first of them before all rounds if `started`, and the rounds. No round can take the text
    beyond `end` tokens, prompt included."""

    tokens: list[int]
    rounds: list[SeenRound]
    started: bool
    end: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Rounds as docs/measuring.md counts them, and how many of them each rule of RULES touched."""

    rounds: list[Round]
    touched: dict[str, int]


def _constant(gamma: int) -> GenerationConfig:
    """Of an assistant: the only place from which transformers reads gamma; by default it also cuts unsure drafts."""
    return GenerationConfig(
        num_assistant_tokens=gamma, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )


def _lookup(spec: DraftSpec, gamma: int) -> dict[str, Any]:
    if spec.ngram is None:
        return {}
    return {
        "prompt_lookup_num_tokens": min(gamma, spec.ngram.longest or gamma),
        "max_matching_ngram_size": spec.ngram.n,
    }


@contextmanager
def watched(rounds: list[SeenRound]) -> Iterator[None]:
    """Note every round of assisted generation and of prompt look-up inside the block; nothing else changes."""
    proposed: list[tuple[int, tuple[int, ...]]] = []

    def asked(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_candidates(self: Any, input_ids: Any, **more: Any) -> Any:
            found = original(self, input_ids, **more)
            uncut = found[0]
            if isinstance(self, PromptLookupCandidateGenerator):
                kept, self.eos_token_id = self.eos_token_id, None
                uncut = original(self, input_ids, **more)[0]
                self.eos_token_id = kept
            length = input_ids.shape[1]
            proposed.append((length, tuple(map(int, uncut[0, length:]))))
            return found

        return get_candidates

    def told(original: Callable[..., Any]) -> Callable[..., Any]:
        def update_candidate_strategy(self: Any, input_ids: Any, scores: Any, num_matches: Any) -> Any:
            rounds.append(SeenRound(*proposed.pop(), scores.shape[1] - 1, int(num_matches)))
            return original(self, input_ids, scores, num_matches)

        return update_candidate_strategy

    kinds: tuple[type[CandidateGenerator], ...] = (AssistedCandidateGenerator, PromptLookupCandidateGenerator)
    wrappers = {"get_candidates": asked, "update_candidate_strategy": told}
    own = [(kind, name, vars(kind).get(name)) for kind in kinds for name in wrappers]
    try:
        for kind, name, _ in own:
            setattr(kind, name, wrappers[name](getattr(kind, name)))
        yield
    finally:
        for kind, name, original in own:
            if original is None:
                delattr(kind, name)  # it was inherited
            else:
                setattr(kind, name, original)


def reconcile(
    text: SeenText, *, prompt_tokens: int, eos: Collection[int], rules: Collection[str] = RULES
) -> Reconciled:
    """Count the rounds of a text as our loop does. Rounds are neither added nor dropped.

    `limit`: no draft beyond the token limit with room for the bonus. `end-drafted`: a look-up drafts an end of sequence
    too. `end-accepted`: a drafted end of sequence that stands is accepted, and not a bonus. `first-token` is done while
    generating, and is one round in each text.
    """
    x = dict(enumerate(text.tokens, prompt_tokens))
    touched = dict.fromkeys(RULES, 0)
    touched["first-token"] = int(text.started)
    rounds = []
    for seen in text.rounds:
        said = until_end(seen.proposed[: text.end - seen.length - 1], eos)
        drafted, accepted = seen.drafted, seen.accepted
        if "limit" in rules and drafted > text.end - seen.length - 1:
            drafted = text.end - seen.length - 1
            touched["limit"] += 1
        if "end-drafted" in rules and drafted < len(said):
            drafted = len(said)
            touched["end-drafted"] += 1
        after = x.get(seen.length + accepted)
        if "end-accepted" in rules and accepted < len(said) and after in eos and said[accepted] == after:
            accepted += 1
            touched["end-accepted"] += 1
        rounds.append(Round(drafted, accepted))
    return Reconciled(rounds, touched)


def gaps(
    model: Any, ids: Sequence[int], new: Sequence[int], sampling: Sampling, rival: int | None = None
) -> list[float]:
    """How near a tie each token of `new` after `ids` was, with the second best token, or with `rival`."""
    if not new:
        return []
    with torch.inference_mode():
        rows = model(torch.tensor([[*ids, *new]], device=model.device)).logits[0, len(ids) - 1 : -1].float()
        rows = RepetitionPenalty(sampling).apply(rows, [*ids, *new[:-1]])
    return [float(margin) for margin in margins(rows, rival)]


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
    """Repeats trials of one run in transformers. `prompts` are token ids by prompt id; `rules` as in `reconcile`.

    Drafts given to it lose their own generation settings. The run's repetition penalty reaches a draft with the
    target's processors, and is applied there once."""

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

    def misfit(self, draft: LoadedModel) -> str | None:
        """Why transformers cannot draft with this model for this target, or None."""
        theirs, ours = (int(m.model.config.get_text_config().vocab_size) for m in (draft, self._target))
        if theirs > ours or (theirs != ours and not self.sampling.greedy):
            return f"transformers needs one vocabulary size; the draft has {theirs}, the target {ours}"
        return None

    def pair(self, trial: Trial, spec: DraftSpec, draft: LoadedModel | None, gamma: int) -> Pair:
        ids = self._prompts[trial.prompt_id]
        torch.manual_seed(_seed(f"again/{self._seed}/{trial.arm.label}/{trial.prompt_id}/{trial.repeat}"))
        seen = self._text(ids, spec, draft, gamma)
        found = reconcile(seen, prompt_tokens=len(ids), eos=self._eos, rules=self._rules)
        same = trial.output_sha256 == hashlib.sha256(",".join(map(str, seen.tokens)).encode()).hexdigest()
        near_tie = None
        if self.sampling.greedy and not same:
            near_tie = self._near(min(gaps(self._target.model, ids, seen.tokens, self.sampling), default=1.0))
        elif self.sampling.greedy and trial.rounds != found.rounds:
            near_tie = draft is not None and self._draft_tied(ids, seen, trial.rounds, found.rounds, draft.model)
        theirs = tuple(Round(r.drafted, r.accepted) for r in seen.rounds)
        return Pair(trial, len(seen.tokens), same, theirs, tuple(found.rounds), found.touched, near_tie)

    def _text(self, ids: Sequence[int], spec: DraftSpec, draft: LoadedModel | None, gamma: int) -> SeenText:
        """One text after the prompt `ids`. By the rule `first-token` drafting begins where ours does: after the first
        token, which the target gives alone."""
        end, x = len(ids) + self._max_new_tokens, list(ids)
        after_first = "first-token" in self._rules
        if after_first:
            x = self._generate(x, 1, {}, {})
            if x[-1] in self._eos or self._max_new_tokens == 1:
                return SeenText(x[len(ids) :], [], True, end)
        rounds: list[SeenRound] = []
        settings, assistant = _lookup(spec, gamma), {}
        if draft is not None:
            draft.model.generation_config = _constant(gamma)
            settings, assistant = {}, {"assistant_model": draft.model}
        with watched(rounds):
            x = self._generate(x, end - len(x), settings, assistant)
        return SeenText(x[len(ids) :], rounds, after_first, end)

    def _generate(self, x: list[int], new: int, settings: dict[str, Any], assistant: dict[str, Any]) -> list[int]:
        settings = {"max_new_tokens": new, "eos_token_id": sorted(self._eos), "pad_token_id": NO_PADDING} | settings
        found: list[int] = written(self._target.model, [x], self.sampling, settings, **assistant)[0].tolist()
        return found

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
