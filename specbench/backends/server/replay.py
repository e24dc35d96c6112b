"""Acceptance from servers that do not speculate: the target writes its greedy texts, each draft is asked about them.

Greedy, a draft is accepted exactly where its likeliest token is the text's next one, so that the target's own engine
with speculation off, and a server of the draft alone, are enough to know the rounds of every gamma.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from specbench.acceptance.scores import BlockScores, LookUp, greedy_scores, match_blocks
from specbench.backends.base import Item, Noticed, Scored, TargetText, Texts
from specbench.backends.server import preflight
from specbench.backends.server.adapter import RefusedError, ask_of
from specbench.backends.server.asking import Asking, RetryPolicy
from specbench.backends.server.client import Client
from specbench.backends.server.provider import Provider, ServerHandle, client_of, engine_name, note_server
from specbench.backends.server.scoring import (
    PROBES,
    Ids,
    Scorer,
    StepScorer,
    Tokenizing,
    Top,
    Writer,
    probed,
    require_same,
    score_output,
)
from specbench.backends.server.traffic import call, each, stream
from specbench.config import RunConfig
from specbench.drafters.lookup import NgramLookUp, RecentLookUp, SuffixLookUp
from specbench.drafters.spec import DraftSpec
from specbench.errors import ConfigError, EngineError
from specbench.kinds import MAX_GAMMA
from specbench.records import warned
from specbench.run_record import ServedBy
from specbench.store import RunWriter

# Prompts that are written and then scored where both servers run: as much would be lost if we were killed.
BLOCK = 16

T = TypeVar("T")


def require_scorable(config: RunConfig, specs: dict[str, DraftSpec]) -> None:
    """Refuse what cannot be known from log-probabilities of single tokens, or without a wall clock."""
    if not config.sampling.greedy:
        raise ConfigError(
            f"At temperature {config.temperature:g} acceptance depends on whole distributions, which no server tells",
            where="--temperature",
            hint="Use temperature 0, or --engine local.",
        )
    if config.sampling.penalised and any(spec.model is not None for spec in specs.values()):
        raise ConfigError(
            "A server tells what a draft finds likeliest before any repetition penalty",
            where="--repetition-penalty",
            hint="Use --engine local, or look texts up with --draft ngram:n=3, which is exact.",
        )
    if len(config.loads) > 1:
        raise ConfigError("A load means nothing without a wall clock", where="--replay-only", hint="Name one client.")
    if config.spec_server is not None:
        raise ConfigError("Nothing speculates in a replay", where="--spec-server", hint="Leave it out.")
    for spec in specs.values():
        own = (spec.ngram is not None and spec.ngram.way is not None) or (
            spec.suffix is not None and spec.suffix.corpus
        )
        if spec.kind in ("skip", "cross", "mtp") or own:
            raise ConfigError(
                "No server can be asked about such a draft", where=spec.text, hint="Use --engine local for it."
            )
    if config.server is None:
        return
    models = {spec.model for spec in specs.values() if spec.model is not None}
    if models and config.draft_server is None:
        raise ConfigError(
            "The draft has to be asked, too",
            where="--draft-server",
            hint="Serve it alone and name the address, or look texts up with --draft ngram:n=3.",
        )
    if len(models) != 1 and config.draft_server is not None:
        named = f"{len(models)} draft models" if models else "only look-ups, which need no server,"
        raise ConfigError(f"One draft model has that server, and {named} are named", where="--draft-server")


def require_writer(provider: Provider) -> None:
    """Refuse an engine whose texts are not known as token ids."""
    if not isinstance(provider.adapter, Writer):
        raise ConfigError(
            f"{provider.adapter.name} does not tell the token ids of its texts",
            where="--replay-only",
            hint="Serve the target with llama.cpp or vLLM, and name it with --engine.",
        )


class ServerScoring:
    """One session of a run. Texts are kept in memory alone, as token ids."""

    def __init__(
        self,
        config: RunConfig,
        specs: dict[str, DraftSpec],
        provider: Provider,
        writer: RunWriter,
        say: Callable[[str], None],
        noticed: Noticed | None = None,
    ) -> None:
        self.noticed = Noticed() if noticed is None else noticed
        self._config = config
        self._specs = specs
        self._provider = provider
        self._writer = writer
        self._say = say
        self._asking = Asking()
        self._patience = RetryPolicy(self.noticed)
        self._unread: set[str] | None = None
        self._read_again = 0
        self._ends: frozenset[int] = frozenset((writer.run.served or ServedBy()).ends)
        self._ids: dict[str | None, Ids | None] = {}  # of PROBES, by draft
        self._text_of: Callable[[Sequence[int]], str] | None = None

    def reads_as(self, tokenizer: Any, ends: frozenset[int]) -> None:
        """What cuts the texts into the token ids that servers are asked about, and which of them end texts."""
        self._ids[None] = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROBES]
        self._text_of = tokenizer.decode
        self._ends |= ends

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        size = BLOCK if self._provider.launch is None else len(items)
        return (items[begin : begin + size] for begin in range(0, len(items), size))

    def prepare(self, drafts: Sequence[str]) -> None:
        for draft in drafts:
            if self._specs[draft].model is None or draft in self._ids:
                continue
            self._say(f"Checking the server of {draft}")
            with self._provider.alone(draft, self._writer.folder) as up:
                call(partial(self._meet, up, draft))

    async def _meet(self, up: ServerHandle, draft: str) -> None:
        async with self._session(up, draft):
            pass

    def write(self, batch: Sequence[Item], missing: Sequence[Item], repeat: int) -> Texts:
        ends: set[int] = set()

        async def work(up: ServerHandle, put: Callable[[tuple[Item, TargetText]], None]) -> None:
            async with self._session(up, None) as (client, there):
                writer = there.adapter
                assert isinstance(writer, Writer)
                asks = {item.prompt.id: ask_of(item.prompt, self._config, self._config.seed) for item in missing}
                if self._unread is None:
                    self._unread = await self._asking.unread(client, there, list(asks.values()))
                    self.noticed.cautions += preflight.check_read(self._unread, up.url)

                async def write(item: Item) -> None:
                    attempt = partial(writer.write, client.post, asks[item.prompt.id], there.model)
                    found = await self._tried(attempt, there, item, "the target")
                    if found is not None:
                        if found.finish == "eos":
                            ends.add(found.output[-1])
                        put((item, found))

                await each(missing, self._config.concurrency[0], write)

        with self._provider.alone(None, self._writer.folder) as up:
            yield from stream(partial(work, up))
        self._ends |= ends
        # Token ids that end texts of this model: a later session must not judge by fewer.
        served = self._writer.run.served or ServedBy()
        self._writer.update(served=replace(served, ends=tuple(sorted(self._ends))))

    def score(self, texts: Sequence[tuple[Item, TargetText]], draft: str) -> Scored:
        """A look-up needs no server."""
        spec = self._specs[draft]
        if spec.model is None and spec.look_up:
            for item, text in texts:
                yield item, self._looked_up(spec, text)
        elif texts:
            with self._provider.alone(draft, self._writer.folder) as up:
                for item, text, tops in stream(partial(self._asked, up, texts, draft)):
                    judged = [(place.top, place.top_logprob, place.sure) for place in tops]
                    blocks = self._looked_up(spec, text) if spec.look_up else None
                    yield item, greedy_scores(text.output, judged, self._ends, blocks)

    async def _asked(
        self,
        up: ServerHandle,
        texts: Sequence[tuple[Item, TargetText]],
        draft: str,
        put: Callable[[tuple[Item, TargetText, list[Top]]], None],
    ) -> None:
        """What a draft's server would have said, text by text."""
        async with self._session(up, draft) as (client, there):
            scorer = there.adapter
            assert isinstance(scorer, Scorer | StepScorer)

            async def score(one: tuple[Item, TargetText]) -> None:
                item, text = one
                attempt = partial(score_output, scorer, client.post, text.prompt, text.output, there.model)
                found = await self._tried(attempt, there, item, f"the server of {draft}")
                if found is not None:
                    self._read_again += found.read_again
                    put((item, text, found.tops))

            await each(texts, self._config.concurrency[0], score)
        if self._read_again:
            what = f"the server of the draft read {self._read_again:,} tokens again that it had read before"
            hint = "Let nobody else use it meanwhile, and give it as many slots as there are clients."
            self.noticed.cautions.append(warned("read-again", f"{what}: slow, and no less true", hint))

    @asynccontextmanager
    async def _session(self, up: ServerHandle, draft: str | None) -> AsyncIterator[tuple[Client, ServerHandle]]:
        """A connection to the server of the target (None) or of a draft. Raises SpecbenchError for one that speculates,
        is another than before, or does not share its token ids."""
        async with client_of(self._config, up.url) as client:
            state = await self._asking.look(client, up)
            if draft is None:
                self.noticed.cautions += preflight.check_alone(state, up.url)
            elif not isinstance(up.adapter, Scorer | StepScorer):
                raise ConfigError(
                    f"{up.adapter.name} does not tell what a draft would have said of a given text",
                    where=up.url,
                    hint="Serve the draft with llama.cpp, vLLM or SGLang.",
                )
            label = "baseline" if draft is None else f"{draft} alone"
            note_server(self._writer, label, state, engine_name(self._provider, state) if draft is None else None)
            if draft not in self._ids:
                self._ids[draft] = await self._probed(client, up, draft)
                if draft is not None and self._ids[draft] is None:
                    what = f"the server of {draft} does not say which tokens a text has: nobody checked that it is the"
                    caution = warned("tokens-unchecked", f"{what} target's tokenizer", "Make sure of it yourself.")
                    self.noticed.cautions.append(caution)
                self._compare()
            yield client, up

    async def _probed(self, client: Client, up: ServerHandle, draft: str | None) -> Ids | None:
        """The token ids of PROBES, None where they cannot be had; of the target also those that end a text."""
        tokenizer = up.adapter
        if not isinstance(tokenizer, Tokenizing):
            return None

        async def attempt() -> Ids:
            if isinstance(tokenizer, Writer) and draft is None:
                self._ends |= await tokenizer.end_ids(client.get, client.post, up.model)
            return await probed(tokenizer, client.post, up.model)

        found = None
        with suppress(RefusedError):
            found = await self._patience.insist(attempt, up, prompt="none", arm=f"tokens of {draft or 'the target'}")
        if found is None:
            raise EngineError("The server does not say which tokens a text has", where=up.url, hint="See its log.")
        return found[0]

    def _compare(self) -> None:
        """Refuse a draft that means other texts by the same token ids."""
        target = self._ids.get(None)
        for draft, ids in self._ids.items():
            if draft is not None and ids is not None and target is not None:
                require_same(target, ids, draft, self._text_of)

    async def _tried(self, attempt: Callable[[], Awaitable[T]], up: ServerHandle, item: Item, who: str) -> T | None:
        """What `attempt` gives; None where the server refuses the prompt or keeps failing."""
        found = await self._patience.insist(attempt, up, prompt=item.prompt.id, arm=who, who=who)
        return None if found is None else found[0]

    def _looked_up(self, spec: DraftSpec, text: TargetText) -> BlockScores:
        ngram = spec.ngram
        found: LookUp
        if ngram is None:
            found = SuffixLookUp(eos=self._ends)
        elif self._provider.adapter.recent_look_up:
            found = RecentLookUp(ngram.n, eos=self._ends)
        else:
            found = NgramLookUp(ngram, eos=self._ends)
        return match_blocks(found, text.prompt, text.output, MAX_GAMMA)
