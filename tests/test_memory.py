"""What does not fit is refused before it is loaded; what runs out of memory on the way loses a prompt and not the run;
and nothing is kept from one trial to the next."""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter

import pytest
import torch
from conftest import full
from fake_device import quick_probe
from test_cli import call
from test_run import FakeObserver, config_for, sweep
from tiny import save_with_byte_tokenizer, tiny_llama
from transformers import LlamaForCausalLM

from specbench.acceptance.positions import read_positions
from specbench.analysis.summarise import summarise
from specbench.backends.local import backend, local
from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.drafting import Draft
from specbench.backends.local.lean import LeanDecoder
from specbench.backends.local.ragged import RaggedCache
from specbench.errors import EngineError, ModelError, StoreError
from specbench.models import load_model
from specbench.models.memory import is_out_of_memory
from specbench.models.shapes import size_of
from specbench.run.session import run
from specbench.store import find_runs, read_run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_probe(monkeypatch)


CPU_SAYS = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def cache_tensors() -> list[torch.Tensor]:
    """Keys and values of every KV cache that is alive."""
    caches = [each for each in gc.get_objects() if type(each) in (RewindableCache, RaggedCache)]
    layers = [layer for cache in caches for layer in cache.layers if layer.is_initialized]
    return [
        tensor for layer in {id(layer): layer for layer in layers}.values() for tensor in (layer.keys, layer.values)
    ]


def total_bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_a_model_is_that_of_its_weights_once_loaded(lab, dtype, tmp_path):
    whole = size_of(str(lab.target), dtype=dtype)
    assert whole.weight_bytes == load_model(str(lab.target), dtype=dtype, device="cpu").weight_bytes
    model = tiny_llama(257, seed=1, tie_word_embeddings=True)
    save_with_byte_tokenizer(model, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    # What lies beside is not loaded, and not counted.
    shutil.copy(lab.target / "model.safetensors", tmp_path / "sharded" / "consolidated.safetensors")
    tied = size_of(str(tmp_path / "sharded"), dtype=dtype)
    assert tied.weight_bytes == load_model(str(tmp_path / "sharded"), dtype=dtype, device="cpu").weight_bytes


def test_packed_weights_keep_their_size(lab, tmp_path):
    from safetensors.torch import save_file

    shutil.copytree(lab.target, tmp_path / "m")
    weights = {
        "packed": torch.zeros(10, dtype=torch.int32),
        "small": torch.zeros(100, dtype=torch.float8_e4m3fn),
        "wide": torch.zeros(7, dtype=torch.float32),
    }
    save_file(weights, tmp_path / "m" / "model.safetensors")
    assert size_of(str(tmp_path / "m"), dtype="bfloat16").weight_bytes == 40 + 100 + 14


def test_of_what_cannot_be_told_nothing_is_said(lab, tmp_path):
    shutil.copytree(lab.target, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    assert size_of(str(tmp_path / "m"), dtype="float32") is None


@pytest.mark.parametrize("flags", [{}, *full({"batch_size": 3}, {"replay_only": True})], ids=str)
def test_the_estimate_is_what_a_run_takes(lab, tmp_path, monkeypatch, flags):
    """To the byte, of weights and caches: refused with a byte less, run with as much."""
    flags = dict(flags)
    replay_only = flags.pop("replay_only", False)
    seen = []
    largest = backend._largest
    monkeypatch.setattr(backend, "_largest", lambda *args: seen.append(largest(*args)) or seen[-1])
    free = [0]
    monkeypatch.setattr(backend, "available_bytes", lambda _: free[0])
    # The least is that of whole trials.
    sizes = {"limit": 2 * flags.get("batch_size", 1), "probe_batch_sizes": "1", "slice_tokens": 0}
    config = config_for(lab, tmp_path / "runs", **sizes, **flags)

    def go():
        return run(config, "sweep", (1, 3), FakeObserver(), replay_only=replay_only)

    with monkeypatch.context() as nothing_loads, pytest.raises(ModelError, match=r"0\.00 MB are free"):
        nothing_loads.setattr(local, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        go()
    assert not (tmp_path / "runs").exists()
    exact = seen[-1][1]
    free[0] = exact.total - 1
    with pytest.raises(ModelError):
        go()
    free[0] = exact.total
    gc.collect()
    before = total_bytes(cache_tensors())
    held = []
    monkeypatch.setattr(FakeObserver, "trial", lambda *_: held.append(total_bytes(cache_tensors()) - before))
    folder = go()
    both = size_of(str(lab.target), dtype="float32").weight_bytes + size_of(str(lab.near), dtype="float32").weight_bytes
    assert exact.weights == both
    if not replay_only:
        # Of a batch, rows that have ended are gone by the time that its trial is over.
        assert max(held) == exact.caches or (0.8 * exact.caches <= max(held) <= exact.caches and flags)
    assert read_run(folder).status == "finished"


def test_a_refusal_is_one_line_with_numbers_and_a_hint(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "available_bytes", lambda _: 10_000)
    result = call("measure", *lab.args("--out", tmp_path / "runs", "--quiet"))
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    for words in ("need 0.", "weights in float32", "KV caches of", "tokens", "--dtype bfloat16"):
        assert words in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_a_disk_that_is_surely_too_small_is_refused(lab, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(StoreError, match=r"needs at least 0\.03 MB, 0\.02 MB are free .*: 48 trials"):
        sweep(lab, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    # Twelve prompts at one gamma are 36 lines of trials; with texts they are longer.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=36 * 620))
    sweep(lab, tmp_path / "small", gammas=(1,), max_new_tokens=2, probe_batch_sizes="1")
    with pytest.raises(StoreError, match="without --keep-text"):
        sweep(lab, tmp_path / "runs", gammas=(1,), keep_text=True)


class Allocator:
    """Refuses the allocations that it is told to: those of passes after which a sequence is as long as `longest`, or
    the n-th pass from now on."""

    def __init__(self, monkeypatch, *, longest=10**9, nth=None, rows=10**9, says=CPU_SAYS, kind=RuntimeError):
        self.longest, self.nth, self.rows, self.calls, self.refused = longest, nth, rows, 0, 0
        shell, lean = LlamaForCausalLM.forward, LeanDecoder.run

        def limit(ids, whole):
            self.calls += 1
            if whole >= self.longest or self.calls == self.nth or ids.shape[0] >= self.rows:
                self.refused += 1
                raise kind(says)

        def limited_shell(model, input_ids=None, **more):
            cache = more.get("past_key_values")
            limit(input_ids, (0 if cache is None else cache.get_seq_length()) + input_ids.shape[1])
            return shell(model, input_ids=input_ids, **more)

        def limited_lean(decoder, ids, at, mask, updates, keep, taps=None):
            limit(ids, int(at.max()) + 1)
            return lean(decoder, ids, at, mask, updates, keep, taps)

        monkeypatch.setattr(LlamaForCausalLM, "forward", limited_shell)
        monkeypatch.setattr(LeanDecoder, "run", limited_lean)


@pytest.fixture
def uneven(lab, tmp_path):
    """Eight prompts, of which two are three times as long."""
    rows = [{"id": f"p{i}", "prompt": f"say something of {i}. " * (6 if i in (2, 5) else 2)} for i in range(8)]
    path = tmp_path / "uneven.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def codes(stored):
    return {warning.code: warning.message for warning in stored.run.warnings}


def counts(stored):
    """What greedy trials counted, by prompt and arm."""
    return {
        (t.prompt_id, t.arm): (t.drafted, t.accepted, t.output_sha256)
        for t in stored.trials
        if not t.warmup and t.prompt_id not in ("p2", "p5")
    }


def test_a_prompt_that_does_not_fit_is_left_out_of_every_arm(lab, tmp_path, monkeypatch, uneven):
    flags = {"workload": uneven, "probe_batch_sizes": "1", "max_new_tokens": 6}
    whole = sweep(lab, tmp_path / "whole", **flags)
    with monkeypatch.context() as patch:
        allocator = Allocator(patch, longest=130)
        stored = sweep(lab, tmp_path / "short", **flags)
    assert allocator.refused >= 2
    assert stored.status == "finished"
    assert {s.id for s in stored.run.workload.skipped} == {"p2", "p5"}
    assert "2 prompts were left out of every arm because memory ran out, at 1" in codes(stored)["out-of-memory"]
    summary = summarise(stored)
    assert [row.prompts for row in summary.drafts[0].gammas] == [6, 6]
    assert "out-of-memory" in [warning.code for warning in summary.warnings]
    assert all(row.replay_rounds == row.rounds for row in summary.drafts[0].gammas)
    # the others lost nothing
    assert counts(stored) == counts(whole)
    assert len(counts(stored)) == 6 * 4


@pytest.mark.full
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, *full(MemoryError)])
def test_a_failed_allocation_has_several_names(lab, tmp_path, monkeypatch, uneven, kind):
    Allocator(monkeypatch, longest=130, kind=kind, says="")
    stored = sweep(lab, tmp_path, gammas=(1,), workload=uneven, probe_batch_sizes="1", max_new_tokens=2)
    assert {s.id for s in stored.run.workload.skipped} == {"p2", "p5"}


@pytest.mark.full
def test_one_failed_allocation_costs_one_prompt(lab, tmp_path, monkeypatch):
    """Of whole trials: arms that take turns within a prompt are then measured one by one, and nothing is lost."""
    counted: list = []
    whole = {"probe_batch_sizes": "1", "max_new_tokens": 6, "slice_tokens": 0}
    with monkeypatch.context() as patch:
        allocator = Allocator(patch)
        observer = FakeObserver()
        observer.trial = lambda trial: counted.append((allocator.calls, trial))
        sweep(lab, tmp_path / "first", gammas=(2,), observer=observer, **whole)
    middle = counted[17][0] + 3  # in the middle of the nineteenth trial
    with monkeypatch.context() as patch:
        Allocator(patch, nth=middle)
        stored = sweep(lab, tmp_path / "second", gammas=(2,), **whole)
    (lost,) = stored.run.workload.skipped
    assert lost.id == counted[18][1].prompt_id
    assert summarise(stored).drafts[0].gammas[0].prompts == 11


@pytest.mark.full
def test_a_run_that_no_memory_is_left_for_stops_and_goes_on_later(lab, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        starved = Allocator(patch)
        observer = FakeObserver()
        observer.trial = lambda trial: setattr(starved, "longest", 0 if len(find_trials(tmp_path)) >= 9 else 10**9)
        flags = {"gammas": (2,), "probe_batch_sizes": "1", "max_new_tokens": 4, "observer": observer}
        with pytest.raises(EngineError, match=r"Out of memory on 5 prompts in a row.*same command again") as stopped:
            sweep(lab, tmp_path, **flags)
    assert stopped.value.exit_code == 1
    (folder,) = find_runs(tmp_path)
    before = read_run(folder)
    assert before.status == "failed"
    assert before.run.workload.skipped == ()
    stored = sweep(lab, tmp_path, **flags | {"observer": FakeObserver()})
    assert stored.folder == folder
    assert stored.status == "finished"
    assert set(Counter((t.prompt_id, t.arm) for t in stored.trials if not t.warmup).values()) == {1}
    assert len({t.prompt_id for t in stored.trials if not t.warmup}) == 12
    assert len(read_positions(folder)) == 12


def find_trials(out):
    return [t for folder in find_runs(out) for t in read_run(folder).trials]


@pytest.mark.full
def test_a_prompt_that_was_left_out_stays_out_when_the_run_is_resumed(lab, tmp_path, monkeypatch, uneven):
    def stop(trial):
        if any("out-of-memory" in codes(read_run(folder)) for folder in find_runs(tmp_path)):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        Allocator(patch, longest=130)
        observer = FakeObserver()
        observer.trial = stop
        with pytest.raises(KeyboardInterrupt):
            sweep(lab, tmp_path, workload=uneven, probe_batch_sizes="1", observer=observer)
    (folder,) = find_runs(tmp_path)
    first = read_run(folder).run.workload.skipped
    stored = sweep(lab, tmp_path, workload=uneven, probe_batch_sizes="1")
    assert stored.folder == folder
    # There would be room for them now.
    assert stored.run.workload.skipped == first
    assert summarise(stored).drafts[0].gammas[0].prompts == 8 - len(first) < 8


@pytest.mark.full
def test_a_batch_that_does_not_fit_ends_the_run_with_the_way_out(lab, tmp_path, monkeypatch):
    allocator = Allocator(monkeypatch)
    observer = FakeObserver()
    observer.trial = lambda trial: setattr(allocator, "rows", 4)
    with pytest.raises(EngineError, match=r"batch of 4.*--batch-size 2\."):
        sweep(lab, tmp_path, batch_size=4, probe_batch_sizes="1", observer=observer, max_new_tokens=6)
    (folder,) = find_runs(tmp_path)
    assert read_run(folder).status == "failed"
    assert [t for t in read_run(folder).trials if not t.warmup]
    stored = sweep(lab, tmp_path, batch_size=2, probe_batch_sizes="1", max_new_tokens=6)
    assert stored.folder != folder
    assert stored.status == "finished"


@pytest.mark.full
def test_a_replay_halves_its_batches_and_loses_only_what_never_fits(lab, tmp_path, monkeypatch, uneven):
    def replay(out):
        config = config_for(lab, out, workload=uneven)
        return read_run(run(config, "sweep", (1, 3), FakeObserver(), replay_only=True))

    whole = {t.prompt_id: t for t in read_positions(replay(tmp_path / "whole").folder)}
    Allocator(monkeypatch, rows=4, longest=130)
    stored = replay(tmp_path / "short")
    assert stored.status == "finished"
    assert {s.id for s in stored.run.workload.skipped} == {"p2", "p5"}
    found = {t.prompt_id: t for t in read_positions(stored.folder)}
    assert set(found) == set(whole) - {"p2", "p5"}
    assert all((found[name].accept == whole[name].accept).all() for name in found)


@pytest.mark.full
def test_other_errors_are_not_taken_for_a_lack_of_memory(lab, tmp_path, monkeypatch):
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (allocated 4x4)"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    Allocator(monkeypatch, nth=400, says="a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        sweep(lab, tmp_path, probe_batch_sizes="1")


@pytest.mark.full
@pytest.mark.parametrize("batch_size", [1, 2])
def test_no_cache_outlives_its_trial(lab, tmp_path, batch_size):
    """Sixty prompts: as many caches, and bytes in them, after the last trial as after the tenth."""
    rows = [{"id": f"p{i}", "prompt": f"say something of {i}"} for i in range(60)]
    workload = tmp_path / "many.jsonl"
    workload.write_text("\n".join(map(json.dumps, rows)))
    held = []
    observer = FakeObserver()
    every = 20 // batch_size  # looking takes longer than a trial
    look = every - 1
    observer.trial = lambda _: held.append(total_bytes(cache_tensors()) if len(held) % every == look else 0)
    flags = {"max_new_tokens": 4, "batch_size": batch_size, "probe_batch_sizes": "1", "workload": str(workload)}
    gc.disable()  # what goes only when Python looks for cycles stays for many trials, and on a GPU for good
    try:
        sweep(lab, tmp_path / "runs", gammas=(2,), observer=observer, **flags)
    finally:
        gc.enable()
    looks = [each for each in held if each][1:]
    assert len(looks) >= 8
    assert max(looks[4:]) <= max(looks[:4])  # a batch holds less where rows have ended
    assert len(set(looks)) == 1 or batch_size > 1


@pytest.mark.full
def test_a_prompt_that_fails_when_it_is_scored_counts_in_no_arm(lab, tmp_path, monkeypatch):
    """Its trials are on disk by then."""
    score, calls = Draft.score, []

    def refuse(self, ids, output):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError(CPU_SAYS)
        return score(self, ids, output)

    monkeypatch.setattr(Draft, "score", refuse)
    stored = sweep(lab, tmp_path, gammas=(2,), probe_batch_sizes="1", max_new_tokens=6)
    (lost,) = stored.run.workload.skipped
    row = summarise(stored).drafts[0].gammas[0]
    assert lost.id not in {t.prompt_id for t in stored.trials if not t.warmup}
    assert row.prompts == 11 and row.replay_rounds == row.rounds
