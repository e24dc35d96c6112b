"""Links that somebody planted in a run folder: nothing is written through them."""

from __future__ import annotations

import shutil

import pytest
from bad_inputs.folders import small
from conftest import full
from test_cli import call
from test_resume import SMALL, interrupted
from test_run import sweep

from specbench.errors import StoreError
from specbench.store import RunWriter, in_use, one_at_a_time, read_record, replace_file

PRECIOUS = b"export PATH=/usr/bin\n"


@pytest.fixture
def precious(tmp_path):
    """A file of the user's, outside of every run folder."""
    path = tmp_path / "profile"
    path.write_bytes(PRECIOUS)
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of a few prompts, with its brief."""
    folder = small(tmp_path_factory.mktemp("kept") / "run")
    assert call("brief", folder).exit_code == 0
    return folder


@pytest.fixture
def run(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "run")


def written(folder):
    return {
        path.relative_to(folder): path for path in folder.rglob("*") if path.suffix in (".md", ".html", ".svg", ".png")
    }


@pytest.mark.full
def test_a_brief_replaces_links_and_leaves_what_they_lead_to(run, kept, precious, tmp_path):
    for several in (False, True):
        folder = tmp_path / "several" if several else run
        words = ["brief", run, *([kept, "--to", folder] if several else [])]
        assert call(*words).exit_code == 0
        before = {name: path.read_bytes() for name, path in written(folder).items()}
        assert len(before) >= 4
        for path in written(folder).values():
            path.unlink()
            path.symlink_to(precious)
            path.with_name(f"{path.name}.tmp").symlink_to(precious)
        assert call(*words).exit_code == 0
        assert precious.read_bytes() == PRECIOUS
        assert {name: path.read_bytes() for name, path in written(folder).items()} == before
        assert not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.full
@pytest.mark.parametrize("there", [True, False])
def test_figures_are_not_drawn_into_a_folder_elsewhere(run, kept, tmp_path, there):
    elsewhere = tmp_path / "elsewhere"
    for name in ("brief.md", "brief.html"):
        (run / name).unlink()
    shutil.rmtree(run / "figures")
    (run / "figures").symlink_to(elsewhere)
    if there:
        elsewhere.mkdir()
    for words in (("brief", run), ("brief", run, kept, "--to", run)):
        result = call(*words)
        assert result.exit_code == 2
        assert result.stderr == f"specbench: The folder of the figures is a link ({run / 'figures'}). Remove it.\n"
    assert not written(run)
    assert not (list(elsewhere.iterdir()) if there else elsewhere.exists())


LINKED = [
    "trials.jsonl",
    ".lock",
    "server-logs",
    "divergences.jsonl",
    "stretches.jsonl",
    "positions-0.arrow",
    "run.json.tmp",
    "server-logs/target.log",
]


@pytest.mark.parametrize("name", [*LINKED[:3], *full(*LINKED[3:])])
def test_a_run_is_not_continued_through_a_link(lab, tmp_path, precious, name):
    folder = interrupted(lab, tmp_path)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    path.unlink(missing_ok=True)
    precious.write_bytes(before + b"more")  # a torn line, which would be cut off
    path.symlink_to(precious)
    with pytest.raises(StoreError) as refused:
        sweep(lab, tmp_path, **SMALL)
    assert refused.value.line() == (
        f"The run folder holds a link, and would be written through it ({path}). "
        "Put the file itself there, or start a new run with --fresh."
    )
    assert precious.read_bytes() == before + b"more" and not in_use(folder)
    assert not (folder / ".lock").exists() or name == ".lock"
    assert sweep(lab, tmp_path, mode="fresh", **SMALL).folder != folder


def test_a_lock_is_never_made_through_a_link(run, tmp_path, precious):
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(StoreError, match="The lock is a link"), one_at_a_time(tmp_path):
        pass
    (run / ".lock").symlink_to(tmp_path / "made")
    assert not in_use(run)
    with pytest.raises(StoreError, match="holds a link"):
        RunWriter(run, read_record(run))
    assert precious.read_bytes() == PRECIOUS and not (tmp_path / "made").exists()


def test_a_file_is_replaced_whole_whatever_lies_beside_it(tmp_path, precious):
    path = tmp_path / "run.json"
    (tmp_path / "run.json.tmp").write_bytes(b"of a session that was killed, and longer than what comes")
    replace_file(path, b"{}")
    (tmp_path / "run.json.tmp").symlink_to(precious)
    replace_file(path, b"[]")
    assert path.read_bytes() == b"[]" and precious.read_bytes() == PRECIOUS
    (tmp_path / "run.json.tmp").mkdir()
    with pytest.raises(OSError):
        replace_file(path, b"lost")
    assert path.read_bytes() == b"[]"
