"""What comes from outside: every number, text and list of it within limits, and no value in what is said of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
from bad_inputs.judging import CANARY
from fake_run import FakeDraft, fake_run
from fake_served import fake_served

from specbench.acceptance.positions import PositionWriter, read_positions
from specbench.config import RunConfig
from specbench.errors import EngineError
from specbench.records import (
    Arm,
    Bandwidth,
    CostPoint,
    Count,
    Counters,
    ReferenceCheck,
    RuledOut,
    Times,
    Trial,
    Window,
)
from specbench.run_record import ModelFacts, Provenance, RunRecord
from specbench.store import RunWriter, read_run, record_json
from specbench.store.record import DivergenceRow, trial_of
from specbench.validation import read_json, strict_json


@dataclass(frozen=True, slots=True)
class Inner:
    count: Count
    kind: Literal["a", "b"]
    more: dict[str, Count] | None = None


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    inner: Inner
    items: tuple[Inner, ...] = ()


GOOD: dict[str, Any] = {"name": "n", "inner": {"count": 1, "kind": "a"}}
INNER = {"count": 1, "kind": "b"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 7}, "name is a number, not text"),
        ({"name": None}, "name is null, not text"),
        ({"inner": CANARY}, "inner is text, not an object"),
        ({"inner": {"count": CANARY, "kind": "a"}}, "inner.count is text, not a whole number"),
        ({"inner": {"count": True, "kind": "a"}}, "inner.count is true or false, not a whole number"),
        ({"inner": {"count": 1.0, "kind": "a"}}, "inner.count is a number, not a whole number"),
        ({"inner": {"count": -1, "kind": "a"}}, "inner.count is below 0"),
        ({"inner": {"count": 10**30, "kind": "a"}}, "inner.count is not a number up to 1e+12"),
        ({"inner": {"count": 10**401, "kind": "a"}}, "inner.count is not a number up to 1e+12"),
        ({"inner": {"count": 1, "kind": CANARY}}, "inner.kind is none of a, b"),
        ({"inner": {"count": 1, "kind": [CANARY]}}, "inner.kind is a list, not text"),
        ({"inner": {}}, "inner lacks count, kind"),
        ({"inner": INNER | {CANARY: 1}}, "inner has a key that this version does not know"),
        ({CANARY: 1}, "the line has a key that this version does not know"),
        ({"inner": INNER | {"more": {CANARY: CANARY}}}, "inner.more[] is text, not a whole number"),
        ({"items": [INNER, INNER | {"count": "1"}]}, "items[1].count is text, not a whole number"),
        ({"items": "none"}, "items is text, not a list"),
    ],
)
def test_the_first_fault_is_named_by_its_place_and_kind(change: dict[str, Any], says: str) -> None:
    assert read_json(Outer, json.dumps(GOOD | {"items": [INNER]}).encode(), "the line").items == (Inner(1, "b"),)
    with pytest.raises(ValueError, match=r"is|has|lacks") as refused:
        read_json(Outer, json.dumps(GOOD | change).encode(), "the line")
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"name": NaN}', "NaN is not JSON"),
        (b'{"name": -Infinity}', "Infinity is not JSON"),
        (b'{"name": 1e999}', "a number is out of range"),
        (b'{"name": "a", "name": 1}', "a key is there twice"),
        (b'{"name"', "Expecting"),
        (b'{"name": "\xff"}', "utf-8"),
    ],
)
def test_what_is_no_json_is_said_as_such(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_json(Outer, data, "the line")


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises((RecursionError, ValueError)):
        read_json(Outer, b'{"name":' + b"[" * 100_000, "the line")


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(ValueError, match=r"the line is not JSON: .*hex escape"):
        read_json(Outer, json.dumps(GOOD | {"name": "\ud800"}).encode(), "the line")


def test_a_list_is_read_up_to_its_first_fault() -> None:
    row = json.loads(json.dumps(asdict(fake_trial()))) | {"drafted": ["a"] * 100_000}
    with pytest.raises(ValueError, match=r"drafted\[0\] is text, not a whole number"):
        trial_of(json.dumps(row).encode())
    from pydantic import TypeAdapter, ValidationError

    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Trial).validate_json(json.dumps(row), strict=True)
    assert refused.value.error_count() == 1


def fake_trial() -> Trial:
    times = Times(0.1, None, None, None, None, 0.2)
    return Trial("p", "0", None, Arm("baseline"), 0, 5, 3, "0", "length", (), (), times)


STORED = (Trial, DivergenceRow, Window, Counters, CostPoint, ReferenceCheck, RuledOut, Bandwidth, RunRecord)


def plain_numbers(kind: Any, seen: set[Any]) -> list[str]:
    """Fields, however deep, of numbers without a limit. The settings have checks of their own."""
    if kind in seen or kind is RunConfig:
        return []
    seen.add(kind)
    found = []
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            inside = parts(hints[field.name])
            found += [f"{kind.__name__}.{field.name}" for part in inside if part in (int, float)]
            found += [name for part in inside for name in plain_numbers(part, seen)]
    return found


def parts(hint: Any) -> list[Any]:
    """What a type is made of; an annotated one, which has its limits, is whole."""
    if hasattr(hint, "__metadata__"):
        return [part for part in parts(hint.__origin__) if part not in (int, float)] + [hint]
    inside = [part for each in get_args(hint) if not isinstance(each, str) for part in parts(each)]
    return inside or [hint]


def test_no_number_of_a_run_folder_is_without_limits() -> None:
    assert [name for kind in STORED for name in plain_numbers(kind, set())] == []


# What cannot be read again is not written.


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    record = RunRecord(status="started", command="sweep", config=RunConfig(), provenance=Provenance("fake engine"))
    (tmp_path / "run").mkdir()
    with RunWriter(tmp_path / "run", record) as found:
        found.update(status="started")
        yield found


@pytest.mark.parametrize(
    "change",
    [
        {"output_tokens": 10**30},
        {"output_tokens": -1},
        {"load_before": float("nan")},
        {"load_before": float("inf")},
        {"prompt_id": "\ud800"},
        {"drafted": (1,), "accepted": (2,)},
        {"output_tokens": 1.5},
    ],
)
def test_a_trial_that_could_not_be_read_again_is_not_stored(writer: RunWriter, change: dict[str, Any]) -> None:
    writer.append(fake_trial())
    with pytest.raises(EngineError, match="is no line of a run") as refused:
        writer.append(replace(fake_trial(), **change))
    assert "not stored" in refused.value.line()
    assert read_run(writer.folder).trials == (fake_trial(),)


def test_a_record_that_could_not_be_read_again_is_not_stored(writer: RunWriter) -> None:
    before = (writer.folder / "run.json").read_bytes()
    for change in ({"trials_planned": 10**30}, {"trials_planned": -1}, {"name": "\ud800"}, {"status": "mended"}):
        with pytest.raises(EngineError, match=r"no run\.json"):
            writer.update(**change)
        assert (writer.folder / "run.json").read_bytes() == before
        assert writer.run.trials_planned is None and writer.run.status == "started"
    large = ModelFacts("a model of 2 TB", parameters=2 * 10**12, weight_bytes=4 * 10**12)
    writer.update(trials_planned=5, target=large, bandwidth=Bandwidth(3.3e12, 3.2e12, 3.4e12, "summing"))
    assert read_run(writer.folder).run.trials_planned == 5


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    stored = fake_served(tmp_path / "r", concurrency=(1, 4), rate=(2.0,))
    assert read_json(RunRecord, record_json(stored.run), "it") == stored.run
    assert strict_json(record_json(stored.run))["served"]["settings"]["baseline"]["speculating"] is False


def test_positions_that_could_not_be_read_again_are_not_stored(tmp_path: Path) -> None:
    fake_run(tmp_path / "r", {"d": FakeDraft({"code": 0.5, "chat": 0.5})}, prompts={"code": 2})
    (text, _) = read_positions(tmp_path / "r")
    (tmp_path / "w").mkdir()
    with PositionWriter(tmp_path / "w") as positions:
        positions.append(text)
        with pytest.raises(EngineError, match="accept is no probability"):
            positions.append(replace(text, repeat=1, accept=text.accept + 2))
    assert len(read_positions(tmp_path / "w")) == 1
