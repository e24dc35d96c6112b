"""Whatever comes in, nothing but a SpecbenchError or a result that holds together comes out."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_inputs.folders import small
from bad_inputs.judging import CANARY
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench.acceptance.positions import read_positions
from specbench.analysis.facts import read_facts
from specbench.config import SETTINGS, RunConfig, load_config
from specbench.errors import ConfigError, StoreError, WorkloadError
from specbench.kinds import MAX_GAMMA
from specbench.records import Times, Trial
from specbench.store import StoredRun, read_run
from specbench.workload import Workload, load_workload, profile

quick = settings(examples(100), suppress_health_check=list(HealthCheck), derandomize=True, database=None)
few = settings(quick, max_examples=examples(60).max_examples)

WORDS = ["prompt", "messages", "role", "content", "user", "system", "tool", "id", "category", "task", "turns", "value"]
WORDS += ["from", "human", "conversations", "body", "instruction", "input", "type", "text", "name", "arguments"]
WORDS += [
    "tools",
    "tool_calls",
    "function",
    "function_call",
    "tool_result",
    "thinking",
    "history",
    "chat_template_kwargs",
]
WORDS += ["assistant", "parts", "kwargs", "data", "extra_body", "tool_choice", "stop", "temperature", "documents"]
# Not a plain word, as prompts are not: plain words are columns, which errors name.
WORDS += [f"{CANARY}, if you please", "\ud800", ""]
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=8)
keys = st.sampled_from(WORDS) | st.text(max_size=4)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
rows = st.lists(values | st.dictionaries(keys, values, max_size=5), max_size=4)


def loaded(name: str, data: bytes, **options: str) -> Workload | None:
    """The workload, held to what every one promises; None where it is refused, in one line without prompts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            workload = load_workload(str(path), **options)
        except WorkloadError as error:
            assert CANARY not in error.line() and "\n" not in error.line() and error.hint and error.where
            return None
    assert workload.prompts and len({prompt.id for prompt in workload.prompts}) == len(workload.prompts)
    for prompt in workload.prompts:
        last = prompt.messages[-1]
        assert last.role != "assistant" and (last.role == "tool" or last.content.strip())
        assert {"user", "tool"} & {message.role for message in prompt.messages}
        json.dumps([prompt.tools, prompt.template_kwargs, prompt.request, [m.fields for m in prompt.messages]])
        f"{prompt}".encode()  # nothing that no file can hold
    assert profile(workload).prompts == len(workload.prompts)
    return workload


@quick
@given(
    data=st.binary(max_size=200) | st.text(alphabet='{}[]":,\n promtexa\\u0d8', max_size=120).map(str.encode),
    name=st.sampled_from(
        ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz", "a.csv.zst"]
    ),
    packed=st.booleans(),
)
def test_bytes_of_a_workload(data: bytes, name: str, packed: bool) -> None:
    loaded(name, gzip.compress(data) if packed and name.endswith(".gz") else data)


@quick
@given(rows=rows, column=st.none() | keys.filter(lambda key: key and CANARY not in key))
def test_rows_of_a_workload(rows: list[Any], column: str | None) -> None:
    options = {} if column is None else {"column": column}
    lines = "\n".join(map(json.dumps, rows)).encode()
    one = loaded("a.jsonl", lines, **options)
    other = loaded("a.json", json.dumps(rows).encode(), **options)
    assert (one is None) == (other is None) and (one is None or other is None or one.sha256 == other.sha256)
    loaded("a.jsonl", lines, category_column="category")


def configured(data: bytes) -> RunConfig | None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "c.yaml").write_bytes(data)
        try:
            config = load_config(Path(folder) / "c.yaml", {})
        except ConfigError as error:
            assert "\n" not in error.line() and error.where and len(error.line()) < 1200
            return None
    assert config.gamma and all(1 <= gamma <= MAX_GAMMA for gamma in config.gamma)
    assert config.temperature >= 0 and 0 < config.top_p <= 1 and (config.limit is None or config.limit >= 1)
    assert config.name is None or not set(config.name) & set("/\\\0\n")
    json.dumps(config.as_dict(), allow_nan=False)
    assert len(config.fingerprint()) == 64
    return config


KEYS = [*sorted(SETTINGS), "policy"]
TRIED = ["1..8", "8..1", "1,2", "a=0.5,b=0.5", "../x", "http://[::1", 10**400, -1, 0, 1, 0.5]
given_values = values | st.sampled_from(TRIED)


@quick
@given(tree=st.dictionaries(st.sampled_from(KEYS), given_values, min_size=1, max_size=3) | values)
def test_values_of_a_configuration(tree: Any) -> None:
    configured(yaml.safe_dump(tree).encode())
    if isinstance(tree, dict):
        configured(yaml.safe_dump({"policy": tree}).encode())


@quick
@given(data=st.binary(max_size=80) | st.text(alphabet="gam: 1.&*[]{}-\n!'\"|>?<%@\t", max_size=60).map(str.encode))
def test_bytes_of_a_configuration(data: bytes) -> None:
    configured(data)


@quick
@given(key=st.sampled_from(KEYS[:-1]), value=given_values)
def test_a_system_prompt_is_in_no_error(key: str, value: Any) -> None:
    """Nor anything that is given for it, of whatever kind."""
    private = {"system_prompt": [CANARY, value], "workload": {CANARY: value}}
    for name, tree in private.items():
        with pytest.raises(ConfigError) as caught:
            load_config(None, {name: tree})
        assert CANARY not in caught.value.line()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("kept") / "run")


def reread(kept: Path, name: str, change: Callable[[bytes], bytes]) -> StoredRun | None:
    """A copy of the run with one file changed, read; None where it is refused."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(kept / "run.json", folder)
        (folder / name).write_bytes(change((kept / name).read_bytes()))
        try:
            stored = read_run(folder)
            read_positions(folder)
        except StoreError as error:
            assert "\n" not in error.line() and error.where and error.hint and CANARY not in error.line()
            return None
    for trial in stored.trials:
        held_together(trial)
    return stored


def held_together(trial: Trial) -> None:
    times: Times = trial.times
    assert 0 <= times.total_s <= 1e12 and times.decode_s > -1e-5
    assert len(trial.rounds) == len(trial.drafted) and all(r.accepted <= r.drafted for r in trial.rounds)
    assert trial.arm.kind != "speculative" or (trial.arm.draft is not None and trial.arm.gamma)


@few
@given(
    name=st.sampled_from(["run.json", "trials.jsonl", "divergences.jsonl", "positions-0.arrow"]),
    at=st.floats(0, 1, exclude_max=True),
    new=st.binary(max_size=6),
    gone=st.integers(0, 40),
)
def test_bytes_of_a_run(kept: Path, name: str, at: float, new: bytes, gone: int) -> None:
    def change(data: bytes) -> bytes:
        place = int(at * len(data))
        return data[:place] + new + data[place + gone :]

    reread(kept, name, change)


@quick
@given(data=st.data(), value=leaves | st.sampled_from([10**30, -1, 1e300, {}, []]))
def test_values_of_a_trial(kept: Path, data: st.DataObject, value: Any) -> None:
    lines = (kept / "trials.jsonl").read_text().splitlines()
    row = json.loads(data.draw(st.sampled_from(lines[:20])))
    inner = data.draw(st.sampled_from([row, row["times"], row["arm"]]))
    inner[data.draw(st.sampled_from([*inner, "more"]))] = value
    stored = reread(kept, "trials.jsonl", lambda _: (json.dumps(row) + "\n").encode())
    assert stored is None or len(stored.trials) == 1


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [place for key, inner in inside for place in [(*above, key), *paths(inner, (*above, key))]]


@pytest.mark.full
def test_every_key_of_a_run_that_is_gone_or_of_another_kind(kept: Path, tmp_path: Path) -> None:
    """Read or refused; and of what is read, the brief's facts can be had."""
    whole = (kept / "run.json").read_text()
    refused = set()
    for place in paths(json.loads(whole)):
        for value in (..., None, CANARY, -1, [], {}, 1e300):
            run = json.loads(whole)
            at = run
            for key in place[:-1]:
                at = at[key]
            if value is ...:
                del at[place[-1]]
            else:
                at[place[-1]] = value
            (tmp_path / "run.json").write_text(json.dumps(run))
            try:
                read_facts(read_run(tmp_path))
            except StoreError as error:
                refused.add(place)
                assert CANARY not in error.line()
    assert {("status",), ("config", "gamma"), ("provenance", "engine"), ("probe", 0, "median_s")} <= refused
