"""Acceptance from servers that do not speculate: the target writes its greedy texts, each draft is asked about them.

Greedy, a draft is accepted exactly where its likeliest token is the text's next one, so that the target's own engine
with speculation off, and a server of the draft alone, are enough to know the rounds of every gamma.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from specbench.acceptance.positions import PositionWriter, read_positions
from specbench.acceptance.scores import BlockScores, Scores, greedy_scores, match_blocks
from specbench.backends.server import preflight
from specbench.backends.server.adapter import ask_of
from specbench.backends.server.asking import Asking
from specbench.backends.server.client import Client
from specbench.backends.server.failures import RefusedError
from specbench.backends.server.patience import Patience
from specbench.backends.server.provider import Provider, Up, key_of, provider_of
from specbench.backends.server.sameids import Ids, probed, require_same
from specbench.backends.server.scoring import Scorer, StepScorer, score_output
from specbench.backends.server.traffic import each
from specbench.backends.server.writing import Tokenizing, Writer, Written
from specbench.checks import MAX_GAMMA
from specbench.config import RunConfig
from specbench.drafters.lookup import NgramLookUp
from specbench.drafters.spec import DraftSpec, NgramSpec, parse_draft, with_cutoff
from specbench.errors import ConfigError, EngineError
from specbench.records import Caution, Prompt
from specbench.run.bench import Observer, text_of
from specbench.run.resume import opened, threads_of, unfinished
from specbench.run.runfile import marked
from specbench.run.servedfile import begun, engine, note_losses, note_server, nothing_done, refused_before
from specbench.run_record import ServedBy
from specbench.store import RunWriter

# Prompts that are written and then scored where both servers run: as much would be lost if we were killed.
BLOCK = 16

T = TypeVar("T")


def score_on_servers(config: RunConfig, gammas: Sequence[int], observer: Observer, *, mode: str = "auto") -> Path:
    """Run or continue; returns the run folder, in which the positions of every scored text already lie. `mode` is as
    for a run in process. KeyboardInterrupt passes through after the folder is marked and the servers are stopped."""
    drafts = tuple(with_cutoff(draft, config.cutoff) for draft in config.draft)
    config = replace(config, gamma=tuple(gammas), draft=drafts)
    specs = {draft: parse_draft(draft) for draft in drafts}
    _scorable(config, specs)
    earlier = unfinished(config, "replay", mode)
    provider = provider_of(config, specs, (), partial(threads_of, config, earlier))
    if not isinstance(provider.adapter, Writer):
        raise ConfigError(
            f"{provider.adapter.name} does not tell the token ids of its texts",
            where="--replay-only",
            cure="Serve the target with llama.cpp or vLLM, and name it with --engine.",
        )
    prompts, record = begun(config, "replay", provider, 0)
    folder, record = opened(config, record, earlier, observer)
    with RunWriter(folder, record) as writer, marked(writer), PositionWriter(folder) as positions:
        _Scoring(config, specs, provider, writer, positions, observer).run(prompts)
    return folder


def _scorable(config: RunConfig, specs: dict[str, DraftSpec]) -> None:
    """Refuse what cannot be known from log-probabilities of single tokens, or without a wall clock."""
    if not config.sampling.greedy:
        raise ConfigError(
            f"At temperature {config.temperature:g} acceptance depends on whole distributions, which no server tells",
            where="--temperature",
            cure="Use temperature 0, or --engine local.",
        )
    if config.sampling.penalised and any(spec.model is not None for spec in specs.values()):
        raise ConfigError(
            "A server tells what a draft finds likeliest before any repetition penalty",
            where="--repetition-penalty",
            cure="Use --engine local, or look texts up with --draft ngram:n=3, which is exact.",
        )
    if len(config.loads) > 1:
        raise ConfigError("A load means nothing without a wall clock", where="--replay-only", cure="Name one client.")
    if config.spec_server is not None:
        raise ConfigError("Nothing speculates in a replay", where="--spec-server", cure="Leave it out.")
    for spec in specs.values():
        if spec.kind in ("skip", "cross"):
            raise ConfigError(
                "No server can be asked about such a draft", where=spec.text, cure="Use --engine local for it."
            )
    if config.server is None:
        return
    models = {spec.model for spec in specs.values() if spec.model is not None}
    if models and config.draft_server is None:
        raise ConfigError(
            "The draft has to be asked, too",
            where="--draft-server",
            cure="Serve it alone and name the address, or look texts up with --draft ngram:n=3.",
        )
    if len(models) != 1 and config.draft_server is not None:
        named = f"{len(models)} draft models" if models else "only look-ups, which need no server,"
        raise ConfigError(f"One draft model has that server, and {named} are named", where="--draft-server")


class _Scoring:
    """One session of a run. Texts are kept in memory alone, as token ids."""

    def __init__(
        self,
        config: RunConfig,
        specs: dict[str, DraftSpec],
        provider: Provider,
        writer: RunWriter,
        positions: PositionWriter,
        observer: Observer,
    ) -> None:
        self.config = config
        self.specs = specs
        self.provider = provider
        self.writer = writer
        self.positions = positions
        self.observer = observer
        self.scored = {(text.prompt_id, text.draft) for text in read_positions(writer.folder)}
        self.refused = refused_before(writer.run)
        self.patience = Patience()
        self._asking = Asking()
        self._unread: set[str] | None = None
        self.read_again = 0
        self._ends: frozenset[int] = frozenset((writer.run.served or ServedBy()).ends)
        self._cautions: list[Caution] = []
        self._ids: dict[str | None, Ids | None] = {}  # of PROBES, by draft

    def run(self, prompts: Sequence[Prompt]) -> None:
        self.observer.begin(len(prompts) * len(self.config.draft), len(self.scored))
        size = BLOCK if self.provider.launch is None else len(prompts)
        try:
            for begin in range(0, len(prompts), size):
                self._block(prompts[begin : begin + size])
            if not self.scored:
                raise nothing_done(self.config, prompts, self.refused, self.patience.failures)
        finally:
            note_losses(self.writer, self.refused, self.patience.failures, self._noticed())

    def _block(self, block: Sequence[Prompt]) -> None:
        """Write what some draft has not been asked about, and ask."""
        todo = {draft: [p for p in block if self._open(p, draft)] for draft in self.config.draft}
        for draft, left in todo.items():
            if left and self.specs[draft].model is not None and draft not in self._ids:
                self._meet(draft)  # a wrong draft must not show after an hour of writing
        missing = [prompt for prompt in block if any(prompt in left for left in todo.values())]
        if not missing:
            return
        texts = self._write(missing)
        for draft, left in todo.items():
            known = [(p, texts[p.id]) for p in left if p.id in texts and self._open(p, draft)]
            spec = self.specs[draft]
            if spec.model is None and spec.ngram is not None:
                for prompt, text in known:
                    self._keep(prompt, draft, self._looked_up(spec.ngram, text))
            elif known:
                self._ask(draft, known)

    def _open(self, prompt: Prompt, draft: str) -> bool:
        return prompt.id not in self.refused and (prompt.id, draft) not in self.scored

    def _meet(self, draft: str) -> None:
        """See whether a draft's server can be asked at all."""

        async def session(up: Up) -> None:
            async with self._session(up, draft):
                pass

        self.observer.say(f"Checking the server of {draft}")
        with self.provider.alone(draft, self.writer.folder) as up:
            asyncio.run(session(up))

    def _write(self, prompts: Sequence[Prompt]) -> dict[str, Written]:
        """The target's texts by prompt id, without those that it refuses or that keep failing."""
        texts: dict[str, Written] = {}

        async def session(up: Up) -> None:
            async with self._session(up, None) as (client, there):
                writer = there.adapter
                assert isinstance(writer, Writer)
                asks = {prompt.id: ask_of(prompt, self.config, self.config.seed) for prompt in prompts}
                if self._unread is None:
                    self._unread = await self._asking.unread(client, there, list(asks.values()))
                    self._cautions += preflight.check_read(self._unread, up.url)

                async def write(prompt: Prompt) -> None:
                    attempt = partial(writer.write, client.post, asks[prompt.id], there.model)
                    found = await self._tried(attempt, there, prompt, "the target")
                    if found is not None:
                        texts[prompt.id] = found

                await each(prompts, self.config.concurrency[0], write)

        with self.provider.alone(None, self.writer.folder) as up:
            asyncio.run(session(up))
        self._ends |= {text.output[-1] for text in texts.values() if text.finish == "eos"}
        # Token ids that end texts of this model: a later session must not judge by fewer.
        served = self.writer.run.served or ServedBy()
        self.writer.update(served=replace(served, ends=tuple(sorted(self._ends))))
        return texts

    def _ask(self, draft: str, texts: Sequence[tuple[Prompt, Written]]) -> None:
        """What a draft's server would have said, on disk text by text."""
        ngram = self.specs[draft].ngram

        async def session(up: Up) -> None:
            async with self._session(up, draft) as (client, there):
                scorer = there.adapter
                assert isinstance(scorer, Scorer | StepScorer)

                async def score(item: tuple[Prompt, Written]) -> None:
                    prompt, text = item
                    attempt = partial(score_output, scorer, client.post, text.prompt, text.output, there.model)
                    found = await self._tried(attempt, there, prompt, f"the server of {draft}")
                    if found is not None:
                        self.read_again += found.read_again
                        judged = [(one.top, one.top_logprob, one.sure) for one in found.tops]
                        blocks = None if ngram is None else self._looked_up(ngram, text)
                        self._keep(prompt, draft, greedy_scores(text.output, judged, self._ends, blocks))

                await each(texts, self.config.concurrency[0], score)

        with self.provider.alone(draft, self.writer.folder) as up:
            asyncio.run(session(up))

    @asynccontextmanager
    async def _session(self, up: Up, draft: str | None) -> AsyncIterator[tuple[Client, Up]]:
        """A connection to the server of the target (None) or of a draft. Raises SpecbenchError for one that speculates,
        is another than before, or does not share its token ids."""
        async with Client(up.url, key=key_of(self.config), timeout_s=self.config.request_timeout_s) as client:
            state = await self._asking.look(client, up)
            if draft is None:
                self._cautions += preflight.check_alone(state, up.url)
            elif not isinstance(up.adapter, Scorer | StepScorer):
                raise ConfigError(
                    f"{up.adapter.name} does not tell what a draft would have said of a given text",
                    where=up.url,
                    cure="Serve the draft with llama.cpp, vLLM or SGLang.",
                )
            label = "baseline" if draft is None else f"{draft} alone"
            note_server(self.writer, label, state, engine(self.provider, state) if draft is None else None)
            if draft not in self._ids:
                self._ids[draft] = await self._probed(client, up, draft)
                self._compare()
            yield client, up

    async def _probed(self, client: Client, up: Up, draft: str | None) -> Ids | None:
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
            found = await self.patience.insist(attempt, up, prompt="none", arm=f"tokens of {draft or 'the target'}")
        if found is None:
            raise EngineError("The server does not say which tokens a text has", where=up.url, cure="See its log.")
        return found[0]

    def _compare(self) -> None:
        """Refuse a draft that means other texts by the same token ids."""
        target = self._ids.get(None)
        for draft, ids in self._ids.items():
            if draft is not None and ids is not None and target is not None:
                require_same(target, ids, draft)

    async def _tried(self, attempt: Callable[[], Awaitable[T]], up: Up, prompt: Prompt, who: str) -> T | None:
        """What `attempt` gives; None where the server refuses the prompt or keeps failing."""
        try:
            found = await self.patience.insist(attempt, up, prompt=prompt.id, arm=who)
        except RefusedError as refused:
            self.refused[prompt.id] = refused.said(who)
            return None
        return None if found is None else found[0]

    def _looked_up(self, ngram: NgramSpec, text: Written) -> BlockScores:
        return match_blocks(NgramLookUp(ngram, eos=self._ends), text.prompt, text.output, MAX_GAMMA)

    def _keep(self, prompt: Prompt, draft: str, scores: Scores | BlockScores) -> None:
        self.positions.append(text_of(prompt, draft, 0, self.config, scores))
        self.scored.add((prompt.id, draft))
        self.observer.advance(1)

    def _noticed(self) -> list[Caution]:
        found = list(self._cautions)
        unknown = [draft for draft, ids in self._ids.items() if draft is not None and ids is None]
        if unknown:
            what = f"the server of {unknown[0]} does not say which tokens a text has: nobody checked that it is the"
            found.append(Caution("tokens-unchecked", f"{what} target's tokenizer", "Make sure of it yourself."))
        if self.read_again:
            what = f"the server of the draft read {self.read_again:,} tokens again that it had read before"
            cure = "Let nobody else use it meanwhile, and give it as many slots as there are clients."
            found.append(Caution("read-again", f"{what}: slow, and no less true", cure))
        return found
