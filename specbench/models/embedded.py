"""The embedded demo pair: `demo:target`, fetched once, and `demo:draft`, which ships in the package.

Both are GGUF files that one conversion turns into an ordinary transformers directory in the user's cache. The GGUFs
stay, for engines that read them as they are.
"""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from pathlib import Path

from specbench.errors import ModelError
from specbench.models import wheel
from specbench.models.cache import (
    cache_root,
    exclusive,
    is_complete,
    require_space,
    scratch,
    seal,
    sha256_of,
    staging,
    storage_errors,
)
from specbench.models.convert import convert
from specbench.models.notice import Notice, notices

PREFIX = "demo:"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One half of the pair. `needed_bytes` is the disk that it takes in the cache, GGUF included; fetching it
    alone takes less."""

    name: str
    title: str
    gguf: str
    sha256: str
    packaged: bool
    needed_bytes: int


DEMO = {
    model.name: model
    for model in (
        DemoModel(
            name="demo:target",
            title="SmolLM2-135M-Instruct",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            packaged=False,
            needed_bytes=380_000_000,
        ),
        DemoModel(
            name="demo:draft",
            title="the 16M draft made for it",
            gguf="smollm2-draft-16m.Q8_0.gguf",
            sha256="9291826b50b8a9e3bcdb017d71c2365c2254928305f387da2a0a1cf5861e5529",
            packaged=True,
            needed_bytes=40_000_000,
        ),
    )
}


def find(name: str) -> DemoModel:
    """The demo model of that name; ModelError with the nearest name if there is none."""
    if name in DEMO:
        return DEMO[name]
    near = difflib.get_close_matches(name, DEMO, n=1, cutoff=0.7)
    raise ModelError(
        f"there is no embedded model {name}",
        cure=f"Did you mean {near[0]}?" if near else f"The embedded models are {' and '.join(DEMO)}.",
    )


def folder_of(name: str) -> Path:
    """Where `prepare(name)` puts the transformers directory; it need not exist yet."""
    return cache_root() / "models" / find(name).name.replace(":", "-")


def prepare(name: str) -> Path:
    """The transformers directory of a demo model, fetched and converted on first use (20 to 40 s), which stderr tells.

    Raises ModelError when it cannot be fetched, does not have the expected sha256, or the cache has no room.
    """
    demo, folder = find(name), folder_of(name)
    if is_complete(folder, demo.sha256):
        return folder
    began = time.monotonic()
    with notices(name) as notice, storage_errors(demo.needed_bytes, name), exclusive(notice):
        # Another process may have finished it while this one waited for the lock.
        if is_complete(folder, demo.sha256):
            return folder
        if folder.exists():
            notice.say(f"the copy in {folder} is incomplete or damaged, making it again")
        with staging(folder) as temporary:
            # Only now: what a killed process left has just been swept, and must not count as taken.
            require_space(demo.needed_bytes - _kept_bytes(demo), name)
            source = _gguf(demo, notice)
            notice.step("converting to safetensors (once, 20 to 40 s)")
            convert(source, temporary)
            seal(temporary, demo.sha256)
        notice.say(f"ready after {time.monotonic() - began:.0f} s, kept in {folder}")
    return folder


def gguf_path(name: str) -> Path:
    """The demo model's GGUF file, for engines that read GGUF; its sha256 has been checked. Fetches it if need be.

    Raises ModelError as `prepare` does.
    """
    demo = find(name)
    with notices(name) as notice:
        if demo.packaged:
            return _packaged(demo)
        with storage_errors(demo.needed_bytes, name), exclusive(notice):
            return _gguf(demo, notice)


def _gguf(demo: DemoModel, notice: Notice) -> Path:
    """The checked GGUF; the caller holds the lock."""
    if demo.packaged:
        return _packaged(demo)
    path = cache_root() / "gguf" / demo.gguf
    if path.exists():
        if sha256_of(path) == demo.sha256:
            return path
        notice.say(f"{path} is damaged, getting it again")
        path.unlink()
    require_space(2 * wheel.WHEEL_BYTES, demo.name)
    with scratch(path) as temporary:
        placed = wheel.placed_wheel()
        if placed is None:
            notice.step(f"fetching {demo.title} (once)", wheel.WHEEL_BYTES)
        source = placed or wheel.download(temporary, notice.at)
        notice.step(f"checking {source.name}")
        unpacked = temporary / demo.gguf
        wheel.extract(source, unpacked)
        _check(unpacked, demo, source, cure="Replace that file." if placed else "Nothing of it was kept: run again.")
        unpacked.replace(path)
    return path


def _kept_bytes(demo: DemoModel) -> int:
    path = cache_root() / "gguf" / demo.gguf
    return path.stat().st_size if path.exists() else 0


def _packaged(demo: DemoModel) -> Path:
    path = Path(__file__).with_name(demo.gguf)
    if not path.exists() or sha256_of(path) != demo.sha256:
        state = "is damaged" if path.exists() else "is missing from the installation"
        raise ModelError(f"{demo.gguf} {state}", where=str(path), cure="Install specbench-cli again.")
    return path


def _check(path: Path, demo: DemoModel, source: Path, *, cure: str) -> None:
    """Refuse any model but the one that every published number was made with."""
    found = sha256_of(path)
    if found != demo.sha256:
        raise ModelError(
            f"{demo.gguf} has sha256 {found[:12]}..., not {demo.sha256[:12]}...", where=str(source), cure=cure
        )
