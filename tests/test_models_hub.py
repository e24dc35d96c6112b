"""The hub's answers and silences, without a network."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.utils
import pytest
from huggingface_hub import HfApi, errors

from specbench.errors import ModelError
from specbench.models.hub import HubState, explain, look_up, no_conversion_service

httpx: Any = huggingface_hub.utils.httpx


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "http://hub.test/x"))
    return kind("the hub's long answer\nover two lines", response=response)


def wrapped(error: Exception) -> OSError:
    """As transformers raises it."""
    outer = OSError("There was a problem. See https://hub.test")
    outer.__cause__ = error
    return outer


def set_hub(monkeypatch: pytest.MonkeyPatch, reply: object) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def model_info(self: HfApi, repo: str, *, revision: str | None, timeout: float) -> object:
        asked.append((repo, revision))
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(HfApi, "model_info", model_info)
    return asked


def listing(*names: str) -> SimpleNamespace:
    return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in names])


def test_commit_is_pinned_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set_hub(monkeypatch, listing("config.json", "model.safetensors"))
    assert look_up("org/model", "v2") == HubState("c0ffee", local_only=False)
    assert asked == [("org/model", "v2")]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["config.json", "pytorch_model.bin"], "org/model has its weights in pytorch_model.bin only"),
        (["config.json", "model-q4.gguf"], "org/model has its weights in GGUF only"),
        (["README.md"], "org/model has no weights"),
    ],
)
def test_other_weights_are_refused_before_any_download(
    monkeypatch: pytest.MonkeyPatch, names: list[str], what: str
) -> None:
    set_hub(monkeypatch, listing(*names))
    with pytest.raises(ModelError, match=what):
        look_up("org/model", None)


@pytest.mark.parametrize(
    ("error", "what", "hint"),
    [
        (answer(errors.RepositoryNotFoundError, 401), "org/m is neither a directory here nor a model", "spelling"),
        (answer(errors.GatedRepoError, 403), "org/m is gated", "Accept its terms"),
        (answer(errors.RevisionNotFoundError, 404), "org/m has no such revision", "after the @"),
        (answer(errors.HfHubHTTPError, 401), "the hub refuses access to org/m", "hf auth login"),
        (errors.HFValidationError("bad id"), "org/m is neither a directory here nor a model", "spelling"),
        (errors.LocalEntryNotFoundError("gone"), "the hub cannot be reached, and the local cache", "network"),
        (httpx.ConnectError("no route"), "the hub cannot be reached, and the local cache", "network"),
        (OSError(28, "No space left on device"), "no space left on the disk while fetching org/m", "HF_HOME"),
    ],
)
def test_each_failure_is_named_bare_or_wrapped(error: Exception, what: str, hint: str) -> None:
    for raised in (error, wrapped(error)):
        found = explain(raised, "org/m")
        assert found.what.startswith(what)
        assert hint in str(found.hint)


def test_unknown_failure_is_one_line_with_its_type() -> None:
    found = explain(RuntimeError("first line\nsecond line"), "org/m")
    assert str(found) == "org/m could not be loaded (RuntimeError: first line)."


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), errors.OfflineModeIsEnabled("offline")])
def test_without_a_network_the_local_cache_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    set_hub(monkeypatch, error)
    found = {"path": None}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: found["path"])
    with pytest.raises(ModelError, match="the hub cannot be reached, and nothing of it is in the local cache"):
        look_up("org/m", None)
    found["path"] = str(tmp_path / "config.json")
    assert look_up("org/m", "v2") == HubState("v2", local_only=True)


def test_no_conversion_service_is_asked_and_the_environment_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "0"):
        if before is None:
            monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
        else:
            monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", before)
        with no_conversion_service():
            assert os.environ["DISABLE_SAFETENSORS_CONVERSION"] == "1"
        assert os.environ.get("DISABLE_SAFETENSORS_CONVERSION") == before
