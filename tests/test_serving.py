"""Runs on servers that a fake plants truths and faults in: what is recovered, refused, marked, and never lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections import Counter
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median

import pytest
from conftest import CANARY, full
from fake_served import FakeServer as Planted
from fake_served import fake_served
from fake_server import FakeServer
from fake_summary import render_brief
from test_cli import call
from test_run import FakeObserver

from specbench.analysis.summarise import summarise
from specbench.backends.server import asking, preflight, traffic
from specbench.backends.server.adapter import Completion, State
from specbench.backends.server.traffic import GAP_S, drive
from specbench.config import load_config
from specbench.drafters import parse_draft
from specbench.errors import ConfigError, EngineError, SpecbenchError
from specbench.records import Load, Round, ServerStats, Trial
from specbench.report.dialect import said
from specbench.run.session import run
from specbench.store import StoredRun, read_run, trial_key

ROUNDS = (Round(3, 2), Round(3, 0), Round(3, 3))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)


def speculating(**planted) -> FakeServer:
    return FakeServer(**{"rounds": ROUNDS, **planted})


def config_for(lab, out, alone, drafting, **flags):
    base = {
        "engine": "llamacpp",
        "target": "served",
        "draft": ["served"],
        "server": alone.url,
        "spec_server": drafting.url,
        "workload": str(lab.workload),
        "gamma": "3",
        "max_new_tokens": 12,
        "limit": 4,
        "out": str(out),
    }
    return load_config(lab.workload.parent / "lab.yaml", base | flags)


def served(lab, out, alone, drafting, *, observer=None, mode="auto", **flags) -> StoredRun:
    config = config_for(lab, out, alone, drafting, **flags)
    return read_run(run(config, "sweep", config.gamma, observer or FakeObserver(), mode=mode))


def counted(stored: StoredRun) -> list[Trial]:
    return [trial for trial in stored.trials if not trial.warmup]


def codes(stored: StoredRun) -> list[str]:
    return [warning.code for warning in stored.run.warnings]


def test_a_planted_truth_is_recovered(lab, tmp_path):
    with FakeServer() as alone, speculating() as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    assert stored.status == "finished"
    assert len(counted(stored)) == 4 * 3
    spec = [t for t in counted(stored) if t.arm.kind == "speculative"]
    # 11 tokens after the first: 2 + 1, 0 + 1, 3 + 1, 2 + 1; the last round has room for two drafts.
    assert {(t.drafted, t.accepted) for t in spec} == {((3, 3, 3, 2), (2, 0, 3, 2))}
    assert all(t.told.drafted == sum(t.drafted) and t.told.accepted == sum(t.accepted) for t in spec)
    assert all(t.drafted == () for t in counted(stored) if t.arm.kind == "baseline")
    # of most: a machine under load may wake the client late
    assert median(abs(t.told.decode_s - t.times.decode_s) for t in counted(stored)) < 0.02
    alone_s = [t.times.decode_s for t in counted(stored) if t.arm.kind != "speculative"]
    assert min(alone_s) >= 11 * 0.002  # eleven planted steps
    assert all(t.times.draft_s is None for t in counted(stored))
    assert [t.identical for t in counted(stored) if t.arm.kind != "baseline"] == [True] * 8


def test_the_servers_own_counters_lie_beside_every_stretch(lab, tmp_path):
    with FakeServer() as alone, speculating() as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    by_number = {stretch.number: stretch for stretch in stored.stretches}
    assert len(by_number) == 12
    for trial in counted(stored):
        stretch = by_number[trial.stretch]
        assert stretch.alone
        assert stretch.counters.tokens == trial.output_tokens
        assert (stretch.counters.drafted, stretch.counters.accepted) == (sum(trial.drafted), sum(trial.accepted))


@pytest.mark.full
def test_several_clients_at_once(lab, tmp_path):
    with FakeServer() as alone, speculating() as drafting:
        stored = served(lab, tmp_path, alone, drafting, concurrency="1,3", rate="50", limit=6)
    loads = Counter(trial.arm.load for trial in counted(stored))
    assert loads == {Load(1): 18, Load(3): 18, Load(1, 50.0): 18}
    for stretch in stored.stretches:
        # One client: the arms take turns request by request; else window by window, of which 6 prompts fill one.
        assert stretch.requests == (1 if stretch.arm.load == Load() else 6)
        assert stretch.alone == (stretch.arm.load.concurrency == 1)
    # All arms under one load, then all under the next: only these are compared.
    assert len(list(groupby(stored.stretches, key=lambda stretch: stretch.arm.load))) == 3
    together = [t for t in counted(stored) if t.arm.load == Load(3)]
    assert all(t.begun_s < 0.02 for t in together[:1])
    assert {t.stretch for t in together if t.arm.kind == "baseline"}.__len__() == 1


def test_requests_of_clients_that_come_free_together_leave_one_after_the_other():
    """A server that is idle reads the first at once, and the others after it: which one that is may not be luck."""
    sent: list[tuple[float, int]] = []

    async def answered_together(clients: int) -> None:
        barrier = asyncio.Barrier(clients)

        async def send(job: int, due_s: float) -> None:
            sent.append((due_s, job))
            assert asyncio.get_running_loop().time() - due_s < 0.5 * GAP_S  # a wait in line is nobody's delay
            await barrier.wait()

        await drive(range(12), Load(clients), send=send, fill=send, seed="")

    traffic.call(partial(answered_together, 4))
    assert [job for _, job in sent] == list(range(12))
    assert min(later - earlier for (earlier, _), (later, _) in pairwise(sent)) > 0.9 * GAP_S


@pytest.mark.full
def test_requests_that_only_kept_up_the_load_do_not_run_on_into_what_follows(lab, tmp_path):
    slow = {"notices_s": 0.3, "tokens": 40}
    with FakeServer(**slow) as alone, speculating(**slow) as drafting:
        stored = served(lab, tmp_path, alone, drafting, concurrency="3,1", limit=5, max_new_tokens=40)
    following = [stretch for stretch in stored.stretches if stretch.alone]
    assert len(following) == 3 * 5
    for stretch in following:
        mine = [t for t in stored.trials if t.stretch == stretch.number]
        assert stretch.counters.tokens == sum(t.output_tokens for t in mine)


def test_a_server_that_dies_loses_nothing(lab, tmp_path):
    with FakeServer() as alone, speculating(faults={4: "die"}) as drafting:
        with pytest.raises(EngineError, match="No server answers"):
            served(lab, tmp_path, alone, drafting)
        (folder,) = tmp_path.iterdir()
        before = read_run(folder)
        assert before.status == "failed"
        kept = {trial_key(trial) for trial in counted(before)}
        assert 2 <= len(kept) < 12
        with speculating(port=drafting.port) as again:
            stored = served(lab, tmp_path, alone, again, mode="resume")
    assert stored.folder == folder
    keys = Counter(trial_key(trial) for trial in counted(stored))
    assert len(keys) == 12
    assert set(keys.values()) == {1}
    assert kept <= set(keys)
    numbers = [stretch.number for stretch in stored.stretches]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("fault", [503, *full(500, 429, "cut", "garbage")])
def test_one_failure_is_asked_again_and_said(lab, tmp_path, fault):
    with FakeServer() as alone, speculating(faults={3: fault}) as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    assert len(counted(stored)) == 12
    assert "failed-requests" not in codes(stored)
    assert [s.alone for s in stored.stretches if s.arm.kind == "speculative"].count(False) == 1


@pytest.mark.full
def test_a_request_that_keeps_failing_is_marked(lab, tmp_path):
    with FakeServer() as alone, speculating(faults={3: 500, 4: 500, 5: 500}) as drafting:
        stored = served(lab, tmp_path, alone, drafting)
        assert len(counted(stored)) == 11
        assert stored.status == "interrupted"
        (warning,) = [w for w in stored.run.warnings if w.code == "failed-requests"]
        assert "HTTP status 500" in warning.message
        again = served(lab, tmp_path, alone, drafting)
        assert again.folder == stored.folder
        assert again.status == "finished"
        assert len(counted(again)) == 12
        assert "failed-requests" not in codes(again)


@pytest.mark.full
def test_a_connection_that_closes_before_the_answer_is_no_failure(lab, tmp_path):
    with FakeServer() as alone, speculating(faults={3: "close", 6: "close"}) as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    assert len(counted(stored)) == 12
    assert len(drafting.seen) == 2 + 4 + 2
    assert all(stretch.alone for stretch in stored.stretches)


def test_a_server_that_only_fails_ends_the_run(lab, tmp_path):
    faults = dict.fromkeys(range(3, 100), 500)
    with (
        FakeServer() as alone,
        speculating(faults=faults) as drafting,
        pytest.raises(EngineError, match="3 requests in a row failed, each 3 times; the last: HTTP status 500"),
    ):
        served(lab, tmp_path, alone, drafting)
    (folder,) = tmp_path.iterdir()
    assert len(counted(read_run(folder))) >= 3


def test_a_server_that_hangs_is_given_up(lab, tmp_path):
    with FakeServer() as alone, speculating(faults={3: "hang"}) as drafting:
        stored = served(lab, tmp_path, alone, drafting, request_timeout_s=0.5)
    assert len(counted(stored)) == 12


@pytest.mark.full
def test_a_prompt_that_the_server_refuses_is_left_out_everywhere(lab, tmp_path):
    with FakeServer(fault_on="bread") as alone, speculating() as drafting:
        stored = served(lab, tmp_path, alone, drafting, limit=12)
    (skipped,) = stored.run.workload.skipped
    assert "HTTP status 400" in skipped.reason
    assert skipped.id == "q1"
    assert "skipped-prompts" in codes(stored)
    both = {t.prompt_id for t in counted(stored) if t.arm.kind == "baseline"}
    assert len(both) == 11


@pytest.mark.parametrize(
    ("alone", "drafting", "says"),
    [
        (FakeServer(rounds=ROUNDS), speculating(), "target alone speculates"),
        (FakeServer(), speculating(speculating=False), "does not speculate"),
        (FakeServer(), speculating(model="/models/other.gguf"), "different models: fake.gguf and other.gguf"),
        (FakeServer(), FakeServer(speculating=True, method="draft-simple"), "drafted nothing"),
        (FakeServer(), FakeServer(rounds=(Round(5, 1),)), "Gamma is not honoured: a round drafted 5"),
    ],
)
def test_a_wrong_server_is_refused_before_anything_is_measured(lab, tmp_path, alone, drafting, says):
    with alone, drafting, pytest.raises(SpecbenchError, match=says):
        served(lab, tmp_path, alone, drafting)
    (folder,) = tmp_path.iterdir()
    assert counted(read_run(folder)) == []


@pytest.mark.full
def test_a_look_up_that_finds_nothing_in_the_warm_up_is_no_error(lab, tmp_path):
    with FakeServer() as alone, FakeServer(speculating=True, method="ngram-simple") as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    assert len(counted(stored)) == 12
    assert "not-speculating" in [warning.code for warning in summarise(stored).warnings]


def test_a_busy_server_and_a_prefix_cache_are_named(lab, tmp_path):
    with FakeServer(busy=True) as alone, speculating(cached=7) as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    assert {"busy-server", "prefix-cache"} <= set(codes(stored))


def test_what_is_set_for_models_in_process_is_named(lab, tmp_path):
    with FakeServer() as alone, speculating() as drafting:
        stored = served(lab, tmp_path / "a", alone, drafting, dtype="float32", threads=2)
        assert "settings-not-used" not in codes(served(lab, tmp_path / "b", alone, drafting))
    (warning,) = [warning for warning in stored.run.warnings if warning.code == "settings-not-used"]
    assert warning.message.startswith("--dtype and --threads change nothing")


def test_counters_that_begin_anew_are_not_compared(lab, tmp_path):
    with FakeServer() as alone, speculating(restart_at=4) as drafting:
        stored = served(lab, tmp_path, alone, drafting)
    missing = [s for s in stored.stretches if s.counters is None]
    assert len(missing) == 1
    assert missing[0].arm.kind == "speculative"


@pytest.mark.parametrize("word", ["elsewhere", "else\0where"])
def test_texts_that_differ_get_their_gap(lab, tmp_path, word):
    other = " ".join(["w0", "w1", word, *(f"w{i}" for i in range(3, 12))])
    prompts = [json.loads(line)["prompt"] for line in lab.workload.read_text().splitlines()]
    with FakeServer() as alone, speculating(text_of=dict.fromkeys(prompts, other)) as drafting:
        stored = served(lab, tmp_path, alone, drafting, keep_text=True)
    spec = [t for t in counted(stored) if t.arm.kind == "speculative"]
    assert [t.identical for t in spec] == [False] * 4
    assert all(t.diverged.index == 2 and t.diverged.margin is None for t in spec)
    assert all(t.diverged.gap == pytest.approx(0.2) for t in spec)
    assert {t.output_text for t in spec} == {other}


@pytest.mark.full
def test_under_a_penalty_the_gap_of_other_logits_is_not_taken_for_it(lab, tmp_path):
    other = " ".join(["w0", "w1", "elsewhere", *(f"w{i}" for i in range(3, 12))])
    prompts = [json.loads(line)["prompt"] for line in lab.workload.read_text().splitlines()]
    with FakeServer() as alone, speculating(text_of=dict.fromkeys(prompts, other)) as drafting:
        stored = served(lab, tmp_path, alone, drafting, repetition_penalty=1.1)
    spec = [t for t in counted(stored) if t.arm.kind == "speculative"]
    assert [(t.identical, t.diverged.index, t.diverged.gap) for t in spec] == [(False, 2, None)] * 4
    assert "without a recorded margin" in render_brief(stored, summarise(stored))


@pytest.mark.parametrize("after", [5, *full(1, 8, 12)])
def test_texts_that_differ_get_their_gap_in_a_resumed_run_too(lab, tmp_path, after):
    """Of the texts of an earlier session only hashes are left: they are asked again."""
    other = " ".join(["w0", "w1", "elsewhere", *(f"w{i}" for i in range(3, 12))])
    prompts = [json.loads(line)["prompt"] for line in lab.workload.read_text().splitlines()]
    with FakeServer() as alone, speculating(text_of=dict.fromkeys(prompts, other)) as drafting:
        with pytest.raises(KeyboardInterrupt):
            served(lab, tmp_path, alone, drafting, observer=FakeObserver(interrupt_after=after))
        stored = served(lab, tmp_path, alone, drafting)
    spec = [t for t in counted(stored) if t.arm.kind == "speculative"]
    assert len(counted(stored)) == 12
    assert [t.identical for t in spec] == [False] * 4
    assert [t.diverged.index for t in spec] == [2] * 4


def test_another_server_at_the_address_is_not_continued(lab, tmp_path):
    with FakeServer() as alone, speculating(faults={4: "die"}) as drafting:
        with pytest.raises(EngineError):
            served(lab, tmp_path, alone, drafting)
        with (
            speculating(port=drafting.port, model="/models/other.gguf") as again,
            pytest.raises(SpecbenchError, match=r"another than when this run began: model: fake\.gguf -> other\.gguf"),
        ):
            served(lab, tmp_path, alone, again, mode="resume")


def test_servers_of_two_versions_are_named_and_their_run_goes_on(lab, tmp_path):
    class Newer(FakeServer):
        def pages(self):
            return super().pages() | {"/props": {"build_info": "b2-fake"}}

    with FakeServer() as alone, Newer(rounds=ROUNDS) as drafting:
        with pytest.raises(KeyboardInterrupt):
            served(lab, tmp_path, alone, drafting, observer=FakeObserver(interrupt_after=5))
        stored = served(lab, tmp_path, alone, drafting, mode="resume")
    assert len(counted(stored)) == 12
    assert "b1-fake" in stored.run.provenance.engine
    (warning,) = [warning for warning in stored.run.warnings if warning.code == "other-version"]
    assert "'b1-fake' and 'b2-fake'" in warning.message


def test_what_is_answered_is_kept_when_the_user_stops(lab, tmp_path):
    class Impatient(FakeObserver):
        def trial(self, trial):
            super().trial(trial)
            if trial.arm.kind == "speculative":
                raise KeyboardInterrupt

    with FakeServer() as alone, speculating() as drafting:
        with pytest.raises(KeyboardInterrupt):
            served(lab, tmp_path, alone, drafting, observer=Impatient())
        (folder,) = tmp_path.iterdir()
        assert read_run(folder).status == "interrupted"
        assert len(counted(read_run(folder))) >= 1
        assert len(counted(served(lab, tmp_path, alone, drafting))) == 12


def test_the_key_comes_from_the_environment_and_stays_there(lab, tmp_path, monkeypatch):
    with FakeServer(key="s3cret-key") as alone, speculating(key="s3cret-key") as drafting:
        with pytest.raises(EngineError, match="SPECBENCH_API_KEY"):
            served(lab, tmp_path, alone, drafting)
        monkeypatch.setenv("SPECBENCH_API_KEY", "s3cret-key")
        stored = served(lab, tmp_path, alone, drafting, mode="fresh")
    assert len(counted(stored)) == 12
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"s3cret-key" not in path.read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_vouches_for_is_refused(lab, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with FakeServer(certificate=(certificate, key)) as alone, speculating() as drafting:
        assert alone.url.startswith("https://")
        with pytest.raises(EngineError, match="certificate cannot be verified"):
            served(lab, tmp_path / "runs", alone, drafting)
    assert alone.seen == []


def test_no_text_is_kept_unless_asked(lab, tmp_path):
    with FakeServer(faults={5: 500}) as alone, speculating() as drafting:
        stored = served(lab, tmp_path / "private", alone, drafting)
        kept = served(lab, tmp_path / "kept", alone, drafting, keep_text=True)
    for path in stored.folder.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()
    assert all(CANARY in trial.prompt_text and trial.output_text for trial in kept.trials)


@pytest.mark.parametrize(
    ("command", "says"),
    [("check", "which transformers does not repeat"), ("replay", "sweep --replay-only on the same server")],
)
def test_commands_about_runs_in_process_say_what_to_do_with_others(command, says):
    result = call(command, Path(__file__).parent / "runs" / "llamacpp")
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"server": "http://user:pass@host"}, "may hold no key"),
        ({"server": "host:80"}, "no http or https address"),
        ({"server": None}, "needs one that does not"),
        ({"spec_server": None}, "compared with another"),
        ({"gamma": "1..4"}, "A running server has one gamma, not 4"),
        ({"batch_size": 4}, "Use --concurrency"),
        ({"draft": ["a", "b"]}, "one draft"),
        ({"launch": "x.yaml"}, "Both a running server and a launch file"),
        ({"concurrency": "0"}, "from 1 to"),
        ({"rate": "-1"}, "requests per second"),
        ({"cutoff": 0.3}, r"cut-off that it was started with.*\(--cutoff\)"),
        ({"draft": ["d,cutoff=0.3"]}, r"cut-off that it was started with.*\(--draft\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(lab, tmp_path, flags, says):
    with FakeServer() as alone, speculating() as drafting, pytest.raises(ConfigError, match=says):
        base = {"server": alone.url, "spec_server": drafting.url} | flags
        served(lab, tmp_path, alone, drafting, **base)


def shown(*rounds: int, tokens: int = 12) -> Completion:
    """A warm-up in which rounds drafted so many tokens and kept none."""
    return Completion("text", "length", 5, tokens, 0.1, 0.2, rounds, (0,) * len(rounds), ServerStats(), 3)


@pytest.mark.parametrize(
    ("draft", "rounds", "tokens", "started", "refused"),
    [
        ("d", (7, 7, 3), 12, True, True),  # a head that drafts no more, whatever it is told
        ("d", (8, 8, 3), 12, True, False),
        ("d", (7, 7, 3), 12, False, False),  # what a running server was told we do not know
        ("d", (3,), 6, True, False),  # a text without room for a whole round
        ("d,cutoff=0.5", (7, 2), 12, True, False),
        ("ngram:n=3", (2,), 12, True, False),
        ("ngram:n=3+d", (2, 7), 12, True, False),
    ],
)
def test_a_draft_that_gives_less_than_gamma_is_refused_before_it_is_measured(draft, rounds, tokens, started, refused):
    asked = ([shown(*rounds, tokens=tokens)], State(speculating=True), parse_draft(draft), 8, "http://h")
    if not refused:
        assert preflight.check_drafts(*asked, started=started) == []
        return
    with pytest.raises(EngineError, match=r"no round drafted more than 7 tokens, not 8.*Use --gamma up to 7"):
        preflight.check_drafts(*asked, started=started)


def test_drafts_of_which_no_answer_tells_are_not_taken_for_none():
    asked = (State(speculating=True), parse_draft("org/head"), 3, "http://h")
    (found,) = preflight.check_drafts([shown()], *asked, started=False)
    assert found.code == "speculation-not-told" and found.message.startswith("the server does not tell what it drafts")
    with pytest.raises(EngineError, match="drafted nothing"):
        preflight.check_drafts([shown(0, 0)], *asked, started=False)


@pytest.mark.parametrize(("alpha", "named"), [(0.01, True), *full((0.2, False))])
def test_a_draft_at_chance_level_is_named(tmp_path, alpha, named):
    summary = summarise(fake_served(tmp_path / "run", Planted(alpha=alpha), gammas=(4,)))
    words = {warning.code: said(warning) for warning in summary.warnings}
    assert ("draft-at-chance" in words) == named
    assert not named or "no more than common tokens give by chance" in words["draft-at-chance"]
