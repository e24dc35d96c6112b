"""What the config.json of a draft head says.

Known are EAGLE-3 (Li et al. 2025, arXiv 2503.01840), as the `speculators` library writes it, and as its authors and
those who train like them do: a flat configuration with `draft_vocab_size`; P-EAGLE in the same two forms, an EAGLE-3
head with a mask token, which drafts all tokens of a round in one pass; DFlash as `speculators`, its authors and
transformers write it; and MTP layers that `speculators` wrote. Other heads are refused by name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import ModelError
from specbench.kinds import HEADS
from specbench.text import shown

# Heads that are not driven here, by what their configuration is known from.
OTHERS = {
    "eagle": "EAGLE-1",
    "dflash2": "DFlash 2",
    "dspark": "DSpark",
    "xpress": "Xpress",
    "medusa": "Medusa",
    "gemma4_assistant": "Gemma 4 assistant, which reads its target's keys and values",
    "gemma4_unified_assistant": "Gemma 4 assistant, which reads its target's keys and values",
}

# Decoder layers of transformers that such heads are made of, and those of MTP checkpoints of `speculators`.
_LAYERS = ("llama", "qwen3")
_OWN_LAYERS = ("qwen3", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")

# Frequencies that do not depend on how long the text is.
_STEADY_ROPES = ("default", "linear", "llama3", "yarn")

# Where a flat configuration names the mask token of P-EAGLE: the first two are what vLLM looks for, in its order.
_MASK_KEYS = ("pard_token", "ptd_token_id", "mask_token_id")

# What transformers calls its DFlash assistant, whose layers are those of Qwen 3.
_ASSISTANT = "muse_glimmer_assistant"
_OF_LAYERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
    "max_position_embeddings",
    "hidden_act",
)

_HINT = "Use another draft."
_CHECK = "Check its config.json."


@dataclass(frozen=True, slots=True)
class Head:
    """A draft head that is not loaded. `kind` is one of HEADS; `layer` the transformers configuration of its decoder
    layers; `target_hidden` the width of the states that it reads and `layer_ids` the target's layers before which they
    are taken, one past the last for those after the target's norm, None where it does not say; `vocab_size` is the
    target's, None where it does not say. `verifier` is the target that it was trained for, with its `architectures`,
    where it says so."""

    name: str
    location: Path
    hub: bool
    revision: str | None
    kind: str
    layer: Any
    target_hidden: int
    vocab_size: int | None
    draft_vocab: int | None
    layer_ids: tuple[int, ...] | None
    verifier: str | None
    architectures: tuple[str, ...]

    @property
    def hidden(self) -> int:
        return int(self.layer.hidden_size)

    @property
    def most(self) -> int | None:
        """Drafts of one round at most; None where there is no limit."""
        return None

    def reads(self, layers: int) -> tuple[int, ...]:
        """Layers of a target with so many: those of the configuration, else those that EAGLE-3 is trained with."""
        return self.layer_ids or (2, layers // 2, layers - 3)


@dataclass(frozen=True, slots=True)
class EagleHead(Head):
    """EAGLE-3 and P-EAGLE: `mask_token` is what the latter reads where a round's later drafts go, None for the former;
    the others are its own options."""

    vocab_size: int
    draft_vocab: int
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool
    mask_token: int | None


@dataclass(frozen=True, slots=True)
class BlockHead(Head):
    """DFlash: one pass over the last token and `block_size` - 1 times `mask_token` drafts as many tokens. `windows` are
    how far each of its layers sees, None for everything: from every token either way, in transformers' layout; in that
    of `speculators` (`anchored`) back from the block's first token, and in the block only what is before it, unless
    such layers are `two_way`."""

    block_size: int
    mask_token: int
    windows: tuple[int | None, ...]
    anchored: bool
    two_way: bool

    @property
    def most(self) -> int | None:
        return self.block_size - 1


@dataclass(frozen=True, slots=True)
class OwnHead(Head):
    """`count` multi-token-prediction layers of a target with so many `layers` of its own, from its checkpoint or from
    one of theirs. Of several each drafts one token of a round; one drafts on from its own output."""

    layers: int
    count: int

    @property
    def most(self) -> int | None:
        return None if self.count == 1 else self.count


def kind_in(config: dict[str, Any]) -> str | None:
    """The kind of head, as `speculators` calls it; None for a model."""
    named = config.get("speculators_model_type")
    if named is not None:
        return str(named)
    classes = [str(one).lower() for one in config.get("architectures") or [] if isinstance(one, str)]
    kind = str(config.get("model_type"))
    if "dflash_config" in config or kind == _ASSISTANT or any("dflash" in one for one in classes):
        return "dflash"
    # Those of EAGLE-3's authors call themselves by the class of the target.
    if any("eagle3" in one or "peagle" in one for one in classes) or (
        isinstance(config.get("draft_vocab_size"), int) and "num_hidden_layers" in config
    ):
        named_peagle = any("peagle" in one for one in classes)
        return "peagle" if named_peagle or any(config.get(key) is not None for key in _MASK_KEYS) else "eagle3"
    return kind if kind in OTHERS and kind != "dflash2" else None


def require_known(name: str, kind: str) -> None:
    """Raise ModelError for a kind of head that is not driven here."""
    if kind in HEADS and kind not in OTHERS:
        return
    *most, last = HEADS.values()
    raise ModelError(f"{name} is a draft head of kind {OTHERS.get(kind, shown(kind))}, and only {', '.join(most)} and "
                     f"{last} are known here", hint=_HINT)  # fmt: skip


def read_head(config: dict[str, Any], kind: str, *, name: str, location: Path, hub: bool, revision: str | None) -> Head:
    """The head of this configuration. Raises ModelError where something is amiss, and what Python raises where it is
    of another form altogether."""
    flat = "speculators_model_type" not in config
    layer = dict(config if flat else config["transformer_layer_config"])
    verifier = {} if flat else (config.get("speculators_config") or {}).get("verifier") or {}
    trained_for = verifier.get("name_or_path")
    hidden, vocabulary = int(layer["hidden_size"]), layer.get("vocab_size")
    found: dict[str, Any] = {
        "name": name,
        "location": location,
        "hub": hub,
        "revision": revision,
        "kind": kind,
        "target_hidden": int(config.get("target_hidden_size") or hidden),
        "vocab_size": None if vocabulary is None else int(vocabulary),
        "draft_vocab": _draft_vocabulary(name, config, vocabulary),
        "verifier": trained_for if isinstance(trained_for, str) and trained_for else None,
        "architectures": tuple(map(str, verifier.get("architectures") or ())),
    }
    if kind == "dflash":
        return _block_head(config, layer, found)
    if kind == "mtp":
        return _own_head(config, layer, found)
    return _eagle_head(config, layer, found)


def _draft_vocabulary(name: str, config: dict[str, Any], vocabulary: int | None) -> int | None:
    drafts = config.get("draft_vocab_size") or vocabulary
    if drafts is not None and vocabulary is not None and not 1 <= int(drafts) <= int(vocabulary):
        raise ModelError(
            f"{name} drafts {int(drafts):,} tokens of a vocabulary of {int(vocabulary):,}",
            hint=_CHECK,
        )
    return None if drafts is None else int(drafts)


def _eagle_head(config: dict[str, Any], layer: dict[str, Any], found: dict[str, Any]) -> Head:
    name, flat = found["name"], "speculators_model_type" not in config
    if found["vocab_size"] is None:
        raise ModelError(f"{name} does not say how many tokens its target knows (vocab_size)",
                         hint=_CHECK)  # fmt: skip
    ids = config.get("eagle_aux_hidden_state_layer_ids")
    nested = config.get("eagle_config")
    if ids is None and isinstance(nested, dict):
        # There a layer is named for the state after it, as SGLang and the trainers that write it count.
        after = nested.get("eagle_aux_hidden_state_layer_ids")
        ids = None if after is None else [int(one) + 1 for one in after]
    mask = None
    if found["kind"] == "peagle":
        mask = _mask_token(found, next((config[key] for key in _MASK_KEYS if config.get(key) is not None), None))
    made = _layer_config(name, layer)
    if flat and int(made.num_hidden_layers) > 4:
        raise ModelError(f"{name} has {made.num_hidden_layers} layers: a model, and no head", hint=_HINT)
    return EagleHead(
        **found,
        layer=made,
        layer_ids=None if not ids else tuple(map(int, ids)),
        norm_before_residual=config.get("norm_before_residual", False) is True,
        norm_before_fc=config.get("norm_before_fc", False) is True,
        fc_norm=config.get("fc_norm", False) is True,
        norm_output=config.get("norm_output", False) is True,
        mask_token=mask,
    )


def _block_head(config: dict[str, Any], layer: dict[str, Any], found: dict[str, Any]) -> Head:
    name, nested = found["name"], config.get("dflash_config") or {}

    def said(key: str) -> Any:
        return config[key] if config.get(key) is not None else nested.get(key)

    if said("sample_from_anchor") is True:
        raise ModelError(f"{name} drafts from its first place too (sample_from_anchor), which is not known here",
                         hint=_HINT)  # fmt: skip
    ids = said("aux_hidden_state_layer_ids")
    if ids is None:  # its authors and transformers name a layer for the state after it
        ids = [int(one) + 1 for one in said("target_layer_ids") or ()]
    block = int(said("block_size") or 0)
    if block < 2 or not ids:
        what = f"a block of {block} tokens" if ids else "no layers to read (target_layer_ids)"
        raise ModelError(f"{name} has {what}", hint=_CHECK)
    theirs, anchored = layer.get("model_type") == _ASSISTANT, "speculators_model_type" in config
    kinds, window = layer.pop("layer_types", None) or [], layer.pop("sliding_window", None)
    if theirs:
        kinds = kinds or ["sliding_attention"] * int(layer["num_hidden_layers"])
        layer = {key: layer[key] for key in _OF_LAYERS if key in layer} | {"model_type": "qwen3"}
    slides = [kind == "sliding_attention" for kind in kinds]
    if any(slides) and not (isinstance(window, int) and (theirs or anchored)):
        raise ModelError(f"{name} has sliding_attention, and does not say what its windows are", hint=_HINT)
    made = _layer_config(name, layer)
    return BlockHead(
        **found,
        layer=made,
        windows=tuple(window if slide else None for slide in slides) or (None,) * int(made.num_hidden_layers),
        anchored=anchored,
        two_way=config.get("sliding_window_non_causal") is True,
        layer_ids=tuple(map(int, ids)),
        block_size=block,
        mask_token=_mask_token(found, said("mask_token_id")),
    )


def _own_head(config: dict[str, Any], layer: dict[str, Any], found: dict[str, Any]) -> Head:
    if (count := int(config.get("num_nextn_predict_layers", 1))) != 1:
        raise ModelError(f"{found['name']} has {count} multi-token-prediction layers, not one", hint=_HINT)
    text = _layer_config(found["name"], layer, _OWN_LAYERS)
    layers = int(text.num_hidden_layers)
    return OwnHead(**found, layer=of_own_layers(text, 1), layer_ids=(layers,), layers=layers, count=1)


def of_own_layers(text: Any, count: int) -> Any:
    """The configuration of so many multi-token-prediction layers of a target of this one: of full attention, and over
    experts where it has any."""
    layer = copy.deepcopy(text)
    layer.num_hidden_layers = count
    if getattr(layer, "first_k_dense_replace", None) is not None:
        layer.first_k_dense_replace = 0
    if getattr(layer, "layer_types", None) is not None:
        layer.layer_types = ["full_attention"] * count
    return layer


def _mask_token(found: dict[str, Any], token: Any) -> int:
    name, vocabulary = found["name"], found["vocab_size"]
    if token is None:
        raise ModelError(f"{name} does not say which token masks a draft (mask_token_id)", hint=_CHECK)
    if int(token) < 0 or (vocabulary is not None and int(token) >= vocabulary):
        raise ModelError(
            f"{name} masks drafts with token {int(token):,} of a vocabulary of {vocabulary or 0:,}",
            hint=_CHECK,
        )
    return int(token)


def _layer_config(name: str, values: dict[str, Any], known: tuple[str, ...] = _LAYERS) -> Any:
    """The configuration of the head's decoder layers; ModelError where they are of a kind that is not `known`."""
    from transformers import AutoConfig

    kind = values.pop("model_type", "llama")
    if kind not in known:
        raise ModelError(f"{name} is made of {shown(kind)} layers, and heads of {', '.join(known)} layers are "
                         "known here", hint=_HINT)  # fmt: skip
    values.pop("architectures", None)
    try:
        layer = AutoConfig.for_model(kind, **values)
    except Exception as error:  # what transformers checks is of many types, and not all of its words are one line
        said = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise ModelError(
            f"transformers does not take the layers in config.json of {name}: {said}",
            hint="Copy the head again, with the config.json that it came with.",
        ) from None
    if known is _OWN_LAYERS:  # what stands before the last is the target's
        return layer
    windows = [one for one in getattr(layer, "layer_types", None) or [] if one != "full_attention"]
    rope = str((getattr(layer, "rope_parameters", None) or {}).get("rope_type", "default"))
    if windows or rope not in _STEADY_ROPES:
        raise ModelError(f"{name} has {windows[0] if windows else f'{rope} rotary positions'}, which heads are not "
                         "driven with here", hint=_HINT)  # fmt: skip
    layer._attn_implementation = "sdpa"
    return layer
