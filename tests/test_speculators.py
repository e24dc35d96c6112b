"""Our heads against the library that trains them, teacher-forced. `make test-heads`; SPECBENCH_SPECULATORS_PYTHON names
the Python that has speculators."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file, save_file

PYTHON = os.environ.get("SPECBENCH_SPECULATORS_PYTHON", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.full,
    pytest.mark.skipif(not PYTHON, reason="speculators is not here: make test-heads, or SPECBENCH_SPECULATORS_PYTHON"),
]

DEPTHS, TEXTS, TOKENS = 3, 4, 96
WORKLOAD = Path(__file__).parents[1] / "workloads" / "mixed.jsonl"
# Rounding in float32 of logits of size 30, in another order.
ROUNDING = 2e-4

# Other options than the embedded head's own, and the tensors that they take.
VARIANTS = {
    "as it is": ({}, {}),
    "norm_before_residual": ({"norm_before_residual": True}, {}),
    "norm_output": ({"norm_output": True}, {}),
    "fc_norm": ({"fc_norm": True}, {f"fc_norm.{one}.weight": 576 for one in range(3)}),
    "norm_before_fc": ({"norm_before_fc": True}, {"input_norm.weight": 3 * 576}),
}


def copied(head: Path, changes: dict, more: dict[str, int]) -> Path:
    folder = Path(mkdtemp()) / "head"
    shutil.copytree(head, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    extra = {name: 1 + 0.3 * torch.randn(width) for name, width in more.items()}
    save_file(load_file(folder / "model.safetensors") | extra, folder / "model.safetensors")
    return folder


def oracle(asked: list[dict]) -> dict:
    room = Path(mkdtemp())
    torch.save(asked, room / "asked.pt")
    script = Path(__file__).with_name("oracle_speculators.py")
    done = subprocess.run([PYTHON, script, room / "asked.pt", room / "found.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(room / "found.pt")


@cache
def embedded():
    """The target in float32, and texts with transformers' states of them."""
    from specbench.models import load_model
    from specbench.models.prompts import encode
    from specbench.records import Message, Prompt

    target = load_model("demo:target", dtype="float32", device="cpu")
    prompts = sorted((json.loads(line)["prompt"] for line in WORKLOAD.read_text().splitlines()), key=len)[-TEXTS:]
    texts = []
    with torch.no_grad():
        for prompt in prompts:
            ids = encode(target, Prompt("p", (Message("user", prompt),), ""), None)[-TOKENS:]
            whole = target.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            texts.append((torch.tensor(ids), whole))
    return target, texts


def ours(head: Path, target, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits [depths, n, V] by the pass that replay makes: minus infinity where nothing is drafted."""
    from specbench.backends.local.drafts import load_head, reader_of
    from specbench.models.heads import find_head

    memory = reader_of(load_head(find_head(str(head)), target), len(ids) + 8)
    text = ids.tolist()
    with torch.inference_mode():
        first = memory.read(text[1:], states, len(states))
        drafts = [[*text[1 + depth :], *[0] * depth] for depth in range(1, DEPTHS)]
        return torch.stack([first, *memory.deeper(0, memory.own, drafts)])


@cache
def compared():
    from specbench.models.embedded import packaged_head, prepare

    target, texts = embedded()
    asked, mine = [], []
    for changes, more in VARIANTS.values():
        head = copied(packaged_head("demo:eagle3").folder, changes, more)
        layers = json.loads((head / "config.json").read_text())["eagle_aux_hidden_state_layer_ids"]
        states = [torch.cat([whole[layer] for layer in layers], -1)[0, :-1] for _, whole in texts]
        asked.append({"head": str(head), "target": str(prepare("demo:target")), "depths": DEPTHS,
                      "states": states, "ids": [ids for ids, _ in texts]})  # fmt: skip
        mine.append([ours(head, target, one, ids) for one, (ids, _) in zip(states, texts, strict=True)])
    return mine, oracle(asked)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_speculators(variant):
    mine, found = compared()
    at, same, places, apart = list(VARIANTS).index(variant), 0, 0, 0.0
    for ours_, theirs in zip(mine[at], found["logits"][at], strict=True):
        drafted = torch.isfinite(ours_[0, 0])
        for depth in range(DEPTHS):
            one, other = ours_[depth, :, drafted], theirs[depth]
            one, other = one[: len(one) - depth], other[: len(one) - depth]  # the text goes on so far
            apart = max(apart, float((one - other).abs().max()))
            same, places = same + int((one.argmax(-1) == other.argmax(-1)).sum()), places + len(one)
    print(f"{variant}: {same} of {places} arg-maxes, largest difference {apart:.1e}, {found['versions']}")
    assert places > 500
    assert same == places
    assert apart < ROUNDING
