"""Rounds of the loop, held against what they must be: the target drafting for itself, the target's own text, and the
replay of the draft over that text."""

from __future__ import annotations

from specbench.acceptance.lossless import NEAR_TIE, is_near_tie
from specbench.acceptance.metrics import Counts, count, pooled
from specbench.acceptance.penalty import RepetitionPenalty
from specbench.acceptance.rules import margins
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Draft
from specbench.drafters.model import ModelDrafter
from specbench.records import Finding
from specbench.verify.findings import noticed
from specbench.verify.setup import GAMMA, Setup, bare_logits, gamma_of

# Of what the target drafts for itself; below float32 its own near ties fall either way.
SELF_ACCEPTED = {"float32": 0.98, "float16": 0.9, "bfloat16": 0.85}
SELF_PROMPTS = 2
# Fewer events than this prove nothing.
ENOUGH = 3
# Replayed over live tokens per round may differ by this share below float32, on the few rounds of an examination.
LOOSE = 0.15


def self_draft(bed: Setup) -> Finding:
    """The target drafting for itself: loop, cache and positions are sane if all of it is accepted."""
    model = CachedModel(bed.loaded.model, bed.capacity)
    drafter = ModelDrafter(model, vocab_size=bed.vocab_size, sampling=bed.sampling, eos=bed.eos)
    found = pooled([count(bed.run(drafter, ids).rounds, GAMMA) for ids in bed.prompts[:SELF_PROMPTS]])
    if not found.drafted or found.accepted is None:
        return noticed("self-draft", "not checked", "the texts are too short to draft anything")
    evidence = f"drafting for itself the target accepts {found.accepted} of {found.drafted} tokens ({bed.dtype})"
    if found.accepted >= SELF_ACCEPTED[bed.dtype] * found.drafted:
        return noticed("self-draft", "ok", evidence)
    hint = "Loop, cache or positions are wrong, whatever the draft is: no acceptance measured here means anything."
    return noticed("self-draft", "broken", evidence, hint)


def same_text(bed: Setup, draft: Draft) -> Finding:
    """Greedy text with the draft is the target's own, up to near ties."""
    lengths, worst, parted, wide = 0, 0.0, 0, 0
    for prompt, alone, (live, _) in zip(bed.prompts, bed.alone, bed.with_draft(draft), strict=True):
        lengths += len(alone)
        if live.tokens == alone:
            continue
        parted += 1
        at = next((i for i, (a, b) in enumerate(zip(alone, live.tokens, strict=False)) if a != b), None)
        margin = 1.0  # a text that merely stops before the other is no tie
        if at is not None:
            x = [*prompt, *alone[:at]]
            logits = RepetitionPenalty(bed.sampling).apply(bare_logits(bed.loaded.model, x, 1), x)
            margin = float(margins(logits)[0])
        worst = max(worst, margin)
        wide += not is_near_tie(margin, bed.dtype)
    evidence = f"{len(bed.prompts) - parted} of {len(bed.prompts)} texts ({lengths} tokens) are the target's own"
    if parted:
        evidence += f"; largest top-2 margin where one parts {worst:.1%}, rounding explains {NEAR_TIE[bed.dtype]:.1%}"
    evidence += f" ({bed.dtype})"
    if not wide:
        return noticed("same-text", "ok", evidence, draft=draft.spec.text)
    hint = "Speculation changes the output: the acceptance rule or the target's rollback is wrong. Do not use it."
    return noticed("same-text", "broken", evidence, hint, draft.spec.text)


def nothing_accepted(bed: Setup, draft: Draft) -> Finding:
    """Tau of exactly 1. The replay, which shares no memory with the loop, says what should have been accepted."""
    live = _live(bed, draft)
    name = draft.spec.text
    if not live.drafted:
        return noticed("nothing-accepted", "note", "nothing was drafted", "Look-ups need repetition in the text.", name)
    expected = float(bed.replayed(draft).accepted.sum())
    evidence = f"{live.accepted} of {live.drafted} drafts accepted, the replay expects {expected:.0f} ({bed.dtype})"
    if live.accepted:
        return noticed("nothing-accepted", "ok", evidence, draft=name)
    if expected >= ENOUGH:
        hint = "The draft is able, the set-up is not: its memory, its positions or the acceptance rule is broken."
        return noticed("nothing-accepted", "broken", evidence, hint, name)
    hint = "The loop is not to blame. See vocabulary-meaning and chat-template; else it is a poor draft for this text."
    return noticed("nothing-accepted", "note", evidence, hint, name)


def survival_cliff(bed: Setup, draft: Draft) -> Finding:
    """First drafts accepted and later ones never: a draft that does not read its own tokens."""
    live, expected = _live(bed, draft), bed.replayed(draft)
    first, later = live.survived[0], sum(live.survived[1:])
    should = float(expected.survived[:, 1:].sum())
    evidence = (
        f"survival {_shares(live.survival)}, replayed {_shares(expected.survival)}; {first} first drafts and {later} "
        f"later ones accepted, {should:.0f} later ones expected ({bed.dtype})"
    )
    if first < ENOUGH or should < ENOUGH:
        few = f"too few to tell: {first} first drafts accepted, {should:.0f} later ones expected"
        return noticed("survival-cliff", "not checked", few, draft=draft.spec.text)
    if later >= 0.25 * should:
        return noticed("survival-cliff", "ok", evidence, draft=draft.spec.text)
    hint = "The draft does not read its own tokens, or its positions are off by one: mend its cache or drafter."
    return noticed("survival-cliff", "broken", evidence, hint, draft.spec.text)


def loop_and_replay(bed: Setup, draft: Draft) -> Finding:
    """Rounds of the loop against rounds of the replay, over texts that are equal. Exact in float32."""
    runs, expected = bed.with_draft(draft), bed.replayed(draft)
    same = [i for i, (live, _) in enumerate(runs) if live.tokens == bed.alone[i]]
    counts = {i: count(runs[i][0].rounds, gamma_of(draft)) for i in same}
    differ = [i for i in same if counts[i].rounds != expected.rounds[i] or counts[i].accepted != expected.accepted[i]]
    live = sum(len(runs[i][0].rounds) for i in same)
    replayed = sum(float(expected.rounds[i]) for i in same)
    gap = abs(live - replayed)
    name = draft.spec.text
    if not same or not live:
        return noticed("loop-replay", "not checked", "no text is equal, or none has a round", draft=name)
    evidence = (
        f"{len(same) - len(differ)} of {len(same)} equal texts have the replay's rounds; {live} rounds live, "
        f"{replayed:.0f} replayed ({bed.dtype})"
    )
    fine = len(differ) <= 1 and gap <= 1 if bed.exact else gap <= max(2, LOOSE * replayed)
    if not fine:
        hint = "Loop and replay read the same text differently: the draft's memory or positions are wrong."
        return noticed("loop-replay", "broken", evidence, hint, name)
    if differ and bed.exact:
        return noticed("loop-replay", "note", evidence, "One near tie explains this; more prompts will tell.", name)
    return noticed("loop-replay", "ok", evidence, draft=name)


def _live(bed: Setup, draft: Draft) -> Counts:
    return pooled([count(live.rounds, gamma_of(draft)) for live, _ in bed.with_draft(draft)])


def _shares(survival: tuple[float | None, ...]) -> str:
    return " ".join("-" if share is None else f"{share:.2f}" for share in survival)
