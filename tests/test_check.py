"""A stored run against assisted generation in transformers: the same counts, and planted mistakes that must show."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from conftest import CANARY, Lab
from hypothesis import given
from hypothesis import strategies as st
from test_docs import PAGES
from test_run import FakeObserver, sweep
from tokenizers import pre_tokenizers
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from typer.testing import CliRunner

from specbench.analysis.checked import checked_gamma, unsupported
from specbench.backends.local.assisted import RULES, Pair, SeenRound, SeenText, placed, reconcile, watched
from specbench.cli import app
from specbench.drafters import parse_draft
from specbench.records import Arm, Message, Prompt, Round, Sampling, Times, Trial
from specbench.report.dialect import codes
from specbench.store import read_run
from specbench.verify.check import Asked, check, comparable

GAMMAS = (1, 5)


@pytest.fixture(scope="module")
def home(lab, tmp_path_factory):
    """The lab with a target that ends its texts at many bytes, so that some texts end and some are cut."""
    folder = tmp_path_factory.mktemp("check")
    shutil.copytree(lab.target, folder / "target")
    settings = folder / "target" / "generation_config.json"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [256, *range(3, 256, 50), *(alphabet.index(letter) for letter in "aeo")]  # letters: look-up meets them
    # what our loop does not do, transformers must not do either
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"eos_token_id": ends, "repetition_penalty": 1.5})
    )
    for name in ("prompts.jsonl", "lab.yaml"):
        shutil.copy(lab.workload.parent / name, folder / name)
    return Lab(folder / "target", lab.near, lab.far, folder / "prompts.jsonl")


@pytest.fixture(scope="module")
def stored(home, tmp_path_factory):
    drafts = [str(home.near), "ngram:n=3,max=4"]
    return sweep(home, tmp_path_factory.mktemp("runs"), draft=drafts, gammas=GAMMAS, max_new_tokens=16)


def test_prompts_whose_texts_were_the_targets_own_are_checked_first():
    prompts = [Prompt(f"p{n}", (Message("user", f"x{n}"),), "", "ab"[n % 2]) for n in range(8)]

    def trial(n, gamma, same):
        times = Times(0, 0, 0, 0, 0, 0)
        arm = Arm("speculative", "d", gamma)
        return Trial(f"p{n}", "", None, arm, 0, 1, 1, "", "length", (), (), times, identical=same)

    trials = [trial(n, gamma, not (gamma == 4 and n in (0, 1, 2, 5))) for n in range(8) for gamma in (1, 4)]
    assert {prompt.id for prompt in comparable(prompts, trials, 4, 0)} == {"p3", "p4", "p6", "p7"}
    assert {prompt.id for prompt in comparable(prompts, trials, 6, 0)} > {"p3", "p4", "p6", "p7"}
    assert len(comparable(prompts, trials, 6, 0)) == 6 and len(comparable(prompts, trials, 20, 0)) == 8


def checked(stored, **asked):
    return check(stored.folder, Asked(**({"limit": 12} | asked)), FakeObserver())


@pytest.fixture(scope="module")
def found(stored):
    return checked(stored)


@pytest.fixture
def copy(stored, tmp_path):
    """The run again, to spoil."""
    folder = tmp_path / stored.folder.name
    shutil.copytree(stored.folder, folder)
    return folder


def respell(folder, change):
    """Rewrite every trial by `change`."""
    path = folder / "trials.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def keep_trials(folder, drafts):
    """Leave out the trials of all other drafts."""
    path = folder / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["arm"]["draft"] in drafts))


@pytest.mark.full
def test_the_counts_are_those_of_transformers_round_by_round(stored, found):
    finishes = Counter(t.finish for t in stored.trials if t.arm.gamma and not t.warmup)
    assert min(finishes["eos"], finishes["length"]) > 5
    assert found.agreement == "same"
    assert [draft.draft for draft in found.drafts] == list(stored.run.config.draft)
    for draft in found.drafts:
        assert draft.not_compared is None
        assert [row.gamma for row in draft.gammas] == list(GAMMAS)
        for row in draft.gammas:
            assert (row.texts, row.other_texts, row.different_rounds, row.different_texts) == (12, 0, 0, 0)
            assert row.ours == row.reconciled
            assert row.ours.accepted > 0


def touched(found):
    """Rounds that each rule touched, by draft."""
    return [
        sum((Counter({r.name: r.rounds for r in row.reconciliations}) for row in draft.gammas), Counter())
        for draft in found.drafts
    ]


@pytest.mark.full
def test_every_rule_is_needed_and_named(stored, found):
    model, lookup = touched(found)
    assert model["first-token"] == lookup["first-token"] == 24
    assert model["end-accepted"] > 0
    assert min(lookup["limit"], lookup["end-drafted"]) > 0
    assert model["limit"] == model["end-drafted"] == 0
    for name in RULES:
        assert checked(stored, rules=set(RULES) - {name}, limit=5, gammas=(5,)).agreement == "differs"


@pytest.mark.full
def test_an_accepted_count_that_is_off_by_one_is_seen(copy):
    spoilt = []

    def change(row):
        if row["arm"]["gamma"] == 5 and not row["warmup"] and not spoilt:
            at = next((i for i, (d, a) in enumerate(zip(row["drafted"], row["accepted"], strict=True)) if a < d), None)
            if at is not None:
                row["accepted"][at] += 1
                spoilt.append(row["arm"]["draft"])

    respell(copy, change)
    found = checked(read_run(copy))
    rows = {(d.draft, row.gamma): row for d in found.drafts for row in d.gammas}
    wrong = rows.pop((spoilt[0], 5))
    assert found.agreement == wrong.agreement == "differs"
    assert wrong.different_texts == 1
    assert wrong.rounding_texts == 0
    assert wrong.ours.accepted == wrong.reconciled.accepted + 1
    assert {row.agreement for row in rows.values()} == {"same"}


@pytest.mark.full
def test_another_draft_is_refused_and_its_counts_would_differ(home, copy):
    run = json.loads((copy / "run.json").read_text())
    run["config"]["draft"] = [str(home.far)]
    run["drafts"][str(home.far)] = run["drafts"][str(home.near)]
    (copy / "run.json").write_text(json.dumps(run))

    def change(row):
        if row["arm"]["draft"] == str(home.near):
            row["arm"]["draft"] = str(home.far)

    respell(copy, change)
    keep_trials(copy, {None, str(home.far)})
    refused = call("check", copy)
    assert refused.exit_code == 2
    assert "changed since the run: its revision is content:" in refused.stderr
    from specbench.models.load import resolve

    run["drafts"][str(home.far)]["revision"] = resolve(str(home.far)).revision
    (copy / "run.json").write_text(json.dumps(run))
    found = checked(read_run(copy), limit=3)
    assert {row.agreement for row in found.drafts[0].gammas} == {"differs"}


@pytest.mark.full
@pytest.mark.parametrize(("draft", "temperature"), [("near", 1.0), ("ngram:n=2", 0.3)])
def test_sampled_rounds_agree_within_sampling_error_and_a_biased_count_does_not(home, tmp_path, draft, temperature):
    spec = str(home.near) if draft == "near" else draft
    sampled = sweep(home, tmp_path, draft=[spec], gammas=(3,), temperature=temperature, max_new_tokens=16)
    (row,) = checked(sampled).drafts[0].gammas
    assert row.agreement == "same"
    assert row.ratio_low < 1 < row.ratio_high
    assert row.texts == 12
    assert row.other_texts is row.different_rounds is None
    (few,) = checked(sampled, limit=4).drafts[0].gammas
    assert few.agreement == "undecided"

    def change(row):
        row["drafted"], row["accepted"] = row["drafted"] * 4, row["accepted"] * 4

    respell(sampled.folder, change)
    assert checked(read_run(sampled.folder)).drafts[0].gammas[0].agreement == "differs"


@pytest.mark.full
def test_rounds_under_a_penalty_are_those_of_transformers(home, tmp_path):
    """Which hands its processors to the draft: the penalty must not be applied there twice, nor be left out."""
    drafts = [str(home.near), "ngram:n=3,max=4"]
    run = sweep(home, tmp_path, draft=drafts, gammas=(3,), max_new_tokens=32, repetition_penalty=1.3)
    rows = [draft.gammas[0] for draft in checked(run).drafts]
    assert {row.agreement for row in rows} == {"same"} and [row.different_rounds for row in rows] == [0, 0]
    assert [row.other_texts for row in rows] == [0, 0] and rows[0].ours.accepted > 20
    # a check that forgets the penalty finds other texts
    stored = run.folder / "run.json"
    changed = json.loads(stored.read_text())
    changed["config"]["repetition_penalty"] = 1.0
    stored.write_text(json.dumps(changed))
    assert checked(read_run(run.folder)).drafts[0].gammas[0].agreement == "differs"


@pytest.mark.full
def test_sampled_rounds_under_a_penalty_and_min_p_agree_within_sampling_error(home, tmp_path):
    asked = {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.3}
    sampled = sweep(home, tmp_path, draft=[str(home.near)], gammas=(3,), max_new_tokens=16, **asked)
    (row,) = checked(sampled).drafts[0].gammas
    assert row.agreement == "same" and row.texts == 12


def test_sampling_by_another_rule_is_not_compared():
    def why(draft, **sampling):
        return unsupported(parse_draft(draft), Sampling(**({"temperature": 1.0} | sampling)))

    assert why("org/model") is why("org/model", top_k=5) is why("ngram:n=3", temperature=0.5) is None
    assert "twice" in why("org/model", temperature=0.5)
    assert "twice" in why("org/model", top_p=0.9)
    assert "top-p" in why("ngram:n=3", top_p=0.9)
    assert why("org/model", min_p=0.1, repetition_penalty=1.2) is why("ngram:n=3", repetition_penalty=1.2) is None
    assert why("ngram:n=3", min_p=0.1) is None
    assert "penalty" in why("ngram:n=3", min_p=0.1, repetition_penalty=1.2)
    assert "penalty" in why("ngram:n=3", top_k=9, repetition_penalty=1.2)
    assert why("org/model", temperature=0.0, top_p=0.9) is None


def call(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_the_command_prints_tables_and_json_without_any_text(stored):
    shown = call("check", stored.folder, "--limit", 2, "--gamma", 5)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("THE SAME")
    assert max(map(len, shown.stdout.splitlines()[:-1])) <= 80
    assert "end-accepted" in shown.stdout or "first-token" in shown.stdout
    found = call("check", "--out", stored.folder.parent, "--limit", 2, "--gamma", 5, "--json", "--quiet", "--strict")
    assert found.exit_code == 0
    assert found.stderr == ""
    row = json.loads(found.stdout)["drafts"][0]["gammas"][0]
    assert row["ours"] == row["reconciled"]
    assert CANARY not in shown.output + found.output


def test_strict_tells_a_difference_by_the_exit_code(copy):
    respell(copy, lambda row: row.update(drafted=[d + 1 for d in row["drafted"]]))
    assert call("check", copy, "--limit", 1, "--gamma", 1, "--strict", "--quiet").exit_code == 3
    assert call("check", copy, "--limit", 1, "--gamma", 1, "--quiet").exit_code == 0


@pytest.mark.full
def test_drafts_that_transformers_has_not_are_said(home, tmp_path):
    near = home.near
    drafts = ["skip:layers=1", f"ngram:n=2+{near}", f"{near},cutoff=0.2", "ngram:n=3,min=2", f"cross:{near}"]
    run = sweep(home, tmp_path, draft=drafts, gammas=(2,), limit=1)
    found = checked(run)
    assert [draft.not_compared is None for draft in found.drafts] == [False] * 5
    assert found.agreement == "undecided"
    shown = call("check", run.folder, "--strict")
    assert shown.exit_code == 4
    assert shown.stdout.count("not compared: ") == 5


def refused(*args):
    result = call("check", *args)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert CANARY not in result.output
    return result.stderr


def test_what_cannot_be_checked_is_one_line(home, copy, tmp_path):
    assert "Not a run folder" in refused(tmp_path / "nowhere")
    assert "The run has no gamma 9" in refused(copy, "--gamma", 9)
    assert "--against" in refused(copy, "--against", "vllm")
    assert "`limit`: 0 is not" in refused(copy, "--limit", 0)
    run = json.loads((copy / "run.json").read_text())
    hidden = run | {"config": run["config"] | {"system_prompt": "sha256:00"}}
    (copy / "run.json").write_text(json.dumps(hidden))
    assert "--system-prompt" in refused(copy)
    assert "The workload changed since the run" in refused(copy, "--system-prompt", "Be brief.")
    batched = run | {"config": run["config"] | {"batch_size": 2}}
    (copy / "run.json").write_text(json.dumps(batched))
    assert "one sequence at a time" in refused(copy)
    (copy / "run.json").write_text(json.dumps(run | {"command": "replay"}))
    assert "A replay ran no rounds" in refused(copy)
    other = tmp_path / "prompts.jsonl"
    other.write_text(home.workload.read_text().replace("tides", "waves"))
    run["workload"]["source"] = str(other)
    (copy / "run.json").write_text(json.dumps(run))
    assert "The workload changed since the run" in refused(copy)


def test_the_hook_is_gone_afterwards():
    before = dict(vars(PromptLookupCandidateGenerator))
    with pytest.raises(RuntimeError), watched([]):
        assert vars(PromptLookupCandidateGenerator)["get_candidates"] is not before["get_candidates"]
        raise RuntimeError
    assert dict(vars(PromptLookupCandidateGenerator)) == before


@given(
    drafts=st.lists(st.integers(0, 5), max_size=6),
    right=st.integers(0, 6),
    room=st.integers(0, 7),
    bonus=st.integers(0, 5),
    cut=st.booleans(),
)
def test_reconciled_rounds_are_what_our_loop_would_count(drafts, right, room, bonus, cut):
    """One round of either generator, by the rules of transformers and by ours; 0 ends a text."""
    eos, length = {0}, 4
    right = min(right, len(drafts))
    wanted = [*drafts[:right], bonus if right == len(drafts) or bonus != drafts[right] else (bonus + 1) % 6]

    def until_end(tokens):
        return tokens[: tokens.index(0) + 1] if 0 in tokens else tokens

    ours = until_end(drafts[:room])
    kept = next((i for i, (d, w) in enumerate(zip(ours, wanted, strict=False)) if d != w), len(ours))
    kept = min(kept, right)
    # an assistant leaves room and ends with an end of sequence; a look-up does neither and leaves the end out
    theirs = (drafts[: drafts.index(0)] if 0 in drafts else drafts) if cut else ours
    valid = until_end(wanted[: min(right, len(theirs)) + 1][: room + 1])
    proposed = drafts if cut else ours
    seen = SeenText(
        [*valid], [SeenRound(length, tuple(proposed), len(theirs), len(valid) - 1)], True, length + room + 1
    )
    found = reconcile(seen, prompt_tokens=length, eos=eos)
    assert found.rounds == [Round(len(ours), kept)]


def test_rounds_are_compared_where_they_stand():
    assert placed([Round(3, 1), Round(3, 3)]) == {(1, Round(3, 1)), (3, Round(3, 3))}


def judged(trial, *, same_text=True, rounds=None, near_tie=None):
    mine = tuple(trial.rounds)
    other = mine if rounds is None else rounds
    return Pair(trial, trial.output_tokens, same_text, other, other, dict.fromkeys(RULES, 0), near_tie)


def test_only_what_a_near_tie_explains_is_called_rounding(stored):
    trial = next(t for t in stored.trials if t.arm.gamma == 5 and len(t.drafted) > 2 and not t.warmup)
    other = tuple(trial.rounds[:-1])

    def agreement(*pairs):
        return checked_gamma(5, pairs, greedy=True, precision="bfloat16").agreement

    same, tied = judged(trial), judged(trial, rounds=other, near_tie=True)
    assert agreement(same) == "same"
    assert agreement(same, tied) == "rounding"
    assert agreement(same, tied, judged(trial, rounds=other, near_tie=False)) == "differs"
    elsewhere = judged(trial, same_text=False, near_tie=True)
    assert agreement(same, elsewhere) == "same"
    assert agreement(elsewhere) == "undecided"
    assert agreement(same, judged(trial, same_text=False, near_tie=False)) == "differs"
    row = checked_gamma(5, [same, elsewhere, tied], greedy=True, precision="bfloat16")
    assert (row.texts, row.other_texts, row.different_texts, row.rounding_texts) == (3, 1, 1, 2)
    assert row.ours.rounds == 2 * len(trial.rounds)


def test_every_rule_is_explained():
    assert set(codes("reconciliations")) == set(RULES)
    assert [name for name in RULES if f"| `{name}` |" not in PAGES["measuring.md"]] == []
