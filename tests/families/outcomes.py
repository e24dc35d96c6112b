"""What becomes of a family: how it is rolled back, whether texts of different lengths run side by side, or in which
words it is refused. `PYTHONPATH=tests python -m families.outcomes [FAMILY ...]` prints rows of table.yaml."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from families.recipes import VOCABULARY, UnbuiltError, config, model, near, theirs
from tiny import GREEDY, run
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from specbench.acceptance.replay import as_text, replay
from specbench.acceptance.score import score
from specbench.backends.local.batch import ignores_padding
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.lean import make_lean
from specbench.backends.local.ragged import RaggedModel
from specbench.backends.local.reference import check_reference, require_rollback
from specbench.drafters.model import ModelDrafter
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.family import require_batches, require_family, unlike_keys
from specbench.models.memory import cache_bytes

TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "table.yaml").read_text())
PROMPTS = [list(range(1, 8)), list(range(3, 17)), list(range(2, 30))]
_NEW = 14
# Of a draft; what is too much for one family is too little for another.
_NOISES = (0.05, 0.005, 0.3)
# Its attention wants the keys of several texts in one piece, which ours are not: --replay-only refuses it.
_ALONE = ("gpt_neox_japanese",)
# Heads of layers with a window, and states of a make of its own; of windows and compressors nothing is said.
_LARGER = ("mimo_v2_flash", "zaya", "deepseek_v4")


def outcome(family: str) -> list[str]:
    """Alone and in batches: a way of rollback or "together", or the code of a refusal. Whatever is neither raises."""
    try:
        require_family(config(family), family)
        target = model(family)
        drafts = [near(target, noise) for noise in _NOISES]
        make_lean(target)
        loaded = LoadedModel(family, target, None, None, 0, 0, None)
        rereads = require_rollback(loaded)
        _hold(loaded, CachedModel(target, 64))
        if family not in _ALONE and ignores_padding(target):
            _hold(loaded, CachedModel(target, 64), padded=True)
    except ModelError as error:
        return [_code(error, family)] * 2
    assert any(_lossless(target, draft) for draft in drafts), "no draft is rejected now and then"
    _require_size(family, target)
    way = "reread" if rereads else _without_a_pass(target)
    try:
        require_batches(target.config, family)
        _hold(loaded, RaggedModel(target, 96, 3))
    except ModelError as error:
        return [way, _code(error, family)]
    return [way, "together"]


def _hold(loaded: LoadedModel, reader: Any, *, padded: bool = False) -> None:
    """Against texts of `generate`, `padded` as `--replay-only` writes them."""
    asked: dict[str, Any] = {"max_new_tokens": _NEW, "widest": 4, "eos": (), "dtype": "float32"}
    assert check_reference(loaded, reader, PROMPTS, **asked, padded=padded).near_ties == 0


def _without_a_pass(target: Any) -> str:
    if not unlike_keys(target.config.get_text_config(decoder=True)):
        return "length"
    return "cut" if CachedModel(target, 8).cache.states else "crop"


def _lossless(target: Any, draft: Any) -> bool:
    """Whether some drafts of a text were accepted, and some not. The text has to be transformers' own, and
    the rounds those that a replay of it says."""
    prompt = PROMPTS[1]
    drafter = ModelDrafter(CachedModel(draft, 64), vocab_size=VOCABULARY, sampling=GREEDY, eos=())
    live = run(CachedModel(target, 64), drafter, prompt, gamma=3, max_new_tokens=24)
    assert live.tokens == theirs(target, prompt, 24)
    found = score(None, CachedModel(draft, 64), prompt, live.tokens, vocab_size=VOCABULARY, sampling=GREEDY, eos=())
    again = replay([as_text(found, prompt_id="p", category=None, draft="d", repeat=0, limit=24)], 3)
    drafted, accepted = (sum(getattr(each, name) for each in live.rounds) for name in ("drafted", "accepted"))
    assert (again.rounds.sum(), again.drafted.sum(), again.accepted.sum()) == (len(live.rounds), drafted, accepted)
    return 0 < accepted < drafted


def _require_size(family: str, target: Any) -> None:
    """A full cache is as large as is said before it is made, or larger."""
    reader = CachedModel(target, 24)
    reader.forward(PROMPTS[2][:24], keep=1)
    kept = [tensor for layer in reader.cache.layers for tensor in _tensors(layer)]
    said = cache_bytes(target.config, 24, 1, 4)
    held = sum(tensor.nbytes for tensor in kept)
    assert said < held if family in _LARGER else said == held, f"{said} said, {held} held"


def _tensors(layer: Any) -> list[torch.Tensor]:
    names = ("keys", "values", "indexer_keys", "idx_keys")
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return [each for each in [*(getattr(layer, name, None) for name in names), *states] if each is not None]


def _code(error: ModelError, family: str) -> str:
    """The code of a line that names the family. Raises AssertionError for any other line."""
    line = error.line()
    codes = [code for code, words in TABLE["refusals"].items() if words["line"] in line]
    assert len(codes) == 1 and family in line and "\n" not in line, line
    return codes[0]


def _row(family: str) -> str:
    try:
        return f"[{', '.join(outcome(family))}]"
    except UnbuiltError as error:
        return f"[unbuilt]  # {str(error)[:90]!r}"
    except Exception as error:
        return f"[FAILED]  # {type(error).__name__}: {str(error)[:100]!r}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        print(f"  {name}: {_row(name)}", flush=True)
