"""From a configuration to an examination: load what can be loaded, say what cannot, and examine the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from specbench.backends.local.drafting import Draft
from specbench.backends.local.drafts import HeadDraft, load_drafts
from specbench.backends.local.precision import with_precision
from specbench.config import RunConfig
from specbench.cost.load import free_cores
from specbench.drafters import DraftSpec, parse_draft, require_in_process
from specbench.errors import ModelError, VocabularyError, WorkloadError
from specbench.models import LoadedModel, check_vocabularies, load_model, resolve_device
from specbench.models.encoding import Today
from specbench.models.prompts import encode_all, end_tokens
from specbench.models.rendering import unwritten
from specbench.records import Finding, Prompt, Sampling
from specbench.shipped import workload_source
from specbench.text import gigabytes
from specbench.verify import machine
from specbench.verify.examine import Patient, examine
from specbench.verify.files import own_files
from specbench.verify.findings import SCHEMA, Examination, noticed
from specbench.verify.language import LONGEST_SAMPLE
from specbench.verify.setup import GAMMA, Setup, in_float32, make_setup
from specbench.verify.template import special_tokens
from specbench.workload import load_workload, select

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
    findings.append(noticed("models-load", "ok", f"{len(loaded)} models, {weights} of weights in {config.dtype}"))
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
    models = [target, *(draft.loaded for draft in drafts if draft.loaded is not None)]
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
