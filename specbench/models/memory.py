"""Does it fit? What a model and its KV cache need, and what is free, before anything is allocated.

On a CPU this cannot be left to the allocator: the system promises more than it has, and kills the process later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from specbench.errors import EngineError, ModelError, SpecbenchError
from specbench.models.family import cache_layers, memory_of

_CGROUP = Path("/sys/fs/cgroup")

# How torch and the libraries below it say that an allocation failed, where there is no class for it.
_WORDS = ("allocate memory", "not enough memory", "out of memory", "alloc_cpu", "alloc_failed", "bad_alloc")


class ModelMemoryError(EngineError):
    """A forward pass did not fit. `reader` is the object that was asked for it."""

    def __init__(self, reader: object, where: str) -> None:
        super().__init__("Out of memory", where=where, hint="Use shorter prompts or --limit.")
        self.reader = reader


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: a GPU has a class of its own for it, a CPU only says it in words."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError | ModelMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a failed allocation inside the block into EngineError; other errors pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SpecbenchError) or not is_out_of_memory(error):
            raise
        raise EngineError(
            "Out of memory", hint="What was measured is kept. Use shorter prompts, smaller models or a smaller batch."
        ) from None


def cache_bytes(config: Any, tokens: int, batch: int, element_bytes: int) -> int:
    """What `batch` sequences of `tokens` tokens keep, for a transformers configuration: keys and values over the layers
    that keep any (heads that have keys of their own x (key + value width) x tokens), keys of an index, and states,
    whose size does not grow with the text; x bytes of an element. Windows that transformers cuts itself are left out,
    and so are states of a make that is not known here: it is the least that a cache takes."""
    numbers = 0
    for layer, memory in _layers(config.get_text_config(decoder=True)):
        if memory in ("keys", "both", "indexed", "cropped"):
            numbers += tokens * _kept_per_token(layer)
        if memory == "indexed":
            numbers += tokens * int(getattr(layer, "index_head_dim", None) or 0)
        if memory in ("states", "both"):
            numbers += _states(layer)
    return numbers * element_bytes * batch


def cache_bytes_per_token(config: Any, element_bytes: int) -> int:
    """By how much the cache of one sequence grows with each token."""
    return cache_bytes(config, 1, 1, element_bytes) - cache_bytes(config, 0, 1, element_bytes)


def _layers(text: Any) -> list[tuple[Any, str]]:
    """The configuration of every layer, which may have widths of its own, and what it keeps. No layers where it is not
    told how many there are."""
    try:
        each = list(text.per_layer_config)
    except AttributeError:  # a model with code of its own
        each = [text] * int(getattr(text, "num_hidden_layers", 0))
    try:
        kept = cache_layers(text)
    except ModelError:
        kept = []
    return [(layer, "keys" if cached is None else memory_of(cached)) for layer, cached in zip_longest(each, kept)]


def _states(layer: Any) -> int:
    """Numbers in the states of one layer: of a convolution, channels x kernel, and of a recurrence, for each head a
    matrix. By what families call their sizes; 0 where none of these is known."""

    def size(*names: str) -> int:
        return next((int(value) for name in names if (value := getattr(layer, name, None)) is not None), 0)

    kernel = size("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel", "conv_kernel_size")
    if keys := size("linear_num_key_heads", "linear_num_heads"):  # delta rules
        values = size("linear_num_value_heads", "linear_num_heads")
        key, value = (size(f"linear_{name}_head_dim", "linear_head_dim") for name in ("key", "value"))
        return (2 * keys * key + values * value) * kernel + values * key * value
    if state := size("mamba_d_state", "ssm_state_size", "state_size"):  # Mamba 2, and 1 without groups
        heads = size("mamba_num_heads") * size("mamba_head_dim")
        width = size("mamba_d_ssm") or heads or int(size("mamba_expand", "expand") * layer.hidden_size)
        groups = size("mamba_n_groups", "mamba_ngroups", "n_groups")
        return (width + 2 * groups * state) * kernel + width * state
    if length := size("conv_L_cache"):  # LFM2
        return int(layer.hidden_size) * length
    if hasattr(layer, "linear_attn_alpha_factor"):  # MiniMax
        return size("num_attention_heads") * size("head_dim") ** 2
    if size("number_of_conv_states") == 4:  # Inkling: of keys, values and what both parts of a layer add
        return 2 * (size("num_key_value_heads") * size("head_dim") + int(layer.hidden_size)) * kernel
    return 0


def _kept_per_token(layer: Any) -> int:
    """Numbers that one layer keeps of one token; 0 for one without attention heads."""
    queries = int(getattr(layer, "num_attention_heads", None) or getattr(layer, "num_heads", None) or 0)
    if not queries:
        return 0
    if getattr(layer, "kv_lora_rank", None):  # the latent, and keys of positions that all heads share
        return int(layer.kv_lora_rank + layer.qk_rope_head_dim)
    heads = int(getattr(layer, "num_key_value_heads", None) or queries)
    if getattr(layer, "multi_query", False) and not getattr(layer, "new_decoder_architecture", False):
        heads = 1
    width = int(getattr(layer, "head_dim", None) or layer.hidden_size // queries)
    return heads * (width + int(getattr(layer, "v_head_dim", None) or width))


def pass_bytes(config: Any, tokens: int, batch: int, element_bytes: int) -> int:
    """About what one pass over all these tokens holds beside weights and cache: the hidden states of one layer."""
    text = config.get_text_config(decoder=True)
    hidden = int(getattr(text, "hidden_size", 0))
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list | tuple) else inner
    return int((4 * hidden + 3 * widest) * element_bytes * tokens * batch)


def weight_bytes(model: Any) -> int:
    """Bytes of all weights, tied ones once; also of a model on the meta device."""
    return sum(weight.numel() * weight.element_size() for weight in weights(model))


def weights(model: Any) -> list[Any]:
    """The weights of a model, tied ones once: also where its head is a copy of the embedding in another order."""
    head = model.get_output_embeddings()
    copy = head.weight if getattr(head, "copies", False) else None
    return [weight for weight in model.parameters() if weight is not copy]


def step_bytes(model: Any) -> int:
    """Bytes of weights that one token has to read: all but the input embedding, of which it reads a row, and of each
    set of experts the share that a token is routed to."""
    config = model.config.get_text_config()
    experts, chosen = expert_count(config), getattr(config, "num_experts_per_tok", None)
    share = chosen / experts if experts and chosen else 1.0
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    total = 0.0
    for name, weight in model.named_parameters():
        if weight is not embedding.weight or tied:
            total += weight.numel() * weight.element_size() * (share if ".experts." in name else 1.0)
    return int(total)


def expert_count(config: Any) -> int:
    """Experts of a layer that tokens are routed between; 0 for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(count) for name in names if (count := getattr(config, name, None))), 0)


def available_bytes(device: str) -> int:
    """Memory that a new allocation on `device` can have now."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and does not use is free to us.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = _container_limit()
    return free if limit is None else min(free, max(0, limit - psutil.Process().memory_info().rss))


def _container_limit() -> int | None:
    """The memory limit of the control group, which the system's own count of free memory does not know."""
    try:
        text = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
