"""A model on the Hugging Face hub, asked one question before any download, so that errors come first; and what
transformers and the hub print and raise: nothing, and one line that says what to do. Both wrap their errors several
deep, so the whole chain is read; where they share a type (OSError, ValueError), the text decides.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from specbench.errors import ModelError
from specbench.models.directory import ADAPTER_FILE, INDEX, require_safetensors
from specbench.models.memory import is_out_of_memory


def explain(error: BaseException, name: str) -> ModelError:
    """The ModelError for whatever loading `name` raised."""
    if isinstance(error, ModelError):
        return error
    chain = _chain(error)
    found = _of_hub(chain, name) or _of_machine(chain, name) or _of_files(chain, name)
    first = chain[0]
    if found is not None:
        what, hint, *shows = found
        return ModelError(what, where=_first_line(first) if shows else None, hint=hint)
    kind = os.strerror(first.errno) if isinstance(first, OSError) and first.errno else _first_line(first)
    return ModelError(f"{name} could not be loaded", where=f"{type(first).__name__}: {kind}")


@contextmanager
def loading(name: str, *, show_downloads: bool = False) -> Iterator[None]:
    """Quiet, and what is raised inside the block is a ModelError about `name`."""
    try:
        with quiet_transformers(show_downloads=show_downloads):
            yield
    except Exception as error:
        raise explain(error, name) from error


def network_errors() -> tuple[type[BaseException], ...]:
    """What a call to the hub raises when there is no network, or when the user has turned it off."""
    import huggingface_hub.utils
    from huggingface_hub.errors import OfflineModeIsEnabled

    # The HTTP library behind the hub's client has changed with its versions: ask for the one in use.
    client: Any = huggingface_hub.utils
    return (OfflineModeIsEnabled, client.httpx.TransportError)


# What is wrong, the hint, and whether what the library says is shown.
Told: TypeAlias = tuple[str, str] | tuple[str, str, bool] | None


def _of_hub(chain: list[BaseException], name: str) -> Told:
    from huggingface_hub import errors as hub

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if any_is(hub.GatedRepoError):
        return f"{name} is gated", "Accept its terms on its hub page, log in with `hf auth login`, and run again."
    if any_is(hub.RevisionNotFoundError):
        return f"{name} has no such revision", "Check the part after the @."
    if any_is(hub.RepositoryNotFoundError, hub.HFValidationError):
        what = f"{name} is neither a directory here nor a model on the hub that you may see"
        return what, "Check the spelling; for a private model log in with `hf auth login`."
    if any(isinstance(link, hub.HfHubHTTPError) and link.response.status_code in (401, 403) for link in chain):
        return f"the hub refuses access to {name}", "Log in with `hf auth login`, and run again."
    if any_is(hub.LocalEntryNotFoundError, *network_errors()):
        what = f"the hub cannot be reached, and the local cache does not hold all of {name}"
        return what, "Check the network, or name a local model directory or demo:target."
    return None


def _of_machine(chain: list[BaseException], name: str) -> Told:
    if any(map(is_out_of_memory, chain)):
        hint = "Use a smaller model, --dtype bfloat16, or a device with more memory."
        return f"out of memory while loading {name}", hint, True
    if any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in chain):
        hint = "Free some space, or set HF_HOME to a folder on another disk."
        return f"no space left on the disk while fetching {name}", hint
    return None


# A part of what transformers says of files that are there and cannot be used, what is wrong, and the hint.
_OF_FILES = (
    (
        "trust_remote_code",
        "{name} runs its own Python code when it is loaded",
        "Read that code, then allow it by name: --trust-remote-code {name}",
    ),
    (
        "Unrecognized configuration class",
        "{name} is not a causal language model",
        "Name a text generation model.",
    ),
    (
        "does not recognize this architecture|Unrecognized model",
        "this version of transformers does not know the kind of model that {name} is",
        "Upgrade transformers, or check the model_type in its config.json.",
    ),
    (
        "valid JSON file",
        "the config.json of {name} is not valid JSON",
        "Copy or download the model again.",
    ),
    (
        "size mismatch|ignore_mismatched_sizes",
        "the weights of {name} do not fit its config.json",
        "Copy both from the same model.",
    ),
    (
        "backend tokenizer",
        "the tokenizer of {name} cannot be built from the files it has",
        "Add its tokenizer.json, or install what it needs: sentencepiece or tiktoken.",
    ),
)


def _of_files(chain: list[BaseException], name: str) -> Told:
    text = " ".join(str(link) for link in chain)
    if any(type(link).__name__ == "SafetensorError" for link in chain):
        return f"the weights of {name} are truncated or damaged", "Copy or download the model again.", True
    for said, what, hint in _OF_FILES:
        if re.search(said, text):
            return what.replace("{name}", name), hint.replace("{name}", name)
    return None


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


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


_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class HubState:
    """What the hub says of a model: the commit to load, or, where it cannot be asked, that the local cache must do."""

    revision: str | None
    local_only: bool


def look_up(repo: str, revision: str | None) -> HubState:
    """Ask the hub once. Raises ModelError: no such model or revision, no access, no safetensors, or no network and
    nothing in the local cache."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_S)
    except Exception as error:
        if isinstance(error, network_errors()):
            return _cached(repo, revision, error)
        raise explain(error, repo) from error
    require_safetensors([file.rfilename for file in info.siblings or []], repo)
    return HubState(info.sha, local_only=False)


def described(repo: str, state: HubState) -> Path:
    """The local folder of the model at that commit, with what says which files its weights are, and without these: it
    can be checked before they are fetched. transformers finds it in the cache then. Raises ModelError."""
    return _snapshot(repo, state, "config.json", ADAPTER_FILE, f"*{INDEX}")


def fetched(name: str, revision: str | None) -> Path:
    """The folder of the weights of a checkpoint, which are fetched where they are not here. Raises ModelError."""
    state = HubState(revision, local_only=False)
    return _snapshot(name.partition("@")[0], state, "config.json", "*.safetensors", f"*{INDEX}")


def _snapshot(repo: str, state: HubState, *patterns: str) -> Path:
    from huggingface_hub import snapshot_download

    with loading(repo):
        return Path(
            snapshot_download(
                repo, revision=state.revision, local_files_only=state.local_only, allow_patterns=[*patterns]
            )
        )


def cached_folder(repo: str, revision: str | None) -> Path | None:
    """Where the local cache has the model's small files; None where it has not. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    except HFValidationError:
        return None  # a name that only a server knows
    return Path(found).parent if isinstance(found, str) else None


@contextmanager
def no_conversion_service() -> Iterator[None]:
    """Keep transformers from sending the model's id and the user's token to a web service that would convert pickled
    weights: nobody asked for that."""
    key = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _cached(repo: str, revision: str | None, error: Exception) -> HubState:
    if cached_folder(repo, revision) is not None:
        return HubState(revision, local_only=True)
    raise ModelError(
        f"{repo} is no directory here, the hub cannot be reached, and nothing of it is in the local cache",
        where=str(error)[:120],
        hint="Check the network, or name a local model directory or demo:target.",
    ) from error
