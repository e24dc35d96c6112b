"""A whole run on tiny models: what is stored, what is resumed, what is noticed."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from conftest import CANARY

from specbench.acceptance import loop
from specbench.analysis.summarise import summarise
from specbench.backends.local import session
from specbench.backends.local.session import LocalSession
from specbench.config import load_config
from specbench.errors import StoreError, WorkloadError
from specbench.run.plan import plan_arms, shuffled
from specbench.run.session import run
from specbench.store import find_runs, read_run, trial_key


class FakeObserver:
    """Counts trials, and interrupts after as many as it is told."""

    def __init__(self, interrupt_after=None):
        self.interrupt_after = interrupt_after
        self.trials = []
        self.lines = []
        self.begun = None

    def say(self, line):
        self.lines.append(line)

    def begin(self, total, done):
        self.begun = (total, done)

    def left(self, trials, units):
        pass

    def advance(self, texts):
        pass

    def trial(self, trial):
        self.trials.append(trial)
        if len(self.trials) == self.interrupt_after:
            raise KeyboardInterrupt


def config_for(lab, out, **flags):
    base = {
        "target": str(lab.target),
        "draft": [str(lab.near)],
        "workload": str(lab.workload),
        "dtype": "float32",
        "threads": 1,
        "device": "cpu",
        "out": str(out),
    }
    return load_config(lab.workload.parent / "lab.yaml", base | flags)


def sweep(lab, out, *, gammas=(1, 3), observer=None, mode="auto", **flags):
    return read_run(run(config_for(lab, out, **flags), "sweep", gammas, observer or FakeObserver(), mode=mode))


@pytest.fixture(scope="module")
def stored(typed):
    return read_run(typed.folder)


def test_every_prompt_meets_every_arm_once(stored):
    keys = Counter(trial_key(t) for t in stored.trials if not t.warmup)
    assert len(keys) == 12 * 4
    assert set(keys.values()) == {1}
    assert stored.status == "finished"
    assert [(t.arm.kind, t.warmup) for t in stored.trials[:4]] == [
        ("baseline", True),
        ("baseline-again", True),
        ("speculative", True),
        ("speculative", True),
    ]


def test_arms_are_interleaved_in_an_order_drawn_anew(stored):
    order = [t.arm for t in stored.trials if not t.warmup]
    blocks = [tuple(order[i : i + 4]) for i in range(0, len(order), 4)]
    assert all(len(set(block)) == 4 for block in blocks)
    assert len(set(blocks)) > 4
    first = Counter(block[0].kind for block in blocks)
    assert first["baseline"] < 12


def test_greedy_float32_text_is_the_targets_own(stored):
    assert {t.identical for t in stored.trials if t.arm.gamma and not t.warmup} == {True}
    draft = summarise(stored).drafts[0]
    assert [g.identical_prompts for g in draft.gammas] == [12, 12]


def test_the_summary_is_the_sum_of_the_trials(stored):
    summary = summarise(stored)
    for result in summary.drafts[0].gammas:
        mine = [t for t in stored.trials if t.arm.gamma == result.gamma and not t.warmup]
        base = [t for t in stored.trials if t.arm.kind == "baseline" and not t.warmup]
        assert result.rounds == sum(len(t.drafted) for t in mine)
        assert result.drafted == sum(sum(t.drafted) for t in mine)
        assert result.accepted == sum(sum(t.accepted) for t in mine)
        ended_in_draft = sum(t.finish == "eos" and t.drafted[-1:] == t.accepted[-1:] != (0,) for t in mine if t.drafted)
        assert result.emitted == result.accepted + result.rounds - ended_in_draft
        assert result.tokens_per_round == pytest.approx(1 + result.accepted / result.rounds)
        per_token = [sum(t.times.decode_s for t in arm) / sum(t.decode_tokens for t in arm) for arm in (base, mine)]
        assert result.speedup == pytest.approx(per_token[0] / per_token[1])
        assert result.speedup_low <= result.speedup <= result.speedup_high
        assert 0 < result.accepted < result.drafted
    assert summary.noise_floor > 0
    assert [c.category for c in summary.drafts[0].categories] == ["chat", "code"]
    assert [c.prompts for c in summary.drafts[0].categories] == [6, 6]


def test_no_prompt_or_output_text_is_stored_unless_asked(stored, lab, tmp_path):
    for path in stored.folder.rglob("*"):
        assert CANARY.encode() not in path.read_bytes()
    kept = sweep(lab, tmp_path, gammas=(1,), limit=1, keep_text=True)
    assert CANARY in (kept.folder / "trials.jsonl").read_text()


def test_an_interrupted_run_continues_and_loses_nothing(lab, tmp_path, stored, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, observer=FakeObserver(interrupt_after=13))
    (folder,) = find_runs(tmp_path)
    assert read_run(folder).status == "interrupted"
    before = [t for t in read_run(folder).trials if not t.warmup]
    assert len(before) == 13
    # a kill in the middle of a write leaves half a line
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"prompt_id": "q')
    assert read_run(folder).torn
    observer = FakeObserver()
    generated = []
    start = LocalSession._start
    monkeypatch.setattr(LocalSession, "_start", lambda self, *args: generated.append(args) or start(self, *args))
    again = sweep(lab, tmp_path, observer=observer)
    # four warm-ups and what was left: hashes tell which texts differ
    assert len(generated) == 4 + (48 - 13)
    assert again.folder == folder
    assert observer.begun == (48, 13)
    keys = Counter(trial_key(t) for t in again.trials if not t.warmup)
    assert keys == Counter(trial_key(t) for t in stored.trials if not t.warmup)
    # greedy counts do not depend on where a run was cut
    counts = {trial_key(t): (t.drafted, t.accepted, t.output_sha256, t.identical) for t in again.trials if not t.warmup}
    assert counts == {
        trial_key(t): (t.drafted, t.accepted, t.output_sha256, t.identical) for t in stored.trials if not t.warmup
    }


@pytest.mark.full
def test_another_configuration_does_not_continue_it(lab, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, limit=2, observer=FakeObserver(interrupt_after=1))
    sweep(lab, tmp_path, limit=2, max_new_tokens=5)
    assert len(find_runs(tmp_path)) == 2
    with pytest.raises(StoreError, match="No unfinished run"):
        sweep(lab, tmp_path, limit=2, max_new_tokens=7, mode="resume")
    sweep(lab, tmp_path, limit=2, mode="fresh")
    assert len(find_runs(tmp_path)) == 3


@pytest.mark.full
def test_a_changed_workload_is_not_mixed_into_a_run(lab, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_text(lab.workload.read_text())
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, workload=str(copy), observer=FakeObserver(interrupt_after=1))
    copy.write_text(lab.workload.read_text().replace("tides", "waves"))
    with pytest.raises(StoreError, match="The workload changed since this run began"):
        sweep(lab, tmp_path, workload=str(copy))


def test_two_writers_do_not_share_a_folder(lab, tmp_path):
    class Intruder(FakeObserver):
        def trial(self, trial):
            sweep(lab, tmp_path, limit=1)

    with pytest.raises(StoreError, match="Another specbench is writing"):
        sweep(lab, tmp_path, limit=1, observer=Intruder())


def test_a_disturbed_trial_is_repeated_kept_and_not_counted(lab, tmp_path, monkeypatch):
    busy = iter([3.0, 0.0])

    class FakeMeter:
        def start(self):
            pass

        def stop(self):
            return next(busy, 0.0)

    monkeypatch.setattr(session, "OthersMeter", FakeMeter)
    monkeypatch.setattr(LocalSession, "warm", lambda *_: iter(()))
    stored = sweep(lab, tmp_path, limit=1, gammas=(2,), max_new_tokens=6, slice_tokens=0)
    first, second = stored.trials[:2]
    assert (first.disturbed, first.attempt, second.disturbed, second.attempt) == (False, 0, False, 0)
    config = config_for(lab, tmp_path, limit=1, max_new_tokens=7, slice_tokens=0)
    busy = iter([3.0, 0.0])
    from dataclasses import replace

    stored = read_run(run(replace(config, max_other_cores=0.5), "sweep", (2,), FakeObserver()))
    first, second = stored.trials[:2]
    assert trial_key(first) == trial_key(second)
    assert (first.disturbed, first.attempt, second.disturbed, second.attempt) == (True, 0, False, 1)
    assert len(stored.trials) == 4
    assert not [c for c in summarise(stored).warnings if c.code == "busy-machine"]


def test_a_lossy_loop_is_called_lossy(lab, tmp_path, monkeypatch):
    honest, calls = loop.accept_greedy, iter(range(10**6))

    def lossy(logits, drafts):
        accepted, token = honest(logits, drafts)
        # one rejection in twenty is waved through
        if accepted < len(drafts) and next(calls) % 20 == 7:
            return accepted + 1, int(logits[accepted + 1].argmax())
        return accepted, token

    monkeypatch.setattr(loop, "accept_greedy", lossy)
    draft = summarise(sweep(lab, tmp_path, draft=[str(lab.far)])).drafts[0]
    assert draft.verdict == "NO-GO"
    assert draft.reasons[0].startswith("not lossless: the text of")
    assert sum(g.identical_prompts for g in draft.gammas) < 24


def test_prompts_that_do_not_fit_are_skipped_and_reported(lab, tmp_path):
    long = tmp_path / "long.jsonl"
    rows = [{"id": "short", "prompt": "hello"}, {"id": "long", "prompt": "hello " * 200}]
    long.write_text("\n".join(map(json.dumps, rows)))
    stored = sweep(lab, tmp_path, workload=str(long))
    assert {t.prompt_id for t in stored.trials} == {"short"}
    (skipped,) = stored.run.workload.skipped
    assert skipped.id == "long"
    assert "exceed the context of 512" in skipped.reason
    assert "skipped-prompts" in [c.code for c in summarise(stored).warnings]
    long.write_text(json.dumps(rows[1]))
    with pytest.raises(WorkloadError, match="No prompt fits"):
        sweep(lab, tmp_path, workload=str(long))


@pytest.mark.full
def test_sampling_is_reproducible_and_compares_no_text(lab, tmp_path):
    flags = {"temperature": 0.8, "top_p": 0.9, "limit": 3}
    one = sweep(lab, tmp_path / "a", **flags)
    two = sweep(lab, tmp_path / "b", **flags)
    assert [t.output_sha256 for t in one.trials] == [t.output_sha256 for t in two.trials]
    assert {t.identical for t in one.trials} == {None}
    assert summarise(one).drafts[0].gammas[0].identical_prompts is None
    other = sweep(lab, tmp_path / "c", seed=1, **flags)
    assert {t.output_sha256 for t in other.trials} != {t.output_sha256 for t in one.trials}


def test_the_plan_does_not_depend_on_when_it_is_made(lab, tmp_path):
    arms = plan_arms(config_for(lab, tmp_path), (1, 3))
    assert [a.label for a in arms[:2]] == ["baseline", "baseline-again"]
    assert shuffled(arms, "x") == shuffled(arms, "x")


@pytest.mark.full
def test_repeats_are_added_up_and_still_agree_with_replay(lab, tmp_path):
    stored = sweep(lab, tmp_path, gammas=(2,), repeats=2, limit=3)
    assert len([t for t in stored.trials if not t.warmup]) == 3 * 3 * 2
    summary = summarise(stored)
    (row,) = summary.drafts[0].gammas
    assert row.prompts == 3
    assert row.rounds == row.replay_rounds
    assert "replay-disagrees" not in [c.code for c in summary.warnings]
    assert row.identical_prompts == 3


@pytest.mark.full
def test_two_measurements_are_not_mixed_in_one_folder(lab, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, limit=2, observer=FakeObserver(interrupt_after=1))
    (folder,) = find_runs(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    record["provenance"]["versions"]["torch"] = "1.0"
    record["provenance"]["hardware"]["memory_bytes"] = 1
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="The machine and a library version changed since this run began"):
        sweep(lab, tmp_path, limit=2)


@pytest.mark.full
def test_the_policy_of_the_last_command_holds(lab, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, limit=2, observer=FakeObserver(interrupt_after=1))
    assert sweep(lab, tmp_path, limit=2, min_speedup=3.0).run.config.policy.min_speedup == 3.0


def test_a_system_prompt_is_private(lab, tmp_path):
    stored = sweep(lab, tmp_path, limit=1, gammas=(1,), system_prompt="be a pirate-canary")
    assert stored.trials[0].prompt_tokens > 60
    for path in stored.folder.rglob("*"):
        assert b"pirate-canary" not in path.read_bytes()
    assert stored.run.config.system_prompt.startswith("sha256:")


def test_the_models_are_probed_before_the_trials_and_predict_every_gamma(stored):
    points = stored.run.probe
    steps = [p for p in points if p.context and p.phase == "read"]
    assert {(p.model is None, p.tokens) for p in steps} == {(True, n) for n in (1, 2, 3, 4)} | {
        (False, 1),
        (False, 2),
    }
    assert all(p.low_s <= p.median_s <= p.high_s for p in points)
    for row in summarise(stored).drafts[0].gammas:
        # tiny models cost next to nothing beside Python: only the order of magnitude can be asked for
        assert 0.2 < row.predicted_speedup / row.speedup < 5


def test_without_a_probe_nothing_is_predicted(stored):
    from dataclasses import replace

    unprobed = replace(stored, run=replace(stored.run, probe=None))
    assert {row.predicted_speedup for row in summarise(unprobed).drafts[0].gammas} == {None}


@pytest.mark.full
def test_a_kept_example_is_not_the_newest_run(lab, tmp_path):
    stored = sweep(lab, tmp_path, limit=1, gammas=(1,))
    shutil.copytree(stored.folder, tmp_path / "example")
    assert find_runs(tmp_path) == [stored.folder]
    assert len(read_run(tmp_path / "example").trials) == len(stored.trials)
