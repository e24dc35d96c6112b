"""The target's own first layers as draft: no second model, no second cache, no prompt to read.

What the shared layers hold for emitted tokens is what the target itself wrote there. Drafts are written beyond it and
forgotten before the target reads them in its own pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import torch
from torch import nn

from specbench.acceptance.loop import Proposal, Target
from specbench.acceptance.rules import RepetitionPenalty
from specbench.drafters.model import Drafted, DraftOptions, DraftRule
from specbench.errors import ConfigError
from specbench.models.family import cache_layers, memory_of


def first_layers(model: Any, layers: int) -> Any:
    """The model cut after its first `layers` layers, with its own norm and head; all weights are shared. Raises
    ConfigError where it has no more layers than that, or keeps them where they cannot be found."""
    config = model.config.get_text_config()
    if layers < (fewest := fewest_layers(config)):
        raise ConfigError(
            f"The target's layers before its layer {fewest} keep states alone, and transformers asks one of attention "
            "how long the text is",
            where=f"skip:layers={layers}",
            hint=f"Write {fewest} or more layers.",
        )
    if not 1 <= layers < config.num_hidden_layers:
        raise ConfigError(
            f"The target has {config.num_hidden_layers} layers, a draft of {layers} would skip none",
            where=f"skip:layers={layers}",
            hint=f"Write a number from 1 to {config.num_hidden_layers - 1}.",
        )
    name = model.base_model_prefix
    body = getattr(model, name, None)
    if body is None or not isinstance(getattr(body, "layers", None), nn.ModuleList):
        raise ConfigError(
            f"{type(model).__name__} does not keep its layers where a draft could share them",
            where=f"skip:layers={layers}",
            hint="Use another draft.",
        )
    cut, cut_body = _shallow(model), _shallow(body)
    cut_body.config = copy.copy(config)
    cut_body.config.num_hidden_layers = layers
    kinds = getattr(cut_body.config, "layer_types", None)
    if kinds is not None and len(kinds) != layers:  # where it follows from the number of layers it cannot be set
        cut_body.config.layer_types = list(kinds)[:layers]
    cut_body.layers = nn.ModuleList(list(body.layers)[:layers])
    setattr(cut, name, cut_body)
    cut.config = cut_body.config
    return cut


def fewest_layers(text: Any) -> int:
    """How many first layers can run alone: those up to one that keeps keys and values, where the model has any."""
    kept = [memory_of(layer) for layer in cache_layers(text)]
    return next((at + 1 for at, memory in enumerate(kept) if memory != "states"), 1)


def _shallow(module: nn.Module) -> Any:
    """A module of its own that holds the same parameters and submodules."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


class SkipDrafter:
    """Drafts with a model that shares the target's cache. Both must be as far as all but the last token when a round
    begins, which the loop sees to."""

    def __init__(self, model: Target, **options: Unpack[DraftOptions]) -> None:
        self._model, self._rule = model, DraftRule(**options)

    def begin(self, prompt: Sequence[int]) -> None:
        """Nothing to read: the target has read the prompt with the layers that are shared."""
        self._penalty = RepetitionPenalty(self._rule.sampling)

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator) -> Proposal:
        read = partial(self._model.forward, keep=1)  # [1, V]
        found = self._rule.draft(read, x[-1:], k, Drafted(x, self._penalty), generator)
        self._model.rewind(len(x) - 1)
        return found
