"""What answers that are there save: a draft read over recorded answers against having the target write them.

Batch by batch, in one run: the target writes the answers, alone and in batches as `--replay-only` has it write them;
the draft model scores them; a look-up scores them. Then a log of many rows is read from the disk, tokenized and scored
by the look-up, as `sweep --answers recorded --target none` does it: answers a minute on one core.

Regime: as benchmarks.baseline. Ratios and seconds of the processor hold on a machine that others use.
"""

from __future__ import annotations

import json
import tempfile
import time
from itertools import islice
from pathlib import Path

from benchmarks.baseline import ARMS, DRAFT, DTYPE, TARGET
from specbench.acceptance.scores import match_blocks
from specbench.backends.local.batch import REPLAY_BATCH
from specbench.backends.local.local import LocalEngine
from specbench.config import RunConfig
from specbench.cost.load import load_average
from specbench.drafters.lookup import NgramLookUp
from specbench.drafters.spec import NgramSpec
from specbench.kinds import MAX_GAMMA
from specbench.models.answers import AnswerEncoder
from specbench.models.prompts import Today
from specbench.shipped import shipped
from specbench.workload import load_workload, select
from specbench.workload.answers import AnswerLog

LOOK_UP = "ngram:n=3"


def main(*, quick: bool = False) -> None:
    """Measure and print. Full: 96 answers of 64 tokens, and 20,000 rows. Quick: 16 of 16, and 500."""
    prompts_n, n, rows = (16, 16, 500) if quick else (96, 64, 20_000)
    config = RunConfig(target=TARGET, draft=(DRAFT, LOOK_UP), dtype=DTYPE, device="cpu", max_new_tokens=n, gamma=(8,))
    engine = LocalEngine(config, threads=1)
    engine.eos = frozenset()  # every text has n tokens
    prompts = select(load_workload(str(shipped("workloads/mixed.jsonl"))).prompts, prompts_n, seed=0)
    encoded = sorted((engine.encode(prompt) for prompt in prompts), key=len)
    engine.reserve(max(map(len, encoded)) + n + 9)
    batches = [encoded[begin : begin + REPLAY_BATCH] for begin in range(0, len(encoded), REPLAY_BATCH)]
    spent = dict.fromkeys(("alone", "written", DRAFT, LOOK_UP), 0.0)
    alone_n = 0
    engine.drafts[DRAFT].score_texts(batches[0][:1], engine.texts(batches[0][:1], 4, ""))  # warm-up, thrown away
    for batch in batches:
        marks = [time.perf_counter()]
        outputs = engine.texts(batch, n, "")
        marks.append(time.perf_counter())
        for draft in (DRAFT, LOOK_UP):
            engine.drafts[draft].score_texts(batch, outputs)
            marks.append(time.perf_counter())
        for ids in batch[:2]:
            engine.generate(ids, ARMS[0], max_new_tokens=n, seed_text="")
        marks.append(time.perf_counter())
        alone_n += len(batch[:2])
        for what, begin, end in zip(("written", DRAFT, LOOK_UP, "alone"), marks, marks[1:], strict=False):
            spent[what] += end - begin
    print(f"{len(encoded)} answers of {n} tokens, load {load_average():.1f}")
    for draft in (DRAFT, LOOK_UP):
        each_s = spent[draft] / len(encoded)
        alone, written = spent["alone"] / alone_n / each_s, spent["written"] / len(encoded) / each_s
        print(f"  {draft}: {alone:.0f}x as fast as the target writes them alone, {written:.0f}x as in batches")
    with tempfile.TemporaryDirectory() as folder:
        taken_s = over_log(engine, Path(folder) / "log.jsonl", rows)
    print(f"  {LOOK_UP} over a log of {rows:,} rows: {60 * rows / taken_s:,.0f} answers a minute of one core")


def over_log(engine: LocalEngine, log: Path, rows: int) -> float:
    """Seconds of the processor to survey a log of chats, and to read, tokenize and look up its answers."""
    prompts = load_workload(str(shipped("workloads/mixed.jsonl"))).prompts
    with log.open("w") as file:
        for number in range(rows):
            ask, answer = (prompts[(number + more) % len(prompts)].messages[-1].content for more in (0, 1))
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"session_id": number, "messages": turns}) + "\n")
    begin_s = time.process_time()
    answers = AnswerLog(str(log))
    answers.survey()
    ends = frozenset({engine.target.tokenizer.eos_token_id})
    encoder = AnswerEncoder(engine.target, None, Today(), ends, 1_000_000)
    for one in islice(answers, rows):
        found = encoder.encode(one)
        match_blocks(NgramLookUp(NgramSpec(), eos=ends), found.prompt, found.output, MAX_GAMMA)
    return time.process_time() - begin_s
