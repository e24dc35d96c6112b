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

DRAFTS = ("draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark")
# Their own settings by name, with the program's defaults.
_SIZES = {"size-n": 12, "size-m": 48, "min-hits": 1}
LOOK_UPS = {
    "ngram-simple": _SIZES,
    "ngram-map-k": _SIZES,
    "ngram-map-k4v": _SIZES,
    "ngram-mod": {"n-match": 24, "n-min": 48, "n-max": 64},
    "ngram-cache": {},
}


def main(arguments: list[str] | None = None) -> int:
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
    parser.add_argument("--spec-type", type=_types, default=())
    parser.add_argument("--spec-draft-model")
    parser.add_argument("--spec-draft-n-max", type=int, default=3)
    parser.add_argument("--spec-draft-n-min", type=int, default=0)
    parser.add_argument("--spec-draft-p-min", type=float, default=0.0)
    for way, sizes in LOOK_UPS.items():
        for name, default in sizes.items():
            parser.add_argument(f"--spec-{way}-{name}", type=int, default=default)
    parser.add_argument("--spec-synth-rates", type=_rates, default=[])
    parser.add_argument("--version", action="store_true")
    return parser


def _types(text: str) -> tuple[str, ...]:
    """`ngram-simple,draft-simple`."""
    found = tuple(text.split(","))
    strange = [each for each in found if each not in ("none", *DRAFTS, *LOOK_UPS)]
    if strange:
        raise argparse.ArgumentTypeError(f"there is no {strange[0]!r}")
    return tuple(each for each in found if each != "none")


def _rates(text: str) -> list[float]:
    return [float(each) for each in text.split(",")]


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
    speculative, types = params.speculative, given.spec_type
    if types:
        names = xllamacpp.common_speculative_type
        speculative.types = [
            getattr(names, f"COMMON_SPECULATIVE_TYPE_{each.upper().replace('-', '_')}") for each in types
        ]
    draft = speculative.draft
    draft.n_max, draft.n_min, draft.p_min = given.spec_draft_n_max, given.spec_draft_n_min, given.spec_draft_p_min
    if given.spec_draft_model is not None:
        draft.mparams.path = given.spec_draft_model
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = given.threads
    for way, sizes in LOOK_UPS.items():
        for name in sizes:
            own, field = way.replace("-", "_"), name.replace("-", "_")
            setattr(getattr(speculative, own), field, getattr(given, f"spec_{own}_{field}"))
    speculative.synth_rates = given.spec_synth_rates
    return params


if __name__ == "__main__":
    sys.exit(main())
