"""The measurement plan: what a team agrees on before anything is measured, as one page of Markdown, with the order of
work, each step with its command: the pilot's own, as far as it is known.

Every number comes from the Plan, its policy and the pilot's folder. No prompt text is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from specbench.analysis.checked import countable
from specbench.analysis.facts import MANY_CUT, shell
from specbench.analysis.plan import OWN_SPREAD, Plan, amounts, minutes_for
from specbench.analysis.stops import STATES, any_time, before_the_sweep, read_evidence, too_few
from specbench.analysis.summarise import summarise
from specbench.config import RUN_SETTINGS, SETTINGS
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import MAX_PROMPTS
from specbench.errors import StoreError
from specbench.records import Policy, Reason
from specbench.report.dialect import UNLINKED
from specbench.report.page import markdown
from specbench.run.task import command_line
from specbench.shipped import DEFAULT_WORKLOAD
from specbench.store import StoredRun
from specbench.workload.cautions import TOLERATED_SHARE

TITLE = "# Measurement plan"
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


def plan_document(plan: Plan, policy: Policy, stored: StoredRun | None = None) -> str:
    """The page, from the plan, its policy and its pilot (None without one); the same three give the same text. Raises
    StoreError or ConfigError where the pilot cannot be summarised."""
    pilot = None if stored is None else read_evidence(stored, summarise(stored), plan)
    facts = pilot.facts if pilot else None
    found = amounts(plan, policy.mix)
    each = facts.batch_size if facts else 1
    requests = None if found.prompts is None else found.prompts * each
    values = {
        "plan": plan,
        "policy": policy,
        "found": found,
        "facts": facts,
        "summary": pilot.summary if pilot else None,
        "shipped": stored is not None and on_shipped_prompts(stored),
        "each": each,
        "requests": requests,
        "early": [*any_time(plan, pilot), too_few(plan, found.prompts, pilot)],
        "late": list(before_the_sweep(plan, policy, pilot)),
        "states": STATES,
        "steps": steps(plan, policy, stored, requests),
        "file": FILE,
        "minutes_for": partial(minutes_for, plan),
        "least": MIN_PROMPTS,
        "most": MAX_PROMPTS,
        "own_spread": OWN_SPREAD,
        "many_cut": MANY_CUT,
        "repeated": TOLERATED_SHARE,
    }
    return markdown("plan.j2", values, UNLINKED)


def write_document(page: str, path: Path) -> None:
    """Write the page to `path`. Raises StoreError where something else is there, or it cannot be written."""
    try:
        if path.exists() and not path.read_bytes().startswith(TITLE.encode()):
            raise StoreError(
                "There is a file already that is no measurement plan",
                where=str(path),
                hint="Give --write another name.",
            )
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"Cannot write the plan: {error.strerror}", where=str(path), hint="Give --write another name."
        ) from None


def steps(
    plan: Plan, policy: Policy, stored: StoredRun | None, requests: int | None
) -> list[tuple[Reason, str | None]]:
    """From the pilot's prompts to the brief. `requests` is what the sweep measures."""
    served = stored is not None and stored.run.on_server
    batch = 1 if stored is None else stored.run.config.batch_size
    options = _options(plan, stored)
    doctor = [part for option in options if _flag(option) in _DOCTORS for part in option]
    others = [part for option in options if _flag(option) not in _LEFT_OUT for part in option]
    sweep = [*others, *_stated(plan, policy)]
    few, many = str(PILOT_PROMPTS * batch), "N" if requests is None else str(requests)
    ready = stored is not None and not on_shipped_prompts(stored)
    made = {"run": plan.run, "made": (plan.pilot_prompts or 0) if ready else None}
    more = plan.drafts - (plan.drafts if stored is None else len(stored.run.config.draft))
    return [
        (
            Reason("pilot-prompts", {"few": few, "pilot_file": PILOT_FILE, "file": FILE, **made}),
            _command("workload", PILOT_FILE),
        ),
        (
            Reason("doctor", {"served": served}),
            None if served else _command("doctor", "--workload", PILOT_FILE, *doctor),
        ),
        (
            Reason("pilot", {"minutes": minutes_for(plan, PILOT_PROMPTS)}),
            _command("sweep", "--workload", PILOT_FILE, "--limit", few, *sweep),
        ),
        (Reason("plan"), _command("plan", *_planned(plan, stored))),
        (Reason("collect", {"file": FILE}), _command("workload", FILE)),
        (
            Reason("measure", {"more": more, "drafts": plan.drafts}),
            _command("sweep", "--workload", FILE, "--limit", many, *sweep),
        ),
        (Reason("brief"), _command("brief")),
        *([(Reason("check"), _command("check"))] if batch == 1 and _countable(stored) else []),
    ]


def _countable(stored: StoredRun | None) -> bool:
    """Whether `specbench check` compares anything of it."""
    if stored is None:
        return True
    heads = {spec: model.head for spec, model in stored.run.drafts.items()}
    return not stored.run.on_server and bool(countable(heads, stored.run.config.sampling))


def on_shipped_prompts(stored: StoredRun) -> bool:
    """Whether the run is on the prompts that come with specbench, which are nobody's traffic."""
    return stored.run.config.workload == DEFAULT_WORKLOAD


def _options(plan: Plan, stored: StoredRun | None) -> list[Option]:
    """The options of the pilot's command; of its configuration where the command was not recorded."""
    if stored is None:
        return [("--target", "TARGET"), *[("--draft", "DRAFT")] * plan.drafts]
    argv = stored.run.provenance.argv
    if argv[1:2] not in (("sweep",), ("measure",)):
        config = asdict(stored.run.config)
        argv = command_line(
            "sweep",
            {
                key: config[key]
                for key, each in _REPEATED.items()
                if key in _ALWAYS or config[key] not in (None, each.default)
            },
        )
    return _grouped(argv[2:])


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


def _command(*argv: str) -> str:
    return shell(["specbench", *argv])
