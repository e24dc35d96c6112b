"""What a workload is made of: formats, ids, hashes, cautions, profile, selection."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from specbench.config import load_config
from specbench.errors import ConfigError
from specbench.records import Message, Prompt
from specbench.workload import CategoryProfile, Skipped, Workload, load_workload, profile, select


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def codes(workload: Workload) -> list[str]:
    return [caution.code for caution in workload.cautions]


def numbered(count: int, **more: object) -> list[dict[str, object]]:
    return [{"prompt": f"What is {number} squared?", **more} for number in range(count)]


def test_a_prompt_has_id_category_content_and_hash(tmp_path: Path) -> None:
    workload = load_workload(write(tmp_path / "a.jsonl", {"id": 7, "category": "chat", "prompt": "Grüß dich"}))
    digest = hashlib.sha256('[["user","Grüß dich"]]'.encode()).hexdigest()
    assert workload.prompts == (Prompt("7", (Message("user", "Grüß dich"),), digest, "chat"),)
    assert workload.sha256 == hashlib.sha256(json.dumps(["7", "chat", digest]).encode()).hexdigest()
    assert workload.source == str(tmp_path / "a.jsonl")
    assert workload.skipped == ()


def test_an_id_is_made_from_the_content_where_none_is_given(tmp_path: Path) -> None:
    prompt = load_workload(write(tmp_path / "a.jsonl", {"prompt": "hello"})).prompts[0]
    assert prompt.id == "p-" + hashlib.sha256(b'[["user","hello"]]').hexdigest()[:10]


@pytest.mark.parametrize("key", ["id", "question_id", "custom_id", "uid"])
def test_keys_that_name_the_prompt(tmp_path: Path, key: str) -> None:
    assert load_workload(write(tmp_path / "a.jsonl", {key: 81, "prompt": "hello"})).prompts[0].id == "81"


def test_the_hash_sees_order_category_and_content_but_not_the_path(tmp_path: Path) -> None:
    one, two = {"prompt": "one", "category": "a"}, {"prompt": "two", "category": "a"}
    base = load_workload(write(tmp_path / "a.jsonl", one, two)).sha256
    assert load_workload(write(tmp_path / "b.jsonl", one, two)).sha256 == base
    others = [(two, one), (one, {**two, "category": "b"}), (one, {**two, "prompt": "two!"}), (one,)]
    assert base not in {load_workload(write(tmp_path / "c.jsonl", *rows)).sha256 for rows in others}


def test_shared_ids_with_different_content_are_renamed_and_reported_once(tmp_path: Path) -> None:
    rows = [{"id": "x", "prompt": f"prompt {number}"} for number in range(3)]
    workload = load_workload(write(tmp_path / "a.jsonl", *rows, {"id": "x#2", "prompt": "other"}))
    assert [prompt.id for prompt in workload.prompts] == ["x", "x#2", "x#3", "x#2#2"]
    assert codes(workload) == ["few-prompts", "duplicate-ids"]
    assert "3 of 4" in workload.cautions[1].message


def test_repeats_are_kept_with_ids_of_their_own_and_counted(tmp_path: Path) -> None:
    workload = load_workload(write(tmp_path / "a.jsonl", *numbered(18), *numbered(2)))
    assert len(workload.prompts) == 20 == len({prompt.id for prompt in workload.prompts})
    assert workload.prompts[18].id == workload.prompts[0].id + "#2"
    assert codes(workload) == ["repeated-prompts"]
    assert "2 of 20" in workload.cautions[0].message


def test_one_repeat_in_twenty_is_tolerated(tmp_path: Path) -> None:
    assert codes(load_workload(write(tmp_path / "a.jsonl", *numbered(19), *numbered(1)))) == []


@pytest.mark.parametrize(("count", "expected"), [(9, ["few-prompts"]), (10, [])])
def test_fewer_than_ten_prompts_are_few(tmp_path: Path, count: int, expected: list[str]) -> None:
    assert codes(load_workload(write(tmp_path / "a.jsonl", *numbered(count)))) == expected


def test_category_comes_from_the_column_named_else_category_else_a_short_task(tmp_path: Path) -> None:
    row = {"prompt": "p", "category": "c", "task": "t", "topic": 3}
    assert load_workload(write(tmp_path / "a.jsonl", row)).prompts[0].category == "c"
    assert load_workload(write(tmp_path / "a.jsonl", row), category_column="topic").prompts[0].category == "3"
    task = {"prompt": "p", "category": None, "task": "t"}
    assert load_workload(write(tmp_path / "a.jsonl", task)).prompts[0].category == "t"
    asked = {"task": "Say hello"}
    assert load_workload(write(tmp_path / "a.jsonl", asked), column="task").prompts[0].category is None
    instruction = {"prompt": "p", "task": "Summarise the following letter. " * 4}
    assert load_workload(write(tmp_path / "a.jsonl", instruction)).prompts[0].category is None


def test_system_prompt_opens_only_conversations_without_one(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]}
    workload = load_workload(write(tmp_path / "a.jsonl", {"prompt": "hi"}, own), system_prompt="Be brief.")
    assert workload.prompts[0].messages == (Message("system", "Be brief."), Message("user", "hi"))
    assert workload.prompts[1].messages == (Message("system", "own"), Message("user", "hi"))
    assert workload.prompts[0].sha256 != workload.prompts[1].sha256


FORMATS = {
    "a.jsonl": b'{"prompt": "hi\xe2\x80\xa8you"}\r\n\n{"prompt": "two"}',
    "a.NDJSON": b'{"prompt": "hi\xe2\x80\xa8you"}\n{"prompt": "two"}\n',
    "a.json": b'["hi\\u2028you", "two"]',
    "b.json": b'{"version": 1, "data": [{"prompt": "hi\\u2028you"}, {"prompt": "two"}]}',
    "a.csv": b'id,prompt\n,"hi\xe2\x80\xa8you"\n\n,two\n',
    "a.tsv": b"note\tprompt\na, b\thi\xe2\x80\xa8you\nc\ttwo\n",
    "a.txt": b"hi\xe2\x80\xa8you\r\n\n   \ntwo",
}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("packed", [False, True], ids=["file", "gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_text_format_gives_the_same_prompts(tmp_path: Path, name: str, packed: bool, bom: bytes) -> None:
    data = bom + FORMATS[name]
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert [prompt.messages[-1].content for prompt in load_workload(str(path)).prompts] == ["hi\u2028you", "two"]


def test_a_csv_keeps_text_as_text_and_cells_of_any_length(tmp_path: Path) -> None:
    long = "word " * 40_000  # beyond the csv module's own limit of 131,072 characters
    (tmp_path / "a.csv").write_text(f'id,prompt\n007,NA\n2,"{long}"\n', encoding="utf-8")
    workload = load_workload(str(tmp_path / "a.csv"))
    assert [(prompt.id, prompt.messages[0].content) for prompt in workload.prompts] == [("007", "NA"), ("2", long)]


def test_rows_that_are_no_text_prompts_are_skipped_with_place_and_reason(tmp_path: Path) -> None:
    image = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    rows = [{"prompt": "fine"}, {"prompt": "  \n"}, {"prompt": None}, image, {"prompt": "half a pair \ud800"}]
    workload = load_workload(write(tmp_path / "a.jsonl", *rows))
    assert len(workload.prompts) == 1
    assert workload.skipped == (
        Skipped("line 2", "empty prompt"),
        Skipped("line 3", "empty prompt"),
        Skipped("line 4", "not text: a content part of type image_url"),
        Skipped("line 5", "not valid Unicode: half a surrogate pair"),
    )


def test_profile_pins_its_numbers(tmp_path: Path) -> None:
    conversation = [("system", "s"), ("user", "one"), ("assistant", "ok"), ("user", "four")]
    rows = [
        {"category": "chat", "prompt": "ab"},
        {"category": "code", "prompt": "abcdef"},
        {"category": "chat", "messages": [{"role": role, "content": text} for role, text in conversation]},
        {"category": "chat", "prompt": "abcde"},
        {"category": "chat", "prompt": "abcd"},
    ]
    found = profile(load_workload(write(tmp_path / "a.jsonl", *rows)))
    assert found.categories == (
        CategoryProfile("chat", 4, 2, 4.5, 10, system_share=0.25, mean_turns=1.25),
        CategoryProfile("code", 1, 6, 6, 6, system_share=0.0, mean_turns=1.0),
    )
    assert (found.prompts, found.random_suspects) == (5, 0)


def prompts_of(**counts: int) -> tuple[Prompt, ...]:
    """Categories dealt in turn, so that file order and category order differ."""
    rows = sorted((number, name) for name, count in counts.items() for number in range(count))
    return tuple(Prompt(f"{name}{number}", (), "", name) for number, name in rows)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(9, (3, 3, 3)), (12, (5, 4, 3)), (10, (4, 3, 3)), (3, (1, 1, 1)), (2, (1, 1))],
)
def test_select_is_as_equal_by_category_as_the_prompts_allow(limit: int, expected: tuple[int, ...]) -> None:
    prompts = prompts_of(a=50, b=4, c=3) if limit == 12 else prompts_of(a=50, b=20, c=3)
    counts = Counter(prompt.category for prompt in select(prompts, limit, seed=1))
    assert tuple(sorted(counts.values(), reverse=True)) == expected


def test_select_keeps_order_repeats_itself_and_depends_on_the_seed() -> None:
    prompts = prompts_of(a=50, b=20)
    chosen = select(prompts, 12, seed=1)
    assert chosen == select(prompts, 12, seed=1) != select(prompts, 12, seed=2)
    assert list(chosen) == sorted(chosen, key=prompts.index)
    assert [prompt.id for prompt in select(prompts_of(a=9), 3, seed=0)] == ["a2", "a5", "a6"]


def test_a_larger_limit_extends_a_smaller_one() -> None:
    prompts = prompts_of(a=30, b=7, c=2)
    chosen = [set(select(prompts, limit, seed=3)) for limit in range(1, len(prompts) + 1)]
    assert all(small < large for small, large in pairwise(chosen))
    assert select(prompts, None, seed=3) == select(prompts, 99, seed=3) == prompts


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="`limit`: 0 is not a whole number from 1"):
        load_config(None, {"limit": 0})


def test_importing_the_room_loads_no_heavy_library() -> None:
    code = "import sys, specbench.workload; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "pandas", "pyarrow", "datasets", "numpy"} & set(loaded)


@pytest.mark.parametrize(
    ("text", "spells"),
    [
        ("<|im_start|>system", True),
        ("a<|eot_id|>b", True),
        ("<start_of_turn>user", True),
        ("[INST] x [/INST]", True),
        ("</s>", True),
        ("<\uff5cUser\uff5c>", True),
        ("a <b> and <i>, x <|> y, f<|a|b|>, [inst]", False),
    ],
)
def test_prompts_that_spell_special_tokens_are_counted(tmp_path, text, spells):
    rows = [{"prompt": f"{text} {number}?"} for number in range(2)] + [{"prompt": f"plain {n}"} for n in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {caution.code: caution.message for caution in load_workload(str(tmp_path / "a.jsonl")).cautions}
    assert ("special-tokens" in found) == spells
    assert not spells or found["special-tokens"].startswith("2 of 12 prompts spell")
