"""The runs that are kept under reports/, how each is measured, and the briefs that are written of them.

python -m tools.kept                    write every kept brief anew, and what pages quote of them: make kept
python -m tools.kept measure [NAME..]   measure these runs anew, or all, then write every brief: make measure-kept
python -m tools.kept measure --limit 2  try every command on two prompts, and keep nothing
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPORTS = Path(__file__).parent.parent / "reports"
RUN_FILES = ("run.json", "trials.jsonl", "stretches.jsonl", "divergences.jsonl", "positions-*.arrow")

Briefs = Mapping[str, tuple[str, Mapping[str, Any]]]

# Folder under reports/ -> run and policy that its brief is written from.
BRIEFS: Briefs = {
    "example": ("example", {}),
    "llamacpp": ("llamacpp", {}),
    "mixed": ("example", {"mix": {"code-edit": 0.6, "chat": 0.4}, "min_speedup": 1.4}),
    "unclear": ("example", {"min_speedup": 1.5}),
    "hybrid": ("hybrid", {}),
    "recorded": ("recorded", {}),
}


@dataclass(frozen=True)
class Measured:
    """A run of `limit` prompts. `commands` are those of specbench, in which {work} is a folder of its own and {before}
    the run folder of the command before; `prepare` puts what they need into it. `minutes` on two quiet cores."""

    minutes: float
    limit: int
    commands: tuple[str, ...]
    prepare: Callable[[Path, int], None] = field(default=lambda work, limit: None)


def hybrid_target(work: Path, limit: int) -> None:
    """A tiny target with recurrent states and random weights, and demo:draft's tokenizer: its texts mean nothing, what
    its rounds cost in reading again does."""
    import torch
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    from specbench.models import load_tokenizer

    tokenizer = load_tokenizer("demo:draft")
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        num_experts=0,
        layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    Qwen3NextForCausalLM(config).save_pretrained(work / "random-hybrid")
    tokenizer.save_pretrained(work / "random-hybrid")


def log_of_answers(work: Path, limit: int) -> None:
    """Chats whose answers the embedded target wrote."""
    words = f"measure --draft ngram:n=3 --limit {limit} --max-new-tokens 48 --gamma 1 --keep-text --slice-tokens 0"
    folder = specbench(f"{words} --probe-batch-sizes 1", work)
    trials = map(json.loads, (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines())
    rows = {
        trial["prompt_id"]: {
            "id": trial["prompt_id"],
            "category": trial["category"],
            "messages": [
                {"role": "user", "content": trial["prompt_text"]},
                {"role": "assistant", "content": trial["output_text"]},
            ],
        }
        for trial in trials
        if not trial["warmup"] and trial["arm"]["kind"] == "baseline"
    }
    (work / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")


FOUR = "--draft demo:draft --draft ngram:n=3 --draft ngram:n=3+demo:draft --draft demo:eagle3"
SERVER = "--engine llamacpp --draft demo:draft --draft ngram:n=3 --gamma 1,3 --max-new-tokens 16"

RUNS: Mapping[str, Measured] = {
    "example": Measured(15, 115, (f"sweep --name mixed {FOUR} --gamma 1..3 --max-new-tokens 16",)),
    "llamacpp": Measured(
        8,
        30,
        (f"probe {SERVER} --concurrency 1,2", f"sweep --name llamacpp {SERVER} --costs {{before}}"),
    ),
    "hybrid": Measured(
        1,
        24,
        (
            "sweep --name hybrid --target random-hybrid --draft skip:layers=3 --gamma 1,2,4 --max-new-tokens 24 "
            "--dtype float32 --all-gammas",
        ),
        hybrid_target,
    ),
    "recorded": Measured(
        2, 40, (f"sweep --name recorded --answers recorded --workload log.jsonl {FOUR}",), log_of_answers
    ),
}


def specbench(words: str, work: Path) -> Path:
    """Run a command in the folder `work`; the run folder that it made there."""
    out = work / "reports"  # as by default: the command is kept, and quoted as what to do next
    known = set(out.iterdir()) if out.exists() else set()
    command = [sys.executable, "-m", "specbench", *shlex.split(words)]
    path = os.pathsep.join(filter(None, (str(REPORTS.parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": path}, check=False)
    if done.returncode:
        raise SystemExit(f"specbench {words}: exit code {done.returncode}")
    (made,) = set(out.iterdir()) - known
    return made


def measure(name: str, limit: int | None) -> None:
    """One run, and its files in reports/, or nowhere where a `limit` of prompts is given."""
    run = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        work, start_s = Path(folder), time.monotonic()
        shutil.copytree(REPORTS.parent / "workloads", work / "workloads")  # else their place would be this machine's
        run.prepare(work, limit or run.limit)
        before = Path()
        for command in run.commands:
            words = command.format(before=before.relative_to(work) if before.parts else "")
            more = "" if words.startswith("probe") else " --fresh"
            before = specbench(f"{words} --limit {limit or run.limit}{more}", work)
        print(f"{name}: {(time.monotonic() - start_s) / 60:.1f} minutes, {run.minutes:g} foreseen")
        if limit is not None:
            brief(before, {}, work / "brief")
            return
        to = REPORTS / name
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        for pattern in RUN_FILES:
            for file in before.glob(pattern):
                shutil.copyfile(file, to / file.name)


def brief(run: Path, policy: Mapping[str, Any], to: Path) -> None:
    """Write the brief of a run, of recorded answers that of their acceptance."""
    import specbench as package
    from specbench.api import recorded_acceptance
    from specbench.report.brief import write_acceptance_brief
    from specbench.store import read_run

    stored = read_run(run)
    if stored.run.answers is None:
        package.load_run(run, **policy).write_brief(to)
    else:
        write_acceptance_brief(stored, recorded_acceptance(stored, stored.run.config.gamma), to)


def write() -> None:
    """Every brief of a run that is there, with nothing left over of an older one."""
    os.chdir(REPORTS.parent)
    for name, (run, policy) in BRIEFS.items():
        folder = Path("reports") / name
        if not (REPORTS / run / "run.json").exists():
            continue
        for old in [*folder.glob("brief.*"), *folder.glob("figures/*")]:
            old.unlink()
        brief(Path("reports") / run, policy, folder)


def quote() -> None:
    """What README and docs show of kept runs."""
    from specbench import load_run
    from specbench.analysis.compare import compared
    from specbench.report.dialect import PLAIN, sentence_of
    from specbench.store import read_run

    words = [sys.executable, "-m", "specbench", "show", "reports/example"]
    shown = subprocess.run(
        words, env={**os.environ, "COLUMNS": "80"}, check=True, capture_output=True, text=True
    ).stdout
    choice = load_run("reports/example").summary.choice
    assert choice is not None, "the README shows a run of several drafts"
    table = of_the_choice(shown, choice.draft)
    _between("README.md", "<!-- example:table -->\n", "<!-- /example:table -->", f"```text\n{table}\n```\n")
    found = compared(read_run(REPORTS / "example"), read_run(REPORTS / "llamacpp"))
    reasons = "\n>\n".join(f"> `{draft.draft}`: **{sentence_of('compared', PLAIN, draft)}**" for draft in found.drafts)
    _between("docs/engines.md", "reports/llamacpp`:\n\n", "\n\nThe weights differ", reasons)


def of_the_choice(shown: str, draft: str) -> str:
    """Of what `specbench show` prints, what all drafts have in common and the first table of one of them."""
    common = "\n\n".join(shown.split("\n\n", 2)[:2])
    own = shown.split(f"  {draft}: ", 1)[1].split("\nMeasured wall clock")[0].splitlines()
    head = next(number for number, line in enumerate(own) if line.startswith("gamma"))
    return "\n".join(line.rstrip() for line in [*common.strip().splitlines(), "", *own[head - 1 :]])


def _between(page: str, begin: str, end: str, text: str) -> None:
    path = Path(page)
    before, rest = path.read_text(encoding="utf-8").split(begin, 1)
    path.write_text(before + begin + text + end + rest.split(end, 1)[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.kept", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["measure"], help="measure anew; default: briefs alone")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--limit", type=int, help="try it on so many prompts, and keep nothing")
    args = parser.parse_args()
    for name in (args.names or RUNS) if args.what else ():
        measure(name, args.limit)
    if args.limit is None:
        write()
        quote()


if __name__ == "__main__":
    main()
