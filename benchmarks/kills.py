"""What a kill leaves of a run: the real command, killed with SIGKILL at random moments and typed again until it is
done, against the same command left alone.

Every session is a process of its own, forked from one that has loaded the libraries, and runs the command line as it
is. It dies in the middle of a line or of a batch of positions, before or after run.json is replaced, while the models
are timed, or wherever a timer finds it; now and then its files may not grow, as on a full disk. The finished run must
hold the trials, positions and counts of the other, none lost and none twice.

    python -m benchmarks.kills [--kills 30] [--seed 0] [-- FLAGS OF specbench sweep]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

FLAGS = "--limit 3 --max-new-tokens 8 --gamma 1,3 --dtype float32 --device cpu --threads 1 --probe-batch-sizes 1"
LIBRARIES = (
    "specbench.cli",
    "specbench.run.task",
    "specbench.run.session",
    "specbench.backends.local.local",
    "specbench.analysis.summarise",
    "transformers.conversion_mapping",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)
# Ways to die, and how often each is drawn; then the most calls, or seconds, that it waits for.
WAYS = {
    "trials.jsonl": (6, 16),
    "divergences.jsonl": (2, 2),
    "positions": (4, 4),
    "run.json": (2, 3),
    "replace": (2, 3),
    "probe": (2, 0.15),
    "timer": (4, 1.5),
    "full": (2, 1),
}


@dataclass(frozen=True)
class Kill:
    """How a session is to die: in the `nth` call of its way, `share` of it done, or after `share` of its seconds."""

    way: str
    nth: int
    share: float


@dataclass(frozen=True)
class Session:
    """One session as it was found: what ended it (None: it came to its end), its exit code, the trials then on disk,
    the files that end in half a line or batch, and whether the run is finished all the same."""

    died: str | None
    code: int
    trials: int
    torn: tuple[str, ...]
    finished: bool


def drawn(rng: random.Random) -> Kill:
    """A way to die, drawn anew."""
    way = rng.choices(list(WAYS), [weight for weight, _ in WAYS.values()])[0]
    share = min(1.0, 1.2 * rng.random())  # now and then all of it
    return Kill(way, rng.randint(1, max(1, int(WAYS[way][1]))), share)


def session(flags: Sequence[str], out: Path, kill: Kill | None) -> Session:
    """The command once, to its end or its death."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(flags, out, kill, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        died = pipe.read().decode() or None
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    record = max(out.glob("*/run.json"), default=None)
    folder = out / "none" if record is None else record.parent
    data = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    torn = [name for name, found in data.items() if found and not found.endswith(b"\n")]
    torn += [path.name for path in folder.glob("*.arrow") if died and died.startswith(path.name)]
    lines = data.get("trials.jsonl", b"").splitlines(keepends=True)
    trials = sum(line.endswith(b"\n") and b'"warmup":false' in line for line in lines)
    finished = record is not None and json.loads(record.read_bytes())["status"] == "finished"
    return Session(died if code else None, code, trials, tuple(sorted(torn)), finished)


def _run(flags: Sequence[str], out: Path, kill: Kill | None, pipe: int) -> None:
    """The child: the command line, with its death planted. Never returns."""
    code = 70
    try:
        with (out.parent / f"{out.name}.log").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        _make_lossy()
        if kill is not None:
            _plant(kill, pipe)
        sys.argv = ["specbench", "sweep", *flags, "--out", str(out), "--quiet"]
        import_module("specbench.cli").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def _make_lossy() -> None:
    """Accept a wrong draft now and then, the same in every session: else there would be no divergence to lose."""
    from specbench.acceptance import loop
    from specbench.acceptance.rules import accept_greedy as honest

    def lossy(logits: Any, drafts: Any) -> tuple[int, int]:
        accepted, token = honest(logits, drafts)
        if accepted < len(drafts) and int(drafts[accepted]) % 3 == 0:
            return accepted + 1, int(logits[accepted + 1].argmax())
        return accepted, token

    vars(loop)["accept_greedy"] = lossy


def _plant(kill: Kill, pipe: int) -> None:
    """Hooks into what this process calls to write; nothing of specbench is changed."""
    from specbench.acceptance.positions import PositionWriter
    from specbench.backends.local.local import LocalEngine

    left = iter(range(kill.nth - 1, -1, -1))
    write, replace, probe, append = os.write, os.replace, LocalEngine.probe, PositionWriter.append

    def due() -> bool:
        return next(left, -1) == 0

    def die(moment: str) -> None:
        write(pipe, moment.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def in_write(descriptor: int, data: Any) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.removesuffix(".tmp") == kill.way and due():
            done = write(descriptor, data[: int(kill.share * len(data))])
            die(f"{kill.way}, write {kill.nth}, byte {done:,} of {len(data):,}")
        return write(descriptor, data)

    def in_replace(source: Any, target: Any) -> None:
        last = due()
        if last and kill.share < 0.5:
            die(f"before run.json was replaced, time {kill.nth}")
        replace(source, target)
        if last:
            die(f"after run.json was replaced, time {kill.nth}")

    def in_append(self: PositionWriter, text: Any) -> None:
        before = self._path.stat().st_size if self._path.exists() else 0
        append(self, text)
        if due():  # Arrow writes where no hook reaches: what is left of a batch is cut to what a kill leaves
            whole = self._path.stat().st_size - before
            kept = int(kill.share * whole)
            os.truncate(self._path, before + kept)
            die(f"{self._path.name}, text {kill.nth}, byte {kept:,} of {whole:,}")

    def later(what: str) -> None:
        delay_s = kill.share * WAYS[kill.way][1]
        threading.Timer(delay_s, die, [f"{what}, after {delay_s:.2f} s"]).start()

    def in_probe(*args: Any, **kwargs: Any) -> Any:
        later("timing the models alone")
        return probe(*args, **kwargs)

    if kill.way == "replace":
        os.replace = in_replace  # type: ignore[assignment]
    elif kill.way == "positions":
        PositionWriter.append = in_append  # type: ignore[method-assign]
    elif kill.way == "probe":
        LocalEngine.probe = in_probe  # type: ignore[method-assign]
    elif kill.way == "timer":
        later("somewhere")
    elif kill.way == "full":
        most = 2_000 + int(kill.share * 40_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        write(pipe, f"no file may exceed {most:,} bytes: an error".encode())
    else:
        os.write = in_write


def found_in(out: Path) -> tuple[dict[Any, Any], list[str]]:
    """What the one run below `out` holds beside times, and what is wrong with it: trials that are there twice."""
    from specbench.acceptance.positions import read_positions
    from specbench.analysis.summarise import summarise
    from specbench.store import read_run, trial_key

    folders = [path.parent for path in out.glob("*/run.json")]
    wrong = [f"{len(folders)} folders instead of one"] if len(folders) != 1 else []
    stored = read_run(max(folders))
    trials = [trial for trial in stored.trials if not trial.warmup]
    tries = Counter((trial_key(trial), trial.attempt) for trial in trials)
    wrong += [f"{key} is there {count} times" for key, count in tries.items() if count > 1]
    wrong += [f"the run is {stored.status}"] if stored.status != "finished" else []
    known: dict[Any, Any] = {
        trial_key(t): (t.drafted, t.accepted, t.output_tokens, t.output_sha256, t.finish, t.identical, t.diverged)
        for t in trials
    }
    for text in read_positions(stored.folder):
        known["text", text.prompt_id, text.draft, text.repeat] = repr(text)
    names = ("gamma", "rounds", "drafted", "accepted", "tokens_per_round", "replay_rounds", "identical_prompts")
    for draft in summarise(stored).drafts:
        known["table", draft.draft] = [[getattr(row, name) for name in names] for row in draft.gammas]
    return known, wrong


def until_finished(flags: Sequence[str], out: Path, rng: random.Random, kills: int) -> Iterator[Session]:
    """Sessions of one run, at most so many of them killed."""
    while True:
        one = session(flags, out, drawn(rng) if kills > 0 else None)
        yield one
        if one.finished or one.died is None or one.code not in (-signal.SIGKILL, 2):
            return
        kills -= 1


def trial_of_kills(
    flags: Sequence[str], kills: int, seed: int, folder: Path, say: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Kill that often, run after run until each is finished; how many runs that took, and what was wrong with them.
    `say` gets the lines of a Markdown table."""
    rng = random.Random(seed)
    (folder / "alone").mkdir()
    whole = session(flags, folder / "alone", None)
    expected, wrong = found_in(folder / "alone")
    parted = sum(key[0] not in ("text", "table") and known[-1] is not None for key, known in expected.items())
    say(f"Left alone: {whole.trials} trials, {parted} divergences, exit code {whole.code}\n")
    say("| kill | when | trials on disk | torn | then |\n|---|---|---|---|---|")
    done = runs = 0
    while done < kills and not wrong:
        runs += 1
        out = folder / f"killed-{runs}"
        out.mkdir()
        before = 0
        for one in until_finished(flags, out, rng, kills - done):
            if one.trials < before or one.code not in (-signal.SIGKILL, 2, 0):
                wrong.append(f"after kill {done}: exit code {one.code}, {one.trials} trials on disk of {before}")
            before = one.trials
            if one.died is not None:
                done += 1
                then = "it was finished" if one.finished else "continued"
                say(f"| {done} | {one.died} | {one.trials} | {', '.join(one.torn) or '-'} | {then} |")
        found, more = found_in(out)
        wrong += more + [f"{key} is {found.get(key)}, not {expected.get(key)}" for key in _differ(expected, found)]
        say(f"| | run {runs}, {one.trials} trials | | | {'NOT ' if wrong else ''}as left alone: {len(found)} facts |")
    return runs, wrong


def _differ(one: dict[Any, Any], other: dict[Any, Any]) -> list[Any]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def main() -> None:
    """Print the table; exit code 1 where anything was lost, twice or other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help=f"of specbench sweep; default: {FLAGS}")
    args = parser.parse_args()
    for name in LIBRARIES:
        import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        say = lambda line: print(line, flush=True)  # noqa: E731
        runs, wrong = trial_of_kills(args.flags or FLAGS.split(), args.kills, args.seed, Path(folder), say)
        print(f"\n{args.kills} kills over {runs} runs; {len(wrong)} things wrong")
        for line in wrong[:20]:
            print(f"- {line}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
