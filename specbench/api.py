"""The public Python interface, for notebooks and scripts: `measure` and `sweep` run, `load_run` opens what was run,
`compare` lays two runs side by side.

Everything comes from the code behind the command line, so that both say the same. Errors are those of
specbench.errors. docs/api.md has examples and every column.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from specbench.config import POLICY_SETTINGS, SETTINGS, load_config, override_policy
from specbench.errors import ConfigError, SpecbenchError, StoreError
from specbench.records import Call, CostPoint, Policy
from specbench.settings import Setting
from specbench.store import StoredRun, read_run
from specbench.text import did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from specbench.acceptance.replay import Text
    from specbench.analysis.compare import Comparison
    from specbench.analysis.contract import Summary
    from specbench.analysis.recorded import RecordedAcceptance
    from specbench.analysis.replayed import Replayed
    from specbench.run.task import Task

Location = str | os.PathLike[str]
Function = TypeVar("Function", bound=Callable[..., Any])

# Private texts, which no message may quote.
_PRIVATE = {
    "workload": "Name a file or hub:ID. A frame's to_json(FILE, orient='records', lines=True) writes one.",
    "system_prompt": "Give one text.",
}


def _takes(settings: Mapping[str, Setting]) -> Callable[[Function], Function]:
    """Name every setting in a function's signature, for help() and for a notebook that completes names."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        keys = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in settings]
        function.__dict__["__signature__"] = signature.replace(parameters=[*own, *keys])
        return function

    return decorate


@_takes(SETTINGS)
def sweep(
    *,
    config: Location | None = None,
    costs: Location | None = None,
    resume: bool | None = None,
    replay_only: bool = False,
    quiet: bool = False,
    **keys: object,
) -> Run:
    """`specbench sweep`: time the target alone and target + draft at every gamma, and open the run.

    `keys` are the settings of docs/reference.md, those of the policy included: `target`, `draft`, `workload`, `gamma`
    ("1..4" or [1, 2, 4]), `limit`, `min_speedup` and so on; None is not given. They go
    over those of the YAML file `config` (None: configs/default.yaml). `resume`: True demands an unfinished run, False
    starts anew, None goes on with one if there is one. `costs` is the folder of a probe. Progress goes to stderr unless
    `quiet`.

    Raises SpecbenchError. KeyboardInterrupt passes through; what was finished is kept, and the same call continues.
    """
    from specbench.run.task import task_of

    given = _plain(keys)
    task = task_of("sweep", given, config=_path(config), costs=_path(costs), resume=resume, replay_only=replay_only)
    return _done(task, quiet)


@_takes(SETTINGS)
def measure(
    *,
    config: Location | None = None,
    costs: Location | None = None,
    resume: bool | None = None,
    quiet: bool = False,
    **keys: object,
) -> Run:
    """`specbench measure`: the same at one gamma."""
    from specbench.run.task import task_of

    given = _plain(keys)
    task = task_of("measure", given, config=_path(config), costs=_path(costs), resume=resume)
    return _done(task, quiet)


@_takes(POLICY_SETTINGS)
def load_run(folder: Location, **policy: object) -> Run:
    """Open a run folder, finished or not. Keys of the policy, such as `min_speedup=1.2` or `mix={"code": 1.0}`, go over
    those that the run was started with. Raises StoreError, and ConfigError for a key or value that is not known."""
    stored = read_run(Path(folder))
    config = stored.run.config
    asked = Policy(**override_policy(asdict(config.policy), policy))
    return Run(replace(stored, run=replace(stored.run, config=replace(config, policy=asked))))


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run as it lies on disk, and what follows from it. Frames are made anew each time, so that changing one changes
    nothing here. Raises StoreError where the run has not measured what is asked for."""

    stored: StoredRun

    @property
    def folder(self) -> Path:
        return self.stored.folder

    @property
    def status(self) -> str:
        """ "finished", "interrupted", "failed", or "started" while it runs."""
        return self.stored.status

    @property
    def policy(self) -> Policy:
        """What the verdict is held against."""
        return self.stored.run.config.policy

    @cached_property
    def summary(self) -> Summary:
        """The object that `--json` prints (docs/contract.md)."""
        from specbench.analysis.summarise import summarise

        return summarise(self.stored)

    @property
    def verdict(self) -> Call:
        """On the whole run: that of the draft chosen among all, as `--strict` has it."""
        return self.summary.verdict

    @property
    def trials(self) -> pd.DataFrame:
        """One row for each trial that counts, at every load."""
        from specbench.report.notebook import TrialRow, frame, trial_rows

        return frame(TrialRow, trial_rows(self.stored.counted))

    @property
    def rounds(self) -> pd.DataFrame:
        """One row for each round of these trials."""
        from specbench.report.notebook import RoundRow, frame, round_rows

        return frame(RoundRow, round_rows(self.stored.counted))

    @property
    def gammas(self) -> pd.DataFrame:
        """One row for each draft and gamma."""
        from specbench.analysis.contract import GammaResult
        from specbench.report.notebook import by_draft

        return by_draft(GammaResult, {draft.draft: draft.gammas for draft in self.summary.drafts})

    @property
    def categories(self) -> pd.DataFrame:
        """One row for each draft and category, at the category's own best gamma."""
        from specbench.analysis.contract import CategoryResult
        from specbench.report.notebook import by_draft

        found = {draft.draft: draft.categories for draft in self.summary.drafts}
        return by_draft(CategoryResult, found, without="gammas")

    @property
    def loads(self) -> pd.DataFrame:
        """One row for each load, draft and gamma of a run on a server; none of a run in process."""
        from specbench.analysis.served import LoadResult
        from specbench.report.notebook import frame

        return frame(LoadResult, self.summary.loads)

    @property
    def costs(self) -> pd.DataFrame:
        """One row for each point at which a model was timed alone; none where none was."""
        from specbench.report.notebook import frame

        return frame(CostPoint, self.stored.run.probe or ())

    def replay(self, gammas: object = "1..8", cutoff: float = 0.0) -> pd.DataFrame:
        """One row for each draft and gamma, measured or not: expected counts from the stored positions. Drafting stops
        before a token of which the draft is less sure than `cutoff`."""
        from specbench.analysis.replayed import ReplayGamma
        from specbench.report.notebook import by_draft

        asked = load_config(None, {"gamma": _plain_value(gammas), "cutoff": cutoff})
        found = replay_of(self.stored, asked.gamma, asked.cutoff)
        return by_draft(ReplayGamma, {draft.draft: draft.gammas for draft in found.drafts})

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that this run has data for."""
        from specbench.report.figures import available

        return tuple(available(self.summary))

    def figure(self, name: str) -> Figure:
        """One of the brief's `figures`; nothing is written."""
        from specbench.report.figures import draw

        if name not in self.figures:
            hint = did_you_mean(str(name), self.figures, f"It has {', '.join(self.figures)}.", "{!r}")
            raise ConfigError(f"This run has no figure {name!r}", where=str(self.folder), hint=hint)
        return draw(name, self.summary)

    def brief(self) -> str:
        """The decision brief as Markdown; its figures are named, not written."""
        from specbench.report.brief import render_brief

        return render_brief(self.summary)

    def write_brief(self, folder: Location | None = None) -> Path:
        """Write brief.md and figures/ to `folder` (None: the run folder); returns the path of the brief."""
        from specbench.report.brief import write_brief

        return write_brief(self.summary, _path(folder))

    def write_alerts(self, folder: Location | None = None) -> tuple[Path, Path]:
        """Write alerts.yml, rules for Prometheus over the engine's own counters, and dashboard.json for Grafana, to
        `folder` (None: the run folder); returns their paths. Raises ConfigError for a run that was not on a server, or
        whose verdict is NO-GO."""
        from specbench.report.alerts import write_alerts

        return write_alerts(self.summary, _path(folder) or self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        from specbench import text
        from specbench.report.notebook import verdict_table

        try:
            return verdict_table(self.summary)
        except SpecbenchError as error:
            return text.escape(error.line())

    def _repr_html_(self) -> str:
        """The same where a notebook prefers HTML."""
        from specbench.report.notebook import as_html

        return as_html(self._repr_markdown_())


def compare(a: Location | Run, b: Location | Run) -> Compared:
    """`specbench compare`: two runs of the same prompts, each a folder or an open Run. Raises StoreError where they
    have no draft at one gamma over one prompt in common."""
    from specbench.analysis.compare import compared

    first, second = (each.stored if isinstance(each, Run) else read_run(Path(each)) for each in (a, b))
    return Compared(compared(first, second))


@dataclass(frozen=True, eq=False, repr=False)
class Compared:
    """Two runs side by side; `comparison` is the object that `compare --json` prints."""

    comparison: Comparison

    @property
    def gammas(self) -> pd.DataFrame:
        """One row for each draft and gamma that both runs have: A's numbers, B's, and B's speedup over A's."""
        from specbench.analysis.compare import ComparedGamma
        from specbench.report.notebook import by_draft

        found = {draft.draft: draft.gammas for draft in self.comparison.drafts}
        return by_draft(ComparedGamma, found, without="categories")

    def __repr__(self) -> str:
        return f"Compared({self.comparison.a.run!r}, {self.comparison.b.run!r})"

    def _repr_markdown_(self) -> str:
        from specbench.report.page import comparison_markdown

        return comparison_markdown(self.comparison)

    def _repr_html_(self) -> str:
        from specbench.report.notebook import as_html

        return as_html(self._repr_markdown_())


def replay_of(stored: StoredRun, gammas: Sequence[int], cutoff: float, *, best: bool = False) -> Replayed:
    """The replay of a run, priced by its own probe where it has one; with `best` also the search over cut-offs. Raises
    StoreError where nothing was scored, or not up to the largest of `gammas`."""
    from specbench.acceptance.positions import read_positions
    from specbench.analysis.replayed import prices_of, replayed

    where = str(stored.folder)
    if stored.run.command == "probe":
        raise StoreError("This folder holds a probe, no run", where=where, hint="Name the folder of a sweep.")
    texts = read_positions(stored.folder)
    if not texts:
        served = stored.run.served is not None
        hint = "Score its drafts with sweep --replay-only on the same server." if served else "Run specbench sweep."
        raise StoreError("Nothing to replay in this run yet", where=where, hint=hint)
    scored = list(_scored(texts, max(gammas), where))
    confidence = stored.run.config.policy.confidence
    return replayed(where, scored, gammas, cutoff, confidence, *prices_of(stored.run), best=best)


def _scored(texts: Iterable[Text], gamma: int, where: str) -> Iterator[Text]:
    """The same texts. Raises StoreError at one that was not scored up to `gamma`."""
    for text in texts:
        scored = text.longest
        if scored is not None and scored < gamma:
            raise StoreError(
                f"{text.draft} was scored up to gamma {scored} alone",
                where=where,
                hint=f"Name gammas up to {scored}, or measure a larger one.",
            )
        yield text


def recorded_acceptance(
    stored: StoredRun, gammas: Sequence[int], cutoff: float = 0.0, costs: Path | None = None
) -> RecordedAcceptance:
    """What drafts would have got on the answers of a log. `costs` is the folder of a probe, whose timings predict a
    speedup; None: the run's own, where it has one. Raises StoreError where nothing was scored, or not up to the largest
    of `gammas`, and where the probe has not timed a draft."""
    from specbench.acceptance.positions import iterate_positions
    from specbench.analysis.contract import SCHEMA
    from specbench.analysis.recorded import PROMPTS, RecordedAcceptance, recorded_drafts
    from specbench.analysis.replayed import cost_cautions, priced, prices_of
    from specbench.kinds import THIRDS

    run = priced(stored.run, costs)
    readers, points = prices_of(run)
    texts = _scored(iterate_positions(stored.folder), max(gammas), str(stored.folder))
    policy = run.config.policy
    lengths = PROMPTS if policy.by_length in ((), THIRDS) else (0, *policy.by_length)
    drafts = recorded_drafts(texts, gammas, cutoff, policy.confidence, readers if points else None, points, lengths)
    if not drafts or run.answers is None:
        raise StoreError("No answer was scored yet", where=str(stored.folder), hint="Run the same command again.")
    return RecordedAcceptance(
        run=str(stored.folder),
        schema=SCHEMA,
        target=run.config.target,
        confidence=run.config.policy.confidence,
        cutoff=cutoff,
        answers=run.answers,
        drafts=drafts,
        costs=run.probe_from if points else None,
        warnings=(*run.warnings, *(cost_cautions(drafts, points) if points else ())),
    )


def _done(task: Task, quiet: bool) -> Run:
    from specbench.run.task import carry_out

    try:
        folder = carry_out(task, quiet=quiet)
    except KeyboardInterrupt as stop:
        stop.add_note("specbench: what was finished is kept, and the same call continues where it stopped.")
        raise
    return load_run(folder)


def _plain(keys: Mapping[str, object]) -> dict[str, object]:
    """Keys as YAML has them, paths as text. Raises ConfigError for a private text that is no text, unquoted."""
    given = {key: _plain_value(value) for key, value in keys.items()}
    for key, hint in _PRIVATE.items():
        if not isinstance(given.get(key), str | None):
            raise ConfigError(f"`{key}` is a {type(given[key]).__name__}, not a text", where="arguments", hint=hint)
    return given


def _plain_value(value: object) -> object:
    if isinstance(value, list | tuple | range):
        return [_plain_value(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _path(location: Location | None) -> Path | None:
    return None if location is None else Path(location)
