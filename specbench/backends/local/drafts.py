"""The drafts of a run in process: what `--draft` names, loaded; draft heads, which read the target's states, among
them.

`skip:auto`: how many of the target's first layers make the best draft, found by replay before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from specbench.acceptance.loop import Drafter, generate
from specbench.acceptance.many import ManyDrafter
from specbench.acceptance.replay import Text, as_text, replay
from specbench.acceptance.score import score, score_head
from specbench.acceptance.scores import Scores
from specbench.backends.local.cached import CachedModel, States
from specbench.backends.local.dflash import BlockReader, DFlash, load_dflash
from specbench.backends.local.drafting import Draft, Setting
from specbench.backends.local.eagle3 import load_eagle
from specbench.backends.local.headreader import HeadReader, ManyHeadReader, Network
from specbench.backends.local.mtp import Mtp, RowReader, load_mtp, load_written_mtp
from specbench.backends.local.ragged import RaggedModel
from specbench.clock import Stopwatch, device_sync
from specbench.cost.model import RoundCosts, predicted_speedup
from specbench.cost.probe import Probed, probe
from specbench.drafters import DraftSpec
from specbench.drafters.head import HeadDrafter, ManyHeadDrafter
from specbench.drafters.skip import fewest_layers, first_layers
from specbench.errors import ConfigError
from specbench.kinds import MAX_GAMMA
from specbench.models import LoadedModel
from specbench.models.headconfig import BlockHead, EagleHead, Head, OwnHead
from specbench.models.heads import heads_of
from specbench.models.memory import cache_bytes_per_token, weight_bytes, weights
from specbench.run_record import ModelFacts

# Drafts of a round that a head is scored for, at least: replays of longer rounds need a run that names them.
DEPTHS = 8


class HeadDraft(Draft):
    """A draft head, which reads the target's states: in its arm the target is one that keeps them."""

    def __init__(self, spec: DraftSpec, head: Network) -> None:
        super().__init__(spec, None)
        self.head, self.most = head, head.head.most

    def facts(self) -> ModelFacts:
        head = self.head
        kept = len(head.reads) * head.head.target_hidden * head.dtype.itemsize
        return ModelFacts(
            name=head.head.name,
            revision=head.head.revision,
            parameters=head.parameters,
            weight_bytes=head.weight_bytes,
            forward=head.forward,
            head=head.head.kind,
            layer_ids=head.reads,
            draft_vocabulary=head.head.draft_vocab or head.vocab_size,
            cache_bytes_per_token=cache_bytes_per_token(head.config, head.dtype.itemsize) + kept,
            reader=self.spec.reader,
        )

    def _model_drafter(self, capacity: int) -> Drafter:
        self.reader = self.stepper = None
        self.memory = reader_of(self.head, capacity)
        self.target = self.setting.read.keeping(self.head.reads)
        assert self.target.states is not None
        self.states: States = self.target.states
        return HeadDrafter(self.memory, self.states.read, **self._options())

    def _of_batches(self, target: RaggedModel) -> ManyDrafter:
        self.many_target = target.keeping(self.head.reads)
        assert self.many_target.states is not None
        memory = ManyHeadReader(self.head, self.many_target.states, target.capacity)
        return ManyHeadDrafter(memory, **self._options())

    def score(self, ids: Sequence[int], output: Sequence[int]) -> Scores:
        setting = self.setting
        assert self.target is not None
        found = score_head(
            self.target,
            self.states.read,
            self.memory,
            ids,
            output,
            depths=min(max(setting.gamma, DEPTHS), self.most or MAX_GAMMA),
            sampling=self.spec.sampling(setting.sampling),
            eos=setting.eos,
        )
        return replace(found, blocks=self._blocks(ids, output))


def load_head(head: Head, target: LoadedModel) -> Network:
    """A head beside its target, in the target's precision. Raises ModelError where it does not fit the target, or where
    its weights are not those of its configuration."""
    if isinstance(head, BlockHead):
        return load_dflash(head, target)
    if isinstance(head, OwnHead):
        return load_written_mtp(head, target)
    assert isinstance(head, EagleHead)
    return load_eagle(head, target)


def reader_of(network: Network, capacity: int) -> HeadReader:
    if isinstance(network, DFlash):
        return BlockReader(network, capacity)
    if isinstance(network, Mtp) and network.count > 1:
        return RowReader(network, capacity)
    return HeadReader(network, capacity)


def require_rounds(head: Head, gammas: Sequence[int]) -> None:
    """Raise ConfigError where a head drafts fewer tokens in a round than are asked for."""
    if head.most is not None and max(gammas) > head.most:
        raise ConfigError(
            f"{head.name} drafts {head.most} tokens in a round, and gamma goes up to {max(gammas)}",
            hint=f"Use a gamma of up to {head.most}.",
        )


def refuse_batches(specs: Sequence[DraftSpec], heads: Mapping[str, Head]) -> None:
    """Raise ConfigError for a draft that has no form for batches."""
    bounded = [name for name, head in heads.items() if head.most is not None]
    for spec in specs:
        if spec.kind in ("skip", "cross") or (spec.look_up and not spec.alone) or spec.reader in bounded:
            raise ConfigError(
                "Batches take a draft model, a draft head that is no DFlash and no MTP of several layers, or a look-up",
                where=spec.text,
                hint="Use --batch-size 1.",
            )


def load_drafts(specs: Sequence[DraftSpec], target: LoadedModel, load: Callable[[str], LoadedModel]) -> list[Draft]:
    """One Draft for each spec; a model or head that several name is loaded once. `skip:auto` comes without its
    layers."""
    models: dict[str, LoadedModel] = {}
    named = heads_of([spec.model for spec in specs if spec.kind == "model"])
    heads = {name: load_head(head, target) for name, head in named.items()}
    if any(spec.kind == "mtp" for spec in specs):
        heads["mtp"] = load_mtp(target)
    drafts: list[Draft] = []
    for spec in specs:
        loaded = None
        if spec.reader in heads:
            drafts.append(HeadDraft(spec, heads[spec.reader]))
            continue
        if spec.kind == "skip" and spec.layers is not None:
            loaded = _cut(target, spec.text, spec.layers)
        elif spec.model is not None:
            if spec.model not in models:
                models[spec.model] = load(spec.model)
            loaded = models[spec.model]
        drafts.append(Draft(spec, loaded))
    return drafts


def _cut(target: LoadedModel, name: str, layers: int) -> LoadedModel:
    """The target's own first layers, which need no loading."""
    model = first_layers(target.model, layers)
    parameters = sum(weight.numel() for weight in weights(model))
    return replace(target, name=name, model=model, parameters=parameters, weight_bytes=weight_bytes(model))


# Texts to look at, how much of a prompt and how many tokens of each, and how many numbers of layers are tried.
TEXTS, CONTEXT, TOKENS, LAYER_COUNTS, PASSES = 4, 512, 32, 7, 5


def choose_layers(setting: Setting, prompts: Sequence[Sequence[int]], gammas: Sequence[int]) -> int:
    """Layers of the skip draft with the best predicted speedup at its best gamma, over a few texts of the target. A
    rough choice, and only that: what the draft then gives is measured like any other."""
    text = setting.target.model.config.get_text_config()
    whole, fewest = int(text.num_hidden_layers), fewest_layers(text)
    depths = sorted(
        {min(whole - 1, max(fewest, round(whole * i / (LAYER_COUNTS + 1)))) for i in range(1, LAYER_COUNTS + 1)}
    )
    texts = [list(prompt[-CONTEXT:]) for prompt in prompts[:TEXTS]]
    capacity = CONTEXT + TOKENS + max(gammas) + 1
    readers = {depth: CachedModel(first_layers(setting.target.model, depth), capacity) for depth in depths}
    setting = replace(setting, reader=CachedModel(setting.target.model, capacity))
    outputs = [_text(setting, prompt) for prompt in texts]
    costs = _costs(setting, readers, texts[0], max(gammas))
    tokens = sum(len(output) - 1 for output in outputs)
    best: tuple[float, int] | None = None
    for depth, reader in readers.items():
        scores = [_scored(setting, reader, p, o) for p, o in zip(texts, outputs, strict=True)]
        for gamma in gammas:
            found = predicted_speedup(replay(scores, gamma), tokens, costs[depth])
            if found is not None and (best is None or found > best[0]):
                best = found, depth
    return depths[len(depths) // 2] if best is None else best[1]


def _text(setting: Setting, prompt: Sequence[int]) -> list[int]:
    out = generate(
        setting.read,
        None,
        prompt,
        gamma=0,
        sampling=setting.sampling,
        eos=setting.eos,
        max_new_tokens=TOKENS,
        generator=torch.Generator(setting.read.device).manual_seed(0),
        clock=Stopwatch(),
    )
    return out.tokens


def _scored(setting: Setting, reader: CachedModel, prompt: Sequence[int], output: Sequence[int]) -> Text:
    found = score(
        setting.read,
        reader,
        prompt,
        output,
        vocab_size=setting.vocab_size,
        sampling=setting.sampling,
        eos=setting.eos,
    )
    return as_text(found, prompt_id="", category=None, draft="", repeat=0, limit=TOKENS)


def _costs(
    setting: Setting, readers: Mapping[int, CachedModel], prompt: Sequence[int], gamma: int
) -> dict[int, RoundCosts]:
    """Of each depth, from the target over 1 to gamma + 1 tokens and each reader over one."""
    target = Probed(setting.read, tuple(range(1, gamma + 2)), keep_all=True)
    depths = [(str(depth), Probed(reader, (1,), keep_all=False)) for depth, reader in readers.items()]
    sync = device_sync(setting.read.device)
    points = probe({len(prompt): [(None, target), *depths]}, prompt, seed=0, sync=sync, passes=PASSES)
    verify_s = tuple(point.median_s for point in points if point.model is None)
    step_s = {int(point.model): point.median_s for point in points if point.model is not None}
    return {depth: RoundCosts(verify_s, step_s[depth], step_s[depth], 0.0) for depth in readers}
