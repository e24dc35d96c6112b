"""A model on the Hugging Face hub: one question before any download, so that errors come first and are clear."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from specbench.errors import ModelError
from specbench.models.convert import quiet_transformers
from specbench.models.directory import ADAPTER_FILE, INDEX, require_safetensors
from specbench.models.failures import explain, network_errors

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
    from huggingface_hub import snapshot_download

    try:
        with quiet_transformers():
            return Path(
                snapshot_download(
                    repo,
                    revision=state.revision,
                    local_files_only=state.local_only,
                    allow_patterns=["config.json", ADAPTER_FILE, f"*{INDEX}"],
                )
            )
    except Exception as error:
        raise explain(error, repo) from error


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
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str):
        return HubState(revision, local_only=True)
    raise ModelError(
        f"{repo} is no directory here, the hub cannot be reached, and nothing of it is in the local cache",
        where=str(error)[:120],
        hint="Check the network, or name a local model directory or demo:target.",
    ) from error
