"""Hub data sets, with the library's network calls replaced."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from specbench.errors import WorkloadError
from specbench.workload import load_workload

SECRET = "zanzibar"
ROWS = [{"question_id": 81, "category": "math", "turns": ["one", "two"]}, {"question_id": 82, "turns": ["three"]}]


class Hub:
    """Stands in for the hub: what was asked of it, and what it answers or raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, splits: list[str], error: Exception | None = None) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.splits = splits
        self.error = error
        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: self.splits)
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def load(self, name: str, config: str | None, *, split: str) -> datasets.Dataset:
        self.asked.append((name, config, split))
        if self.error:
            raise self.error
        return datasets.Dataset.from_list(ROWS)


def failure(source: str) -> str:
    with pytest.raises(WorkloadError) as caught:
        load_workload(source)
    line = caught.value.line()
    assert caught.value.hint and caught.value.where == source
    assert SECRET not in line and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hub:org/name", ("org/name", None, "train")),
        ("hub:gsm8k:main@test", ("gsm8k", "main", "test")),
        ("hub:org/a.b-c@test[:10]", ("org/a.b-c", None, "test[:10]")),
    ],
)
def test_id_config_and_split(monkeypatch: pytest.MonkeyPatch, source: str, asked: tuple[Any, ...]) -> None:
    hub = Hub(monkeypatch, ["train"])
    workload = load_workload(source)
    assert hub.asked == [asked]
    assert [(prompt.id, prompt.category) for prompt in workload.prompts] == [("81", "math"), ("82", None)]
    assert [prompt.messages[0].content for prompt in workload.prompts] == ["one", "three"]


def test_several_splits_must_be_chosen_from(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, ["train", "test"])
    assert "several splits: train, test (hub:gsm8k:main). Name one: hub:gsm8k:main@train." in failure("hub:gsm8k:main")
    assert hub.asked == []


@pytest.mark.parametrize("source", ["hub:", "hub:../prompts", "hub:/etc/passwd", "hub:a/b/c", "hub:a::b", "hub:a@"])
def test_malformed_sources_reach_no_network(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    hub = Hub(monkeypatch, ["train"])
    assert "not a hub source" in failure(source)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ConnectionError("Couldn't reach"), "the hub cannot be reached (hub:x@y). Check the network"),
        (datasets.exceptions.DatasetNotFoundError("gated"), "no such data set on the hub, or it is private or gated"),
        (ValueError('Unknown split "y". Should be one of ["test"].'), 'Unknown split "y". Should be one of ["test"]'),
        (ValueError("Config name is missing.\nPlease pick one"), "Config name is missing. Please pick one"),
        (ValueError(f"cannot parse {SECRET}"), "the data set could not be loaded (ValueError)"),
        (RuntimeError(f"Dataset scripts are no longer supported {SECRET}"), "could not be loaded (RuntimeError)"),
    ],
)
def test_what_the_library_raises(monkeypatch: pytest.MonkeyPatch, error: Exception, what: str) -> None:
    Hub(monkeypatch, ["train"], error)
    assert what in failure("hub:x@y")
