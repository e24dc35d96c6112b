"""Words that must not get out, a model that writes one of them, and the search for them in files and on terminals."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import struct
import tempfile
from contextlib import contextmanager

import pyarrow.ipc
import torch
from conftest import CANARY
from PIL import Image
from tiny import save_with_byte_tokenizer, tiny_llama
from tokenizers.pre_tokenizers import ByteLevel

WRITTEN = "ambidextrous"  # what the target below writes, one letter a token
KEY = "s3cret-key"
# What is looked for, by where it was planted. Pieces, for a cut text is a leak too.
CANARIES = {
    "prompt": CANARY.split("-")[0],
    "system message": "marzipan",
    "system prompt": "zeppelin",
    "earlier answer": "walrus",
    "output": WRITTEN[:7],
    "key": KEY,
}
LOGGERS = ("transformers", "datasets", "huggingface_hub")  # they may not tell the root logger
ALPHABET = sorted(ByteLevel.alphabet())


def parrot(folder, follows):
    """A model that writes `follows[x]` after x, and x again where nothing follows. It reads the last letter alone."""
    model = tiny_llama(257, seed=3, hidden_size=64, num_attention_heads=1, num_hidden_layers=2)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    letters = torch.nn.functional.normalize(torch.randn(257, 64), dim=1)
    model.model.embed_tokens.weight.copy_(letters)
    model.lm_head.weight.zero_()
    for token, letter in enumerate(letters):
        after = follows.get(ALPHABET[token], ALPHABET[token]) if token < 256 else ALPHABET[0]
        model.lm_head.weight[ALPHABET.index(after)] += 10 * letter
    return save_with_byte_tokenizer(model, folder)


@contextmanager
def everything_said():
    """What libraries print or log past the stdout and stderr of the command."""
    heard, kept = [], [os.dup(1), os.dup(2)]
    logged = logging.StreamHandler(io.StringIO())
    loggers = [logging.getLogger(name) for name in (None, *LOGGERS)]
    for logger in loggers:
        logger.addHandler(logged)
    with tempfile.TemporaryFile() as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield heard
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
            for logger in loggers:
                logger.removeHandler(logged)
            file.seek(0)
            heard.append(file.read() + logged.stream.getvalue().encode())


def ids_of(text):
    return [ALPHABET.index(letter) for letter in text]


def encodings(canary):
    """How a text may lie in a file."""
    yield canary.encode()
    yield canary.encode("utf-16-le")
    yield canary.encode().hex().encode()
    for shift in range(3):
        # All but the letters at the ends, which share a character with their neighbours.
        code = base64.b64encode(b" " * shift + canary.encode())
        yield code[-(-4 * shift // 3) : 4 * (shift + len(canary)) // 3].lower()
    ids = ids_of(canary)
    yield from (struct.pack(f"<{len(ids)}{size}", *ids) for size in "hiq")


def heard_in(data):
    """Where the canaries were planted that are in these bytes."""
    low = data.lower()
    numbers = b" " + b" ".join(re.findall(rb"\d+", data)) + b" "
    found = {name for name, canary in CANARIES.items() if any(code in low for code in encodings(canary))}
    ids = {name: " ".join(map(str, ids_of(canary))).encode() for name, canary in CANARIES.items()}
    return found | {name for name, text in ids.items() if b" " + text + b" " in numbers}


def readings(path):
    """The bytes of a file, and what is packed into them."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".arrow":
        with pyarrow.ipc.open_stream(io.BytesIO(data)) as stream:
            yield json.dumps([batch.to_pylist() for batch in stream]).encode()
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            yield json.dumps(image.info, default=str).encode()
    for packed in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
        yield base64.b64decode(packed)


def leaks(folder):
    """{path: where the canaries were planted that are in it} of every file below `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {path: set().union(*map(heard_in, readings(path))) for path in files}
    return {path.relative_to(folder).as_posix(): names for path, names in found.items() if names}
