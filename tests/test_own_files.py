"""What a target's own files do: generation_config.json on engines, dates and odd tokens in prompts, ends of texts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import pytest
from conftest import CANARY, Lab, full
from fake_server import FakeServer
from test_cli import call
from test_run import FakeObserver, sweep
from test_serving import codes, served, speculating
from tokenizers import processors
from transformers import AutoTokenizer, GenerationConfig

from specbench.analysis.compare import compared
from specbench.config import RunConfig
from specbench.errors import ConfigError, ModelError, StoreError
from specbench.models import load_model, prompts
from specbench.models.defaults import _NEUTRAL, generation_caution, unmeasured
from specbench.models.prompts import (
    Today,
    changed_encoding,
    encode,
    encoded_record,
    encoding_cautions,
    end_tokens,
    today_of,
)
from specbench.records import Message, Prompt, Sampling
from specbench.run_record import Provenance, RunRecord, WorkloadFacts
from specbench.store import find_runs, record_json
from specbench.verify.check import Asked, check

GREEDY, WARM = Sampling(), Sampling(0.7, 0.9, 20)
SMALL = {"limit": 2, "gammas": (1,), "max_new_tokens": 4}

# Llama 3.1 and its like: the date, unless it is given.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PROMPT = Prompt("p", (Message("user", "hello"),), "0" * 64)


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    """Timing the models alone takes most of so small a run, and is tested elsewhere."""
    from specbench.backends.local.local import LocalEngine
    from specbench.cost.plan import Costs

    monkeypatch.setattr(LocalEngine, "probe", lambda *_: Costs(()))


def differ(values, sampling=GREEDY, new_tokens=100, longest=200):
    return set(unmeasured(values, sampling, new_tokens=new_tokens, longest=longest))


# generation_config.json


@pytest.mark.parametrize(
    ("values", "sampling", "named"),
    [
        ({"repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "do_sample": True}, GREEDY, "all"),
        ({"repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "do_sample": False}, GREEDY, ""),
        ({"temperature": 1.0, "top_k": 50, "do_sample": True}, GREEDY, "all"),
        ({"temperature": 0.0, "top_k": -1, "min_p": 0.0, "typical_p": 1.0, "num_beams": 1}, GREEDY, ""),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 20, "do_sample": True}, WARM, ""),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": True}, WARM, "temperature"),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 0}, WARM, "all"),
        ({"top_k": -1, "do_sample": False}, Sampling(0.7), "do_sample"),
        ({"suppress_tokens": [], "bad_words_ids": None, "sequence_bias": {}, "stop_strings": ""}, GREEDY, ""),
        ({"suppress_tokens": [3], "forced_eos_token_id": 0, "begin_suppress_tokens": [1]}, GREEDY, "all"),
        ({"no_repeat_ngram_size": 3, "epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4, "top_h": 0.4}, GREEDY, "all"),
        ({"no_repeat_ngram_size": 0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_length": 0}, GREEDY, ""),
        ({"guidance_scale": 1.5, "watermarking_config": {"bias": 2.0}, "num_beams": 4}, GREEDY, "all"),
        ({"exponential_decay_length_penalty": [10, 1.1], "min_new_tokens": 5, "max_time": 3.0}, GREEDY, "all"),
        ({"max_new_tokens": 100, "max_length": 200}, GREEDY, ""),
        ({"max_new_tokens": 99, "max_length": 199}, GREEDY, "all"),
        ({"cache_implementation": "hybrid", "use_cache": True, "bos_token_id": 1, "pad_token_id": 0}, GREEDY, ""),
        ({"cache_implementation": "quantized", "assistant_ensemble_weight": 0.5}, GREEDY, "all"),
        ({"transformers_version": "5.0", "_from_model_config": True, "chat_format": "chatml"}, GREEDY, ""),
    ],
)
def test_of_a_file_that_is_named_which_was_not_measured(values, sampling, named):
    assert differ(values, sampling) == (set(values) if named == "all" else set(named.split()))


def test_every_setting_of_transformers_is_known_or_changes_no_text():
    harmless = {"use_cache", "cache_config", "max_cache_len", "compile_config", "disable_compile", "prefill_chunk_size"}
    harmless |= {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"}
    harmless |= {"remove_invalid_values", "num_return_sequences", "return_dict_in_generate", "low_memory"}
    harmless |= {"output_attentions", "output_hidden_states", "output_scores", "output_logits"}
    harmless |= {"length_penalty", "early_stopping"}  # of beams, which are named
    harmless |= {"is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind"}
    harmless |= {"assistant_confidence_threshold", "assistant_lookbehind", "max_matching_ngram_size"}
    harmless |= {"continuous_batching_config"}
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known - harmless == set(_NEUTRAL)
    defaults = GenerationConfig._get_default_generation_params()
    assert differ({key: value for key, value in defaults.items() if key != "max_length"}) == set()


def model_with(lab, folder, **values):
    shutil.copytree(lab.target, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def test_the_caution_says_the_values_who_applies_them_and_what_to_do(lab, tmp_path):
    own = {"repetition_penalty": 1.1, "temperature": 0.7, "no_repeat_ngram_size": 3, "max_new_tokens": 8}
    folder = model_with(lab, tmp_path / "t", **own, suppress_tokens=list(range(90)), stop_strings=["x" * 400 + "\x1b"])
    caution = generation_caution(str(folder), GREEDY, new_tokens=10)
    assert caution.code == "generation-config"
    assert "repetition_penalty 1.1, temperature 0.7 (applied by vLLM, SGLang and transformers" in caution.message
    assert "max_new_tokens 8 (by vLLM and transformers)" in caution.message
    assert "no_repeat_ngram_size 3" in caution.message and "(by transformers)" in caution.message
    assert len(caution.message) < 500 and caution.message.isprintable()
    assert "--generation-config vllm" in caution.hint and "--sampling-defaults openai" in caution.hint
    assert "--temperature 0.7" in caution.hint
    assert (
        generation_caution(str(folder), replace(WARM, temperature=0.7), new_tokens=8).message.count("temperature") == 0
    )
    assert generation_caution(str(lab.target), GREEDY, new_tokens=8) is None
    ends = generation_caution(str(model_with(lab, tmp_path / "e", eos_token_id=[256, 3])), GREEDY, new_tokens=8)
    assert "any of the ids [256, 3]" in ends.message and "asks for" not in ends.message


def test_without_a_file_of_its_own_the_models_configuration_counts(lab, tmp_path):
    shutil.copytree(lab.target, tmp_path / "t")
    (tmp_path / "t" / "generation_config.json").unlink()
    assert generation_caution(str(tmp_path / "t"), GREEDY, new_tokens=8) is None
    config = tmp_path / "t" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"repetition_penalty": 1.3}))
    assert "the config.json of" in generation_caution(str(tmp_path / "t"), GREEDY, new_tokens=8).message
    assert end_tokens(load_model(str(tmp_path / "t"), dtype="float32", device="cpu")) == {256}
    for elsewhere in ("served", "org/never-heard-of", "not a name", str(tmp_path / "t.gguf"), "demo:target"):
        generation_caution(elsewhere, GREEDY, new_tokens=8)  # nothing is fetched, nothing fails


@pytest.mark.parametrize("content", ["{broken", "[1]", "7", "\xff"])
def test_a_file_that_cannot_be_read_is_refused_and_not_left_out(lab, tmp_path, content):
    folder = model_with(lab, tmp_path / "t")
    (folder / "generation_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=r"generation_config\.json of .* is not readable as JSON"):
        load_model(str(folder), dtype="float32", device="cpu")
    assert "not readable" in generation_caution(str(folder), GREEDY, new_tokens=8).message


@pytest.mark.full
def test_a_run_and_the_doctor_name_it_and_a_run_with_the_same_does_not(lab, tmp_path):
    target = model_with(lab, tmp_path / "t", repetition_penalty=1.1, do_sample=True, temperature=0.7)
    stored = sweep(lab, tmp_path / "runs", target=str(target), **SMALL)
    (said,) = [each for each in stored.run.warnings if each.code == "generation-config"]
    assert "repetition_penalty 1.1, temperature 0.7" in said.message
    assert stored.run.target.end_tokens == (256,)
    plain = sweep(lab, tmp_path / "runs", **SMALL)
    assert not [each for each in plain.run.warnings if each.code == "generation-config"]
    found = findings(lab, target)
    assert (found["generation-config"]["severity"], found["date-in-prompt"]["severity"]) == ("note", "ok")
    assert "temperature 0.7" in found["generation-config"]["message"]


@pytest.mark.full
def test_a_run_on_servers_names_it_where_the_files_are_at_hand(lab, tmp_path):
    target = model_with(lab, tmp_path / "t", repetition_penalty=1.1)
    for name, named in ((str(target), True), (str(lab.target), False), ("served", False)):
        with FakeServer() as alone, speculating() as drafting:
            stored = served(lab, tmp_path / "runs", alone, drafting, target=name, mode="fresh")
        assert ("generation-config" in codes(stored)) == named


def findings(lab, target):
    flags = ["--target", target, "--draft", lab.near, "--workload", lab.workload, "--dtype", "float32", "--limit", "1"]
    done = call("doctor", *map(str, flags), "--max-new-tokens", "4", "--threads", "1", "--json", "--quiet")
    return {each["code"]: each for each in json.loads(done.stdout)["findings"]}


# Ends of texts


@pytest.mark.parametrize(("given", "ends"), [(3, {3}), ([3, 4], {3, 4}), (None, {256}), ([], {256}), (-1, {256})])
def test_ends_are_those_of_the_generation_config_or_else_of_the_tokenizer(lab, given, ends):
    loaded = load_model(str(lab.target), dtype="float32", device="cpu")
    loaded.model.generation_config.eos_token_id = given
    assert end_tokens(loaded) == ends


@pytest.mark.parametrize("given", ["2", 2.5, [3, "4"], True])
def test_an_end_that_is_no_id_is_refused(lab, given):
    loaded = load_model(str(lab.target), dtype="float32", device="cpu")
    loaded.model.generation_config.eos_token_id = given
    with pytest.raises(ConfigError, match="no token id"):
        end_tokens(loaded)


def test_files_that_do_not_agree_on_ends_are_named(lab, tmp_path):
    loaded = load_model(str(model_with(lab, tmp_path / "t", eos_token_id=[3, 900])), dtype="float32", device="cpu")
    (caution,) = encoding_cautions(loaded, [[1, 2]], end_tokens(loaded), Today())
    assert caution.code == "end-tokens"
    assert "here they end at 3, 900, while the tokenizer names 256 and config.json names 256" in caution.message
    assert "never says 900" in caution.message
    found = findings(lab, tmp_path / "t")
    assert found["end-tokens"]["severity"] == "note" and "names 256" in found["end-tokens"]["message"]


# Tokens that should not be in a prompt


def with_special_tokens(lab, folder, template, single):
    """The lab's target whose tokenizer adds what `single` says: <s> is id 0, <|end|> 256."""
    shutil.copytree(lab.target, folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    core = tokenizer.backend_tokenizer
    tokenizer.bos_token = core.id_to_token(0)
    special = [(core.id_to_token(0), 0), ("<|end|>", 256)]
    core.post_processor = processors.TemplateProcessing(single=single(core.id_to_token(0)), special_tokens=special)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.full
@pytest.mark.parametrize(
    ("template", "single", "codes"),
    [
        (None, lambda begin: f"{begin} $A <|end|>", {"end-in-prompt"}),
        *full(
            (None, lambda begin: f"{begin} $A", set()),
            (None, lambda begin: f"{begin} {begin} $A", {"two-begins"}),
            ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", lambda begin: f"{begin} $A", {"end-in-prompt"}),
        ),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}:", lambda begin: f"{begin} $A", {"two-begins"}),
        *full(("{{ bos_token }}{{ messages[0].content }}:", lambda begin: f"{begin} $A <|end|>", set())),
    ],
)
def test_ends_and_double_begins_in_prompts_are_named(lab, tmp_path, template, single, codes):
    folder = with_special_tokens(lab, tmp_path / "t", template, single)
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    ids = encode(loaded, PROMPT, None)
    assert {each.code for each in encoding_cautions(loaded, [ids, ids], frozenset({256}), Today())} == codes
    found = findings(lab, folder)
    assert {code for code in ("end-in-prompt", "two-begins") if found[code]["severity"] != "ok"} == codes
    if "end-in-prompt" in codes:
        assert found["end-in-prompt"]["severity"] == ("broken" if template is None else "note")
    stored = sweep(lab, tmp_path / "runs", target=str(folder), **SMALL)
    assert {each.code for each in stored.run.warnings} >= codes


def test_an_empty_prompt_that_is_its_end_alone_is_not_accused(lab):
    loaded = load_model(str(lab.target), dtype="float32", device="cpu")
    assert list(encoding_cautions(loaded, [[256]], frozenset({256}), Today())) == []


# The date


@pytest.fixture
def dated(lab, tmp_path):
    """The lab with a target whose template writes the date."""
    shutil.copytree(lab.target, tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dated")
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path / "dated")
    return Lab(tmp_path / "dated", lab.near, lab.far, lab.workload)


@pytest.fixture
def on(monkeypatch):
    """Set the clock that templates are written by."""

    def at(day):
        fake = SimpleNamespace(now=lambda: datetime(2026, 11, day, 23, 50), fromisoformat=datetime.fromisoformat)
        monkeypatch.setattr(prompts, "datetime", fake)

    return at


def interrupted(lab, out):
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, out, observer=FakeObserver(interrupt_after=2), **SMALL)
    return find_runs(out)[0]


def edit_template(folder, template):
    file = folder / "chat_template.jinja"
    assert file.exists()
    file.write_text(template)


def test_a_template_has_one_date_for_a_whole_run(dated):
    loaded = load_model(str(dated.target), dtype="float32", device="cpu")
    first, second = Today(datetime(2026, 11, 27)), Today(datetime(2026, 11, 28))
    assert encode(loaded, PROMPT, None, first) != encode(loaded, PROMPT, None, second)
    assert encode(loaded, PROMPT, None, first) == encode(loaded, PROMPT, None, Today(datetime(2026, 11, 27)))
    assert first.written and "27 Nov 2026" in loaded.tokenizer.decode(encode(loaded, PROMPT, None, first))
    loaded.tokenizer.chat_template = "{{ messages[0].content }}"
    other = Today()
    encode(loaded, PROMPT, None, other)
    assert not other.written


@pytest.mark.full
def test_a_run_goes_on_and_is_checked_with_the_date_that_it_began_with(dated, tmp_path, on):
    on(27)
    folder = interrupted(dated, tmp_path / "runs")
    on(28)
    observer = FakeObserver()
    stored = sweep(dated, tmp_path / "runs", observer=observer, **SMALL)
    assert stored.folder == folder and stored.status == "finished"
    assert "The chat template writes the date: prompts keep that of the run, 2026-11-27" in observer.lines
    encoded = stored.run.workload.encoded
    assert encoded.now.startswith("2026-11-27") and len(encoded.ids_sha256) == 2
    (said,) = [each for each in stored.run.warnings if each.code == "date-in-prompt"]
    assert "2026-11-27" in said.message
    assert check(folder, Asked(), FakeObserver()).agreement != "disagree"
    assert CANARY not in (folder / "run.json").read_text()
    # another day, another run: the same question is another prompt
    again = sweep(dated, tmp_path / "runs", mode="fresh", **SMALL)
    (warning,) = [each for each in compared(stored, again).warnings if each.code == "other-token-ids"]
    assert (
        "2 of 2 prompts have other token ids: the chat template wrote 2026-11-27 and 2026-11-28"
        in warning.values["changed"]
    )
    assert not [each for each in compared(stored, stored).warnings if each.code == "other-token-ids"]


@pytest.mark.full
def test_a_template_of_the_same_length_is_another_prompt_for_resume_and_check(dated, tmp_path, on):
    on(27)
    folder = interrupted(dated, tmp_path / "runs")
    done = sweep(dated, tmp_path / "done", **SMALL)
    edit_template(dated.target, DATED.replace("Today", "Heute"))
    with pytest.raises(StoreError) as refused:
        sweep(dated, tmp_path / "runs", **SMALL)
    says = refused.value.line()
    assert "The prompts' tokens changed since this run began" in says and "--fresh" in says
    assert "2 of 2 prompts have other token ids: another chat template" in says
    with pytest.raises(StoreError, match="2 of 2 prompts have other token ids: another chat template"):
        check(done.folder, Asked(), FakeObserver())
    assert find_runs(tmp_path / "runs") == [folder] and CANARY not in says


def test_what_changed_is_said_only_of_prompts_that_both_have(lab):
    loaded = load_model(str(lab.target), dtype="float32", device="cpu")
    one = encoded_record(loaded, [("a", [1, 2]), ("b", [3])], Today())
    two = encoded_record(loaded, [("a", [12]), ("c", [3])], Today())
    assert changed_encoding(one, two) == (
        "1 of 1 prompts have other token ids: another tokenizer, or other arguments of the chat template"
    )
    assert changed_encoding(one, one) is None and changed_encoding(None, one) is None
    clock = [replace(one, now=f"2026-11-27T10:0{minute}:00") for minute in (1, 2)]
    said = changed_encoding(clock[0], replace(clock[1], ids_sha256={"a": "other"}))
    assert "wrote 2026-11-27T10:01:00 and 2026-11-27T10:02:00" in said
    assert today_of(clock[0]).at == datetime(2026, 11, 27, 10, 1) and not today_of(None).written


@pytest.mark.parametrize("change", [{"now": "yesterday"}, {"now": 7}, {"ids_sha256": {"a": 1}}, {"ids_sha256": None}])
def test_a_record_that_specbench_did_not_write_is_refused(lab, change):
    loaded = load_model(str(lab.target), dtype="float32", device="cpu")
    record = encoded_record(loaded, [("a", [1])], Today())
    run = RunRecord(
        status="finished",
        command="replay",
        config=RunConfig(),
        provenance=Provenance("an engine"),
        workload=WorkloadFacts(encoded=record),
    )
    record_json(run)
    changed = replace(run, workload=WorkloadFacts(encoded=replace(record, **change)))
    with pytest.raises(ValueError, match=r"workload\.encoded"):
        record_json(changed)
