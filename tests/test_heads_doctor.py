"""The doctor on heads: what is fed wrongly is named, and a head that is merely poor is not called broken."""

from __future__ import annotations

import pytest
import torch
from tiny_heads import HIDDEN, head_config, marked_head, marked_llama, save_head

from specbench.backends.local.drafts import HeadDraft, load_head
from specbench.backends.local.headreader import HeadReader
from specbench.drafters import parse_draft
from specbench.models import LoadedModel
from specbench.models.heads import find_head
from specbench.records import Sampling
from specbench.verify import heads, rounds
from specbench.verify.setup import Setup

TARGET = marked_llama()
PROMPTS = [[first, 7, first + 1] for first in range(0, 60, 4)]
LAYER = head_config(TARGET)["transformer_layer_config"] | {"intermediate_size": HIDDEN}


def bed_of(folder, tensors=None, **changes):
    save_head(folder, TARGET, tensors=tensors or marked_head(TARGET), transformer_layer_config=LAYER, **changes)
    loaded = LoadedModel("tiny", TARGET, None, None, 0, 0, 512)
    head = load_head(find_head(str(folder)), loaded)
    draft = HeadDraft(parse_draft(str(folder)), head)
    bed = Setup(loaded, [draft], PROMPTS, sampling=Sampling(), eos=frozenset(), max_new_tokens=8, dtype="float32")
    return bed, bed.drafts[0]


def states(bed, draft):
    return {
        "head-agreement": heads.head_agreement(bed, draft),
        "head-depth": heads.head_depth(bed, draft),
        "head-config": heads.head_config(bed, draft),
        "survival-cliff": rounds.survival_cliff(bed, draft),
        "loop-replay": rounds.loop_and_replay(bed, draft),
        "same-text": rounds.same_text(bed, draft),
    }


def broken(found):
    return {code for code, one in found.items() if one.severity == "broken"}


@pytest.mark.full
def test_a_sound_head(tmp_path):
    found = states(*bed_of(tmp_path))
    assert {one.severity for one in found.values()} == {"ok"}, found
    assert found["head-agreement"].said.startswith("100%")


def test_layers_off_by_one_are_named_with_those_that_fit(tmp_path):
    found = states(*bed_of(tmp_path, eagle_aux_hidden_state_layer_ids=[0, 1, 2]))
    assert "head-config" in broken(found)
    assert "states before layers 0, 1, 2" in found["head-config"].said
    assert "with states before layers 1, 2, 3 100%" in found["head-config"].said


@pytest.mark.full
def test_a_norm_too_few_is_named(tmp_path):
    found = states(*bed_of(tmp_path, norm_before_residual=False))
    assert "head-config" in broken(found)
    assert "norm_before_residual: true" in found["head-config"].said


@pytest.mark.full
def test_weights_of_something_else(tmp_path):
    """A norm of zeros, as from a checkpoint that was not read: every draft is the same."""
    tensors = marked_head(TARGET) | {"norm.weight": torch.zeros(HIDDEN)}
    assert "head-agreement" in broken(states(*bed_of(tmp_path, tensors)))


@pytest.mark.full
def test_its_own_state_of_the_wrong_place(tmp_path, monkeypatch):
    """Deeper drafts from what was given instead of what came out."""
    bed, draft = bed_of(tmp_path)
    run = HeadReader._run

    def before(self, ids, given, keep):
        logits = run(self, ids, given, keep)
        self.own = -given[0]
        return logits

    monkeypatch.setattr(HeadReader, "_run", before)
    found = states(bed, draft)
    assert broken(found) & {"head-depth", "loop-replay", "survival-cliff"}


def test_states_of_the_place_before_in_the_loop(tmp_path):
    bed, draft = bed_of(tmp_path)
    honest = draft.drafter._states
    draft.drafter._states = lambda begin, end: 0 * honest(begin, end)
    assert "loop-replay" in broken(states(bed, draft))


@pytest.mark.full
def test_a_poor_head_is_not_broken(tmp_path):
    torch.manual_seed(3)
    tensors = marked_head(TARGET)
    for name in ("lm_head.weight", "layers.0.self_attn.v_proj.weight"):
        tensors[name] = tensors[name] + 0.6 * tensors[name].std() * torch.randn_like(tensors[name])
    found = states(*bed_of(tmp_path, tensors))
    first = int(found["head-agreement"].said.partition("%")[0])
    assert 15 < first < 85, found["head-agreement"]
    assert broken(found) == set(), found
