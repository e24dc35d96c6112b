"""Runs over recorded answers: what a live run measures comes out of its own texts again, round by round."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from answer_logs import ANSWER, QUESTION, lines
from conftest import CANARY
from test_cli import call
from test_run import FakeObserver, config_for, sweep

from specbench.acceptance.positions import read_positions
from specbench.acceptance.replay import Blocks, replay
from specbench.api import load_run, recorded_acceptance
from specbench.backends.local import local
from specbench.backends.local.local import LocalEngine
from specbench.config import load_config
from specbench.errors import ConfigError, StoreError
from specbench.records import Arm
from specbench.run import recorded
from specbench.run.session import run
from specbench.store import read_run
from specbench.workload import load_workload

from tiny import save_with_byte_tokenizer  # isort: skip
from tiny_heads import markov_llama, save_head  # isort: skip

GAMMAS = (1, 3)


def engine_for(config, prompts):
    engine = LocalEngine(config, 1)
    engine.reserve(max(len(engine.encode(prompt)) for prompt in prompts) + config.max_new_tokens + 10)
    return engine


def row_of(prompt, ids, output, ended, **more):
    """As a proxy would log it, with what vLLM's return_token_ids adds."""
    choice = {"message": {"role": "assistant", "content": "-"}, "token_ids": output}
    choice["finish_reason"] = "stop" if ended else "length"
    request = {"messages": [{"role": m.role, "content": m.content} for m in prompt.messages], **more}
    answer = {"model": "m", "prompt_token_ids": ids, "choices": [choice]}
    return {"id": prompt.id, "category": prompt.category, "request": request, "response": answer}


def written_by(config, folder):
    """A log of the target's own texts."""
    prompts = load_workload(config.workload).prompts
    engine = engine_for(config, prompts)
    rows = []
    for prompt in prompts:
        ids = engine.encode(prompt)
        output = engine.generate(ids, Arm("baseline"), max_new_tokens=config.max_new_tokens, seed_text=prompt.id).tokens
        rows.append(row_of(prompt, ids, output, output[-1] in engine.eos, max_tokens=config.max_new_tokens))
    log = folder / "log.jsonl"
    log.write_text(lines(*rows))
    return log


def over(log, config, out, **flags):
    """The run of a log, with the models of another run's configuration."""
    settings = {"answers": "recorded", "workload": str(log), "max_new_tokens": 1000, "out": str(out)}
    config = replace(config, **(settings | flags))
    return run(config, "sweep", config.gamma, FakeObserver(), replay_only=True)


def rounds_of(text, gamma):
    """The rounds of a greedy text, walked by themselves: drafted and accepted tokens. What a draft drafts after its
    first wrong token is at most what gamma allows. Of a head each round has a row of its own."""
    found, i = [], 1
    while i < text.tokens:
        k = min(gamma, text.limit - i - 1)
        blocks = text if isinstance(text, Blocks) else text.blocks
        drafted, kept = (0, 0) if blocks is None else blocks.at(i, k)
        if not drafted and not isinstance(text, Blocks):
            drafted = min(k, text.tokens - i)
            right = text.accept[i - 1 :] if text.accept.ndim == 1 else text.accept[i - 1]
            while kept < drafted and right[kept] == 1:
                kept += 1
            drafted = kept if kept == drafted else k
        found.append((drafted, kept))
        i += kept + 1
    return found


def require_equal_rounds(live, folder, workload):
    """Every trial of a live run, and the same text in a run over its log."""
    texts = {(text.prompt_id, text.draft): text for text in read_positions(folder)}
    prompts = {prompt.id: f"line-{n + 1}" for n, prompt in enumerate(load_workload(str(workload)).prompts)}
    compared = 0
    for trial in live.trials:
        if trial.arm.draft is None or trial.warmup:
            continue
        text = texts[prompts[trial.prompt_id], trial.arm.draft]
        assert text.tokens == trial.output_tokens
        walked = rounds_of(text, trial.arm.gamma)
        assert [kept for _, kept in walked] == list(trial.accepted)
        # Off the text a draft may have met an end of sequence.
        assert all(one <= most for one, (most, _) in zip(trial.drafted, walked, strict=True))
        one = replay([text], trial.arm.gamma)
        assert (one.rounds[0], one.accepted[0]) == (len(trial.rounds), sum(trial.accepted))
        compared += len(trial.rounds)
    return compared


def test_a_log_of_a_live_run_gives_its_rounds_one_by_one(lab, typed, tmp_path):
    live = read_run(typed.folder)
    log = written_by(live.run.config, tmp_path)
    folder = over(log, live.run.config, tmp_path / "runs", target="none", tokenizer=str(lab.target))
    assert require_equal_rounds(live, folder, lab.workload) > 100
    # A log whose answers are one token off is not that of the run.
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        row["response"]["choices"][0]["token_ids"][5] ^= 1
    log.write_text(lines(*rows))
    folder = over(log, live.run.config, tmp_path / "wrong", target="none", tokenizer=str(lab.target))
    with pytest.raises(AssertionError):
        require_equal_rounds(live, folder, lab.workload)


@pytest.mark.full
def test_every_kind_of_draft_gives_the_rounds_of_a_live_run(lab, tmp_path):
    drafts = [str(lab.far), "ngram:n=2", f"ngram:n=2+{lab.near}", f"{lab.near},sample=greedy"]
    live = sweep(lab, tmp_path / "live", gammas=(1, 2, 5), draft=drafts, max_new_tokens=40, all_gammas=True)
    log = written_by(live.run.config, tmp_path)
    folder = over(log, live.run.config, tmp_path / "runs", target="none", tokenizer=str(lab.target))
    assert require_equal_rounds(live, folder, lab.workload) > 1000


def test_one_hot_drafts_load_no_target(lab, tmp_path, monkeypatch):
    honest, loaded = local.load_model, []
    monkeypatch.setattr(local, "load_model", lambda name, **more: loaded.append(name) or honest(name, **more))
    config = config_for(lab, tmp_path, draft=["ngram:n=2", str(lab.near)])
    log = written_by(config, tmp_path)
    loaded.clear()
    over(log, config, tmp_path / "runs")
    assert loaded == [str(lab.near)]
    loaded.clear()
    over(log, config, tmp_path / "runs", temperature=0.5, draft=("ngram:n=2", f"{lab.near},sample=greedy"))
    assert loaded == [str(lab.near)]
    over(log, config, tmp_path / "runs", temperature=0.5, draft=(str(lab.near),))
    assert loaded[1:] == [str(lab.target), str(lab.near)]


@pytest.mark.parametrize(
    ("turn", "answer", "why"),
    [
        (None, "x " * 300, r"\d\d \+ 601 tokens exceed the context of 512"),
        (100, "x " * 60, r"it crosses 100 tokens, where a model changes its rotary frequencies \(LongRoPE\)"),
    ],
)
def test_answers_that_no_model_here_reads_as_they_were_written_are_listed(
    lab, tmp_path, monkeypatch, turn, answer, why
):
    monkeypatch.setattr(LocalEngine, "frequency_limit", turn)
    log = tmp_path / "log.jsonl"
    log.write_text(lines(*({"instruction": QUESTION, "output": text} for text in (ANSWER, answer, ANSWER))))
    folder = over(log, config_for(lab, tmp_path), tmp_path / "runs", target="none", tokenizer=str(lab.target))
    assert {text.prompt_id for text in read_positions(folder)} == {"line-1", "line-3"}
    (left_out,) = read_run(folder).run.workload.skipped
    assert left_out.id == "line-2" and re.fullmatch(why, left_out.reason)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"target": "none"}, "Without a target nothing says how texts are cut"),
        ({"target": "none", "tokenizer": "T", "temperature": 0.5}, "This draft samples, which needs the target"),
        ({"target": "none", "tokenizer": "T", "draft": ("skip:layers=1",)}, "This draft needs the target"),
        ({"target": "none", "tokenizer": "T", "draft": ("mtp",)}, "This draft needs the target"),
        ({"target": "none", "tokenizer": "T", "verify_answers": 3}, "Answers are held against the target"),
        ({"tokenizer": "T"}, "The target has a tokenizer of its own"),
    ],
)
def test_what_a_recorded_run_cannot_do_is_said_before_anything_is_loaded(lab, tmp_path, flags, said):
    log = tmp_path / "log.jsonl"
    log.write_text(lines({"instruction": QUESTION, "output": ANSWER}))
    flags = {key: str(lab.target) if value == "T" else value for key, value in flags.items()}
    with pytest.raises(ConfigError, match=said):
        over(log, config_for(lab, tmp_path), tmp_path / "runs", **flags)


def test_an_interrupted_run_over_a_log_continues(lab, tmp_path, monkeypatch):
    class Impatient(FakeObserver):
        texts = 0

        def advance(self, texts):
            self.texts += texts
            if self.texts == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(recorded, "BLOCK", 4)
    config = config_for(lab, tmp_path / "runs", draft=[str(lab.near), "ngram:n=2"])
    config = replace(config, answers="recorded", workload=str(written_by(config, tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        run(config, "sweep", GAMMAS, Impatient(), replay_only=True)
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(read_positions(folder)) == 5
    assert run(config, "sweep", GAMMAS, FakeObserver(), replay_only=True) == folder
    stored = read_run(folder)
    assert (stored.status, len(read_positions(folder)), stored.run.workload.prompts_used) == ("finished", 24, 12)
    whole = over(config.workload, config, tmp_path / "whole", max_new_tokens=12)
    # Read in both sessions, counted once: in the facts, and in the table.
    assert stored.run.answers == read_run(whole).run.answers and stored.run.answers.answers == 12
    assert [one.answers for one in recorded_acceptance(stored, GAMMAS).drafts] == [12, 12]
    for one, other in zip(_sorted(folder), _sorted(whole), strict=True):
        np.testing.assert_array_equal(
            one.accept if hasattr(one, "accept") else one.matched,
            other.accept if hasattr(other, "accept") else other.matched,
        )


def _sorted(folder):
    return sorted(read_positions(folder), key=lambda text: (text.draft, text.prompt_id))


def test_as_a_user_types_it(lab, tmp_path):
    log = tmp_path / "log.jsonl"
    turns = [{"role": "user", "content": f"{CANARY}?"}, {"role": "assistant", "content": "yes yes yes yes"}]
    log.write_text(
        lines(*({"id": n, "category": "ab"[n % 2], "messages": turns * 2} for n in range(12)), {"messages": turns[:1]})
    )
    words = [
        "--answers",
        "recorded",
        "--workload",
        log,
        "--target",
        "none",
        "--tokenizer",
        lab.target,
        "--out",
        tmp_path / "runs",
    ]
    words += ["--draft", "ngram:n=2", "--draft", lab.near, "--dtype", "float32", "--threads", 1, "--gamma", "1..3"]
    refused = call("measure", *words[:-2])
    assert refused.exit_code == 2
    assert "measure measures the wall clock (--answers)" in refused.stderr
    result = call("sweep", *words)
    assert result.exit_code == 0, result.output
    assert "NO VERDICT: cost not measured." in result.stdout
    assert "24 of 24 answers: chat rows (24)" in result.stderr
    found = json.loads(call("replay", next((tmp_path / "runs").iterdir()), "--gamma", "1..8", "--json").stdout)
    assert found["verdict"] is None
    draft = found["drafts"][0]
    assert [group["name"] for group in draft["categories"]] == ["a", "b"]
    assert draft["gammas"][7]["tokens_per_round"]["value"] > 1
    answers = found["answers"]
    assert (answers["answers"], answers["unended"], answers["changed_tokens"]) == (24, 24, 0)
    assert answers["conversations"] == 1  # all of them begin alike
    brief = call("brief", next((tmp_path / "runs").iterdir()))
    assert brief.exit_code == 0, brief.output
    assert "NO VERDICT: cost not measured." in brief.stdout
    assert call("brief", next((tmp_path / "runs").iterdir()), "--strict").exit_code == 2
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


def test_settings_of_a_first_look_do_not_cut_a_log(lab, tmp_path):
    from specbench.run.task import LONGEST, task_of

    keys = {"answers": "recorded", "workload": "x.jsonl", "target": "none", "tokenizer": "t"}
    task = task_of("sweep", keys, replay_only=True)
    assert (task.config.limit, task.config.max_new_tokens) == (None, LONGEST)
    task = task_of("sweep", keys | {"limit": 3, "max_new_tokens": 7}, replay_only=True)
    assert (task.config.limit, task.config.max_new_tokens) == (3, 7)
    with pytest.raises(ConfigError, match="The target writes the answers"):
        task_of("sweep", {"target": "none"}, replay_only=True)
    assert load_config(None, {}).recorded is False


@pytest.mark.full
def test_heads_and_skip_drafts_read_the_answers_with_the_target(lab, tmp_path):
    """And without the target they are refused."""
    target = markov_llama(context=0.06, vocab_size=257)
    head = save_head(tmp_path / "head", target, 0.05)
    folder = str(save_with_byte_tokenizer(target, tmp_path / "target"))
    drafts = [str(head), "skip:layers=1"]
    live = sweep(lab, tmp_path / "live", gammas=GAMMAS, target=folder, draft=drafts, limit=6, all_gammas=True)
    log = written_by(live.run.config, tmp_path)
    scored = over(log, live.run.config, tmp_path / "runs", target=folder, limit=None)
    assert require_equal_rounds(live, scored, lab.workload) > 100
    with pytest.raises(ConfigError, match="This draft needs the target"):
        over(log, live.run.config, tmp_path / "none", target="none", tokenizer=folder)


# Flags that a run over recorded answers refuses, or has no use for.
NOT_OF_LOGS = {"--engine", "--launch", "--server", "--spec-server", "--batch-size", "--repeats", "--column"}
NOT_OF_LOGS |= {"--replay-only", "--min-speedup", "--time-budget", "--all-gammas", "--concurrency"}


def test_what_a_run_over_a_log_says_can_be_done_with_a_log(lab, tmp_path):
    log = tmp_path / "log.jsonl"
    good = [{"instruction": f"{QUESTION} {n}", "output": ANSWER} for n in range(4)]
    call_of_a_tool = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    tool = {"messages": [{"role": "user", "content": QUESTION}, call_of_a_tool]}
    log.write_text(lines(*good, {"instruction": QUESTION, "output": ""}, tool))
    config = config_for(lab, tmp_path, draft=["ngram:n=2"])
    folder = over(log, config, tmp_path / "runs", target="none", tokenizer=str(lab.target))
    stored = read_run(folder)
    codes = {warning.code: warning for warning in stored.run.warnings}
    assert {"rows-left-out", "skipped-answers"} <= {*codes}
    for warning in codes.values():
        assert not NOT_OF_LOGS & {*re.findall(r"--[a-z-]+", warning.hint)}, warning
    with pytest.raises(StoreError, match=r"Recorded answers .* specbench brief, .* without --answers"):
        _ = load_run(folder).verdict
    for asked in (("--strict",), ("--alerts",), ("--format", "github")):
        said = call("brief", folder, *asked)
        assert said.exit_code == 2 and asked[0] in said.stderr and "no verdict" in said.stderr
    said = call("replay", folder, "--best")
    assert said.exit_code == 2 and "--costs" in said.stderr
    assert f"specbench replay {folder} --costs PROBE" in call("brief", folder).stdout
