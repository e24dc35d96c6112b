"""What a chat template is given, refuses and does not write; and the setting that goes to it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bad_inputs.judging import outcome
from conftest import Lab
from transformers import AutoTokenizer, LlamaConfig

import specbench
from specbench.config import load_config
from specbench.errors import ConfigError, ModelError, TemplateError
from specbench.models import LoadedModel
from specbench.models.answers import AnswerEncoder, UnwrittenAnswerError
from specbench.models.defaults import unwritten
from specbench.models.prompts import Today, encode, encode_all
from specbench.records import Message, Omitted, Prompt
from specbench.store import find_runs, read_run
from specbench.verify.texts import special_tokens
from specbench.workload import load_workload
from specbench.workload.replies import Recorded, Reply

PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Writes all there is: tools, thoughts, names, calls with arguments as an object, answers of tools as JSON.
WHOLE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m['role'] }}{{ m.name }}: "
    "{{ m.reasoning_content }}{% if m.role == 'tool' %}{{ m['content'] | tojson }}{% else %}{{ m['content'].strip() }}"
    "{% endif %}{% for c in m.tool_calls %}{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
    "<{{ k }}>{{ v }}{% endfor %}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ today }}"
)
ALTERNATING = "{% if messages|length > 1 %}{{ raise_exception('No: ' + messages[0]['content']) }}{% endif %}" + PLAIN
# Of models for images: a text is one of several parts, and a string has none.
PARTS = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS: list[dict[str, Any]] = [
    {"id": "plain", "prompt": "hi"},
    {
        "id": "agent",
        "system": "Be terse.",
        "tools": [{"name": "track", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": "Where?", "name": "Ann"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": [{"id": "x", "function": {"name": "track", "arguments": '{"number": "7"}'}}],
            },
            {"role": "tool", "tool_call_id": "x", "content": '{"seen": "a \\"b\\""}'},
        ],
        "tool_choice": "auto",
    },
    {"id": "kwargs", "prompt": "ho", "chat_template_kwargs": {"enable_thinking": False}},
]


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, Prompt]:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return {prompt.id: prompt for prompt in load_workload(str(tmp_path / "a.jsonl")).prompts}


def model(lab: Lab, template: str | None) -> LoadedModel:
    tokenizer = AutoTokenizer.from_pretrained(lab.target)
    tokenizer.chat_template = template
    return LoadedModel("t", None, tokenizer, None, 0, 0, None)


def text(loaded: LoadedModel, prompt: Prompt, kwargs: dict[str, Any] | None = None) -> str:
    return str(loaded.tokenizer.decode(encode(loaded, prompt, kwargs)))


def said(loaded: LoadedModel, prompts: dict[str, Prompt], kwargs: dict[str, Any] | None = None) -> dict[str, str]:
    return {caution.code: caution.message for caution in unwritten(loaded, list(prompts.values()), kwargs)}


def test_all_that_is_asked_goes_to_the_template(lab: Lab, prompts: dict[str, Prompt]) -> None:
    loaded = model(lab, WHOLE)
    assert text(loaded, prompts["plain"]) == "user: hi\n"
    assert text(loaded, prompts["agent"]) == (
        '[{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}]'
        "system: Be terse.\nuserAnn: Where?\nassistant: Hm.track<number>7\n"
        'tool: "{\\"seen\\": \\"a \\\\\\"b\\\\\\"\\"}"\n'
    )
    assert text(loaded, prompts["kwargs"]) == "user: ho\n<think></think>"
    assert said(loaded, prompts) == {
        "request-fields-not-used": "only a server understands tool_choice (1 prompt): not used in process"
    }


def test_a_template_that_writes_parts_alone_gets_parts(lab: Lab, prompts: dict[str, Prompt]) -> None:
    loaded = model(lab, PARTS)
    assert text(loaded, prompts["plain"]) == "user: hi\nassistant: "
    dropped = said(loaded, {"plain": prompts["plain"], "agent": prompts["agent"]})["template-drops"]
    assert "a user turn" not in dropped and "a system message" not in dropped and "tools (1 prompt)" in dropped
    # Parts would be written too, and the template may treat them otherwise.
    either = "{% if messages[0]['content'] is string %}" + PLAIN + "{% else %}" + PARTS + "{% endif %}"
    assert text(model(lab, either), prompts["plain"]) == "user: hi\nassistant: "


def test_a_question_that_no_template_writes_is_named(lab: Lab, prompts: dict[str, Prompt]) -> None:
    dropped = said(model(lab, "{% for m in messages %}{{ m['role'] }}{% endfor %}"), {"plain": prompts["plain"]})
    assert "does not write a user turn (1 prompt)" in dropped["template-drops"]


def test_a_prompt_with_a_token_that_the_model_does_not_have_is_one_prompt_less(
    lab: Lab, prompts: dict[str, Prompt]
) -> None:
    tokenizer = model(lab, PLAIN).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    size = tokenizer.convert_tokens_to_ids("<image_soft_token>")
    loaded = LoadedModel("t", SimpleNamespace(config=LlamaConfig(vocab_size=size)), tokenizer, None, 0, 0, None)
    image = Prompt("image", (Message("user", "See <image_soft_token>."),), "s")
    found = encode_all(loaded, [prompts["plain"], image], None)
    assert [prompt.id for prompt, _ in found.encoded] == ["plain"]
    assert found.refused == [Omitted("image", f"holds token {size}, and the model has {size:,} tokens")]
    with pytest.raises(ModelError, match="t can read no prompt: the first holds token"):
        encode_all(loaded, [image], None)
    answers = AnswerEncoder(loaded, None, Today(), {0}, 9)
    asked = {"form": "chat", "limit": None, "temperature": None, "conversation": "0"}
    for prompt, answer in ((prompts["plain"], (size,)), (image, (1,))):
        with pytest.raises(UnwrittenAnswerError, match="holds token"):
            answers.encode(Recorded(prompt, Reply(Message("assistant", ""), ids=answer), **asked))
    assert answers.encode(Recorded(prompts["plain"], Reply(Message("assistant", ""), ids=(1,)), **asked)).output == [1]


def test_arguments_of_the_row_go_before_those_of_the_run(lab: Lab, prompts: dict[str, Prompt]) -> None:
    loaded = model(lab, WHOLE)
    run = {"enable_thinking": True, "today": "Monday"}
    assert text(loaded, prompts["plain"], run) == "user: hi\nMonday"
    assert text(loaded, prompts["kwargs"], run) == "user: ho\n<think></think>Monday"
    # What is given is the default here, and the template reads it all the same.
    assert "template-drops" not in said(loaded, prompts, run)


def test_what_a_template_does_not_write_is_named_and_counted(lab: Lab, prompts: dict[str, Prompt]) -> None:
    dropped = said(model(lab, PLAIN), prompts, {"today": "Monday"})["template-drops"]
    assert dropped == (
        "the chat template of t does not write calls of tools (1 prompt), names of speakers (1 prompt), template "
        "argument enable_thinking (1 prompt), template argument today (3 prompts), thoughts (1 prompt), tools (1 "
        "prompt): the target never sees that"
    )
    users = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}")
    found = said(model(lab, users), prompts)["template-drops"]
    assert "a system message (1 prompt)" in found and "the answer of a tool (1 prompt)" in found
    bare = said(model(lab, None), prompts, {"today": "Monday"})["template-drops"]
    assert bare.startswith("t has no chat template, and nothing else writes calls of tools (1 prompt)")
    assert "tools (1 prompt)" in bare and "today (3 prompts)" in bare and "system" not in bare


@pytest.mark.parametrize("content", ["  Be terse.  ", "a", "x" * 5000, 'quote " and \\ and\nlines', "zq0zq"])
def test_a_text_that_is_trimmed_escaped_or_short_is_written(lab: Lab, tmp_path: Path, content: str) -> None:
    turns = [{"role": "system", "content": content}, {"role": "user", "content": "a"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    prompts = {"a": load_workload(str(tmp_path / "a.jsonl")).prompts[0]}
    for template in (WHOLE, PLAIN, WHOLE.replace("m.role == 'tool'", "true")):
        assert said(model(lab, template), prompts) == {}
    shouting = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    assert said(model(lab, shouting), prompts) == {}
    last = "{{ messages[-1].content }}"
    assert "a system message (1 prompt)" in said(model(lab, last), prompts)["template-drops"]


def test_a_refused_prompt_is_one_prompt_less(lab: Lab, prompts: dict[str, Prompt]) -> None:
    loaded = model(lab, ALTERNATING)
    found = encode_all(loaded, list(prompts.values()), None)
    assert [prompt.id for prompt, _ in found.encoded] == ["plain", "kwargs"]
    assert found.refused == [Omitted("agent", "the chat template refuses it (TemplateError)")]
    with pytest.raises(TemplateError, match=r"the chat template of t fails \(TemplateError\)") as caught:
        encode_all(loaded, [prompts["agent"]], None)
    assert "Be terse" not in caught.value.line() and caught.value.__suppress_context__


@pytest.fixture
def refusing(lab: Lab, tmp_path: Path) -> list[str]:
    """Flags of a run whose template refuses the second of four prompts."""
    import shutil

    shutil.copytree(lab.target, tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text(ALTERNATING)
    rows: list[dict[str, Any]] = [{"id": f"q{n}", "prompt": f"Tell me about {n}."} for n in range(4)]
    rows[1] |= {"system": "Be terse.", "tool_choice": "auto"}
    rows[2] |= {"chat_template_kwargs": {"enable_thinking": False}}
    rows[3] |= {"response_format": {"type": "json_object"}}
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return lab.args("--target", str(tmp_path / "t"), "--workload", str(tmp_path / "p.jsonl"), "--gamma", "1")


@pytest.mark.full
@pytest.mark.parametrize("more", [["--replay-only"], []], ids=["replay", "timed"])
def test_a_run_leaves_out_what_the_template_refuses(refusing: list[str], more: list[str], tmp_path: Path) -> None:
    args = [
        "sweep",
        *refusing,
        *more,
        "--out",
        str(tmp_path / "out"),
        "--quiet",
        "--chat-template-kwargs",
        '{"year": 7}',
    ]
    code, out, err = outcome(args)
    assert code == 0, err
    stored = read_run(find_runs(tmp_path / "out")[0])
    assert stored.run.workload.skipped == (Omitted("q1", "the chat template refuses it (TemplateError)"),)
    assert stored.run.workload.prompts_used == 3
    assert stored.run.config.chat_template_kwargs == {"year": 7}
    assert {"skipped-prompts", "template-drops", "request-fields-not-used"} <= {w.code for w in stored.run.warnings}
    assert "template argument enable_thinking (1 prompt), template argument year (3 prompts)" in " ".join(out.split())
    if not more:
        run = specbench.load_run(stored.folder)
        assert "chat template given `year: 7`" in run.brief()
        code, out, _ = outcome(["check", str(stored.folder), "--quiet", "--json"])
        assert code == 0 and json.loads(out)["agreement"] == "same"


@pytest.mark.full
def test_the_doctor_says_what_the_template_refuses_and_does_not_write(refusing: list[str]) -> None:
    code, out, err = outcome(["doctor", *refusing[: refusing.index("--gamma")], "--quiet", "--json"])
    assert code == 0, err
    notes = {f["code"]: f["message"] for f in json.loads(out)["findings"] if f["severity"] == "note"}
    assert notes["template-refuses"].startswith("1 of 4 prompts are left out, the first: q1, the chat template refuses")
    assert "enable_thinking (1 prompt)" in notes["template-drops"]
    assert "response_format (1 prompt)" in notes["request-fields-not-used"]


@pytest.mark.full
def test_a_probe_takes_the_prompts_that_the_template_renders(refusing: list[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    flags = dict(zip(refusing[::2], refusing[1::2], strict=True))
    config.write_text(f"workload: {flags['--workload']}\nlimit: null\nmax_other_cores: 1000\nmax_new_tokens: 4\n")
    models = ["--config", str(config), "--target", str(tmp_path / "t"), "--draft", flags["--draft"]]
    args = ["probe", *models, "--batch-size", "1", "--gamma", "1", "--passes", "5", "--out", str(tmp_path / "out")]
    code, _, err = outcome([*args, "--dtype", "float32", "--threads", "1", "--quiet"])
    assert code == 0, err


def test_the_setting_is_part_of_what_is_measured(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("chat_template_kwargs: {enable_thinking: false, words: [a, 1, null]}")
    config = load_config(tmp_path / "c.yaml", {})
    assert config.chat_template_kwargs == {"enable_thinking": False, "words": ["a", 1, None]}
    flag = load_config(tmp_path / "c.yaml", {"chat_template_kwargs": '{"enable_thinking": true}'})
    assert flag.chat_template_kwargs == {"enable_thinking": True}
    assert len({each.fingerprint() for each in (config, flag, load_config(None, {}))}) == 3
    assert load_config(None, {"chat_template_kwargs": "{}"}).chat_template_kwargs is None
    for bad in ('{"a": 1, "a": 2}', '{"a": NaN}', "[1]", "yes", '{"a b": 1}', '{"add_generation_prompt": false}'):
        with pytest.raises(ConfigError, match="`chat_template_kwargs`: "):
            load_config(None, {"chat_template_kwargs": bad})


def test_a_user_who_spells_a_special_token_is_encoded_as_transformers_does_and_counted(lab: Lab) -> None:
    loaded = model(lab, "{% for m in messages %}{{ m.content }}{% endfor %}")
    special = next(token.content for token in loaded.tokenizer.added_tokens_decoder.values() if token.special)
    spelled, plain = (Prompt(name, (Message("user", name),), name) for name in (f"x {special} y", "x y"))
    assert special_tokens(loaded.tokenizer, [plain]) is None
    found = special_tokens(loaded.tokenizer, [spelled, plain])
    assert (found.severity, found.said.startswith("1 of 2 prompts spell")) == ("note", True)
    turns = [{"role": "user", "content": f"x {special} y"}]
    ids = loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encode(loaded, spelled, {}) == list(ids)
    assert loaded.tokenizer.convert_tokens_to_ids(special) in ids
