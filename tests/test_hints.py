"""Every hint names flags that the command has which gives it: what can be typed, not what another command takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

import specbench
from specbench.cli import app

ROOT = Path(specbench.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

RUNS = {"measure", "sweep"}
MODELS = RUNS | {"doctor", "probe"}
PAGES = {"show", "brief", "plan", "explain", "compare"}

# Which commands run into the code of a room, the longest path first; a file of cli/ is its own command's.
REACHED_BY = {
    "workload/profile.py": {"workload"},
    "workload/cautions.py": RUNS,
    "workload": MODELS | {"workload"},
    "models/family.py": RUNS,  # of batches, which neither doctor nor probe makes
    "models": MODELS,
    "drafters": MODELS,
    "backends/local/session.py": RUNS,
    "backends/local/backend.py": RUNS | {"doctor"},
    "backends/local/drafting.py": RUNS,
    "backends/local/drafts.py": RUNS,
    "backends/local/recorded.py": RUNS,
    "backends/local/probing.py": {"probe"},
    "backends/server/probing.py": {"probe"},
    "report/alerts.py": {"brief"},
    "workload/answers.py": RUNS,
    "workload/sources.py": RUNS,
    "workload/replies.py": RUNS,
    "backends/local/reference.py": RUNS,
    "backends/local": MODELS,
    "backends/server": RUNS,
    "backends/base.py": RUNS,
    "cost/stored.py": RUNS,
    "run/probe.py": {"probe"},
    "run": RUNS,
    "store/folders.py": RUNS,
    "verify/check.py": {"check"},
    "verify": {"doctor"},
    "analysis/plan.py": {"plan"},
    "analysis/pilot.py": {"plan"},
    "analysis/stops.py": {"plan"},
    "report/plan.py": {"plan"},
    "report/explain/glossary.py": {"explain"},
    "cli/measure.py": RUNS,
    "cli/show.py": {"replay"},
    "config.py": RUNS,
    "strict_yaml.py": RUNS,
    "run/task.py": RUNS,
    # Of a run's page: what one runs again with.
    "analysis": RUNS,
}

# Settings of servers, as their own hints name them.
THEIRS = {"--enable-log-requests", "--enable-log-outputs", "--max-log-len"}
THEIRS |= {"--disable-radix-cache", "--no-enable-prefix-caching", "--spec-type"}


def commands():
    group = typer.main.get_command(app)
    return {
        name: {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
        for name, command in group.commands.items()
    }


HAS = commands()
NAMED = re.compile(rf"specbench ({'|'.join(HAS)})\b[^.`;:]*")


def hints(path):
    """Each error's and warning's words in a file: the line, the function, where, and how to mend it."""
    tree = ast.parse(path.read_text())
    spans = [(one.lineno, one.end_lineno, one.name) for one in tree.body if isinstance(one, ast.FunctionDef)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        told = [word.value for word in node.keywords if word.arg in ("hint", "hint", "where")]
        if name.endswith("Error") or name in ("Finding", "Finding"):
            told += node.args
        for argument in told:
            words = [part.value for part in ast.walk(argument) if isinstance(part, ast.Constant)]
            function = next((name for first, last, name in spans if first <= node.lineno <= last), "")
            yield node.lineno, function, " ".join(word for word in words if isinstance(word, str))


def calling(file, function):
    """The commands of a file of cli/ from which a function of it is reached."""
    tree = ast.parse((ROOT / file).read_text())
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    names = {name: {node.id for node in ast.walk(one) if isinstance(node, ast.Name)} for name, one in functions.items()}
    reaching, before = {function}, set()
    while reaching != before:
        before, reaching = reaching, reaching | {name for name in names if names[name] & reaching}
    marks = [mark for name in reaching & {*functions} for mark in functions[name].decorator_list]
    return {mark.args[0].value for mark in marks if ast.unparse(mark).startswith("app.command(")}


def reach(file, function=""):
    if file in REACHED_BY:
        return REACHED_BY[file]
    if file.startswith("cli/"):
        return calling(file, function) or {Path(file).stem}
    rooms = [room for room in REACHED_BY if file.startswith(f"{room}/")]
    return REACHED_BY[max(rooms, key=len)] if rooms else set(HAS)


def lacking(file, hint, function=""):
    """(flag, command) for each flag in a hint that a command which may give it has not. Flags behind `specbench NAME`
    are that command's."""
    missing = []
    for named in NAMED.finditer(hint):
        missing += [(flag, named[1]) for flag in FLAG.findall(named[0]) if flag not in HAS.get(named[1], set())]
    for flag in set(FLAG.findall(NAMED.sub("", hint))) - THEIRS:
        missing += [(flag, command) for command in sorted(reach(file, function)) if flag not in HAS[command]]
    return missing


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_hint_names_flags_that_its_command_has(path):
    file = str(path.relative_to(ROOT))
    found = {
        f"line {line}: {flag} in {command}"
        for line, function, hint in hints(path)
        for flag, command in lacking(file, hint, function)
    }
    assert not found, sorted(found)


def test_a_flag_that_a_command_lacks_is_seen():
    assert lacking("verify/doctor.py", "Name it with --gamma-ray.") == [("--gamma-ray", "doctor")]
    assert lacking("models/load.py", "Use specbench sweep --all-gammas.") == []
    assert lacking("models/load.py", "Use specbench doctor --all-gammas.") == [("--all-gammas", "doctor")]
    assert lacking("cli/check.py", "Leave out --against.", "doctor") == [("--against", "doctor")]
    assert lacking("cli/stored.py", "Add --anonymise.", "_outline") == []
    assert ("--anonymise", "doctor") in lacking("workload/load.py", "Add --anonymise.")
