"""The layout, held: imports point one way, help is light, and a brief needs no model library."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import specbench

ROOT = Path(specbench.__file__).parent

# From the command line down to the nouns; a room may import from its own line and from those below.
LAYERS = [
    ["cli", "__main__"],
    ["api", "__init__"],
    ["report"],
    ["verify"],
    ["run"],
    ["analysis"],
    ["backends"],
    ["drafters"],
    ["decision"],
    ["cost"],
    ["acceptance"],
    ["models", "workload"],
    ["store"],
    ["run_record"],
    ["clock", "config", "records"],
    ["settings", "shipped"],
    ["kinds", "strict_yaml"],
    ["validation"],
    ["errors"],
    ["text", ""],
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@cache
def imports(path: Path) -> set[str]:
    """Every specbench module that a file names, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("specbench"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("specbench")}
    return found


FILES = {path.relative_to(ROOT): path for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("name", FILES, ids=str)
def test_imports_point_down(name):
    own = RANK[name.with_suffix("").parts[0]]
    upward = {module for module in imports(FILES[name]) if RANK[room(module)] < own}
    assert upward == set()


def test_pages_are_for_the_command_line_and_the_api_alone():
    readers = {name.parts[0] for name in FILES if any(room(module) == "report" for module in imports(FILES[name]))}
    assert readers == {"cli", "api.py", "report"}


@pytest.mark.parametrize("path", FILES.values(), ids=[str(name) for name in FILES])
def test_a_module_gives_a_name_once(path):
    """Of two constants of one name the second serves the readers of both, and no linter says so."""
    given: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            given.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (one for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
            given += [one.id for one in names if isinstance(one.ctx, ast.Store)]
    assert sorted(given) == sorted(set(given))


def test_every_room_has_a_place():
    rooms = {name.with_suffix("").parts[0] for name in FILES} - {"__init__"}
    assert rooms <= set(RANK)


HEAVY = ("torch", "transformers", "pandas", "matplotlib", "datasets", "scipy", "numpy", "pydantic")


def loaded(code: str, names: tuple[str, ...] = HEAVY) -> set[str]:
    """Which heavy libraries a fresh Python has loaded after running `code`."""
    report = f"\nimport sys\nprint(*[m for m in {names!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def command(*args: str) -> str:
    return f"from specbench.cli import app\ntry:\n    app({list(args)!r})\nexcept SystemExit:\n    pass"


def test_help_and_flag_errors_are_light():
    assert loaded(command("--help"), (*HEAVY, "rich", "yaml")) == set()
    assert loaded(command("sweep", "--help"), (*HEAVY, "rich", "yaml")) <= {
        "pydantic"
    }  # typer loads it to make options
    assert loaded(command("sweep", "--gamma", "0")) <= {"pydantic"}  # which checks what is typed
    assert loaded("import specbench.models, specbench.workload, specbench.store") == set()


def test_a_profile_of_prompts_is_light():
    assert loaded(command("workload", str(ROOT.parent / "workloads/mixed.jsonl"))) <= {"pydantic"}


@pytest.mark.full
def test_a_written_brief_is_without_models_and_frames(tmp_path):
    run = str(ROOT.parent / "reports/example")
    assert loaded(command("brief", run, "--to", str(tmp_path))) <= {"numpy", "matplotlib", "scipy", "pydantic"}
    assert (tmp_path / "brief.md").exists()


def test_a_brief_needs_no_model_library():
    pages = ("brief", "several", "page", "layout", "figures")
    code = "import specbench.analysis.summarise, " + ", ".join(f"specbench.report.{name}" for name in pages)
    assert not loaded(code) & {"torch", "transformers", "datasets"}
