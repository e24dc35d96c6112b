"""What has to be true of a server before its times mean anything: it is the right one, and it drafts as it should."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePath

from specbench.backends.server.adapter import Completion, State
from specbench.config import SERVED
from specbench.drafters.spec import DraftSpec
from specbench.errors import ConfigError, EngineError
from specbench.records import Caution


def check_alone(state: State, url: str) -> list[Caution]:
    """The server with the target alone must not speculate. Raises ConfigError."""
    if state.speculating:
        raise ConfigError(
            f"The server of the target alone speculates ({state.method or 'in a way that it does not name'})",
            where=url,
            hint="Start it without a draft: it is what speculation is compared with.",
        )
    return _idle(state, url)


def check_speculating(state: State, alone: State | None, gamma: int, url: str) -> list[Caution]:
    """A server that drafts, the same model behind it, the gamma that was asked for. Raises ConfigError."""
    if state.speculating is False:
        raise ConfigError(
            "This server does not speculate: it may have loaded a draft and never use it, or refused its vocabulary",
            where=url,
            hint="Name the method with the draft (llama.cpp: --spec-type draft-simple), and see the server's log.",
        )
    names = [PurePath(each.model).name if each and each.model else None for each in (alone, state)]
    if None not in names and names[0] != names[1]:
        raise ConfigError(
            f"The two servers serve different models: {names[0]} and {names[1]}",
            where=url,
            hint="Serve the same target, alone and with a draft.",
        )
    if state.gamma is not None and state.gamma != gamma:
        raise ConfigError(
            f"The server was started with gamma {state.gamma}, not {gamma}",
            where=url,
            hint=f"Use --gamma {state.gamma}.",
        )
    return _idle(state, url)


def check_drafts(
    answers: Sequence[Completion], state: State, spec: DraftSpec, gamma: int, url: str, *, started: bool
) -> list[Caution]:
    """What the first answers show of drafting. A draft model drafts in every round but the last ones of a text; a
    look-up may find nothing. Of a server that we `started` we know what it was told. Raises EngineError."""
    rounds = [drafted for answer in answers for drafted in answer.drafted]
    totals = [answer.told.drafted for answer in answers if answer.told.drafted is not None]
    seen = sum(rounds) + sum(totals)
    if max(rounds, default=0) > gamma:
        raise EngineError(
            f"Gamma is not honoured: a round drafted {max(rounds)} tokens, not at most {gamma}",
            where=url,
            hint="Start the server with that draft length; requests cannot change it.",
        )
    room = any(answer.output_tokens > gamma + 1 for answer in answers)
    steady = started and spec.model is not None and spec.ngram is None and not spec.cutoff
    if steady and room and 0 < max(rounds, default=0) < gamma:
        raise EngineError(
            f"Gamma is not honoured: no round drafted more than {max(rounds)} tokens, not {gamma}",
            where=url,
            hint=f"Use --gamma up to {max(rounds)}: this draft, or this engine, gives no more.",
        )
    # A look-up may find nothing in so short a text; of a server that we did not start we may not know that it is one.
    look_up = spec.model is None or (spec.model == SERVED and state.method is None) or "ngram" in (state.method or "")
    if seen or (look_up and state.speculating):
        return []
    if state.speculating is None:
        return [
            Caution(
                "speculation-not-told",
                "the server tells neither that it speculates nor what it drafts: acceptance is unknown",
                "Name the engine with --engine, and switch on its metrics.",
            )
        ]
    raise EngineError(
        "The server drafted nothing in the warm-up",
        where=url,
        hint="See its log: a draft may be loaded and never used, or its vocabulary does not fit.",
    )


def check_prefix_cache(answers: Sequence[Completion], state: State) -> list[Caution]:
    """A prompt that was asked twice must have been read twice."""
    reused = max((answer.told.cached_tokens or 0 for answer in answers), default=0)
    if not state.prefix_cache and not reused:
        return []
    return [
        Caution(
            "prefix-cache",
            "the server answers prompts from earlier ones"
            + (f" ({reused} tokens of a warm-up prompt were not read again)" if reused else "")
            + ": time to first token depends on what was asked before",
            "Switch it off (vLLM: --no-enable-prefix-caching, SGLang: --disable-radix-cache).",
        )
    ]


def check_read(unread: Collection[str], url: str) -> list[Caution]:
    """What prompts have beside their messages must be in what the model reads."""
    if not unread:
        return []
    what = " and ".join(sorted(unread))
    return [
        Caution(
            "prompt-not-read",
            f"with {what} the first prompt that has them is as long as without, at {url}: the server drops them, or "
            "the model's chat template writes nothing for them",
            "Serve the model with a chat template that reads them, or leave them out of the prompts.",
        )
    ]


def check_defaults(state: State) -> list[Caution]:
    """A server may have been started with, or its model file may hold, sampling that no request asks for."""
    if not state.defaults:
        return []
    listed = ", ".join(f"{name} {value:g}" for name, value in state.defaults.items())
    return [
        Caution(
            "server-defaults",
            f"the server applies what the run did not ask for: {listed}",
            "Start it without, or take it as a part of what was measured: elsewhere texts are others.",
        )
    ]


def _idle(state: State, url: str) -> list[Caution]:
    if not state.busy:
        return []
    return [
        Caution(
            "busy-server",
            f"the server at {url} was working on {state.busy} other requests",
            "Measure a server that nobody else uses, or at a quiet hour.",
        )
    ]
