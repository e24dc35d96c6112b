"""GGUF to a transformers directory: safetensors in bfloat16, configuration and tokenizer."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any


def convert(gguf: Path, folder: Path) -> None:
    """Write `gguf` as model.safetensors, config.json and tokenizer files into the existing `folder`.

    Takes 10 to 20 s for each of the demo pair: the file's 98,000 strings are parsed three times in Python.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    # The reader draws its own tqdm bar, which no setting turns off, over the one that the user is shown.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=name,
            dtype=torch.bfloat16,
            # The weights were rounded to 4 or 8 bits once; from here on they are ordinary bfloat16 weights.
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def quiet_transformers(*, show_downloads: bool = False) -> Iterator[None]:
    """No bars and no warnings from transformers inside the block, except the hub's download bars if asked for.

    Everything is as before when the block ends.
    """
    import huggingface_hub.utils
    from transformers.utils import logging

    hub: Any = huggingface_hub.utils  # which does not declare what it re-exports

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()  # which takes the hub's bars along
        if show_downloads and hub_bars:
            hub.enable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
            (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()
