"""llama.cpp's server inside a Python process: the package xllamacpp, with flags named as those of llama-server.

    python -m specbench.backends.server.xllama --model target.gguf --port 8080

For machines without llama-server: the package is one download and has no flags of its own.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

_TYPES = {"draft-simple": "DRAFT_SIMPLE", "ngram-simple": "NGRAM_SIMPLE"}


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal ends the process."""
    given = _flags().parse_args(arguments)
    if given.version:
        from importlib.metadata import version

        print(f"xllamacpp {version('xllamacpp')}")
        return 0
    # It reports a file that is not there as damaged, and everything as wrong parameters.
    for path in filter(None, (given.model, given.spec_draft_model, given.chat_template_file)):
        if not Path(path).is_file():
            print(f"{path}: No such file or directory", file=sys.stderr)
            return 1
    import xllamacpp

    try:
        server = xllamacpp.Server(_parameters(xllamacpp, given))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)
    while True:
        # SIGTERM keeps its default, which ends the process at once: nothing has to be put in order.
        signal.pause()


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="specbench.backends.server.xllama", allow_abbrev=False)
    parser.add_argument("--model", required="--version" not in sys.argv)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--parallel", type=int, default=1, help="sequences side by side")
    parser.add_argument("--ctx-size", type=int, default=4096, help="tokens of all sequences together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chat-template-file", type=Path, help="instead of the model's own")
    parser.add_argument("--spec-type", choices=["none", *_TYPES], default="none")
    parser.add_argument("--spec-draft-model")
    parser.add_argument("--spec-draft-n-max", type=int, default=3)
    parser.add_argument("--spec-draft-n-min", type=int, default=0)
    parser.add_argument("--spec-draft-p-min", type=float, default=0.0)
    parser.add_argument("--spec-ngram-simple-size-n", type=int, default=12)
    parser.add_argument("--spec-ngram-simple-size-m", type=int, default=48)
    parser.add_argument("--version", action="store_true")
    return parser


def _parameters(xllamacpp: Any, given: argparse.Namespace) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.hostnames, params.port = [given.host], given.port
    params.n_parallel, params.n_ctx = given.parallel, given.ctx_size
    # Every sequence has its own part, n_ctx / n_parallel: a long one cannot push out another.
    params.kv_unified = False
    # Prompts of earlier requests are not kept in memory: copying them there would be part of the next one's time.
    params.cache_ram_mib = 0
    params.endpoint_metrics = params.endpoint_props = params.endpoint_slots = True
    params.ui = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    if given.chat_template_file is not None:
        params.chat_template = given.chat_template_file.read_text(encoding="utf-8")
    speculative = params.speculative
    if given.spec_type != "none":
        names = xllamacpp.common_speculative_type
        speculative.types = [getattr(names, f"COMMON_SPECULATIVE_TYPE_{_TYPES[given.spec_type]}")]
    if given.spec_type == "draft-simple":
        draft = speculative.draft
        draft.mparams.path = given.spec_draft_model or ""
        draft.n_max, draft.n_min, draft.p_min = given.spec_draft_n_max, given.spec_draft_n_min, given.spec_draft_p_min
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = given.threads
    if given.spec_type == "ngram-simple":
        look_up = speculative.ngram_simple
        look_up.size_n, look_up.size_m = given.spec_ngram_simple_size_n, given.spec_ngram_simple_size_m
        look_up.min_hits = 1
    return params


if __name__ == "__main__":
    sys.exit(main())
