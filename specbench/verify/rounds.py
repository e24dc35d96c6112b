"""Rounds of the loop, held against what they must be: the target drafting for itself, the target's own text, and the
replay of the draft over that text. And is what was taken back really forgotten, by the caches of both models and by the
memory of the drafter?
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specbench.acceptance.loop import Target
from specbench.acceptance.lossless import NEAR_TIE, is_near_tie
from specbench.acceptance.metrics import Counts, count, pooled
from specbench.acceptance.rules import RepetitionPenalty, margins
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Draft
from specbench.drafters.model import ModelDrafter
from specbench.models import LoadedModel
from specbench.verify.setup import GAMMA, Outcome, Setup, Turn, bare_logits, drafter_of, gamma_of

# Of what the target drafts for itself; below float32 its own near ties fall either way.
SELF_ACCEPTED = {"float32": 0.98, "float16": 0.9, "bfloat16": 0.85}
SELF_PROMPTS = 2
# Fewer events than this prove nothing.
ENOUGH = 3
# Replayed over live tokens per round may differ by this share below float32, on the few rounds of an examination.
LOOSE = 0.15


def self_draft(setup: Setup) -> Outcome:
    """The target drafting for itself: loop, cache and positions are sane if all of it is accepted."""
    model = CachedModel(setup.loaded.model, setup.capacity)
    drafter = ModelDrafter(model, vocab_size=setup.vocab_size, sampling=setup.sampling, eos=setup.eos)
    found = pooled([count(setup.run(drafter, ids).rounds, GAMMA) for ids in setup.prompts[:SELF_PROMPTS]])
    if not found.drafted or found.accepted is None:
        return Outcome("not checked", "the texts are too short to draft anything")
    evidence = f"drafting for itself the target accepts {found.accepted} of {found.drafted} tokens ({setup.dtype})"
    if found.accepted >= SELF_ACCEPTED[setup.dtype] * found.drafted:
        return Outcome("ok", evidence)
    hint = "Loop, cache or positions are wrong, whatever the draft is: no acceptance measured here means anything."
    return Outcome("broken", evidence, hint)


def same_text(setup: Setup, draft: Draft) -> Outcome:
    """Greedy text with the draft is the target's own, up to near ties."""
    lengths, worst, parted, wide = 0, 0.0, 0, 0
    for prompt, alone, (live, _) in zip(setup.prompts, setup.alone, setup.with_draft(draft), strict=True):
        lengths += len(alone)
        if live.tokens == alone:
            continue
        parted += 1
        at = next((i for i, (a, b) in enumerate(zip(alone, live.tokens, strict=False)) if a != b), None)
        margin = 1.0  # a text that merely stops before the other is no tie
        if at is not None:
            x = [*prompt, *alone[:at]]
            logits = RepetitionPenalty(setup.sampling).apply(bare_logits(setup.loaded.model, x, 1), x)
            margin = float(margins(logits)[0])
        worst = max(worst, margin)
        wide += not is_near_tie(margin, setup.dtype)
    evidence = f"{len(setup.prompts) - parted} of {len(setup.prompts)} texts ({lengths} tokens) are the target's own"
    if parted:
        evidence += f"; largest top-2 margin where one parts {worst:.1%}, rounding explains {NEAR_TIE[setup.dtype]:.1%}"
    evidence += f" ({setup.dtype})"
    if not wide:
        return Outcome("ok", evidence)
    hint = "Speculation changes the output: the acceptance rule or the target's rollback is wrong. Do not use it."
    return Outcome("broken", evidence, hint)


def nothing_accepted(setup: Setup, draft: Draft) -> Outcome:
    """Tau of exactly 1. The replay, which shares no memory with the loop, says what should have been accepted."""
    live = _live(setup, draft)
    if not live.drafted:
        return Outcome("note", "nothing was drafted", "Look-ups need repetition in the text.")
    expected = float(setup.replayed(draft).accepted.sum())
    evidence = f"{live.accepted} of {live.drafted} drafts accepted, the replay expects {expected:.0f} ({setup.dtype})"
    if live.accepted:
        return Outcome("ok", evidence)
    if expected >= ENOUGH:
        hint = "The draft is able, the set-up is not: its memory, its positions or the acceptance rule is broken."
        return Outcome("broken", evidence, hint)
    hint = "The loop is not to blame. See vocabulary-meaning and chat-template; else it is a poor draft for this text."
    return Outcome("note", evidence, hint)


def survival_cliff(setup: Setup, draft: Draft) -> Outcome:
    """First drafts accepted and later ones never: a draft that does not read its own tokens."""
    live, expected = _live(setup, draft), setup.replayed(draft)
    first, later = live.survived[0], sum(live.survived[1:])
    should = float(expected.survived[:, 1:].sum())
    evidence = (
        f"survival {_shares(live.survival)}, replayed {_shares(expected.survival)}; {first} first drafts and {later} "
        f"later ones accepted, {should:.0f} later ones expected ({setup.dtype})"
    )
    if first < ENOUGH or should < ENOUGH:
        return Outcome(
            "not checked", f"too few to tell: {first} first drafts accepted, {should:.0f} later ones expected"
        )
    if later >= 0.25 * should:
        return Outcome("ok", evidence)
    hint = "The draft does not read its own tokens, or its positions are off by one: mend its cache or drafter."
    return Outcome("broken", evidence, hint)


def loop_and_replay(setup: Setup, draft: Draft) -> Outcome:
    """Rounds of the loop against rounds of the replay, over texts that are equal. Exact in float32."""
    runs, expected = setup.with_draft(draft), setup.replayed(draft)
    same = [i for i, (live, _) in enumerate(runs) if live.tokens == setup.alone[i]]
    counts = {i: count(runs[i][0].rounds, gamma_of(draft)) for i in same}
    differ = [i for i in same if counts[i].rounds != expected.rounds[i] or counts[i].accepted != expected.accepted[i]]
    live = sum(len(runs[i][0].rounds) for i in same)
    replayed = sum(float(expected.rounds[i]) for i in same)
    gap = abs(live - replayed)
    if not same or not live:
        return Outcome("not checked", "no text is equal, or none has a round")
    evidence = (
        f"{len(same) - len(differ)} of {len(same)} equal texts have the replay's rounds; {live} rounds live, "
        f"{replayed:.0f} replayed ({setup.dtype})"
    )
    fine = len(differ) <= 1 and gap <= 1 if setup.exact else gap <= max(2, LOOSE * replayed)
    if not fine:
        hint = "Loop and replay read the same text differently: the draft's memory or positions are wrong."
        return Outcome("broken", evidence, hint)
    if differ and setup.exact:
        return Outcome("note", evidence, "One near tie explains this; more prompts will tell.")
    return Outcome("ok", evidence)


def _live(setup: Setup, draft: Draft) -> Counts:
    return pooled([count(live.rounds, gamma_of(draft)) for live, _ in setup.with_draft(draft)])


def _shares(survival: tuple[float | None, ...]) -> str:
    return " ".join("-" if share is None else f"{share:.2f}" for share in survival)


# Largest difference of logits, over the largest logit. The same passes in the same widths must agree to the last bit on
# most devices; a pass without a cache adds up in another order.
SAME_PASSES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.03}
OTHER_PASSES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}

TOOK_BACK = 3
ROUNDS_TRIED = 4
PROMPTS_TRIED = 2


def target_cache(setup: Setup) -> Outcome:
    """The target after tokens were read and taken back, against reading straight on, and against no cache at all."""
    return _cache(setup, setup.loaded, setup.reader)


def draft_cache(setup: Setup, draft: Draft) -> Outcome | None:
    """The same of a draft model; None where there is none, or where it lives in the target's cache."""
    if draft.loaded is None or draft.spec.kind == "skip":
        return None
    return _cache(setup, draft.loaded, CachedModel(draft.loaded.model, setup.capacity))


@torch.inference_mode()
def _cache(setup: Setup, loaded: LoadedModel, reader: Target) -> Outcome:
    vocabulary = loaded.vocab_size
    worst_same = worst_other = 0.0
    for prompt in setup.prompts[:PROMPTS_TRIED]:
        ids = [token % vocabulary for token in prompt]
        first, *rest = (ids * 5)[:5]
        wrong = [(token + 1) % vocabulary for token in rest[:TOOK_BACK]]
        straight = _read(reader, ids, first, [], rest)
        rewound = _read(reader, ids, first, wrong, rest)
        whole = bare_logits(loaded.model, [*ids, first, *rest], len(rest))
        scale = float(whole.abs().max().clamp_min(1e-9))
        worst_same = max(worst_same, float((straight - rewound).abs().max()) / scale)
        worst_other = max(worst_other, float((straight - whole).abs().max()) / scale)
    evidence = (
        f"after {TOOK_BACK} tokens read and taken back, logits differ by {worst_same:.1g} of the largest; from a pass "
        f"without a cache by {worst_other:.1g} ({setup.dtype})"
    )
    if worst_same <= SAME_PASSES[setup.dtype] and worst_other <= OTHER_PASSES[setup.dtype]:
        return Outcome("ok", evidence)
    hint = "Rejected tokens are not forgotten: use another version of transformers, or another model."
    return Outcome("broken", evidence, hint)


def _read(
    reader: Target, prompt: Sequence[int], first: int, taken_back: Sequence[int], rest: Sequence[int]
) -> torch.Tensor:
    reader.rewind(0)
    reader.forward(prompt, keep=1)
    reader.forward([first], keep=1)
    if taken_back:
        reader.forward(taken_back, keep=1)
        reader.rewind(len(prompt) + 1)
    return reader.forward(rest, keep=len(rest)).float()


@torch.inference_mode()
def draft_history(setup: Setup, draft: Draft) -> Outcome:
    """What the drafter proposed in the middle of a text, against what it proposes when it reads that text anew: they
    differ if it kept refused tokens, or lost emitted ones."""
    turns = [turn for _, turns in setup.with_draft(draft) for turn in turns[1 : 1 + ROUNDS_TRIED]]
    other = sum(_anew(setup, draft, turn) != turn.tokens for turn in turns)
    evidence = f"{other} of {len(turns)} proposals change when the text so far is read anew ({setup.dtype})"
    if not turns:
        return Outcome("not checked", "the texts are too short for a second round")
    limit = 1 if setup.exact else len(turns) // 4  # a near tie may fall either way
    if other <= limit and other < len(turns):
        return Outcome("ok", evidence)
    hint = "The draft's memory is out of step with the text (cache not advanced, or not rolled back): mend the drafter."
    return Outcome("broken", evidence, hint)


@torch.inference_mode()
def _anew(setup: Setup, draft: Draft, turn: Turn) -> list[int]:
    setup.settle(draft, turn.x)
    return drafter_of(draft).propose(turn.x, turn.k, setup.generator()).numbers
