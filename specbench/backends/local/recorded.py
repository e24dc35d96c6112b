"""Answers of a log under drafts in this process.

A draft that says one token at each place is accepted exactly where that is the answer's own, at any temperature
(docs/measuring.md): for those the target is not loaded. A draft that samples needs its distribution, a head its states:
one teacher-forced pass each.

Are they this target's? A few are held against it. Greedy: it writes them anew, and reads them token by token: its
likeliest token has to be the answer's own nearly everywhere. Sampled: an answer drawn from p has at each place a
surprise, -log p(x), whose mean is the entropy of p there. The mean of the difference is 0 for the target's own answers
and above it for those of anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from specbench.acceptance.rules import RepetitionPenalty, distribution
from specbench.acceptance.score import CHUNK
from specbench.backends.base import Admitted, Answered, Item, Noticed, Scoring, TargetText
from specbench.backends.local.backend import require_memory
from specbench.backends.local.batch import REPLAY_BATCH, score_batch
from specbench.backends.local.local import LocalEngine
from specbench.backends.local.precision import with_precision
from specbench.backends.local.session import LocalScoring, answered
from specbench.backends.server.recorded import RecordedScoring, facts_of, on_server
from specbench.config import NO_TARGET, RunConfig
from specbench.decision.interval import reach
from specbench.drafters import DraftSpec, parse_draft
from specbench.errors import ConfigError, TemplateError, WorkloadError
from specbench.models import resolve_device
from specbench.models.answers import AnswerEncoder, UnwrittenAnswerError
from specbench.models.defaults import unwritten
from specbench.models.heads import heads_of
from specbench.models.memory import memory_errors
from specbench.models.prompts import encoding_cautions
from specbench.records import Sampling
from specbench.run_record import AnswerFacts, AnswersVerified, RunRecord
from specbench.store import RunWriter
from specbench.workload.replies import Recorded

# Answers of which is looked whether another tokenization would cut them elsewhere.
ROUND_TRIPS = 2000

# Cautions about a wall clock, of which nothing is here.
OF_TIMES = ("no-sdpa", "rereads", "no-cuda-graphs", "slow-precision")

# Of a text of transformers' own, against which the models are held.
_REFERENCE_TOKENS = 32


def needs_target(spec: DraftSpec, config: RunConfig, heads: Sequence[str]) -> bool:
    """Whether scoring a draft takes more than the answer: the target's distribution, its states or its layers."""
    if spec.kind in ("skip", "mtp") or spec.model in heads:
        return True
    return spec.kind == "model" and not spec.sampling(config.sampling).greedy


def require_recordable(config: RunConfig) -> bool:
    """Whether the target has to be loaded. Raises ConfigError where it has to and there is none, and where nothing says
    how texts are cut into tokens."""
    every = {text: parse_draft(text) for text in config.draft}
    served = on_server(config, every)
    specs = [spec for text, spec in every.items() if text not in served]
    heads = list(heads_of([spec.model for spec in specs if spec.kind == "model"]))
    needing = [spec for spec in specs if needs_target(spec, config, heads)]
    if config.target != NO_TARGET:
        if config.tokenizer is not None:
            raise ConfigError(
                "The target has a tokenizer of its own", where="--tokenizer", hint="Leave it out, or say --target none."
            )
        return bool(needing) or config.verify_answers > 0
    if needing:
        samples = needing[0].kind == "model" and needing[0].model not in heads
        raise ConfigError(
            "This draft samples, which needs the target" if samples else "This draft needs the target",
            where=needing[0].text,
            hint="Name the target, or write the draft with ,sample=greedy." if samples else "Name the target.",
        )
    if config.verify_answers:
        raise ConfigError("Answers are held against the target", where="--verify-answers", hint="Name the target.")
    if config.tokenizer is None:
        raise ConfigError(
            "Without a target nothing says how texts are cut into tokens", where="--target", hint="Add --tokenizer ID."
        )
    return False


class RecordedBackend:
    """Reads answers, and scores drafts on them. `earlier` is run.json of the session that began the run."""

    def __init__(
        self,
        config: RunConfig,
        *,
        threads: Callable[[], int],
        earlier: RunRecord | None,
        say: Callable[[str], None],
    ) -> None:
        self._weights = require_recordable(config)
        self._asked = config
        self._served = on_server(config, {text: parse_draft(text) for text in config.draft})
        # What is read in this process.
        self._config = replace(config, draft=tuple(text for text in config.draft if text not in self._served))
        self._threads = threads
        self._earlier = earlier
        self._say = say
        self._capacity = 0
        self._engine: LocalEngine
        self.noticed = Noticed()
        self.facts = AnswerFacts()

    def admit(self, sample: Sequence[Recorded]) -> Admitted:
        """Load what is needed, over the first answers of a log; what is odd is looked for in these."""
        config, threads = self._config, self._threads()
        name = config.target if config.target != NO_TARGET else str(config.tokenizer)
        was = None if self._earlier is None else self._earlier.precision
        config, cautions = with_precision(replace(config, target=name), was)
        prompts = [one.prompt for one in sample if one.form == "chat"]
        if self._weights:
            room = replace(config, max_new_tokens=min(config.max_new_tokens, _longest(sample)))
            require_memory(room, prompts, resolve_device(config.device), replay_only=True)
        models = [draft.model for draft in map(parse_draft, config.draft) if draft.model is not None]
        loaded = (name if self._weights else f"the tokenizer of {name}", *models)
        self._say(f"Loading {', '.join(loaded)}")
        engine = self._engine = LocalEngine(config, threads, weights=self._weights, earlier=self._earlier)
        self._encoder = AnswerEncoder(
            engine.target, config.chat_template_kwargs, engine.today, engine.eos, config.max_new_tokens
        )
        items = self.read(sample)
        if not items:
            reasons = [*self.noticed.refused.values()]
            raise WorkloadError(
                f"no answer can be scored, the first: {reasons[0]}",
                where=config.workload,
                hint="Mend these rows, or name the target whose template and tokenizer wrote them.",
            )
        self.facts, self.noticed = AnswerFacts(), Noticed()  # they are read again
        ids = [item.tokens for item in items]
        engine.cautions += cautions
        engine.cautions += encoding_cautions(engine.target, ids, engine.eos, engine.today)
        # What only a server understands was done when the answers were written.
        asked = [replace(prompt, request={}) for prompt in prompts]
        engine.cautions += unwritten(engine.target, asked, config.chat_template_kwargs)
        if any(draft.spec.kind == "skip" for draft in engine.drafts.values()):
            engine.settle(ids)
        if self._weights or models:
            self._say("Comparing with transformers' generate")
        reference = engine.check_reference(ids, _REFERENCE_TOKENS, padded=True)
        found = engine.admitted(items, [], reference, hashes=False)
        every = {**found.drafts, **{text: facts_of(spec) for text, spec in self._served.items()}}
        return replace(
            found,
            drafts={text: every[text] for text in self._asked.draft},
            cautions=[one for one in found.cautions if one.code not in OF_TIMES],
        )

    def read(self, block: Sequence[Recorded], before: int = 0) -> list[Item]:
        """The answers as token ids, with room for the longest; those that cannot be had so are refused. In the log
        `before` others go before them."""
        items = []
        for number, one in enumerate(block, before):
            try:
                found = self._encoder.encode(one)
            except (TemplateError, UnwrittenAnswerError) as error:
                kind = (
                    f"the chat template refuses it ({error.kind})" if isinstance(error, TemplateError) else str(error)
                )
                self.noticed.refused[one.prompt.id] = kind
                continue
            if reason := self._unread(len(found.prompt), len(found.output)):
                self.noticed.refused[one.prompt.id] = reason
                continue
            text = TargetText(found.prompt, found.output, found.finish)
            prompt = replace(one.prompt, messages=(), tools=(), template_kwargs={}, request={})
            logged = one.reply.log_probs or ()
            # With or without the end of sequence, of which not every log has one: else tokens are cut otherwise there.
            logged = logged if 0 <= len(found.output) - len(logged) <= 1 else ()
            items.append(Item(prompt, found.prompt, Answered(text, found.limit, one.conversation, logged)))
            self._count(found.output, found.from_log, one, looked=number < ROUND_TRIPS)
        longest = max((len(item.tokens) + answered(item) for item in items), default=0)
        if longest > self._capacity:
            self._capacity = longest + longest // 4 + max(self._config.gamma) + 1 + _REFERENCE_TOKENS
            self._engine.reserve(self._capacity)
        return items

    def _unread(self, prompt: int, answer: int) -> str | None:
        """Why the models here do not read an answer of so many tokens after such a prompt."""
        context, turn = self._engine.max_context, self._engine.frequency_limit
        if context is not None and prompt + answer > context:
            return f"{prompt} + {answer} tokens exceed the context of {context}"
        if turn is not None and prompt <= turn < prompt + answer:
            return f"it crosses {turn} tokens, where a model changes its rotary frequencies (LongRoPE)"
        return None

    def verify(self, answers: Sequence[Recorded]) -> AnswersVerified:
        facts = self.facts
        items = self.read(answers)
        self.facts = facts  # they are read again
        with memory_errors():
            return verify(self._engine, items)

    def _count(self, output: Sequence[int], from_log: bool, one: Recorded, *, looked: bool) -> None:
        was = self.facts
        self.facts = replace(
            was,
            answers=was.answers + 1,
            tokens=was.tokens + len(output),
            from_log=was.from_log + from_log,
            unended=was.unended + (one.reply.finish is None and not from_log),
            round_trips=was.round_trips + looked,
            round_trip_tokens=was.round_trip_tokens + looked * len(output),
            changed_tokens=was.changed_tokens + (self._encoder.changed_tokens(output) if looked else 0),
        )

    @contextmanager
    def scoring(self, writer: RunWriter | None = None) -> Iterator[Scoring]:
        """Be ready to score; `writer` is of the run, where servers are asked."""
        with memory_errors():
            scoring = LocalScoring(self._engine, self._config)
            scoring.noticed = self.noticed
            if not self._served or writer is None:
                yield scoring
                return
            engine = self._engine
            yield RecordedScoring(
                scoring, self._asked, self._served, engine.target.tokenizer, engine.eos, writer, self._say
            )


def _longest(sample: Sequence[Recorded]) -> int:
    return max(len(one.reply.ids or one.reply.message.content.encode()) for one in sample) + _REFERENCE_TOKENS


# Of greedy answers at least this share of tokens is the target's likeliest: quantised weights and other kernels change
# a few in a hundred, another model a few in ten.
OWN_SHARE = 0.9
# Nats a token by which answers may be less likely than the target's own: as much as other kernels and a temperature
# that is off by little make.
OWN_NATS = 0.1
# Nats by which a token's log-probability in the log may differ from the target's own, in the mean.
OWN_GAP_NATS = 0.2
# The largest surprise of a token, in nats: top-k and top-p give others no chance at all.
_MOST = 20.0


def verify(engine: LocalEngine, items: Sequence[Item]) -> AnswersVerified:
    return _greedy(engine, items) if engine.sampling.greedy else _sampled(engine, items)


def _greedy(engine: LocalEngine, items: Sequence[Item]) -> AnswersVerified:
    identical = likeliest = tokens = 0
    order = sorted(items, key=lambda item: len(_output(item)))
    for begin in range(0, len(order), REPLAY_BATCH):
        batch = order[begin : begin + REPLAY_BATCH]
        prompts, outputs = [item.tokens for item in batch], [_output(item) for item in batch]
        most, context = max(map(len, outputs)), engine.max_context
        if engine.frequency_limit is None and (context is None or max(map(len, prompts)) + most <= context):
            anew = engine.texts(prompts, most, "")
        else:  # beside a longer answer one would be written past what is read, or with the other's frequencies
            anew = [engine.texts([p], len(o), "")[0] for p, o in zip(prompts, outputs, strict=True)]
        identical += sum(new[: len(old)] == list(old) for new, old in zip(anew, outputs, strict=True))
        # Read as if the target drafted for itself: a place is accepted where its likeliest token is the text's own. The
        # end of sequence goes before, so that the first token of the answer is a place too.
        shifted = [[prompt[-1], *output] for prompt, output in zip(prompts, outputs, strict=True)]
        scores = score_batch(
            None,
            engine.target.model,
            [prompt[:-1] for prompt in prompts],
            shifted,
            vocab_size=engine.vocab_size,
            sampling=Sampling(repetition_penalty=engine.sampling.repetition_penalty),
            eos=(),
        )
        likeliest += sum(int(one.accept.sum()) for one in scores)
        tokens += sum(len(one.accept) for one in scores)
    share = likeliest / tokens if tokens else 0.0
    return AnswersVerified(len(items), tokens, identical=identical, likeliest=likeliest, foreign=share < OWN_SHARE)


@torch.inference_mode()
def _sampled(engine: LocalEngine, items: Sequence[Item]) -> AnswersVerified:
    excess, counts = [], []
    # Logs have them before or after temperature and top-p: absolute differences from both, and of how many tokens.
    gaps, logged_tokens = [0.0, 0.0], 0
    for item in items:
        prompt, output = item.tokens, list(_output(item))
        reader, penalty, x = engine.reader, RepetitionPenalty(engine.sampling), [*item.tokens, *output]
        reader.rewind(0)
        logits = penalty.apply(reader.forward(prompt, keep=1), prompt)
        total = 0.0
        for at in range(0, len(output), CHUNK):
            wanted = torch.tensor(output[at : at + CHUNK], device=logits.device)
            if len(wanted) > 1:
                read = output[at : at + len(wanted) - 1]
                more = penalty.apply(reader.forward(read, keep=len(read)), x[: len(prompt) + at + len(read)])
                logits = torch.cat((logits, more))
            p = distribution(logits, engine.sampling)
            surprise = -p.gather(1, wanted[:, None])[:, 0].log()
            entropy = torch.special.entr(p).sum(-1)
            total += float((surprise.clamp_max(_MOST) - entropy).sum())
            logged = torch.tensor(item.answer.log_probs[at : at + CHUNK] if item.answer else (), device=p.device)
            own = logits.float().log_softmax(-1).gather(1, wanted[:, None])[:, 0], -surprise
            for way, values in enumerate(own):
                apart = values[: len(logged)].clamp_min(-_MOST) - logged.clamp_min(-_MOST)
                gaps[way] += float(apart.abs().sum())
            logged_tokens += len(logged)
            if at + CHUNK < len(output):
                logits = penalty.apply(reader.forward([int(wanted[-1])], keep=1), x[: len(prompt) + at + CHUNK])
        excess.append(total)
        counts.append(len(output))
    value, error = _mean(np.array(excess), np.array(counts, dtype=float))
    width = reach(len(items) - 1, 0.95) * error if len(items) > 1 else float("inf")
    known = np.isfinite(width)
    gap = min(gaps) / logged_tokens if logged_tokens else None
    return AnswersVerified(
        len(items),
        int(sum(counts)),
        excess_nats=value,
        excess_low=value - width if known else None,
        excess_high=value + width if known else None,
        logged_tokens=logged_tokens or None,
        logged_gap_nats=gap,
        foreign=bool(known and value - width > 0 and value > OWN_NATS) or (gap or 0.0) > OWN_GAP_NATS,
    )


def _mean(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The ratio of totals, and its standard error over answers."""
    value, n = float(sums.sum() / counts.sum()), len(sums)
    rest = sums - value * counts
    return value, float(np.sqrt(n / max(1, n - 1) * (rest**2).sum()) / counts.sum())


def _output(item: Item) -> Sequence[int]:
    assert item.answer is not None
    return item.answer.text.output
