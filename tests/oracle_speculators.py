"""Heads run by `speculators` itself, in an environment of its own: `python oracle_speculators.py ASKED.pt FOUND.pt`.

What is asked is a list of heads, each with its folder, its target's folder, states [n, layers * hidden] of a text's
tokens and its ids [n + 1]; what is found are logits [depths, n, draft vocabulary], teacher-forced, and versions.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from speculators import SpeculatorModel


def load(folder: Path, target: str, room: Path) -> Any:
    """A head whose verifier is on this disk: it is named by its hub id."""
    shutil.copytree(folder, room)
    file = room / "config.json"
    config = json.loads(file.read_text())
    config["speculators_config"]["verifier"]["name_or_path"] = target
    config["transformer_layer_config"].pop("_attn_implementation", None)
    file.write_text(json.dumps(config))
    kind = SpeculatorModel.registry[config["speculators_model_type"]]
    read = kind.config_class.from_pretrained(str(room))
    read.transformer_layer_config._attn_implementation = "eager"
    model = kind.from_pretrained(str(room), config=read, dtype=torch.float32).float().eval()
    if not hasattr(model, "mtp_layers"):  # 0.9.0 leaves an embedding that is not in the file at zero
        model._load_verifier_weights(overwrite_embed_tokens=True)
    return model.float()


@torch.no_grad()
def logits(model: Any, states: torch.Tensor, ids: torch.Tensor, depths: int) -> torch.Tensor:
    """One text of one document."""
    n = len(states)
    if hasattr(model, "mtp_layers"):
        found, *_ = model(input_ids=ids[None], hidden_states=states[None])
        return torch.stack([one[0] for one in found[:depths]])
    seen: list[torch.Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda module, given, found: seen.append(found.detach()[0]))
    document = torch.zeros(1, n, dtype=torch.long)
    model(hidden_states=states[None], input_ids=ids[None, 1:], document_ids=document, ttt_steps=depths)
    hook.remove()
    return torch.stack(seen[:depths])


def main() -> None:
    asked = torch.load(sys.argv[1])
    found = []
    with tempfile.TemporaryDirectory() as room:
        for number, ask in enumerate(asked):
            model = load(Path(ask["head"]), ask["target"], Path(room) / str(number))
            texts = zip(ask["states"], ask["ids"], strict=True)
            found.append([logits(model, states, ids, ask["depths"]) for states, ids in texts])
    torch.save({"logits": found, "versions": (version("speculators"), transformers.__version__)}, sys.argv[2])


if __name__ == "__main__":
    main()
