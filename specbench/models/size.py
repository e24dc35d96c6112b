"""How large a model is before anything of it is loaded: its configuration, and the headers of its weight files."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import SpecbenchError
from specbench.models.convert import quiet_transformers
from specbench.models.headconfig import Head
from specbench.models.hub import HubState
from specbench.models.load import DTYPES, ModelSource, arguments, locate, read_config, resolve

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

# Weights in these are converted to the precision that is asked for; others, such as packed integers, stay as they are.
_CONVERTED = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model or draft head that is not loaded: its transformers configuration, and the bytes of its weights in the
    precision that was asked for. `states` are the numbers that the target keeps of each token for a head."""

    config: Any
    weight_bytes: int
    states: int = 0

    @property
    def max_context(self) -> int | None:
        """Tokens that it can read; None where it does not say, and of a head, which can be driven beyond."""
        if self.states:
            return None
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)


def size_of(name: str, *, dtype: str, trust_remote_code: Collection[str] = ()) -> ModelSize | None:
    """The size of `name` in `dtype`; None where that cannot be told. What is wrong with such a model is for
    `load_model` to say, but for a name that stands for nothing, which raises ModelError here already."""
    from transformers import AutoConfig

    source = resolve(name)
    location, state = locate(source)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(location, **arguments(source, state, name in trust_remote_code))
        counted = _stored(source, location, state)
        if not counted:
            return None
        return ModelSize(config, int(sum(count * _bytes(kind, dtype) for kind, count in counted)))
    except SpecbenchError:
        raise
    except Exception:  # transformers, the hub and safetensors raise what they like
        return None


def own_format(name: str, *, trust_remote_code: Collection[str] = ()) -> str | None:
    """The one of DTYPES that a model's configuration names, as transformers' `dtype="auto"` has it, else that of most
    of its weights; None where neither can be had, and where the model cannot: that is for `load_model` to say."""
    try:
        if (said := named_format(read_config(name, trust_remote_code=trust_remote_code).to_dict())) is not None:
            return said
        source = resolve(name)
        counted: Counter[str] = Counter()
        for kind, count in _stored(source, *locate(source)):
            counted[_NAMES.get(kind, "")] += count
    except Exception:  # transformers, the hub and safetensors raise what they like
        return None
    del counted[""]
    return max(counted, key=counted.__getitem__, default=None)


def named_format(config: Mapping[str, Any]) -> str | None:
    """The one of DTYPES that a config.json names, of the language model where it has several; None where none is."""
    for part in (config.get("text_config"), config):
        for key in ("dtype", "torch_dtype"):
            said = str(part.get(key)).removeprefix("torch.") if isinstance(part, Mapping) else ""
            if said in DTYPES:
                return said
    return None


def head_size(head: Head, dtype: str) -> ModelSize | None:
    """The size of a draft head in `dtype`, without the target's weights that it uses; None where that cannot be
    told: its files are not here yet, or are damaged."""
    try:
        counted = [_counted(file) for file in sorted(head.location.glob("*.safetensors"))]
    except Exception:  # safetensors raises what it likes, and the loader says what is wrong
        return None
    total = sum(count * _bytes(kind, dtype) for file in counted for kind, count in file)
    states = len(head.layer_ids or (0, 0, 0)) * head.target_hidden
    return ModelSize(head.layer, int(total), states) if counted else None


def _stored(source: ModelSource, location: str, state: HubState) -> list[tuple[str, int]]:
    """Kind and number of elements, for each weight or all of a kind."""
    if source.kind != "hub":
        return list(_headers(Path(location)))
    from huggingface_hub import HfApi, try_to_load_from_cache

    kept = try_to_load_from_cache(location, "config.json", revision=state.revision)
    found = list(_headers(Path(kept).parent)) if isinstance(kept, str) else []
    if found or state.local_only:
        return found
    # The headers alone, before gigabytes are fetched.
    return list(HfApi().get_safetensors_metadata(location, revision=state.revision).parameter_count.items())


def _headers(folder: Path) -> Iterator[tuple[str, int]]:
    """Of the files that transformers would load: those that the index names, else the one file."""
    index, one = folder / "model.safetensors.index.json", folder / "model.safetensors"
    names = [one.name] if one.is_file() else []
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        yield from _counted(folder / name)


def _counted(file: Path) -> list[tuple[str, int]]:
    from safetensors import safe_open

    with safe_open(str(file), framework="numpy") as weights:
        parts = [weights.get_slice(key) for key in weights.keys()]  # noqa: SIM118  # it is no mapping
        return [(part.get_dtype(), math.prod(part.get_shape())) for part in parts]


def _bytes(kind: str, dtype: str) -> float:
    """Of one element: the name of a kind ends in its bits, or has them before what else it says (F8_E4M3)."""
    if kind in _CONVERTED:
        return ELEMENT_BYTES[dtype]
    bits = re.match(r"[A-Z]+(\d+)", kind)
    return int(bits[1]) / 8 if bits else 1
