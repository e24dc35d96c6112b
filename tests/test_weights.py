"""Weights are safetensors of the model's own folder, whatever a file in it names: transformers opens pickles and files
elsewhere where an index or a configuration says so."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_untrusted import changed, load

from specbench.errors import ModelError
from specbench.models.hub import HubState


@pytest.fixture
def model(lab, tmp_path):
    return Path(shutil.copytree(lab.near, tmp_path / "model"))


FOREIGN = [
    "part.bin",
    "../part.bin",
    "../part.safetensors",
    "{outside}",
    "..\\part.safetensors",
    "C:part.safetensors",
    7,
]


def plant_index(folder, shard, name="model.safetensors.index.json"):
    """Every weight of the model lies in `shard`, by the index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}))
    return weights


def test_transformers_opens_whatever_an_index_or_a_configuration_names(model, tmp_path):
    """If these fail, transformers has closed the door itself."""
    weights = plant_index(model, "../part.bin")
    torch.save(weights, tmp_path / "part.bin")
    transformers.AutoModelForCausalLM.from_pretrained(model, use_safetensors=True)
    (model / "model.safetensors.index.json").unlink()
    (tmp_path / "part.bin").rename(model / "adapter_model.bin")
    changed(model / "config.json", transformers_weights="adapter_model.bin")
    transformers.AutoModelForCausalLM.from_pretrained(model, use_safetensors=True)


@pytest.mark.parametrize("shard", FOREIGN)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "below/mine.safetensors.index.json"])
def test_an_index_of_weights_names_safetensors_of_its_folder_or_is_refused(model, tmp_path, shard, index):
    shard = str(tmp_path / "part.safetensors") if shard == "{outside}" else shard
    weights = plant_index(model, shard, index)
    if index.startswith("below"):
        # Where the configuration of a part, which is that of the text, names it.
        changed(model / "config.json", text_config={"transformers_weights": index})
    for folder in (model, tmp_path):
        torch.save(weights, folder / "part.bin")
        shutil.copy(model / "other.safetensors", folder / "part.safetensors")
    with pytest.raises(ModelError) as refused:
        load(model)
    says = refused.value.line()
    assert says.startswith(f"{Path(index).name} of {model} names ") and "no safetensors file of its folder" in says
    assert "save_pretrained" in says


def test_shards_in_the_folder_are_read(model):
    plant_index(model, "other.safetensors")
    load(model)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": []}}', "[" * 99_999])
def test_an_index_that_is_none_is_refused_in_one_line(model, index):
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="is no index of weights"):
        load(model)


@pytest.mark.parametrize("weights", ["adapter_model.bin", "../x.safetensors", 7])
def test_a_configuration_that_names_other_weights_is_refused(model, weights):
    changed(model / "config.json", transformers_weights=weights)
    with pytest.raises(ModelError, match=r"config\.json of .* names .*, which is no safetensors file of its folder"):
        load(model)


def test_an_adapter_is_refused_whether_or_not_peft_is_there(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    with pytest.raises(ModelError, match=r"has an adapter .* merge_and_unload"):
        load(model)


def test_an_index_of_a_model_of_the_hub_is_read_before_its_shards_are_fetched(model, tmp_path, monkeypatch):
    plant_index(model, "part.bin")
    asked = []

    def fetch(repo, *, revision, local_files_only, allow_patterns):
        """What the hub's client does, with the model's folder as the hub."""
        asked.append((repo, revision, local_files_only))
        names = [path.name for path in model.iterdir() if any(fnmatch(path.name, each) for each in allow_patterns)]
        assert sorted(names) == ["config.json", "model.safetensors.index.json"]  # and no weights
        for name in names:
            shutil.copy(model / name, tmp_path / name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("specbench.models.load.look_up", lambda repo, revision: HubState("c0ffee", local_only=False))
    monkeypatch.setattr("specbench.models.load._weights", lambda *_: pytest.fail("weights were fetched"))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json of org/model names 'part\.bin'"):
        load("org/model")
    assert asked == [("org/model", "c0ffee", False)]


def test_a_model_in_the_cache_of_the_hub_is_held_to_the_same(model, tmp_path, monkeypatch):
    weights = plant_index(model, "part.bin")
    torch.save(weights, model / "part.bin")
    kept = tmp_path / "hub" / "models--org--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("c" * 40)
    shutil.copytree(model, kept / "snapshots" / ("c" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("specbench.models.load.look_up", lambda repo, revision: HubState(None, local_only=True))
    transformers.AutoModelForCausalLM.from_pretrained("org/model", cache_dir=tmp_path / "hub", local_files_only=True)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json of org/model names 'part\.bin'"):
        load("org/model")
