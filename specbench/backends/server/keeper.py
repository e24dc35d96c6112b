"""Runs one server and outlives us by as long as it takes to end it: no server stays behind, even after SIGKILL.

    python keeper.py SECONDS -- COMMAND ...

It holds the read end of a pipe (its stdin) whose write end only specbench has. When that closes, because specbench says
so or is gone, it sends SIGTERM to the server's process group, and SIGKILL after SECONDS. To its stdout go the server's
process id and, at the end, its exit code, a line each; the server writes to its stderr.

Nothing but the standard library: it is started for every server, as a file of its own.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

_STDIN, _STDERR = 0, 2
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOT_STARTED = 127


def main(arguments: list[str]) -> int:
    """Start, wait, end. Returns the server's exit code (128 + n for signal n), or 127 where it could not be started."""
    stop_s, command = float(arguments[0]), arguments[2:]
    wakened, wakes = os.pipe()
    os.set_blocking(wakes, False)
    # A signal becomes a byte in a pipe: one select waits for the server's end, for ours and for that of specbench.
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_ENDS):
        signal.signal(number, lambda *_: None)
    try:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=_STDERR, stderr=_STDERR, start_new_session=True
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    _tell(server.pid)
    while server.poll() is None and not _told_to_end(wakened):
        pass
    code = _end(server, stop_s)
    _tell(code)
    return code if code >= 0 else 128 - code


def _told_to_end(wakened: int) -> bool:
    """Waits until something happened; whether that was more than the end of a child."""
    ready, _, _ = select.select([_STDIN, wakened], [], [])
    signals = os.read(wakened, 64) if wakened in ready else b""
    return _STDIN in ready or any(number in _ENDS for number in signals)


def _end(server: subprocess.Popen[bytes], stop_s: float) -> int:
    """The server's exit code, once nothing of its group is left."""
    if server.poll() is None:
        signal_group(server.pid, signal.SIGTERM)
        try:
            server.wait(stop_s)
        except subprocess.TimeoutExpired:
            signal_group(server.pid, signal.SIGKILL)
    code = server.wait()
    # Workers that their parent left behind keep memory, a GPU or the port.
    signal_group(server.pid, signal.SIGKILL)
    return code


def signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _tell(number: int) -> None:
    try:
        print(number, flush=True)
    except OSError:
        # Nobody is left to read it, and the server must still be ended.
        return


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # An ordinary exit flushes stdout again and would fail where nobody reads it.
    os._exit(code)
