"""A stored run for a notebook: pandas frames of what was measured, and its verdict as a short table in Markdown.

A frame's columns are the fields of one record, by its names and in its order; a record within it is spelt out as
`name_field`. What is absent is missing (pd.NA, NaN among floats, None among tuples), never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pandas as pd
from markdown_it import MarkdownIt

from specbench.acceptance.metrics import trial_counts
from specbench.analysis.contract import Summary
from specbench.records import ArmKind, Divergence, Finish, Load, ServerStats, Times, Trial
from specbench.report.brief import candidates
from specbench.report.dialect import UNLINKED
from specbench.report.page import markdown

_DTYPES = {int: "int64", float: "float64", bool: "bool", str: "string", Literal: "string"}
_WITH_ROOM = {"int64": "Int64", "bool": "boolean"}  # for what is missing; the others have it


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A counted trial, without any text. `rounds`, `drafted` and `accepted` are totals of the trial, None for the
    target alone and where a server does not tell them. `concurrency` is None where requests arrive at a `rate`."""

    prompt_id: str
    prompt_sha256: str
    category: str
    kind: ArmKind
    draft: str | None
    gamma: int | None
    concurrency: int | None
    rate: float | None
    repeat: int
    prompt_tokens: int
    output_tokens: int
    decode_tokens: int
    finish: Finish
    rounds: int | None
    drafted: int | None
    accepted: int | None
    prefill_s: float
    draft_prefill_s: float | None
    draft_s: float | None
    verify_s: float | None
    other_s: float | None
    decode_s: float
    total_s: float
    identical: bool | None
    diverged: Divergence | None
    output_sha256: str
    members: tuple[str, ...]
    load_before: float | None
    load_after: float | None
    other_cores: float | None
    disturbed: bool
    attempt: int
    told: ServerStats | None
    begun_s: float | None
    stretch: int | None


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round of a counted trial; `round` counts from 0. In a batch the rounds of its prompts follow one another."""

    prompt_id: str
    category: str
    draft: str
    gamma: int
    round: int
    drafted: int
    accepted: int
    repeat: int
    concurrency: int | None
    rate: float | None


_AS_THEY_ARE = {field.name for field in fields(TrialRow)} & {field.name for field in fields(Trial)} - {
    "category", "rounds", "drafted", "accepted", "members"
}  # fmt: skip
_TIMES = {field.name for field in fields(TrialRow)} & {field.name for field in fields(Times)}


def trial_rows(trials: Iterable[Trial]) -> Iterator[TrialRow]:
    for trial in trials:
        arm, times = trial.arm, trial.times
        counts = None if arm.gamma is None else trial_counts(trial, max([arm.gamma, *trial.drafted]))
        yield TrialRow(
            **{name: getattr(trial, name) for name in _AS_THEY_ARE},
            **{name: getattr(times, name) for name in _TIMES},
            category=trial.category or "all",
            kind=arm.kind,
            draft=arm.draft,
            gamma=arm.gamma,
            concurrency=_concurrency(arm.load),
            rate=arm.load.rate,
            decode_tokens=trial.decode_tokens,
            decode_s=times.decode_s,
            rounds=None if counts is None else counts.rounds,
            drafted=None if counts is None else counts.drafted,
            accepted=None if counts is None else counts.accepted,
            members=trial.members or (trial.prompt_id,),
        )


def round_rows(trials: Iterable[Trial]) -> Iterator[RoundRow]:
    for trial in trials:
        arm = trial.arm
        if arm.draft is None or arm.gamma is None:
            continue
        for number, found in enumerate(trial.rounds):
            yield RoundRow(
                prompt_id=trial.prompt_id,
                category=trial.category or "all",
                draft=arm.draft,
                gamma=arm.gamma,
                round=number,
                drafted=found.drafted,
                accepted=found.accepted,
                repeat=trial.repeat,
                concurrency=_concurrency(arm.load),
                rate=arm.load.rate,
            )


def _concurrency(load: Load) -> int | None:
    return load.concurrency if load.rate is None else None


def frame(kind: type, records: Iterable[Any], without: str | None = None) -> pd.DataFrame:
    """Records of the dataclass `kind` as a frame, also where there are none; without one of their fields."""
    rows = list(records)
    return pd.DataFrame(
        {
            "_".join(path): pd.Series([_value(row, path) for row in rows], dtype=dtype)
            for path, dtype in _columns(kind)
            if path[0] != without
        }
    )


def by_draft(kind: type, records: Mapping[str, Sequence[Any]], without: str | None = None) -> pd.DataFrame:
    """The same of each draft's records, with the draft in a column before the others."""
    found = frame(kind, [row for rows in records.values() for row in rows], without)
    names = [draft for draft, rows in records.items() for _ in rows]
    found.insert(0, "draft", pd.Series(names, dtype="string"))
    return found


def _columns(kind: type, above: tuple[str, ...] = (), optional: bool = False) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of the field, pandas type) for every field of a dataclass and of the dataclasses in it."""
    for name, hint in get_type_hints(kind).items():
        parts = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        missing = optional or NoneType in parts
        (core,) = parts - {NoneType}
        if isinstance(core, type) and is_dataclass(core):
            yield from _columns(core, (*above, name), missing)
        else:
            dtype = _DTYPES.get(get_origin(core) or core, "object")
            yield (*above, name), _WITH_ROOM.get(dtype, dtype) if missing else dtype


def _value(record: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        record = None if record is None else getattr(record, name)
    return record


def as_html(markdown: str) -> str:
    """What a notebook shows, as HTML; any that a name may hold stays text."""
    html: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return html


def verdict_table(summary: Summary) -> str:
    """What a notebook shows of a run: its verdict for each draft, in Markdown that no name in it can break."""
    return markdown("notebook.j2", {"s": summary, "candidates": candidates(summary)}, UNLINKED)
