"""Recorded answers read by servers: a draft's server says what it would have said in place of each token, from one
request an answer.

A draft that takes its likeliest token is accepted where that is the answer's own, at any temperature. One that samples
at temperature 1 needs log p(x) and log q(x) of the answer's own tokens and nothing else. Given the text, a round keeps
its first k drafts with the chance prod min(1, q(x)/p(x)), and over texts drawn from p that is what speculation keeps:
sum over x of prod p min(1, q/p) = sum of prod min(p, q) (docs/measuring.md). At other temperatures, and under top-k or
top-p, p and q of the answer's token are not what servers tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from specbench.acceptance.scores import own_token_scores
from specbench.backends.base import Item, Noticed, Scored, Scoring, TargetText, Texts
from specbench.backends.server.preflight import ADAPTERS, detect, model_name
from specbench.backends.server.provider import ServerHandle, client_of
from specbench.backends.server.replay import ServerScoring
from specbench.backends.server.scoring import Scorer, Top
from specbench.backends.server.traffic import call, stream
from specbench.config import RunConfig
from specbench.drafters.spec import DraftSpec
from specbench.errors import ConfigError
from specbench.records import Sampling
from specbench.run_record import ModelFacts
from specbench.store import RunWriter

# Under this name the server of the target is asked.
TARGET = "the target"


def on_server(config: RunConfig, specs: dict[str, DraftSpec]) -> dict[str, DraftSpec]:
    """The drafts of a run over recorded answers whose model a server reads. Raises ConfigError for what none can be
    asked."""
    if config.draft_server is None:
        if config.server is not None:
            raise ConfigError(
                "Recorded answers are read by a draft's server, or in this process",
                where="--server",
                hint="Add --draft-server, or leave it out.",
            )
        return {}
    found = {text: spec for text, spec in specs.items() if spec.model is not None}
    sampling = [spec for spec in found.values() if not spec.sampling(config.sampling).greedy]
    refused = (
        (len({spec.model for spec in found.values()}) != 1, "--draft-server", "It holds one draft model", "Name one."),
        (any(s.kind != "model" for s in found.values()), "--draft", "No server can be asked about such a draft",
         "Leave --draft-server out: it is read in this process."),
        (len(config.loads) > 1, "--concurrency", "A load means nothing without a wall clock", "Name one."),
        (config.sampling.penalised, "--repetition-penalty", "A server tells what it finds before any penalty",
         "Leave --draft-server out."),
        (bool(sampling) and config.server is None, "--draft", "This draft samples, which needs the target's server",
         "Add --server, or write the draft with ,sample=greedy."),
        (bool(sampling) and config.sampling != Sampling(temperature=1.0), "--temperature",
         "A draft that samples is asked at temperature 1, without top-p, top-k or min-p",
         "Write it with ,sample=greedy, or leave --draft-server out."),
        (any(spec.cutoff for spec in sampling), "--cutoff", "Of a draft that samples no server tells its confidence",
         "Leave it out."),
        (not sampling and config.server is not None, "--server", "A draft that takes its likeliest token needs none",
         "Leave it out."),
    )  # fmt: skip
    for wrong, where, what, hint in refused:
        if wrong:
            raise ConfigError(what, where=where, hint=hint)
    return found


class _Running:
    """Servers that run already: of the draft, and of the target where a draft samples."""

    launch = version = None

    def __init__(self, config: RunConfig, specs: dict[str, DraftSpec]) -> None:
        self._config = config
        draft = next(spec.model for spec in specs.values())
        first, second = config.served_names
        assert config.draft_server is not None
        self._draft = self._met(config.draft_server, second or first, draft)
        self._target = None if config.server is None else self._met(config.server, first, config.target)
        self.adapter = self._draft.adapter
        for up in (self._target, self._draft) if self._target is not None else ():
            if up is not None and not isinstance(up.adapter, Scorer):
                raise ConfigError(
                    f"{up.adapter.name} does not tell log-probabilities of a given text",
                    where=up.url,
                    hint="Serve it with vLLM or SGLang, or write the draft with ,sample=greedy.",
                )

    def _met(self, url: str, wanted: str | None, guess: str | None) -> ServerHandle:
        async def meet() -> ServerHandle:
            async with client_of(self._config, url) as client:
                named = self._config.engine
                adapter = await detect(client.get) if named == "local" else ADAPTERS[named]()
                return ServerHandle(url, adapter, model=await model_name(client.get, url, wanted, guess))

        return call(meet)

    @contextmanager
    def alone(self, draft: str | None, folder: Path) -> Iterator[ServerHandle]:
        found = self._target if draft == TARGET else self._draft
        assert found is not None
        yield found


class _Asked(ServerScoring):
    """What servers say of answers."""

    def score(self, texts: Sequence[tuple[Item, TargetText]], draft: str) -> Scored:
        spec = self._specs[draft]
        if spec.sampling(self._config.sampling).greedy:
            yield from super().score(texts, draft)
            return
        p = {item.prompt.id: _own(tops, TARGET) for item, _, tops in self._tops(texts, TARGET)}
        for item, text, tops in self._tops([one for one in texts if one[0].prompt.id in p], draft):
            blocks = self._looked_up(spec, text) if spec.look_up else None
            sure = [place.sure for place in tops]
            yield item, own_token_scores(p[item.prompt.id], _own(tops, draft), sure, blocks)

    def _tops(self, texts: Sequence[tuple[Item, TargetText]], who: str) -> Iterator[tuple[Item, TargetText, list[Top]]]:
        with self._provider.alone(who, self._writer.folder) as up:
            yield from stream(partial(self._asked, up, texts, who))


def _own(tops: Sequence[Top], who: str) -> list[float]:
    found = [place.own_logprob for place in tops]
    if None in found:
        raise ConfigError(
            f"The server of {who} does not tell how likely it finds the tokens of a text", hint="Serve it with vLLM."
        )
    return [each for each in found if each is not None]


class RecordedScoring:
    """Drafts on a server beside those that are read in this process, by `local`."""

    def __init__(
        self,
        local: Scoring,
        config: RunConfig,
        specs: dict[str, DraftSpec],
        tokenizer: Any,
        ends: frozenset[int],
        writer: RunWriter,
        say: Callable[[str], None],
    ) -> None:
        self.noticed: Noticed = local.noticed
        self._local = local
        self._served = specs
        provider: Any = _Running(config, specs)
        self._asked = _Asked(config, specs, provider, writer, say, local.noticed)
        self._asked.reads_as(tokenizer, ends)

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        yield from self._local.batches(items)

    def prepare(self, drafts: Sequence[str]) -> None:
        self._asked.prepare([draft for draft in drafts if draft in self._served])

    def write(self, batch: Sequence[Item], missing: Sequence[Item], repeat: int) -> Texts:
        return self._local.write(batch, missing, repeat)

    def score(self, texts: Sequence[tuple[Item, TargetText]], draft: str) -> Scored:
        return (self._asked if draft in self._served else self._local).score(texts, draft)


def facts_of(spec: DraftSpec) -> ModelFacts:
    """What is known here of a draft that a server reads."""
    return ModelFacts(name=spec.model, reader=spec.reader)
