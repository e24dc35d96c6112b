"""Whether the memory of a model can be rolled back, found out when it is loaded.

Where all layers keep keys and values, rollback is a change of length. Where some keep states, an index or a compressor,
it rests on what transformers does with several tokens that follow others, which is wrong for some models. So a short
text is read at once without a memory, and then with ours: one token at a time, in pieces, and with drafts that are
taken back. Each way has to say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specbench.backends.local.cached import CachedModel
from specbench.backends.local.reference import failing_as_ours
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.convert import quiet_transformers
from specbench.models.family import unlike_keys
from specbench.models.memory import available_bytes

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
_ROUNDING, _FEW_BITS = 1e-4, 0.1
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
        whole = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        rounding = _ROUNDING if whole.dtype == torch.float32 else _FEW_BITS
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
