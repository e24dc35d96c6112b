"""Conversations turn by turn on servers: turns in order, equal prompts and equal caches in every arm, and a warning
where the caches were not equal."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import FakeServer
from test_cli import call
from test_run import FakeObserver
from test_serving import ROUNDS, config_for, counted

from specbench.analysis.summarise import summarise
from specbench.backends.server import asking
from specbench.backends.server.adapter import Ask, Cache
from specbench.backends.server.launch import Setting, command, find_launch, read_launch
from specbench.backends.server.openai import OpenAI
from specbench.backends.server.sglang import SGLang
from specbench.backends.server.vllm import VLLM
from specbench.records import Load, Message, Prompt, Sampling
from specbench.report.dialect import said
from specbench.run.session import run
from specbench.store import read_run
from specbench.workload import turns_of

TOKENS = 10  # of every message


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)


class Remembering(FakeServer):
    """Holds the last prompt as one slot does, and reads what a request shares with it only once where that asks so.
    One that is `forgetful` holds but the first message; `tells` is whether it says what it had."""

    forgetful, tells = False, True
    held: tuple[str, ...] = ()

    def answer(self, body):
        texts = tuple(message["content"] for message in body["messages"])
        shared = 0
        while (
            body.get("cache_prompt") and shared < min(len(self.held), len(texts)) and self.held[shared] == texts[shared]
        ):
            shared += 1
        self.held = texts[:1] if self.forgetful else texts
        for event in super().answer(body):
            if "usage" in event:
                event["usage"] |= {"prompt_tokens": TOKENS * len(texts), "prompt_tokens_details": None}
                event["timings"]["cache_n"] = TOKENS * shared if self.tells else None
            yield event


def forgetful(**planted):
    server = Remembering(**planted)
    server.forgetful = True
    return server


def silent(**planted):
    server = Remembering(**planted)
    server.tells = False
    return server


def conversations(folder, count=3):
    rows = []
    for number in range(count):
        asked = [
            ("user", f"a{number}"),
            ("assistant", "told"),
            ("user", f"b{number}"),
            ("assistant", "x"),
            ("user", "c"),
        ]
        rows.append({"id": f"r{number}", "messages": [{"role": role, "content": text} for role, text in asked]})
    path = folder / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measured(lab, folder, alone, drafting, **flags):
    base = {"sessions": True, "workload": str(conversations(folder)), "limit": 3}
    config = config_for(lab, folder / "runs", alone, drafting, **base | flags)
    return read_run(run(config, "sweep", config.gamma, FakeObserver()))


def findings(stored):
    return {one.code: said(one) for one in summarise(stored).warnings}


def asked_of(server):
    """Requests in their order, without the warm-ups, which come first and write little."""
    return [body for body in server.seen if body.get("stream") and body["max_tokens"] == 12]


def test_turns_of_a_conversation_have_what_was_said_before():
    roles = ["assistant", "user", "assistant", "tool", "assistant", "assistant", "user"]
    prompt = Prompt("p", tuple(Message(role, str(place)) for place, role in enumerate(roles)), "s", None)
    turns = turns_of(prompt)
    assert [len(turn.messages) for turn in turns] == [2, 4, 7]
    assert [turn.id for turn in turns] == ["p#1", "p#2", "p#3"]


def test_turns_come_in_order_with_equal_prompts_and_caches_in_every_arm(lab, tmp_path):
    # So slowly that a busy machine does not read an answer at once, which is asked again.
    with Remembering(step_s=0.01) as alone, Remembering(rounds=ROUNDS, step_s=0.01) as drafting:
        stored = measured(lab, tmp_path, alone, drafting)
    trials = counted(stored)
    assert len(trials) == 3 * 3
    for trial in trials:
        assert [turn.prompt_tokens for turn in trial.turns] == [10, 30, 50]
        assert [turn.cached_tokens for turn in trial.turns] == [0, 10, 30]  # also of what was asked just before
        assert trial.members == tuple(f"{trial.prompt_id}#{n}" for n in (1, 2, 3))
        assert (trial.output_tokens, trial.decode_tokens) == (36, 33)
        assert trial.times.prefill_s >= sum(turn.first_s for turn in trial.turns) - 1e-9  # and how late it was sent
        assert trial.times.decode_s == pytest.approx(sum(turn.last_s - turn.first_s for turn in trial.turns))
        assert trial.identical in (None, True)
    for server, arms in ((alone, 2), (drafting, 1)):
        bodies = asked_of(server)
        assert [len(body["messages"]) for body in bodies] == [1, 3, 5] * 3 * arms
        assert [body["cache_prompt"] for body in bodies] == [False, True, True] * 3 * arms
        assert {body["id_slot"] for body in bodies} == {0}
        for first, second, third in zip(bodies[::3], bodies[1::3], bodies[2::3], strict=True):
            assert first["messages"] == third["messages"][:1] and second["messages"] == third["messages"][:3]
    assert not {code for code in findings(stored) if "cache" in code}
    server = summarise(stored).server
    assert [(turn.turn, turn.prompt_tokens, turn.cached_tokens) for turn in server.turns[:3]] == [
        (1, 30, 0),
        (2, 90, 30),
        (3, 150, 90),
    ]
    pages = call("brief", stored.folder)
    assert pages.exit_code == 0
    assert "44% of the prompts' tokens from the cache" in (stored.folder / "brief.md").read_text()


def test_caches_that_differ_between_the_arms_are_named(lab, tmp_path):
    with Remembering() as alone, forgetful(rounds=ROUNDS) as drafting:
        found = findings(measured(lab, tmp_path, alone, drafting))["cache-unequal"]
    assert "the target alone 44%" in found and "served gamma 3 22%" in found


def test_caches_are_held_against_the_target_alone_of_the_same_load(lab, tmp_path):
    with Remembering() as alone, forgetful(rounds=ROUNDS) as drafting:
        stored = measured(lab, tmp_path, alone, drafting)
    two = Load(2)
    several = replace(
        stored,
        run=replace(stored.run, config=replace(stored.run.config, concurrency=(2,))),
        trials=tuple(replace(trial, arm=replace(trial.arm, load=two)) for trial in stored.trials),
        stretches=tuple(replace(one, arm=replace(one.arm, load=two)) for one in stored.stretches),
    )
    caches = {code: text for code, text in findings(several).items() if "cache" in code}
    assert caches.keys() == {"cache-unequal"}
    assert "the target alone 44%" in caches["cache-unequal"]


@pytest.mark.parametrize(("server", "code"), [(silent, "cache-untold"), (FakeServer, "cache-cold")])
def test_a_cache_that_is_not_there_or_not_told_is_named(lab, tmp_path, server, code):
    with server() as alone, server(rounds=ROUNDS) as drafting:
        assert code in findings(measured(lab, tmp_path, alone, drafting))


def test_several_clients_have_a_conversation_each(lab, tmp_path):
    with FakeServer() as alone, FakeServer(rounds=ROUNDS) as drafting:
        measured(lab, tmp_path, alone, drafting, concurrency="2")
    by_slot = defaultdict(list)
    for body in asked_of(drafting):
        by_slot[body.get("id_slot")].append(len(body["messages"]))
    assert by_slot.keys() == {0, None}
    for found in by_slot.values():
        assert found == ([1, 3, 5] * len(found))[: len(found)]


@pytest.mark.parametrize("adapter", [VLLM(), SGLang()], ids=lambda adapter: adapter.name)
def test_engines_that_share_prefixes_keep_conversations_apart(adapter):
    ask = Ask((Message("user", "x"),), 4, Sampling(), 1)
    first, again = (Ask(*ask_fields(ask), cache=Cache(name, 1)) for name in ("n", "m"))
    assert adapter.body(first, None)["cache_salt"] == "n" != adapter.body(again, None)["cache_salt"]
    assert "cache_salt" not in adapter.body(ask, None)
    assert "cache_salt" not in OpenAI().body(first, None)


def ask_fields(ask):
    return ask.messages, ask.max_tokens, ask.sampling, ask.seed


@pytest.mark.parametrize("engine", ["vllm", "vllm-cpu", "sglang"])
def test_servers_are_started_with_a_prefix_cache_for_sessions_alone(engine):
    file = read_launch(Path("configs/engines") / f"{engine}.yaml")
    off, on = (command(file, Setting("t", cached=cached), 1) for cached in (False, True))
    assert {"--no-enable-prefix-caching", "--disable-radix-cache"} & set(off)
    assert not {"--no-enable-prefix-caching", "--disable-radix-cache"} & set(on)
    assert {"--enable-prompt-tokens-details", "--enable-cache-report"} & set(on)
    assert command(find_launch("llamacpp"), Setting("t", cached=True), 1)


def test_what_cannot_be_asked_turn_by_turn_is_one_line(lab, tmp_path):
    def refused(*words):
        found = call("sweep", *map(str, words), "--out", tmp_path / "runs")
        assert found.exit_code == 2 and len(found.stderr.splitlines()) == 1
        return found.stderr

    assert "no prefix cache is kept" in refused(*lab.args("--sessions"))
    served = ["--server", "http://127.0.0.1:9", "--spec-server", "http://127.0.0.1:8", "--sessions"]
    assert "Turns are timed" in refused(*served, "--replay-only")
    assert "A probe knows no turns" in refused("--engine", "llamacpp", "--sessions", "--costs", tmp_path)


def test_prompts_without_earlier_turns_are_refused(lab, tmp_path):
    with FakeServer() as alone, FakeServer(rounds=ROUNDS) as drafting:
        words = ["--engine", "llamacpp", "--server", alone.url, "--spec-server", drafting.url, "--gamma", "3"]
        found = call("sweep", "--sessions", *words, "--workload", lab.workload, "--out", tmp_path)
    assert found.exit_code == 2 and "no prompt has an earlier turn" in found.stderr


@pytest.mark.slow
def test_a_real_server_has_the_turns_before_in_every_arm(tmp_path):
    words = ["--engine", "llamacpp", "--sessions", "--workload", conversations(tmp_path, 2), "--gamma", "2"]
    found = call("sweep", *words, "--max-new-tokens", "6", "--threads", "1", "--out", tmp_path / "runs", "--quiet")
    assert found.exit_code == 0, found.output
    stored = read_run(next((tmp_path / "runs").iterdir()))
    seen = defaultdict(set)
    for trial in counted(stored):
        seen[trial.prompt_id].add(tuple((turn.prompt_tokens, turn.cached_tokens) for turn in trial.turns))
    for caches in seen.values():
        ((first, second, third),) = caches  # the same in every arm
        assert first[1] == 0
        assert 0 < second[1] <= first[0] and first[0] < third[1] <= second[0]
    assert not {code for code in findings(stored) if "cache" in code}
