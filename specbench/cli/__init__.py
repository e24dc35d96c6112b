"""The command line: parse, call, print. stdout is the product, stderr the progress; heavy imports wait until a
command needs them."""

from __future__ import annotations

import os

# Commands appear in --help in the order in which their modules are imported.
# isort: off
from specbench.cli import measure, brief, compare, check, stored, plan  # noqa: F401

# isort: on
from specbench.cli.app import app, standard_streams


def main() -> None:
    """The `specbench` command."""
    # Library chatter (progress bars, advice) belongs to no one who reads our stderr.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with standard_streams():
        app(prog_name="specbench")
