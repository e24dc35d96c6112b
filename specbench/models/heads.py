"""Draft heads: found by name, and held against a target before weights are read."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from specbench.errors import ModelError
from specbench.kinds import HEADS
from specbench.models.convert import quiet_transformers
from specbench.models.directory import content_revision, is_local
from specbench.models.embedded import PREFIX, packaged_head
from specbench.models.failures import explain
from specbench.models.headconfig import Head, OwnHead, kind_of, read_head, require_known
from specbench.models.hub import described, look_up


def find_head(name: str) -> Head | None:
    """The head that `name`, an embedded one, a directory or a hub id, stands for; None where that is a model, or
    nothing: the loader of models says what is wrong then. Raises ModelError for a head that is of another kind, or
    whose config is amiss."""
    found = _config_file(name)
    if found is None:
        return None
    location, hub, revision = found
    try:
        config = json.loads((location / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    kind = kind_of(config)
    if kind is None:
        return None
    require_known(name, kind)
    try:
        return read_head(config, kind, name=name, location=location, hub=hub, revision=revision)
    except ModelError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"config.json of {name} is not one of {HEADS[kind]} ({type(error).__name__})",
            hint="Copy the head again, with the config.json that it came with.",
        ) from None


def heads_of(names: Collection[str | None]) -> dict[str, Head]:
    """The heads among these names."""
    found = {name: find_head(name) for name in dict.fromkeys(names) if name is not None}
    return {name: head for name, head in found.items() if head is not None}


def require_fit(head: Head, target: str, config: Any) -> None:
    """Raise ModelError where a head cannot belong to the target of this transformers configuration."""
    text = config.get_text_config(decoder=True)
    theirs = tuple(getattr(config, "architectures", None) or ())
    layers, hidden, vocabulary = (int(getattr(text, key)) for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    ids = head.reads(layers)
    # DFlash may read what the last layer gives, after the target's norm.
    last = layers if head.kind == "dflash" else layers - 1
    wrong = [layer for layer in ids if not 0 <= layer <= last]
    if head.architectures and theirs and not set(head.architectures) & set(theirs):
        trained = f"{head.verifier or 'a target'} ({', '.join(head.architectures)})"
        what = f"was trained for {trained}, and {target} is {', '.join(theirs)}"
    elif head.target_hidden != hidden:
        what = f"reads states of width {head.target_hidden}, and those of {target} are {hidden} wide"
    elif head.vocab_size is not None and head.vocab_size != vocabulary:
        what = f"drafts for a vocabulary of {head.vocab_size:,} tokens, and {target} has {vocabulary:,}"
    elif wrong:
        what = f"reads the state before layer {wrong[0]}, and {target} has layers 0 to {layers - 1}"
    else:
        return
    raise ModelError(f"{head.name} {what}", hint="Use a head that was trained for this target.")


# Targets whose multi-token-prediction layers are driven, with where their configuration counts these layers.
_OWN = {
    "deepseek_v3": "num_mtp_layers",
    "glm4_moe": "num_mtp_layers",
    "qwen3_next": "num_nextn_predict_layers",
    "qwen3_5_text": "mtp_num_hidden_layers",
    "qwen3_5_moe_text": "mtp_num_hidden_layers",
}


def require_own(target: str, config: Any, revision: str | None = None) -> OwnHead:
    """The multi-token-prediction layer that a target of this transformers configuration may carry; whether it does, its
    weights say. Raises ModelError for one that cannot."""
    text = config.get_text_config(decoder=True)
    kind = str(text.model_type)
    if kind not in _OWN:
        raise ModelError(
            f"{target} ({kind}) has no multi-token-prediction layers that are known here",
            hint=f"Known are those of {', '.join(_OWN)}; for others use a draft head or a draft model.",
        )
    count = getattr(text, _OWN[kind], 1)
    if count != 1:
        what = "no multi-token-prediction layer" if not count else f"{count} multi-token-prediction layers, not one"
        raise ModelError(f"{target} has {what}", hint="Use another draft.")
    layers, layer = int(text.num_hidden_layers), copy.deepcopy(text)
    layer.num_hidden_layers = 1
    if getattr(layer, "first_k_dense_replace", None) is not None:
        layer.first_k_dense_replace = 0  # the layer is one of experts
    if getattr(layer, "layer_types", None) is not None:
        layer.layer_types = ["full_attention"]
    return OwnHead(
        name="mtp",
        location=Path(),
        hub=False,
        revision=revision,
        kind="mtp",
        layer=layer,
        target_hidden=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        draft_vocab=int(text.vocab_size),
        layer_ids=(layers,),
        verifier=target,
        architectures=(),
        layers=layers,
    )


def head_files(head: Head) -> list[Path]:
    """Its weight files, fetched where they are on the hub. Raises ModelError where there are none."""
    folder = fetched(head.name, head.revision) if head.hub else head.location
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{head.name} has no weights in safetensors", hint="Convert its weights to model.safetensors.")
    return files


def fetched(name: str, revision: str | None) -> Path:
    """The folder of the weights of a checkpoint of the hub, which are fetched where they are not here. Raises
    ModelError."""
    from huggingface_hub import snapshot_download

    try:
        with quiet_transformers():
            return Path(
                snapshot_download(
                    name.partition("@")[0],
                    revision=revision,
                    allow_patterns=["*.safetensors", "*.safetensors.index.json", "config.json"],
                )
            )
    except Exception as error:
        raise explain(error, name) from error


def _config_file(name: str) -> tuple[Path, bool, str | None] | None:
    """The folder that holds config.json, whether it is of the hub, and the revision; None where there is none."""
    if not name.strip():
        return None
    if name.startswith(PREFIX):
        packaged = packaged_head(name)
        return None if packaged is None else (packaged.folder, False, f"sha256:{packaged.sha256}")
    folder = Path(name).expanduser()
    if is_local(name):
        return (folder, False, content_revision(folder)) if (folder / "config.json").is_file() else None
    repo, _, revision = name.partition("@")
    try:
        state = look_up(repo, revision or None)
        return described(repo, state), True, state.revision
    except ModelError:
        return None  # whoever loads it says so
