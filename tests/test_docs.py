"""The documentation and the code name the same commands, flags, files, keys and types, in both directions."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Literal

import pytest
import typer.main
import yaml

from benchmarks.__main__ import BENCHMARKS
from specbench import records
from specbench.cli import app
from specbench.cli.compare import SLOWER_EXIT
from specbench.cli.show import STRICT_EXIT
from specbench.config import SETTINGS, RunConfig, load_config
from specbench.report.dialect import codes
from specbench.workload.shapes import SHAPES
from tools.contract import kind

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
PROOFS = PAGES["verification.md"]
ALL = "\n".join(PAGES.values())


def flags_by_command():
    """{"sweep": {"--gamma", ...}, ...}, with the program's own flags under ""."""
    return {"": options_of(PROGRAM)} | {name: options_of(command) for name, command in PROGRAM.commands.items()}


def options_of(command):
    names = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
    return {name for name in names if name.startswith("--")}


PROGRAM = typer.main.get_command(app)
FLAGS = flags_by_command()
# Flags of other programs: benchmarks, pytest, llama.cpp, vLLM, SGLang.
OTHERS = re.compile(
    "--(quick|hypothesis-profile|enable-log-.*|max-log-len|export-level|model-draft|spec-(type|draft|ngram).*|per-request-spec-.*|speculative-.*|generation-config|sampling-defaults)"
)


def named(word, text):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def missing(words, text):
    return [word for word in words if not named(word, text)]


def typed(text):
    """The words of every `specbench ...` line of the blocks of shell, without the program's name."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in blocks.splitlines() if line.startswith("specbench ")]


def wrong_flags(text):
    """(command, flag) of every `specbench COMMAND ...` in code spans and blocks that the command line has not."""
    spans = [shlex.split(span)[1:] for span in re.findall(r"`(specbench [^`\n]+)`", text)]
    wrong = []
    for first, *rest in typed(text) + spans:
        command, words = ("", [first, *rest]) if first.startswith("-") else (first, rest)
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        unknown = given - FLAGS.get(command, set()) - {"--help"}
        wrong += [(command, flag) for flag in sorted(unknown)] or ([(command, "")] if command not in FLAGS else [])
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_no_example_uses_a_flag_that_does_not_exist(page):
    assert wrong_flags(PAGES[page]) == []


def refused(text):
    """(line, what is wrong with it) of every line of the blocks of shell that specbench would not take: an option or an
    argument too many or too few, or a value that no run may have. Nothing is run."""
    wrong = []
    for words in typed(text):
        command = PROGRAM.commands.get(words[0])
        try:
            given = command.make_context(words[0], [*words[1:]]).params
            keys = {key: value for key, value in given.items() if key in SETTINGS}
            load_config(None, {key: value for key, value in keys.items() if isinstance(value, str | int | float)})
        except Exception as error:
            wrong.append((" ".join(words), str(error)))
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_shell_can_be_typed(page):
    assert refused(PAGES[page]) == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_flag_that_does_not_exist(page):
    known = set().union(*FLAGS.values()) | {"--help"}
    found = re.findall(r"`(--[\w-]+)", PAGES[page])
    assert [flag for flag in found if flag not in known and not OTHERS.fullmatch(flag)] == []


def lost_paths(text, page="README.md"):
    """Links, seen from the page, and code spans that name a file of ours, which do not exist."""
    folders = "|".join(("benchmarks", "configs", "docs", "reports", "specbench", "tests", "workloads"))
    paths = re.findall(rf"`((?:{folders})/[\w./-]+|LICENSE|Makefile|[A-Z]+\.md)`", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    home = ROOT if page == "README.md" else ROOT / "docs"
    return [path for path in paths if not (ROOT / path).exists()] + [
        link for link in links if not (home / link).exists()
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
    assert lost_paths(PAGES[page], page) == []


def test_every_test_and_benchmark_of_the_proofs_is_there():
    assert len(re.findall(r"`tests/test_\w+\.py`", PROOFS)) >= 6
    assert missing([f"benchmarks/{name}.py" for name in BENCHMARKS], PROOFS) == []


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(?:`|)make (\w+)|`make (\w+)`", README + PROOFS, re.MULTILINE))
    named_targets = {a or b for a, b in targets}
    assert {"demo", "test", "check", "bench"} <= named_targets
    assert [name for name in named_targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_the_default_configuration_has_every_key():
    values = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())
    policy = values.pop("policy")
    assert set(values) | {"policy"} == {field.name for field in fields(RunConfig)}
    assert set(policy) == {field.name for field in fields(records.Policy)}


def test_the_first_page_is_short():
    assert len(README.split()) <= 700


def test_the_readme_leads_to_every_page():
    links = re.findall(r"\]\((docs/\w+\.md)\)", README)
    assert {f"docs/{name}" for name in PAGES if name != "README.md"} == set(links)


def test_every_answer_has_causes_and_a_command_that_tells_them_apart():
    answers = re.split(r"^## (.+)$", PAGES["faq.md"], flags=re.MULTILINE)
    for title, answer in zip(answers[1::2], answers[2::2], strict=True):
        assert re.search(r"\n1\. .*\n(?:.*\n)*2\. ", answer), title
        assert typed(answer), title
        assert answer.rstrip().rpartition("```")[2].strip(), f"{title}: no hint after the commands"


def anchors(text):
    """What headings can be linked by, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_a_page_finds_its_heading(page):
    links = re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", PAGES[page])
    lost = [(file, mark) for file, mark in links if mark not in anchors(PAGES[Path(file).name if file else page])]
    assert lost == []


def test_every_shape_of_a_prompt_is_named_in_the_order_in_which_they_are_tried():
    assert re.findall(r"`(\w+)`", PAGES["prompts.md"].partition("**Shapes**")[2].partition("Another column")[0]) == [
        *SHAPES,
        "input",
    ]


def test_the_contract_says_what_each_key_is():
    hints = {"a": float | None, "b": tuple[str, ...], "c": Literal["x", "y"], "d": dict[str, int]}
    assert [kind(hint) for hint in hints.values()] == ["number?", "texts", "`x`|`y`", "object"]


def test_the_contract_lists_every_code():
    def made(*makers, within="**/*.py"):
        sources = [path.read_text() for path in (ROOT / "specbench").glob(within)]
        return {code for each in sources for code in re.findall(rf'(?:{"|".join(makers)})\(\s*"([\w-]+)"', each)}

    assert len(made("warned", "warning")) >= 40
    assert missing(sorted(made("warned", "warning")), PAGES["contract.md"]) == []
    others = {code for kind in ("refused", "differs", "legends", "measure", "work", "checks") for code in codes(kind)}
    assert set(codes("reasons")) <= made("Reason") <= set(codes("reasons")) | others
    steps = made("note", within="analysis/steps.py")
    assert steps | {"gamma-below", "confirm-on-engine", "measure-on-engine"} == set(codes("steps"))


def test_the_contract_lists_every_exit_code():
    listed = re.findall(r"^\| (\d+) \|", PAGES["contract.md"].partition("## Exit codes")[2], re.MULTILINE)
    assert set(map(int, listed)) == {0, 1, 2, 130, SLOWER_EXIT, *STRICT_EXIT.values()}


def test_these_tests_can_fail():
    assert wrong_flags("`specbench sweep --gama 3`") == [("sweep", "--gama")]
    assert wrong_flags("```sh\nspecbench swep --gamma 3\n```") == [("swep", "--gamma")]
    assert lost_paths("`docs/nowhere.md` and [this](docs/measuring.md) and [that](gone.md)") == [
        "docs/nowhere.md",
        "gone.md",
    ]
    assert lost_paths("[this](measuring.md) and [that](docs/measuring.md)", "faq.md") == ["docs/measuring.md"]
    assert missing(["--gamma", "--top"], "`--gamma` and `--top-p`") == ["--top"]
    assert refused("```sh\nspecbench compare one\n```")[0][0] == "compare one"
    assert refused("```sh\nspecbench sweep --gamma 0..3 \\\n  --limit 3\n```")[0][0] == "sweep --gamma 0..3 --limit 3"
    assert refused("```sh\nspecbench sweep --mix code=0.6\nspecbench plan --gamma 1..3 # why\n```") == [
        ("sweep --mix code=0.6", "`mix`: the shares add up to 0.6, not 1 (flags).")
    ]
    assert anchors("## Which gamma?\n```\n# none\n```\n") == {"which-gamma"}
