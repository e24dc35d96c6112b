"""The reference of every model of a run: transformers' own `generate`, held against the passes that will be timed.

Losslessness compares the arms with each other, and both arms go through our loop: what is wrong in both alike looks
lossless. So before anything is measured transformers writes a few short texts, with its own cache, masks, positions and
loop, and our passes read them as a trial would: a prompt, then passes of every width, with drafts that are rejected and
rolled back; in a run of batches rows of different lengths side by side. At every place our likeliest token must be the
text's own, or nearly tied with it.

Where all layers keep keys and values, rollback is a change of length. Where some keep states, an index or a compressor,
it rests on what transformers does with several tokens that follow others, which is wrong for some models. So a short
text is read at once without a memory, and then with ours: one token at a time, in pieces, and with drafts that are
taken back. Each way has to say the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from specbench.acceptance.lossless import near_tie_limit
from specbench.acceptance.rules import margins
from specbench.backends.local.batch import NO_PADDING, generate_batch, written
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.lean import agree
from specbench.backends.local.ragged import RaggedModel
from specbench.errors import ModelError, SpecbenchError
from specbench.models import LoadedModel
from specbench.models.family import unlike_keys
from specbench.models.hub import quiet_transformers
from specbench.models.memory import available_bytes, is_out_of_memory
from specbench.records import ReferenceCheck, Sampling

# Prompts that are looked at, and new tokens of each.
PROMPTS, TOKENS = 3, 16

# Two ways to the same numbers differ by more than one rounding: a wrong mask or position moves logits by far more.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class _Text:
    prompt: list[int]
    output: list[int]


def pick(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of all lengths the shortest, the middle and the longest: windows and the like only show in long texts."""
    order = sorted(prompts, key=len)
    places = sorted({round(i * (len(order) - 1) / (PROMPTS - 1)) for i in range(PROMPTS)})
    return [list(order[place]) for place in places]


def check_reference(
    loaded: LoadedModel,
    reader: CachedModel | RaggedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    widest: int,
    eos: Iterable[int],
    dtype: str,
    padded: bool = False,
) -> ReferenceCheck:
    """Hold `reader`, which runs `loaded`, against transformers over some `prompts`, in passes of 1 to `widest` tokens.
    `padded` lets transformers write the texts as one batch, as a run without a wall clock does. Raises ModelError where
    the two are not the same model, or transformers cannot run it on text."""
    began_s = time.perf_counter()
    chosen = pick(prompts)
    while chosen:
        try:
            tokens, near_ties = _compared(
                loaded, reader, chosen, min(TOKENS, max_new_tokens), widest, eos, dtype, padded
            )
            return ReferenceCheck(loaded.name, len(chosen), tokens, near_ties, time.perf_counter() - began_s)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            chosen.pop()  # the longest; where a run has no memory for it either, it is left out and named
    return ReferenceCheck(loaded.name, 0, 0, 0, time.perf_counter() - began_s)


def _compared(
    loaded: LoadedModel,
    reader: CachedModel | RaggedModel,
    prompts: Sequence[list[int]],
    new: int,
    widest: int,
    eos: Iterable[int],
    dtype: str,
    padded: bool,
) -> tuple[int, int]:
    """Places that were compared, and near ties among them."""
    _require_causal(loaded, prompts[0])
    texts = list(map(_Text, prompts, _texts(loaded, prompts, new, sorted(eos), padded)))
    with failing_as_ours(loaded), torch.inference_mode():
        apart = _apart(reader, texts, widest)
    places = sum(len(text.output) for text in texts)
    limit = max(near_tie_limit(dtype), _ROUNDING)
    wide = [margin for margin in apart if not margin <= limit]
    # In few bits some models are chaotic: where transformers is as far from itself, reading at once what it wrote step
    # by step, it is the arithmetic.
    own = [margin for text in texts for margin in _own(loaded, text)] if wide and dtype != "float32" else []
    if len(wide) > 2 * sum(not margin <= limit for margin in own):
        raise ModelError(
            f"{loaded.name} gives other tokens here than in transformers' generate, at {len(wide)} of {places} places "
            f"by a margin of up to {max(wide):.1%} of the logit, where rounding in {dtype} explains {limit:.1%}",
            hint="Nothing was measured. "
            + ("Run one text at a time (--batch-size 1)" if isinstance(reader, RaggedModel) else "Run another model")
            + "; please report it.",
        )
    return places, len(apart)


def _texts(
    loaded: LoadedModel, prompts: Sequence[list[int]], new: int, eos: list[int], padded: bool
) -> list[list[int]]:
    """What transformers writes after each prompt: as one batch where they are `padded`, else one by one."""
    model, settings = loaded.model, {"max_new_tokens": new, "eos_token_id": eos or None, "pad_token_id": NO_PADDING}
    with failing_as_ours(loaded):
        if padded:
            return generate_batch(model, prompts, sampling=Sampling(), eos=eos, max_new_tokens=new, seed=0)
        return [written(model, [prompt], Sampling(), settings)[0, len(prompt) :].tolist() for prompt in prompts]


@contextmanager
def failing_as_ours(loaded: LoadedModel) -> Iterator[None]:
    """Whatever a model raises, as one line without its message, which may hold what was read."""
    try:
        yield
    except SpecbenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{loaded.name} ({loaded.model.config.model_type}) cannot be run on text alone with a cache of ours "
            f"({type(error).__name__})",
            hint="Choose another model; one that a server runs can be measured there: specbench sweep --server.",
        ) from error


def _require_causal(loaded: LoadedModel, prompt: Sequence[int]) -> None:
    """Raise ModelError where what a model says depends on tokens that follow: BERT and its kin, of which not every
    configuration tells. The same prompt with another last token is read, and said the same before it."""
    if len(prompt) < 2:
        return
    other = next((token for token in prompt if token != prompt[-1]), 0)
    with failing_as_ours(loaded):
        one, two = (_at_once(loaded.model, [*prompt[:-1], last])[-2] for last in (prompt[-1], other))
    if not agree(one, two, one):
        raise ModelError(
            f"{loaded.name} ({loaded.model.config.model_type}) is not causal as configured: a token sees those after "
            "it",
            hint="Choose a causal language model, or set is_decoder in its config.json where it was trained as one.",
        )


def _own(loaded: LoadedModel, text: _Text) -> list[float]:
    """Margins where transformers, reading the whole text at once, would have gone another way."""
    logits = _at_once(loaded.model, [*text.prompt, *text.output])
    return _margins(logits[len(text.prompt) - 1 : -1], text.output)


@torch.inference_mode()
def _at_once(model: Any, ids: Sequence[int], **more: Any) -> Tensor:
    """Logits [n, V] of transformers' own pass over a whole text."""
    with quiet_transformers():
        logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=model.device), **more).logits[0]
    return logits


def _margins(logits: Tensor, output: Sequence[int]) -> list[float]:
    """Of the places where the likeliest token of `logits` [n, V] is not that of `output`: how much likelier it is, as a
    share of its logit."""
    likeliest = logits.argmax(-1).tolist()
    apart = margins(logits, torch.tensor(output)).tolist()
    return [margin for margin, token, own in zip(apart, likeliest, output, strict=True) if token != own]


def _apart(reader: CachedModel | RaggedModel, texts: Sequence[_Text], widest: int) -> list[float]:
    """Margins of all places at which `reader` would have gone another way."""
    if isinstance(reader, RaggedModel):
        groups = [texts[i : i + reader.batch] for i in range(0, len(texts), reader.batch)]
        return [margin for group in groups for margin in _walk(group, widest, _side_by_side(reader, group))]
    return [margin for text in texts for margin in _walk([text], widest, _alone(reader, text))]


# From what each row reads next, and how many of it stay, to the logits [n, V] of each row.
_Reads = Callable[[Sequence[Sequence[int]], Sequence[int]], Sequence[Tensor]]


def _walk(texts: Sequence[_Text], widest: int, read: _Reads) -> list[float]:
    """Read texts side by side in passes of every width, some of which hold drafts that are wrong and rolled back."""
    found: list[float] = []
    first = read([text.prompt for text in texts], [len(text.prompt) for text in texts])
    for text, logits in zip(texts, first, strict=True):
        found += _margins(logits[-1:], text.output[:1])
    done = [0] * len(texts)
    # Of an even width only the first half is right.
    passes = cycle([(width, width if width % 2 else width // 2) for width in range(1, widest + 1)])
    while any(at < len(text.output) - 1 for at, text in zip(done, texts, strict=True)):
        rows, kept = [], []
        for at, text in zip(done, texts, strict=True):
            left = len(text.output) - 1 - at
            width, right = next(passes)
            right = min(left, right)
            rows.append([*text.output[at : at + right], *[text.prompt[0]] * (width - right)] if left else [])
            kept.append(right if left else 0)
        for row, (logits, n) in enumerate(zip(read(rows, kept), kept, strict=True)):
            at = done[row]
            found += _margins(logits[:n], texts[row].output[at + 1 : at + 1 + n]) if n else []
            done[row] += n
    return found


def _alone(reader: CachedModel, text: _Text) -> _Reads:
    reader.rewind(0)
    length = 0

    def read(rows: Sequence[Sequence[int]], kept: Sequence[int]) -> Sequence[Tensor]:
        nonlocal length
        logits = reader.forward(rows[0], keep=len(rows[0]) if length else 1)
        length += kept[0]
        reader.rewind(length)
        return [logits]

    return read


def _side_by_side(reader: RaggedModel, texts: Sequence[_Text]) -> _Reads:
    reader.begin(len(texts))
    lengths = [0] * len(texts)

    def read(rows: Sequence[Sequence[int]], kept: Sequence[int]) -> Sequence[Tensor]:
        nonlocal lengths
        logits = reader.forward(rows, every=any(lengths))
        lengths = [length + n for length, n in zip(lengths, kept, strict=True)]
        reader.rewind(lengths)
        return list(logits) if logits.dim() == 3 else [one[None] for one in logits]

    return read


_TOKENS, _PROMPT = 24, 7

# Tokens that stay, and tokens that are taken back, of one pass after another.
_IN_PIECES = [(1, 0), (2, 0), (4, 0), (1, 0), (5, 0), (3, 0), (1, 0)]
_TAKEN_BACK = [(1, 3), (2, 2), (0, 2), (3, 1), (1, 0), (4, 0), (1, 4), (1, 0), (1, 1), (3, 0)]
_WAYS = {
    "one token after another": [(1, 0)] * (_TOKENS - _PROMPT),
    "several tokens after others": _IN_PIECES,
    "with tokens that are taken back": _TAKEN_BACK,
}

# How far logits of one place may be apart, as a share of their norm: rounding in float32; in few bits states that are
# rounded at every token drift by as much as some models are wrong. A state that is lost moves every place after it;
# where experts or indexed keys are nearly tied, rounding moves single places by much.
_DRIFT, _FEW_BITS = 1e-4, 0.1
_TIES = 0.25


def require_rollback(loaded: LoadedModel) -> bool:
    """Whether a rejection costs the model a pass over the kept tokens. Raises ModelError, with the kinds of its layers,
    where a model that keeps more than keys and values gives other logits as soon as it is read in pieces, or tokens are
    taken back. In float32, where there is memory for that."""
    model = loaded.model
    kinds = unlike_keys(model.config.get_text_config(decoder=True))
    if not kinds:
        return False
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    ids = torch.randint(0, vocabulary, (_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    with failing_as_ours(loaded), torch.inference_mode(), quiet_transformers(), _in_float32(model):
        whole = _at_once(model, ids, use_cache=False)
        rounding = _DRIFT if whole.dtype == torch.float32 else _FEW_BITS
        reader = CachedModel(model, 2 * _TOKENS)
        for way, passes in _WAYS.items():
            logits = torch.cat(list(_read(reader, ids, passes))).float()
            alone = whole[: len(logits)].float()
            near = (logits - alone).norm(dim=1) <= rounding * alone.norm(dim=1)
            if int((~near).sum()) > _TIES * len(logits):  # not a number is not near
                raise ModelError(
                    f"{loaded.name} ({model.config.model_type}) cannot be rolled back: with its layers of the kind "
                    f"{', '.join(kinds)} transformers gives other logits when it reads {way}",
                    hint="A verify pass does: choose another model, or measure it on a server that runs it: "
                    "specbench sweep --server.",
                )
    return reader.rereads


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """With weights that have fewer bits in float32, and as they were afterwards. Where that takes more memory than is
    free they stay."""
    few = [each for each in (*model.parameters(), *model.buffers()) if each.dtype in (torch.bfloat16, torch.float16)]
    kinds = [each.dtype for each in few]
    if sum(each.nbytes for each in few) * 2 > available_bytes(str(model.device)):
        few = []
    for each in few:
        each.data = each.data.float()
    try:
        yield
    finally:
        for each, kind in zip(few, kinds, strict=False):
            each.data = each.data.to(kind)


def _read(reader: CachedModel, ids: Sequence[int], passes: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Logits [n, V] of every place of `ids`, read anew as `passes` say; what is taken back is wrong."""
    reader.rewind(0)
    yield reader.forward(ids[:_PROMPT], keep=_PROMPT)
    at = _PROMPT
    for kept, wrong in passes:
        logits = reader.forward([*ids[at : at + kept], *[ids[0]] * wrong], keep=kept + wrong)
        at += kept
        reader.rewind(at)
        yield logits[:kept]
