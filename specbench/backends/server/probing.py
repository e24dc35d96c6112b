"""`specbench probe` on servers: rounds at every gamma and load, of an engine that rejects every draft or, where it
cannot be told to, lists its rounds: what one costs does not depend on how much of it is kept.

Where memory holds the servers of all gammas they run side by side and take turns within each pass; else each runs all
passes before the next is started. What is written meanwhile is no text of a run, and is kept nowhere.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from specbench.backends.base import Admitted, Answer, Conditions, Item, Job, Unit
from specbench.backends.server.provider import Starting, engine_name
from specbench.backends.server.session import ServerSession
from specbench.config import RunConfig
from specbench.cost.load import busy_machine, free_cores
from specbench.cost.plan import Costs, ProbeRequest
from specbench.cost.synthetic import Read, Spent, reading_points, round_points
from specbench.drafters.spec import parse_draft
from specbench.errors import ConfigError, EngineError
from specbench.records import Arm, CostPoint, Load, Prompt, Trial
from specbench.run_record import ServedBy
from specbench.store import RunWriter

PASSES = 9
# Tokens of a text: long enough that its last rounds, which are cut, are few.
TOKENS = 64
# Texts of so many prompts are timed, from short to long.
PROMPTS = 12

# A pass of one arm under one load.
_Turn = tuple[int, Load, Arm]


class ServerProbe:
    """An engine that specbench starts. `prompts` are those that a run would use."""

    def __init__(
        self,
        config: RunConfig,
        request: ProbeRequest,
        prompts: Callable[[], Sequence[Prompt]],
        say: Callable[[str], None],
    ) -> None:
        _require_probable(config, request)
        self._config = replace(config, max_new_tokens=min(config.max_new_tokens, TOKENS))
        self._passes, self._prompts, self._say = request.passes or PASSES, prompts, say
        self._specs = {draft: parse_draft(draft) for draft in config.draft}
        provider = Starting(config, self._specs, config.gamma, config.threads or free_cores(), synthetic=True)
        self._provider, self._rejecting = provider, bool(provider.file.synthetic or provider.file.synthetic_env)
        if not self._rejecting and not {"drafted", "rounds"} & provider.adapter.sources.keys():
            raise _untimeable(provider)
        self._others: list[float] = []
        self.setting = Conditions(engine_name(provider, None), None, None, provider.threads, provider.where)

    def admit(self) -> Admitted:
        adapter = self._provider.adapter
        served = ServedBy(adapter.name, self._provider.launch, dict(adapter.sources))
        return Admitted([], [], self.setting, *self._provider.models, served=served)

    def probe(self, writer: RunWriter) -> Costs:
        """The rounds of each draft in turn, each beside the target alone."""
        session = ServerSession(self._config, self._specs, self._provider, writer, self._say)
        units = _spread(self._prompts())
        points = [point for draft in self._config.draft for point in self._draft(session, draft, units)]
        first = self._config.draft[0]
        points += [replace(p, model=None, phase="read") for p in points if (p.model, p.tokens) == (first, 1)]
        cautions = list(session.noticed.cautions)
        others = median(self._others) if self._others else 0.0
        if others > self._config.max_other_cores:
            said = "rounds were timed: their ratios to a step stand, their seconds are too high"
            cautions.append(busy_machine(others, said))
        return Costs(tuple(points), tuple(cautions))

    def _draft(self, session: ServerSession, draft: str, units: Sequence[Unit]) -> Iterator[CostPoint]:
        arms = [Arm("baseline"), *(Arm("speculative", draft, gamma) for gamma in self._config.gamma)]
        spent: dict[Load, dict[int, dict[int, Spent]]] = {}  # by load and pass
        lengths: dict[Load, list[float]] = {}
        reads: list[Read] = []
        which = "that reject every draft" if self._rejecting else "as they come"
        self._say(f"Timing rounds of {draft} {which}, {self._passes} passes")
        with session.block(units, arms if self._provider.at_once else ()):
            for number, load, arm in self._turns(arms):
                trials = self._trials(session, arm, load, number, units)
                self._others += [each.other_cores for each in trials if each.other_cores is not None]
                if trials:
                    found = _spent(trials, arm, rejecting=self._rejecting)
                    if found is None:
                        raise _untimeable(self._provider)
                    spent.setdefault(load, {}).setdefault(number, {})[arm.gamma or 0] = found
                    lengths.setdefault(load, []).extend(t.prompt_tokens + t.output_tokens / 2 for t in trials)
                if load == Load():
                    reads += [Read(number, arm.gamma or 0, t.prompt_tokens, t.times.prefill_s) for t in trials]
        for load, passes in spent.items():
            yield from round_points(list(passes.values()), draft, round(median(lengths[load])), load.concurrency)
        readings = reading_points(spent.get(Load(), {}), reads, draft)
        yield from (p for p in readings if p.model is not None or draft == self._config.draft[0])

    def _turns(self, arms: Sequence[Arm]) -> Iterator[_Turn]:
        """In every pass all arms, each pass in another order; of servers that cannot run side by side, all of one."""
        # One client shows what reading a prompt takes, which those of several wait for.
        passes = range(self._passes)
        loads = list(dict.fromkeys((Load(), *(load for load in self._config.loads if load.rate is None))))
        if not self._provider.at_once:
            yield from ((number, load, arm) for arm in arms for number in passes for load in loads)
            return
        for number in passes:
            for load in loads:
                at = number % len(arms)
                order = [*arms[at:], *arms[:at]]
                yield from ((number, load, arm) for arm in (order if number % 2 else reversed(order)))

    def _trials(self, session: ServerSession, arm: Arm, load: Load, number: int, units: Sequence[Unit]) -> list[Trial]:
        """One text for each client, of the same prompts in every arm of a pass."""
        first = number * load.concurrency
        jobs = [Job(units[(first + client) % len(units)], number) for client in range(load.concurrency)]
        events = session.generate(jobs, replace(arm, load=load))
        return [event.trial for event in events if isinstance(event, Answer) and not event.trial.warmup]


def _require_probable(config: RunConfig, request: ProbeRequest) -> None:
    if config.server is not None:
        raise ConfigError(
            "A running server cannot be made to reject every draft",
            where="the configuration's `server`",
            hint="Let specbench start it: --engine, or --launch with a copy of its launch file.",
        )
    if request.target_config is not None or request.draft_configs or request.contexts is not None:
        raise ConfigError(
            "A server is probed with its own models and the prompts of a workload",
            where="--engine",
            hint="Leave --target-config, --draft-config and --context out.",
        )
    if not config.draft:
        raise ConfigError("Rounds take a draft", where="--draft", hint="Name one.")


def _untimeable(provider: Starting) -> ConfigError:
    return ConfigError(
        "It lists no rounds, and its launch file does not say how to make it reject every draft",
        where=str(provider.file.path),
        hint="Copy the file, add `synthetic`, and name the copy with --launch.",
    )


def _spread(prompts: Sequence[Prompt]) -> list[Unit]:
    """PROMPTS of them, evenly from short to long, by characters: a server keeps its token ids. In an order in which a
    few passes meet short and long ones. Texts go on past an end of sequence, so that all clients are busy as long."""
    order = sorted(prompts, key=lambda prompt: (sum(len(m.content) for m in prompt.messages), prompt.id))
    places = [round(n * (len(order) - 1) / max(1, PROMPTS - 1)) for n in range(min(PROMPTS, len(order)))]
    chosen = [order[place] for place in dict.fromkeys(places)]
    random.Random(0).shuffle(chosen)
    asked = [replace(prompt, request={**prompt.request, "ignore_eos": True}) for prompt in chosen]
    return [Unit(p.id, p.sha256, p.category, (Item(p, None),)) for p in asked]


def _spent(trials: Sequence[Trial], arm: Arm, *, rejecting: bool) -> Spent | None:
    """From when the prompts of all clients are read, which those that came first wait for. None where the server was
    not told to reject every draft and lists no rounds. Steps without a draft, which vLLM does not list, are rounds of
    0. Raises EngineError where a draft was accepted that was to be rejected."""
    accepted = sum(sum(t.accepted) + (t.told.accepted or 0 if t.told else 0) for t in trials)
    if rejecting and accepted and arm.draft is not None:
        raise EngineError(
            "The server accepts drafts, though it was started to reject all of them",
            where=arm.label,
            hint="See `synthetic` in its launch file, and the engine's own documentation.",
        )
    rounds: Counter[int] = Counter()
    seconds = 0.0
    begun_s = [(t.begun_s or 0.0) + t.times.prefill_s for t in trials]
    for trial, own_s in zip(trials, begun_s, strict=True):
        steps = trial.output_tokens - 1
        if trial.drafted or (trial.told is not None and trial.told.rounds == 0):
            each = (*trial.drafted, *[0] * max(0, steps - len(trial.drafted) - sum(trial.accepted)))
        elif rejecting or arm.draft is None:
            each = (arm.gamma or 0,) * steps
        elif steps:
            return None
        else:
            continue
        # First tokens that come together are of one turn of the server, in which this text had a round.
        apart_s = trial.times.decode_s / max(1, len(each)) / 2
        later = sorted(first_s for first_s in begun_s if first_s > own_s + apart_s)
        before = sum(1 for last, first in pairwise([own_s, *later]) if first > last + apart_s)
        seconds += trial.times.decode_s - (later[-1] - own_s if later else 0.0)
        rounds.update(each[before:])
    return Spent(seconds, rounds)
