"""The measurement plan as a page: its numbers are the Plan's, its reasons to stop fire where they are planted, its
commands exist, and nothing private is on it."""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import pytest
from conftest import full
from fake_run import FakeDraft, FakeMachine, fake_run, with_config, with_provenance, with_run
from hypothesis import given
from hypothesis import strategies as st
from test_docs import wrong_flags
from test_planned import EXAMPLE, call, pilot_of, runner

from specbench.analysis import plan as planning
from specbench.analysis.pilot import read_pilot
from specbench.analysis.plan import Wanted, amounts, half_width_of, minutes_for, plan_of
from specbench.cli import app
from specbench.config import RunConfig
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import prompts_for_width
from specbench.errors import StoreError
from specbench.records import Policy
from specbench.report.dialect import codes, part
from specbench.report.plan import TITLE, plan_document, write_document
from specbench.run_record import WorkloadFacts
from specbench.workload import load_workload, profile

REPORTS = EXAMPLE.parent
KEPT = [REPORTS / name for name in ("example", "llamacpp", "drafters")]
ASSUMED = ("--spread", 0.3, "--seconds-per-prompt", 4, "--speedup", 1.3)
CASES = [*((run,) for run in KEPT), ASSUMED, ("--spread", 0.3)]


def made(folder, drafts=None, *, policy=None, wanted=None, available=5000, noise=0.02, change=lambda run: run, **fake):
    """A planted pilot, its plan and the page. `wanted` are further fields of Wanted."""
    policy = policy or Policy()
    machine = fake.pop("machine", FakeMachine(noise=noise))
    stored = fake_run(
        folder, drafts or {"d": FakeDraft({"code": 0.8, "chat": 0.6})}, machine=machine, policy=policy, **fake
    )
    stored = change(with_run(stored, workload=WorkloadFacts(prompts_available=available)))
    asked = {"half_width": 0.05} | (wanted or {})
    pilot = read_pilot(stored, policy, asked.get("gammas"))
    plan = plan_of(Wanted(policy, **asked), pilot, "reports/pilot", available)
    return plan, plan_document(plan, policy, stored), stored


@lru_cache
def printed(*args):
    """stdout of `specbench plan`."""
    result = runner.invoke(app, ["plan", *map(str, args)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def example():
    return printed(EXAMPLE, "--markdown")


def section(page, number):
    return re.split(r"^## \d+\. ", page, flags=re.MULTILINE)[number]


def rows(words):
    """The cells of every table row that is not a rule."""
    found = [line.strip("| ").split(" | ") for line in words.splitlines() if line.startswith("| ")]
    return [cells for cells in found if not set("".join(cells)) <= set(":- ")]


def commands(page):
    return [
        shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.split("\n")
    ]


def flags_of(page, which):
    """The words behind `specbench WHICH`, of every such command."""
    return [words[2:] for words in commands(page) if words[:2] == ["specbench", which]]


def value(words, flag):
    return words[words.index(flag) + 1]


# --- numbers


def cell(need, what):
    """As a reader would write it from the JSON."""
    if need[what] is None:
        return "no number" if what == "prompts" else "-"

    def number(x):
        return f"{x:,.1f}" if isinstance(x, float) and x < 10 else f"{x:,.0f}"

    if need[f"{what}_low"] is None:
        return number(need[what])
    high = "more" if need[f"{what}_high"] is None else number(need[f"{what}_high"])
    return f"{number(need[what])} [{number(need[f'{what}_low'])}, {high}]"


@pytest.mark.parametrize(
    "args", [CASES[-1], *full(*((case,) for case in CASES[:-1]))], ids=lambda args: " ".join(map(str, args))[-30:]
)
def test_page_tables_and_json_have_the_same_numbers(args):
    plan = json.loads(printed(*args, "--json"))
    terminal, page = printed(*args), printed(*args, "--markdown")
    numbers = section(page, 3)
    needs = {"an interval within": plan["width"], "if the truth is": (plan["verdict"] or {}).get("need")}
    needs["in every category"] = plan["every_category"]
    goals = [row for row in rows(numbers) if len(row) == 3 and row[0] != "for"]
    for words, need in needs.items():
        mine = [row for row in goals if row[0].endswith(words) or (words in row[0] and "every" not in row[0])]
        assert [row[1:] for row in mine] == ([] if need is None else [[cell(need, "prompts"), cell(need, "minutes")]])
        for row in mine:
            assert row[1] in terminal and row[2] in terminal
    truths = [row for row in rows(numbers) if len(row) == 4 and row[0] != "true speedup"]
    wanted = [
        [f"{t['speedup']:.2f}x", t["verdict"] or "none", cell(t["need"], "prompts"), cell(t["need"], "minutes")]
        for t in plan["truths"]
    ]
    assert truths == wanted
    spread = plan["spread"]
    assert f"spread of {spread['value']:.3f}" in numbers
    assert (
        "(assumed)" if spread["low"] is None else f"[{spread['low']:.3f}, {spread['high']:.3f}] (measured"
    ) in numbers
    if plan["speedup_low"] is not None:
        assert f"{plan['speedup']:.2f}x [{plan['speedup_low']:.2f}, {plan['speedup_high']:.2f}] (measured)" in numbers
    elif plan["speedup"] is not None:
        assert f"{plan['speedup']:.2f}x (assumed)" in numbers
    for assumed in plan["assumed"]:
        assert assumed["claim"][1:] in section(page, 9).replace("\\", "")
    for warning in plan["warnings"]:
        assert f"`{warning['code']}`: " in section(page, 9)


@pytest.mark.parametrize("run", KEPT, ids=lambda run: run.name)
def test_portions_of_the_categories_make_up_what_is_collected(run):
    plan = json.loads(printed(run, "--json"))
    page = printed(run, "--markdown")
    table = [row for row in rows(section(page, 3)) if len(row) == 6]
    header, *categories, total = table
    assert header[:3] == ["category", "share", "collect"]
    needed = max(plan["width"]["prompts"], plan["verdict"]["need"]["prompts"])
    parts = [int(row[2]) for row in categories]
    assert sum(parts) == int(total[2]) >= needed
    assert min(parts) >= MIN_PROMPTS
    for row, category in zip(categories, plan["categories"], strict=True):
        assert row[0] == category["category"]
        assert row[3:5] == [cell(category["width"], "prompts"), cell(category["width"], "minutes")]
        own = category["verdict"]
        assert row[5] == f"{cell(own['need'], 'prompts')} at {own['speedup']:.2f}x"
        assert int(row[2]) == math.ceil(needed * category["pilot_prompts"] / plan["pilot_prompts"])
    assert value(flags_of(page, "sweep")[-1], "--limit") == total[2]
    assert f"collect {total[2]} real requests" in page


@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0.001, 1.0), min_size=1, max_size=12),
    st.floats(0.02, 1.5),
)
def test_any_mix_adds_up_to_enough_and_leaves_no_category_without_an_interval(mix, spread):
    plan = plan_of(Wanted(Policy(), 0.05, spread=spread), None)
    found = amounts(plan, mix)
    parts = [portion.prompts for portion in found.portions]
    assert sum(parts) == found.prompts >= found.planned == plan.width.prompts
    assert min(parts) >= MIN_PROMPTS
    for portion in found.portions:
        exact = found.planned * mix[portion.category] / sum(mix.values())
        assert exact - 1e-6 <= portion.prompts <= max(MIN_PROMPTS, exact + 1)
        assert (
            portion.added == max(0, MIN_PROMPTS - math.ceil(exact - 1e-6))
            or portion.prompts - portion.added <= exact + 1
        )


def test_a_mix_goes_before_the_pilots_proportions(tmp_path):
    policy = Policy(mix={"code": 0.97, "chat": 0.03})
    plan, page, _ = made(tmp_path / "r", policy=policy)
    found = {row[0]: row for row in rows(section(page, 3)) if row[0] in ("code", "chat")}
    assert found["code"][1:3] == ["97%", str(math.ceil(plan.width.prompts * 0.97))]
    assert found["chat"][1:3] == ["3%", "10"]
    assert "the mix of the policy (assumed)" in page and "collected for that alone" in page
    assert value(flags_of(page, "sweep")[-1], "--mix") == "code=0.97,chat=0.03"


def test_minutes_are_those_of_the_pilots_clock():
    pilot = pilot_of(chat=12, code=4)
    plan = plan_of(Wanted(Policy(), 0.05), pilot, "run", 16)
    for prompts in (10, 57, 4000):
        assert minutes_for(plan, prompts) == pytest.approx(pilot.whole.cost.minutes(prompts, (1, 2), 1, 1))
    assert minutes_for(plan_of(Wanted(Policy(), 0.05, spread=0.3), None), 100) is None


@pytest.mark.parametrize("prompts", [10, 33, 115, 4000])
def test_the_width_that_so_many_prompts_give_is_the_narrowest(prompts):
    plan = plan_of(Wanted(Policy(), 0.05, spread=0.3), None)
    width = half_width_of(plan, prompts)
    assert prompts_for_width(0.3, width, 0.95) <= prompts < (prompts_for_width(0.3, width - 0.001, 0.95) or 10**9)
    assert half_width_of(plan, 9) is None


def test_a_batch_counts_as_its_requests(tmp_path):
    def batched(stored):
        trials = [replace(trial, members=tuple(f"{trial.prompt_id}.{n}" for n in range(4))) for trial in stored.trials]
        return replace(with_config(stored, batch_size=4), trials=tuple(trials))

    plan, page, _ = made(tmp_path / "r", change=batched)
    prompts = amounts(plan, None).prompts
    assert f"**Collect {4 * prompts:,} requests (planned).**" in page and "a batch of 4 requests" in page
    assert value(flags_of(page, "sweep")[-1], "--limit") == str(4 * prompts)
    assert f"fewer than {4 * prompts:,} different ones" in page


def test_what_is_stated_goes_before_the_pilot_and_is_called_assumed(tmp_path):
    plan, page, _ = made(tmp_path / "r", wanted={"spread": 0.2, "speedup": 1.4})
    assert "spread of 0.200 (assumed)" in page and "to be 1.40x (assumed)" in page
    assert "GO, if the truth is 1.40x" in page and str(plan.width.prompts) in page


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        ({"prompts": {"code": 3, "chat": 3}}, "a floor takes a second baseline over 10 prompts"),
        ({"prompts": {"code": 20}}, "No category is known yet."),
        (
            {"wanted": {"spread": 9.0, "half_width": 0.001, "speedup": 1.1}},
            "there is nothing to collect.** See section 7",
        ),
    ],
)
def test_little_to_go_on_is_said(tmp_path, planted, says):
    _, page, _ = made(tmp_path / "r", **planted)
    assert says in page and "None" not in page


# --- how it is done


@pytest.mark.parametrize("args", CASES, ids=lambda args: " ".join(map(str, args))[-30:])
def test_every_command_exists_and_states_the_rule(args):
    page = printed(*args, "--markdown")
    assert wrong_flags(page) == []
    plan = json.loads(printed(*args, "--json"))
    pilot, sweep = flags_of(page, "sweep")
    for words, file in ((pilot, "pilot.jsonl"), (sweep, "requests.jsonl")):
        assert value(words, "--workload") == file
        assert value(words, "--gamma") == ",".join(map(str, plan["gammas"]))
        assert [float(value(words, f)) for f in ("--min-speedup", "--confidence")] == [
            plan["min_speedup"],
            plan["confidence"],
        ]
        assert "--keep-text" not in words and "--fresh" not in words and "--name" not in words
    assert next(words[:2] for words in commands(page) if words) == ["specbench", "workload"]


def test_the_pilots_own_settings_are_measured_again(tmp_path):
    typed = (
        "specbench measure --config c.yaml --draft a --draft=b --temperature 0.7 --limit=16 --keep-text --column text"
    )
    typed += " --system-prompt ... --batch-size 1 --name secret --threads 3 --fresh"

    def change(stored):
        return with_provenance(stored, argv=tuple(typed.split()))

    _, page, _ = made(tmp_path / "r", change=change)
    pilot, sweep = flags_of(page, "sweep")
    kept = [
        "--config",
        "c.yaml",
        "--draft",
        "a",
        "--draft=b",
        "--temperature",
        "0.7",
        "--batch-size",
        "1",
        "--threads",
        "3",
    ]
    for words in (pilot, sweep):
        assert words[4 : 4 + len(kept)] == kept and words[4 + len(kept)] == "--gamma"
    assert flags_of(page, "doctor") == [
        ["--workload", "pilot.jsonl", *(w for w in kept if w not in ("--batch-size", "1"))]
    ]


def test_a_run_from_elsewhere_is_repeated_from_its_configuration(tmp_path):
    """A notebook's command line says nothing of the run."""
    asked = asdict(RunConfig(target="org/model", draft=("a", "b"), temperature=0.7, dtype="float32", max_new_tokens=99))

    def change(stored):
        changed = with_config(
            stored, **{key: asked[key] for key in ("target", "temperature", "dtype", "max_new_tokens")}
        )
        return with_provenance(changed, argv=("specbench", "-f", "kernel.json"))

    drafts = {"a": FakeDraft({"code": 0.8, "chat": 0.6}), "b": FakeDraft({"code": 0.7, "chat": 0.6})}
    _, page, _ = made(tmp_path / "r", drafts, change=change)
    sweep = " ".join(flags_of(page, "sweep")[-1])
    assert (
        "--target org/model --draft a --draft b --dtype float32 --max-new-tokens 99 --temperature 0.7 --gamma" in sweep
    )
    assert "kernel" not in page and "--top-p" not in sweep


def test_a_pilot_on_the_prompts_that_come_with_specbench_is_not_of_your_traffic(tmp_path):
    def own(stored):
        return with_config(stored, workload="mine.jsonl")

    _, mine, _ = made(tmp_path / "r", change=own)
    assert "not of your traffic" in example() and "not of your traffic" not in mine
    assert flags_of(mine, "plan")[0][0] == "reports/pilot" and flags_of(example(), "plan")[0][0] == "--half-width"
    assert "go on with step 4" in mine


def test_the_example_of_a_request_can_be_read(tmp_path):
    line = re.search(r"```json\n(.*?)```", example(), re.DOTALL)[1]
    file = tmp_path / "requests.jsonl"
    file.write_text(line)
    loaded = load_workload(str(file))
    assert {caution.code for caution in loaded.cautions} == {"few-prompts"}
    (category,) = profile(loaded).categories
    assert (category.category, category.system_share) == ("support", 1.0)
    assert loaded.prompts[0].messages[-1].content.count("40817") == 2  # a pseudonym repeats where the name did


SAID = [
    *plan_of(Wanted(Policy(), 0.05, spread=0.3), None).assumed,
    *plan_of(Wanted(Policy(), 0.05, spread=0.3, seconds_per_prompt=4, speedup=1.3), None).assumed,
    *plan_of(Wanted(Policy(), 0.05, spread=0.3, seconds_per_prompt=4), None).assumed,
    *plan_of(Wanted(Policy(mix={"a": 1.0}), 0.05, gammas=(9,), drafts=3, repeats=5), pilot_of(a=3, b=2)).assumed,
]


def test_every_assumption_has_what_would_change_it():
    assert all(part(assumed, "change") for assumed in SAID)
    ours = {
        node.value
        for node in ast.walk(ast.parse(Path(planning.__file__).read_text()))
        if isinstance(node, ast.Constant)
    }
    assert {assumed.code for assumed in SAID} == set(codes("doubts")) & ours


# --- what is not on it


def test_nothing_private_is_on_the_page(tmp_path):
    def keep(stored):
        trials = [
            replace(t, prompt_text="SECRET PROMPT", output_text="SECRET ANSWER", prompt_id="SECRET ID")
            for t in stored.trials
        ]
        return replace(
            with_config(stored, system_prompt="SECRET SYSTEM", keep_text=True),
            trials=tuple(
                replace(t, prompt_id=o.prompt_id) if i else t
                for i, (t, o) in enumerate(zip(trials, stored.trials, strict=True))
            ),
        )

    _, page, _ = made(tmp_path / "r", change=keep)
    assert "SECRET" not in page


def test_names_from_files_are_escaped(tmp_path):
    name = "a|b`*[x](y)\n# no"
    _, page, _ = made(tmp_path / "r", {"d": FakeDraft({name: 0.8, "chat": 0.6})}, prompts={name: 15, "chat": 15})
    lines = page.splitlines()
    (line,) = [line for line in lines if line.startswith(r"| a\|b")]
    assert line.startswith(r"| a\|b\`\*\[x\](y) # no |")
    assert not any(line.startswith("# no") for line in lines)


# --- the file


def test_the_page_goes_to_a_file_beside_what_is_printed_otherwise(tmp_path):
    file, page = tmp_path / "plan.md", printed(*ASSUMED, "--markdown")
    for mode in ((), ("--json",), ("--markdown",)):
        result = call(*ASSUMED, *mode, "--write", file)
        assert (result.exit_code, result.stdout, file.read_text()) == (0, call(*ASSUMED, *mode).stdout, page)
        assert result.stderr == f"Written to {file}\n"
    assert page.startswith(TITLE) and page.endswith("|\n")


@pytest.mark.parametrize("content", [b"# Notes\n", b"", b"\xff\xfe\x00"])
def test_another_file_is_left_alone(tmp_path, content):
    file = tmp_path / "notes.md"
    file.write_bytes(content)
    result = call("--spread", 0.3, "--write", file)
    assert (result.exit_code, result.stdout, file.read_bytes()) == (2, "", content)
    assert result.stderr == (
        f"specbench: There is a file already that is no measurement plan ({file}). Give --write another name.\n"
    )


def test_what_cannot_be_written_is_one_line(tmp_path):
    for file, says in ((tmp_path, "Is a directory"), (tmp_path / "no" / "plan.md", "No such file or directory")):
        result = call("--spread", 0.3, "--write", file)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert f"Cannot write the plan: {says}" in result.stderr
    with pytest.raises(StoreError):
        write_document(example(), tmp_path)
    result = call("--spread", 0.3, "--json", "--markdown")
    assert (result.exit_code, result.stdout) == (2, "") and "want stdout" in result.stderr


def test_the_same_plan_gives_the_same_page(tmp_path):
    plan, page, stored = made(tmp_path / "r")
    assert plan_document(plan, Policy(), stored) == page
