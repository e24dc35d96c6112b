"""Draft heads: found by name, and held against a target before weights are read."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from specbench.errors import ModelError
from specbench.kinds import HEADS
from specbench.models.directory import content_revision, is_local
from specbench.models.embedded import PREFIX, packaged_head
from specbench.models.gguf import fields_of
from specbench.models.headconfig import OTHERS, Head, OwnHead, kind_in, of_own_layers, read_head, require_known
from specbench.models.hub import described, fetched, look_up
from specbench.validation import expanded


def kind_of(name: str) -> str | None:
    """The kind of head, known here or not, that a directory, a GGUF file or a hub id is; None for a model, and for what
    cannot be looked at."""
    if name.lower().endswith(".gguf"):
        kind = fields_of(Path(name)).get("general.architecture")
        return kind if kind in (*HEADS, *OTHERS) else None
    with suppress(ModelError):
        found = _read_config(name)
        return None if found is None else kind_in(found[0])
    return None


def find_head(name: str) -> Head | None:
    """The head that `name`, an embedded one, a directory or a hub id, stands for; None where that is a model, or
    nothing: the loader of models says what is wrong then. Raises ModelError for a head that is of another kind, or
    whose config is amiss."""
    found = _read_config(name)
    if found is None:
        return None
    config, location, hub, revision = found
    kind = kind_in(config)
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
    found = {name: find_head(name) for name in dict.fromkeys(names) if name is not None}
    return {name: head for name, head in found.items() if head is not None}


def require_fit(head: Head, target: str, config: Any) -> None:
    """Raise ModelError where a head cannot belong to the target of this transformers configuration."""
    text = config.get_text_config(decoder=True)
    theirs = tuple(getattr(config, "architectures", None) or ())
    layers, hidden, vocabulary = (int(getattr(text, key)) for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    ids = head.reads(layers)
    # DFlash may read what the last layer gives, after the target's norm; MTP layers do.
    last = layers if head.kind in ("dflash", "mtp") else layers - 1
    wrong = [layer for layer in ids if not 0 <= layer <= last]
    if head.architectures and theirs and not set(head.architectures) & set(theirs):
        trained = f"{head.verifier or 'a target'} ({', '.join(head.architectures)})"
        what = f"was trained for {trained}, and {target} is {', '.join(theirs)}"
    elif head.target_hidden != hidden:
        what = f"reads states of width {head.target_hidden}, and those of {target} are {hidden} wide"
    elif isinstance(head, OwnHead) and (head.layer.model_type, head.layers) != (text.model_type, layers):
        trained = f"{head.layers} layers of {head.layer.model_type}"
        what = f"was made for {trained}, and {target} has {layers} of {text.model_type}"
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
    count, layers = int(getattr(text, _OWN[kind], 1) or 0), int(text.num_hidden_layers)
    # In a row are only those that transformers runs so: one layer of Qwen's kind is all that was ever published.
    if count < 1 or (count > 1 and _OWN[kind] != "num_mtp_layers"):
        what = "no multi-token-prediction layer" if not count else f"{count} multi-token-prediction layers, not one"
        raise ModelError(f"{target} has {what}", hint="Use another draft.")
    return OwnHead(
        name="mtp",
        location=Path(),
        hub=False,
        revision=revision,
        kind="mtp",
        layer=of_own_layers(text, count),
        target_hidden=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        draft_vocab=int(text.vocab_size),
        layer_ids=(layers,),
        verifier=target,
        architectures=(),
        layers=layers,
        count=count,
    )


def head_files(head: Head) -> list[Path]:
    """Its weight files, fetched where they are on the hub. Raises ModelError where there are none."""
    folder = fetched(head.name, head.revision) if head.hub else head.location
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
    if not name.strip():
        return None
    if name.startswith(PREFIX):
        packaged = packaged_head(name)
        return None if packaged is None else (packaged.folder, False, f"sha256:{packaged.sha256}")
    if is_local(name):
        folder = expanded(name, ModelError)
        return (folder, False, content_revision(folder)) if (folder / "config.json").is_file() else None
    repo, _, revision = name.partition("@")
    try:
        state = look_up(repo, revision or None)
        return described(repo, state), True, state.revision
    except ModelError:
        return None  # whoever loads it says so
