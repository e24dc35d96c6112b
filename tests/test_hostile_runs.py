"""Run folders of others: every string of theirs is shown as text and nothing else, and no number of theirs takes all
memory. Both are found by walking whatever a run holds, not by list."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.folders import EXAMPLE, small
from bad_inputs.judging import outcome
from conftest import examples, full
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from specbench.errors import StoreError
from specbench.store import read_run

SERVED = EXAMPLE.parent / "llamacpp"

MARK = (
    "\x1b[31m\x1b]0;pwn\x07<script id=pwn>alert(1)</script><img src=http://pwn.example/i>![x](http://pwn.example/x)"
    "[y](http://pwn.example/y)\u202e\u2066\x9b[/red][bold]|`x`\r\n\n# pwn\n<http://pwn.example/z>\x02few\x03"
    "$x^2$ {{ x }}"
)
NAME_MARK = "<script id=pwn><img src=http://pwn.example/i>![x](http://pwn.example/x)[/red][bold]|`x`"
Place = tuple[Any, ...]


def leaves(value: Any, above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every place of a JSON value that holds no more places."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*above, key))
    else:
        yield above, value


def keys(value: Any, above: Place = ()) -> Iterator[Place]:
    """Every key of an object, as the place of its value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                yield (*above, key)
            yield from keys(inner, (*above, key))


def put(value: Any, place: Place, new: Any) -> None:
    for key in place[:-1]:
        value = value[key]
    value[place[-1]] = new


def renamed(value: Any, place: Place, new: str) -> None:
    for key in place[:-1]:
        value = value[key]
    value[new] = value.pop(place[-1])


def served(folder: Path, prompts: int = 12) -> Path:
    """A real run on servers, of which few prompts are left."""
    folder.mkdir()
    rows = [json.loads(line) for line in (SERVED / "trials.jsonl").read_text().splitlines()]
    kept = sorted({row["prompt_id"] for row in rows if not row["warmup"]})[:prompts]
    rows = [row for row in rows if row["prompt_id"] in kept]
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(SERVED / "run.json", folder)
    shutil.copy(SERVED / "stretches.jsonl", folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {"in process": small(folder / "local"), "on a server": served(folder / "served")}


def readable(folder: Path) -> bool:
    try:
        read_run(folder)
    except StoreError as error:
        assert error.line().isprintable()
        return False
    return True


def poisoned(folder: Path) -> set[Place]:
    """Mark every string that a run.json may have, and every name that a trial has; which of run.json was marked."""
    path = folder / "run.json"
    run, marked = json.loads(path.read_text()), set()
    strings = [place for place, value in leaves(run) if isinstance(value, str)]
    empty = [place for place, value in leaves(run) if value is None]
    # A draft's name ties all files together: it is changed in all of them, below.
    strings = [place for place in strings if place[:2] != ("config", "draft")]
    names = [place for place in keys(run) if place[0] not in ("drafts", "served") or place[-1] == "sources"]
    for change, places in ((put, strings), (put, empty), (renamed, sorted(names, key=len, reverse=True))):
        for place in places:
            before = json.dumps(run)
            change(run, place, f"{place[-1]} {MARK}")
            path.write_text(json.dumps(run))
            if readable_record(folder):
                marked.add(place)
            else:
                run = json.loads(before)
    path.write_text(json.dumps(run))
    for name in ("run.json", "trials.jsonl", "divergences.jsonl", "stretches.jsonl"):
        if (folder / name).exists():
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace('"demo:draft', json.dumps(f"demo:draft{NAME_MARK}")[:-1]))
    (folder / "positions-0.arrow").unlink(missing_ok=True)
    for name in ("trials.jsonl", "divergences.jsonl", "stretches.jsonl"):
        if (folder / name).exists():
            lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for line in lines:
                for key in ("prompt_id", "category", "output_sha256"):
                    if isinstance(line.get(key), str):
                        line[key] += MARK
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return marked


def readable_record(folder: Path) -> bool:
    from specbench.store import read_record

    try:
        read_record(folder)
    except StoreError:
        return False
    return True


class Tags(HTMLParser):
    """What a page would do: its elements, and where they lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def is_plain_text(page: str) -> None:
    assert {c for c in page if not c.isprintable()} <= {"\n"}, sorted({c for c in page if not c.isprintable()})


def is_safe_markdown(page: str) -> None:
    is_plain_text(page)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    inline = [child for token in tokens for child in token.children or ()]
    for token in (*tokens, *inline):
        assert token.type not in ("html_block", "html_inline") or "pwn" not in token.content, token.content[:200]
        assert "pwn.example" not in str(token.attrs), token.attrs
    headings = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]
    assert "pwn" not in headings


def is_safe_html(page: str) -> None:
    assert {c for c in page if not c.isprintable()} <= {"\n", "\xa0"}
    tags = Tags()
    tags.feed(page)
    for tag, attributes in tags.found:
        assert attributes.get("id") != "pwn", tag
        for name in ("href", "src", "data", "srcset", "action"):
            assert "pwn.example" not in (attributes.get(name) or ""), (tag, attributes)


COMMANDS = ["brief", "show", *full("explain", "plan", "compare", "replay", "show --json")]


@pytest.fixture(scope="module")
def poisoned_runs(runs, tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name, folder in runs.items():
        found[name] = Path(shutil.copytree(folder, tmp_path_factory.mktemp("poisoned") / "run"))
        marked = {place[0] for place in poisoned(found[name])}
        assert {"provenance", "target", "workload", "config", "name"} <= marked
    return found


@pytest.mark.parametrize("name", ["in process", *full("on a server")])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_string_of_a_run_is_anything_but_text(command, name, poisoned_runs, monkeypatch):
    folder = poisoned_runs[name]
    monkeypatch.setattr("specbench.report.figures.write_figures", lambda *_: None)
    again = [str(folder)] if command == "compare" else []
    code, out, err = outcome([*command.split(), str(folder), *again])  # looks at both streams
    assert code == (2 if command == "replay" else 0), err  # nothing was scored
    assert "--json" not in command or MARK not in out
    if command == "brief":
        is_safe_markdown((folder / "brief.md").read_text())
        is_safe_html((folder / "brief.html").read_text())


@pytest.mark.full
@pytest.mark.parametrize("name", ["in process", "on a server"])
def test_figures_hold_their_names_as_text(name, poisoned_runs):
    code, _, _ = outcome(["brief", str(poisoned_runs[name])])
    assert code == 0
    for figure in (poisoned_runs[name] / "figures").glob("*.svg"):
        is_safe_html(figure.read_text())


# Numbers.

HUGE = [10**12, -1, 0, 10**9, 1e300, 1e-300, 2**31, 4096, math.nextafter(0, 1)]
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from specbench.cli import main
sys.argv[:] = ["specbench", *sys.argv[2:]]
main()
"""


def numbers(folder: Path) -> list[tuple[str, Place]]:
    """Every number of a run, by its file."""
    found = [
        ("run.json", place)
        for place, value in leaves(json.loads((folder / "run.json").read_text()))
        if is_number(value)
    ]
    for name in ("trials.jsonl", "divergences.jsonl", "stretches.jsonl"):
        if (folder / name).exists():
            lines = (folder / name).read_text().splitlines()
            found += [(name, place) for place, value in leaves(json.loads(lines[-1])) if is_number(value)]
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_number(source: Path, folder: Path, name: str, place: Place, value: Any) -> Path:
    shutil.copytree(source, folder)
    lines = (folder / name).read_text().splitlines() if name != "run.json" else [(folder / name).read_text()]
    last = json.loads(lines[-1])
    put(last, place, value)
    (folder / name).write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    return folder


def says_no_nonsense(out: str) -> None:
    """JSON without NaN and infinities, tables without them."""
    for word in ("nan", "inf"):
        assert word not in out.lower().replace("information", "").replace("infer", "").split(), out


@examples(150)
@given(data=st.data(), value=st.sampled_from(HUGE), which=st.sampled_from(["in process", "on a server"]))
def test_no_number_of_a_run_makes_nonsense(runs, tmp_path_factory, data, value, which):
    name, place = data.draw(st.sampled_from(numbers(runs[which])))
    folder = with_number(runs[which], tmp_path_factory.mktemp("n") / "run", name, place, value)
    if not readable(folder):
        return
    code, out, err = outcome(["show", "--json", str(folder)])
    assert code in (0, 2) and err.count("\n") <= 2, (name, place, value, err)
    assert "NaN" not in out and "Infinity" not in out, (name, place, value)


@pytest.mark.full
@pytest.mark.parametrize("command", ["show", "brief", "plan", "explain"])
def test_no_number_of_a_run_takes_all_memory(runs, tmp_path, command):
    """All that may be huge at once, in a process of little memory."""
    for which, source in runs.items():
        folder = Path(shutil.copytree(source, tmp_path / which))
        for name, place in numbers(source):
            for value in (10**12, 10**6):
                trial = with_number(folder, tmp_path / "trial", name, place, value)
                ok = readable(trial)
                if ok:
                    shutil.rmtree(folder)
                    trial.rename(folder)
                    break
                shutil.rmtree(trial)
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(4 << 30), command, str(folder)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode in (0, 2), (which, done.stderr[-500:])
        assert "Traceback" not in done.stderr and "a bug" not in done.stderr
        says_no_nonsense(done.stdout)


@pytest.mark.full
@pytest.mark.parametrize(
    "finished", ["1970-01-01T00:00:00+00:00", "2999-12-31T23:59:59+14:00", "9999-12-31T23:59:59-12:00"]
)
def test_a_clock_that_jumped_during_the_run_changes_no_number(runs, tmp_path, finished):
    folder = Path(shutil.copytree(runs["in process"], tmp_path / "run"))
    before = outcome(["show", "--json", str(folder)])[1]
    run = json.loads((folder / "run.json").read_text())
    was, run["provenance"]["finished"] = run["provenance"]["finished"], finished
    (folder / "run.json").write_text(json.dumps(run))
    assert outcome(["show", "--json", str(folder)])[1] == before.replace(was, finished)
    for command in ("plan", "explain", "brief"):
        assert outcome([command, str(folder)])[0] == 0
