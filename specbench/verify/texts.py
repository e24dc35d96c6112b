"""What models make of tokens: does the target see prompts in the format that it was trained on, what do its own files
make of prompts and texts, does the draft mean the same tokens by the same ids, and are its numbers numbers at all?
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from specbench.acceptance.rules import align
from specbench.backends.local.drafting import Draft
from specbench.config import RunConfig
from specbench.models import LoadedModel
from specbench.models.defaults import CODE, own_cautions
from specbench.models.prompts import Today, end_tokens, render
from specbench.records import Prompt
from specbench.text import count
from specbench.verify.setup import Outcome, Setup, bare_logits

# How common chat formats open the user's turn, and how they close it and open the assistant's.
FRAMES = {
    "ChatML": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "Llama 3": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "Gemma": ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
}
_MARK = re.compile(r"<\|?[a-z_0-9]+\|>|<(?:start|end)_of_turn>|\[/?INST\]", re.I)

# A model that was trained on a format foretells its fixed tokens with near certainty, another does not at all: on the
# embedded target 0.97 against 0.0001.
KNOWN = 0.5
_QUESTION = "Name three kinds of bread."
_TURNS = [{"role": "user", "content": _QUESTION}]


def chat_template(setup: Setup) -> Outcome:
    """Render the template, and ask the target which format it knows."""
    tokenizer = setup.loaded.tokenizer
    known = {name: p for name in FRAMES if (p := _familiarity(setup.loaded, name)) is not None and p >= KNOWN}
    knows = "; ".join(f"the target foretells {name} turns with P = {p:.2f}" for name, p in known.items())
    if tokenizer.chat_template is None:
        if known:
            hint = "Use the instruct model's own tokenizer, with its chat_template: this one was saved without."
            return Outcome("broken", f"no chat template, but {knows}", hint)
        return Outcome("ok", "no chat template, and the target foretells no known chat format: a base model")
    try:
        rendered, bare = (_rendered(tokenizer, with_header) for with_header in (True, False))
    except Exception as error:  # templates are programs of others
        return Outcome("broken", f"the template fails: {type(error).__name__}", "Mend the chat template.")
    header = rendered.removeprefix(bare) if rendered.startswith(bare) else rendered[-20:]
    foreign = [name for name in known if _marker(name) not in rendered]
    if foreign and len(foreign) == len(known):
        return Outcome("broken", f"the template is of another format, but {knows}", "Use the model's own template.")
    framed = [name for name in FRAMES if _marker(name) in rendered]
    if _QUESTION not in rendered:
        return Outcome("broken", "the template drops the user's message", "Use the model's own template.")
    if not header:
        evidence = "the template ends without an assistant header"
        hint = "Honour add_generation_prompt in the template; without a header the target answers in the user's place."
        return Outcome("broken" if framed else "note", evidence, hint)
    marks = _marks(rendered)
    split = [mark for mark in marks if _size(tokenizer, mark) != 1]
    if split:
        evidence = f"{len(split)} of {len(marks)} marks of the template are split into several tokens: {split[0]}"
        return Outcome("note", evidence, "If the model knows them as single tokens, its tokenizer lacks them.")
    words = f"template ends with a header of {_size(tokenizer, header)} tokens; {len(marks)} marks"
    return Outcome("ok", f"{words}; {knows}" if knows else words)


def draft_marks(setup: Setup, draft: Draft) -> Outcome | None:
    """Marks of the target's template as the draft's tokenizer has them. None where the draft reads no ids."""
    tokenizer = setup.loaded.tokenizer
    if draft.loaded is None or draft.spec.kind != "model" or tokenizer.chat_template is None:
        return None
    try:
        marks = _marks(_rendered(tokenizer, True))
    except Exception:
        return None
    single = [mark for mark in marks if _size(tokenizer, mark) == 1]
    own = draft.loaded.tokenizer
    lost = [mark for mark in single if _ids(own, mark) != _ids(tokenizer, mark)]
    if not lost:
        return Outcome("ok", f"{len(single)} marks of the template are the same ids")
    evidence = (
        f"{len(lost)} of {len(single)} marks of the target's template are no single token of the draft: {lost[0]}"
    )
    return Outcome("note", evidence, "Prefer a draft that was tuned on the same chat format.")


def special_tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> Outcome | None:
    """Prompts whose own text spells a token that means something to the target: it is encoded as that token."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    spell = sum(any(mark in m.content for m in prompt.messages for mark in special) for prompt in prompts)
    if not spell:
        return None
    evidence = f"{spell} of {len(prompts)} prompts spell special tokens of the target, and are encoded with them"
    hint = "Take them out unless the traffic has them: text of a user then opens a turn, or ends one."
    return Outcome("note", evidence, hint)


def ends_at_once(setup: Setup) -> Outcome:
    """A prompt in a wrong format often makes the target end its text with the first token."""
    ended = sum(len(text) == 1 and text[0] in setup.eos for text in setup.alone)
    tokens = sum(map(len, setup.alone))
    evidence = f"{ended} of {len(setup.alone)} texts of the target end with their first token, {tokens} tokens in all"
    if not ended:
        return Outcome("ok", evidence)
    hint = "Check the chat template and the end-of-sequence tokens in the generation config."
    return Outcome("broken" if 2 * ended >= len(setup.alone) else "note", evidence, hint)


def _familiarity(loaded: LoadedModel, name: str) -> float | None:
    """Geometric mean of the target's probabilities of a format's fixed tokens between the turns; None where the
    vocabulary has not its marker."""
    tokenizer = loaded.tokenizer
    if _size(tokenizer, _marker(name)) != 1:
        return None
    opening, closing = FRAMES[name]
    before, frame = _ids(tokenizer, opening + _QUESTION), _ids(tokenizer, closing)
    # The first fixed token closes the user's turn, and a user may always go on.
    logs = torch.log_softmax(bare_logits(loaded.model, [*before, *frame], len(frame))[:-1], -1)
    wanted = torch.tensor(frame[1:], device=logs.device)[:, None]
    return float(logs.gather(1, wanted).mean().exp())


def _marker(name: str) -> str:
    return _MARK.findall(FRAMES[name][0])[0]  # type: ignore[no-any-return]


def _marks(rendered: str) -> list[str]:
    return sorted(set(_MARK.findall(rendered)))


def _rendered(tokenizer: Any, with_header: bool) -> str:
    return str(render(tokenizer, {"conversation": _TURNS}, tokenize=False, add_generation_prompt=with_header))


def _ids(tokenizer: Any, text: str) -> Sequence[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _size(tokenizer: Any, text: str) -> int:
    ids = _ids(tokenizer, text)
    return 0 if len(ids) == 1 and ids[0] == tokenizer.unk_token_id else len(ids)


# Shares of chance, ln V. Language models lie at 0.2 to 0.5 on plain text; one whose ids mean other tokens is as sure as
# ever, and wrong, so it lies near 1 or above.
LANGUAGE = 0.65
CHANCE = 0.8
LONGEST_SAMPLE = 256
FEW_TOKENS = 20


def finite_logits(setup: Setup) -> Outcome:
    """No NaN and no infinity in what the models say, in the precision that was asked for."""
    models = {"target": setup.loaded}
    models |= {d.loaded.name: d.loaded for d in setup.drafts if d.loaded is not None and d.spec.kind == "model"}
    bad = []
    for name, one in models.items():
        ids = [token % one.vocab_size for token in setup.prompts[0]]
        if not bare_logits(one.model, ids, len(ids)).isfinite().all():
            bad.append(name)
    if not bad:
        return Outcome("ok", f"every logit of {count(len(models), 'model')} is a number in {setup.dtype}")
    hint = "This precision overflows for this model: use --dtype bfloat16 or float32."
    return Outcome("broken", f"logits of {', '.join(bad)} are not finite in {setup.dtype}", hint)


def vocabulary_meaning(setup: Setup, draft: Draft, samples: Sequence[Sequence[int]]) -> Outcome | None:
    """The draft must read plain text better than chance where the target does. `samples` are the words of the prompts
    alone, which no model wrote. None for drafts that cannot mean other tokens."""
    if draft.loaded is None or draft.spec.kind != "model":
        return None
    vocabulary = setup.vocab_size
    tokens = sum(len(ids) - 1 for ids in samples)
    if tokens < FEW_TOKENS:
        return Outcome("not checked", f"only {tokens} tokens of text to judge by")
    chance = math.log(vocabulary)
    target = _loss(setup.loaded.model, [([], ids) for ids in samples], vocabulary)
    plain = _loss(draft.loaded.model, [([], ids) for ids in samples], vocabulary)
    own = _loss(draft.loaded.model, list(zip(setup.prompts, setup.alone, strict=True)), vocabulary)
    evidence = (
        f"loss per token on the prompts' text: draft {plain:.1f}, target {target:.1f}, chance {chance:.1f} nats; on "
        f"the target's own text the draft has {own:.1f}"
    )
    if target > LANGUAGE * chance:
        return Outcome("not checked", f"{evidence}: no language to judge by")
    if min(plain, own) > CHANCE * chance:
        hint = "The draft reads these ids as other tokens, or has no trained weights. Use one of the target's family."
        return Outcome("broken", evidence, hint)
    if plain > LANGUAGE * chance:
        hint = "The draft predicts this kind of text poorly by itself. A sweep says how much is accepted all the same."
        return Outcome("note", evidence, hint)
    return Outcome("ok", evidence)


def _loss(model: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]], vocabulary: int) -> float:
    """Mean of -ln P(token) in nats over the tokens of each text (after its prompt), a text's very first left out."""
    total, count = 0.0, 0
    for prompt, text in texts:
        ids = [*prompt, *text]
        scored = len(text) if prompt else len(text) - 1
        if scored < 1:
            continue
        logits = align(bare_logits(model, ids, scored + 1)[:-1], vocabulary)
        wanted = torch.tensor(ids[-scored:], device=logits.device)[:, None]
        # A token that the draft has not counts as chance, not as infinity.
        logs = torch.log_softmax(logits, -1).gather(1, wanted).clamp_min(-2 * math.log(vocabulary))
        total, count = total - float(logs.sum()), count + scored
    return total / count if count else float("nan")


# What is said where a run would warn of nothing.
_SOUND = {
    "end-in-prompt": "no prompt ends with an end-of-sequence token",
    "two-begins": "no prompt begins with two begin-of-text tokens",
    "date-in-prompt": "the date is in no prompt",
    "end-tokens": "the files of the target agree on how texts end",
    CODE: "the target's files ask for no other sampling than this",
}


def own_files(
    target: LoadedModel, config: RunConfig, encoded: Sequence[Sequence[int]], today: Today
) -> dict[str, Outcome]:
    """By the codes of what a run warns of."""
    found = {code: Outcome("ok", sound) for code, sound in _SOUND.items()}
    for one in own_cautions(target, config, encoded, end_tokens(target), today):
        # Some models were trained on turns that end so; a tokenizer that does it to any text is a slip.
        slip = one.code == "end-in-prompt" and target.tokenizer.chat_template is None
        found[one.code] = Outcome("broken" if slip else "note", one.message, one.hint)
    return found
