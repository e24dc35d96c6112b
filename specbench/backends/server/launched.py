"""One server process: started, waited for, and gone again, whatever happens to us."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from specbench.backends.server import keeper
from specbench.backends.server.launch import LaunchFile, Setting, command, environment
from specbench.errors import ConfigError, EngineError, StoreError

# A free port may be somebody else's by the time the server takes it.
_ATTEMPTS = 4
_POLL_S = 0.05
_LOG_TAIL_BYTES = 16_384

_PORT_TAKEN = "a port that is taken"
# What well-known ends look like in the last lines of a log, and what to do. The first that fits is named.
_FAILURES = (
    (_PORT_TAKEN, r"address already in use|couldn't bind|cannot bind|EADDRINUSE", "Use another port."),
    (
        "too little memory",
        r"out of ?memory|cannot allocate memory|failed to allocate|bad_alloc|MemoryError|no available memory",
        "Use a smaller model, `context` or concurrency.",
    ),
    (
        "an argument that it does not know",
        r"unrecognized argument|(unknown|invalid) argument:|argument has been removed|error: argument|no such option",
        "Compare the launch file with the engine's --help.",
    ),
    (
        "a missing package",
        r"No module named|ModuleNotFoundError|Install via `pip",
        "Install the engine, or the package that its log names.",
    ),
    (
        "a draft with another vocabulary",
        r"same vocabulary size",
        "Name a draft with the target's tokenizer.",
    ),
    (
        "synthetic acceptance, which this build does not have",
        r"Synthetic acceptance not supported",
        "Probe with a launch file without `synthetic`: on a CPU --launch vllm-cpu.",
    ),
    (
        "settings that it refuses",
        r"validation errors? for",
        "Its log says which; compare the launch file with the engine's own documentation.",
    ),
    (
        "a model that is not there",
        r"RepositoryNotFound|not a valid model identifier|is not a local folder",
        "Name a model that the engine can read.",
    ),
    ("a missing file", r"No such file or directory|FileNotFoundError", "Check the paths in the launch file."),
    ("a model that it cannot read", r"error loading model|failed to load (draft )?model", "Check the model's file."),
)


class Launched:
    """A context manager around one server. Entering starts it and returns when it answers; leaving stops it.

    `log` takes what it prints, appended. `port` None: a free one. Raises EngineError, naming the log, where it cannot
    be started, ends at once or does not answer within the file's `ready_s`.
    """

    def __init__(self, file: LaunchFile, setting: Setting, *, log: Path, port: int | None = None) -> None:
        self._file, self._setting, self._log, self._fixed = file, setting, log, port
        self._port = self._begun = 0
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._exit_code: int | None = None

    def __enter__(self) -> Self:
        if sys.platform == "win32":
            raise EngineError("Servers are not started on Windows", hint="Start it yourself and name its address.")
        if self._fixed is not None and not _free(self._setting.host, self._fixed):
            raise EngineError(f"Port {self._fixed} is taken", hint="Use another port, or end what listens there.")
        for left in reversed(range(_ATTEMPTS)):
            self._port = self._fixed or _free_port(self._setting.host)
            try:
                self._start()
                failure = self._wait()
            except BaseException:
                self.stop()
                raise
            if failure is None:
                break
            ended = not self.alive()
            self.stop()
            # Only of a server that ended: one that still loads may have complained of something it can do without.
            reason, hint = self.reason() if ended else (None, None)
            if reason != _PORT_TAKEN or self._fixed is not None or not left:
                what = f"{failure}; its log tells of {reason}" if reason else failure
                raise EngineError(what, where=f"log: {self._log}", hint=hint or "Its log says more.")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and wait until it is gone: SIGTERM, and SIGKILL after `stop_s`. May be called again."""
        if self._keeper is None:
            return
        assert self._keeper.stdin is not None
        # The keeper sees its stdin close and does the rest, as it would if we were dead.
        self._keeper.stdin.close()
        try:
            self._keeper.wait(self._file.stop_s + 10)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._reap(self._keeper)
        self._keeper = None

    @property
    def url(self) -> str:
        return f"http://{self._setting.host}:{self._port}"

    @property
    def pid(self) -> int:
        """The server's own process (its children are the engine's workers)."""
        return self._pid

    def alive(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def ended(self) -> bool:
        """Whether it ended. One that answers no more, as an engine does whose worker died, is given `stop_s` to end."""
        deadline = time.monotonic() + self._file.stop_s
        while self.alive() and not _answers(self._setting.host, self._port):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return not self.alive()

    @property
    def exit_code(self) -> int | None:
        """What it returned, or the negative of the signal that ended it; None while it runs."""
        if self._keeper is not None and self._keeper.poll() is not None:
            self._reap(self._keeper)
        return self._exit_code

    def reason(self) -> tuple[str | None, str | None]:
        """What the last lines of its log tell of its end, in our words, and the hint. The lines themselves may hold
        prompts and are not shown."""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._begun, size - _LOG_TAIL_BYTES))
                tail = file.read().decode("utf-8", "replace")
        except OSError:
            return None, None
        found = (each for each in _FAILURES if re.search(each[1], tail, re.IGNORECASE))
        reason, _, hint = next(found, (None, None, None))
        return reason, hint

    def _start(self) -> None:
        self._pid, self._exit_code = 0, None
        line = command(self._file, self._setting, self._port)
        env = environment(self._file, self._setting, self._port)
        if shutil.which(line[0], path=env.get("PATH")) is None:
            hint = f"Install it: {self._file.install}" if self._file.install else "Install it, or mend the launch file."
            raise ConfigError(f"There is no program {line[0]}", where=str(self._file.path), hint=hint)
        # As a file of its own, with nothing but the standard library: it is up in 20 ms.
        watched = [sys.executable, "-I", "-S", keeper.__file__, str(self._file.stop_s), "--", *line]
        try:
            log = self._log.open("ab")
        except OSError as error:
            raise StoreError(
                f"Cannot write the server's log: {error.strerror}", where=str(self._log), hint="Choose another --out."
            ) from None
        with log:
            self._begun = log.tell()
            self._keeper = subprocess.Popen(
                watched,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                # Ctrl-C reaches every process of the terminal: the server is ours to stop.
                start_new_session=True,
            )
        assert self._keeper.stdout is not None
        self._pid = int(self._keeper.stdout.readline() or 0)

    def _wait(self) -> str | None:
        """None as soon as it answers, else what went wrong."""
        deadline = time.monotonic() + self._file.ready_s
        while self.alive():
            if _answers(self._setting.host, self._port) and self.alive():
                return None
            if time.monotonic() > deadline:
                return f"The server did not answer within {self._file.ready_s:g} s (`ready_s`)"
            time.sleep(_POLL_S)
        code = self.exit_code
        if code == -signal.SIGKILL:
            return "The server was killed while it started, perhaps for want of memory"
        return f"The server ended while it started, with exit code {code}"

    def _reap(self, watcher: subprocess.Popen[bytes]) -> None:
        """Read the exit code that the keeper left; a keeper that was killed left none, and a server."""
        if watcher.stdout is None or watcher.stdout.closed:
            return
        told = watcher.stdout.read().split()
        watcher.stdout.close()
        if watcher.stdin is not None:
            watcher.stdin.close()
        if told:
            self._exit_code = int(told[-1])
        elif self._pid:
            keeper.signal_group(self._pid, signal.SIGKILL)
            self._exit_code = -signal.SIGKILL
        else:
            self._exit_code = watcher.returncode


def _answers(host: str, port: int) -> bool:
    """Whether the server is ready: /health says so, or, where an engine has no such page, /v1/models."""
    status = _status(host, port, "/health")
    return status == 200 or (status == 404 and _status(host, port, "/v1/models") == 200)


def _status(host: str, port: int, path: str) -> int | None:
    # Not urllib: it would ask a proxy from the environment.
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _free(host: str, port: int) -> bool:
    """Whether nothing listens there, neither on this address nor, as bind may overlook, on all."""
    with socket.socket() as probe:
        # A port on which connections were closed a moment ago is free for a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return True
    return False
