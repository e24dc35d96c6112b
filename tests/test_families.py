"""Kinds of attention, tiny and random, held against transformers' own `generate`: alone and in batches of texts of
different lengths. Passes have drafts that are rejected and rolled back (backends/local/reference.py)."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import full
from families.recipes import config, model
from tiny import GREEDY, near_copy, run, save_with_byte_tokenizer, tiny_llama
from transformers import CONFIG_MAPPING, AutoConfig
from typer.testing import CliRunner

from specbench.acceptance.replay import as_text, replay
from specbench.backends.local import ragged
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.local import LocalEngine
from specbench.backends.local.ragged import RaggedModel
from specbench.backends.local.reference import check_reference, pick
from specbench.cli import app
from specbench.config import load_config
from specbench.drafters.around import ManyReadableDrafter, ReadableDrafter, readable, silent_after
from specbench.drafters.model import ModelDrafter
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.family import (
    frequency_limit,
    require_batches,
    require_family,
    shares_layers,
)
from specbench.models.memory import cache_bytes
from specbench.records import Sampling

PROMPTS = [list(range(1, 8)), list(range(3, 17)), list(range(2, 30))]


# Models that also read images.
WRAPPERS = ("qwen2_vl", "qwen2_5_vl", "glm4v")
QUICK = ("mistral", "gemma2", "gpt2")  # a window throughout, a window in some layers, none


def loaded(made: Any, name: str = "m") -> LoadedModel:
    return LoadedModel(name, made, None, None, 0, 0, None)


def check(made: Any, reader: Any, prompts: Any = PROMPTS, **more: Any) -> Any:
    options = {"max_new_tokens": 24, "widest": 5, "eos": (), "dtype": "float32"} | more
    return check_reference(loaded(made), reader, prompts, **options)


@pytest.mark.parametrize("family", [*QUICK, *full(*WRAPPERS)])
def test_a_family_reads_as_transformers_does_alone_and_in_batches(family: str) -> None:
    made = model(family)
    alone = check(made, CachedModel(made, 64))
    assert (alone.prompts, alone.tokens, alone.near_ties) == (3, 48, 0)
    assert check(made, RaggedModel(made, 96, 3)).near_ties == 0
    assert check(made, RaggedModel(made, 96, 2)).near_ties == 0  # three texts in two groups
    assert check(made, CachedModel(made, 64), padded=True).near_ties == 0


@pytest.mark.parametrize("family", ["mistral", *full("gemma2", "gpt_oss", "llama4_text")])
def test_planted_a_batch_without_its_window_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was wrong before: every row saw all of its past."""
    made = model(family)
    honest = ragged._written

    def blind(at: Any, **asked: Any) -> Any:
        causal = lambda batch, head, query, key: key <= query  # noqa: E731
        return honest(at, **(asked | {"mask_function": causal, "use_vmap": False}))

    monkeypatch.setattr(ragged, "_written", blind)
    with pytest.raises(ModelError, match=r"^m gives other tokens here than in transformers' generate, at \d+ of 48"):
        check(made, RaggedModel(made, 96, 3))


def test_planted_positions_that_all_rows_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("mistral")
    honest = ragged.masks_at
    monkeypatch.setattr(ragged, "masks_at", lambda at: honest(at[:1].expand_as(at)))
    with pytest.raises(ModelError, match="other tokens"):
        check(made, RaggedModel(made, 96, 3))


def test_planted_a_cache_that_is_not_rolled_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llama")
    reader = CachedModel(made, 128)
    honest = reader.rewind
    monkeypatch.setattr(reader, "rewind", lambda length: honest(length) if length == 0 else None)
    with pytest.raises(ModelError, match="other tokens"):
        check(made, reader)


def test_masks_asked_one_pair_at_a_time_are_the_same() -> None:
    at = torch.tensor([[3, 4], [9, 10]])
    window = lambda batch, head, query, key: (key <= query) & (key > query - 3)  # noqa: E731
    one, other = (ragged._written(at, kv_length=12, mask_function=window, use_vmap=way) for way in (False, True))
    assert torch.equal(one.expand_as(other), other)
    assert one[1, 0, 0].nonzero().ravel().tolist() == [7, 8, 9]


def test_masks_of_transformers_are_its_own_again_after_a_pass_that_fails() -> None:
    with pytest.raises(KeyError), ragged.masks_at(torch.zeros(1, 1, dtype=torch.long)):
        raise KeyError
    assert not ragged.ALL_MASK_ATTENTION_FUNCTIONS._local_mapping


def test_a_model_that_looks_ahead_is_refused_where_its_configuration_does_not_tell() -> None:
    made = model("bert-generation", is_decoder=False)
    with pytest.raises(ModelError, match=r"^m \(bert-generation\) is not causal as configured"):
        check(made, CachedModel(made, 64))


def test_rounding_excuses_no_wide_margin_in_float32_and_chaos_does_in_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from specbench.backends.local import reference

    made = model("llama")
    monkeypatch.setattr(reference, "_apart", lambda *_: [0.5, 0.5])
    monkeypatch.setattr(reference, "_own", lambda *_: [0.5])  # of each of three texts
    assert check(made, CachedModel(made, 64), dtype="bfloat16").near_ties == 2
    with pytest.raises(ModelError, match=r"at 2 of 48 places by a margin of up to 50\.0%"):
        check(made, CachedModel(made, 64), dtype="float32")
    monkeypatch.setattr(reference, "_own", lambda *_: [])
    with pytest.raises(ModelError, match=r"rounding in bfloat16 explains 3\.1%"):
        check(made, CachedModel(made, 64), dtype="bfloat16")


def test_local_attention_of_another_make_is_refused_in_a_batch_and_right_alone() -> None:
    """GPT-Neo cuts its windows out of a table of its own, which no mask tells."""
    made = model("gpt_neo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=6)
    assert check(made, CachedModel(made, 64)).near_ties == 0
    with pytest.raises(ModelError, match="Run one text at a time"):
        check(made, RaggedModel(made, 96, 3))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("rwkv", "keeps a state outside of transformers' cache, so it cannot be rolled back"),
        ("xlstm", "keeps a state outside of transformers' cache, so it cannot be rolled back"),
        ("bert", "is not causal as configured"),
        ("roberta", "is not causal as configured"),
        ("xlnet", "has no KV cache"),
        ("florence2", "writes from what an encoder reads"),
        ("blt", "transformers makes no KV cache"),
    ],
)
def test_what_no_loop_can_drive_is_refused_from_the_configuration(family: str, why: str) -> None:
    with pytest.raises(ModelError, match=rf"^theirs \({family}\) .*{why}|{why} for theirs"):
        require_family(CONFIG_MAPPING[family](), "theirs")


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_gap_filler_that_was_made_a_decoder_is_one(family: str) -> None:
    require_family(CONFIG_MAPPING[family](is_decoder=True), "theirs")


def test_batches_and_first_layers_are_refused_from_the_configuration() -> None:
    with pytest.raises(ModelError, match=r"^theirs \(falcon\) takes no positions"):
        require_batches(CONFIG_MAPPING["falcon"](alibi=True), "theirs")
    with pytest.raises(ModelError, match=r"^theirs \(bloom\) takes no positions"):
        require_batches(CONFIG_MAPPING["bloom"](), "theirs")
    require_batches(CONFIG_MAPPING["falcon"](alibi=False), "theirs")
    assert [shares_layers(CONFIG_MAPPING[name]()) for name in ("gemma3n_text", "longcat_flash", "llama")] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("family", ["gemma4", "mamba", "xlstm", "nemotron_h", "gpt2", "qwen2_vl", "rwkv"])
def test_the_cache_of_any_configuration_has_a_size(family: str) -> None:
    assert cache_bytes(CONFIG_MAPPING[family](), 10, 2, 4) >= 0


def test_a_cache_is_as_large_as_it_becomes() -> None:
    made = model("gemma3n_text")
    reader = CachedModel(made, 16)
    reader.forward(PROMPTS[0], keep=1)
    kept = [layer for layer in reader.cache.layers if hasattr(layer, "capacity")]
    assert len(kept) == 2  # the other two read the keys of these
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in kept) == cache_bytes(made.config, 16, 1, 4)


def test_prompts_of_all_lengths_are_picked() -> None:
    assert [len(each) for each in pick([[0] * n for n in (5, 1, 9, 7, 3)])] == [1, 5, 9]
    assert pick([[1, 2]]) == [[1, 2]]


def test_a_length_at_which_frequencies_change() -> None:
    asked = config("phi3", rope_parameters=ROPE, original_max_position_embeddings=32)
    assert (frequency_limit(asked), frequency_limit(config("mistral"))) == (32, None)


ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_above_a_change_of_frequencies_are_scored_side_by_side_as_alone(temperature: float) -> None:
    from specbench.acceptance.score import score
    from specbench.backends.local.batch import score_batch

    target = model("phi3", rope_parameters=ROPE, original_max_position_embeddings=70)
    draft, prompts = near_copy(target, 0.02), [list(range(3, 3 + n)) for n in (55, 8)]
    prompts.append([*prompts[0], *prompts[0]])  # the others end below
    outputs = [run(target, None, prompt, max_new_tokens=12).tokens for prompt in prompts]
    options: dict[str, Any] = {"vocab_size": 64, "sampling": Sampling(temperature), "eos": ()}
    together = score_batch(target, draft, prompts, outputs, **options)
    for prompt, output, found in zip(prompts, outputs, together, strict=True):
        alone = score(CachedModel(target, 128), CachedModel(draft, 128), prompt, output, **options)
        assert found.log_q == pytest.approx(alone.log_q, abs=1e-4)
        assert found.accept == pytest.approx(alone.accept, abs=1e-4)


# -- where a table of positions ends ----------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("family", ["gpt2", *full("opt", "biogpt")])
def test_padding_beyond_the_context_is_read_by_nobody(family: str) -> None:
    made = model(family, **{"n_positions" if family == "gpt2" else "max_position_embeddings": 32})
    many, alone = RaggedModel(made, 64, 2), CachedModel(made, 32)
    rows, more = [list(range(3, 34)), [5, 6, 7]], [[8], [9, 10, 11, 12]]
    many.begin(2)
    many.forward(rows, every=False)
    for row, found, ids in zip(rows, many.forward(more, every=True), more, strict=True):
        alone.rewind(0)
        alone.forward(row, keep=1)
        torch.testing.assert_close(found[: len(ids)], alone.forward(ids, keep=len(ids)), atol=1e-4, rtol=1e-4)


def test_a_text_that_ends_at_the_context_is_held_against_transformers_and_warms_every_width(tmp_path: Any) -> None:
    target = _save(model("gpt2", vocab_size=257, n_positions=64), tmp_path / "t")
    config = load_config(None, {"target": target, "draft": ["ngram:n=2"], "gamma": "3", "dtype": "float32"})
    engine = LocalEngine(replace(config, device="cpu"), 1)
    engine.reserve(64 + 4)
    engine.warm(list(range(3, 65)), range(1, 5))
    (found,) = engine.check_reference([list(range(3, 59))], 8, padded=False)
    assert found.tokens == 8


# -- tokens that a draft cannot read ----------------------------------------------------------------------------------


def _pair() -> tuple[Any, Any]:
    """A target with one token more than its draft, which it writes now and then."""
    target = tiny_llama(65, seed=5)
    draft = near_copy(target, noise=0.05)
    for part in (draft.model.embed_tokens, draft.lm_head):
        part.weight = torch.nn.Parameter(part.weight[:64].clone(), requires_grad=False)
    draft.config.vocab_size = 64
    return target, draft


def _first_prompt_that_writes(target: Any, token: int) -> tuple[list[int], list[int]]:
    for seed in range(200):
        prompt = [seed % 60 + 1, seed // 3 + 1, 7]
        output = run(target, None, prompt, max_new_tokens=40).tokens
        if token in output[2:-6]:
            return prompt, output
    raise AssertionError("no text has it")


def test_a_draft_is_silent_after_a_token_that_it_cannot_read() -> None:
    target, draft = _pair()
    prompt, output = _first_prompt_that_writes(target, 64)
    at = output.index(64)
    drafter = ReadableDrafter(ModelDrafter(CachedModel(draft, 128), vocab_size=65, sampling=GREEDY, eos=()), 64)
    live = run(target, drafter, prompt, gamma=3, max_new_tokens=40)
    assert live.tokens == output
    begins, out = [], 1
    for r in live.rounds:
        begins.append((out, r.drafted))
        out += r.accepted + 1
    assert all((drafted > 0) == (begin <= at) for begin, drafted in begins[:-1])

    from specbench.acceptance.score import score

    found = score(
        None, CachedModel(draft, 128), prompt, readable(prompt, output, 64), vocab_size=65, sampling=GREEDY, eos=()
    )
    whole = silent_after(found, len(output) - 1)
    expected = replay([as_text(whole, prompt_id="p", category=None, draft="d", repeat=0, limit=40)], 3)
    assert expected.rounds.sum() == len(live.rounds)
    assert expected.accepted.sum() == sum(r.accepted for r in live.rounds)
    assert expected.drafted.sum() == sum(r.drafted for r in live.rounds)


def test_texts_side_by_side_are_scored_up_to_a_token_that_the_draft_cannot_read() -> None:
    from specbench.acceptance.score import score
    from specbench.backends.local.batch import score_batch

    target, draft = _pair()
    prompt, output = _first_prompt_that_writes(target, 64)
    texts = [(prompt, readable(prompt, output, 64)), ([3, 4, 5, 6], run(target, None, [3, 4, 5, 6]).tokens)]
    options: dict[str, Any] = {"vocab_size": 65, "sampling": GREEDY, "eos": ()}
    together = score_batch(target, draft, *map(list, zip(*texts, strict=True)), **options)
    for (ids, out), found in zip(texts, together, strict=True):
        assert (found.accept == score(None, CachedModel(draft, 128), ids, out, **options).accept).all()


def test_a_prompt_that_a_draft_cannot_read_is_not_drafted_for() -> None:
    target, draft = _pair()
    drafter = ReadableDrafter(ModelDrafter(CachedModel(draft, 128), vocab_size=65, sampling=GREEDY, eos=()), 64)
    live = run(target, drafter, [1, 64, 2], gamma=3, max_new_tokens=10)
    assert live.tokens == run(target, None, [1, 64, 2], max_new_tokens=10).tokens
    assert all(r.drafted == 0 for r in live.rounds)
    assert readable([1, 64, 2], live.tokens, 64) == live.tokens[:1]


@pytest.mark.full
def test_a_batch_drafts_on_beside_a_row_that_it_cannot_read() -> None:
    from specbench.acceptance.many import generate_many
    from specbench.clock import Stopwatch
    from specbench.drafters.model import ManyModelDrafter

    target, draft = _pair()
    prompt, output = _first_prompt_that_writes(target, 64)
    prompts = [prompt, [3, 4, 5, 6], [1, 64, 2]]
    drafter = ManyReadableDrafter(
        ManyModelDrafter(RaggedModel(draft, 160, 3), vocab_size=65, sampling=GREEDY, eos=()), 64
    )
    rows = generate_many(
        RaggedModel(target, 160, 3),
        drafter,
        prompts,
        gamma=3,
        sampling=GREEDY,
        eos=(),
        max_new_tokens=40,
        generators=[torch.Generator() for _ in prompts],
        clock=Stopwatch(),
    )
    assert rows[0].tokens == output
    assert [row.tokens for row in rows] == [run(target, None, p, max_new_tokens=40).tokens for p in prompts]
    assert [sum(r.drafted for r in row.rounds) > 0 for row in rows] == [True, True, False]


# -- whole runs -------------------------------------------------------------------------------------------------------


def _save(made: Any, folder: Any) -> str:
    save_with_byte_tokenizer(made, folder)
    return str(folder)


def _sweep(lab: Any, tmp_path: Any, *more: str) -> Any:
    flags = ["--dtype", "float32", "--threads", "1", "--device", "cpu", "--workload", str(lab.workload)]
    lab_config = str(lab.workload.parent / "lab.yaml")
    return CliRunner().invoke(app, ["sweep", "--config", lab_config, *flags, "--out", str(tmp_path / "out"), *more])


def _record(tmp_path: Any) -> dict[str, Any]:
    (folder,) = (tmp_path / "out").iterdir()
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


@pytest.mark.full
@pytest.mark.parametrize("batch", ["1", "4"])
def test_a_run_of_a_windowed_pair_is_held_against_generate(lab: Any, tmp_path: Any, batch: str) -> None:
    made = model("mistral", vocab_size=257)
    pair = ["--target", _save(made, tmp_path / "t"), "--draft", _save(near_copy(made, 0.02), tmp_path / "d")]
    found = _sweep(lab, tmp_path, *pair, "--gamma", "2", "--batch-size", batch, "--json")
    assert found.exit_code == 0, found.output
    (gamma,) = json.loads(found.stdout)["drafts"][0]["gammas"]
    assert gamma["identical_prompts"] == gamma["prompts"] > 0
    checks = _record(tmp_path)["reference_check"]
    assert [(each["prompts"], each["tokens"], each["near_ties"]) for each in checks] == [(3, 36, 0)] * 2


def test_attention_that_is_written_out_is_a_caution(lab: Any, tmp_path: Any) -> None:
    target = _save(model("gemma2", vocab_size=257), tmp_path / "t")
    found = _sweep(lab, tmp_path, "--target", target, "--draft", "ngram:n=2", "--replay-only")
    assert found.exit_code == 0, found.output
    assert "no-sdpa" in [each["code"] for each in _record(tmp_path)["warnings"]]


def _long_rope(lab: Any, tmp_path: Any) -> tuple[list[str], int]:
    """Flags of a pair whose frequencies change amid the lengths of the prompts, and how many prompts there are."""
    lengths = [len(json.loads(line)["prompt"]) for line in lab.workload.read_text().splitlines()]
    at = sorted(lengths)[len(lengths) // 2] + len("user: \nassistant: ")
    made = model("phi3", vocab_size=257, rope_parameters=ROPE, original_max_position_embeddings=at)
    pair = ["--target", _save(made, tmp_path / "t"), "--draft", _save(near_copy(made, 0.02), tmp_path / "d")]
    return [*pair, "--gamma", "2", "--max-new-tokens", "3", "--json"], len(lengths)


@pytest.mark.full
@pytest.mark.parametrize("how", [["--replay-only"], *full([], ["--batch-size", "2"])])
def test_texts_that_would_cross_a_change_of_frequencies_are_left_out(lab: Any, tmp_path: Any, how: list[str]) -> None:
    flags, prompts = _long_rope(lab, tmp_path)
    found = _sweep(lab, tmp_path, *flags, *how)
    assert found.exit_code == 0, found.output
    skipped = _record(tmp_path)["workload"]["skipped"]
    assert 0 < len(skipped) < prompts
    assert any("LongRoPE" in each["reason"] for each in skipped)
    if "--replay-only" not in how:
        (gamma,) = json.loads(found.stdout)["drafts"][0]["gammas"]
        assert gamma["identical_prompts"] == gamma["prompts"] > 0


def test_planted_a_text_that_crosses_a_change_of_frequencies_is_refused(
    lab: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, _ = _long_rope(lab, tmp_path)
    monkeypatch.setattr("specbench.backends.local.local.LocalEngine.frequency_limit", None)
    found = _sweep(lab, tmp_path, *flags, "--max-new-tokens", "14")
    assert found.exit_code == 2, found.output
    assert "gives other tokens here than in transformers' generate" in found.stderr


def test_what_cannot_run_is_one_line_before_weights_are_read(lab: Any, tmp_path: Any) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    save_with_byte_tokenizer(tiny_llama(257, seed=1), folder)
    for family, more, words in (
        ("bert", [], "is not causal as configured"),
        ("rwkv", [], "cannot be rolled back"),
        ("falcon", ["--batch-size", "4"], "Use --batch-size 1"),
        ("gemma3n_text", ["--draft", "skip:layers=1"], "cannot draft alone"),
    ):
        settings = {"alibi": True} if family == "falcon" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CONFIG_MAPPING[family](**settings).save_pretrained(folder)
        assert AutoConfig.from_pretrained(folder).model_type == family
        (folder / "model.safetensors").write_bytes(b"not weights")
        found = _sweep(
            lab, tmp_path, "--target", str(folder), *(more if "--draft" in more else ["--draft", "ngram:n=2", *more])
        )
        assert found.exit_code == 2, found.output
        assert words in found.stderr
        assert str(folder) in found.stderr
        assert "Traceback" not in found.output
