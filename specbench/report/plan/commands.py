"""The order of work of a measurement, each step with its command: the pilot's own, as far as it is known."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specbench import text
from specbench.analysis.plan import Plan, minutes_for
from specbench.config import RUN_SETTINGS, SETTINGS
from specbench.records import Policy
from specbench.report.plan.numbers import about
from specbench.run.task import command_line
from specbench.shipped import DEFAULT_WORKLOAD
from specbench.store import StoredRun

FILE = "requests.jsonl"
PILOT_FILE = "pilot.jsonl"
PILOT_PROMPTS = 16

# What this plan states itself, what belongs to the pilot's file, and what would store texts or begin anew.
_LEFT_OUT = {
    "--gamma", "--limit", "--repeats", "--min-speedup", "--metric", "--confidence", "--mix", "--max-added-gb",
    "--workload", "--column", "--category-column", "--system-prompt",
    "--name", "--keep-text", "--fresh", "--resume", "--json", "--quiet", "--strict",
}  # fmt: skip
_DOCTORS = {"--config"} | {each.flags[0] for each in SETTINGS.values() if "doctor" in each.declared.on}
# It is asked about the pilot's prompts, in its own number.
_DOCTORS -= {"--workload", "--column", "--category-column", "--system-prompt", "--limit", "--max-new-tokens"}
# Settings that a command line has to repeat where the pilot's own was not recorded.
_REPEATED = {
    key: each
    for key, each in RUN_SETTINGS.items()
    if "sweep" in each.declared.on and each.declared.measured and each.flags[0] not in _LEFT_OUT
}
_ALWAYS = ("target", "draft", "max_new_tokens")

Option = Sequence[str]  # ("--limit", "16") or ("--fresh",)


@dataclass(frozen=True, slots=True)
class Step:
    """What to do, what to know about it, and its command; None where there is none."""

    title: str
    words: str
    command: str | None


def steps(plan: Plan, policy: Policy, stored: StoredRun | None, requests: int | None) -> list[Step]:
    """From the pilot's prompts to the brief. `requests` is what the sweep measures."""
    served = stored is not None and stored.run.on_server
    batch = 1 if stored is None else stored.run.config.batch_size
    options = _options(plan, stored)
    doctor = [part for option in options if _flag(option) in _DOCTORS for part in option]
    others = [part for option in options if _flag(option) not in _LEFT_OUT for part in option]
    sweep = [*others, *_stated(plan, policy)]
    few, many = str(PILOT_PROMPTS * batch), "N" if requests is None else str(requests)
    found = [
        Step("Check the pilot's prompts.", _about_prompts(plan, stored, few), _shell("workload", PILOT_FILE)),
        Step(
            "Ask the doctor.",
            _about_doctor(served),
            None if served else _shell("doctor", "--workload", PILOT_FILE, *doctor),
        ),
        Step("Make the pilot.", _about_pilot(plan), _shell("sweep", "--workload", PILOT_FILE, "--limit", few, *sweep)),
        Step(
            "Plan from it.",
            "Read section 7, agree, sign. After that nothing on this page changes.",
            _shell("plan", *_planned(plan, stored)),
        ),
        Step(
            "Collect and check the requests.",
            f"As section 4 says, into `{FILE}`. Mend what this warns of.",
            _shell("workload", FILE),
        ),
        Step(
            "Measure.",
            "With nothing else running on the machine. If it breaks off, the same command goes on. `--limit` is the "
            f"number of lines in the file; the default takes fewer.{_about_drafts(plan, stored)}",
            _shell("sweep", "--workload", FILE, "--limit", many, *sweep),
        ),
        Step("Read the brief.", "Once, when the sweep has finished. It has the verdict.", _shell("brief")),
    ]
    if not served and batch == 1:
        words = "By another implementation, before the answer is used."
        found.append(Step("Count again.", words, _shell("check")))
    return found


def on_shipped_prompts(stored: StoredRun) -> bool:
    """Whether the run is on the prompts that come with specbench, which are nobody's traffic."""
    return stored.run.config.workload == DEFAULT_WORKLOAD


def _about_prompts(plan: Plan, stored: StoredRun | None, few: str) -> str:
    words = (
        f"{few} requests, drawn as section 4 says, in `{PILOT_FILE}`. They are spent: what has been looked at is not "
        "measured again."
    )
    if stored is None or on_shipped_prompts(stored):
        return words
    made = f"{text.code(plan.run)}, {text.count(plan.pilot_prompts or 0, 'prompt')}"
    return f"{words} This plan has its pilot already ({made}): go on with step 4, and keep its prompts out of `{FILE}`."


def _about_doctor(served: bool) -> str:
    words = "It finds a set-up that is broken and would look like a poor draft."
    if not served:
        return f"{words} If it exits 1, go no further."
    return (
        f"{words} It loads the models itself, so it cannot examine a server; where the same weights load here, ask it "
        "about those. What can be seen of a server from outside is checked at the start of every run."
    )


def _about_pilot(plan: Plan) -> str:
    time = about(minutes_for(plan, PILOT_PROMPTS))
    return "On the machine and with the settings of section 2." + (f" It takes {time}." if time else "")


def _about_drafts(plan: Plan, stored: StoredRun | None) -> str:
    named = plan.drafts if stored is None else len(stored.run.config.draft)
    if plan.drafts > named:
        return f" Name {text.count(plan.drafts - named, 'further draft')} with `--draft`."
    return f" Keep only {text.count(plan.drafts, 'draft')} of these." if plan.drafts < named else ""


def _options(plan: Plan, stored: StoredRun | None) -> list[Option]:
    """The options of the pilot's command; of its configuration where the command was not recorded."""
    if stored is None:
        return [("--target", "TARGET"), *[("--draft", "DRAFT")] * plan.drafts]
    argv = stored.run.provenance.argv
    if argv[1:2] in (("sweep",), ("measure",)):
        return _grouped(argv[2:])
    config = asdict(stored.run.config)
    given = {
        key: config[key] for key, each in _REPEATED.items() if key in _ALWAYS or config[key] not in (None, each.default)
    }
    return _grouped(command_line("sweep", given)[2:])


def _listed(value: Any) -> Any:
    """As it is read from JSON."""
    return list(value) if isinstance(value, tuple) else value


def _grouped(words: Iterable[str]) -> list[Option]:
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            options.append([word])
        elif options:
            options[-1].append(word)
    return list(options)


def _flag(option: Option) -> str:
    return option[0].partition("=")[0]


def _stated(plan: Plan, policy: Policy) -> list[str]:
    """What is agreed on, so that no default decides it."""
    asked = {"--gamma": _gammas(plan), "--repeats": f"{plan.repeats}", "--metric": plan.metric, **_asked(plan)}
    if policy.mix:
        asked["--mix"] = ",".join(f"{name}={share:.10g}" for name, share in policy.mix.items())
    if policy.max_added_gb is not None:
        asked["--max-added-gb"] = f"{policy.max_added_gb:.10g}"
    return [part for option in asked.items() for part in option]


def _planned(plan: Plan, stored: StoredRun | None) -> list[str]:
    """The newest run is the pilot, where this plan has none on the right traffic."""
    run = [] if plan.run is None or stored is None or on_shipped_prompts(stored) else [plan.run]
    asked = {
        "--half-width": f"{plan.half_width:.10g}",
        **_asked(plan),
        "--gamma": _gammas(plan),
        "--drafts": f"{plan.drafts}",
        "--repeats": f"{plan.repeats}",
        "--write": "plan.md",
    }
    return [*run, *(part for option in asked.items() for part in option)]


def _asked(plan: Plan) -> dict[str, str]:
    return {"--min-speedup": f"{plan.min_speedup:.10g}", "--confidence": f"{plan.confidence:.10g}"}


def _gammas(plan: Plan) -> str:
    return ",".join(map(str, plan.gammas))


def _shell(*argv: str) -> str:
    return shlex.join(["specbench", *(text.clean(part) for part in argv)])
