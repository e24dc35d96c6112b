"""Damaged run folders: name, what is done to a copy of a real one, what is said of it."""

# A case is a line here.
# ruff: noqa: E501

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from bad_inputs.judging import CANARY
from pyarrow import ipc

EXAMPLE = Path(__file__).parent.parent / "runs" / "example"


def small(folder: Path) -> Path:
    folder.mkdir()
    rows = [json.loads(line) for line in (EXAMPLE / "trials.jsonl").read_text().splitlines()]
    prompts = sorted({row["prompt_id"] for row in rows if not row["warmup"]})[::10]
    left = [row for row in rows if row["prompt_id"] in prompts]
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
    for name in ("run.json", "divergences.jsonl", "positions-0.arrow"):
        shutil.copy(EXAMPLE / name, folder / name)
    return folder


def without(path: str) -> Callable[[Path], None]:
    """run.json without a key: `config.gamma`."""
    return changed(path, ...)


def put(tree: dict[str, Any], path: list[str], value: object) -> None:
    """Set the key at the end of `path`; `...` removes it."""
    *parents, last = path
    for parent in parents:
        tree = tree[parent]
    if value is ...:
        del tree[last]
    else:
        tree[last] = value


def changed(path: str, value: object) -> Callable[[Path], None]:
    """run.json with another value of a key; `...` removes it."""

    def mutate(folder: Path) -> None:
        run = json.loads((folder / "run.json").read_text())
        put(run, path.split("."), value)
        (folder / "run.json").write_text(json.dumps(run))

    return mutate


def written(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def row(number: int, name: str = "trials.jsonl", **values: object) -> Callable[[Path], None]:
    """Values of one line, counted from 1, changed; `times__total_s` is a key of `times`, `...` removes a key."""

    def mutate(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        found = json.loads(lines[number - 1])
        for key, value in values.items():
            put(found, key.split("__"), value)
        lines[number - 1] = json.dumps(found) + "\n"
        (folder / name).write_text("".join(lines))

    return mutate


def garbled(folder: Path) -> None:
    lines = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:40] + b"\xff\0\xfe" + lines[2][40:]
    (folder / "trials.jsonl").write_bytes(b"".join(lines))


def folder_for_a_file(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "run.json").mkdir()


def loop_for_a_file(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to(folder / "run.json")


MINE = "run.json is not one that specbench wrote: "
LINE = "Not a line that specbench wrote: "
UNDO = " (run). Undo the change, use the specbench that wrote it, or run again."
REMOVE = " (run/trials.jsonl, line 3). Remove that line: the same command then measures it again."
RUNS: list[tuple[str, Callable[[Path], None], str]] = [
    ("run.json empty", written("run.json", b""), "run.json is not JSON: Expecting value at line 1 column 1 (run)."),
    ("run.json cut short", written("run.json", b'{"schema": 1, "sta'), "run.json is not JSON: Unterminated string starting at line 1 column 15 (run). Run again."),
    ("run.json UTF-16", written("run.json", '{"schema": 1}'.encode("utf-16")), "run.json is not JSON: byte 0 is not UTF-8"),
    ("run.json binary", written("run.json", b"\x80\x81\0"), "run.json is not JSON: byte 0 is not UTF-8 (run). Run again."),
    ("run.json 100,000 brackets", written("run.json", b"[" * 100_000), "run.json is not JSON: nested too deeply (run)."),
    ("run.json a list", written("run.json", b"[1]"), "run.json has no schema, this version reads 1 (run). Use the"),
    ("run.json of another schema", changed("schema", 99), "run.json has schema 99, this version reads 1 (run). Use the"),
    ("run.json of schema true", changed("schema", True), "run.json has schema True, this version reads 1 (run)."),
    ("run.json of a schema of text", changed("schema", CANARY), "run.json has no schema, this version reads 1 (run)."),
    ("run.json a folder", folder_for_a_file, "Not a run folder: it has no run.json (run). Name a folder that specbench"),
    ("run.json a loop", loop_for_a_file, "Not a run folder: it has no run.json (run). Name a folder that specbench"),
    ("no status", without("status"), f"{MINE}it lacks status{UNDO}"),
    ("status a list", changed("status", [CANARY]), f"{MINE}status is a list, not text{UNDO}"),
    ("no command", without("command"), f"{MINE}it lacks command{UNDO}"),
    ("an unknown command", changed("command", CANARY), f"{MINE}command is none of measure, sweep, replay, probe{UNDO}"),
    ("no config", without("config"), f"{MINE}it lacks config{UNDO}"),
    ("config a list", changed("config", []), f"{MINE}config is a list, not an object{UNDO}"),
    ("no gammas", without("config.gamma"), f"{MINE}it lacks config.gamma{UNDO}"),
    ("gammas text", changed("config.gamma", "1..4"), f"{MINE}config.gamma is text, not a list{UNDO}"),
    ("gamma 0", changed("config.gamma", [0]), f"{MINE}config.gamma is not what a configuration may hold{UNDO}"),
    ("temperature text", changed("config.temperature", CANARY), f"{MINE}config.temperature is text, not a number{UNDO}"),
    ("draft a number", changed("config.draft", [7]), f"{MINE}config.draft[0] is a number, not text{UNDO}"),
    ("repeats 0", changed("config.repeats", 0), f"{MINE}config.repeats is not what a configuration may hold{UNDO}"),
    ("repeats huge", changed("config.repeats", 10**40), f"{MINE}config.repeats is not what a configuration may hold{UNDO}"),
    ("no policy", without("config.policy"), f"{MINE}it lacks config.policy{UNDO}"),
    (
        "an unknown key of the policy",
        changed("config.policy.min_sped", 2),
        f"{MINE}config.policy has a key that this version does not know{UNDO}",
    ),
    (
        "confidence 2",
        changed("config.policy.confidence", 2),
        f"{MINE}config.policy.confidence is not what a policy may hold{UNDO}",
    ),
    (
        "a skipped prompt without a reason",
        changed("workload.skipped", [{"id": "a"}]),
        f"{MINE}workload.skipped[0] lacks reason{UNDO}",
    ),
    ("no provenance", without("provenance"), f"{MINE}it lacks provenance{UNDO}"),
    ("hardware text", changed("provenance.hardware", CANARY), f"{MINE}provenance.hardware is text, not an object{UNDO}"),
    ("drafts a list", changed("drafts", []), f"{MINE}drafts is a list, not an object{UNDO}"),
    (
        "facts of a draft text",
        changed("drafts.demo:draft.weight_bytes", CANARY),
        f"{MINE}drafts[].weight_bytes is text, not a whole number{UNDO}",
    ),
    ("warnings text", changed("warnings", [CANARY]), f"{MINE}warnings[0] is text, not an object{UNDO}"),
    ("a warning without words", changed("warnings", [{"code": "a", "values": {}}]), f"{MINE}warnings[0] says nothing"),
    ("probe text", changed("probe", CANARY), f"{MINE}probe is text, not a list{UNDO}"),
    ("trials_planned text", changed("trials_planned", "9"), f"{MINE}trials_planned is text, not a whole number{UNDO}"),
    ("a trial a list", written("trials.jsonl", b"[]\n"), f"{LINE}the line is a list, not an object (run/trials.jsonl, line 1)"),
    ("bytes in the middle", garbled, f"{LINE}byte 40 is not UTF-8{REMOVE}"),
    ("a trial that lacks its arm", row(3, arm=...), f"{LINE}the line lacks arm{REMOVE}"),
    ("a trial with another key", row(3, xylophone=1), f"{LINE}the line has a key that this version does not know{REMOVE}"),
    ("times that are text", row(3, times__total_s=CANARY), f"{LINE}times.total_s is text, not a number{REMOVE}"),
    ("times without a total", row(3, times__total_s=...), f"{LINE}times lacks total_s{REMOVE}"),
    ("times that are NaN", row(3, times__total_s=float("nan")), f"{LINE}NaN is not JSON{REMOVE}"),
    ("times that are infinite", row(3, times__total_s=float("inf")), f"{LINE}Infinity is not JSON{REMOVE}"),
    ("times that are huge", row(3, times__total_s=1e300), f"{LINE}times.total_s is not a number up to 1e+12{REMOVE}"),
    ("times below 0", row(3, times__prefill_s=-1), f"{LINE}times are below 0, or their parts more than the whole{REMOVE}"),
    ("parts above the whole", row(3, times__prefill_s=99), f"{LINE}times are below 0, or their parts more than the whole{REMOVE}"),
    ("tokens that are huge", row(3, output_tokens=10**30), f"{LINE}output_tokens is not a number up to 1e+12{REMOVE}"),
    ("tokens that are a fraction", row(3, output_tokens=1.5), f"{LINE}output_tokens is a number, not a whole number{REMOVE}"),
    ("drafted that is text", row(3, drafted=["1"]), f"{LINE}drafted[0] is text, not a whole number{REMOVE}"),
    ("drafted of another length", row(3, drafted=[1], accepted=[]), f"{LINE}drafted and accepted are not of one length{REMOVE}"),
    ("more accepted than drafted", row(3, drafted=[1], accepted=[2]), f"{LINE}more is accepted than drafted{REMOVE}"),
    ("more tokens than an answer may have", row(3, output_tokens=10**12), f"{LINE}more tokens than max_new_tokens allows{REMOVE}"),
    ("a round of a billion", row(3, drafted=[10**9], accepted=[0]), f"{LINE}a round drafted more than 4096 tokens{REMOVE}"),
    ("an unknown arm", row(3, arm__kind=CANARY), f"{LINE}arm.kind is none of baseline, baseline-again, speculative{REMOVE}"),
    (
        "an arm without a gamma",
        row(3, arm={"kind": "speculative", "draft": "a", "gamma": None}),
        f"{LINE}arm speculates without a draft, or without a gamma from 1 to 64{REMOVE}",
    ),
    (
        "divergences of another kind",
        row(1, "divergences.jsonl", index="a"),
        f"{LINE}index is text, not a whole number (run/divergences.jsonl, line 1).",
    ),
    (
        "divergences without a margin",
        row(1, "divergences.jsonl", margin=...),
        f"{LINE}the line lacks margin (run/divergences.jsonl, line 1).",
    ),
    (
        "stretches of another kind",
        written("stretches.jsonl", b'{"number": 1}\n'),
        f"{LINE}the line lacks alone, arm, counters, requests, wall_s (run/stretches.jsonl, line 1).",
    ),
]  # fmt: skip


def positions(mutate: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with ipc.open_stream((folder / "positions-0.arrow").read_bytes()) as stream:
            table = mutate(stream.read_all())
        with ipc.new_stream(folder / "positions-0.arrow", table.schema) as stream:
            stream.write_table(table)

    return write


def column(
    name: str, values: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None
) -> Callable[[Path], None]:
    def mutate(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        made = pa.array(values(table[name].to_pylist()), kind or table.schema.field(at).type)
        return table.set_column(at, name, made)

    return positions(mutate)


SCORES = "Not positions that specbench wrote: "
POSITIONS: list[tuple[str, Callable[[Path], None], str]] = [
    ("another type", column("accept", lambda rows: [CANARY] * len(rows), pa.string()), "a column is of another type"),
    ("a column less", positions(lambda table: table.drop_columns(["prompt_id"])), "columns or values of another kind"),
    ("no prompt", column("prompt_id", lambda rows: [None] * len(rows)), "a text lacks its prompt, draft, repeat or limit"),
    ("NaN", column("accept", lambda rows: [[float("nan")] * len(row) for row in rows]), "accept is no probability"),
    ("2", column("confidence", lambda rows: [[2.0] * len(row) for row in rows]), "confidence is no probability"),
    ("one shorter", column("overlap", lambda rows: [row[1:] for row in rows]), "its arrays are not of one length"),
    ("nothing", column("ends", lambda rows: [None] * len(rows)), "columns or values of another kind"),
]  # fmt: skip
