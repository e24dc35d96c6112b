"""From a configuration to an examination: load what can be loaded, say what cannot, and examine the rest, every check
in order. What a broken part makes meaningless is not checked, so that the cause is named and not all that follows.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from specbench.backends.local.drafting import Draft
from specbench.backends.local.drafts import HeadDraft, load_drafts
from specbench.backends.local.precision import with_precision
from specbench.config import RunConfig
from specbench.cost.load import free_cores
from specbench.drafters import DraftSpec, parse_draft, require_in_process
from specbench.errors import ModelError, SpecbenchError, VocabularyError, WorkloadError
from specbench.models import LoadedModel, check_vocabularies, load_model, resolve_device
from specbench.models.defaults import unwritten
from specbench.models.prompts import Today, encode_all, end_tokens
from specbench.records import Finding, Prompt, Sampling, Severity
from specbench.shipped import workload_source
from specbench.text import count, gigabytes
from specbench.verify import Examination, heads, machine, rounds, sampled, texts
from specbench.verify.setup import GAMMA, Outcome, Setup, in_float32, room
from specbench.workload import load_workload, select

SCHEMA = 2

# New tokens of all texts together where a head is examined, and of one at most.
ENOUGH, LONGEST = 384, 128

Say = Callable[[str], None]


@dataclass(frozen=True)
class Setups:
    """What one examination looks at. `own` is greedy in the precision asked for; `exact` greedy in float32, None where
    that is too much for the machine, and `own` itself if that is float32; `warm` has the sampling asked for, None if
    that is greedy. `samples` are the words of the prompts as token ids, without a template."""

    own: Setup
    exact: Setup | None
    warm: Setup | None
    samples: list[list[int]]

    @property
    def best(self) -> Setup:
        return self.exact or self.own


def noticed(
    code: str, severity: Severity, said: str, hint: str | None = None, draft: str | None = None, **more: object
) -> Finding:
    """The result of one check: what was `said` in one line with numbers, `hint` where there is something to do. `draft`
    is None where the check is of the target, the machine, or the whole."""
    of = {} if draft is None else {"draft": draft}
    return Finding(code, severity, {"said": said, **of, **more}, hint or "")


def any_broken(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "broken" for finding in findings)


def examine(setups: Setups, say: Say = lambda _: None) -> list[Finding]:
    """All behaviour of target and drafts; the machine and the loading are examined elsewhere."""
    own, best = setups.own, setups.best
    say("Checking the target")
    found = _checked("finite-logits", None, texts.finite_logits, own)
    if any_broken(found):
        return [*found, noticed("rounds", "not checked", "the logits are no numbers")]
    found += _checked("chat-template", None, texts.chat_template, best)
    cache = _checked("target-cache", None, rounds.target_cache, best)
    found += cache
    if any_broken(cache):
        why = "the target's cache is broken, and no round can be right"
        return [*found, noticed("rounds", "not checked", why)]
    found += _checked("ends-at-once", None, texts.ends_at_once, own)
    found += _checked("self-draft", None, rounds.self_draft, best)
    if setups.exact is None:
        why = f"too large for float32 here, {own.dtype} is judged loosely"
        hint = "Run the doctor on a machine with more memory, or with --dtype float32 on a device that is fast at it."
        found.append(noticed("exactness", "not checked", why, hint))
    for own_draft, draft in zip(own.drafts, best.drafts, strict=True):
        say(f"Checking {draft.spec.text}")
        found += _draft(setups, own_draft, draft)
    if setups.warm is None:
        why = "the temperature is 0; add --temperature to check how drafts are drawn"
        return [*found, noticed("sampling", "not checked", why)]
    say("Drawing drafts")
    found += _checked("accept-rule", None, sampled.accept_rule, setups.warm)
    for draft in setups.warm.drafts:
        name = draft.spec.text
        found += _checked("draft-sampling", name, sampled.draws_follow_q, setups.warm, draft)
        found += _checked("draft-temperature", name, sampled.q_of_these_settings, setups.warm, draft)
    return found


def _draft(setups: Setups, own_draft: Draft, draft: Draft) -> Iterator[Finding]:
    own, best, name = setups.own, setups.best, draft.spec.text
    checks: list[tuple[str, Callable[..., Outcome | None]]] = [
        ("draft-marks", texts.draft_marks),
        ("vocabulary-meaning", partial(texts.vocabulary_meaning, samples=setups.samples)),
        ("draft-cache", rounds.draft_cache),
        ("draft-history", rounds.draft_history),
    ]
    if isinstance(draft, HeadDraft):
        checks.append(("head-agreement", heads.head_agreement))
        checks.append(("head-depth", heads.head_depth))
        checks.append(("head-config", heads.head_config))
    checks += [
        ("nothing-accepted", rounds.nothing_accepted),
        ("survival-cliff", rounds.survival_cliff),
        ("loop-replay", rounds.loop_and_replay),
        ("same-text", rounds.same_text),
    ]
    if own is not best:
        checks.append(("same-text", lambda *_: rounds.same_text(own, own_draft)))
    for code, check in checks:
        found = _checked(code, name, check, best, draft)
        yield from found
        if any(finding.values.get("failed") for finding in found):
            yield noticed("rounds", "not checked", f"the draft's other checks would fail as {code} did", draft=name)
            return


def _checked(code: str, draft: str | None, check: Callable[..., Outcome | None], *of: Any) -> list[Finding]:
    """A check that cannot even be carried out has found something: a part that fails."""
    try:
        found = check(*of)
    except SpecbenchError as error:
        return [noticed(code, "broken", error.what, error.hint, draft)]
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        # The type and place of a failure, never its message: messages may quote prompts.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        hint = "A part fails where a sound one would not: SPECBENCH_DEBUG=1 with `specbench measure` shows where."
        return [noticed(code, "broken", f"the check failed: {place}", hint, draft, failed=True)]
    return [] if found is None else [noticed(code, *found, draft=draft)]


def run_doctor(config: RunConfig, say: Say = lambda _: None) -> Examination:
    """Examine the machine, the models and their work together. Raises WorkloadError and ConfigError as a run does; what
    is wrong with a model is a finding."""
    specs = [parse_draft(text) for text in config.draft]
    for spec in specs:
        require_in_process(spec)
    config, slow = with_precision(config)
    workload = load_workload(
        workload_source(config.workload),
        column=config.column,
        category_column=config.category_column,
        system_prompt=config.system_prompt,
    ).prompts
    prompts = select(workload, config.limit, config.seed)
    device = resolve_device(config.device)
    say("Looking at the machine")
    findings = [noticed("busy-machine", *machine.quiet_cores(config.max_other_cores))]
    findings += [noticed(one.code, "note", one.message, one.hint) for one in slow]
    threads = config.threads or free_cores()
    torch.set_num_threads(threads)
    findings.append(noticed("threads", *machine.thread_count(threads, device)))
    findings.append(noticed("clock", *machine.steady_clock()))
    used = 0
    try:
        target, drafts = _load(config, specs, device, findings, say)
    except ModelError as error:
        findings.append(noticed("models-load", "broken", error.what, error.hint))
    else:
        if any(isinstance(draft, HeadDraft) for draft in drafts):
            # Texts long enough to tell a head that is fed wrongly from one that is poor.
            enough = min(LONGEST, -(-ENOUGH // max(1, len(prompts))))
            config = replace(config, max_new_tokens=max(config.max_new_tokens, enough))
        today = Today()
        encoded = [
            (prompt, ids)
            for prompt, ids in _encoded(target, prompts, config, findings, today)
            if _fits(ids, target, drafts, config)
        ]
        if not encoded:
            raise WorkloadError(
                "No prompt fits the models' context", where=config.workload, hint="Use shorter prompts."
            )
        used, every = len(encoded), [ids for _, ids in encoded]
        findings += _checked("special-tokens", None, texts.special_tokens, target.tokenizer, workload)
        findings += [noticed(code, *found) for code, found in texts.own_files(target, config, every, today).items()]
        memory = machine.memory(target, drafts, room(every, config.max_new_tokens))
        findings.append(noticed("memory", *memory))
        if memory.severity != "broken":
            findings += examine(_setups(config, target, drafts, encoded), say)
    return Examination(
        schema=SCHEMA,
        target=config.target,
        drafts=config.draft,
        precision=config.dtype,
        temperature=config.temperature,
        prompts=used,
        max_new_tokens=config.max_new_tokens,
        broken=sum(finding.severity == "broken" for finding in findings),
        findings=tuple(findings),
    )


def _load(
    config: RunConfig, specs: Sequence[DraftSpec], device: str, findings: list[Finding], say: Say
) -> tuple[LoadedModel, list[Draft]]:
    """Target and the drafts that can be had. Raises ModelError for the target alone."""
    loaded: dict[str, LoadedModel] = {}

    def load(name: str) -> LoadedModel:
        if name not in loaded:
            say(f"Loading {name}")
            trusted = frozenset(config.trust_remote_code)
            loaded[name] = load_model(name, dtype=config.dtype, device=device, trust_remote_code=trusted)
        return loaded[name]

    target = load(config.target)
    drafts = []
    for spec in specs:
        if spec.kind == "skip" and spec.layers is None:
            hint = "Name the layers, as in skip:layers=8."
            findings.append(
                noticed("models-load", "not checked", "the doctor does not look for layers", hint, spec.text)
            )
            continue
        try:
            (draft,) = load_drafts([spec], target, load)
            findings += _vocabularies(target, draft)
        except VocabularyError as error:
            findings.append(noticed("vocabularies", "broken", error.what, error.hint, spec.text))
        except ModelError as error:
            findings.append(noticed("models-load", "broken", error.what, error.hint, spec.text))
        else:
            drafts.append(draft)
    weights = gigabytes(sum(one.weight_bytes for one in loaded.values()))
    evidence = f"{count(len(loaded), 'model')}, {weights} of weights in {config.dtype}"
    findings.append(noticed("models-load", "ok", evidence))
    return target, drafts


def _vocabularies(target: LoadedModel, draft: Draft) -> list[Finding]:
    if draft.loaded is None or draft.spec.kind != "model":
        return []
    theirs = draft.loaded
    report = check_vocabularies(target.tokenizer, theirs.tokenizer, target.vocab_size, theirs.vocab_size)
    name = draft.spec.text
    evidence = f"{report.shared:,} ids mean the same tokens by name, padding differs by {abs(report.padding):,}"
    notes = [noticed("vocabularies", "note", c.message, c.hint, name) for c in report.cautions]
    return notes or [noticed("vocabularies", "ok", evidence, draft=name)]


def _encoded(
    target: LoadedModel, prompts: Sequence[Prompt], config: RunConfig, findings: list[Finding], today: Today
) -> list[tuple[Prompt, list[int]]]:
    """The prompts that the chat template renders, and findings of what it refuses or does not write."""
    kwargs = config.chat_template_kwargs
    found = encode_all(target, prompts, kwargs, today)
    if found.refused:
        first = found.refused[0]
        evidence = f"{len(found.refused)} of {len(prompts)} prompts are left out, the first: {first.id}, "
        hint = "Some templates take no system message, or no two turns of one role: change these prompts."
        findings.append(noticed("template-refuses", "note", evidence + first.reason, hint))
    cautions = unwritten(target, [prompt for prompt, _ in found.encoded], kwargs)
    findings += [noticed(c.code, "note", c.message, c.hint) for c in cautions]
    return found.encoded


def _fits(ids: Sequence[int], target: LoadedModel, drafts: Sequence[Draft], config: RunConfig) -> bool:
    models = [target, *(draft.loaded for draft in drafts if draft.loaded is not None and draft.spec.reads_all)]
    limits = [one.max_context for one in models if one.max_context is not None]
    return len(ids) + config.max_new_tokens + GAMMA + 1 <= min(limits, default=2**62)


def _setups(
    config: RunConfig, target: LoadedModel, drafts: Sequence[Draft], encoded: Sequence[tuple[Prompt, list[int]]]
) -> Setups:
    eos, ids = end_tokens(target), [one for _, one in encoded]

    def setup(target: LoadedModel, drafts: Sequence[Draft], dtype: str, sampling: Sampling) -> Setup:
        return Setup(target, drafts, ids, sampling, eos, config.max_new_tokens, dtype)

    given = target, drafts, config.dtype
    greedy = Sampling(repetition_penalty=config.repetition_penalty)
    own = setup(*given, greedy)
    wide = None if own.exact else in_float32(target, drafts)
    best = given if wide is None else (*wide, "float32")
    exact = own if own.exact else None if wide is None else setup(*best, greedy)
    warm = None if config.sampling.greedy else setup(*best, config.sampling)
    words = ["\n\n".join(message.content for message in prompt.messages) for prompt, _ in encoded]
    samples = [target.tokenizer(text, add_special_tokens=False)["input_ids"][: texts.LONGEST_SAMPLE] for text in words]
    return Setups(own, exact, warm, samples)
