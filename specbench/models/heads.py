"""Draft heads: what a checkpoint's config.json says it is, and whether it fits a target, before weights are read.

Known are EAGLE-3 (Li et al. 2025, arXiv 2503.01840), as the `speculators` library writes it, and as its authors and
those who train like them do: a flat configuration with `draft_vocab_size`; and P-EAGLE in the same two forms, an
EAGLE-3 head with a mask token, which drafts all tokens of a round in one pass. Other heads are refused by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import ModelError
from specbench.kinds import HEADS
from specbench.models.convert import quiet_transformers
from specbench.models.directory import content_revision, is_local
from specbench.models.embedded import PREFIX
from specbench.models.failures import explain
from specbench.models.hub import described, look_up
from specbench.text import shown

# Heads that are not driven here, by what their configuration is known from.
_OTHERS = {
    "eagle": "EAGLE-1",
    "dflash": "DFlash",
    "dflash2": "DFlash 2",
    "mtp": "MTP",
    "dspark": "DSpark",
    "xpress": "Xpress",
    "medusa": "Medusa",
    "gemma4_assistant": "Gemma 4 assistant",
}

# Decoder layers of transformers that such heads are made of.
_LAYERS = ("llama", "qwen3")

# Frequencies that do not depend on how long the text is.
_STEADY_ROPES = ("default", "linear", "llama3", "yarn")

# Where a flat configuration names the mask token of P-EAGLE: the first two are what vLLM looks for, in its order.
_MASK_KEYS = ("pard_token", "ptd_token_id", "mask_token_id")

_CURE = "Use another draft."

# The type of a text in a GGUF file.
_STRING = 8


@dataclass(frozen=True, slots=True)
class Head:
    """A draft head that is not loaded. `layer` is the transformers configuration of its decoder layers;
    `target_hidden` the width of the states that it reads and `layer_ids` the target's layers before which they are
    taken, None where it does not say; `vocab_size` is the target's. `mask_token` is what P-EAGLE reads where a round's
    later drafts go, None for EAGLE-3. `verifier` is the target that it was trained for, with its `architectures`, where
    it says so."""

    name: str
    location: Path
    hub: bool
    revision: str | None
    layer: Any
    target_hidden: int
    vocab_size: int
    draft_vocab: int
    layer_ids: tuple[int, ...] | None
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool
    mask_token: int | None
    verifier: str | None
    architectures: tuple[str, ...]

    @property
    def kind(self) -> str:
        """One of HEADS."""
        return "eagle3" if self.mask_token is None else "peagle"

    @property
    def hidden(self) -> int:
        return int(self.layer.hidden_size)

    @property
    def max_context(self) -> int:
        """Tokens that it was made for. It can be driven beyond, with fewer drafts accepted."""
        return int(self.layer.max_position_embeddings)

    def reads(self, layers: int) -> tuple[int, ...]:
        """Layers of a target with so many: those of the configuration, else those that EAGLE-3 is trained with."""
        return self.layer_ids or (2, layers // 2, layers - 3)


def kind_of(name: str) -> str | None:
    """The kind of head, known here or not, that a directory, a GGUF file or a hub id is; None for a model, and for what
    cannot be looked at."""
    if name.lower().endswith(".gguf"):
        kind = _architecture(Path(name))
        return kind if kind in (*HEADS, *_OTHERS) else None
    found = _read_config(name)
    return None if found is None else _kind(found[0])


def _architecture(path: Path) -> str | None:
    """`general.architecture` of a GGUF file, which writers put first: magic, version and two counts are before it, then
    its key and type. Reading all with the library takes a second for the vocabulary."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
        (length,) = struct.unpack_from("<Q", head, 24)
        if head[:4] != b"GGUF" or head[32 : 32 + length] != b"general.architecture":
            return None
        kind, size = struct.unpack_from("<IQ", head, 32 + length)
        return head[44 + length : 44 + length + size].decode() if kind == _STRING else None
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def find_head(name: str) -> Head | None:
    """The head that `name`, a directory or hub id, stands for; None where that is a model, or nothing: the loader of
    models says what is wrong then. Raises ModelError for a head that is of another kind, or whose config is amiss."""
    found = _read_config(name)
    if found is None:
        return None
    config, location, hub, revision = found
    kind = _kind(config)
    if kind is None:
        return None
    if kind not in HEADS:
        raise ModelError(f"{name} is a draft head of kind {_OTHERS.get(kind, shown(kind))}, and only "
                         f"{' and '.join(HEADS.values())} are known here", hint=_CURE)  # fmt: skip
    try:
        return _head(name, location, hub, revision, config, kind)
    except ModelError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"config.json of {name} is not one of {HEADS[kind]} ({type(error).__name__})",
            hint="Copy the head again, with the config.json that it came with.",
        ) from None


def require_fit(head: Head, target: str, config: Any) -> None:
    """Raise ModelError where a head cannot belong to the target of this transformers configuration."""
    text = config.get_text_config(decoder=True)
    theirs = tuple(getattr(config, "architectures", None) or ())
    layers, hidden, vocabulary = (int(getattr(text, key)) for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    ids = head.reads(layers)
    wrong = [layer for layer in ids if not 0 <= layer < layers]
    if head.architectures and theirs and not set(head.architectures) & set(theirs):
        trained = f"{head.verifier or 'a target'} ({', '.join(head.architectures)})"
        what = f"was trained for {trained}, and {target} is {', '.join(theirs)}"
    elif head.target_hidden != hidden:
        what = f"reads states of width {head.target_hidden}, and those of {target} are {hidden} wide"
    elif head.vocab_size != vocabulary:
        what = f"drafts for a vocabulary of {head.vocab_size:,} tokens, and {target} has {vocabulary:,}"
    elif wrong:
        what = f"reads the state before layer {wrong[0]}, and {target} has layers 0 to {layers - 1}"
    else:
        return
    raise ModelError(f"{head.name} {what}", hint="Use a head that was trained for this target.")


def head_files(head: Head) -> list[Path]:
    """Its weight files, fetched where they are on the hub. Raises ModelError where there are none."""
    folder = head.location
    if head.hub:
        from huggingface_hub import snapshot_download

        try:
            with quiet_transformers():
                folder = Path(
                    snapshot_download(
                        head.name.partition("@")[0],
                        revision=head.revision,
                        allow_patterns=["*.safetensors", "config.json"],
                    )
                )
        except Exception as error:
            raise explain(error, head.name) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{head.name} has no weights in safetensors", hint="Convert its weights to model.safetensors.")
    return files


def _read_config(name: str) -> tuple[dict[str, Any], Path, bool, str | None] | None:
    """config.json with what `_config_file` says of it; None where there is none, or no object in it."""
    found = _config_file(name)
    if found is None:
        return None
    try:
        config = json.loads((found[0] / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return (config, *found) if isinstance(config, dict) else None


def _config_file(name: str) -> tuple[Path, bool, str | None] | None:
    """The folder that holds config.json, whether it is of the hub, and the revision; None where there is none."""
    if not name.strip() or name.startswith(PREFIX):
        return None
    folder = Path(name).expanduser()
    if is_local(name):
        return (folder, False, content_revision(folder)) if (folder / "config.json").is_file() else None
    repo, _, revision = name.partition("@")
    try:
        state = look_up(repo, revision or None)
        return described(repo, state), True, state.revision
    except ModelError:
        return None  # whoever loads it says so


def _kind(config: dict[str, Any]) -> str | None:
    """The kind of head, as `speculators` calls it; None for a model."""
    named = config.get("speculators_model_type")
    if named is not None:
        return str(named)
    classes = [str(one).lower() for one in config.get("architectures") or [] if isinstance(one, str)]
    if "dflash_config" in config or any("dflash" in one for one in classes):
        return "dflash"
    # Those of EAGLE-3's authors call themselves by the class of the target.
    if any("eagle3" in one or "peagle" in one for one in classes) or (
        isinstance(config.get("draft_vocab_size"), int) and "num_hidden_layers" in config
    ):
        named_peagle = any("peagle" in one for one in classes)
        return "peagle" if named_peagle or any(config.get(key) is not None for key in _MASK_KEYS) else "eagle3"
    kind = str(config.get("model_type"))
    return kind if kind in ("medusa", "eagle", "gemma4_assistant") else None


def _head(name: str, location: Path, hub: bool, revision: str | None, config: dict[str, Any], kind: str) -> Head:
    flat = "speculators_model_type" not in config
    layer = dict(config if flat else config["transformer_layer_config"])
    verifier = {} if flat else (config.get("speculators_config") or {}).get("verifier") or {}
    hidden, vocabulary = int(layer["hidden_size"]), int(layer["vocab_size"])
    ids = config.get("eagle_aux_hidden_state_layer_ids")
    nested = config.get("eagle_config")
    if ids is None and isinstance(nested, dict):
        # There a layer is named for the state after it, as SGLang and the trainers that write it count.
        after = nested.get("eagle_aux_hidden_state_layer_ids")
        ids = None if after is None else [int(one) + 1 for one in after]
    draft_vocab = int(config.get("draft_vocab_size") or vocabulary)
    if not 1 <= draft_vocab <= vocabulary:
        raise ModelError(
            f"{name} drafts {draft_vocab:,} tokens of a vocabulary of {vocabulary:,}", hint="Check its config.json."
        )
    masks = [int(config[key]) for key in _MASK_KEYS if config.get(key) is not None] if kind == "peagle" else [None]
    if not masks:
        raise ModelError(
            f"{name} does not say which token masks a draft (mask_token_id)", hint="Check its config.json."
        )
    if masks[0] is not None and not 0 <= masks[0] < vocabulary:
        raise ModelError(
            f"{name} masks drafts with token {masks[0]:,} of a vocabulary of {vocabulary:,}",
            hint="Check its config.json.",
        )
    return Head(
        name=name,
        location=location,
        hub=hub,
        revision=revision,
        layer=_layer_config(name, layer, flat),
        target_hidden=int(config.get("target_hidden_size") or hidden),
        vocab_size=vocabulary,
        draft_vocab=draft_vocab,
        layer_ids=None if not ids else tuple(map(int, ids)),
        norm_before_residual=config.get("norm_before_residual", False) is True,
        norm_before_fc=config.get("norm_before_fc", False) is True,
        fc_norm=config.get("fc_norm", False) is True,
        norm_output=config.get("norm_output", False) is True,
        mask_token=masks[0],
        verifier=_text(verifier.get("name_or_path")),
        architectures=tuple(map(str, verifier.get("architectures") or ())),
    )


def _layer_config(name: str, values: dict[str, Any], flat: bool) -> Any:
    """The configuration of the head's decoder layers; ModelError where they are of a kind that is not known."""
    from transformers import AutoConfig

    kind = values.pop("model_type", "llama")
    if kind not in _LAYERS:
        raise ModelError(f"{name} is made of {shown(kind)} layers, and heads of {' or '.join(_LAYERS)} layers are "
                         "known here", hint=_CURE)  # fmt: skip
    values.pop("architectures", None)
    layer = AutoConfig.for_model(kind, **values)
    windows = [one for one in getattr(layer, "layer_types", None) or [] if one != "full_attention"]
    rope = str((getattr(layer, "rope_parameters", None) or {}).get("rope_type", "default"))
    if windows or rope not in _STEADY_ROPES:
        raise ModelError(f"{name} has {windows[0] if windows else f'{rope} rotary positions'}, which heads are not "
                         "driven with here", hint=_CURE)  # fmt: skip
    if flat and int(layer.num_hidden_layers) > 4:
        raise ModelError(f"{name} has {layer.num_hidden_layers} layers: a model, and no head", hint=_CURE)
    layer._attn_implementation = "sdpa"
    return layer


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def heads_of(names: Collection[str | None]) -> dict[str, Head]:
    """The heads among these names."""
    found = {name: find_head(name) for name in dict.fromkeys(names) if name is not None}
    return {name: head for name, head in found.items() if head is not None}
