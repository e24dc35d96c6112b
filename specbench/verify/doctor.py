"""From a configuration to an examination: load what can be loaded, say what cannot, and examine the rest, every check
in order. What a broken part makes meaningless is not checked, so that the cause is named and not all that follows.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from specbench.records import Finding, Prompt, Sampling
from specbench.shipped import workload_source
from specbench.text import count, gigabytes
from specbench.verify import heads, machine, rounds, sampled, texts
from specbench.verify.findings import SCHEMA, Examination, any_broken, noticed
from specbench.verify.setup import GAMMA, Setup, in_float32, make_setup
from specbench.verify.texts import LONGEST_SAMPLE, own_files, special_tokens
from specbench.workload import load_workload, select


@dataclass(frozen=True)
class Patient:
    """The beds of one examination. `own` is greedy in the precision asked for; `exact` greedy in float32, None where
    that is too much for the machine, and `own` itself if that is float32; `warm` has the sampling asked for, None if
    that is greedy. `samples` are the words of the prompts as token ids, without a template."""

    own: Setup
    exact: Setup | None
    warm: Setup | None
    samples: list[list[int]]

    @property
    def best(self) -> Setup:
        return self.exact or self.own


def examine(patient: Patient, say: Say = lambda _: None) -> list[Finding]:
    """All behaviour of target and drafts; the machine and the loading are examined elsewhere."""
    found: list[Finding] = []
    say("Checking the target")
    found += _checked("finite-logits", None, lambda: texts.finite_logits(patient.own))
    if any_broken(found):
        return [*found, _not_checked("rounds", "the logits are no numbers")]
    found += _checked(texts.TEMPLATE, None, lambda: texts.chat_template(patient.best))
    found += _checked("target-cache", None, lambda: rounds.target_cache(patient.best))
    if any_broken(found, "target-cache"):
        return [*found, _not_checked("rounds", "the target's cache is broken, and no round can be right")]
    found += _checked("ends-at-once", None, lambda: texts.ends_at_once(patient.own))
    found += _checked("self-draft", None, lambda: rounds.self_draft(patient.best))
    if patient.exact is None:
        hint = "Run the doctor on a machine with more memory, or with --dtype float32 on a device that is fast at it."
        found.append(
            _not_checked("exactness", f"too large for float32 here, {patient.own.dtype} is judged loosely", hint)
        )
    for index in range(len(patient.own.drafts)):
        say(f"Checking {patient.own.drafts[index].spec.text}")
        found += _draft(patient, index)
    found += _sampling(patient, say)
    return found


def _draft(patient: Patient, index: int) -> Iterator[Finding]:
    own, best = patient.own, patient.best
    draft = best.drafts[index]
    name = draft.spec.text
    checks: list[tuple[str, Callable[[], Finding | None]]] = [
        ("draft-marks", lambda: texts.draft_marks(best, draft)),
        ("vocabulary-meaning", lambda: texts.vocabulary_meaning(best, draft, patient.samples)),
        ("draft-cache", lambda: rounds.draft_cache(best, draft)),
        ("draft-history", lambda: rounds.draft_history(best, draft)),
        ("head-agreement", lambda: heads.head_agreement(best, draft)),
        ("head-depth", lambda: heads.head_depth(best, draft)),
        ("head-config", lambda: heads.head_config(best, draft)),
        ("nothing-accepted", lambda: rounds.nothing_accepted(best, draft)),
        ("survival-cliff", lambda: rounds.survival_cliff(best, draft)),
        ("loop-replay", lambda: rounds.loop_and_replay(best, draft)),
        ("same-text", lambda: rounds.same_text(best, draft)),
    ]
    if own is not best:
        checks.append(("same-text", lambda: rounds.same_text(own, own.drafts[index])))
    for code, check in checks:
        found = _checked(code, name, check)
        yield from found
        if any(finding.values.get("failed") for finding in found):
            yield noticed("rounds", "not checked", f"the draft's other checks would fail as {code} did", draft=name)
            return


def _sampling(patient: Patient, say: Say) -> Iterator[Finding]:
    warm = patient.warm
    if warm is None:
        yield _not_checked("sampling", "the temperature is 0; add --temperature to check how drafts are drawn")
        return
    say("Drawing drafts")
    yield from _checked("accept-rule", None, lambda: sampled.accept_rule(warm))
    for draft in warm.drafts:
        yield from _drawn(warm, draft)


def _drawn(warm: Setup, draft: Draft) -> Iterator[Finding]:
    yield from _checked("draft-sampling", draft.spec.text, lambda: sampled.draws_follow_q(warm, draft))
    yield from _checked("draft-temperature", draft.spec.text, lambda: sampled.q_of_these_settings(warm, draft))


def _checked(code: str, draft: str | None, check: Callable[[], Finding | None]) -> Sequence[Finding]:
    """A check that cannot even be carried out has found something: a part that fails."""
    try:
        found = check()
    except SpecbenchError as error:
        return [noticed(code, "broken", error.what, error.hint, draft)]
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        # The type and place of a failure, never its message: messages may quote prompts.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        hint = "A part fails where a sound one would not: SPECBENCH_DEBUG=1 with `specbench measure` shows where."
        return [noticed(code, "broken", f"the check failed: {place}", hint, draft, failed=True)]
    return [] if found is None else [found]


def _not_checked(code: str, why: str, hint: str | None = None) -> Finding:
    return noticed(code, "not checked", why, hint)


# New tokens of all texts together where a head is examined, and of one at most.
ENOUGH, LONGEST = 384, 128

Say = Callable[[str], None]


def run_doctor(config: RunConfig, say: Say = lambda _: None) -> Examination:
    """Examine the machine, the models and their work together. Raises WorkloadError and ConfigError as a run does; what
    is wrong with a model is a finding."""
    specs = [parse_draft(text) for text in config.draft]
    for spec in specs:
        require_in_process(spec)
    config, slow = with_precision(config)
    workload = _prompts(config)
    prompts = select(workload, config.limit, config.seed)
    device = resolve_device(config.device)
    say("Looking at the machine")
    findings = [machine.quiet_cores(config.max_other_cores)]
    findings += [noticed(one.code, "note", one.message, one.hint) for one in slow]
    threads = config.threads or free_cores()
    torch.set_num_threads(threads)
    findings += [machine.thread_count(threads, device), machine.steady_clock()]
    used = 0
    try:
        target, drafts = _load(config, specs, device, findings, say)
    except ModelError as error:
        findings.append(noticed("models-load", "broken", error.what, error.hint))
    else:
        config = _longer_for_heads(config, drafts, len(prompts))
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
        used = len(encoded)
        findings += special_tokens(target.tokenizer, workload)
        findings += own_files(target, config, [ids for _, ids in encoded], today)
        capacity = max(len(ids) for _, ids in encoded) + config.max_new_tokens + GAMMA + 2
        findings.append(machine.memory(target, drafts, capacity))
        if findings[-1].severity != "broken":
            findings += examine(_patient(config, target, drafts, encoded), say)
    return _examination(config, used, findings)


def _longer_for_heads(config: RunConfig, drafts: Sequence[Draft], prompts: int) -> RunConfig:
    """Texts long enough to tell a head that is fed wrongly from one that is poor."""
    if not any(isinstance(draft, HeadDraft) for draft in drafts):
        return config
    return replace(config, max_new_tokens=max(config.max_new_tokens, min(LONGEST, -(-ENOUGH // max(1, prompts)))))


def _examination(config: RunConfig, prompts: int, findings: Sequence[Finding]) -> Examination:
    return Examination(
        schema=SCHEMA,
        target=config.target,
        drafts=config.draft,
        precision=config.dtype,
        temperature=config.temperature,
        prompts=prompts,
        max_new_tokens=config.max_new_tokens,
        broken=sum(finding.severity == "broken" for finding in findings),
        findings=tuple(findings),
    )


def _prompts(config: RunConfig) -> Sequence[Prompt]:
    source = workload_source(config.workload)
    workload = load_workload(
        source, column=config.column, category_column=config.category_column, system_prompt=config.system_prompt
    )
    return workload.prompts


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
    sizes = [int(one.model.config.get_text_config().vocab_size) for one in (target, draft.loaded)]
    report = check_vocabularies(target.tokenizer, draft.loaded.tokenizer, sizes[0], sizes[1])
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


def _patient(
    config: RunConfig, target: LoadedModel, drafts: Sequence[Draft], encoded: Sequence[tuple[Prompt, list[int]]]
) -> Patient:
    eos = end_tokens(target)
    ids = [one for _, one in encoded]

    @dataclass(frozen=True)
    class Models:
        target: LoadedModel
        drafts: Sequence[Draft]
        dtype: str

        def bed(self, sampling: Sampling) -> Setup:
            return make_setup(
                self.target,
                self.drafts,
                ids,
                sampling=sampling,
                eos=eos,
                max_new_tokens=config.max_new_tokens,
                dtype=self.dtype,
            )

    given = Models(target, drafts, config.dtype)
    greedy = Sampling(repetition_penalty=config.repetition_penalty)
    own = given.bed(greedy)
    wide = None if config.dtype == "float32" else in_float32(target, drafts)
    best = given if wide is None else Models(*wide, "float32")
    exact = own if config.dtype == "float32" else None if wide is None else best.bed(greedy)
    warm = None if config.sampling.greedy else best.bed(config.sampling)
    words = ["\n\n".join(message.content for message in prompt.messages) for prompt, _ in encoded]
    samples = [target.tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST_SAMPLE] for text in words]
    return Patient(own, exact, warm, samples)
