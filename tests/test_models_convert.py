"""Conversion of a real GGUF, tiny and written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from specbench.models.embedded import convert
from specbench.models.hub import quiet_transformers

WIDTH, FEED_FORWARD, VOCABULARY = 32, 64, 258
EMBEDDING = np.random.default_rng(1).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, 258 tokens: an end token, the 256 bytes, and one merge."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<end>", *sorted(ByteLevel.alphabet()), "ab"])
    writer.add_token_types([3, *[1] * 257])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
    shapes |= {"ffn_gate": (FEED_FORWARD, WIDTH), "ffn_up": (FEED_FORWARD, WIDTH), "ffn_down": (WIDTH, FEED_FORWARD)}
    tensors = {f"blk.0.{name}.weight": random.normal(size=shape) for name, shape in shapes.items()}
    tensors |= {f"blk.0.{name}.weight": np.ones(WIDTH) for name in ("attn_norm", "ffn_norm")}
    tensors |= {"token_embd.weight": EMBEDDING, "output_norm.weight": np.ones(WIDTH)}
    for name, value in tensors.items():
        writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_becomes_a_bfloat16_safetensors_directory_in_silence(
    gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    convert(gguf, tmp_path)
    assert capfd.readouterr() == ("", "")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(EMBEDDING).bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.encode("abc") == [257, tokenizer.get_vocab()["c"]]


def test_quiet_gives_back_what_it_took() -> None:
    logging.set_verbosity_info()
    try:
        with quiet_transformers():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
