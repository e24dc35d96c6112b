"""docs/reference.md is what the command line and the configuration say now, and its notes are on what is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main
import yaml

from specbench.cli import app
from specbench.config import POLICY_SETTINGS, SETTINGS
from specbench.drafters.spec import parse_draft
from specbench.kinds import Gammas
from specbench.settings import setting, settings_of
from tools import __main__ as generators
from tools import reference
from tools.reference import CommandNotes, Notes, read_notes

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
PROGRAM = typer.main.get_command(app)


def sections(page=PAGE):
    """{"sweep and measure": text, ...}; what stands before the first heading under ""."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text):
    """Each code span before the colon of a line of a list -> what stands in brackets, if anything, and the rest."""
    found = {}
    for names, value, said in re.findall(
        r"^- (`[^(:]*`(?: / `[^(]*`)*)(?: \((.*?)\))?: (.*)$", text, flags=re.MULTILINE
    ):
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", names), [value, said] if value else [said])
    return found


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", generators.files(), ids=str)
def test_every_generated_file_is_what_the_code_says_now(path):
    assert generators.files()[path] == path.read_text(encoding="utf-8"), f"{path} is out of date: run `make docs`"


@pytest.mark.parametrize("command", PROGRAM.commands)
def test_every_option_has_a_row_and_is_named_in_the_section_of_its_command(command):
    """A row there; or a name there, and the row among the settings or at the head of the page."""
    section = next(text for title, text in sections().items() if command in title.split(" and "))
    flags = [each.flags[0] for each in SETTINGS.values() if each.declared.on]
    named = set(
        re.findall(r"`(--[\w-]+)`", section.replace("(#settings): all.", " ".join(f"`{flag}`" for flag in flags)))
    )
    elsewhere = set(rows(sections()[""])) | set(flags)
    for param in PROGRAM.commands[command].params:
        names = {name for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}
        assert names <= set(rows(section)) or (names & named & elsewhere), names
    assert f"`specbench {command}" in section


def test_every_key_of_the_configuration_has_a_row_and_its_value():
    found = rows(sections()["settings"])
    assert set(found) == {name for key, each in SETTINGS.items() for name in (key, *each.declared.also)}
    values = yaml.safe_load((ROOT / "configs/default.yaml").read_text(encoding="utf-8"))
    policy = values.pop("policy")
    assert set(policy) == set(POLICY_SETTINGS) and {*values, *policy} == set(SETTINGS)
    for key, value in (values | policy).items():
        assert yaml.safe_load(found[key][0].split("`")[1]) == value
    assert "`null` where your file leaves it out" in found["limit"][0]
    assert "`64` where your file leaves it out" in found["max_new_tokens"][0]
    other = [key for key in SETTINGS if "leaves it out" in found[key][0]]
    assert other == ["limit", "max_new_tokens"]


def test_every_form_of_a_draft_is_one():
    forms = read_notes(ROOT / "docs/reference.yaml").drafts
    others = [form for said in forms.values() for form in re.findall(r"`((?:ngram|skip|suffix|demo):[^`]+)`", said)]
    assert len(forms) >= 8 and len(others) >= 3
    for form in (*forms, *others):
        assert parse_draft(form), form


def test_a_key_without_a_flag_says_so():
    flags = {name for param in PROGRAM.commands["sweep"].params for name in param.opts}
    for name, cells in rows(sections()["settings"]).items():
        assert ("--" + name.replace("_", "-") in flags) != cells[1].endswith(" No flag."), name


def test_every_environment_variable_of_the_code_is_there():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "specbench").rglob("*.py"))
    assert set(rows(sections()["environment"])) == set(re.findall(r"SPECBENCH_[A-Z]+(?:_[A-Z]+)*", code))


def small_program():
    """A program with everything that the page has to show."""
    small = typer.Typer(help="A program.")

    @small.command("count")
    def count(
        files: Annotated[list[Path], typer.Argument(help="What to count.")],
        config: Annotated[Path | None, typer.Option(help="Settings.  [default: configs/default.yaml]")] = None,
        gamma: Annotated[str | None, typer.Option(help="Lengths: 1|2 or <n>.")] = None,
        rate: Annotated[float, typer.Option(help="A rate.")] = 0.5,
        name: Annotated[str | None, typer.Option(help="A name.")] = None,
        loud: Annotated[bool, typer.Option("--loud/--quiet", help="How loud.")] = True,
        json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
        draft: Annotated[list[str] | None, typer.Option(help="Drafts.")] = None,
        secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
    ) -> None:
        """Count the files."""

    @small.command("again")
    def again() -> None:
        """Once more."""

    return typer.main.get_command(small)


@dataclass
class Small:
    gamma: Gammas = setting((1, 2), "Lengths.", "drafts", ("count",), also=("k",))
    metric: str = setting("decode", "Of what.", "decision")


def small_page(notes):
    return reference.reference(small_program(), notes, settings_of(Small))


def test_settings_stand_below_their_group_with_other_names_and_flags():
    assert rows(sections(small_page(Notes()))["settings"]) == {
        "gamma": ["`1,2`", "Lengths."],
        "k": ["`1,2`", "Lengths."],
        "metric": ["`decode`", "Of what. No flag."],
    }


def test_a_note_on_a_sweeps_option_stands_with_its_setting():
    notes = Notes({"count": CommandNotes()}, every={"--gamma": "Noted."})
    assert rows(sections(small_page(notes))["settings"])["gamma"] == ["`1,2`", "Lengths. Noted."]


def test_arguments_defaults_repeats_and_flags_are_read_from_the_program():
    notes = Notes({"again": CommandNotes(), "count": CommandNotes("Said\n\ntwice.", "the run's", {"--rate": "Noted."})})
    found = sections(small_page(notes))
    assert list(found) == ["", "again", "count", "settings", "drafts", "environment"]  # in the order of the notes
    assert "`specbench count FILES...`: Count the files.\n\nSaid\n\ntwice.\n\n- `FILES`" in found["count"]
    assert rows(found["count"]) == {
        "FILES": ["path, repeatable", "What to count."],
        "--config": ["path; configs/default.yaml", "Settings."],
        "--rate": ["number; `0.5`", "A rate. Noted."],
        "--name": ["text; the run's", "A name."],
        "--loud": ["flag; on", "How loud."],
        "--quiet": ["flag; on", "How loud."],
        "--json": ["flag", "For scripts."],
        "--draft": ["text, repeatable; the run's", "Drafts."],
    }
    assert "[Settings](#settings), else the run's: all." in found["count"]  # --gamma, the only one with a flag


def test_an_option_of_three_commands_stands_at_the_head_and_is_named_in_their_sections():
    small = typer.Typer()
    for name in ("a", "b", "c"):

        @small.command(name)
        def each(fast: Annotated[bool, typer.Option("--fast", help="Hurry.")] = False) -> None:
            """Do it."""

    found = sections(reference.reference(typer.main.get_command(small), Notes(), {}))
    assert rows(found[""])["--fast"] == ["flag", "Hurry."]
    assert all("Also: `--fast`." in found[name] and not rows(found[name]) for name in ("a", "b", "c"))


def test_a_note_on_every_command_gives_way_to_the_command_own():
    notes = Notes({"count": CommandNotes(options={"--rate": "Own."})}, every={"--rate": "All.", "--name": "All."})
    found = rows(sections(small_page(notes))["count"])
    assert found["--rate"][1] == "A rate. Own."
    assert found["--name"][1] == "A name. All."


@pytest.mark.parametrize(
    ("notes", "stale"),
    [
        (Notes({"gone": CommandNotes("Text.")}), "gone"),
        (Notes({"count": CommandNotes(options={"--gone": "Text."})}), "count --gone"),
        (Notes(every={"--gone": "Text."}), "--gone"),
    ],
)
def test_a_note_on_what_is_not_there_is_an_error(notes, stale):
    with pytest.raises(ValueError, match=f"notes on what is not there: {stale}$"):
        small_page(notes)


def test_commands_without_notes_come_after_those_with():
    assert list(sections(small_page(Notes({"count": CommandNotes()}))))[1:3] == ["count", "again"]
    assert list(sections(small_page(Notes({"again": CommandNotes()}))))[1:3] == ["again", "count"]


def test_an_unknown_kind_of_note_is_an_error(tmp_path):
    (tmp_path / "notes.yaml").write_text("commands:\n  brief: {text: hello}\n")
    with pytest.raises(TypeError):
        read_notes(tmp_path / "notes.yaml")
