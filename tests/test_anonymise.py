"""`specbench workload --anonymise`: the shape of private prompts and nothing else, into a file that was not there."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest
from test_cli import call
from test_workload import numbered, write

from specbench.errors import WorkloadError
from specbench.workload import load_workload
from specbench.workload.profile import outline_lines, write_new
from specbench.workload.shapes import SHAPES

SECRET = "Grüße an Frau Wölfchen"
ROWS = [
    {"id": SECRET, "category": "mail", "prompt": SECRET},
    {
        "custom_id": "case-7781",
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two!"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "not asked any more"},
        ],
    },
    {"prompt": " "},
    {"prompt": SECRET, "other": SECRET},
]


@pytest.fixture
def workload(tmp_path):
    return write(tmp_path / "prompts.jsonl", *ROWS)


def test_an_outline_is_the_category_and_the_lengths(workload):
    keys = ("number", "category", "characters", "message_count", "user_messages", "has_system")
    lines = outline_lines(load_workload(workload).prompts).splitlines()
    assert list(map(json.loads, lines)) == [
        dict(zip(keys, (1, "mail", 22, 1, 1, False), strict=True)),
        dict(zip(keys, (2, None, 7 + 3 + 4 + 5, 4, 2, True), strict=True)),
        dict(zip(keys, (3, None, 22, 1, 1, False), strict=True)),
    ]


def test_nothing_else_is_in_it(workload):
    result = call("workload", workload, "--anonymise")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3]
    assert {type(value) for line in lines for value in line.values()} <= {int, bool, str, type(None)}
    assert {value for line in lines for value in line.values() if isinstance(value, str)} == {"mail"}
    assert not re.search("Fr|W.lf|7781|kind|three|p-|[0-9a-f]{8}", result.output)
    assert "look at them first: mail\n" in result.stderr


def test_the_order_and_the_format_of_the_file_leave_no_trace(workload, tmp_path):
    # One text twice has one length twice; no hash says that it is the same.
    first, _, third = outline_lines(load_workload(workload).prompts).splitlines()
    assert {**json.loads(first), "number": 3, "category": None} == json.loads(third)
    Path(tmp_path / "b.json").write_text(json.dumps(ROWS))
    assert outline_lines(load_workload(str(tmp_path / "b.json")).prompts).splitlines()[2] == third


def test_it_goes_to_a_new_file(workload, tmp_path):
    out = tmp_path / "outline.jsonl"
    result = call("workload", workload, "--anonymise", "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"3 prompts outlined in {out}\n")
    assert out.read_text() == outline_lines(load_workload(workload).prompts)


def test_nothing_is_overwritten(workload, tmp_path):
    before = Path(workload).read_bytes()
    (tmp_path / "link.jsonl").symlink_to(workload)
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "there.jsonl").write_text("mine")
    for name in (
        "prompts.jsonl",
        "link.jsonl",
        "nowhere.jsonl",
        "there.jsonl",
        "../" + tmp_path.name + "/prompts.jsonl",
    ):
        result = call("workload", workload, "--anonymise", "--out", tmp_path / name)
        assert result.exit_code == 2
        assert "There is a file already, which is not overwritten" in result.stderr
        assert result.stderr.count("\n") == 1
    assert Path(workload).read_bytes() == before
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    assert not (tmp_path / "gone.jsonl").exists()


def test_what_cannot_be_written_leaves_nothing_behind(workload, tmp_path):
    result = call("workload", workload, "--anonymise", "--out", tmp_path / "none" / "x.jsonl")
    assert result.exit_code == 2
    assert "Cannot write the outline: No such file or directory" in result.stderr
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(WorkloadError, match="Cannot write the outline: File too large"):
            write_new("x" * 200, tmp_path / "x.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "x.jsonl").exists()


def test_an_outline_is_not_taken_for_prompts(workload, tmp_path):
    out = tmp_path / "outline.jsonl"
    call("workload", workload, "--anonymise", "--out", out)
    assert not set(json.loads(out.read_text().splitlines()[0])) & {*SHAPES, "id", "uid", "task"}
    for command in ("workload", "sweep"):
        where = ("--workload", out, "--out", tmp_path / "runs") if command == "sweep" else (out,)
        result = call(command, *where)
        assert result.exit_code == 2
        assert "no prompt found in the row" in result.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--out", "x.jsonl"), "Only the outline is written to a file (--out). Add --anonymise."),
        (("--anonymise", "--json"), "Only one can be on stdout (--json and --anonymise). Leave one out."),
    ],
)
def test_flags_that_do_not_go_together(workload, flags, says):
    result = call("workload", workload, *flags)
    assert (result.exit_code, result.stderr) == (2, f"specbench: {says}\n")


def test_many_categories_are_counted(tmp_path):
    rows = [row | {"category": f"k{index:02}\x1b[2J"} for index, row in enumerate(numbered(25))]
    result = call("workload", write(tmp_path / "a.jsonl", *rows), "--anonymise")
    assert result.stderr.endswith("k18 [2J, k19 [2J and 5 more\n")
    assert "\x1b" not in result.output
