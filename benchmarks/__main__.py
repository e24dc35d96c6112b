"""`python -m benchmarks [NAME...]`: run the named benchmarks, or those with targets. Heavy imports wait for the run."""

from __future__ import annotations

import argparse
from importlib import import_module

BENCHMARKS = {
    "baseline": "our loop against transformers generate: the target alone, and with a draft at gamma 1, 2 and 4",
    "replay": "the whole acceptance curve from one text, against re-running transformers for every gamma",
    "recorded": "drafts over answers that are there, against having the target write them",
    "saving": "a sweep that stops what is surely not the best, against every gamma: trials, seconds, both verdicts",
    "slices": "the noise of a speedup by how often the arms of a prompt take turns, from whole trials to single tokens",
    "predictions": "predicted speedups beside measured ones: three kinds of draft, gamma 1 to 6, batches of 1 and 4",
    "calibration": "intervals and verdicts on fake traffic whose true speedup is planted: how often they are right",
    "tool": "CPU seconds and memory of help, workload and brief, beside what Python and its libraries take",
    "growth": "time and memory of the tool itself against prompts, gammas and drafts: does it stay linear?",
    "outside": "what a real sweep spends outside the passes of its models",
    "compiled": "torch.compile on the CPU against the lean pass: what it saves, and after how many passes it pays",
    "client": "the client of servers against bare sockets: what it adds to times, CPU a request; two equal servers",
    "soak": "thousands of prompts through a whole run: whether its memory stays flat, and no cache outlives its trial",
}

# What has targets to meet: ten minutes on two quiet cores.
TARGETS = ("baseline", "outside", "tool")
# Only when named: not every machine has one.
NAMED = {"gpu": "the first benchmark, and batches, on a CUDA device"}


def main() -> None:
    """Parse, then call `main(quick=...)` of each named module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    every = BENCHMARKS | NAMED
    usage = f"one of {', '.join(every)}; default: {', '.join(TARGETS)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=usage)
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    parser.add_argument("--quick", action="store_true", help="a smoke test of about a minute: no intervals")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in every]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there is {', '.join(every)}")
    if args.list:
        for name, what in every.items():
            print(f"{name}: {what}")
        return
    for name in args.names or TARGETS:
        import_module(f"benchmarks.{name}").main(quick=args.quick)


if __name__ == "__main__":
    main()
