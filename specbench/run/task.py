"""What `measure` and `sweep` do, whoever asks: keys and options in, checked, the finished run folder out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from specbench.config import NO_TARGET, SERVED, SETTINGS, RunConfig, load_config
from specbench.errors import ConfigError
from specbench.settings import by_name
from specbench.shipped import shipped

Command = Literal["measure", "sweep"]

# Answers of a log are read to their ends: no more tokens than a setting may say.
LONGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class Task:
    """A run that was asked for, checked. `gammas` are the draft lengths to measure; `mode` is "auto", "resume" or
    "fresh"; `costs` is the folder of a probe, or None; `argv` is how one would type all that."""

    command: Command
    config: RunConfig
    gammas: tuple[int, ...]
    mode: str
    replay_only: bool
    costs: Path | None
    argv: tuple[str, ...]


def task_of(
    command: Command,
    keys: Mapping[str, Any],
    *,
    config: Path | None = None,
    costs: Path | None = None,
    resume: bool | None = None,
    replay_only: bool = False,
) -> Task:
    """`keys` are those of RunConfig and of its policy, None where not given; they go over those of the YAML file
    `config` (None: configs/default.yaml). `resume`: True demands an unfinished run, False starts a new one. Raises
    ConfigError."""
    given = by_name({key: value for key, value in keys.items() if value is not None}, SETTINGS, "flags")
    typed = {"config": config, **given, "replay_only": replay_only, "costs": costs}
    if "server" in given:
        # What runs there is not what the configuration names, unless the user says so.
        given = {"target": SERVED, "draft": [SERVED]} | given
    settings = load_config(config or shipped("configs/default.yaml"), given)
    gammas = settings.gamma
    if settings.recorded:
        replay_only = True  # there is no wall clock in a log
        _require_recordable(settings)
        if config is None:
            # What comes with specbench for a first look, a few short texts, does not hold for a log.
            settings = replace(
                settings,
                limit=settings.limit if "limit" in given else None,
                max_new_tokens=settings.max_new_tokens if "max_new_tokens" in given else LONGEST,
            )
    elif settings.target == NO_TARGET or settings.tokenizer is not None or settings.verify_answers or settings.ray:
        named = "--ray" if settings.ray is not None else "--tokenizer or --verify-answers"
        where = "--target" if settings.target == NO_TARGET else named
        raise ConfigError(
            "The target writes the answers", where=where, hint="Add --answers recorded where a log has them."
        )
    if settings.sessions:
        _require_sessions(settings, replay_only, costs)
    if costs is not None and settings.server is not None:
        raise ConfigError(
            "A running server is not predicted from a probe of another",
            where="--costs",
            hint="Let specbench start it as it was probed: --engine or --launch.",
        )
    if costs is not None and replay_only and not settings.recorded:
        raise ConfigError("Costs predict a wall clock", where="--costs", hint="Drop --replay-only.")
    if replay_only and settings.time_budget_s is not None:
        raise ConfigError("Only what is timed ends early", where="--time-budget", hint="Leave it out, or use --limit.")
    if command == "measure":
        if replay_only:
            where = "--answers" if settings.recorded else "--replay-only"
            raise ConfigError("measure measures the wall clock", where=where, hint="Use specbench sweep.")
        if "gamma" not in given:
            gammas = (settings.measure_gamma,)
        elif len(gammas) != 1:
            raise ConfigError(
                f"measure takes one gamma, not {len(gammas)}", where="--gamma", hint="Use specbench sweep."
            )
    mode = {None: "auto", True: "resume", False: "fresh"}[resume]
    argv = command_line(command, typed if command == "sweep" else typed | {"gamma": gammas})
    return Task(command, settings, gammas, mode, replay_only, costs, argv)


def _require_recordable(settings: RunConfig) -> None:
    """Raises ConfigError for what a run over recorded answers has not."""
    refused = (
        (settings.launch is not None or (settings.engine != "local" and settings.draft_server is None),
         "No server is started for recorded answers", "--engine or --launch",
         "Leave it out, or name a running one of the draft: --draft-server."),
        (settings.target == SERVED, "The target's tokenizer reads the answers", "--target", "Name the model itself."),
        (settings.ray is not None and settings.draft_server is not None,
         "Workers load their models, and ask no server", "--ray", "Leave it out, or --draft-server."),
        (settings.spec_server is not None, "Nothing speculates over recorded answers", "--spec-server",
         "Leave it out."),
        (settings.batch_size > 1, "Nothing is timed, so batches have no size", "--batch-size", "Leave it out."),
        (settings.repeats > 1, "An answer is there once", "--repeats", "Leave it out."),
        (settings.column is not None, "A log is known by its form", "--column", "Leave it out."),
    )  # fmt: skip
    for wrong, what, where, hint in refused:
        if wrong:
            raise ConfigError(what, where=where, hint=hint)


def _require_sessions(settings: RunConfig, replay_only: bool, costs: Path | None) -> None:
    """Raises ConfigError where turns of conversations cannot be measured."""
    refused = (
        (not settings.served, "In process no prefix cache is kept from one turn to the next", "Add --engine."),
        (replay_only, "Turns are timed, and nothing is here", "Leave it out, or score a log by --answers recorded."),
        (costs is not None, "A probe knows no turns, so that it predicts none of their times", "Drop --costs."),
    )
    for wrong, what, hint in refused:
        if wrong:
            raise ConfigError(what, where="--sessions", hint=hint)


def carry_out(task: Task, *, quiet: bool = False) -> Path:
    """Run or continue, with progress on stderr unless `quiet`; returns the run folder. KeyboardInterrupt passes through
    after the folder is marked, and every other failure is a SpecbenchError or a bug."""
    from specbench.run.progress import RunProgress
    from specbench.run.session import run

    with RunProgress(quiet=quiet) as progress:
        return run(
            task.config,
            task.command,
            task.gammas,
            progress,
            mode=task.mode,
            replay_only=task.replay_only,
            costs=task.costs,
            argv=task.argv,
        )


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a task would do: `prompts` of `prompts_available` in `arms` arms, the target alone twice among them.
    `trials_done` of `trials` lie in the unfinished run `continues`. `seconds` is what the rest would take at the pace
    of the run `pace_of`, the newest of the same models, engine and machine."""

    prompts: int
    prompts_available: int
    arms: int
    trials: int
    max_new_tokens: int
    continues: str | None = None
    trials_done: int = 0
    seconds: float | None = None
    pace_of: str | None = None


def dry_run(task: Task) -> DryRun:
    """Read the prompts and the runs that are there; load no model, start no server, write nothing. Raises as a run does
    for what can be known by then; which prompts the models cannot take is seen when they are loaded."""
    from specbench.drafters import with_cutoff
    from specbench.run.plan import plan_arms
    from specbench.run.record import prompts_of
    from specbench.run.resume import pace_of, progress_of, unfinished

    config = replace(
        task.config,
        gamma=task.gammas,
        draft=tuple(with_cutoff(draft, task.config.cutoff) for draft in task.config.draft),
    )
    if config.recorded:
        available, chosen = _answers(config)
    else:
        workload, prompts = prompts_of(config)
        available, chosen = len(workload.prompts), len(prompts)
    arms = [] if task.replay_only else plan_arms(config, task.gammas)
    earlier = unfinished(config, "replay" if task.replay_only else task.command, task.mode)
    done = len(progress_of(earlier.trials)[1]) if earlier is not None else 0
    units = chosen // config.batch_size
    trials = units * len(arms) * config.repeats
    per_token_s, source = pace_of(config, arms)
    left = (trials - done) * config.max_new_tokens * config.batch_size
    return DryRun(
        prompts=units * config.batch_size,
        prompts_available=available,
        arms=len(arms),
        trials=trials,
        max_new_tokens=config.max_new_tokens,
        continues=None if earlier is None else str(earlier.folder),
        trials_done=done,
        seconds=None if per_token_s is None else per_token_s * left,
        pace_of=source,
    )


def _answers(config: RunConfig) -> tuple[int, int]:
    from specbench.run.recorded import surveyed

    _, survey, categories = surveyed(config)
    return survey.answers, categories.total()


def command_line(command: str, given: Mapping[str, object]) -> tuple[str, ...]:
    """Words that the command line reads as this: what run.json keeps, and how the brief says to run again. `given` are
    settings and the command's own options by name; what is not given (None, False) and what has no flag is left out,
    and so is the text of a private setting."""
    words = ["specbench", command]
    for name, value in given.items():
        setting = SETTINGS.get(name)
        if value is None or value is False or (setting is not None and not setting.declared.on):
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif setting is not None and setting.declared.private:
            words += [flag, "..."]
        elif isinstance(value, list | tuple) and (setting is None or setting.repeated):
            words += [word for each in value for word in (flag, str(each))]
        elif isinstance(value, Mapping) and setting is not None and setting.declared.metavar == "JSON":
            words += [flag, json.dumps(value)]
        else:
            words += [flag, _word(value)]
    return tuple(words)


def _word(value: object) -> str:
    """As one writes it behind a flag: `1,2,4`, `code=0.6,chat=0.4`."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={share}" for name, share in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
