"""A setting is declared once: its flag, YAML key, argument in Python, check and row in the reference follow."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main
import yaml
from typer.testing import CliRunner

import specbench
from specbench import config
from specbench.cli import app
from specbench.cli.show import Grouped, Keys, with_settings
from specbench.config import POLICY_SETTINGS, RUN_SETTINGS, SETTINGS, Policy, RunConfig, load_config
from specbench.errors import ConfigError
from specbench.kinds import Range
from specbench.run.task import task_of
from specbench.settings import GROUPS, Declared, Setting
from tools import configuration, reference

ROOT = Path(__file__).parent.parent
PROGRAM = typer.main.get_command(app)
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
DEFAULT = (ROOT / "configs/default.yaml").read_text(encoding="utf-8")

# A value of each that is not its default, as YAML has it.
OTHER = {
    "target": "a/b", "draft": ["c"], "dtype": "float32", "device": "cpu", "threads": 2, "trust_remote_code": ["a/b"],
    "workload": "a.jsonl", "limit": 3, "column": "c", "category_column": "d", "system_prompt": "Be nice.",
    "chat_template_kwargs": {"enable_thinking": False}, "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9,
    "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 7, "batch_size": 2, "gamma": "1..3",
    "measure_gamma": 2, "cutoff": 0.3, "all_gammas": True, "repeats": 2, "time_budget_s": 90.0, "max_other_cores": 2.0,
    "probe_batch_sizes": "1,2", "engine": "vllm", "launch": "l.yaml", "server": "http://h", "spec_server": "http://s",
    "draft_server": "http://d", "served_model_name": "m", "concurrency": "2,4", "rate": "0.5", "request_timeout_s": 9.0,
    "api_key_env": "PATH", "out": "o", "name": "n", "keep_text": True, "min_speedup": 1.5, "metric": "e2e",
    "confidence": 0.9, "slower_than": 0.8, "max_slower_share": 0.1, "mix": {"code": 1.0}, "price_per_hour": 2.0,
    "max_added_gb": 3.0, "by_length": "1k,4k", "slice_tokens": 16, "tokenizer": "t", "answers": "recorded",
    "verify_answers": 4, "ray": "local",
    "sessions": True,
}  # fmt: skip
# Without these the others would be refused together with them.
BESIDE = {"spec_server": ("server",), "draft_server": ("server",), "served_model_name": ("server",)}
BESIDE |= dict.fromkeys(("concurrency", "rate", "sessions"), ("engine",))
BESIDE |= dict.fromkeys(("tokenizer", "verify_answers", "ray"), ("answers",))


def help_of(command, program=app):
    result = CliRunner().invoke(program, [command, "--help"])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_field_is_a_setting():
    declared = {field.name for kind in (RunConfig, Policy) for field in fields(kind)} - {"policy"}
    assert declared == set(SETTINGS) == set(OTHER)
    assert set(RUN_SETTINGS) & set(POLICY_SETTINGS) == set()


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_in_the_help_of_its_commands_and_of_no_other(key):
    setting = SETTINGS[key]
    assert set(setting.declared.on) <= set(PROGRAM.commands)
    for name, command in PROGRAM.commands.items():
        options = {opt: param for param in command.params for opt in param.opts}
        if name in setting.declared.on:
            assert {options[flag].name for flag in setting.flags} == {key}
            assert options[setting.flags[0]].rich_help_panel == setting.declared.group
        elif key not in ("out", "probe_batch_sizes", "batch_size"):  # of these commands have one of their own
            assert not set(setting.flags) & set(options)


@pytest.mark.parametrize("command", PROGRAM.commands)
def test_help_shows_every_flag_below_its_group(command):
    shown = help_of(command)
    for setting in SETTINGS.values():
        if command in setting.declared.on:
            _, _, below = shown.partition(f"\n{setting.declared.group.capitalize()}:\n")
            section = re.split(r"^\w+:$", below, maxsplit=1, flags=re.MULTILINE)[0]
            for flag in setting.flags:
                assert re.search(rf"(?<![\w-]){flag}(?![\w-])", section), flag
    titles = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    groups = [title.lower() for title in titles if title not in ("Arguments", "Options")]
    assert groups == sorted(groups, key=GROUPS.index) and titles[: -len(groups)] in (
        ["Options"],
        ["Arguments", "Options"],
    )


@pytest.mark.parametrize("command", PROGRAM.commands)
def test_help_fits_80_columns_and_has_no_markup(command):
    shown = help_of(command)  # typer's runner is 80 columns wide
    assert max(map(len, shown.splitlines())) <= 80 and "\x1b" not in shown and "│" not in shown


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_a_key_of_a_file_and_an_argument_in_python(key, tmp_path):
    setting = SETTINGS[key]
    needed = {other: OTHER[other] for other in BESIDE.get(key, ())}
    for name in (key, *setting.declared.also):
        given = needed | {name: OTHER[key]}
        policy = {name: given.pop(name)} if key in POLICY_SETTINGS else {}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(given | {"policy": policy}))
        from_file = load_config(tmp_path / "c.yaml", {})
        value = getattr(from_file.policy if policy else from_file, key)
        assert value == setting.read(OTHER[key]) != setting.default
        called = task_of("sweep", given | policy).config
        assert getattr(called.policy if policy else called, key) == value
    assert key in inspect.signature(specbench.sweep).parameters
    assert key in inspect.signature(specbench.measure).parameters
    assert (key in inspect.signature(specbench.load_run).parameters) == (key in POLICY_SETTINGS)


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_in_the_default_file_and_in_the_reference(key):
    setting = SETTINGS[key]
    assert re.search(rf"^ *{key}: \S+ +# {re.escape(configuration.meaning(setting))}$", DEFAULT, re.MULTILINE)
    row = next(line for line in REFERENCE.partition("\n## settings\n")[2].splitlines() if line.startswith(f"- `{key}`"))
    assert all(f"`{name}`" in row for name in setting.declared.also)
    assert ("No flag." in row) == (not setting.declared.on)


def test_the_default_file_says_what_is_shipped_and_fits_a_line():
    assert max(map(len, DEFAULT.splitlines())) <= 120
    read = load_config(ROOT / "configs/default.yaml", {})
    for key, setting in SETTINGS.items():
        assert getattr(read.policy if key in POLICY_SETTINGS else read, key) == setting.shipped


def test_two_names_of_one_setting_are_one_too_many(tmp_path):
    with pytest.raises(ConfigError, match=r"`cutoff` is there under two names \(flags\)\. Leave one out\."):
        load_config(None, {"cutoff": 0.1, "p_min": 0.2})
    (tmp_path / "c.yaml").write_text("max_tokens: 3\nmax_new_tokens: 4\n")
    with pytest.raises(ConfigError, match="`max_new_tokens` is there under two names"):
        load_config(tmp_path / "c.yaml", {})


def test_no_two_settings_share_a_name():
    names = [name for key, each in SETTINGS.items() for name in (key, *each.declared.also)]
    assert len(names) == len(set(names))


def test_what_changes_no_trial_is_not_in_the_fingerprint():
    for key, setting in RUN_SETTINGS.items():
        needed = {other: OTHER[other] for other in BESIDE.get(key, ())}
        before = load_config(None, needed).fingerprint()
        after = load_config(None, needed | {key: OTHER[key]}).fingerprint()
        assert (before != after) == setting.declared.measured, key
    elsewhere = {
        "ray",
        "trust_remote_code",
        "probe_batch_sizes",
        "time_budget_s",
        "api_key_env",
        "out",
        "name",
        "keep_text",
    }
    assert elsewhere == {key for key, setting in RUN_SETTINGS.items() if not setting.declared.measured}


def test_a_setting_more_is_a_line_more(monkeypatch):
    """What derives from the declarations has the new one without being told."""
    new = Setting("window", Annotated[int, Range(1, 9)], 3, Declared("A window.", "drafts", ("sweep",), ("width",)))
    monkeypatch.setitem(config.SETTINGS, "window", new)
    monkeypatch.setitem(config.RUN_SETTINGS, "window", new)
    program = typer.Typer(rich_markup_mode=None)
    got = {}

    @program.command("sweep", cls=Grouped)
    @with_settings("sweep")
    def sweep(keys: Keys) -> None:
        got.update(keys)

    @program.command("brief", cls=Grouped)
    @with_settings("brief")
    def brief(keys: Keys) -> None:
        pass

    assert re.search(r"--window, --width <int> +A window\.\n", help_of("sweep", program))
    assert "--window" not in help_of("brief", program)
    assert CliRunner().invoke(program, ["sweep", "--width", "4"]).exit_code == 0 and got["window"] == 4
    assert "\nwindow: 3                       # A window\n" in configuration.text()
    settings = reference.reference(typer.main.get_command(program), reference.Notes(), config.SETTINGS)
    assert "- `window` / `width` (`3`): A window.\n" in settings
    with pytest.raises(ConfigError, match=r"`window`: 12 is not a whole number from 1 to 9 \(flags\)"):
        load_config(None, {"width": 12})
    with pytest.raises(ConfigError, match="Did you mean `window`"):
        load_config(None, {"windov": 1})
