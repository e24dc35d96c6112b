"""What is to be pasted for: the draft as it was measured, and how its models are named on an engine's command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specbench import text
from specbench.config import SERVED
from specbench.drafters import DraftSpec
from specbench.models.embedded import TITLES
from specbench.records import Sampling

Role = Literal["target", "draft"]

# `org/model@revision`; anything else with an @ is a path.
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")


@dataclass(frozen=True, slots=True)
class Plan:
    """One draft at one gamma as a run measured it. `target` is its name in the run; the titles are what the models are
    called besides, None where nothing else. `served` says that it was measured on a server, `on` on which engine; None
    in process and where the engine is not known. `ends` are the ids with which texts ended, empty where they are not
    known; `templated` is whether a chat template wrote the prompts; `head` is the kind of draft head, None for a
    model."""

    spec: DraftSpec
    gamma: int
    target: str
    sampling: Sampling
    target_title: str | None = None
    draft_title: str | None = None
    precision: str | None = None
    max_new_tokens: int | None = None
    batch_size: int = 1
    served: bool = False
    on: str | None = None
    ends: tuple[int, ...] = ()
    templated: bool = False
    head: str | None = None

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
    legend: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What to paste into one engine. `request` is what each request has to say beside, in Markdown; `differs` are
    sentences on where it is not quite what was measured, `legends` what its placeholders stand for."""

    language: Literal["sh", "python"]
    code: str
    differs: tuple[str, ...] = ()
    request: str = ""
    legends: tuple[str, ...] = ()


def directory(plan: Plan, role: Role) -> Named:
    """For engines that read a Hugging Face directory or a hub id."""
    name, _ = _model(plan, role)
    place = f"path/to/{role}"
    if name == SERVED or name in TITLES:
        # A server told the name of its GGUF file, which this is not.
        return Named(place, legend=f"{text.code(place)} is {_what(name, None)}")
    if name.lower().endswith(".gguf"):
        return Named(place, legend=f"{text.code(place)} is the model from which {text.code(name)} was made")
    pinned = _PINNED.fullmatch(name)
    return Named(pinned[1], pinned[2]) if pinned else Named(_path(name))


def gguf(plan: Plan, role: Role) -> Named:
    """For llama.cpp, which reads a GGUF file and nothing else."""
    name, title = _model(plan, role)
    if name.lower().endswith(".gguf"):
        return Named(_path(name))
    place = f"path/to/{role}.gguf"
    return Named(place, legend=f"{text.code(place)} is a GGUF file of {_what(name, title)}")


def shell(options: Sequence[Sequence[str]]) -> str:
    """A command line, one option with its value a line; whatever is in a name stays one word of it."""
    return " \\\n  ".join(shlex.join(printable(part) for part in option) for option in options)


def sampled_drafts(plan: Plan, engine: str, option: str | None) -> list[str]:
    """Where an engine drafts greedily (unless `option` is set): in process drafts are drawn, as the target's tokens."""
    if plan.sampling.greedy or plan.served or plan.spec.kind != "model" or plan.spec.greedy:
        return []
    unless = f" unless told otherwise with {option}" if option else ""
    return [
        f"{engine} drafts the likeliest token{unless}; the run drew its drafts at temperature "
        f"{plan.sampling.temperature:g}."
    ]


def bare_drafts(plan: Plan, engine: str) -> list[str]:
    """Where an engine has the penalty on the target alone: in process it is on the draft as well."""
    if not plan.sampling.penalised or plan.served or plan.spec.kind != "model":
        return []
    return [f"{engine} drafts without the repetition penalty, which the run's draft had: expect another acceptance."]


def printable(name: str) -> str:
    """The name without characters that a terminal would obey or not show; "?" stands for them."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _model(plan: Plan, role: Role) -> tuple[str, str | None]:
    return (plan.target, plan.target_title) if role == "target" else (plan.spec.model or "", plan.draft_title)


def _what(name: str, title: str | None) -> str:
    if name == SERVED:
        return "the model that the measured server has"
    called = title if title not in (None, name) else TITLES.get(name)
    return text.code(name) + (f" ({text.escape(called)})" if called else "")


def _path(name: str) -> str:
    """As it is, but no engine would expand `~`, and a leading dash would be read as an option."""
    if name.startswith("~"):
        return str(Path(name).expanduser())
    return f"./{name}" if name.startswith("-") else name
