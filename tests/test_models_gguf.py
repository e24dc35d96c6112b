"""What the head of a GGUF file says, and what a server of it is taken to need."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from specbench.backends.server import provider
from specbench.backends.server.launch import find_launch
from specbench.backends.server.provider import Starting
from specbench.config import load_config
from specbench.drafters import parse_draft
from specbench.models.gguf import fields_of, server_bytes

MIB = 1 << 20


def written(path: Path, *, heads: object = 4, kept: object = 2, width: object = None) -> Path:
    """A file by llama.cpp's own writer: 2 layers, 4 heads of which 2 keep keys, width 64, a vocabulary after them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_languages(["en", "de"])
    writer.add_block_count(2)
    writer.add_embedding_length(256)
    sizes = {"head_count": heads, "head_count_kv": kept, "key_length": width, "value_length": width}
    for name, value in sizes.items():
        if value is not None:
            kind = {list: gguf.GGUFValueType.ARRAY, str: gguf.GGUFValueType.STRING}
            writer.add_key_value(f"llama.attention.{name}", value, kind.get(type(value), gguf.GGUFValueType.UINT32))
    writer.add_token_list([f"token {number}" for number in range(1000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_what_the_writer_wrote_is_read_up_to_the_tokenizer(tmp_path):
    found = fields_of(written(tmp_path / "a.gguf"))
    own = gguf.GGUFReader(tmp_path / "a.gguf").fields
    told = {key: field.contents() for key, field in own.items() if not key.startswith(("GGUF.", "tokenizer."))}
    assert found == told
    assert found["general.languages"] == ["en", "de"]


@pytest.mark.parametrize(
    "data", [b"", b"GGUF", b"no such file at all, but long enough for a head", b"GGUF" + b"\xff" * 64]
)
def test_what_is_no_such_file_tells_nothing(tmp_path, data):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    assert fields_of(path) == {}
    assert server_bytes(path, 1) is None
    assert fields_of(tmp_path / "none.gguf") == {}


def test_a_server_needs_its_file_and_keys_and_values_of_every_layer(tmp_path):
    def kept(path: Path) -> int:
        each = [server_bytes(path, tokens) for tokens in (0, 1000)]
        assert each[0] == path.stat().st_size + 256 * MIB
        return (each[1] - each[0]) // 1000

    assert kept(written(tmp_path / "a.gguf")) == 2 * 2 * (64 + 64) * 2
    assert kept(written(tmp_path / "b.gguf", width=128)) == 2 * 2 * (128 + 128) * 2
    assert kept(written(tmp_path / "c.gguf", kept=[1, 3])) == (1 + 3) * (64 + 64) * 2
    assert server_bytes(written(tmp_path / "d-00001-of-00002.gguf"), 1) is None  # nobody looks at its other parts


@pytest.mark.parametrize("said", [{"kept": "two"}, {"heads": 0}, {"heads": [0, 0]}, {"width": "wide"}])
def test_what_a_damaged_head_says_is_no_size(tmp_path, said):
    assert server_bytes(written(tmp_path / "a.gguf", **said), 1) is None


def starting(path: Path, clients: int, **more) -> Starting:
    flags = {"engine": "llamacpp", "target": str(path), "draft": ["ngram:n=2"], "gamma": "2"}
    config = load_config(None, flags | {"concurrency": str(clients)})
    return Starting(config, {"ngram:n=2": parse_draft("ngram:n=2")}, config.gamma, 1, **more)


@pytest.mark.parametrize(("free", "clients", "beside"), [(10_000, 4, True), (1_000, 4, False), (1_000, 1, True)])
def test_servers_run_side_by_side_if_memory_holds_them(tmp_path, monkeypatch, free, clients, beside):
    """Each of three needs 256 MiB, and 4096 x 1 KiB for each client: 780 MiB, or 816 with four. Four fifths of what is
    free are there for them."""
    monkeypatch.setattr(provider, "available_bytes", lambda device: free * MIB)
    found = starting(written(tmp_path / "a.gguf"), clients)
    assert (found.at_once, found.kept_apart) == (beside, not beside)
    # Of many clients the servers are started once where they cannot run side by side: a block is then all prompts.
    assert found.prompts_per_start == (None if not beside else 16 if clients == 4 else 8)


def test_what_a_probe_times_takes_turns(tmp_path, monkeypatch):
    """It has two servers up, not three; and where a launch file counts clients, that is about runs."""
    monkeypatch.setattr(provider, "available_bytes", lambda device: 700 * MIB)
    path = written(tmp_path / "a.gguf")
    assert starting(path, 4, synthetic=True).at_once and not starting(path, 4).at_once
    counted = replace(find_launch("llamacpp"), at_once_clients=1)
    monkeypatch.setattr(provider, "find_launch", lambda name: counted)
    assert starting(path, 4, synthetic=True).at_once and not starting(path, 4).at_once
    assert starting(path, 1).at_once


@pytest.mark.parametrize("clients", [1, 4])
def test_servers_of_a_file_that_does_not_tell_its_size_run_side_by_side_for_one_client(tmp_path, clients):
    assert starting(written(tmp_path / "a-00001-of-00002.gguf"), clients).at_once is (clients == 1)


def test_lists_in_lists_without_end_are_no_such_file(tmp_path):
    path = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    path.write_bytes(head + struct.pack("<IQ", 9, 1) * 50_000)
    assert fields_of(path) == {}
