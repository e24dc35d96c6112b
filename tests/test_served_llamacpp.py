"""A real llama.cpp server, started by specbench for every arm, on the embedded pair; its own counters are the judge."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import CANARY, full
from test_cli import call

from specbench.acceptance.metrics import count, pooled
from specbench.analysis.summarise import summarise
from specbench.backends.server.launch import Setting, find_launch
from specbench.backends.server.launched import Launched
from specbench.models.load import model_file
from specbench.run import session
from specbench.store import StoredRun, read_run

pytestmark = pytest.mark.slow

PROMPTS = [
    f"{CANARY}. Repeat: one two three four five one two three four five one two",
    "List five colours twice.",
]


def swept(folder: Path, *more: object) -> Path:
    """The run folder of a sweep of PROMPTS at gamma 3."""
    workload = folder / "prompts.jsonl"
    workload.write_text("".join(json.dumps({"id": f"p{i}", "prompt": text}) + "\n" for i, text in enumerate(PROMPTS)))
    result = call("sweep", "--engine", "llamacpp", *flags_of(folder), *more, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    return next((folder / "runs").iterdir())


def flags_of(folder: Path) -> list[object]:
    flags = ["--workload", folder / "prompts.jsonl", "--gamma", "3", "--max-new-tokens", "18"]
    return [*flags, "--out", folder / "runs", "--threads", "1"]


@pytest.fixture(scope="module", params=[("demo:draft",), *full((("demo:draft", "ngram:n=2"),))], ids=" and ".join)
def stored(request, tmp_path_factory) -> StoredRun:
    drafts = [word for draft in request.param for word in ("--draft", draft)]
    return read_run(swept(tmp_path_factory.mktemp("served"), *drafts))


def counted(stored: StoredRun):
    return [trial for trial in stored.trials if not trial.warmup]


def test_every_prompt_meets_every_arm(stored):
    assert stored.status == "finished"
    assert Counter((t.arm.kind, t.arm.draft) for t in counted(stored) if not t.attempt) == {
        ("baseline", None): len(PROMPTS),
        ("baseline-again", None): len(PROMPTS),
        **{("speculative", draft): len(PROMPTS) for draft in stored.run.config.draft},
    }


def test_our_counts_are_the_servers_own(stored):
    drafted = 0
    for stretch in stored.stretches:
        mine = [t for t in stored.trials if t.stretch == stretch.number]
        rounds = pooled([count(t.rounds, 3) for t in mine]) if stretch.arm.draft else None
        assert stretch.counters.tokens == sum(t.output_tokens for t in mine)
        if rounds is not None:
            drafting = sum(d > 0 for t in mine for d in t.drafted)
            assert (stretch.counters.drafted, stretch.counters.accepted) == (rounds.drafted, rounds.accepted)
            assert stretch.counters.rounds == drafting
            theirs = stretch.counters.survived or ()
            assert theirs == rounds.survived[: len(theirs)]
            assert sum(rounds.survived[len(theirs) :]) == 0
            drafted += rounds.drafted
    assert drafted > 10


def test_both_clocks_agree(stored):
    outside = sum(t.times.decode_s for t in counted(stored))
    inside = sum(t.told.decode_s for t in counted(stored))
    assert outside == pytest.approx(inside, rel=0.05)


def test_greedy_text_is_the_targets_own_and_gamma_is_honoured(stored):
    others = [t for t in counted(stored) if t.arm.kind != "baseline"]
    assert all(t.identical for t in others)
    model = [t for t in others if t.arm.draft == "demo:draft"]
    assert max(max(t.drafted) for t in model) == 3
    assert min(t.drafted[0] for t in model) == 3
    # Each round emits what it accepted and one more; an end of sequence may cut the last one short.
    for trial in others:
        if trial.arm.draft:
            emitted = sum(trial.accepted) + len(trial.accepted)
            assert trial.output_tokens - 1 <= emitted <= trial.output_tokens - 1 + 3
            assert emitted == trial.output_tokens - 1 or trial.finish == "eos"


def test_the_report_says_what_it_is_and_takes_the_servers_word_beside_ours(stored):
    summary = summarise(stored)
    assert "llama.cpp" in summary.engine
    assert "xllamacpp" in summary.engine
    for draft in summary.drafts:
        (row,) = draft.gammas
        assert row.round_time is None
        assert row.predicted_speedup is None
        assert row.identical_prompts == len(PROMPTS)
    codes = [warning.code for warning in summary.warnings]
    assert "counters-disagree" not in codes
    assert "clock-disagrees" not in codes
    states = stored.run.served.settings
    assert states["baseline"].speculating is False
    assert states["demo:draft gamma 3"].speculating is True


def test_no_prompt_is_in_the_folder_and_no_server_is_left(stored):
    files = [path for path in stored.folder.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".log" for path in files) == 1 + len(stored.run.config.draft)
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    mine = [
        p for p in psutil.Process().children(recursive=True) if "specbench.backends.server" in " ".join(p.cmdline())
    ]
    assert mine == []


@pytest.mark.full
def test_a_draft_that_is_loaded_and_never_used_is_refused(tmp_path):
    """The trap of llama.cpp: a draft model without --spec-type leaves the server healthy, and alone."""
    kept = Path("configs/engines/xllamacpp.yaml").read_text()
    launch = tmp_path / "forgot.yaml"
    launch.write_text(kept.replace("--spec-type, draft-simple, ", ""))
    assert launch.read_text() != kept
    workload = tmp_path / "prompts.jsonl"
    workload.write_text(json.dumps({"prompt": "Hello."}))
    flags = ["--workload", workload, "--gamma", "2", "--out", tmp_path, "--threads", "1"]
    result = call("sweep", "--launch", launch, *flags)
    assert result.exit_code == 2, result.output
    assert "does not speculate" in result.stderr
    assert "--spec-type draft-simple" in result.stderr
    assert len(result.stderr.splitlines()[-1]) > 0
    (run,) = tmp_path.glob("2*/run.json")
    assert not [t for t in read_run(run.parent).trials if not t.warmup]


TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}{% if brief %}{{ 'In short: ' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "colours", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.full
@pytest.mark.parametrize(
    ("template", "unread"), [(TEMPLATE, None), (None, "chat_template_kwargs and tools")], ids=["read", "unread"]
)
def test_tools_and_arguments_of_the_template_are_what_the_model_reads(tmp_path, monkeypatch, template, unread):
    real = session.prompts_of

    def prompts_of(config):
        workload, chosen = real(config)
        return workload, tuple(replace(p, tools=(TOOL,), template_kwargs={"brief": True}) for p in chosen)

    monkeypatch.setattr(session, "prompts_of", prompts_of)
    launch = tmp_path / "templated.yaml"
    kept = Path("configs/engines/xllamacpp.yaml").read_text()
    if template is not None:
        (tmp_path / "chat.jinja").write_text(template)
        named = f'--model, "{{target}}", --chat-template-file, {tmp_path / "chat.jinja"}'
        kept = kept.replace('--model, "{target}"', named, 1)
    launch.write_text(kept)
    stored = read_run(swept(tmp_path, "--launch", launch, "--limit", "1"))
    assert stored.status == "finished"
    assert all(trial.identical for trial in counted(stored) if trial.arm.kind != "baseline")
    said = [one.message for one in stored.run.warnings if one.code == "prompt-not-read"]
    assert [message.startswith(f"with {unread} the first prompt") for message in said] == [True] * (unread is not None)
    if template is not None:
        replayed = call("sweep", *flags_of(tmp_path), "--launch", launch, "--limit", "1", "--replay-only", "--json")
        assert replayed.exit_code == 0, replayed.output
        rows = json.loads(replayed.stdout)["drafts"][0]["gammas"]
        lived = summarise(stored).drafts[0].gammas[0]
        # The text is the one that the chat gave: the rounds of a replay are those of the run.
        assert rows[0]["rounds"] == lived.rounds


@pytest.mark.full
def test_a_brief_is_written_from_the_folder_alone(stored):
    result = call("brief", stored.folder)
    assert result.exit_code == 0, result.output
    assert "The server's own counters agree" in result.stdout
    assert CANARY not in result.stdout


@pytest.mark.full
def test_a_penalty_reaches_the_server_and_counts_the_prompt(tmp_path):
    """At such a penalty no token comes twice, be it in the prompt or in the text."""
    flags = ["--draft", "ngram:n=2", "--repetition-penalty", "10", "--min-p", "0.1", "--keep-text"]
    run = read_run(swept(tmp_path, *flags))
    texts = {t.output_text for t in counted(run) if t.prompt_id == "p0"}
    assert run.status == "finished" and texts
    assert not [text for text in texts if "one" in text.lower() or "two" in text.lower()]
    # every draft of a look-up repeats the text
    assert sum(sum(t.accepted) for t in counted(run) if t.arm.draft) == 0


@pytest.mark.full
def test_rounds_are_probed_and_predict_a_sweep(tmp_path):
    """A server that rejects every draft is no trial; its rounds and a replay stand beside what is measured."""
    swept(tmp_path, "--draft", "demo:draft", "--limit", "1")  # writes the prompts
    flags = [
        "--workload",
        tmp_path / "prompts.jsonl",
        "--threads",
        "1",
        "--draft",
        "demo:draft",
        "--draft",
        "ngram:n=2",
    ]
    probing = ["--gamma", "1,3", "--max-new-tokens", "12", "--passes", "5", "--concurrency", "1,2"]
    result = call("probe", "--engine", "llamacpp", *flags, *probing, "--out", tmp_path / "probes", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    model = [row for row in found["rounds"] if row["draft"] == "demo:draft"]
    assert [(row["concurrency"], row["gamma"]) for row in model] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert all(0 < row["round_low_s"] <= row["round_s"] <= row["round_high_s"] for row in found["rounds"])
    assert found["models"] == [] and found["bandwidth"] is None
    (probe,) = (tmp_path / "probes").iterdir()
    assert not read_run(probe).trials
    result = call(
        "sweep", "--engine", "llamacpp", *flags, "--gamma", "1,3", "--max-new-tokens", "12", "--concurrency", "1,2",
        "--costs", probe, "--out", tmp_path / "costed", "--json", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    swept_, stored = json.loads(result.stdout), read_run(next((tmp_path / "costed").iterdir()))
    rows = swept_["drafts"][0]["gammas"]
    assert all(row["predicted_speedup"] > 0 for row in rows)
    # The same greedy texts with and without speculation: the replay has the rounds that the server had.
    assert [row["replay_tokens_per_round"] for row in rows] == pytest.approx([row["tokens_per_round"] for row in rows])
    assert all(load["predicted_speedup"] is not None for load in swept_["loads"] if load["draft"] == "demo:draft")
    looked = swept_["drafts"][1]["gammas"]
    taus = [row["tokens_per_round"] for row in looked]
    assert [row["replay_tokens_per_round"] for row in looked] == pytest.approx(taus) and taus[1] > taus[0] == 1.0
    # A look-up that found nothing of three tokens in these prompts has no round of three.
    for row, probed in zip(swept_["drafts"][1]["gammas"], (1, 3), strict=True):
        seen = any(
            (one["draft"], one["concurrency"], one["gamma"]) == ("ngram:n=2", 1, probed) for one in found["rounds"]
        )
        assert (row["predicted_speedup"] is not None) == seen
    assert stored.run.probe_from == str(probe) and stored.status == "finished"


@pytest.mark.full
def test_a_server_that_keeps_drafts_shows_no_rounds(tmp_path):
    kept = Path("configs/engines/xllamacpp.yaml").read_text()
    launch = tmp_path / "real.yaml"
    launch.write_text(kept.replace('[--spec-synth-rates, "{zeros}"]', '[--spec-draft-n-min, "0"]'))
    assert launch.read_text() != kept
    workload = tmp_path / "prompts.jsonl"
    workload.write_text(json.dumps({"prompt": PROMPTS[0]}))
    flags = ["--workload", workload, "--gamma", "2", "--threads", "1", "--passes", "5", "--max-new-tokens", "18"]
    result = call("probe", "--launch", launch, *flags, "--draft", "demo:draft", "--out", tmp_path / "probes")
    assert result.exit_code == 1, result.output
    assert "accepts drafts, though it was started to reject all" in result.stderr.splitlines()[-1]
    # One that is not told to reject them is timed as its rounds come.
    launch.write_text(kept.replace("synthetic: ", "# "))
    call_ = ("probe", "--launch", launch, *flags, "--draft", "demo:draft", "--out", tmp_path / "probes")
    result = call(*call_, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rounds"]
    assert row["gamma"] == 2 and row["round_s"] > 0
    # Nor is it an engine that lists rounds: that is known before anything is started.
    launch.write_text(launch.read_text().replace("engine: llamacpp", "engine: openai"))
    result = call(*call_)
    assert result.exit_code == 2, result.output
    assert "does not say how to make it reject every draft" in result.stderr.splitlines()[-1]


@pytest.mark.full
def test_arms_of_several_clients_take_turns_window_by_window(tmp_path):
    workload = tmp_path / "prompts.jsonl"
    workload.write_text("".join(json.dumps({"prompt": f"Name colour {n}."}) + "\n" for n in range(16)))
    result = call(
        "sweep", "--engine", "llamacpp", "--workload", workload, "--draft", "ngram:n=2", "--gamma", "2",
        "--threads", "1", "--concurrency", "2", "--max-new-tokens", "4", "--out", tmp_path / "runs", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    stored = read_run(next((tmp_path / "runs").iterdir()))
    # 16 prompts in windows of 8: every arm has two, and each has its turn before any has another.
    windows = [stretch.arm.label for stretch in stored.stretches]
    assert Counter(Counter(windows).values()) == {2: 3}
    assert all(len(set(windows[begin : begin + 3])) == 3 for begin in (0, 3))


@pytest.mark.full
def test_a_server_of_the_draft_reads_recorded_answers_as_the_draft_in_process_does(tmp_path):
    """llama.cpp cuts two spaces before a digit otherwise than the target's tokenizer, by ids that mean the same."""
    workload = tmp_path / "log.jsonl"
    texts = ["Red, blue, green, red, blue, green.", "one two three four five six seven", "x  2  is  x ** 2"]
    answers = [[{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}] for text in texts]
    workload.write_text("".join(json.dumps({"messages": each}) + "\n" for each in answers))
    alone = Setting(target=model_file("demo:draft", "gguf"))
    found = []
    with Launched(find_launch("llamacpp"), alone, log=tmp_path / "server.log") as server:
        for served in ([], ["--draft-server", server.url]):
            result = call(
                "sweep", "--answers", "recorded", "--workload", workload, "--target", "none", "--tokenizer",
                "demo:target", "--draft", "demo:draft,sample=greedy", "--gamma", "1,3", "--dtype", "float32",
                "--out", tmp_path / f"runs-{len(served)}", "--json", "--quiet", *served,
            )  # fmt: skip
            assert result.exit_code == 0, result.output
            found.append(json.loads(result.stdout)["drafts"][0]["gammas"])
    here, there = found
    # The file of the draft that llama.cpp reads is quantized, and may tip a near tie.
    for own, told in zip(here, there, strict=True):
        assert told["rounds"] == pytest.approx(own["rounds"], abs=1)
        assert own["accepted"] > 0
