"""The tutorial can be followed: its files are sound, and the commands that load no model run as they stand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from test_docs import PAGES, typed
from typer.testing import CliRunner

from specbench.cli import app
from specbench.cli.compare import SLOWER_EXIT
from specbench.config import load_config
from specbench.workload import load_workload

ROOT = Path(__file__).parent.parent
PAGE = PAGES["tutorial.md"]
FILES = dict(re.findall(r"cat > (\S+) <<'END'\n(.*?\n)END\n", PAGE, re.DOTALL))
SLOW = {"doctor", "sweep", "measure", "check", "probe"}  # they load models
COMMANDS = [words for words in typed(PAGE) if words[0] not in SLOW]
# Kept runs in the place of the reader's: the same drafts on other prompts.
RUNS = {"pilot": "drafters", "week1": "drafters", "tonight": "drafters", "llamacpp": "llamacpp"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the reader has at the end of the page."""
    home = tmp_path_factory.mktemp("shop")
    for name, text in FILES.items():
        (home / name).write_text(text, encoding="utf-8")
    for number, (name, kept) in enumerate(RUNS.items()):
        copy = home / f"reports/20260102T03040{number}Z-{name}"
        shutil.copytree(ROOT / "tests/runs" / kept, copy, ignore=shutil.ignore_patterns("figures", "brief.*"))
        shorten(copy / "trials.jsonl")
    return home


def shorten(trials):
    """Two prompts of each category, which become the page's own two."""
    rows = [json.loads(line) for line in trials.read_text(encoding="utf-8").splitlines()]
    chosen = {row["prompt_id"] for row in rows if re.search(r"-0?[12]$|^w", row["prompt_id"])}
    kept = [row for row in rows if row["prompt_id"] in chosen or row["warmup"]]
    for row in kept:
        row["category"] = "reply" if row["category"] in ("code-edit", "translate", "summarise") else "support"
    trials.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def expanded(words, home):
    """As a shell would: a pattern that matches is replaced by what it matches."""
    for word in words:
        yield from ([str(path) for path in sorted(home.glob(word))] if "*" in word else [word])


def promised(words):
    """The exit code that the output shown after the command ends with; 0 where none is shown."""
    after = PAGE.partition("specbench " + " ".join(words) + "\n```\n\n```text\n")[2].partition("```")[0]
    shown = re.search(r"^exit code: (\d+)\n\Z", after, re.MULTILINE)
    return int(shown[1]) if shown else 0


def test_a_promised_exit_code_is_that_of_a_slower_run():
    codes = {" ".join(words): promised(words) for words in COMMANDS if promised(words)}
    assert codes == {"compare reports/*-llamacpp reports/*-week1 --fail-if-slower 5%": SLOWER_EXIT}


# Those that draw figures or replay every gamma are tested elsewhere as well.
LONG = [words for words in COMMANDS if words[0] in ("brief", "replay")]


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=" ".join(words), marks=[pytest.mark.full] if words in LONG else []) for words in COMMANDS],
)
def test_the_commands_that_load_no_model_run(words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    args = list(expanded(words, folder))
    assert len(args) == len(words), "a pattern matches one folder"
    result = CliRunner().invoke(app, args)
    assert result.exit_code == promised(words), result.output


def test_the_prompts_are_read_without_a_warning_and_the_settings_are_valid(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert set(FILES) == {"log.jsonl", "prompts.jsonl", "shop.yaml"}
    config = load_config(Path("shop.yaml"), {})
    prompts = load_workload(config.workload)
    assert len(prompts.prompts) >= 10 and prompts.cautions == ()
    assert config.limit is None and config.draft == ("demo:draft", "ngram:n=3")
    mixes = re.findall(r"--mix (\S+)", PAGE)
    categories = {prompt.category for prompt in prompts.prompts}
    assert [set(re.findall(r"(\w+)=", mix)) for mix in mixes] == [categories] * len(mixes)


def test_the_file_of_the_first_page_needs_a_column_prompt_and_no_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [words for words in typed(PAGES["README.md"]) if "tickets.csv" in words]
    assert [words[0] for words in lines] == ["workload", "doctor", "sweep"] and "column `prompt`" in PAGES["README.md"]
    rows = "".join(f'T{n},"My parcel {n} has not come. What now?"\n' for n in range(14))
    Path("tickets.csv").write_text(f"ticket,prompt\n{rows}", encoding="utf-8")
    result = CliRunner().invoke(app, lines[0])
    assert result.exit_code == 0 and "14 prompts" in result.output


def test_every_run_that_a_command_reads_is_made_by_one_before():
    made = set()
    for words in typed(PAGE):
        assert {run for word in words for run in re.findall(r"^reports/\*-(\w+)$", word)} <= made, words
        made |= {words[words.index("--name") + 1]} if "--name" in words else set()
    assert made == set(RUNS)
