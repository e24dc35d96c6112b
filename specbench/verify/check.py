"""A stored run against another implementation: the same prompts again, and the counts side by side.

The run stores no text, so its prompts are read from where they came from. Everything that decides the counts must be
what it was: prompts, models, and the tokens of each prompt.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.analysis.checked import SCHEMA, Checked, CheckedDraft, checked_gamma, unsupported, worst
from specbench.backends.base import Observer
from specbench.drafters import DraftSpec, parse_draft
from specbench.errors import ConfigError, StoreError, WorkloadError
from specbench.models import LoadedModel, load_model
from specbench.models.prompts import changed_encoding, encode, encoded_record, today_of
from specbench.records import Prompt, Trial
from specbench.run_record import ModelFacts
from specbench.shipped import DEFAULT_WORKLOAD, shipped
from specbench.store import StoredRun, read_run
from specbench.workload import load_workload, select

if TYPE_CHECKING:
    from specbench.backends.local.assisted import Comparer

# Texts are generated anew one by one: a few show a wrong count, an interval takes more.
GREEDY_LIMIT, SAMPLED_LIMIT = 8, 24


@dataclass(frozen=True, slots=True)
class Asked:
    """What to check of a run, and what the run does not hold: the system prompt, of which it has the hash alone, and
    leave to run a model's own code. `rules` are the differences in counting that are put right; None: all."""

    limit: int | None = None
    gammas: tuple[int, ...] | None = None
    system_prompt: str | None = None
    trust_remote_code: frozenset[str] = frozenset()
    rules: Collection[str] | None = None


def check(folder: Path, asked: Asked, observer: Observer) -> Checked:
    """Generate again with transformers' own assisted generation and compare. Raises StoreError where the run has no
    counts or its models are not those of today, WorkloadError where the prompts are not."""
    stored = read_run(folder)
    config = stored.run.config
    sampling = config.sampling
    trials = _trials(stored, asked.gammas)
    prompts = _prompts(stored, trials, asked)
    trials = [trial for trial in trials if trial.prompt_id in prompts]
    import torch
    import transformers

    from specbench.backends.local.assisted import RULES, Comparer

    torch.set_num_threads(min(stored.run.provenance.threads or 1, os.cpu_count() or 1))
    observer.say(f"Loading {config.target}")
    target = _load(stored, config.target, stored.run.target, asked)
    encoded = _encoded(stored, target, prompts, trials)
    precision = stored.run.precision or "float32"
    comparer = Comparer(
        target,
        encoded,
        sampling,
        max_new_tokens=config.max_new_tokens,
        precision=precision,
        seed=config.seed,
        rules=RULES if asked.rules is None else asked.rules,
    )
    specs = [parse_draft(text) for text in config.draft]
    heads = {text: facts.head for text, facts in stored.run.drafts.items()}
    reasons = {spec.text: unsupported(spec, sampling, head=heads.get(spec.text)) for spec in specs}
    observer.begin(sum(reasons[str(trial.arm.draft)] is None for trial in trials), 0)
    drafts = []
    for spec in specs:
        mine = [trial for trial in trials if trial.arm.draft == spec.text]
        if reasons[spec.text] is not None:
            drafts.append(CheckedDraft(spec.text, reasons[spec.text], ()))
        elif mine:
            drafts.append(_draft(stored, spec, comparer, mine, asked, observer))
    return Checked(
        run=str(folder),
        schema=SCHEMA,
        against=f"transformers {transformers.__version__}",
        precision=precision,
        greedy=sampling.greedy,
        prompts=len(prompts),
        agreement=worst(drafts),
        drafts=tuple(drafts),
    )


def _draft(
    stored: StoredRun, spec: DraftSpec, comparer: Comparer, trials: Sequence[Trial], asked: Asked, observer: Observer
) -> CheckedDraft:
    loaded = None
    if spec.model is not None:
        observer.say(f"Loading {spec.model}")
        loaded = _load(stored, spec.model, stored.run.drafts[spec.text], asked)
        if (why := comparer.misfit(loaded)) is not None:
            observer.advance(len(trials))
            return CheckedDraft(spec.text, why, ())
    rows = []
    for gamma in sorted({int(trial.arm.gamma or 0) for trial in trials}):
        pairs = []
        for trial in trials:
            if trial.arm.gamma == gamma:
                pairs.append(comparer.pair(trial, spec, loaded, gamma))
                observer.advance(1)
        rows.append(checked_gamma(gamma, pairs, greedy=comparer.sampling.greedy, precision=comparer.precision))
    return CheckedDraft(spec.text, None, tuple(rows))


def _trials(stored: StoredRun, gammas: tuple[int, ...] | None) -> list[Trial]:
    if stored.run.served is not None:
        raise StoreError(
            "This run's rounds are a server's, which transformers does not repeat",
            where=str(stored.folder),
            hint="Its brief holds them against the server's own counters, specbench compare against another run.",
        )
    if stored.run.command in ("replay", "probe"):
        raise StoreError(
            f"A {stored.run.command} ran no rounds, so there are no counts to check",
            where=str(stored.folder),
            hint="Name the folder of a sweep or a measure.",
        )
    if stored.run.config.batch_size != 1:
        raise StoreError(
            "transformers drafts for one sequence at a time, and this run had several",
            where=str(stored.folder),
            hint="Run specbench sweep --batch-size 1 and check that.",
        )
    trials = [trial for trial in stored.counted if trial.arm.kind == "speculative"]
    known = sorted({trial.arm.gamma for trial in trials if trial.arm.gamma is not None})
    if not known:
        raise StoreError("No trial with a draft yet", where=str(stored.folder), hint="Finish the run first.")
    if gammas is None:
        return trials
    if missing := [str(gamma) for gamma in gammas if gamma not in known]:
        raise ConfigError(
            f"The run has no gamma {', '.join(missing)}", where="--gamma", hint=f"It has {', '.join(map(str, known))}."
        )
    return [trial for trial in trials if trial.arm.gamma in gammas]


def _prompts(stored: StoredRun, trials: Sequence[Trial], asked: Asked) -> dict[str, Prompt]:
    """Prompts to check by id, read again from where the run had them; refused unless all are what they were."""
    config, was = stored.run.config, stored.run.workload
    system = asked.system_prompt or config.system_prompt
    if system is not None and system.startswith("sha256:"):
        raise WorkloadError(
            "The run has a system prompt and keeps only its hash",
            where=str(stored.folder),
            hint="Give it with --system-prompt.",
        )
    source = str(shipped(DEFAULT_WORKLOAD)) if config.workload == DEFAULT_WORKLOAD else was.source or config.workload
    workload = load_workload(source, column=config.column, category_column=config.category_column, system_prompt=system)
    if workload.sha256 != was.sha256:
        raise WorkloadError(
            f"The workload changed since the run: sha256 {workload.sha256[:12]}, then {(was.sha256 or 'none')[:12]}",
            where=source,
            hint="Put the old prompts back, or run again.",
        )
    measured = {trial.prompt_id for trial in trials}
    usable = [prompt for prompt in workload.prompts if prompt.id in measured]
    greedy = config.sampling.greedy
    limit = asked.limit or (GREEDY_LIMIT if greedy else SAMPLED_LIMIT)
    chosen = comparable(usable, trials, limit, config.seed) if greedy else select(usable, limit, config.seed)
    return {prompt.id: prompt for prompt in chosen}


def comparable(prompts: Sequence[Prompt], trials: Sequence[Trial], limit: int, seed: int) -> list[Prompt]:
    """At most `limit`, those first whose texts were the target's own in every arm: where rounding parted a text from
    it, it mostly parts transformers' from ours as well, and rounds of different texts cannot be compared."""
    parted = {trial.prompt_id for trial in trials if trial.identical is False}
    same = [prompt for prompt in prompts if prompt.id not in parted]
    found = list(select(same, limit, seed))
    if len(found) < limit:
        found += select([prompt for prompt in prompts if prompt.id in parted], limit - len(found), seed)
    return found


def _load(stored: StoredRun, name: str, was: ModelFacts, asked: Asked) -> LoadedModel:
    """A model as in the run; refused if it is another one."""
    from specbench.backends.local.drafting import facts

    run = stored.run
    loaded = load_model(
        name,
        dtype=run.precision or "float32",
        device=run.provenance.device or "cpu",
        trust_remote_code=asked.trust_remote_code,
    )
    now = facts(loaded)
    for key in ("revision", "parameters", "weight_bytes"):
        if getattr(now, key) != getattr(was, key):
            raise StoreError(
                f"{name} changed since the run: its {key.replace('_', ' ')} is {getattr(now, key)}, "
                f"then {getattr(was, key)}",
                where=str(stored.folder),
                hint="Put the old model back, or run again.",
            )
    return loaded


def _encoded(
    stored: StoredRun, target: LoadedModel, prompts: dict[str, Prompt], trials: Sequence[Trial]
) -> dict[str, list[int]]:
    """Token ids by prompt id, of the day that the run began; refused if they are not those of the run."""
    kwargs = stored.run.config.chat_template_kwargs
    was = stored.run.workload.encoded
    today = today_of(was)
    encoded = {prompt.id: encode(target, prompt, kwargs, today) for prompt in prompts.values()}
    now = encoded_record(target, [(prompt.sha256, encoded[prompt.id]) for prompt in prompts.values()], today)
    if (changed := changed_encoding(was, now)) is not None:
        raise StoreError(
            f"The prompts are not those of the run any more: {changed}",
            where=str(stored.folder),
            hint="Put the old tokenizer and chat template back, or run again.",
        )
    for trial in trials:
        tokens = len(encoded[trial.prompt_id])
        if trial.prompt_sha256 != prompts[trial.prompt_id].sha256 or trial.prompt_tokens != tokens:
            raise StoreError(
                f"Prompt {trial.prompt_id} has {tokens} tokens, in the run it had {trial.prompt_tokens}",
                where=str(stored.folder),
                hint="The tokenizer or its chat template changed: put the old one back, or run again.",
            )
    return encoded
