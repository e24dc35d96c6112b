"""One bad input through the command line, held to what holds for every one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from specbench.cli import app

# Stands in every bad prompt: none of it may be shown.
CANARY = "xylophone-canary"

# Made once: typer's own runner makes it anew for every call, which takes longer than most calls.
_COMMAND = get_command(app)


def refusal(args: Sequence[str]) -> str:
    """The one line with which a command refuses, without `specbench: `: exit 2, nothing on stdout, no traceback, no
    prompt."""
    code, out, err = outcome(args)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("specbench: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err.removeprefix("specbench: ").rstrip("\n")


def outcome(args: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. Whatever the input: no bug of ours, no prompt shown, no terminal commanded."""
    env = {"SPECBENCH_DEBUG": None, "COLUMNS": "200", "NO_COLOR": "1"}
    code: object = 0
    with CliRunner().isolation(env=env) as (stdout, stderr, _):
        try:
            _COMMAND.main(list(args), prog_name="specbench")
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = stdout.getvalue().decode(), stderr.getvalue().decode()
    assert "Traceback" not in err and "a bug of specbench" not in err, err
    assert CANARY not in out + err, out + err
    assert not [c for c in out + err if not c.isprintable() and c != "\n"], ascii(out + err)
    assert isinstance(code, int)
    return code, out, err


def generic(line: str, folder: Path) -> str:
    """The line with the test's own folder left out, as it stands in the tables."""
    return line.replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
