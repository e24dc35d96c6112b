"""The `specbench` command, as `python -m specbench` too: what must hold before anything else is loaded."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def main() -> None:
    """Run it. Whoever interrupts while libraries load ends it without a traceback."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    from specbench.cli import main as run

    run()


def _open_standard_streams() -> None:
    """Where one was closed, the next file to be opened would get its number, and with it whatever libraries print."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    main()
