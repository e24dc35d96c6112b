"""What is to be pasted for: the draft as it was measured, how its models are named on an engine's command line, and
where categories disagree which of them it is for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specbench.analysis.contract import CategoryResult, DraftResult
from specbench.analysis.facts import Facts
from specbench.config import SERVED
from specbench.drafters import DraftSpec
from specbench.models.embedded import TITLES
from specbench.records import Call, Reason, Sampling

Role = Literal["target", "draft"]
Language = Literal["sh", "python"]

# `org/model@revision`; anything else with an @ is a path.
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")


@dataclass(frozen=True, slots=True)
class Plan:
    """One draft at one gamma as a run measured it, with the run's `facts`. `target` is its name in the run; `on` is the
    engine that it was measured on, None in process and where that is not known."""

    spec: DraftSpec
    gamma: int
    target: str
    facts: Facts
    on: str | None = None

    @property
    def sampling(self) -> Sampling:
        return self.facts.sampling

    @property
    def head(self) -> str | None:
        """The kind of the draft head, None for a model."""
        loaded = self.facts.drafts.get(self.spec.text)
        return loaded.head if loaded is not None else None

    @property
    def proposed(self) -> int:
        """Tokens that the look-up proposes at most."""
        longest = self.spec.ngram.longest if self.spec.ngram is not None else None
        return min(self.gamma, longest or self.gamma)

    @property
    def down_to(self) -> int:
        """The fewest tokens that the measured look-up matched: llama.cpp's matches n and no fewer."""
        if self.spec.ngram is None:
            return 0
        return self.spec.ngram.n if self.on == "llama.cpp" else self.spec.ngram.shortest

    @property
    def latest(self) -> bool:
        """Whether the measured look-up copied the latest match, as llama.cpp does, and not the earliest."""
        return self.on == "llama.cpp"


@dataclass(frozen=True, slots=True)
class Named:
    """A model as an engine is told of it. `legend` says what a placeholder stands for, None for a name that is real."""

    name: str
    revision: str | None = None
    legend: Reason | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What to paste into one engine. `request` is what each request has to say beside, the inside of a JSON object;
    `differs` says where it is not quite what was measured, `legends` what its placeholders stand for."""

    language: Language
    code: str
    differs: tuple[Reason, ...] = ()
    request: str = ""
    legends: tuple[Reason, ...] = ()


def given(
    code: str, differs: Sequence[Reason | None], models: Sequence[Named], request: str = "", language: Language = "sh"
) -> Given:
    """Without what does not apply."""
    legends = tuple(model.legend for model in models if model.legend is not None)
    return Given(language, code, tuple(each for each in differs if each is not None), request, legends)


def directory(plan: Plan, role: Role) -> Named:
    """For engines that read a Hugging Face directory or a hub id."""
    name = _name(plan, role)
    place = f"path/to/{role}"
    if name == SERVED or name in TITLES:
        # A server told the name of its GGUF file, which this is not.
        return Named(place, legend=_legend("named", place, name))
    if name.lower().endswith(".gguf"):
        return Named(place, legend=Reason("made-from", {"place": place, "name": name}))
    pinned = _PINNED.fullmatch(name)
    return Named(pinned[1], pinned[2]) if pinned else Named(_path(name))


def gguf(plan: Plan, role: Role) -> Named:
    """For llama.cpp, which reads a GGUF file and nothing else."""
    name = _name(plan, role)
    if name.lower().endswith(".gguf"):
        return Named(_path(name))
    place = f"path/to/{role}.gguf"
    loaded = plan.facts.target if role == "target" else plan.facts.drafts.get(plan.spec.text)
    called = loaded.name if loaded is not None and loaded.name not in (loaded.spec, name) else None
    return Named(place, legend=_legend("gguf", place, name, called))


def shell(options: Sequence[Sequence[str]]) -> str:
    """A command line, one option with its value a line; whatever is in a name stays one word of it."""
    return " \\\n  ".join(shlex.join(printable(part) for part in option) for option in options)


def drafts_otherwise(plan: Plan, engine: str, *, option: bool) -> list[Reason]:
    """Where an engine drafts greedily (unless an `option` is set) and has the penalty on the target alone: in process
    drafts are drawn as the target's tokens, and the penalty is on them as well."""
    sampling, found = plan.sampling, list[Reason]()
    if plan.facts.served or plan.spec.kind != "model":
        return found
    if not sampling.greedy and not plan.spec.greedy:
        values = {"engine": engine, "option": option, "temperature": sampling.temperature}
        found.append(Reason("likeliest-drafts", values))
    if sampling.penalised:
        found.append(Reason("no-penalty-on-drafts", {"engine": engine}))
    return found


def printable(name: str) -> str:
    """The name without characters that a terminal would obey or not show; "?" stands for them."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _name(plan: Plan, role: Role) -> str:
    return plan.target if role == "target" else plan.spec.model or ""


def _legend(code: str, place: str, name: str, called: str | None = None) -> Reason:
    given = None if name == SERVED else name
    return Reason(code, {"place": place, "name": given, "called": called or TITLES.get(name)})


def _path(name: str) -> str:
    """As it is, but no engine would expand `~`, and a leading dash would be read as an option."""
    if name.startswith("~"):
        with suppress(RuntimeError):  # a server may know a home directory that is not here
            return str(Path(name).expanduser())
    return f"./{name}" if name.startswith("-") else name


@dataclass(frozen=True, slots=True)
class Routing:
    """What to switch on where the categories of a draft disagree and one at least is a GO: (verdict, categories, their
    share of what runs). `mixed` says whether that is of the stated traffic or of the run's prompts."""

    parts: tuple[tuple[Call, tuple[CategoryResult, ...], float | None], ...]
    mixed: bool

    @property
    def on(self) -> tuple[CategoryResult, ...]:
        return self.parts[0][1]


def routing(draft: DraftResult, mix: Mapping[str, float] | None) -> Routing | None:
    """None where all categories agree, or none is a GO."""
    rows = draft.by_speedup
    calls: tuple[Call, ...] = ("GO", "NO-GO", "UNCLEAR")
    parts = [(call, tuple(row for row in rows if row.verdict == call)) for call in calls]
    found = [(call, part, _weight(part, mix)) for call, part in parts if part]
    total = sum(weight for _, _, weight in found)
    if len(found) < 2 or found[0][0] != "GO":
        return None
    return Routing(
        tuple((call, part, weight / total if total else None) for call, part, weight in found), mixed=bool(mix)
    )


def gamma_to_paste(routes: Routing | None, gamma: int, call: Call, mix: Mapping[str, float] | None) -> int:
    """The gamma of the whole run where that is a GO. Else a server is for the categories that are one, and has the
    gamma of that with the most traffic."""
    if call == "GO" or routes is None:
        return gamma
    return max(routes.on, key=lambda category: _weight([category], mix)).best_gamma


def _weight(categories: Sequence[CategoryResult], mix: Mapping[str, float] | None) -> float:
    return sum(mix.get(c.category, 0.0) if mix else c.prompts for c in categories)
