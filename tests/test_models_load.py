"""From names to models: local directories, what can be wrong with them, devices and precisions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specbench.backends.server.launch import find_launch
from specbench.errors import ConfigError, ModelError, UsageError
from specbench.models import ModelSource, load_model, load_tokenizer, resolve, resolve_device
from specbench.models.cache import cache_root
from specbench.models.directory import require_tokenizer
from specbench.models.heads import find_head, kind_of
from specbench.models.load import model_file
from specbench.workload.answers import AnswerLog

# Embedding (tied with the head), then per layer: q and o, k and v (half as wide), three of feed-forward, two norms.
PARAMETERS = 264 * 16 + 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16) + 16


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=77,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens = ["<end>", *sorted(ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_directory_loads_ready_to_measure_and_in_silence(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(str(saved), dtype="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (loaded.name, loaded.max_context) == (str(saved), 77)
    assert (loaded.parameters, loaded.weight_bytes) == (PARAMETERS, 4 * PARAMETERS)
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("naïve")) == "naïve"


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_precision_is_the_one_asked_for(saved: Path, dtype: str, size: int) -> None:
    loaded = load_model(str(saved), dtype=dtype, device="auto" if not torch.cuda.is_available() else "cpu")
    assert {weight.dtype for weight in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.weight_bytes == size * PARAMETERS


def test_revision_follows_the_weights_and_not_the_place(folder: Path, saved: Path) -> None:
    before = resolve(str(saved)).revision
    assert before is not None and before.startswith("content:")
    assert resolve(str(folder)).revision == before
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert resolve(str(folder)).revision != before
    assert load_model(str(folder), dtype="float32", device="cpu").revision == resolve(str(folder)).revision


def test_names(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBENCH_CACHE", "/c")
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert resolve("demo:target") == ModelSource("demo:target", "/c/models/demo-target", f"sha256:{sha256}", "embedded")
    assert resolve("org/model") == ModelSource("org/model", "org/model", None, "hub")
    assert resolve("org/model@v2") == ModelSource("org/model@v2", "org/model", "v2", "hub")
    assert resolve("org/model@refs/pr/1").revision == "refs/pr/1"
    assert (resolve(str(saved)).location, resolve(str(saved)).kind) == (str(saved), "directory")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("demo:tarjet", "there is no embedded model demo:tarjet. Did you mean demo:target?"),
        (
            "demo:x",
            "there is no embedded model demo:x. The embedded models are demo:target, demo:draft, demo:gemma and "
            "demo:eagle3.",
        ),
        ("./nowhere", "./nowhere does not exist. Name a directory"),
        ("a/b/c", "a/b/c does not exist. Name a directory"),
        (__file__, f"{__file__} is a file, not a model directory. Name a directory"),
        (" ", "the model has no name. Name a directory, a hub id, or demo:target."),
        ("~no-such-user/model", "no such home directory (~no-such-user/model). Write the path in full."),
        (f"/{'a' * 300}", "cannot read the path: File name too long (/aaaa"),
    ],
)
def test_names_of_nothing(name: str, line: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert str(caught.value).startswith(line)


def test_a_name_that_is_too_long_for_a_file_is_none() -> None:
    assert resolve("a" * 300).kind == "hub"


def test_the_home_directory_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBENCH_CACHE", "~no-such-user/cache")
    assert kind_of("~no-such-user/model") is None
    for read in (
        lambda: find_head("~no-such-user/model"),
        lambda: model_file("~no-such-user/model", "directory"),
        lambda: find_launch("~no-such-user/vllm.yaml"),
        lambda: AnswerLog("~no-such-user/vllm.log").survey(),
        cache_root,
    ):
        with pytest.raises(UsageError, match="no such home directory"):
            read()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lead_nowhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "gone")


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda f: (f / "config.json").unlink(), "{f} has no config.json, so it is not a transformers model"),
        (lambda f: (f / "config.json").write_text("{"), "the config.json of {f} is not valid JSON"),
        (lambda f: (f / "tokenizer.json").unlink(), "{f} has no tokenizer: none of tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "{f} has no weights: no *.safetensors file"),
        (only_pickle, "{f} has its weights in pytorch_model.bin only"),
        (lambda f: (f / "model.safetensors").rename(f / "m.gguf"), "{f} has its weights in GGUF only"),
        (lead_nowhere, "a file of the model cannot be read: No such file or directory"),
        (cut_weights, "the weights of {f} are truncated or damaged"),
        (drop_weight, "1 of the weights of {f} are missing, model.layers.1.mlp.up_proj.weight first"),
        (lambda f: set_config(f, vocab_size=300), "the weights of {f} do not fit its config.json"),
        (lambda f: set_config(f, model_type="vit"), "{f} is not a causal language model"),
        (lambda f: set_config(f, model_type="new"), "this version of transformers does not know the kind of model"),
    ],
)
def test_what_can_be_wrong_with_a_directory(folder: Path, damage: Callable[[Path], object], what: str) -> None:
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), dtype="float32", device="cpu")
    assert caught.value.what.startswith(what.format(f=folder))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["tokenizer.json", "tiktoken.model", "sentencepiece.bpe.model"])
def test_files_of_tokenizers(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="has no tokenizer"):
        require_tokenizer(tmp_path)
    (tmp_path / name).touch()
    require_tokenizer(tmp_path)


def test_own_code_runs_only_when_allowed_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    ran = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(ran)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    set_config(folder, model_type="own", auto_map=own)
    for allowed in ((), ("another/model",)):
        with pytest.raises(ModelError, match=f"runs its own Python code .*--trust-remote-code {folder}"):
            load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=allowed)
    assert not ran.exists()
    loaded = load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=frozenset({str(folder)}))
    assert ran.exists()
    assert type(loaded.model).__name__ == "Own"


def test_tokenizer_alone_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_tokenizer(str(folder)).eos_token_id == 0


@pytest.mark.parametrize(("device", "device_map"), [("cpu", None), ("cuda", {"": "cuda"})])
def test_what_transformers_is_asked_for(
    saved: Path, monkeypatch: pytest.MonkeyPatch, device: str, device_map: dict[str, str] | None
) -> None:
    asked: dict[str, object] = {}

    def note(location: str, **kwargs: object) -> None:
        asked.update(kwargs, conversion_off=os.environ.get("DISABLE_SAFETENSORS_CONVERSION"))
        raise RuntimeError("enough")

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", note)
    monkeypatch.setattr("specbench.models.load.resolve_device", lambda device: device)
    with pytest.raises(ModelError, match="enough"):
        load_model(str(saved), dtype="bfloat16", device=device)
    assert asked == {
        "dtype": torch.bfloat16,
        "use_safetensors": True,
        "attn_implementation": "sdpa",
        "device_map": device_map,
        "output_loading_info": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "conversion_off": "1",
    }


def test_out_of_memory_is_one_line(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(ModelError, match="out of memory while loading") as caught:
        load_model(str(saved), dtype="float32", device="cpu")
    assert caught.value.where == "CUDA out of memory. Tried to allocate 2 GiB."


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert (resolve_device("auto"), resolve_device("cpu")) == ("cpu", "cpu")
    for absent in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ConfigError, match=f"has no {absent.split(':')[0]}"):
            resolve_device(absent)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (resolve_device("auto"), resolve_device("cuda:1")) == ("cuda", "cuda:1")
    with pytest.raises(ConfigError, match=r"there is no cuda:2: 2 GPU\(s\) found"):
        resolve_device("cuda:2")
    for odd in ("tpu", "cpu:1", "cuda:x", ""):
        with pytest.raises(ConfigError, match="there is no device"):
            resolve_device(odd)


def test_unknown_precision(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no dtype int8\. Use float32, bfloat16, float16\."):
        load_model(str(saved), dtype="int8", device="cpu")


def test_importing_the_room_is_cheap() -> None:
    code = (
        "import sys, specbench.models as m\n"
        "m.resolve('demo:target')\n"
        "print(sorted({'torch', 'transformers', 'gguf', 'huggingface_hub'} & set(sys.modules)), m.__all__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("[] ['LoadedModel', ")
