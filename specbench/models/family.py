"""Which models the loop can drive, told from their configuration alone, before weights are fetched or loaded.

What a configuration does not tell is found when a text is held against transformers' own (backends/local/reference.py).
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal

from specbench.errors import ModelError

# What a layer of transformers' caches keeps: keys and values of every position, nothing at all, because it has no
# memory or reads another's, the states of convolutions and recurrences, or both; keys of an index too; of any other
# class see `memory_of`.
Memory = Literal["keys", "nothing", "states", "both", "indexed", "cropped", "other"]
_MEMORIES: dict[str, Memory] = {
    "DynamicLayer": "keys",
    "DynamicSlidingWindowLayer": "keys",
    "DummyLayer": "nothing",
    "LinearAttentionLayer": "states",
    "LinearAttentionAndFullAttentionLayer": "both",
    "LinearAttentionAndSlidingWindowAttentionLayer": "both",
}


# How models hand over the keys of an index, as DeepSeek's sparse attention does and as MiniMax's.
INDEXING = ("update_indexer", "update_index")

# What a model's forward calls its cache.
CACHE_NAMES = ("past_key_values", "cache_params")


def causal_class(config: Any) -> Any | None:
    """The class of transformers that reads text under this configuration: that of its causal language models, else
    of a model that also reads images, which is run on text alone. None where it has neither, or for a model with code
    of its own."""
    return _class_of(config, loader_of(config))


def loader_of(config: Any) -> Any:
    """The auto class of transformers that builds such a model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if _class_of(config, AutoModelForCausalLM) is None and _class_of(config, AutoModelForImageTextToText) is not None:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def attention_of(config: Any) -> str:
    """What computes attention: torch's own kernels (sdpa) where every part of the model takes them, else the plain
    form that transformers writes out (eager)."""
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "model_type"))]
    # A class that is not of transformers is taken to: where it does not, it says so when it is loaded.
    known = [kind for kind in (causal_class(config), *map(_body_class, parts)) if kind is not None]
    return "sdpa" if all(getattr(kind, "_supports_sdpa", False) for kind in known) else "eager"


def require_family(config: Any, name: str) -> None:
    """Raise ModelError where a model of this configuration cannot be read token by token with a cache that is rewound.
    `name` is what the user calls it."""
    kind, text = causal_class(config), config.get_text_config(decoder=True)
    if kind is None:
        return  # its own code, or none: the loader says so
    who = f"{name} ({config.model_type})"
    cache_layers(text, who)
    listed = getattr(text, "layer_types", None)  # a hybrid may have layers of attention alone
    if getattr(kind, "_is_stateful", False) and not listed and not unlike_keys(text):
        raise ModelError(
            f"{who} keeps a state outside of transformers' cache, so it cannot be rolled back",
            hint="A rejected draft has to be forgotten: choose another model.",
        )
    if not any(takes(kind.forward, name) for name in CACHE_NAMES):
        raise ModelError(f"{who} has no KV cache in transformers", hint="Choose a causal model that has one.")
    # The decoder of a pair with an encoder may be run alone (MarianForCausalLM).
    if getattr(config, "is_encoder_decoder", False) and not kind.__name__.endswith("ForCausalLM"):
        raise ModelError(f"{who} writes from what an encoder reads", hint="Choose a causal language model.")
    if not _is_causal(config, text):
        raise ModelError(
            f"{who} is not causal as configured: a token sees those after it",
            hint="Choose a causal language model, or set is_decoder in its config.json where it was trained as one.",
        )


def require_batches(config: Any, name: str) -> None:
    """Raise ModelError where sequences of different lengths cannot be read side by side."""
    text, kind = config.get_text_config(decoder=True), causal_class(config)
    if getattr(text, "alibi", False) or not (kind is None or takes(kind.forward, "position_ids")):
        raise ModelError(
            f"{name} ({config.model_type}) takes no positions of its own for each sequence, so batches of texts of "
            "different lengths would be wrong",
            hint="Use --batch-size 1.",
        )
    if unlike := unlike_keys(text, but=("indexed",)):
        raise ModelError(
            f"{name} ({config.model_type}) has layers whose memory is of one length for all texts side by side: "
            f"{', '.join(unlike)}",
            hint="Use --batch-size 1.",
        )


def takes(forward: Callable[..., Any], name: str) -> bool:
    """Whether a model's forward has this argument. One that does not name a mask either passes on what it gets."""
    names = _arguments(forward)
    return name in names or not {"attention_mask", "use_cache", "labels"} & names


@functools.cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def cache_layers(text: Any, who: str = "the model") -> list[Any]:
    """One layer of transformers' own cache for each that a model of this text configuration asks for. Raises ModelError
    for a configuration of which it cannot make one; `who` is named in it."""
    from transformers import DynamicCache

    try:
        layers: list[Any] = DynamicCache(config=text).layers
    except Exception as error:  # a configuration may lack anything
        raise ModelError(
            f"transformers makes no KV cache for {who} ({type(error).__name__})", hint="Choose another model."
        ) from None
    return layers


def own_cache(config: Any) -> Any | None:
    """The class of cache that a model of this configuration brings along and insists on; None where any will do."""
    from transformers import Cache

    body = _body_class(config)
    asked = inspect.signature(body.forward).parameters.get(CACHE_NAMES[0]) if body is not None else None
    found = [] if asked is None else [asked.annotation, *typing.get_args(asked.annotation)]
    theirs = [each for each in found if isinstance(each, type) and issubclass(each, Cache)]
    return next((each for each in theirs if each.__module__ != Cache.__module__), None)


def memory_of(layer: Any) -> Memory:
    """What a layer of transformers' cache keeps. One of a class that we do not know is "cropped" where that class says
    itself how positions are taken back, and "other" where it only inherits it."""
    if found := _MEMORIES.get(type(layer).__name__):
        return found
    if any(hasattr(layer, name) for name in INDEXING):
        return "indexed"
    return "cropped" if "crop" in vars(type(layer)) else "other"


def unlike_keys(text: Any, but: Collection[str] = ()) -> list[str]:
    """The kinds of layers whose memory is more than keys and values, and none of `but`, as the text configuration calls
    them."""
    layers, simple = cache_layers(text), ("keys", "nothing", *but)
    named = getattr(text, "layer_types", None) or [type(layer).__name__ for layer in layers]
    return sorted({kind for kind, each in zip(named, layers, strict=False) if memory_of(each) not in simple})


def shares_layers(config: Any) -> bool:
    """Whether the first layers of a model can be run alone, as `skip:` does: each has a memory of its own, of keys and
    values or of states that a snapshot holds."""
    text = config.get_text_config(decoder=True)
    blocks = getattr(text, "num_layers", None)  # of longcat_flash, whose layers hold two attentions each
    whole = int(text.num_hidden_layers)
    own = ("keys", "states", "both")
    return blocks in (None, whole) and all(memory_of(layer) in own for layer in cache_layers(text))


def frequency_limit(config: Any) -> int | None:
    """The length at which a model turns all its positions by other frequencies (LongRoPE): keys that were cached below
    it are not those that the model would have above. None where there is no such length."""
    ropes = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    each = [ropes, *(one for one in ropes.values() if isinstance(one, dict))]
    limits = [one.get("original_max_position_embeddings") for one in each if one.get("rope_type") == "longrope"]
    return min((int(limit) for limit in limits if limit), default=None)


def _is_causal(config: Any, text: Any) -> bool:
    """BERT and its kin are trained to fill gaps, and causal only where `is_decoder` says so; the decoders of models
    with an encoder set it themselves."""
    from transformers import AutoModelForMaskedLM

    if not getattr(text, "is_causal", True):
        return False
    fills_gaps = _class_of(config, AutoModelForMaskedLM) is not None
    return not fills_gaps or bool(getattr(text, "is_decoder", False) or getattr(config, "is_encoder_decoder", False))


def _body_class(config: Any) -> Any | None:
    from transformers import AutoModel

    return _class_of(config, AutoModel)


def _class_of(config: Any, auto: Any) -> Any | None:
    """What this auto class of transformers builds of the configuration."""
    found = auto._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found
