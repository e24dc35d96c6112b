"""Recorded answers that were sampled: the acceptance of live sampled speculation, text by text; and whose they are."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from answer_logs import lines
from conftest import full
from scipy.stats import chi2
from test_recorded_runs import engine_for, over, row_of, written_by
from test_run import config_for

from specbench.acceptance.positions import read_positions
from specbench.acceptance.replay import replay
from specbench.records import Arm
from specbench.store import read_run
from specbench.workload import load_workload

from tiny import near_copy, save_with_byte_tokenizer, tiny_llama  # isort: skip

SAMPLED = {"temperature": 3.0, "top_k": 2, "max_new_tokens": 5}


def outcomes(text, gamma, accept):
    """How many drafts are accepted in all, with their chances, by walking every way that the rounds can fall."""
    found = Counter()

    def walk(i, total, chance):
        if i >= text.tokens:
            found[total] += chance
            return
        k, kept = min(gamma, text.limit - i - 1), 1.0
        for j in range(k):
            if i + j >= text.tokens:  # an end of sequence was accepted
                walk(i + j, total + j, chance * kept)
                return
            walk(i + j + 1, total + j, chance * kept * (1 - accept[i - 1 + j]))
            kept *= accept[i - 1 + j]
        walk(i + k + 1, total + k, chance * kept)

    walk(1, 0, 1.0)
    return {total: chance for total, chance in found.items() if chance > 1e-12}


def chi_square(seen, texts, gamma, accept):
    """p-value of how many drafts were accepted, given the texts that came: cells of five or more are kept apart."""
    found, expected = Counter(), Counter()
    for output, counts in seen.items():
        found.update(counts)
        for total, chance in outcomes(texts[output], gamma, accept(texts[output])).items():
            expected[total] += sum(counts.values()) * chance
    cells = [[expected[total], found[total]] for total in sorted({*expected, *found})]
    merged = []
    for cell in cells:
        if merged and merged[-1][0] < 5:
            merged[-1] = [merged[-1][0] + cell[0], merged[-1][1] + cell[1]]
        else:
            merged.append(cell)
    if len(merged) > 1 and merged[-1][0] < 5:
        last = merged.pop()
        merged[-1] = [merged[-1][0] + last[0], merged[-1][1] + last[1]]
    assert len(merged) >= 2
    return float(chi2.sf(sum((n - e) ** 2 / e for e, n in merged), len(merged) - 1))


@pytest.mark.parametrize(("number", "gamma", "surely"), [(320, 2, 1e-3), *full((2500, 1, 1e-6), (2500, 3, 1e-6))])
def test_sampled_logs_give_the_acceptance_of_live_speculation(lab, tmp_path, number, gamma, surely):
    # The lab's target, and a draft that agrees with it less often than the lab's.
    near = save_with_byte_tokenizer(near_copy(tiny_llama(257, seed=1), noise=0.2), tmp_path / "draft")
    greedy, sampled = f"{near},sample=greedy", str(near)
    config = config_for(lab, tmp_path / "runs", draft=[sampled, greedy], gamma=str(gamma), **SAMPLED)
    prompt = load_workload(config.workload).prompts[0]
    engine = engine_for(config, [prompt])
    ids = engine.encode(prompt)
    seen = {draft: {} for draft in config.draft}
    for draft in config.draft:
        for n in range(number if draft == sampled else 40):
            arm = Arm("speculative", draft, gamma)
            one = engine.generate(ids, arm, max_new_tokens=5, seed_text=str(n))
            accepted = sum(each.accepted for each in one.rounds)
            seen[draft].setdefault(tuple(one.tokens), Counter())[accepted] += 1
    every = sorted({output for by_text in seen.values() for output in by_text})
    log = tmp_path / "log.jsonl"
    log.write_text(lines(*(row_of(prompt, ids, list(o), o[-1] in engine.eos, max_tokens=5) for o in every)))
    folder = over(log, config, tmp_path / "runs")
    places = {f"line-{n + 1}": output for n, output in enumerate(every)}
    texts = {draft: {} for draft in config.draft}
    for text in read_positions(folder):
        texts[text.draft][places[text.prompt_id]] = text
        mean = sum(total * chance for total, chance in outcomes(text, gamma, text.accept).items())
        assert replay([text], gamma).accepted[0] == pytest.approx(mean, abs=1e-4)
    # A draft that says one token is accepted exactly where it is the text's, whatever the temperature.
    for output, counts in seen[greedy].items():
        assert set(counts) == {int(replay([texts[greedy][output]], gamma).accepted[0])}
    honest = chi_square(seen[sampled], texts[sampled], gamma, lambda text: text.accept)
    wrong = chi_square(seen[sampled], texts[sampled], gamma, lambda text: np.exp(text.log_q))
    assert honest > 1e-3
    assert wrong < surely  # "sample match": accepted with q(x), which some engines do


@pytest.mark.parametrize("temperature", [0.0, *full(1.0)])
def test_foreign_answers_are_named_and_own_ones_are_not(lab, tmp_path, temperature):
    config = config_for(lab, tmp_path, temperature=temperature, max_new_tokens=16)
    own = written_by(config, tmp_path)
    stored = read_run(over(own, config, tmp_path / "runs", verify_answers=12))
    checked = stored.run.answers.verified
    assert (checked.answers, checked.foreign) == (12, False)
    if temperature == 0:
        assert (checked.identical, checked.likeliest) == (12, checked.tokens)
    else:
        assert checked.excess_low < 0 < checked.excess_high or abs(checked.excess_nats) < 0.1
    (tmp_path / "other").mkdir()
    other = written_by(replace(config, target=str(lab.far)), tmp_path / "other")
    stored = read_run(over(other, config, tmp_path / "foreign", verify_answers=12))
    assert stored.run.answers.verified.foreign
    assert "foreign-answers" in [warning.code for warning in stored.run.warnings]


@pytest.mark.parametrize("wrong_nats", [0.0, 0.5])
def test_log_probabilities_in_a_log_are_held_against_the_target(lab, tmp_path, wrong_nats):
    config = config_for(lab, tmp_path, temperature=0.7, max_new_tokens=8)
    log = written_by(config, tmp_path)
    engine = engine_for(config, load_workload(config.workload).prompts)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        answer = row["response"]
        choice, before = answer["choices"][0], answer["prompt_token_ids"]
        x = torch.tensor([[*before, *choice["token_ids"]]])
        with torch.inference_mode():
            own = engine.target.model(x).logits[0, len(before) - 1 : -1].float().log_softmax(-1)
        found = own.gather(1, x[0, len(before) :, None])[:, 0] - wrong_nats
        choice["logprobs"] = {"content": [{"token": "-", "logprob": one} for one in found.tolist()]}
    log.write_text(lines(*rows))
    checked = read_run(over(log, config, tmp_path / "runs", verify_answers=12)).run.answers.verified
    assert checked.logged_tokens == checked.tokens
    assert checked.logged_gap_nats == pytest.approx(wrong_nats, abs=0.02)
    assert checked.foreign == (wrong_nats > 0)
