"""What transformers and the hub raise, as one line that says what to do.

Both wrap their errors several deep, so the whole chain is read; where they share a type (OSError, ValueError), the
text decides.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from specbench.errors import ModelError
from specbench.models.memory import is_out_of_memory


def explain(error: BaseException, name: str) -> ModelError:
    """The ModelError for whatever loading `name` raised."""
    if isinstance(error, ModelError):
        return error
    chain = _chain(error)
    return _of_hub(chain, name) or _of_memory(chain, name) or _of_disk(chain, name) or _of_content(chain, name)


def network_errors() -> tuple[type[BaseException], ...]:
    """What a call to the hub raises when there is no network, or when the user has turned it off."""
    import huggingface_hub.utils
    from huggingface_hub.errors import OfflineModeIsEnabled

    # The HTTP library behind the hub's client has changed with its versions: ask for the one in use.
    client: Any = huggingface_hub.utils
    return (OfflineModeIsEnabled, client.httpx.TransportError)


def _of_hub(chain: list[BaseException], name: str) -> ModelError | None:
    from huggingface_hub import errors as hub

    if _any(chain, hub.GatedRepoError):
        return ModelError(
            f"{name} is gated", hint="Accept its terms on its hub page, log in with `hf auth login`, and run again."
        )
    if _any(chain, hub.RevisionNotFoundError):
        return ModelError(f"{name} has no such revision", hint="Check the part after the @.")
    if _any(chain, hub.RepositoryNotFoundError, hub.HFValidationError):
        return ModelError(
            f"{name} is neither a directory here nor a model on the hub that you may see",
            hint="Check the spelling; for a private model log in with `hf auth login`.",
        )
    if any(isinstance(link, hub.HfHubHTTPError) and link.response.status_code in (401, 403) for link in chain):
        return ModelError(f"the hub refuses access to {name}", hint="Log in with `hf auth login`, and run again.")
    if _any(chain, hub.LocalEntryNotFoundError, *network_errors()):
        return ModelError(
            f"the hub cannot be reached, and the local cache does not hold all of {name}",
            hint="Check the network, or name a local model directory or demo:target.",
        )
    return None


def _of_memory(chain: list[BaseException], name: str) -> ModelError | None:
    if any(map(is_out_of_memory, chain)):
        return ModelError(
            f"out of memory while loading {name}",
            where=_first_line(chain[0]),
            hint="Use a smaller model, --dtype bfloat16, or a device with more memory.",
        )
    return None


def _of_disk(chain: list[BaseException], name: str) -> ModelError | None:
    if any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in chain):
        return ModelError(
            f"no space left on the disk while fetching {name}",
            hint="Free some space, or set HF_HOME to a folder on another disk.",
        )
    return None


def _of_content(chain: list[BaseException], name: str) -> ModelError:
    """The files are there, and cannot be used."""
    text = " ".join(str(link) for link in chain)
    if "trust_remote_code" in text:
        return ModelError(
            f"{name} runs its own Python code when it is loaded",
            hint=f"Read that code, then allow it by name: --trust-remote-code {name}",
        )
    if "Unrecognized configuration class" in text:
        return ModelError(f"{name} is not a causal language model", hint="Name a text generation model.")
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return ModelError(
            f"this version of transformers does not know the kind of model that {name} is",
            hint="Upgrade transformers, or check the model_type in its config.json.",
        )
    if "valid JSON file" in text:
        return ModelError(f"the config.json of {name} is not valid JSON", hint="Copy or download the model again.")
    if any(type(link).__name__ == "SafetensorError" for link in chain):
        return ModelError(
            f"the weights of {name} are truncated or damaged",
            where=_first_line(chain[0]),
            hint="Copy or download the model again.",
        )
    if "size mismatch" in text or "ignore_mismatched_sizes" in text:
        return ModelError(f"the weights of {name} do not fit its config.json", hint="Copy both from the same model.")
    if "backend tokenizer" in text:
        return ModelError(
            f"the tokenizer of {name} cannot be built from the files it has",
            hint="Add its tokenizer.json, or install what it needs: sentencepiece or tiktoken.",
        )
    kind = os.strerror(chain[0].errno) if isinstance(chain[0], OSError) and chain[0].errno else _first_line(chain[0])
    return ModelError(f"{name} could not be loaded", where=f"{type(chain[0]).__name__}: {kind}")


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _any(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(link, kinds) for link in chain)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
